package sudoers

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Parse reads a drop-in that Render wrote, and nothing else: another order, another space, another
// escape is refused. Whether a rule was declared contained is not in the text and comes back false.
func Parse(text []byte) (Dropin, error) {
	d, err := parse(text)
	if err != nil {
		return Dropin{}, err
	}
	again, err := render(d)
	if err != nil {
		return Dropin{}, err
	}
	if !bytes.Equal(text, again) {
		return Dropin{}, errors.New("drop-in is not in the form that Curfew writes")
	}
	return d, nil
}

func parse(text []byte) (Dropin, error) {
	if len(text) > maxText {
		return Dropin{}, fmt.Errorf("drop-in has %d bytes; at most %d", len(text), maxText)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 4 || lines[len(lines)-1] != "" {
		return Dropin{}, errors.New("drop-in is cut short")
	}
	lines = lines[:len(lines)-1]
	d, err := parseHeader(lines[0])
	if err != nil {
		return Dropin{}, err
	}
	rest, ok := strings.CutPrefix(lines[1], "Defaults:")
	if !ok {
		return Dropin{}, errors.New("line 2 is not our settings")
	}
	d.Login, _, _ = strings.Cut(rest, " ")
	if lines[1]+"\n" != fmt.Sprintf(settings, d.Login) {
		return Dropin{}, errors.New("line 2 is not our settings")
	}
	for i, line := range lines[2:] {
		rule, end, err := parseRule(line, d.Login)
		if err != nil {
			return Dropin{}, fmt.Errorf("line %d: %w", i+3, err)
		}
		if i > 0 && !end.Equal(d.End) {
			return Dropin{}, fmt.Errorf("line %d: ends at another time than the first rule", i+3)
		}
		d.End = end
		d.Rules = append(d.Rules, rule)
	}
	return d, check(d)
}

func parseHeader(line string) (Dropin, error) {
	words := strings.SplitN(line, " ", 7)
	if len(words) < 7 {
		return Dropin{}, errors.New("line 1 is not our header")
	}
	id, err := grant.ParseID(words[3])
	if err != nil {
		return Dropin{}, fmt.Errorf("line 1: %w", err)
	}
	d := Dropin{Grant: id, RequestID: strings.TrimSuffix(words[6][:min(13, len(words[6]))], ".")}
	if line+"\n" != fmt.Sprintf(header, d.Grant, d.RequestID) {
		return Dropin{}, errors.New("line 1 is not our header")
	}
	return d, nil
}

func parseRule(line, login string) (*curfewv1.SudoRule, time.Time, error) {
	fail := func(what string) (*curfewv1.SudoRule, time.Time, error) {
		return nil, time.Time{}, errors.New(what)
	}
	rest, ok := strings.CutPrefix(line, login+" ALL=(")
	if !ok {
		return fail("not a rule of " + login)
	}
	as, rest, ok := strings.Cut(rest, ") NOTAFTER=")
	if !ok {
		return fail("no run-as or no end")
	}
	until, cmd, ok := strings.Cut(rest, " NOPASSWD: ")
	if !ok {
		return fail("no command")
	}
	end, err := time.Parse(notAfter, until)
	if err != nil || end.Format(notAfter) != until {
		return fail("bad end")
	}
	if as == "ALL:ALL" {
		if cmd != everyRule {
			return fail("every target goes with every command only")
		}
		return &curfewv1.SudoRule{RunAs: "root", All: true}, end, nil
	}
	rule := &curfewv1.SudoRule{RunAs: as}
	words := strings.Split(cmd, " ")
	for i, w := range words {
		if i == 1 && len(words) == 2 && w == `""` {
			return rule, end, nil
		}
		plain, err := unescape(w)
		if err != nil {
			return nil, end, err
		}
		if i == 0 {
			rule.Command = plain
		} else {
			rule.Args = append(rule.Args, plain)
		}
	}
	rule.AnyArgs = len(words) == 1
	return rule, end, nil
}

func unescape(word string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(word); i++ {
		special := strings.IndexByte(`,:=\`, word[i]) >= 0
		if special && word[i] != '\\' {
			return "", fmt.Errorf("%q is not escaped in %q", word[i], grant.VisibleText(word))
		}
		if special {
			if i++; i >= len(word) || strings.IndexByte(`,:=\`, word[i]) < 0 {
				return "", fmt.Errorf("bad escape in %q", grant.VisibleText(word))
			}
		}
		b.WriteByte(word[i])
	}
	return b.String(), nil
}

// same tells how two drop-ins differ in meaning.
func same(want, got Dropin) error {
	switch {
	case got.Grant != want.Grant, got.RequestID != want.RequestID, got.Login != want.Login:
		return errors.New("grant, request or login differ")
	case !got.End.Equal(want.End.UTC().Truncate(time.Second)):
		return fmt.Errorf("end is %v, want %v", got.End, want.End)
	case len(got.Rules) != len(want.Rules):
		return fmt.Errorf("%d rules, want %d", len(got.Rules), len(want.Rules))
	}
	for i, w := range want.Rules {
		g := got.Rules[i]
		if g.GetRunAs() != w.GetRunAs() || g.GetAll() != w.GetAll() ||
			g.GetCommand() != w.GetCommand() || g.GetAnyArgs() != w.GetAnyArgs() ||
			!slices.Equal(g.GetArgs(), w.GetArgs()) {
			return fmt.Errorf("rule %d is %q, want %q", i+1, grant.RuleText(g), grant.RuleText(w))
		}
	}
	return nil
}
