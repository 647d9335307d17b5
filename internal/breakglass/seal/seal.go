// Package seal seals break-glass codes to the SSH keys of the people who keep them (age and its ssh
// recipients, age-encryption.org), and opens one of them on such a person's own machine.
//
// It is apart from package breakglass so that the root half, which only compares hashes, holds no
// decryption code. The commands of curfew-agent seal, curfew opens; in between the control plane keeps
// bytes that it cannot read.
package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
)

// MaxKeys is how many SSH keys one set is sealed to at most.
const MaxKeys = 64

// maxSealed bounds one sealed code, in bytes.
const maxSealed = 64 << 10

// Recipients are the people whom a set is sealed to.
type Recipients struct {
	// Names can open it; sorted. Without are custodians of whom no key can.
	Names, Without []string
	keys           []age.Recipient
}

// ErrNobody means that no custodian has a key that can decrypt.
var ErrNobody = errors.New("no custodian has an SSH key that can decrypt")

// Custodians finds, among the approvers of a trust file, those of the groups (of any group, when none
// is named) and their keys that can decrypt: ssh-ed25519 and ssh-rsa. Keys on FIDO2 devices and ECDSA
// keys sign only, and count for nothing here.
func Custodians(trust *grant.Trust, groups []string) (Recipients, error) {
	var r Recipients
	for _, a := range trust.Approvers {
		if len(groups) > 0 && !slices.ContainsFunc(groups, func(g string) bool {
			return slices.Contains(a.Groups, g)
		}) {
			continue
		}
		usable := false
		for _, line := range a.SSHKeys {
			key, err := recipient(line)
			if err != nil {
				return Recipients{}, fmt.Errorf("SSH key of custodian %s: %w", a.Name, err)
			}
			if key != nil {
				r.keys, usable = append(r.keys, key), true
			}
		}
		if usable {
			r.Names = append(r.Names, a.Name)
		} else {
			r.Without = append(r.Without, a.Name)
		}
	}
	slices.Sort(r.Names)
	slices.Sort(r.Without)
	switch {
	case len(r.Names) == 0 && len(r.Without) == 0:
		return r, fmt.Errorf("%w: the trust file has no approver in %s", ErrNobody, of(groups))
	case len(r.Names) == 0:
		return r, fmt.Errorf("%w: %s have none of type ssh-ed25519 or ssh-rsa (FIDO2 and ECDSA keys "+
			"sign, they do not decrypt)", ErrNobody, strings.Join(r.Without, ", "))
	case len(r.keys) > MaxKeys:
		return r, fmt.Errorf("the custodians have %d SSH keys; at most %d: name a smaller group in "+
			"break_glass.custodians", len(r.keys), MaxKeys)
	}
	return r, nil
}

func of(groups []string) string {
	if len(groups) == 0 {
		return "any group"
	}
	return "the groups " + strings.Join(groups, ", ")
}

// recipient returns nil for a key that cannot decrypt.
func recipient(line string) (age.Recipient, error) {
	key, err := grant.ParseSSHKey(line)
	if err != nil {
		return nil, err
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519:
		return agessh.NewEd25519Recipient(key)
	case ssh.KeyAlgoRSA:
		return agessh.NewRSARecipient(key)
	}
	return nil, nil
}

// Label is what stands beside a code under its seal, so that a code can be shown for no other host, set
// or number than its own.
type Label struct {
	Host   grant.HostID
	Set    breakglass.SetID
	Number int
}

func (l Label) text(c breakglass.Code) string {
	return fmt.Sprintf("curfew break-glass v1\nhost %s\nset %s\nnumber %d\ncode %s\n", l.Host, l.Set,
		l.Number, c)
}

// Seal seals one code.
func (r Recipients) Seal(l Label, c breakglass.Code) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, r.keys...)
	if err == nil {
		_, err = io.WriteString(w, l.text(c))
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("sealing break-glass code %d: %w", l.Number, err)
	}
	return out.Bytes(), nil
}

// ErrOtherKey means that none of the identities can open it.
var ErrOtherKey = errors.New("sealed to other SSH keys")

// Open opens a sealed code with an SSH private key, and demands that it is the one that the label says.
func Open(sealed []byte, l Label, identities ...age.Identity) (breakglass.Code, error) {
	if len(sealed) > maxSealed {
		return breakglass.Code{}, fmt.Errorf("sealed code of %d bytes; at most %d", len(sealed), maxSealed)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if other := new(age.NoIdentityMatchError); errors.As(err, &other) {
		return breakglass.Code{}, ErrOtherKey
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(r, maxSealed))
	}
	if err != nil {
		return breakglass.Code{}, fmt.Errorf("opening break-glass code %d: %w", l.Number, err)
	}
	_, last, _ := strings.Cut(string(text), "\ncode ")
	c, err := breakglass.ParseCode(last)
	if err != nil || l.text(c) != string(text) {
		return breakglass.Code{}, fmt.Errorf("what is sealed is not break-glass code %d of set %s of host %s",
			l.Number, l.Set, l.Host)
	}
	return c, nil
}

// Identity makes what opens codes of an SSH private key in OpenSSH or PEM form. Where the key has a
// passphrase, it is asked for once a code turns out to be sealed to that key.
func Identity(pem []byte, passphrase func() ([]byte, error)) (age.Identity, error) {
	id, err := agessh.ParseIdentity(pem)
	if locked := new(ssh.PassphraseMissingError); errors.As(err, &locked) && locked.PublicKey != nil {
		id, err = agessh.NewEncryptedSSHIdentity(locked.PublicKey, pem, passphrase)
	}
	if err != nil {
		return nil, fmt.Errorf("the SSH key cannot decrypt: %w; it takes a private key of type "+
			"ssh-ed25519 or ssh-rsa (FIDO2 and ECDSA keys sign only)", err)
	}
	return id, nil
}
