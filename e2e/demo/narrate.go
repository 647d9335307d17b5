package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// A narrator tells what happens, with the seconds since the beginning.
type narrator struct {
	began time.Time
	color bool
}

func isTerminal(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}

func (n *narrator) chapter(title string) {
	if n.color {
		title = "\x1b[1m" + title + "\x1b[0m"
	}
	fmt.Printf("\n%6.1fs  %s\n", time.Since(n.began).Seconds(), title)
}

func (n *narrator) say(format string, args ...any) {
	fmt.Printf("%6.1fs    %s\n", time.Since(n.began).Seconds(), fmt.Sprintf(format, args...))
}

// shown prints a command as its person would type it and what it printed, cut to a few lines.
func (n *narrator) shown(who, command string, r stage.Result) {
	n.say("%s$ %s", who, command)
	lines := strings.Split(strings.TrimSpace(strings.TrimSpace(r.Out)+"\n"+strings.TrimSpace(r.Err)), "\n")
	for i, line := range lines {
		if i == 12 {
			fmt.Printf("             … %d more lines\n", len(lines)-i)
			return
		}
		if line != "" {
			fmt.Printf("             %s\n", line)
		}
	}
}

// An act is a part of the story. It returns an error when something does not go as told.
type act struct {
	title   string
	perform func(context.Context) error
}

// A play is the story's people on their stage.
type play struct {
	*narrator
	*stage.Stage
	alice, bob, carol, gus *stage.Person
	shell                  *world.Terminal
}

// types runs curfew, shows it, and demands its exit status and words.
func (p *play) types(ctx context.Context, who *stage.Person, exit int, args []string, words ...string) (stage.Result, error) {
	r, err := who.Curfew(ctx, args...)
	if err != nil {
		return r, err
	}
	p.shown(who.Name(), "curfew "+quoted(args), r)
	return r, demand(r, exit, words...)
}

// ssh runs a command over real ssh, shows it, and demands its exit status and words.
func (p *play) ssh(ctx context.Context, who *stage.Person, host string, exit int, command string, words ...string) error {
	r, err := who.SSH(ctx, host, command)
	if err != nil {
		return err
	}
	p.shown(who.Name(), "ssh "+host+" "+command, r)
	return demand(r, exit, words...)
}

func demand(r stage.Result, exit int, words ...string) error {
	if r.Exit != exit {
		return fmt.Errorf("want exit %d, got %s", exit, r)
	}
	for _, w := range words {
		if !strings.Contains(r.Out+r.Err, w) {
			return fmt.Errorf("want %q in %s", w, r)
		}
	}
	return nil
}

func quoted(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		if out[i] = a; strings.ContainsAny(a, " ") {
			out[i] = `"` + a + `"`
		}
	}
	return strings.Join(out, " ")
}

// gone waits until nothing of a login's is left on a host and says how long that took.
func (p *play) gone(ctx context.Context, host, login string) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	const script = `
ls -A /run/curfew/sudoers.d
test ! -e /run/curfew/keys/"$1" || echo "key of $1"
getent passwd "$1" | grep -v nologin
pgrep -u "$1" -a
pgrep -f '[s]leep 86413' -a
true`
	err := stage.Eventually(ctx, "everything of "+login+" to be gone from "+host, func() (bool, string) {
		out, err := p.Hosts[host].Exec(ctx, "bash", "-c", script, "sh", login)
		return err == nil && strings.TrimSpace(string(out)) == "", string(out)
	})
	if err == nil {
		p.say("%s: account, key, rule, the ssh connection, its shell and the detached root process are gone (%.1f s)",
			host, time.Since(began).Seconds())
	}
	return err
}
