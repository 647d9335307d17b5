package agentcli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/curfew-access/curfew/agent/link"
	jointoken "github.com/curfew-access/curfew/internal/join"
)

func written(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestJoinFile(t *testing.T) {
	token := written(t, "token", "cft1.a.b\n", 0o600)
	var f joinFlags
	f.name = "db1"
	err := f.readFrom(written(t, "join.yaml", "server: c.example.org:7443\ntoken_file: "+token+
		"\nname: web1\naddress: 192.0.2.7\nlabels: {env: prod}\n", 0o644))
	if err != nil {
		t.Fatal(err)
	}
	if f.server != "c.example.org:7443" || f.token != "cft1.a.b" || f.address != "192.0.2.7" ||
		f.labels["env"] != "prod" {
		t.Errorf("it reads as %+v", f)
	}
	if f.name != "db1" {
		t.Errorf("the file overrides a flag: %q", f.name)
	}
	if err := errors.Join(f.forgetToken(), f.forgetToken()); err != nil {
		t.Errorf("forgetting the token: %v", err)
	}
	if _, err := os.Stat(token); !os.IsNotExist(err) {
		t.Errorf("the spent token is still there: %v", err)
	}

	var c joinFlags
	err = c.readFrom(written(t, "join.yaml", "server: c:1\ncloud: aws\nca_pin: "+strings.Repeat("A", 43), 0o644))
	if err != nil || c.cloud != "aws" || len(c.pin) != 43 || c.forgetToken() != nil {
		t.Errorf("it reads as %+v, %v", c, err)
	}
}

// A token that systemd hands over is read for as long as the unit runs, and is systemd's.
func TestJoinFileNamesACredential(t *testing.T) {
	token := written(t, "join.token", "cft1.a.b\n", 0o400)
	file := written(t, "join.yaml", "server: c:1\ntoken_file: credential:join.token\n", 0o644)
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	var f joinFlags
	if err := f.readFrom(file); err == nil || !strings.Contains(err.Error(), "LoadCredential=join.token:/PATH") {
		t.Errorf("without credentials it says %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(token))
	if err := errors.Join(f.readFrom(file), f.forgetToken()); err != nil || f.token != "cft1.a.b" {
		t.Errorf("it reads as %q, %v", f.token, err)
	}
	if _, err := os.Stat(token); err != nil {
		t.Errorf("the credential was removed: %v", err)
	}
	for _, name := range []string{"", "../join.token", "missing"} {
		text := "server: c:1\ntoken_file: credential:" + name + "\n"
		if err := new(joinFlags).readFrom(written(t, "join.yaml", text, 0o644)); err == nil {
			t.Errorf("credential:%s is read", name)
		}
	}
}

func TestBrokenJoinFile(t *testing.T) {
	public := written(t, "token", "cft1.a.b", 0o644)
	if err := os.Chmod(public, 0o644); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"colour: red":                      "colour",
		"server: [a]":                      "cannot construct",
		"server: a\nserver: b":             "server",
		"server: [":                        "join.yaml",
		"token_file: /no/such/token":       "/no/such/token",
		"token_file: " + public:            "chmod 0600",
		strings.Repeat("# long\n", 10_000): "longer than",
	} {
		var f joinFlags
		err := f.readFrom(written(t, "join.yaml", text, 0o644))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q says %v, want %q", text, err, want)
		}
	}
	if code, _, stderr := run("join", "--from", "/no/such/join.yaml"); code != exitFailed ||
		!strings.Contains(stderr, "/no/such/join.yaml") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	empty := written(t, "join.yaml", "# nothing\n", 0o644)
	if code, _, stderr := run("join", "--from", empty); code != exitUsage {
		t.Errorf("an empty file: exit %d, %q", code, stderr)
	}
}

// A first boot waits for a network and a control plane, and for nothing that waiting does not mend.
func TestJoinWaits(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jointoken.NewToken(rand.Reader, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	_, away := link.Join(t.Context(), link.JoinConfig{
		Server: "127.0.0.1:1", Token: token.String(), RootKey: key, UID: -1, GID: -1, Now: time.Now,
		Directory: filepath.Join(t.TempDir(), "link"), Timing: link.Timing{Connect: time.Second},
	})
	if !link.TryLater(away) {
		t.Fatalf("a control plane that is away: %v", away)
	}
	refused := errors.New("the control plane refused")
	for name, tt := range map[string]struct {
		wait    bool
		answers []error
		want    error
		tries   int
	}{
		"at once":            {true, []error{nil}, nil, 1},
		"later":              {true, []error{away, away, away, away, away, away, away, nil}, nil, 8},
		"refused":            {true, []error{refused, nil}, refused, 1},
		"away, then refused": {true, []error{away, refused, nil}, refused, 2},
		"without --wait":     {false, []error{away, nil}, away, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var said bytes.Buffer
				f, tries, began := joinFlags{wait: tt.wait}, 0, time.Now()
				_, err := f.persist(t.Context(), &said, func() (*link.Joined, error) {
					tries++
					return &link.Joined{}, tt.answers[tries-1]
				})
				if !errors.Is(err, tt.want) || tries != tt.tries {
					t.Errorf("%d tries, then %v; want %d, %v", tries, err, tt.tries, tt.want)
				}
				if n := strings.Count(said.String(), "not yet: "); n != tries-1 {
					t.Errorf("it said %q", &said)
				}
				if took := time.Since(began); took > time.Duration(tries)*maxPause {
					t.Errorf("%d tries took %s", tries, took)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f := joinFlags{wait: true}
		_, err := f.persist(ctx, &bytes.Buffer{}, func() (*link.Joined, error) { return nil, away })
		if !errors.Is(err, away) {
			t.Errorf("stopped while it waits: %v", err)
		}
	})
}
