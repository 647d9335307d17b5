// Package curfew holds only this test: the architecture, as rules with reasons.
package curfew

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/curfew-access/curfew/"

// A listed package is what `go list -json -deps` says of one.
type listed struct {
	ImportPath  string
	Imports     []string
	TestImports []string
	Deps        []string
	CgoFiles    []string
}

// A rule forbids packages below `from` to import, or to depend on, packages below any of `never`.
type rule struct {
	from   string
	except []string
	never  []string
	deep   bool // through others as well
	why    string
}

var io4 = []string{"net", "os", "database/sql", "net/http", "os/exec"}

var rules = []rule{
	{from: "", except: []string{"cmd"}, never: []string{module + "cmd"}, why: "nothing builds on a main"},
	{
		from: "controlplane", never: []string{module + "agent"}, deep: true,
		why: "the two sides meet in proto, internal/grant and internal/trail only",
	},
	{
		from: "agent", never: []string{module + "controlplane"}, deep: true,
		why: "the two sides meet in proto, internal/grant and internal/trail only",
	},
	{from: "internal/grant", except: []string{"internal/grant/granttest"}, never: io4, why: "what decides about access is pure"},
	{from: "internal/trail", never: io4, why: "what detects tampering is pure"},
	{from: "controlplane/policy", never: io4, why: "a verdict depends on its arguments only"},
	{from: "controlplane/request", never: io4, why: "the state machine depends on its arguments only"},
	{
		from: "agent", except: []string{"agent/link"}, never: []string{"google.golang.org/grpc"},
		deep: true, why: "the root half parses nothing but bounded frames",
	},
	{
		from: "controlplane", except: []string{"controlplane/store"},
		never: []string{module + "controlplane/store"},
		why:   "interfaces live with their consumer; only the wiring knows the store",
	},
	{
		from: "agent/enforce", never: []string{module + "agent/store", module + "agent/link"},
		why: "interfaces live with their consumer; only the wiring knows the store",
	},
	{
		from: "agent/gate", never: []string{module + "agent/store", module + "agent/link"},
		why: "interfaces live with their consumer; only the wiring knows the store",
	},
	{
		from: "controlplane/notify", never: []string{module + "controlplane/policy", module + "controlplane/approval"},
		why: "leaves hold no rules",
	},
}

func TestLayout(t *testing.T) {
	packages := list(t)
	for _, r := range rules {
		for _, p := range packages {
			path, ours := strings.CutPrefix(p.ImportPath, module)
			if !ours || !below(path, r.from) || slices.ContainsFunc(r.except, func(e string) bool {
				return below(path, e)
			}) {
				continue
			}
			if r.wires(path) {
				continue
			}
			imports := p.Imports
			if r.deep {
				imports = p.Deps
			}
			for _, i := range imports {
				if slices.ContainsFunc(r.never, func(n string) bool { return i == n || below(i, n) && !std(n) }) {
					t.Errorf("%s imports %s: %s", path, i, r.why)
				}
			}
		}
	}
}

// wires tells whether a package is the one that knows all children of its side.
func (r rule) wires(path string) bool {
	return path == r.from && slices.Contains([]string{"controlplane", "agent"}, path) &&
		slices.ContainsFunc(r.never, func(n string) bool { return strings.HasSuffix(n, "/store") })
}

func TestNoCgoInDaemons(t *testing.T) {
	for _, p := range list(t) {
		if strings.HasPrefix(p.ImportPath, module) && len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: the daemons are static; cgo is for tests of the C modules",
				p.ImportPath)
		}
	}
}

func below(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// std tells a package of the standard library, of which "os" does not mean "os/user".
func std(path string) bool { return !strings.Contains(path, ".") }

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,Deps,CgoFiles", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
