// Package sudoers turns typed sudo rules into the text of a drop-in, and refuses whatever sudo could
// read in another way.
//
// Text that becomes syntax is how such tools are broken: a newline in a field is valid sudoers. So
// rules come in as typed, checked data (internal/grant), Render writes one fixed grammar, and Parse
// is a strict reader of exactly that grammar which must give back the same rules before the text may
// go to disk. Checker then asks the host's own programs when a grant is applied, and only then:
// visudo whether it is sudoers at all, cvtsudoers whether anything else on the host gives the same
// person sudo or switches our locks off. A purge needs none of this. The text goes to agent/enforce,
// which makes the drop-in folder equal to it.
package sudoers

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Dropin is what one grant's file says: who may run what, and until when.
type Dropin struct {
	Grant     grant.ID
	RequestID string
	Login     string
	// End is the last moment of the rules; sudo counts whole seconds, so it is rounded down.
	End   time.Time
	Rules []*curfewv1.SudoRule
}

const (
	// maxText bounds a drop-in: 64 rules of 32 arguments of 255 bytes, all of them escaped.
	maxText = 2 << 20

	header = "# Curfew grant %s of request %s. Written by curfew-agent, which undoes changes.\n"
	// settings hold the PAM stack and the pty for this person whatever the host's defaults are.
	settings  = "Defaults:%s pam_session, pam_acct_mgmt, use_pty, timestamp_timeout=0\n"
	notAfter  = "20060102150405Z"
	everyRule = "ALL"
)

// ErrRule means that a typed rule cannot be put into sudoers so that it means only itself.
var ErrRule = errors.New("sudo rule refused")

// Render returns the text of the drop-in. It refuses rules, names and times that are out of the
// grammar, and reads its own text back: what it returns, Parse returns as the same typed rules.
func Render(d Dropin) ([]byte, error) {
	text, err := render(d)
	if err != nil {
		return nil, err
	}
	back, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: our own grammar refuses what was rendered: %w", ErrRule, err)
	}
	if err := same(d, back); err != nil {
		return nil, fmt.Errorf("%w: rendered text means something else: %w", ErrRule, err)
	}
	return text, nil
}

func render(d Dropin) ([]byte, error) {
	if err := check(d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRule, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, header, d.Grant, d.RequestID)
	fmt.Fprintf(&b, settings, d.Login)
	until := d.End.UTC().Format(notAfter)
	for _, r := range d.Rules {
		fmt.Fprintf(&b, "%s ALL=(%s) NOTAFTER=%s NOPASSWD: %s\n",
			d.Login, runAs(r), until, command(r))
	}
	if b.Len() > maxText {
		return nil, fmt.Errorf("%w: %d bytes of sudoers; at most %d", ErrRule, b.Len(), maxText)
	}
	return b.Bytes(), nil
}

func check(d Dropin) error {
	if err := grant.CheckUserName(d.Login); err != nil {
		return err
	}
	if err := grant.CheckRequestID(d.RequestID); err != nil {
		return err
	}
	if len(d.Rules) == 0 || len(d.Rules) > grant.MaxSudoRules {
		return fmt.Errorf("%d rules; 1 to %d", len(d.Rules), grant.MaxSudoRules)
	}
	if year := d.End.UTC().Year(); year < 2000 || year > 9999 {
		return fmt.Errorf("end %v is out of range", d.End)
	}
	for _, r := range d.Rules {
		if err := grant.CheckSudoRule(r); err != nil {
			return err
		}
	}
	return nil
}

func runAs(r *curfewv1.SudoRule) string {
	if r.GetAll() {
		return "ALL:ALL"
	}
	return r.GetRunAs()
}

func command(r *curfewv1.SudoRule) string {
	switch {
	case r.GetAll():
		return everyRule
	case r.GetAnyArgs():
		return escape(r.GetCommand())
	case len(r.GetArgs()) == 0:
		return escape(r.GetCommand()) + ` ""`
	}
	words := []string{escape(r.GetCommand())}
	for _, arg := range r.GetArgs() {
		words = append(words, escape(arg))
	}
	return strings.Join(words, " ")
}

// escape writes the characters that sudoers(5) wants escaped in commands; internal/grant lets no
// others through that have a meaning there.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(`,:=\`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
