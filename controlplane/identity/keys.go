package identity

import (
	"context"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/sshsig"
)

// FreshFor is how old a sign-in may be to enrol an SSH key.
const FreshFor = 10 * time.Minute

// Fresh refuses a session that was not signed in at the provider a moment ago: a key opens hosts for
// as long as it stands, and a laptop that was left open must not leave one behind.
func (s *Service) Fresh(p Person) error {
	byProvider := p.Session.Method == MethodOIDC || p.Session.Method == MethodDevice
	if byProvider && s.c.Now().Sub(p.Session.Created) <= FreshFor {
		return nil
	}
	r := reason.SignIn("an SSH key is added within %s of a sign-in at the identity provider", FreshFor)
	if s.c.Federation.Provider == nil {
		return r.WithHint("there is none here: an admin adds keys with curfew admin user add %s "+
			"--replace --key …", p.Name)
	}
	return r.WithHint("curfew login --sso")
}

// CheckNewKey spends a challenge and checks that whoever calls holds the new key, for this session:
// nobody enrols somebody else's key.
func (s *Service) CheckNewKey(ctx context.Context, p Person, session, challenge, sig []byte) (
	key string, err error,
) {
	if SessionKey(session) != p.Session.Key {
		return "", reason.Invalid("the signature is for another session")
	}
	if err := s.Fresh(p); err != nil {
		return "", err
	}
	b, err := s.spend(ctx, challenge, session)
	if err != nil {
		return "", err
	}
	pub, err := sshsig.Verify(sig, sshsig.NamespaceKey, signin.Binding(b).Key(p.Name))
	if err != nil {
		return "", reason.Denied("the new key did not sign for you: %v", err)
	}
	if key, err = grant.CanonicalSSHKey(grant.SSHKeyText(pub)); err != nil {
		return "", reason.Invalid("%v", err)
	}
	return key, nil
}

// SetKeys replaces a user's SSH keys, in the caller's transaction; change gets those that they have.
// Ending what rested on a key that goes is package access's.
func (s *Service) SetKeys(
	tx Tx, by, name string, change func([]string) ([]string, error),
) (was, is User, err error) {
	if was, err = tx.User(name); err != nil {
		return was, is, err
	}
	u := was
	if u.SSHKeys, err = change(slices.Clone(was.SSHKeys)); err != nil {
		return was, is, err
	}
	if is, err = s.putUser(tx, by, was, u); err != nil {
		return was, is, err
	}
	return was, is, s.refreshTrust(tx, by)
}

// Fingerprint is a key's as ssh-keygen -l shows it; empty for what is no key.
func Fingerprint(line string) string {
	key, err := grant.ParseSSHKey(line)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key)
}
