package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/internal/grant"
)

// maxErrors is how many faults of one file are told.
const maxErrors = 20

// A fault is one thing that is wrong in a file, where people find it.
type fault struct {
	file  string
	line  int
	field string
	text  string
}

// Error is file:line: field: what is wrong.
func (f *fault) Error() string {
	if f.field == "" {
		return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", f.file, f.line, f.field, f.text)
}

// reader walks a YAML document by hand, so that everything it refuses has a line and a field's path,
// and so that nothing is taken that nobody reads.
type reader struct {
	file   string
	faults []error
	count  int // of all faults, told or not
}

func (r *reader) fail(line int, field, format string, args ...any) {
	if r.count++; len(r.faults) < maxErrors {
		r.faults = append(r.faults,
			&fault{file: r.file, line: line, field: field, text: fmt.Sprintf(format, args...)})
	}
}

func (r *reader) err() error { return errors.Join(r.faults...) }

// value is a node and where it stands. A value without a node is absent, and reads as zero.
type value struct {
	r    *reader
	node *yaml.Node
	path string
}

var lineOf = regexp.MustCompile(`(?:line |L)(\d+)`)

// document parses text to its one document.
func (r *reader) document(text []byte) value {
	var doc yaml.Node
	err := yaml.Load(text, &doc)
	if err != nil {
		line := 1
		if m := lineOf.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1])
		}
		what, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "yaml: "), "\n")
		r.fail(line, "", "not valid YAML: %s", grant.VisibleText(what))
		return value{r: r}
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		r.fail(1, "", "the file holds nothing")
		return value{r: r}
	}
	return value{r: r, node: doc.Content[0]}
}

func (v value) present() bool { return v.node != nil }

func (v value) line() int {
	if v.node == nil {
		return 0
	}
	return v.node.Line
}

func (v value) fail(format string, args ...any) { v.r.fail(v.line(), v.path, format, args...) }

func (v value) is(kind yaml.Kind, want string) bool {
	if v.node == nil {
		return false
	}
	switch {
	case v.node.Kind == yaml.AliasNode || v.node.Anchor != "":
		v.fail("anchors and aliases are not permitted: what counts stands where it counts")
		return false
	case v.node.Kind != kind:
		v.fail("this must be %s", want)
		return false
	}
	return true
}

func (v value) child(name string, node *yaml.Node) value {
	if v.path != "" {
		name = v.path + "." + name
	}
	return value{r: v.r, node: node, path: name}
}

// pair is one entry of a mapping whose keys are names.
type pair struct {
	key string
	value
}

// entries reads a mapping, in order; a key that stands twice is refused.
func (v value) entries(limit int) []pair {
	if !v.is(yaml.MappingNode, "a mapping (key: value)") {
		return nil
	}
	var out []pair
	seen := make(map[string]int)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k, n := v.node.Content[i], v.node.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str" || k.Anchor != "" {
			v.child("?", k).fail("a key must be plain text; quote it")
			continue
		}
		name := grant.VisibleText(k.Value)
		if first, twice := seen[k.Value]; twice {
			v.r.fail(k.Line, v.child(name, n).path, "it stands twice, first in line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		if len(out) >= limit {
			v.r.fail(k.Line, v.path, "more than %d entries", limit)
			break
		}
		out = append(out, pair{key: k.Value, value: v.child(name, n)})
	}
	return out
}

// fields reads a mapping whose keys are known; another key is refused with those that are.
func (v value) fields(known ...string) map[string]value {
	out := make(map[string]value)
	for _, name := range known {
		out[name] = value{r: v.r, path: v.child(name, nil).path}
	}
	for _, p := range v.entries(len(known) + maxErrors) {
		if !slices.Contains(known, p.key) {
			p.fail("there is no such field; there are: %s", strings.Join(known, ", "))
			continue
		}
		if p.node.ShortTag() == "!!null" {
			p.fail("it says nothing; leave it out")
			continue
		}
		out[p.key] = p.value
	}
	return out
}

// items reads a list.
func (v value) items(limit int) []value {
	if !v.is(yaml.SequenceNode, "a list") {
		return nil
	}
	if len(v.node.Content) > limit {
		v.fail("%d entries; at most %d", len(v.node.Content), limit)
		return nil
	}
	out := make([]value, 0, len(v.node.Content))
	for i, n := range v.node.Content {
		out = append(out, value{r: v.r, node: n, path: fmt.Sprintf("%s[%d]", v.path, i)})
	}
	return out
}

func (v value) scalar(tag, want string) (string, bool) {
	if !v.is(yaml.ScalarNode, want) {
		return "", false
	}
	if v.node.ShortTag() != tag {
		v.fail("%q is not %s", grant.VisibleText(v.node.Value), want)
		return "", false
	}
	return v.node.Value, true
}

// text reads a string of at most limit bytes. A number or a truth value is none until it is quoted.
func (v value) text(limit int) string {
	s, ok := v.scalar("!!str", "text; quote it")
	switch {
	case !ok:
		return ""
	case len(s) > limit:
		v.fail("%d bytes; at most %d", len(s), limit)
		return ""
	case strings.TrimSpace(s) == "" || !utf8.ValidString(s):
		v.fail("it is empty or not UTF-8")
		return ""
	}
	return s
}

// words reads text that people are shown, on one line.
func (v value) words(limit int) string {
	s := strings.TrimSpace(v.text(limit))
	if grant.VisibleText(s) != s {
		v.fail("only printable text on one line")
		return ""
	}
	return s
}

// name reads text that a check accepts.
func (v value) name(check func(string) error) string {
	s := v.text(256)
	if s == "" {
		return ""
	}
	if err := check(s); err != nil {
		v.fail("%v", err)
		return ""
	}
	return s
}

// names reads a list of different names.
func (v value) names(limit int, check func(string) error) []string {
	var out []string
	for _, item := range v.items(limit) {
		s := item.name(check)
		if s != "" && slices.Contains(out, s) {
			item.fail("%s stands twice", s)
			continue
		}
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// some is names, of which there must be one: an empty list would say the opposite of what it looks like.
func (v value) some(limit int, check func(string) error, none string) []string {
	before := v.r.count
	out := v.names(limit, check)
	if len(out) == 0 && v.r.count == before {
		v.fail("it names %s", none)
	}
	return out
}

func (v value) truth() bool {
	s, ok := v.scalar("!!bool", "true or false")
	if ok && s != "true" && s != "false" {
		v.fail("write true or false")
	}
	return s == "true"
}

func (v value) number(low, high int) int {
	s, ok := v.scalar("!!int", "a whole number")
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		v.fail("%s is not a whole number from %d to %d", grant.VisibleText(s), low, high)
		return 0
	}
	return n
}

// duration reads 90s, 15m, 1h30m or 2d.
func (v value) duration(low, high time.Duration) time.Duration {
	s := v.text(32)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		d = time.Duration(min(max(n, -1), 100000)) * 24 * time.Hour
	}
	switch {
	case err != nil:
		v.fail("%q is not a duration such as 90s, 15m, 1h30m or 2d", grant.VisibleText(s))
	case d < low || d > high:
		v.fail("%s is not from %s to %s", s, low, high)
	case d%time.Millisecond != 0:
		v.fail("%s is not in whole milliseconds", s)
	default:
		return d
	}
	return 0
}

// pattern reads a regular expression of RE2, which cannot be made to run long. With whole, all of the
// text must match, not a part of it.
func (v value) pattern(whole bool) *regexp.Regexp {
	s := v.text(maxPattern)
	if s == "" {
		return nil
	}
	re, err := regexp.Compile(s)
	if err == nil && whole {
		re, err = regexp.Compile(`\A(?:` + s + `)\z`)
	}
	if err != nil {
		v.fail("not a pattern: %v", err)
		return nil
	}
	return re
}
