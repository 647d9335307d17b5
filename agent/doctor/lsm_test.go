package doctor

import (
	"context"
	"strings"
	"testing"
)

// Where SELinux enforces, a host without Curfew's module is not called well, and one with it is warned that
// this was not tried. Where it does not, nothing is said.
func TestConfinement(t *testing.T) {
	for what, tt := range map[string]struct {
		enforce, modules string
		bad, warns       bool
	}{
		"without the module": {"1", "cron\t1.0\ncurfewish\n", true, true},
		"with the module":    {"1\n", "100 curfew pp\ncron\n", false, true},
		"permissive":         {"0", "", false, false},
	} {
		files := wellHost()
		files["sys/fs/selinux/enforce"] = tt.enforce
		list := look(t, files, wellSSHD, func(h *Host) {
			run := h.Run
			h.Run = func(ctx context.Context, argv ...string) ([]byte, error) {
				if strings.HasSuffix(argv[0], "/semodule") {
					return []byte(tt.modules), nil
				}
				return run(ctx, argv...)
			}
		})
		bad, warns := false, false
		for _, f := range list {
			bad = bad || f.Bad() && strings.Contains(f.What, "SELinux")
			warns = warns || f.Warning && f.Err != nil && strings.Contains(f.What, "SELinux enforces")
			if f.Bad() && !strings.Contains(f.What, "SELinux") {
				t.Errorf("%s: %s: %v", what, f.What, f.Err)
			}
		}
		if bad != tt.bad || warns != tt.warns {
			t.Errorf("%s: a problem %t, a warning %t", what, bad, warns)
		}
	}
	files := wellHost()
	files["etc/apparmor.d/abstractions/nameservice"] = ""
	for _, there := range []bool{false, true} {
		if there {
			files["etc/apparmor.d/abstractions/nameservice.d/curfew"] = ""
		}
		for _, f := range look(t, files, wellSSHD, nil) {
			if strings.Contains(f.What, "AppArmor") && (f.Err == nil) != there {
				t.Errorf("the abstraction there: %t: %v", there, f.Err)
			}
		}
	}
}
