package link_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func TestJoinMakesAnIdentity(t *testing.T) {
	c := newControl(t)
	dir := filepath.Join(t.TempDir(), "link")
	config := c.joinConfig(dir)
	config.Name, config.Address = "web1", "192.0.2.7"
	config.MachineID = machineID(t, "0123456789abcdef0123456789abcdef")
	config.Labels = map[string]string{"env": "prod"}
	config.SSHHostKeys = []string{
		"ssh-ed25519 " +
			"AAAAC3NzaC1lZDI1NTE5AAAAIIQl8yIPbiQz9wqzMhlVLpyBkFfaqIhbk2Dxd8Ev0iYu root@web1\n",
		"ssh-dss AAAA old\n",
	}
	joined, err := link.Join(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	pub := config.RootKey.Public().(ed25519.PublicKey)
	if joined.HostID != grant.HostIDOf(pub).String() || joined.Name != "web1" ||
		joined.Organisation != "example" || string(joined.TrustEnvelope) != "trust" {
		t.Errorf("joined as %+v", joined)
	}
	r := c.enrolled
	if !ed25519.Verify(pub, join.Message(c.token, r.GetCsr()), r.GetSignature()) {
		t.Error("the root half's signature does not tie token and link key")
	}
	if r.GetName() != "web1" || r.GetAddress() != "192.0.2.7" || r.GetLabels()["env"] != "prod" ||
		len(r.GetSshHostKeys()) != 1 {
		t.Errorf("it said %v", r)
	}
	for name, mode := range map[string]os.FileMode{
		"": 0o700 | os.ModeDir, "link.key": 0o600, "link.crt": 0o644, "ca.crt": 0o644,
		"link.json": 0o644, "machine-id": 0o644,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("%q has mode %v, want %v", name, info.Mode(), mode)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 5 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if _, err := link.Join(context.Background(), config); !errors.Is(err, link.ErrJoined) {
		t.Errorf("joining again: %v", err)
	}
}

// The token's pin is what tells the control plane from somebody in between.
func TestJoinRefusesAnotherControlPlane(t *testing.T) {
	c, other := newControl(t), newControl(t)
	dir := filepath.Join(t.TempDir(), "link")
	config := c.joinConfig(dir)
	config.Server = other.address
	if _, err := link.Join(context.Background(), config); err == nil {
		t.Fatal("joined a control plane with another CA")
	}
	if other.enrolled != nil {
		t.Error("the token was shown to a control plane with another CA")
	}
	if _, err := link.New(link.Config{
		Directory: dir, Now: time.Now, Log: hclog.NewNullLogger(),
	}); !errors.Is(err, link.ErrNotJoined) {
		t.Errorf("after a failed join: %v", err)
	}
	config.Server = c.address
	if _, err := link.Join(context.Background(), config); err != nil {
		t.Errorf("the right one afterwards: %v", err)
	}
}

func TestJoinSaysWhatTheControlPlaneSaid(t *testing.T) {
	c := newControl(t)
	st, err := status.New(codes.PermissionDenied, "used").WithDetails(&apiv1.Reason{
		Code: apiv1.Code_CODE_DENIED, Text: "the join token was used already",
		Hint: "ask an admin for a new token",
	})
	if err != nil {
		t.Fatal(err)
	}
	c.enrolErr = st.Err()
	_, err = link.Join(context.Background(), c.joinConfig(filepath.Join(t.TempDir(), "link")))
	if err == nil || !strings.Contains(err.Error(), "used already; ask an admin") {
		t.Errorf("join says %v", err)
	}
}

func TestJoinRefusesBadInput(t *testing.T) {
	c := newControl(t)
	for name, change := range map[string]func(*link.JoinConfig){
		"no port":   func(j *link.JoinConfig) { j.Server = "controlplane" },
		"no token":  func(j *link.JoinConfig) { j.Token = "" },
		"no key":    func(j *link.JoinConfig) { j.RootKey = nil },
		"no folder": func(j *link.JoinConfig) { j.Directory = "" },
	} {
		config := c.joinConfig(filepath.Join(t.TempDir(), "link"))
		change(&config)
		if _, err := link.Join(context.Background(), config); err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	if c.enrolled != nil {
		t.Error("the control plane was asked")
	}
}

// Files that do not belong together, or are damaged, are refused with the reason, never half used. A CA
// other than the certificate's is none: it may have changed since (curfew-agent trust-ca).
func TestDamagedIdentity(t *testing.T) {
	c := newControl(t)
	other := newControl(t)
	foreign := other.joined()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"cut key":    func(t *testing.T, dir string) { cut(t, dir, "link.key") },
		"cut cert":   func(t *testing.T, dir string) { cut(t, dir, "link.crt") },
		"cut CA":     func(t *testing.T, dir string) { cut(t, dir, "ca.crt") },
		"cut json":   func(t *testing.T, dir string) { cut(t, dir, "link.json") },
		"no key":     func(t *testing.T, dir string) { remove(t, dir, "link.key") },
		"other key":  func(t *testing.T, dir string) { swap(t, dir, foreign, "link.key") },
		"other cert": func(t *testing.T, dir string) { swap(t, dir, foreign, "link.crt") },
		"other host": func(t *testing.T, dir string) { swap(t, dir, foreign, "link.json") },
		"huge":       func(t *testing.T, dir string) { grow(t, dir, "link.crt") },
		"not a regular settings file": func(t *testing.T, dir string) {
			remove(t, dir, "link.json")
			if err := os.Mkdir(filepath.Join(dir, "link.json"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := c.joined()
			config := link.Config{Directory: dir, Now: time.Now, Log: hclog.NewNullLogger()}
			if _, err := link.New(config); err != nil {
				t.Fatal(err)
			}
			damage(t, dir)
			if _, err := link.New(config); err == nil {
				t.Error("the identity is used")
			}
		})
	}
}

func cut(t *testing.T, dir, name string) {
	t.Helper()
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
}

func grow(t *testing.T, dir, name string) {
	t.Helper()
	b := make([]byte, 1<<20)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func swap(t *testing.T, dir, from, name string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func machineID(t *testing.T, id string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "machine-id")
	if err := os.WriteFile(path, []byte(id+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A disk that was copied with a host's keys on it stays silent: the host itself would be refused.
func TestACopiedDiskIsNotTheHost(t *testing.T) {
	c := newControl(t)
	here, there := strings.Repeat("a", 32), strings.Repeat("b", 32)
	for name, m := range map[string]struct {
		joined, now string
		want        error
	}{
		"the same machine":        {here, here, nil},
		"a copy":                  {here, there, link.ErrClone},
		"a copy before its id":    {here, "uninitialized", link.ErrClone},
		"no id when it joined":    {"", there, nil},
		"no id yet at that time":  {"uninitialized", there, nil},
		"no id, neither then nor": {"", "", nil},
	} {
		config := c.joinConfig(filepath.Join(t.TempDir(), "link"))
		config.MachineID = machineID(t, m.joined)
		if _, err := link.Join(context.Background(), config); err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(filepath.Join(config.Directory, "machine-id")); strings.Contains(string(text), here) {
			t.Error("the machine-id itself is kept")
		}
		_, err := link.New(link.Config{
			Directory: config.Directory, MachineID: machineID(t, m.now), Now: time.Now,
			Log: hclog.NewNullLogger(),
		})
		if !errors.Is(err, m.want) {
			t.Errorf("%s: %v, want %v", name, err, m.want)
		}
	}
}
