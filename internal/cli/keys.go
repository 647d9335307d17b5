package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/term"

	"github.com/curfew-access/curfew/internal/grant"
)

const (
	maxKeyFile   = 64 << 10
	agentTimeout = 2 * time.Minute // a security key may wait for a touch
)

// sshKey is a key that could sign: from the agent, or from a file that may still be locked.
type sshKey struct {
	public ssh.PublicKey
	file   string // empty: from the agent
	unlock func() (ssh.Signer, error)
}

func (k sshKey) name() string {
	from := "ssh-agent"
	if k.file != "" {
		from = k.file
	}
	if k.public == nil {
		return from
	}
	return fmt.Sprintf("%s (%s)", ssh.FingerprintSHA256(k.public), from)
}

func (k sshKey) is(public ssh.PublicKey) bool {
	return k.public != nil && bytes.Equal(k.public.Marshal(), public.Marshal())
}

// keyring finds the person's SSH keys. close ends the conversation with the agent.
type keyring struct {
	a    *app
	conn net.Conn
}

func (a *app) keyring() *keyring { return &keyring{a: a} }

func (r *keyring) close() error {
	if r.conn == nil {
		return nil
	}
	return r.conn.Close()
}

// keys lists what could sign: only file when one is named, else the usual ones.
func (r *keyring) keys(file string) ([]sshKey, error) {
	if file != "" {
		key, err := r.named(file)
		if err != nil {
			return nil, err
		}
		return []sshKey{key}, nil
	}
	keys := r.usual()
	if len(keys) == 0 {
		return nil, fail(exitFailed, "no SSH key found: neither in ssh-agent nor in ~/.ssh").
			hint("name one: --key FILE, or load one: ssh-add")
	}
	return keys, nil
}

// usual are the agent's keys and then those in the files that ssh itself looks at. What cannot be
// used is warned about and left out.
func (r *keyring) usual() []sshKey {
	keys := r.agentKeys()
	home := r.a.env.Getenv("HOME")
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		key, err := r.fileKey(filepath.Join(home, ".ssh", name))
		switch {
		case home == "" || errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			r.a.Warn("%v", err)
			continue
		}
		if !contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

func contains(keys []sshKey, key sshKey) bool {
	for _, k := range keys {
		if key.public != nil && k.is(key.public) {
			return true
		}
	}
	return false
}

// one finds the key that signs approvals: the named file, or the key that signed in.
func (r *keyring) one(file string, cfg *config) (sshKey, error) {
	if file == "" && cfg.SSHKey == "" {
		return sshKey{}, fail(exitFailed, "it is not known which SSH key is yours").
			hint("name it: --key FILE; a new one becomes yours by: curfew keys add")
	}
	if file != "" {
		keys, err := r.keys(file)
		if err != nil {
			return sshKey{}, err
		}
		return keys[0], nil
	}
	want, err := grant.ParseSSHKey(cfg.SSHKey)
	if err != nil {
		return sshKey{}, fmt.Errorf("reading ssh_key of the configuration: %w", err)
	}
	if cfg.KeyFile != "" {
		if key, err := r.fileKey(cfg.KeyFile); err == nil && (key.public == nil || key.is(want)) {
			return key, nil
		}
	}
	for _, k := range r.usual() {
		if k.is(want) {
			return k, nil
		}
	}
	return sshKey{}, fail(exitFailed, "the key that signed in, %s, is neither in ssh-agent nor in "+
		"~/.ssh", ssh.FingerprintSHA256(want)).hint("load it (ssh-add), or name it: --key FILE")
}

// agentKeys are the agent's keys that Curfew takes; none when there is no agent that answers.
func (r *keyring) agentKeys() []sshKey {
	signers, err := r.agentSigners()
	if err != nil {
		r.a.Warn("%v", err)
	}
	var keys []sshKey
	for _, s := range signers {
		if _, err := grant.CanonicalSSHKey(grant.SSHKeyText(s.PublicKey())); err != nil {
			continue // certificates, DSA: nothing that Curfew takes
		}
		keys = append(keys, sshKey{
			public: s.PublicKey(), unlock: func() (ssh.Signer, error) { return s, nil },
		})
	}
	return keys
}

func (r *keyring) agentSigners() ([]ssh.Signer, error) {
	path := r.a.env.Getenv("SSH_AUTH_SOCK")
	if path == "" {
		return nil, nil
	}
	conn, err := net.DialTimeout("unix", path, connectTimeout)
	if err != nil {
		return nil, fmt.Errorf("ssh-agent does not answer: %w", err)
	}
	r.conn = conn
	if err := conn.SetDeadline(r.a.env.Now().Add(agentTimeout)); err != nil {
		return nil, fmt.Errorf("ssh-agent: %w", err)
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		return nil, fmt.Errorf("ssh-agent does not list its keys: %w", err)
	}
	return signers, nil
}

// named reads --key: a private key file, or a public one whose private half the agent holds.
func (r *keyring) named(file string) (sshKey, error) {
	data, err := readCapped(file, maxKeyFile)
	if err != nil {
		return sshKey{}, fail(exitUsage, "reading the SSH key: %w", err)
	}
	fromAgent := r.agentKeys()
	if public, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		for _, k := range fromAgent {
			if k.is(public) {
				return k, nil
			}
		}
		return sshKey{}, fail(exitFailed, "%s is a public key, and ssh-agent does not hold its "+
			"private half", file).hint("load it: ssh-add")
	}
	key, err := r.fileKey(file)
	if err != nil {
		return sshKey{}, fail(exitUsage, "%w", err)
	}
	for _, k := range fromAgent {
		if key.public != nil && k.is(key.public) {
			k.file = file // the agent spares the passphrase; the file is remembered
			return k, nil
		}
	}
	return key, nil
}

// fileKey reads a private key file; one with a passphrase stays locked until it is used.
func (r *keyring) fileKey(path string) (sshKey, error) {
	data, err := readCapped(path, maxKeyFile)
	if err != nil {
		return sshKey{}, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return sshKey{
			public: locked.PublicKey, file: path,
			unlock: func() (ssh.Signer, error) { return r.askPassphrase(path, data) },
		}, nil
	case err != nil:
		return sshKey{}, fmt.Errorf("%s is not a usable private key: %w", path, err)
	}
	return sshKey{
		public: signer.PublicKey(), file: path,
		unlock: func() (ssh.Signer, error) { return signer, nil },
	}, nil
}

func (r *keyring) askPassphrase(path string, data []byte) (ssh.Signer, error) {
	in := r.a.terminalInput()
	if in == nil {
		return nil, usage("%s needs a passphrase, and there is no terminal to ask on", path).
			hint("load it into ssh-agent: ssh-add %s", path)
	}
	passphrase, err := r.a.readPassphrase(in, path)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKeyWithPassphrase(data, passphrase)
	clear(passphrase)
	if err != nil {
		return nil, fail(exitFailed, "%s: %w", path, err)
	}
	return signer, nil
}

func (a *app) readPassphrase(in *os.File, path string) ([]byte, error) {
	a.Ask("Passphrase for %s: ", path)
	passphrase, err := readPassword(in)
	fmt.Fprintln(a.err)
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	return passphrase, nil
}

func readPassword(in *os.File) ([]byte, error) { return term.ReadPassword(int(in.Fd())) }
