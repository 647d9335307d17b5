// Package cli is the curfew command: what people type to ask for access, to decide about it, to
// use it, to hand it back and to read what happened.
//
// It talks to the control plane by the user API (PROTOCOL.md section 7) and to nobody else; it
// decides nothing. What it may not do: sign terms that it has not decoded and shown, send a request
// over a connection that is not pinned to the control plane's CA, or write a byte to a terminal
// that did not pass through grant.VisibleText. Data goes to stdout, talk to stderr.
//
// State: config.yaml (server, user, CA), session.key (Ed25519, 0600) and verified.json (the last
// trail head that `log --verify` accepted) in $CURFEW_CONFIG_DIR, $XDG_CONFIG_HOME/curfew or
// ~/.config/curfew.
package cli
