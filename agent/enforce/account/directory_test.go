package account

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A login and its uid must be each other's or nobody's, among users and among groups, whatever the
// directory answers to either key. getent exits with 2 when it does not know one of them.
func TestFree(t *testing.T) {
	const missing, all = "exit 2", "exit 0"
	for name, c := range map[string]struct{ passwd, group, want string }{
		"nobody":          {missing, missing, ""},
		"its own":         {"echo alice:x:1900000001:1900000001::/:/bin/sh;" + all, "echo alice:x:1900000001:;" + all, ""},
		"the login's":     {"echo alice:x:5000:5000::/:/bin/sh;" + missing, missing, "login alice is somebody with uid 5000"},
		"by another name": {"echo ALICE@x:x:5000:5000::/:/bin/sh;" + missing, missing, "login alice is somebody with uid 5000"},
		"the uid's":       {"echo eve:x:1900000001:1::/:/bin/sh;" + missing, missing, "belongs to eve"},
		"of both, the uid's": {
			"echo alice:x:1900000001:1::/:/bin/sh; echo eve:x:1900000001:1::/:/bin/sh;" + all, missing, "belongs to eve",
		},
		"the name's group":  {missing, "echo alice:x:27:;" + missing, "a group with gid 27"},
		"the gid's group":   {missing, "echo wheel:x:1900000001:eve;" + missing, "belongs to the group wheel"},
		"no answer":         {"exit 3", missing, "does not answer"},
		"no answer, groups": {missing, "exit 3", "does not answer"},
		"no users":          {"echo alice;" + all, missing, "prints 1 fields"},
	} {
		t.Run(name, func(t *testing.T) {
			getent := filepath.Join(t.TempDir(), "getent")
			script := `#!/bin/sh
[ "$2 $3" = "alice 1900000001" ] || exit 1
case $1 in passwd) ` + c.passwd + ` ;; group) ` + c.group + ` ;; esac
`
			if err := os.WriteFile(getent, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			d := Directory{Getent: getent, Timeout: time.Minute}
			err := d.Free(t.Context(), "alice", 1900000001)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
