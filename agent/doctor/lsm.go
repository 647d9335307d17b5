package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

const (
	selinuxEnforces = "sys/fs/selinux/enforce"
	nameservice     = "etc/apparmor.d/abstractions/nameservice"
	// module loads Curfew's policy module. Files that were there before keep their labels until restorecon.
	loadModule = "cp -r /usr/share/curfew/selinux /root/ && cd /root/selinux && " +
		"make -f /usr/share/selinux/devel/Makefile curfew.pp && semodule -i curfew.pp && " +
		"restorecon -RF /usr/bin/curfew-agent /usr/lib/curfew /var/lib/curfew /var/lib/curfew-link /run/curfew && " +
		"systemctl restart curfew-agent.target curfew-enforce curfew-link"
)

// confinement looks at what confines sshd, sudo and others, which would keep them from asking the gate.
func (h Host) confinement(ctx context.Context) []Finding {
	var list []Finding
	text, err := h.read(selinuxEnforces)
	switch {
	case errors.Is(err, os.ErrNotExist): // no SELinux
	case err != nil:
		list = append(list, Finding{What: "SELinux", Err: err, Mend: "setenforce 0"})
	case strings.TrimSpace(text) != "0":
		f := Finding{What: "SELinux has Curfew's policy module", Mend: loadModule}
		out, err := h.Run(ctx, "/usr/sbin/semodule", "-l")
		if err != nil {
			f.Err = err
		} else if !hasModule(string(out)) {
			f.Err = errors.New("it enforces, and the module curfew is not loaded: sshd and sudo may not ask the gate")
		}
		list = append(list, f, Finding{
			What: "SELinux enforces", Warning: true,
			Err: errors.New("this was not tried by Curfew's own tests; the self-test and the trial of enforce-on decide"),
			Mend: "ausearch -m AVC -ts recent after a trial: what names curfew belongs into " +
				"/usr/share/curfew/selinux/curfew.te",
		})
	}
	if _, err := os.Stat(h.at(nameservice)); err == nil {
		f := Finding{
			What: "AppArmor lets profiles look Curfew's accounts up", Warning: true,
			Mend: "reinstall curfew-agent, then apparmor_parser -r the profiles in /etc/apparmor.d",
		}
		if _, err := os.Stat(h.at(nameservice + ".d/curfew")); err != nil {
			f.Err = fmt.Errorf("programs with a profile do not know Curfew's accounts: %w", err)
		}
		list = append(list, f)
	}
	return list
}

// hasModule reads semodule -l: a name in each line, before some versions a number too.
func hasModule(out string) bool {
	for line := range strings.Lines(out) {
		for _, field := range strings.Fields(line) {
			if field == "curfew" {
				return true
			}
		}
	}
	return false
}
