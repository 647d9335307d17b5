package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// gated are the services that the gate's table names (agent/gate), and whether a session belongs to
// what they do: that is where a session is put under its grant.
var gated = []struct {
	service string
	session bool
}{
	{"sshd", true},
	{"login", true},
	{"su", false},
	{"su-l", false},
	{"sudo", true},
	{"sudo-i", true},
	{"cron", false},
	{"crond", false},
	{"atd", false},
	{"systemd-user", false},
}

// stacks follows the PAM stacks of everything by which people get in or become others.
func (h Host) stacks(context.Context) []Finding {
	var list []Finding
	known := make(map[string]bool)
	for _, g := range gated {
		known[g.service] = true
		if _, ok := h.service(g.service); !ok {
			continue
		}
		list = append(list, Finding{
			What: "PAM, account of " + g.service, Err: h.account(g.service), Mend: mendPAM(g.service),
		})
		if g.session {
			list = append(list, Finding{
				What: "PAM, session of " + g.service, Err: h.session(g.service), Mend: mendPAM(g.service),
			})
		}
	}
	if _, ok := h.service("sshd"); !ok {
		list = append(list, Finding{
			What: "PAM, account of sshd", Err: errors.New("there is no /etc/pam.d/sshd"),
			Mend: "reinstall openssh-server",
		})
	}
	return append(list, h.others(known)...)
}

func mendPAM(service string) string {
	return setupPAM + ", and let /etc/pam.d/" + service + " include common-account and common-session " +
		"(where authselect is: system-auth or password-auth) above anything that ends the stack"
}

// account demands that no way leads through a service's account stack to yes without Curfew, and that
// Curfew's line neither lets pass what it denies nor denies what is none of its business.
func (h Host) account(service string) error {
	steps, err := h.stack(service, "account", 0)
	if err != nil {
		return err
	}
	if err := ours(steps, "account"); err != nil {
		return err
	}
	if found, by := around(steps); found {
		if by == "" {
			by = "a line before it"
		}
		return fmt.Errorf("not everybody is asked about: %s", by)
	}
	return nil
}

func (h Host) session(service string) error {
	steps, err := h.stack(service, "session", 0)
	if err != nil {
		return err
	}
	if err := ours(steps, "session"); err != nil {
		return err
	}
	if found, by := around(steps); found && by != "" {
		return fmt.Errorf("not everybody is asked about: %s", by)
	}
	lines := flat(steps)
	at := func(name string) int {
		return slices.IndexFunc(lines, func(s step) bool { return s.module == name })
	}
	if logind := at("pam_systemd.so"); logind > at(module) {
		return fmt.Errorf("%s stands before pam_systemd.so, which then moves the session away from where "+
			"Curfew put it", module)
	}
	return nil
}

// want is Curfew's control (packaging/pam-configs), as what it must do. A module that is gone must not
// lock everybody out.
var want = []struct{ on, then, why string }{
	{"perm_denied", "die", "a denial would not be one"},
	{"ignore", "ignore", "people whom Curfew does not manage would be denied"},
	{"module_unknown", "ignore", "without the module nobody at all would get in"},
	{"user_unknown", "die", "an unknown user would pass"},
}

// ours looks for Curfew's line and at its control.
func ours(steps []step, kind string) error {
	lines := flat(steps)
	i := slices.IndexFunc(lines, func(s step) bool { return s.module == module })
	if i < 0 {
		return fmt.Errorf("the %s stack has no %s", kind, module)
	}
	s := lines[i]
	for _, w := range want {
		then := s.on(w.on)
		if then == w.then || then == "bad" && w.then == "die" {
			continue
		}
		return fmt.Errorf("%s in /etc/pam.d/%s has %s=%s, so that %s", module, s.file, w.on, then, w.why)
	}
	if then := s.on("success"); then != "ok" && then != "ignore" {
		return fmt.Errorf("%s in /etc/pam.d/%s has success=%s, so that lines behind it are skipped", module,
			s.file, then)
	}
	for _, arg := range s.args {
		if strings.HasPrefix(arg, "conf=") || strings.HasPrefix(arg, "socket=") {
			return fmt.Errorf("%s in /etc/pam.d/%s has %s: that asks somebody else than the agent", module,
				s.file, arg)
		}
	}
	return nil
}

// others looks for further services that open sessions without asking: display managers, file servers
// and the like. A gated person could get in by them.
func (h Host) others(known map[string]bool) []Finding {
	var past []string
	for _, dir := range pamFolders {
		entries, err := os.ReadDir(h.at(dir))
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			// runuser asks nobody who is not root; the common files are parts of others.
			if known[name] || strings.HasPrefix(name, "common-") || strings.HasPrefix(name, "runuser") ||
				strings.Contains(name, ".") || strings.HasSuffix(name, "-auth") || name == "postlogin" {
				continue
			}
			known[name] = true
			auth, errAuth := h.stack(name, "auth", 0)
			session, errSession := h.stack(name, "session", 0)
			if errAuth != nil || errSession != nil || len(auth) == 0 || len(session) == 0 {
				continue
			}
			if err := h.account(name); err != nil {
				past = append(past, fmt.Sprintf("%s (%v)", name, err))
			}
		}
	}
	if len(past) == 0 {
		return nil
	}
	slices.Sort(past)
	return []Finding{{
		What: "other services by which people get in", Warning: true,
		Err:  fmt.Errorf("gated people pass by %s", strings.Join(past, "; ")),
		Mend: "let the account stack of each include common-account first",
	}}
}
