// Package prometheus holds the alert rules and this test of them and of the board in ../grafana. That
// what they name exists is shown by the story TestFigures, on real programs.
package prometheus

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// Rules are a file of them, as far as this test looks.
type rules struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	} `yaml:"groups"`
}

type rule struct {
	Alert       string            `yaml:"alert,omitempty"`
	Record      string            `yaml:"record,omitempty"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

func promtool(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.Command("./promtool.sh").Output()
	if err != nil {
		t.Fatalf("promtool.sh: %v", err)
	}
	out, err := exec.Command(strings.TrimSpace(string(path)), args...).CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The rules are what Prometheus takes, and each fires in its test and is silent when all is well.
func TestRules(t *testing.T) {
	promtool(t, "check", "rules", "curfew.rules.yml")
	promtool(t, "test", "rules", "curfew.rules.test.yml")

	text, err := os.ReadFile("curfew.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var all rules
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("curfew.rules.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range all.Groups {
		for _, r := range g.Rules {
			n++
			if !strings.Contains(string(tests), r.Alert) {
				t.Errorf("%s is not tested", r.Alert)
			}
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s has severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say what to do", r.Alert)
			}
		}
	}
	if n < 15 {
		t.Errorf("%d rules", n)
	}
}

// Every expression of the board is one that Prometheus parses.
func TestBoard(t *testing.T) {
	text, err := os.ReadFile("../grafana/curfew.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID         int
			Type       string
			Title      string
			Datasource struct{ UID string }
			Targets    []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	var all rules
	all.Groups = append(all.Groups, struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	}{Name: "board"})
	ids := make(map[int]bool)
	for _, p := range board.Panels {
		if ids[p.ID] || p.Type != "row" && (len(p.Targets) == 0 || p.Datasource.UID != "${source}") {
			t.Errorf("panel %d, %q: %+v", p.ID, p.Title, p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			all.Groups[0].Rules = append(all.Groups[0].Rules, rule{Record: "x", Expr: target.Expr})
		}
	}
	if len(all.Groups[0].Rules) < 20 {
		t.Fatalf("the board has %d expressions", len(all.Groups[0].Rules))
	}
	asRules, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "board.yml")
	if err := os.WriteFile(file, asRules, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
}
