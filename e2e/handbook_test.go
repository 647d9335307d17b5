package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A step is one block of a page that a reader types, and what the page says that it prints.
type step struct {
	// on is a host or "control", as root; as is a person's laptop. One of them is set.
	on, as       string
	text, prints string
	line         int
}

// A cast is the people who type, by name.
type cast map[string]*stage.Person

// procedures are the pages that are carried out: each is one story, told from its own text.
var procedures = []struct {
	page string
	// bare is a world without web1: the page is about web2, which has nothing of Curfew's but its packages.
	bare bool
	// before sets the page's scene and brings the people who type, dana aside; instead does what a block
	// says by means that a container has; first is what happens before a block is typed.
	before  func(s *story) []*stage.Person
	instead map[string]func(s *story)
	first   map[string]func(*story, cast)
}{
	{page: "backup.md", before: func(s *story) []*stage.Person {
		s.openFor(time.Hour)
		return nil
	}},
	{
		page: "break-glass.md", before: (*story).custodian,
		first: map[string]func(*story, cast){
			"(umask 077; curfew admin break-glass get":          (*story).codesCome,
			"ssh carol@web1 'curfew-agent break-glass --reason": (*story).outage,
			"curfew log | grep break_glass.used":                (*story).back,
		},
	},
	{
		page: "install.md", bare: true, before: (*story).outsiders,
		instead: map[string]func(s *story){
			"curfew-agent join --server curfew.example.org:7443 TOKEN --start": func(s *story) {
				s.ok(s.Join(s.ctx, "web2"))
			},
		},
	},
	{page: "upgrade.md", bare: true, before: func(s *story) []*stage.Person { return s.inUse("old") }},
	{page: "uninstall.md", bare: true, before: func(s *story) []*stage.Person { return s.inUse("new") }},
	{page: "ca.md"},
	{
		page: "clock.md",
		before: func(s *story) []*stage.Person {
			s.openFor(time.Hour)
			s.ok(s.FakeClocks(s.ctx, s.Hosts["web1"]))
			s.ok(s.SetClocks(s.ctx, s.Hosts["web1"], year, 0))
			s.within(20*time.Second, "the host to see the jump", func() (bool, string) {
				why := s.status("web1").MayOpen
				return strings.Contains(why, "clock jumped"), why
			})
			s.within(20*time.Second, "the trail to tell of it", func() (bool, string) {
				r, err := s.Admin.Curfew(s.ctx, "log")
				return err == nil && strings.Contains(r.Out, "clock.jumped"), r.String()
			})
			return nil
		},
		instead: map[string]func(s *story){
			"systemctl restart systemd-timesyncd": func(s *story) {
				s.ok(s.SetClocks(s.ctx, s.Hosts["web1"], 0, 0))
			},
		},
	},
}

// What the handbook tells an operator to type is typed here, on the machines that it names, and prints
// what it says. No procedure has a shell block that is not.
func TestHandbook(t *testing.T) {
	packages(t) // built before the first page is opened
	for _, p := range procedures {
		name := strings.TrimSuffix(p.page, ".md")
		t.Run(name, func(t *testing.T) {
			steps := readPage(t, "../docs/operate/"+p.page)
			options := stage.Options{Name: "book-" + name}
			if p.bare {
				options.Hosts = []string{}
			}
			s := tell(t, options)
			people := cast{s.Admin.Name(): s.Admin}
			if p.before != nil {
				for _, who := range p.before(s) {
					people[who.Name()] = who
				}
			}
			for _, step := range steps {
				if other := p.instead[strings.TrimSpace(step.text)]; other != nil {
					other(s)
					continue
				}
				for begins, happens := range p.first {
					if strings.HasPrefix(step.text, begins) {
						happens(s, people)
					}
				}
				s.follow(p.page, step, people)
			}
		})
	}
}

// follow types one block. What a service needs to come back is waited for, as a reader would.
func (s *story) follow(page string, step step, people cast) {
	s.t.Helper()
	script := strings.ReplaceAll(step.text, "curfew.example.org:7443", stage.Server)
	var out string
	s.within(30*time.Second, page+": what a block prints", func() (bool, string) {
		var failed bool
		switch {
		case step.as != "":
			who := people[step.as]
			if who == nil {
				s.t.Fatalf("docs/operate/%s:%d: nobody is called %s", page, step.line, step.as)
			}
			r, err := who.Command(s.ctx, "bash", "-euo", "pipefail", "-c", script)
			s.ok(err)
			out, failed = r.Out+r.Err, r.Exit != 0
		default:
			h := s.Hosts[step.on]
			if step.on == "control" {
				h = s.Control
			}
			text, err := h.Exec(s.ctx, "bash", "-euo", "pipefail", "-c", "{ "+script+"\n} 2>&1")
			out, failed = string(text), err != nil
			if err != nil {
				out += err.Error()
			}
		}
		if failed {
			s.t.Fatalf("docs/operate/%s:%d: the block fails:\n%s\n%s", page, step.line, step.text, out)
		}
		return printed(out, step.prints), "docs/operate/" + page + " says\n" + step.prints + "it prints\n" + out
	})
}

// printed tells whether the page's lines stand in what was printed, in their order; … is any text.
func printed(out, want string) bool {
	for line := range strings.Lines(want) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "…") {
			_, rest, ok := strings.Cut(out, strings.TrimSpace(part))
			if !ok {
				return false
			}
			out = rest
		}
	}
	return true
}

var opening = regexp.MustCompile("^```(\\S*) ?(?:(on|as) (\\S+))?$")

// readPage reads a page's blocks. Each sh block says where it is typed; a text block is what the one
// before it prints.
func readPage(t *testing.T, name string) (steps []step) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var block *strings.Builder
	var head []string
	var began int
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case block == nil && strings.HasPrefix(line, "```"):
			head, block, began = opening.FindStringSubmatch(line), new(strings.Builder), i+1
			if head == nil || head[1] == "sh" && head[2] == "" {
				t.Fatalf("%s:%d: %q does not say where it is typed: sh on HOST, or sh as PERSON", name, i+1, line)
			}
		case block != nil && line == "```":
			switch {
			case head[1] == "sh" && head[2] == "on":
				steps = append(steps, step{on: head[3], text: block.String(), line: began})
			case head[1] == "sh":
				steps = append(steps, step{as: head[3], text: block.String(), line: began})
			case head[1] == "text" && len(steps) > 0:
				steps[len(steps)-1].prints = block.String()
			}
			block = nil
		case block != nil:
			block.WriteString(line + "\n")
		}
	}
	if len(steps) == 0 {
		t.Fatalf("%s tells nobody to type anything", name)
	}
	return steps
}
