package e2e

import (
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/pace"
)

// A survivor is one way to outlive the end of a grant.
type survivor struct {
	name string
	// begin is what its owner's shell runs. MARK stands for a command which only this survivor runs,
	// LOGIN for its owner's name.
	begin string
	// seen is what root's shell runs: it prints something as long as the survivor lives. UID stands
	// for its owner's. Without it the survivor is the process that runs MARK.
	seen string
	// look sees it from elsewhere, such as from a laptop.
	look func() bool

	mark string
}

// A party is survivors of one person's on one host.
type party struct {
	*story
	host, login, uid string
	list             []survivor
}

// gather gives each survivor a mark of its own. first keeps the parties of one host apart.
func (s *story) gather(host, login string, first int, list ...survivor) *party {
	s.t.Helper()
	p := &party{story: s, host: host, login: login, uid: s.on(host, "id -u "+login)}
	for i, one := range list {
		one.mark = fmt.Sprintf("sleep %d", first+i)
		p.list = append(p.list, one)
	}
	return p
}

func (p *party) fill(script string, one survivor) string {
	return strings.NewReplacer("MARK", one.mark, "LOGIN", p.login, "UID", p.uid).Replace(script)
}

// script writes what begins all survivors to the host, and returns its path. What a survivor
// complains of goes to the path with .log behind.
func (p *party) script(name string) string {
	p.t.Helper()
	path := "/usr/local/bin/" + name
	text := "#!/bin/bash\nexec </dev/null >/dev/null 2>/tmp/" + name + ".log\nset -x\n"
	for _, one := range p.list {
		if one.begin != "" {
			text += p.fill(one.begin, one) + "\n"
		}
	}
	p.ok(p.Hosts[p.host].Write(path, []byte(text), 0o755))
	return path
}

// alive names the survivors that are there, and shows the processes among them.
func (p *party) alive() (names []string, shown string) {
	p.t.Helper()
	all, err := p.Hosts[p.host].Processes(p.ctx)
	p.ok(err)
	var asked strings.Builder
	for i, one := range p.list {
		if one.seen != "" {
			fmt.Fprintf(&asked, "test -z \"$(%s)\" || echo %d\n", p.fill(one.seen, one), i)
		}
	}
	answers := " " + strings.Join(strings.Fields(p.on(p.host, "set +e +o pipefail\n"+asked.String()+"true")), " ") + " "
	for i, one := range p.list {
		there := strings.Contains(answers, fmt.Sprintf(" %d ", i))
		if one.look != nil {
			there = one.look()
		}
		for _, q := range all {
			if one.seen == "" && one.look == nil && strings.TrimPrefix(q.Cmdline, "/usr/bin/") == one.mark {
				there = true
				shown += fmt.Sprintf("%s: %+v\n", one.name, q)
			}
		}
		if there {
			names = append(names, one.name)
		}
	}
	return names, shown
}

// begun waits until every survivor is there: a check that does not see its survivor now could not
// see it later either.
func (p *party) begun() {
	p.t.Helper()
	p.within(30*time.Second, "all survivors of "+p.login+"'s to begin", func() (bool, string) {
		names, _ := p.alive()
		var missing []string
		for _, one := range p.list {
			if !strings.Contains("\n"+strings.Join(names, "\n")+"\n", "\n"+one.name+"\n") {
				missing = append(missing, one.name)
			}
		}
		if len(missing) == 0 {
			return true, ""
		}
		log, _ := p.Hosts[p.host].Shell(p.ctx, "tail -n 50 /tmp/*.log")
		return false, "missing: " + strings.Join(missing, ", ") + "\n" + string(log)
	})
}

// noneOutlives demands that all are gone in time after an end, and names each that is not.
func (p *party) noneOutlives(end time.Time) {
	p.t.Helper()
	p.noneOutlivesBy(end, purgeLimit)
}

func (p *party) noneOutlivesBy(end time.Time, limit time.Duration) {
	p.t.Helper()
	time.Sleep(time.Until(end))
	watch := pace.Start()
	for {
		names, shown := p.alive()
		late := watch.Elapsed()
		if len(names) == 0 {
			p.t.Logf("nothing of %s's was left %s after the end", p.login, late.Round(time.Millisecond))
		}
		if len(names) == 0 && late <= limit {
			return
		}
		if late > limit {
			for _, name := range names {
				p.t.Errorf("%s outlived the end of %s's grant by more than %s", name, p.login, limit)
			}
			p.t.Fatalf("looked until %s after the end; left:\n%s", late, shown)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// allLive demands that what is not the grant's was spared.
func (p *party) allLive() {
	p.t.Helper()
	names, _ := p.alive()
	for _, one := range p.list {
		if !strings.Contains("\n"+strings.Join(names, "\n")+"\n", "\n"+one.name+"\n") {
			p.t.Errorf("%s of %s's died with another's grant", one.name, p.login)
		}
	}
}

// endOf is when the last grant of a request ends, as the host has confirmed it.
func (s *story) endOf(who *stage.Person, id string) (end time.Time) {
	s.t.Helper()
	r := s.curfew(who, 0, []string{"show", id, "--json"})
	for _, rest := range strings.Split(r.Out, `"end_at":`)[1:] {
		if rest = strings.TrimSpace(rest); !strings.HasPrefix(rest, `"`) {
			continue // null: the host has not confirmed it yet
		}
		one, err := time.Parse(time.RFC3339, strings.Split(rest, `"`)[1])
		s.ok(err)
		if one.After(end) {
			end = one
		}
	}
	return end
}

// terminal opens one of the person's own terminals and waits for a prompt of the host's.
func (s *story) terminal(who *stage.Person, argv ...string) *world.Terminal {
	s.t.Helper()
	tty, err := who.StartPTY(s.ctx, argv...)
	s.ok(err)
	s.t.Cleanup(func() { tty.Close() })
	return tty
}

// ordinary is what needs no root.
func ordinary() []survivor {
	return []survivor{
		{name: "a background job", begin: `MARK &`},
		{name: "nohup", begin: `nohup MARK >/dev/null &`},
		{name: "setsid", begin: `setsid MARK &`},
		{name: "a double fork", begin: `(setsid sh -c 'MARK &' &)`},
		{name: "tmux", begin: `tmux -L LOGIN new-session -d MARK`},
		{name: "a user unit", begin: `systemd-run --user -q MARK`},
		{name: "a user timer", begin: `systemd-run --user -q --on-active=1s ` +
			`--timer-property=AccuracySec=100ms MARK`},
	}
}

// caged is what sudo opens and what stays in the cgroup that it was given.
func caged() []survivor {
	return []survivor{
		{name: "sudo", begin: `sudo MARK &`},
		{name: "sudo -b", begin: `sudo -b MARK`},
		{name: "sudo -i", begin: `sudo -i setsid -f MARK`},
		{name: "sudo -s", begin: `sudo -s setsid -f MARK`},
		{name: "sudo su -", begin: `sudo su - -c 'setsid -f MARK'`},
		{name: "the child of a killed sudo", begin: `sudo sh -c 'trap "" HUP TERM; MARK; true' &`},
		{name: "a child with another uid", begin: `sudo setpriv --reuid=4242 --clear-groups setsid -f MARK`},
	}
}

// orphaned leaves its cgroup and then its parents.
const orphaned = `sudo sh -c 'echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs; exec setsid -f MARK'`

// elevated is what sudo opens.
func elevated() []survivor {
	return append(caged(), []survivor{
		{name: "an orphan in init.scope", begin: orphaned},
		{name: "a child in a cgroup of its own", begin: `sudo sh -c 'mkdir -p /sys/fs/cgroup/LOGIN
echo $$ >/sys/fs/cgroup/LOGIN/cgroup.procs; exec MARK' &`},
		{name: "a scope of system.slice", begin: `sudo systemd-run -q --scope setsid -f MARK`},
	}...)
}

// killSudo kills the sudo whose child is to live on, as a person would who hopes to cut a tie.
func (p *party) killSudo() {
	p.t.Helper()
	for _, one := range p.list {
		if !strings.Contains(one.name, "killed sudo") {
			continue
		}
		command := "'^sudo sh -c trap .*" + one.mark + "; true'"
		// Its monitor first, which is younger and would end the command with it.
		p.on(p.host, "pgrep -f "+command+" | tac | xargs kill -KILL || true") // one may take the other with it
		p.within(5*time.Second, "sudo to die", func() (bool, string) {
			out := p.on(p.host, "pgrep -fa "+command+" || true")
			return out == "", out
		})
		p.on(p.host, "pgrep -fx '"+one.mark+"'") // else it died with its sudo, and nothing is to be seen
	}
}
