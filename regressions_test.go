package curfew

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRegressionsAreTested keeps docs/regressions.md true.
func TestRegressionsAreTested(t *testing.T) { tableIsTested(t, "docs/regressions.md", 25) }

// TestGuaranteesAreTested keeps docs/guarantees.md true.
func TestGuaranteesAreTested(t *testing.T) { tableIsTested(t, "docs/guarantees.md", 40) }

// tableIsTested demands that every row of a document's table names a test, and that all of them are
// there to run.
func tableIsTested(t *testing.T, doc string, atLeast int) {
	t.Helper()
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+):((?:Test|Fuzz)\\w+)`")
	rows := 0
	lines := strings.Split(string(text)+"\n", "\n")
	for i, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(lines[i+1], "|---") {
			continue // the second is a heading
		}
		rows++
		tests := named.FindAllStringSubmatch(line, -1)
		if len(tests) == 0 {
			t.Errorf("no test is named in: %s", line)
		}
		for _, m := range tests {
			if !declares(t, m[1], m[2]) {
				t.Errorf("%s has no test %s", m[1], m[2])
			}
		}
	}
	if rows < atLeast {
		t.Errorf("%s has %d rows", doc, rows)
	}
}

func declares(t *testing.T, dir, name string) bool {
	files, err := filepath.Glob(dir + "/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
