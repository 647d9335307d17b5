package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

func (p *play) acts() []act {
	return []act{
		{"People, groups and roles", p.people},
		{"Without a grant there is no way in, and the refusal says what to type", p.refused},
		{"alice asks, bob signs the terms, web1 opens within milliseconds", p.granted},
		{"Exactly what was approved works", p.used},
		{"Everything can be seen, and the trail verifies", p.seen},
		{"A root shell is extended and lives on; then it is revoked, detached processes and all", p.revoked},
		{"A window closes by itself, and a grant is handed back", p.ended},
		{"The agent is killed, the control plane stopped, a host rebooted", p.restarted},
	}
}

func (p *play) people(ctx context.Context) (err error) {
	if p.alice, p.bob, err = p.Cast(ctx); err != nil {
		return err
	}
	if p.gus, err = p.Person(ctx, "gus"); err != nil {
		return err
	}
	if p.carol, err = p.Person(ctx, "carol"); err != nil {
		return err
	}
	if err := errors.Join(p.gus.LetIn(ctx, p.Hosts["web1"], "gus"),
		p.carol.LetIn(ctx, p.Hosts["web1"], "carol")); err != nil {
		return err
	}
	p.say("dana, the admin, added alice, bob, carol and gus with their SSH keys; bob alone is sre")
	_, err = p.types(ctx, p.alice, 0, []string{"roles"}, "ops", "root", "docs")
	return err
}

func (p *play) refused(ctx context.Context) error {
	if err := p.ssh(ctx, p.alice, "web1", 255, "true", "Permission denied"); err != nil {
		return err
	}
	p.say("gus has an account and a key on web1, but his logins are gated:")
	return p.ssh(ctx, p.gus, "web1", 255, "true", "curfew request web1 --role")
}

func (p *play) granted(ctx context.Context) error {
	const reason = "OPS-7: nginx hangs"
	ask, err := p.alice.StartPTY(ctx, "curfew", "request", "web1", "--role", "ops", "--for", "10m",
		"--reason", reason)
	if err != nil {
		return err
	}
	defer ask.Close()
	p.say(`alice$ curfew request web1 --role ops --for 10m --reason "%s"    (waits)`, reason)
	id, err := p.pending(ctx)
	if err != nil {
		return err
	}
	if _, err := p.types(ctx, p.alice, 3, []string{"approve", id, "--yes"}, "own"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := p.types(ctx, p.bob, 0, []string{"approve", id, "--yes"}); err != nil {
		return err
	}
	line, err := ask.Expect(ctx, `[^\n\r]*applied[^\n\r]*`)
	if err != nil {
		return err
	}
	p.say("alice sees, %.2f s after bob began to type: %s", time.Since(began).Seconds(), lastLine(line))
	return nil
}

var idInJSON = regexp.MustCompile(`"id":\s*"([0-9a-z]{12})"`)

// pending returns the id of the request that bob is asked for.
func (p *play) pending(ctx context.Context) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = stage.Eventually(ctx, "the request to reach bob", func() (bool, string) {
		r, err := p.bob.Curfew(ctx, "ls", "--pending", "--json")
		if m := idInJSON.FindStringSubmatch(r.Out); m != nil {
			id = m[1]
		}
		return err == nil && id != "", r.String()
	})
	return id, err
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[a-zA-Z]`)

func lastLine(s string) string {
	lines := strings.FieldsFunc(escapes.ReplaceAllString(s, ""), func(r rune) bool {
		return r == '\r' || r == '\n'
	})
	if len(lines) == 0 {
		return ""
	}
	return strings.TrimSpace(lines[len(lines)-1])
}

func (p *play) used(ctx context.Context) error {
	const restart = "sudo -n /usr/bin/systemctl restart nginx.service"
	if _, err := p.types(ctx, p.alice, 0, []string{"ssh", "web1", "id", "-un"}, "alice"); err != nil {
		return err
	}
	for _, c := range []struct {
		exit    int
		command string
	}{{0, restart}, {1, "sudo -n /usr/bin/systemctl restart ssh.service"}, {1, "sudo -n -i"}} {
		if err := p.ssh(ctx, p.alice, "web1", c.exit, c.command); err != nil {
			return err
		}
	}
	p.say("carol is a local user whose account is her own; only her elevations are Curfew's:")
	if err := p.ssh(ctx, p.carol, "web1", 1, restart); err != nil {
		return err
	}
	if _, err := p.Grant(ctx, p.carol, p.bob, "web1", "ops", 10*time.Minute); err != nil {
		return err
	}
	return p.ssh(ctx, p.carol, "web1", 0, restart)
}

func (p *play) seen(ctx context.Context) error {
	for _, args := range [][]string{{"ls", "--all"}, {"hosts"}, {"log", "--verify"}} {
		if _, err := p.types(ctx, p.bob, 0, args); err != nil {
			return err
		}
	}
	return nil
}

// rootShell opens a terminal for alice on web2 with a root shell by sudo, and a process that
// detaches itself from everything.
func (p *play) rootShell(ctx context.Context) (err error) {
	if p.shell, err = p.alice.StartPTY(ctx, "ssh", "-tt", "alice@web2"); err != nil {
		return err
	}
	if err := p.shell.Send("sudo -i\n"); err != nil {
		return err
	}
	if _, err := p.shell.Expect(ctx, "root@web2"); err != nil {
		return err
	}
	p.say("alice has a root shell by sudo -i on web2, and starts: setsid nohup sleep 86413 &")
	if err := p.shell.Send("setsid nohup sleep 86413 >/dev/null 2>&1 &\n"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return stage.Eventually(ctx, "the detached process", func() (bool, string) {
		out, err := p.Hosts["web2"].Exec(ctx, "pgrep", "-fa", "[s]leep 86413")
		return err == nil, string(out)
	})
}

func (p *play) revoked(ctx context.Context) error {
	id, err := p.Grant(ctx, p.alice, p.bob, "web2", "root", 14*time.Second)
	if err != nil {
		return err
	}
	opened := time.Now()
	p.say("alice has the role root on web2 for 14 s; it is labelled root-equivalent")
	if err := p.rootShell(ctx); err != nil {
		return err
	}
	defer p.shell.Close()
	if _, err := p.types(ctx, p.alice, 0, []string{"extend", id, "--for", "10m", "--reason", "not done yet", "--no-wait"}); err != nil {
		return err
	}
	if _, err := p.types(ctx, p.bob, 0, []string{"approve", id, "--yes"}); err != nil {
		return err
	}
	time.Sleep(time.Until(opened.Add(16 * time.Second)))
	if err := p.shell.Send("echo still $((20+22))\n"); err != nil {
		return err
	}
	if _, err := p.shell.Expect(ctx, "still 42"); err != nil {
		return fmt.Errorf("the session after the first window: %w", err)
	}
	p.say("the first window is over, and the session lives on under the extension")
	if _, err := p.types(ctx, p.bob, 0, []string{"revoke", id, "--reason", "wrong host"}); err != nil {
		return err
	}
	return p.gone(ctx, "web2", "alice")
}

func (p *play) ended(ctx context.Context) error {
	if _, err := p.Grant(ctx, p.alice, p.bob, "web2", "root", 8*time.Second); err != nil {
		return err
	}
	opened := time.Now()
	if err := p.rootShell(ctx); err != nil {
		return err
	}
	p.say("nobody does anything; the window of 8 s closes")
	time.Sleep(time.Until(opened.Add(8 * time.Second)))
	if err := p.gone(ctx, "web2", "alice"); err != nil {
		return err
	}
	p.shell.Close()
	id, err := p.Grant(ctx, p.alice, p.bob, "web2", "root", 10*time.Minute)
	if err != nil {
		return err
	}
	if err := p.rootShell(ctx); err != nil {
		return err
	}
	defer p.shell.Close()
	if _, err := p.types(ctx, p.alice, 0, []string{"done", id}); err != nil {
		return err
	}
	return p.gone(ctx, "web2", "alice")
}

func (p *play) restarted(ctx context.Context) error {
	const restart = "sudo -n /usr/bin/systemctl restart nginx.service"
	web1 := p.Hosts["web1"]
	if _, err := web1.Shell(ctx, "systemctl kill --signal=KILL --kill-whom=main curfew-enforce; sleep 0.2; "+
		"for i in $(seq 100); do systemctl -q is-active curfew-enforce && exit; sleep 0.05; done; exit 1"); err != nil {
		return err
	}
	p.say("the root half on web1 was killed with -9, and systemd started it again")
	if err := p.ssh(ctx, p.alice, "web1", 0, restart); err != nil {
		return err
	}
	if _, err := p.Control.Exec(ctx, "systemctl", "stop", "curfew-controlplane"); err != nil {
		return err
	}
	p.say("the control plane is stopped; what was granted works on")
	if err := p.ssh(ctx, p.alice, "web1", 0, restart); err != nil {
		return err
	}
	if _, err := p.Control.Exec(ctx, "systemctl", "start", "curfew-controlplane"); err != nil {
		return err
	}
	if err := web1.Reboot(ctx); err != nil {
		return err
	}
	p.say("web1 was rebooted; the grant is still inside of its window")
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	return stage.Eventually(wait, "alice's access after the reboot", func() (bool, string) {
		r, err := p.alice.SSH(ctx, "web1", restart)
		return err == nil && r.Exit == 0, r.String()
	})
}
