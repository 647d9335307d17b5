package controlplane_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"io"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// securityKey signs as a FIDO2 key does (PROTOCOL.u2f): flags say whether it was touched (1) and
// whether it checked its user (4).
type securityKey struct {
	private ed25519.PrivateKey
	flags   byte
}

func (k securityKey) PublicKey() ssh.PublicKey {
	pub, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Name, Key, Application string }{
		ssh.KeyAlgoSKED25519, string(k.private.Public().(ed25519.PublicKey)), "ssh:",
	}))
	if err != nil {
		panic(err)
	}
	return pub
}

func (k securityKey) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, hash := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	said := []byte{k.flags, 0, 0, 0, 9}
	return &ssh.Signature{
		Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.private, slices.Concat(app[:], said, hash[:])),
		Rest: said,
	}, nil
}

// Who must verify themselves approves by a security key that asked for PIN or fingerprint, and by
// nothing less: neither here nor on the host.
func TestVerifyRequired(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	touched := securityKey{rootKey(t), 1}
	verified := securityKey{touched.private, 1 | 4}
	put := func(required bool, keys ...ssh.Signer) error {
		u := &apiv1.User{Name: "bob", VerifyRequired: &required}
		for _, k := range keys {
			u.SshKeys = append(u.SshKeys, grant.SSHKeyText(k.PublicKey()))
		}
		_, err := h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: u})
		return err
	}
	refused(t, put(true, bob.key), apiv1.Code_CODE_INVALID) // nothing of his could count
	must(t, put(true, bob.key, touched))
	r := alice.ask("web1")
	plain := bob.key
	for name, key := range map[string]ssh.Signer{"a plain key": plain, "a touch alone": touched} {
		bob.key = key
		if _, err := bob.approve(r); err == nil {
			t.Errorf("%s approved", name)
		}
	}
	bob.key = verified
	_, err := bob.approve(r)
	must(t, err)
	web1.eventually(1)
}
