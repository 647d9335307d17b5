package doctor

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A step is one line of a PAM stack, with what it includes in its place.
type step struct {
	module string // without folder
	args   []string
	// control maps what a module returns ("success", …, "default") to what PAM does then.
	control map[string]string
	file    string // the service file that it stands in
	// sub is a substack: its lines, which end and jump for themselves.
	sub []step
}

const (
	module      = "pam_curfew.so"
	maxIncludes = 32 // as libpam has it
)

// simple are the words that stand for a whole control (pam.conf(5)).
var simple = map[string]map[string]string{
	"required": {
		"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "bad",
	},
	"requisite": {
		"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "die",
	},
	"sufficient": {"success": "done", "new_authtok_reqd": "done", "default": "ignore"},
	"optional":   {"success": "ok", "new_authtok_reqd": "ok", "default": "ignore"},
}

// pamFolders are where libpam looks for a service, the admin's own first.
var pamFolders = []string{"etc/pam.d", "usr/lib/pam.d", "usr/etc/pam.d"}

// service reads the file of a service; ok tells whether there is one.
func (h Host) service(name string) (text string, ok bool) {
	for _, dir := range pamFolders {
		if text, err := h.read(path.Join(dir, name)); err == nil {
			return text, true
		}
	}
	return "", false
}

// stack reads the lines of one kind ("account", "session") of a service.
func (h Host) stack(service, kind string, depth int) ([]step, error) {
	text, ok := h.service(service)
	if !ok {
		return nil, fmt.Errorf("there is no /etc/pam.d/%s", service)
	}
	if depth > maxIncludes {
		return nil, fmt.Errorf("/etc/pam.d/%s includes itself", service)
	}
	var steps []step
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line, _, _ = strings.Cut(line, "#")
		fields := pamFields(line)
		if len(fields) == 2 && strings.EqualFold(fields[0], "@include") {
			more, err := h.stack(path.Base(fields[1]), kind, depth+1)
			if err != nil {
				return nil, err
			}
			steps = append(steps, more...)
			continue
		}
		if len(fields) < 3 || !strings.EqualFold(strings.TrimPrefix(fields[0], "-"), kind) {
			continue
		}
		more, err := h.step(service, kind, fields, depth)
		if err != nil {
			return nil, err
		}
		steps = append(steps, more...)
	}
	return steps, nil
}

// step reads one line.
func (h Host) step(service, kind string, fields []string, depth int) ([]step, error) {
	control := strings.ToLower(fields[1])
	if control == "include" || control == "substack" {
		more, err := h.stack(path.Base(fields[2]), kind, depth+1)
		if control == "include" || err != nil {
			return more, err
		}
		return []step{{file: service, sub: more}}, nil
	}
	s := step{module: path.Base(fields[2]), args: fields[3:], file: service}
	if s.control = simple[control]; s.control != nil {
		return []step{s}, nil
	}
	s.control = make(map[string]string)
	for pair := range strings.FieldsSeq(strings.Trim(control, "[]")) {
		what, then, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("/etc/pam.d/%s: unknown control %q", service, fields[1])
		}
		s.control[what] = then
	}
	return []step{s}, nil
}

var pamField = regexp.MustCompile(`\[[^\]]*\]|\S+`)

func pamFields(line string) []string { return pamField.FindAllString(line, -1) }

// A walk is one way through a stack: who let it pass by Curfew.
type walk struct {
	at     int
	yes    bool // some module was counted as a success
	asked  bool
	around string
}

// around looks for a way on which the stack says yes without having asked Curfew. It returns the line
// that makes it possible, or "". What other modules answer is not known, so everything that their
// control speaks of counts as possible.
func around(steps []step) (found bool, by string) {
	ends := ways(steps)
	i := slices.IndexFunc(ends, func(w walk) bool { return w.yes && !w.asked })
	if i < 0 {
		return false, ""
	}
	return true, ends[i].around
}

// ways returns how a stack can end, a failure that ends it aside.
func ways(steps []step) []walk {
	todo := []walk{{}}
	seen := make(map[walk]bool)
	var ends []walk
	for len(todo) > 0 {
		w := todo[0]
		todo = todo[1:]
		if seen[w] {
			continue
		}
		seen[w] = true
		if w.at >= len(steps) {
			ends = append(ends, w)
			continue
		}
		s := steps[w.at]
		if s.sub != nil {
			for _, inner := range ways(s.sub) {
				next := walk{w.at + 1, w.yes || inner.yes, w.asked || inner.asked, w.around}
				if !w.asked && next.around == "" {
					next.around = inner.around
				}
				todo = append(todo, next)
			}
			continue
		}
		for _, then := range s.possible() {
			next, end := w.after(steps, then)
			if end {
				ends = append(ends, next)
			} else if next.at > 0 {
				todo = append(todo, next)
			}
		}
	}
	return ends
}

// possible are the actions that a module can cause.
func (s step) possible() []string {
	switch s.module {
	case "pam_permit.so":
		return []string{s.on("success")}
	case "pam_deny.so":
		return []string{s.on("default")}
	case "pam_succeed_if.so":
		if s.forRootAlone() {
			return []string{s.on("default")}
		}
	}
	var list []string
	for _, what := range []string{"success", "new_authtok_reqd", "ignore"} {
		list = append(list, s.on(what))
	}
	for what, then := range s.control {
		if what != "success" && what != "new_authtok_reqd" && what != "ignore" {
			list = append(list, then)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// forRootAlone tells whether a line asks for a caller who is root, as su's first one does on Fedora and its
// kin. Root becomes whom it likes without su as well; for everybody else the line says no.
func (s step) forRootAlone() bool {
	return strings.HasPrefix(strings.Join(s.args, " ")+" ", "uid = 0 use_uid ")
}

// on is what PAM does when a module returns what.
func (s step) on(what string) string {
	if then, ok := s.control[what]; ok {
		return then
	}
	if then, ok := s.control["default"]; ok {
		return then
	}
	return "bad" // libpam's own default
}

// after takes one action. A walk at 0 has failed and leads nowhere.
func (w walk) after(steps []step, then string) (next walk, end bool) {
	s := steps[w.at]
	next = w
	next.at++
	next.asked = w.asked || s.curfews()
	switch then {
	case "ignore":
	case "ok":
		next.yes = true
	case "done":
		next.yes = true
		if !next.asked && next.around == "" {
			next.around = s.say(then)
		}
		return next, true
	case "bad", "die":
		return walk{}, false // it says no in the end
	case "reset":
		next.yes = false
	default:
		n, err := strconv.Atoi(then)
		if err != nil || n < 0 {
			return walk{}, false
		}
		over := steps[next.at:min(next.at+n, len(steps))]
		next.at += n
		if !next.asked && slices.ContainsFunc(flat(over), step.curfews) {
			next.around = s.say(then)
		}
	}
	return next, false
}

func (s step) curfews() bool { return s.module == module }

func (s step) say(then string) string {
	if _, err := strconv.Atoi(then); err == nil {
		then = "jumps over Curfew's line"
	} else {
		then = "ends the stack with yes"
	}
	return fmt.Sprintf("%s in /etc/pam.d/%s %s", s.module, s.file, then)
}

// flat lists all lines of a stack, those of substacks included, in order.
func flat(steps []step) []step {
	var list []step
	for _, s := range steps {
		if s.sub != nil {
			list = append(list, flat(s.sub)...)
			continue
		}
		list = append(list, s)
	}
	return list
}
