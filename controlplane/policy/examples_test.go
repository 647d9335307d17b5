package policy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/controlplane/policy"
)

// The policies of docs/operate/policy.md decide as their cases say, and no rule of theirs is idle.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../docs/operate/policies/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.yaml") {
			continue
		}
		tested++
		t.Run(filepath.Base(file), func(t *testing.T) {
			p, err := policy.Parse(filepath.Base(file), read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			if w := p.Warnings(); len(w) > 0 {
				t.Errorf("warnings: %v", w)
			}
			cases, err := policy.ParseCases("cases", read(t, strings.TrimSuffix(file, ".yaml")+"_test.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			results, untried := p.Test(cases)
			for _, r := range results {
				if r.Failed != "" {
					t.Errorf("line %d, %s: %s\n  %s", r.Case.Line, r.Case.Name, r.Failed,
						strings.Join(r.Steps, "\n  "))
				}
			}
			if len(untried) > 0 {
				t.Errorf("no case reaches %v", untried)
			}
		})
	}
	if tested < 2 {
		t.Errorf("%d policies were found", tested)
	}
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The reference names every variable of conditions, and its cases are cases.
func TestReference(t *testing.T) {
	doc := string(read(t, "../../docs/operate/policy.md"))
	for _, name := range policy.VariableNames() {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("docs/operate/policy.md does not name %s", name)
		}
	}
	_, rest, _ := strings.Cut(doc, "```yaml\n")
	block, _, found := strings.Cut(rest, "```")
	cases, err := policy.ParseCases("policy.md", []byte(block))
	if !found || err != nil || len(cases) != 1 {
		t.Errorf("the cases of docs/operate/policy.md: %d, %v", len(cases), err)
	}
}
