// Package selftest tries the PAM module of a host before people depend on it.
//
// Private goes through a PAM service of its own, in a private folder with a gate table of its own: that
// the module denies whom no grant covers, lets everybody else in, and stops denying by each of the ways
// in which enforcing is taken back. Survey and Stacks ask the host's own services, before and after the
// host began to enforce. All of it is account management alone: nobody is authenticated and no session
// is opened. Who is denied is a name that no host has (account.SelfTest), which the gate knows.
//
// A small C program (pam/src/selftest.c) does the asking, since a Go program cannot call libpam without
// cgo. The package changes nothing but its private folder.
package selftest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/doctor"
	"github.com/curfew-access/curfew/agent/enforce/account"
)

// Config says what is tried. The zero value of a field is what a host has.
type Config struct {
	Runner string // the C program
	Module string // pam_curfew.so, as a PAM service names it
	Socket string // of the gate
	Run    string // where the private folder is made
	Stacks string // the folder of PAM services, - for the system's own
	// Do runs a program and returns what it printed.
	Do func(ctx context.Context, argv ...string) ([]byte, error)
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&c.Runner, "/usr/lib/curfew/curfew-selftest"},
		{&c.Module, "pam_curfew.so"},
		{&c.Socket, "/run/curfew/gate.sock"},
		{&c.Run, "/run/curfew"},
		{&c.Stacks, "-"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.Do == nil {
		c.Do = doctor.Run
	}
	return c
}

// answer is what a stack says of one person.
type answer struct {
	result int
	said   string
}

func (a answer) refused() bool { return a.result != 0 }

// by tells whether the refusal is Curfew's.
func (a answer) by(words string) bool { return a.refused() && strings.Contains(a.said, words) }

func (a answer) String() string {
	what := "lets in"
	if a.refused() {
		what = fmt.Sprintf("refuses (PAM result %d)", a.result)
	}
	if a.said != "" {
		what += ", saying " + strconv.Quote(a.said)
	}
	return what
}

func (c Config) ask(ctx context.Context, folder, service, user string, uid uint32) (a answer, err error) {
	out, err := c.Do(ctx, c.Runner, folder, service, user, strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return a, err
	}
	found := false
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, "said "); ok {
			a.said = strings.TrimSpace(a.said + " " + text)
		}
		if number, ok := strings.CutPrefix(line, "result "); ok {
			found = true
			if a.result, err = strconv.Atoi(number); err != nil {
				return a, fmt.Errorf("%s: %w", filepath.Base(c.Runner), err)
			}
		}
	}
	if !found {
		return a, fmt.Errorf("%s gives no result", filepath.Base(c.Runner))
	}
	return a, nil
}

// someone is a person whom no table of the private service names.
const someone = "curfew-nobody"

// exempt is one whom it names as exempt.
var exempt = account.Principal{Class: account.ClassExempt, UID: account.SelfTest.UID - 1, Name: "curfew-rescue"}

// trials are the ways of the private service. Without words whoever is asked about must get in.
var trials = []struct {
	what, who, words string
	mode             account.Mode
	trial            *account.Trial
	mark             string
	silent           bool // nobody answers at the gate
}{
	{what: "whom no grant covers is denied", who: account.SelfTest.Name, words: "no live grant", mode: account.ModeEnforce},
	{what: "root gets in", who: "root", mode: account.ModeEnforce},
	{what: "whom nobody manages gets in", who: someone, mode: account.ModeEnforce},
	{what: "break-glass gets in", who: exempt.Name, mode: account.ModeEnforce},
	{
		what: "a silent agent denies whom Curfew manages", who: account.SelfTest.Name, words: "try again",
		mode: account.ModeEnforce, silent: true,
	},
	{what: "a silent agent denies nobody else", who: someone, mode: account.ModeEnforce, silent: true},
	{what: "enforce-off lets in", who: account.SelfTest.Name, mode: account.ModeEnforce, mark: "observe", silent: true},
	{
		what: "a trial denies", who: account.SelfTest.Name, words: "no live grant", mark: "trial",
		mode: account.ModeEnforce, trial: &account.Trial{Wall: time.UnixMilli(1e14), Boot: 1e8 * time.Second},
	},
	{
		what: "a trial that is over lets in", who: account.SelfTest.Name, mark: "trial", silent: true,
		mode: account.ModeEnforce, trial: &account.Trial{Wall: time.UnixMilli(1), Boot: 1e8 * time.Second},
	},
	{
		what: "a trial that a boot ended lets in", who: account.SelfTest.Name, silent: true,
		mode: account.ModeEnforce, trial: &account.Trial{Wall: time.UnixMilli(1e14), Boot: 1e8 * time.Second},
	},
}

const mendModule = "reinstall libpam-curfew and curfew-agent; journalctl -t curfew-selftest and, with SELinux or " +
	"AppArmor, the audit log say what went wrong"

// Private tries the module through a service of its own.
func (c Config) Private(ctx context.Context) []doctor.Finding {
	c = c.withDefaults()
	list := make([]doctor.Finding, 0, len(trials))
	for _, t := range trials {
		f := doctor.Finding{What: "self-test: " + t.what, Mend: mendModule}
		dir, err := c.service(t.mode, t.trial, t.mark, t.silent)
		if err == nil {
			var a answer
			a, err = c.ask(ctx, dir, account.SelfTest.Name, t.who, 0)
			if err == nil && (t.words == "" && a.refused() || t.words != "" && !a.by(t.words)) {
				err = fmt.Errorf("PAM %v", a)
			}
		}
		if dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		f.Err = err
		list = append(list, f)
	}
	return list
}

// service makes a folder with a PAM service, a gate table and marks.
func (c Config) service(mode account.Mode, trial *account.Trial, mark string, silent bool) (dir string, err error) {
	dir, err = os.MkdirTemp(c.Run, "selftest-") // 0700
	if err != nil {
		return "", err
	}
	socket := c.Socket
	if silent {
		socket = filepath.Join(dir, "nobody.sock")
	}
	table, err := account.RenderGateTable(mode, trial, []account.Principal{account.SelfTest, exempt})
	if err != nil {
		return dir, err
	}
	files := map[string]string{
		"gate.conf": string(table),
		account.SelfTest.Name: fmt.Sprintf(
			"account [success=ok ignore=ignore default=die] %s socket=%s conf=%s/gate.conf marks=%s\n"+
				"account required pam_permit.so\n", c.Module, socket, dir, dir),
		"other": "account required pam_deny.so\n",
	}
	if mark != "" {
		files[mark] = ""
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// Person is somebody of the host whom enforcing must not touch.
type Person struct {
	Name string
	UID  uint32
}

// services are those of the host by which people get in; byUID ask about who calls.
var services = []struct {
	name  string
	byUID bool
}{{"sshd", false}, {"login", false}, {"sudo", true}, {"sudo-i", true}}

// Survey says how the host's own services treat people now.
type Survey map[string]answer

// Look makes a survey; only services that the host has are asked.
func (c Config) Look(ctx context.Context, people []Person, has func(service string) bool) (Survey, error) {
	c = c.withDefaults()
	found := make(Survey)
	for _, s := range services {
		if !has(s.name) {
			continue
		}
		for _, p := range people {
			a, err := c.ask(ctx, c.Stacks, s.name, p.Name, asker(s.byUID, p.UID))
			if err != nil {
				return nil, err
			}
			found[s.name+" "+p.Name] = a
		}
	}
	return found, nil
}

func asker(byUID bool, uid uint32) uint32 {
	if byUID {
		return uid
	}
	return 0
}

// Enforced tries the host's own services once the host enforces: the name of the self-test must be
// denied, by Curfew, and people of the survey must fare as they did before.
func (c Config) Enforced(ctx context.Context, before Survey, people []Person, has func(service string) bool,
) []doctor.Finding {
	c = c.withDefaults()
	var list []doctor.Finding
	for _, s := range services {
		if !has(s.name) {
			continue
		}
		f := doctor.Finding{
			What: "self-test: " + s.name + " denies whom no grant covers",
			Mend: "see that /etc/pam.d/" + s.name + " includes Curfew's line above what ends the stack: /usr/lib/curfew/setup-pam",
		}
		a, err := c.ask(ctx, c.Stacks, s.name, account.SelfTest.Name, asker(s.byUID, account.SelfTest.UID))
		switch {
		case err != nil:
			f.Err = err
		case !a.refused():
			f.Err = fmt.Errorf("PAM %v", a)
		case !a.by("Curfew"):
			f.Err, f.Warning = fmt.Errorf("another module does so before Curfew is asked: PAM %v", a), true
		}
		list = append(list, f)
	}
	after, err := c.Look(ctx, people, has)
	f := doctor.Finding{
		What: "self-test: root and break-glass get in as before", Err: err,
		Mend: "/usr/lib/curfew/setup-pam; journalctl -t curfew-selftest says which module refuses",
	}
	for who, a := range after {
		if was := before[who]; was.refused() != a.refused() {
			f.Err = errors.Join(f.Err, fmt.Errorf("%s: PAM %v", who, a))
		}
	}
	return append(list, f)
}
