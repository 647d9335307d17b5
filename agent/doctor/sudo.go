package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
)

// sudo looks at which sudo it is, whether it reads Curfew's rules, and what would defeat one.
func (h Host) sudo(ctx context.Context) []Finding {
	checker := sudoers.Checker{
		Sudo: h.at("usr/bin/sudo"), Visudo: h.at("usr/sbin/visudo"),
		Cvtsudoers: h.at("usr/bin/cvtsudoers"), Sudoers: h.at("etc/sudoers"), Timeout: toolTimeout,
	}
	if !checker.Present() {
		if _, err := os.Stat(checker.Sudo); err != nil {
			return nil // grants with sudo rules are refused here, and nobody elevates past Curfew
		}
		return []Finding{{
			What: "/etc/sudoers", Err: errors.New("it is missing"), Mend: "reinstall sudo",
		}}
	}
	which := Finding{
		What: "sudo is the one that reads Curfew's rules", Err: checker.Genuine(ctx),
		Mend: "let /usr/bin/sudo be the program of the package sudo (update-alternatives --config sudo)",
	}
	if which.Err != nil {
		return []Finding{which}
	}
	version := Finding{What: "sudo's version", Mend: "upgrade sudo"}
	out, err := h.Run(ctx, checker.Sudo, "-V")
	if version.Err = tooOld(string(out)); err != nil {
		version.Err = err
	}
	included := Finding{What: "sudo includes Curfew's rules", Mend: setup}
	if text, err := h.read("etc/sudoers.d/curfew"); err != nil {
		included.Err = err
	} else if !includesRun.MatchString(text) {
		included.Err = errors.New("/etc/sudoers.d/curfew has no line: #includedir /run/curfew/sudoers.d")
	} else if text, err := h.read("etc/sudoers"); err != nil {
		included.Err = err
	} else if !includesFolder.MatchString(text) {
		included.Err = errors.New("/etc/sudoers does not include /etc/sudoers.d")
		included.Mend = "visudo, and add the line: @includedir /etc/sudoers.d"
	}
	list := []Finding{which, version, included}
	policy, err := checker.Policy(ctx)
	if err != nil {
		return append(list, Finding{What: "sudo's rules can be read", Err: err, Mend: "visudo -c"})
	}
	return append(list, h.judgeSudo(policy)...)
}

var (
	includesRun    = regexp.MustCompile(`(?m)^[#@]includedir\s+/run/curfew/sudoers\.d\s*$`)
	includesFolder = regexp.MustCompile(`(?m)^[#@]includedir\s+/etc/sudoers\.d/?\s*$`)
	sudoVersion    = regexp.MustCompile(`^Sudo version ([0-9]+)\.([0-9]+)\.([0-9]+)`)
)

// tooOld refuses a sudo before 1.8.20, the first that knows NOTAFTER: rules would not end by themselves.
func tooOld(said string) error {
	m := sudoVersion.FindStringSubmatch(said)
	if m == nil {
		return fmt.Errorf("it calls itself %q", strings.SplitN(said, "\n", 2)[0])
	}
	got := make([]int, 3)
	for i := range got {
		got[i], _ = strconv.Atoi(m[i+1]) // digits, as the pattern has it
	}
	if slices.Compare(got, []int{1, 8, 20}) < 0 {
		return fmt.Errorf("%s knows no NOTAFTER, by which rules end without the agent; 1.8.20 is the first",
			m[0])
	}
	return nil
}

// judgeSudo looks for settings and standing rules that would take somebody past Curfew.
func (h Host) judgeSudo(p sudoers.Policy) []Finding {
	settings := Finding{
		What: "sudo's settings", Mend: "visudo, and delete that setting",
	}
	if bad := sudoers.Defeating(p); len(bad) > 0 {
		settings.Err = fmt.Errorf("a grant's rule would be defeated by %s", strings.Join(bad, ", "))
	}
	standing := Finding{
		What: "managed people have no standing sudo rules", Warning: true,
		Mend: "delete these rules: while they stand, no grant for these people is applied",
	}
	local, err := account.ReadLocal(h.at(""))
	if err != nil {
		return []Finding{settings} // said by another part
	}
	var found []string
	for _, name := range slices.Concat(h.Gated, h.Elevate) {
		who := sudoers.Person{Login: name}
		u, ok := local.User(name)
		if !ok {
			continue
		}
		who.UID = u.UID
		for _, g := range local.Groups {
			if g.GID == u.GID || slices.Contains(g.Members, name) {
				who.Groups, who.GIDs = append(who.Groups, g.Name), append(who.GIDs, g.GID)
			}
		}
		// The drop-ins of live grants are Curfew's own; what they hold carries its end.
		found = append(found, sudoers.StandingRules(p, who)...)
	}
	if len(found) > 0 {
		standing.Err = errors.New(strings.Join(found[:min(len(found), 8)], "; "))
	}
	return []Finding{settings, standing}
}
