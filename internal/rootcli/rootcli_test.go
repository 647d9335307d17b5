package rootcli

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "want one of"},
		{[]string{"link"}, "want one of"},
		{[]string{"enforce", "--log-level", "loud"}, "unknown log level"},
		{[]string{"enforce", "now"}, `takes no argument "now"`},
		{[]string{"purge", "--whole"}, "not defined"},
	} {
		var out, errs bytes.Buffer
		if code := Main(tt.args, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("%q: exit %d, %q; want %q", tt.args, code, errs.String(), tt.want)
		}
	}
	var out, errs bytes.Buffer
	if code := Main([]string{"version"}, &out, &errs); code != exitOK || strings.TrimSpace(out.String()) == "" {
		t.Errorf("version: exit %d, %q", code, out.String())
	}
}

// What is linked into the root half stays in its memory on every host, and is there to be attacked.
func TestNoNetworkIsLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, never := range []string{
		"google.golang.org/grpc", "net/http", "crypto/tls", "github.com/spf13/cobra",
		"github.com/curfew-access/curfew/agent/link",
	} {
		for path := range strings.Lines(string(out)) {
			if path = strings.TrimSpace(path); path == never || strings.HasPrefix(path, never+"/") {
				t.Errorf("curfew-enforce links %s", path)
			}
		}
	}
}
