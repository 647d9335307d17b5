package cli

import (
	"os"
	"strings"
	"testing"
)

// Every shell block of the policy's page runs as it stands, from the tree's root.
func TestPolicyPageRuns(t *testing.T) {
	t.Chdir("../..")
	page, err := os.ReadFile("docs/operate/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	p := person{t: t, home: t.TempDir(), name: "alice"}
	for _, block := range strings.Split(string(page), "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			args := strings.Fields(line)
			if len(args) == 0 || args[0] != "curfew" {
				t.Errorf("not a command of ours: %q", line)
				continue
			}
			ran++
			if _, complaint, code := p.run(t.Context(), args[1:]...); code != exitOK ||
				strings.Contains(complaint, "warning") {
				t.Errorf("%s: exit %d: %s", strings.TrimSpace(line), code, complaint)
			}
		}
	}
	if ran == 0 {
		t.Error("the page has no command")
	}
}
