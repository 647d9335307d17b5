package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// TestBuildsAreReproducible builds twice: here, and from a copy of the tree in another folder, whose files
// are newer and have other modes, at another time.
func TestBuildsAreReproducible(t *testing.T) {
	run(t, ".", "./deps.sh")
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	version, err := ParseVersion("v1.2.3-rc1", commit)
	if err != nil {
		t.Fatal(err)
	}
	other := copyOf(t, top)
	var out [2]string
	for i, at := range []string{top, other} {
		out[i] = t.TempDir()
		b := Build{
			Top: at, Out: out[i], Version: version, Arches: []string{"amd64"}, Kinds: []string{"deb", "rpm"},
			Only: []string{"curfew-agent", "libpam-curfew", "libnss-curfew"}, Say: func(s string) { t.Log(s) },
		}
		if i == 1 {
			defer syscall.Umask(syscall.Umask(0o077))
		}
		if err := b.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	names, err := os.ReadDir(out[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 3*2+2 {
		t.Errorf("%d files, want three packages of two kinds, checksums and a bill: %v", len(names), names)
	}
	for _, n := range names {
		one, err := os.ReadFile(filepath.Join(out[0], n.Name()))
		if err != nil {
			t.Fatal(err)
		}
		two, err := os.ReadFile(filepath.Join(out[1], n.Name()))
		if err != nil || !bytes.Equal(one, two) {
			t.Errorf("%s differs between two builds: %v", n.Name(), err)
		}
	}
	if t.Failed() {
		return
	}
	t.Run("checksums", func(t *testing.T) {
		run(t, out[0], "sha256sum", "--check", "--strict", "SHA256SUMS")
	})
	t.Run("bill of materials", func(t *testing.T) { testBill(t, out[0]) })
	t.Run("completions of zsh", func(t *testing.T) {
		const place = "/usr/share/zsh/site-functions/_curfew-agent"
		if list := run(t, out[0], "rpm", "-qpl", "curfew-agent-1.2.3~rc1-1.x86_64.rpm"); !strings.Contains(list, place+"\n") {
			t.Errorf("the rpm lacks %s", place)
		}
	})
	t.Run("rpm", func(t *testing.T) {
		rpms, _ := filepath.Glob(filepath.Join(out[0], "*.rpm"))
		for _, p := range rpms {
			said := run(t, out[0], "rpm", "-qp", "--qf", "%{VERSION}-%{RELEASE} %{BUILDHOST} %{BUILDTIME}", p)
			if want := "1.2.3~rc1-1 localhost 1795946400"; said != want {
				t.Errorf("%s says %q, want %q", p, said, want)
			}
		}
	})
}

// testBill compares the bill with what `go version -m` says of the program in the package.
func testBill(t *testing.T, dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "curfew-1.2.3~rc1.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Packages []struct {
			ID      string `json:"SPDXID"`
			Name    string `json:"name"`
			Version string `json:"versionInfo"`
			File    string `json:"packageFileName"`
		} `json:"packages"`
		Relations []spdxRelation `json:"relationships"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	modules, agent := make(map[string]string), ""
	for _, p := range doc.Packages {
		modules[p.ID] = p.Name + " " + p.Version
		if p.File == "curfew-agent_1.2.3~rc1-1_amd64.deb" {
			agent = p.ID
		}
	}
	billed := make(map[string]bool)
	for _, r := range doc.Relations {
		if r.Of == agent && r.Is == "CONTAINS" {
			billed[modules[r.With]] = true
		}
	}
	root := t.TempDir()
	run(t, dir, "dpkg-deb", "-x", "curfew-agent_1.2.3~rc1-1_amd64.deb", root)
	linked := 0
	for _, program := range []string{"/usr/bin/curfew-agent", "/usr/lib/curfew/curfew-enforce"} {
		for line := range strings.Lines(run(t, dir, "go", "version", "-m", root+program)) {
			if f := strings.Fields(line); f[0] == "dep" {
				linked++
				if !billed[f[1]+" "+f[2]] {
					t.Errorf("%s links %s %s, which the bill of materials does not know", program, f[1], f[2])
				}
			}
		}
	}
	if linked == 0 {
		t.Error("nothing is linked")
	}
	if said := run(t, dir, root+"/usr/bin/curfew-agent", "version"); strings.TrimSpace(said) != "v1.2.3-rc1" {
		t.Errorf("curfew-agent says version %q", said)
	}
}

// TestDebs holds the packages that the stories install to Debian's rules.
func TestDebs(t *testing.T) {
	run(t, ".", "./deps.sh")
	built, err := stage.Packages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(built, stage.Newer)
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != len(descriptions) {
		t.Fatalf("%d packages of %d: %v", len(debs), len(descriptions), err)
	}
	t.Run("lintian", func(t *testing.T) {
		// Warnings are as bad as errors, and so is an override that nothing needs.
		said := run(t, dir, append([]string{
			"lintian",
			"--fail-on=error,warning", "--allow-root", "--no-cfg", "--tag-display-limit=0",
		}, debs...)...)
		if said != "" {
			t.Error(said)
		}
	})
	for program, pages := range map[string][]string{
		"curfew":              {"1/curfew.1", "1/curfew-request.1", "1/curfew-admin-host-add.1"},
		"curfew-agent":        {"1/curfew-agent.1", "1/curfew-agent-join.1", "8/curfew-enforce.8"},
		"curfew-controlplane": {"1/curfew-controlplane.1", "1/curfew-controlplane-init.1"},
	} {
		t.Run("documents of "+program, func(t *testing.T) { testDocuments(t, unpack(t, dir, program), program, pages) })
	}
	t.Run("libc", func(t *testing.T) { testLibc(t, dir) })
}

// unpack returns the root of what a package holds.
func unpack(t *testing.T, dir, name string) string {
	t.Helper()
	root := t.TempDir()
	run(t, dir, "dpkg-deb", "-x", deb(name), root)
	return root
}

func deb(name string) string { return name + "_" + stage.Newer + "-1_" + runtime.GOARCH + ".deb" }

// testDocuments looks for manual pages, that man understands them, and for completions of three shells.
func testDocuments(t *testing.T, root, program string, pages []string) {
	for _, page := range pages {
		said := run(t, root, "man", "--warnings", "-E", "UTF-8", "-l", "usr/share/man/man"+page+".gz")
		if !strings.Contains(said, "SYNOPSIS") || strings.Contains(said, "warning:") {
			t.Errorf("%s reads:\n%s", page, said)
		}
	}
	for _, place := range []string{
		"bash-completion/completions/" + program, "fish/vendor_completions.d/" + program + ".fish",
		"zsh/vendor-completions/_" + program,
	} {
		if text, err := os.ReadFile(filepath.Join(root, "usr/share", place)); err != nil || !bytes.Contains(text, []byte(program)) {
			t.Errorf("%s: %v\n%s", place, err, text)
		}
	}
	run(t, root, "bash", "-n", "usr/share/bash-completion/completions/"+program)
}

// testLibc compares the symbol versions that what is linked dynamically asks for with what its package
// asks for: dpkg must refuse it where the loader would.
func testLibc(t *testing.T, dir string) {
	floor := regexp.MustCompile(`libc6 \(>= ([0-9.]+)\)`)
	found := 0
	for _, name := range []string{"libpam-curfew", "libnss-curfew"} {
		root := unpack(t, dir, name)
		m := floor.FindStringSubmatch(run(t, dir, "dpkg-deb", "-f", deb(name), "Depends"))
		if m == nil {
			t.Errorf("%s depends on no libc6", name)
			continue
		}
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := elf.Open(path)
			if err != nil {
				return nil //nolint:nilerr // a script
			}
			defer f.Close()
			found++
			symbols, err := f.ImportedSymbols()
			for _, s := range symbols {
				want, libc := strings.CutPrefix(s.Version, "GLIBC_")
				if libc && exec.Command("dpkg", "--compare-versions", want, "gt", m[1]).Run() == nil {
					t.Errorf("%s: %s needs %s of libc %s, and the package only %s", name, d.Name(), s.Name, want, m[1])
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if found != 3 {
		t.Errorf("%d files link libc, want two modules and the self-test", found)
	}
}

// copyOf is the source tree without what git ignores, elsewhere.
func copyOf(t *testing.T, top string) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.MkdirAll(filepath.Join(at, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, top, "bash", "-c", `set -o pipefail
git ls-files -z --cached --others --exclude-standard --deduplicate | xargs -0 ls -d 2>/dev/null |
  tar --create --files-from - | tar --extract --touch --no-same-permissions --directory "$1"
chmod -R u=rwX,go= "$1"`, "sh", at)
	if err := os.Symlink(filepath.Join(top, "bin/nfpm"), filepath.Join(at, "bin/nfpm")); err != nil {
		t.Fatal(err)
	}
	return at
}

func run(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}
