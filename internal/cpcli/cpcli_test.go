package cpcli_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/cpcli"
)

type result struct {
	code     int
	out, err string
}

func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := cpcli.Main(args, strings.NewReader(stdin), &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

func publicKey(t *testing.T) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(key))
}

func setUp(t *testing.T) (common []string, dir string) {
	t.Helper()
	dir = t.TempDir()
	common = []string{
		"--config", filepath.Join(dir, "etc", "controlplane.yaml"), "--data-dir", filepath.Join(dir, "data"),
	}
	r := run(t, publicKey(t), append([]string{
		"init", "--organisation", "acme", "--url", "curfew.example.org:7443", "--admin", "dana",
		"--admin-key", "-",
	}, common...)...)
	if r.code != 0 {
		t.Fatalf("init: %+v", r)
	}
	line := regexp.MustCompile(
		`^curfew login --server curfew\.example\.org:7443 --ca-pin [A-Za-z0-9_-]{43} --user dana\n$`)
	if !line.MatchString(r.out) {
		t.Errorf("init prints %q", r.out)
	}
	return common, dir
}

func TestInitBackupRestore(t *testing.T) {
	common, dir := setUp(t)
	err := filepath.WalkDir(filepath.Join(dir, "data"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o600 && filepath.Base(path) != "ca.crt" {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	again := run(t, publicKey(t), append([]string{
		"init", "--organisation", "acme", "--url", "x:1", "--admin", "eve", "--admin-key", "-",
	}, common...)...)
	if again.code != 1 || !strings.Contains(again.err, "nothing was changed") {
		t.Errorf("a second init: %+v", again)
	}
	file := filepath.Join(dir, "b.tar")
	if r := run(t, "", append([]string{"backup", file}, common...)...); r.code != 0 {
		t.Fatalf("backup: %+v", r)
	}
	if r := run(t, "", append([]string{"restore", file}, common...)...); r.code != 1 {
		t.Errorf("a restore over a control plane: %+v", r)
	}
	r := run(t, "", "restore", file, "--config", common[1], "--data-dir", filepath.Join(dir, "new"))
	if r.code != 0 || !strings.Contains(r.err, "Lost is what came after") {
		t.Errorf("restore: %+v", r)
	}
	show := run(t, "", "trust", "show", "--config", common[1], "--data-dir", filepath.Join(dir, "new"))
	if show.code != 0 || !strings.Contains(show.out, `"organisation": "acme"`) ||
		strings.Contains(show.out, `"epoch": 1,`) {
		t.Errorf("the restored trust file: %+v", show)
	}
}

func TestSignWithARootKeyKeptElsewhere(t *testing.T) {
	common, dir := setUp(t)
	away := filepath.Join(dir, "away.key")
	if err := os.Rename(filepath.Join(dir, "data", "root.key"), away); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "b.tar")
	if r := run(t, "", append([]string{"backup", file}, common...)...); r.code != 0 {
		t.Fatalf("backup: %+v", r)
	}
	if err := os.Rename(filepath.Join(dir, "data"), filepath.Join(dir, "lost")); err != nil {
		t.Fatal(err)
	}
	r := run(t, "", append([]string{"restore", file}, common...)...)
	if r.code != 0 || !strings.Contains(r.err, "trust sign --root-key") {
		t.Fatalf("a restore without the root key: %+v", r)
	}
	if r := run(t, "", append([]string{"trust", "sign", "--root-key", away}, common...)...); r.code != 0 {
		t.Errorf("trust sign: %+v", r)
	}
	if r := run(t, "", append([]string{"trust", "sign", "--root-key", away}, common...)...); r.code != 1 {
		t.Errorf("signing what is signed: %+v", r)
	}
}

func TestWrongCommandLines(t *testing.T) {
	common, dir := setUp(t)
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("listen: \":7443\"\nlease: soon\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"backup"}, 2, "curfew-controlplane backup --help"},
		{[]string{"init"}, 2, "--organisation is missing"},
		{[]string{"serve", "--colour"}, 2, "--colour"},
		{[]string{"serve", "--log-level", "loud"}, 2, "loud"},
		{append([]string{"trust", "sign"}, common...), 2, "--root-key is missing"},
		{[]string{"serve", "--config", bad}, 1, "line 2: lease:"},
		{[]string{"serve", "--config", common[1], "--data-dir", dir + "/none"}, 1, "init"},
		{[]string{"restore", dir + "/none.tar", "--config", common[1], "--data-dir", dir + "/x"}, 1, "none.tar"},
	} {
		if r := run(t, "", c.args...); r.code != c.code || !strings.Contains(r.err, c.says) {
			t.Errorf("%v: %+v, want %d and %q", c.args, r, c.code, c.says)
		}
	}
	private := "-----BEGIN OPENSSH PRIVATE KEY-----\n"
	r := run(t, private, "init", "--organisation", "acme", "--url", "x:1", "--admin", "dana",
		"--admin-key", "-", "--data-dir", filepath.Join(dir, "y"), "--config", common[1])
	if r.code != 1 || !strings.Contains(r.err, "private key") {
		t.Errorf("a private key as --admin-key: %+v", r)
	}
}
