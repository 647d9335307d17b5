package sshsig_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/sshsig"
)

// keygen runs the system's ssh-keygen, which these tests need.
func keygen(t *testing.T, stdin []byte, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Fatalf("install openssh-client: %v", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var message = []byte("terms\x00with\nany bytes\xff")

// What ssh-keygen signs, Verify accepts; what Sign signs, ssh-keygen accepts; for each kind of key.
func TestInteropWithSSHKeygen(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			signer, private := key(t, kind)
			block, err := ssh.MarshalPrivateKey(private, "")
			if err != nil {
				t.Fatal(err)
			}
			keyFile := write(t, dir, "key", pem.EncodeToMemory(block))
			line := ssh.MarshalAuthorizedKey(signer.PublicKey())
			write(t, dir, "key.pub", line)
			allowed := write(t, dir, "allowed", append([]byte("bob "), line...))

			text := write(t, dir, "terms", message)
			if out, err := keygen(t, nil, "-Y", "sign", "-q", "-f", keyFile, "-n", ns, text); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			armored, err := os.ReadFile(text + ".sig")
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := sshsig.Unarmor(armored)
			if err != nil {
				t.Fatal(err)
			}
			got, err := sshsig.Verify(theirs, ns, message)
			if err != nil || !bytes.Equal(got.Marshal(), signer.PublicKey().Marshal()) {
				t.Errorf("ssh-keygen's signature: %v", err)
			}
			if _, err := sshsig.Verify(theirs, sshsig.NamespaceLogin, message); err == nil {
				t.Error("ssh-keygen's signature verifies in another namespace")
			}
			if _, err := sshsig.Verify(theirs, ns, message[1:]); err == nil {
				t.Error("ssh-keygen's signature verifies over other bytes")
			}

			ours, err := sshsig.Sign(signer, ns, message)
			if err != nil {
				t.Fatal(err)
			}
			sigFile := write(t, dir, "ours.sig", sshsig.Armor(ours))
			for name, c := range map[string]struct {
				args []string
				over []byte
				ok   bool
			}{
				"verify":            {[]string{"verify", "-I", "bob", "-f", allowed, "-n", ns}, message, true},
				"check-novalidate":  {[]string{"check-novalidate", "-n", ns}, message, true},
				"another namespace": {[]string{"check-novalidate", "-n", "file"}, message, false},
				"other bytes":       {[]string{"check-novalidate", "-n", ns}, message[1:], false},
				"another person":    {[]string{"verify", "-I", "eve", "-f", allowed, "-n", ns}, message, false},
			} {
				args := append([]string{"-Y"}, c.args...)
				out, err := keygen(t, c.over, append(args, "-s", sigFile)...)
				if (err == nil) != c.ok {
					t.Errorf("%s of our signature: %v: %s", name, err, out)
				}
			}
		})
	}
}

// ssh-keygen can hash with sha256 and sign with a certificate; Curfew accepts neither.
func TestSSHKeygensOtherForms(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"ca", "key"} {
		out, err := keygen(t, nil, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	keyFile := filepath.Join(dir, "key")
	if out, err := keygen(t, nil, "-q", "-s", filepath.Join(dir, "ca"), "-I", "bob", "-n", "bob",
		keyFile+".pub"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, args := range [][]string{
		{"-O", "hashalg=sha256", "-f", keyFile},
		{"-f", keyFile + "-cert.pub"},
	} {
		text := write(t, dir, fmt.Sprint("terms", i), message)
		args = append([]string{"-Y", "sign", "-q", "-n", ns}, args...)
		if out, err := keygen(t, nil, append(args, text)...); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		armored, err := os.ReadFile(text + ".sig")
		if err != nil {
			t.Fatal(err)
		}
		sig, err := sshsig.Unarmor(armored)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sshsig.Verify(sig, ns, message); err == nil {
			t.Errorf("%v: verifies", args)
		}
	}
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
