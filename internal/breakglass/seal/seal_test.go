package seal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
)

// A FIDO2 key's public half; nobody has the device.
const fido = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIKqHGyh6H7c1sJ" +
	"3pzcYqc1WFXQxnS3Cw9sUuFUvO0uYjAAAABHNzaDo="

func public(t *testing.T, key any) string {
	t.Helper()
	pub, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return grant.SSHKeyText(pub)
}

func private(t *testing.T, key any, phrase string) []byte {
	t.Helper()
	var block *pem.Block
	var err error
	if phrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(phrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func identity(t *testing.T, key any, phrase string) age.Identity {
	t.Helper()
	id, err := Identity(private(t, key, phrase), func() ([]byte, error) { return []byte(phrase), nil })
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCustodiansOpenTheirHostsCodesAndNobodyElse(t *testing.T) {
	anna, mallory := newKey(t), newKey(t)
	bob, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	carol, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	trust := &grant.Trust{Approvers: []grant.Approver{
		{Name: "bob", Groups: []string{"leads"}, SSHKeys: []string{public(t, bob.Public())}},
		{Name: "anna", Groups: []string{"leads"}, SSHKeys: []string{fido, public(t, anna.Public())}},
		{Name: "carol", Groups: []string{"leads"}, SSHKeys: []string{public(t, carol.Public()), fido}},
		{Name: "mallory", Groups: []string{"others"}, SSHKeys: []string{public(t, mallory.Public())}},
	}}
	to, err := Custodians(trust, []string{"leads"})
	if err != nil || strings.Join(to.Names, " ") != "anna bob" || strings.Join(to.Without, " ") != "carol" {
		t.Fatalf("%v, %v", to, err)
	}
	host := grant.HostID{1}
	set, err := Draw(host, 3, &to, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	theirs := map[string]age.Identity{
		"anna": identity(t, anna, ""), "anna with a passphrase": identity(t, anna, "horse"),
		"bob": identity(t, bob, ""), "bob with a passphrase": identity(t, bob, "horse"),
	}
	for i, sealed := range set.Sealed.GetCodes() {
		label := Label{Host: host, Set: set.ID, Number: i + 1}
		for name, id := range theirs {
			got, err := Open(sealed, label, id)
			if err != nil || got != set.Codes[i] {
				t.Errorf("%s, code %d: %v", name, i+1, err)
			}
		}
		if _, err := Open(sealed, label, identity(t, mallory, "")); !errors.Is(err, ErrOtherKey) {
			t.Errorf("mallory: %v", err)
		}
		// What is sealed for one host, set and number is shown for no other.
		for what, l := range map[string]Label{
			"host": {Host: grant.HostID{2}, Set: set.ID, Number: i + 1},
			"set":  {Host: host, Set: breakglass.SetID{9}, Number: i + 1},
			"code": {Host: host, Set: set.ID, Number: i + 2},
		} {
			if _, err := Open(sealed, l, identity(t, anna, "")); err == nil {
				t.Errorf("it is shown for another %s", what)
			}
		}
		if set.Hashes[i] != breakglass.HashOf(host, set.ID, set.Codes[i]) {
			t.Error("the hash is of another code")
		}
		altered := append([]byte{}, sealed...)
		altered[len(altered)-1] ^= 1
		if _, err := Open(altered, label, identity(t, anna, "")); err == nil {
			t.Error("an altered seal is opened")
		}
	}
}

func TestKeysThatCannotDecryptAreSaidSo(t *testing.T) {
	only := func(keys ...string) *grant.Trust {
		return &grant.Trust{Approvers: []grant.Approver{{Name: "anna", Groups: []string{"leads"}, SSHKeys: keys}}}
	}
	_, err := Custodians(only(fido), nil)
	if !errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), "anna") ||
		!strings.Contains(err.Error(), "FIDO2") {
		t.Errorf("got %v", err)
	}
	if _, err = Custodians(only(fido), []string{"nobody"}); !errors.Is(err, ErrNobody) ||
		!strings.Contains(err.Error(), "nobody") {
		t.Errorf("got %v", err)
	}
	var many []string
	for range MaxKeys + 1 {
		many = append(many, public(t, newKey(t).Public()))
	}
	if _, err = Custodians(only(many...), nil); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("got %v", err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"ecdsa": private(t, curve, ""), "ecdsa with a passphrase": private(t, curve, "horse"), "none": []byte("x"),
	} {
		_, err := Identity(text, func() ([]byte, error) { return []byte("horse"), nil })
		if err == nil || !strings.Contains(err.Error(), "ssh-ed25519") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A passphrase is asked for when the key fits, and a wrong one opens nothing.
func TestPassphraseIsAskedForWhatFits(t *testing.T) {
	key, asked := newKey(t), 0
	locked, err := Identity(private(t, key, "horse"), func() ([]byte, error) {
		asked++
		return []byte("donkey"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	open := func(keeper crypto.PublicKey) error {
		to, err := Custodians(&grant.Trust{Approvers: []grant.Approver{
			{Name: "anna", Groups: []string{"leads"}, SSHKeys: []string{public(t, keeper)}},
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		set, err := Draw(grant.HostID{1}, 1, &to, time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(set.Sealed.GetCodes()[0], Label{Host: grant.HostID{1}, Set: set.ID, Number: 1}, locked)
		return err
	}
	if err := open(newKey(t).Public()); !errors.Is(err, ErrOtherKey) || asked != 0 {
		t.Errorf("another's code: %v, asked %d times", err, asked)
	}
	if err := open(key.Public()); err == nil || asked != 1 {
		t.Errorf("a wrong passphrase: %v, asked %d times", err, asked)
	}
}

func TestSetsAreBounded(t *testing.T) {
	for _, n := range []int{-1, 0, breakglass.MaxCodes + 1} {
		if _, err := Draw(grant.HostID{}, n, nil, time.Now(), rand.Reader); err == nil {
			t.Errorf("%d codes", n)
		}
	}
	set, err := Draw(grant.HostID{}, 2, nil, time.Now(), rand.Reader)
	if err != nil || set.Sealed != nil || len(set.Codes) != 2 || set.Codes[0] == set.Codes[1] {
		t.Errorf("%+v, %v", set, err)
	}
}
