package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Kinds of trail records about workloads.
const (
	KindWorkloadPut     = "workload.put"
	KindWorkloadDeleted = "workload.deleted"
)

const (
	maxPattern = 512
	maxClaims  = 32
	maxToken   = 16 << 10
)

// Workload is a pipeline: tokens of an issuer whose subject and claims match sign in as the user of
// that name.
type Workload struct {
	Name    string
	Issuer  string
	Subject string            // pattern: * stands for any text
	Claims  map[string]string // claim to pattern
}

// shared are issuers that sign for everybody's pipelines: there a pattern must say whose.
var shared = map[string]string{
	"token.actions.githubusercontent.com": "repo:",
	"gitlab.com":                          "project_path:",
}

// Check refuses what could never match, and what would let strangers in.
func (w *Workload) Check() error {
	u, err := url.Parse(w.Issuer)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && !loopback(u) {
		return fmt.Errorf("%q is not an issuer: want https://HOST[/PATH]", grant.VisibleText(w.Issuer))
	}
	if len(w.Claims) > maxClaims {
		return fmt.Errorf("%d claims; at most %d", len(w.Claims), maxClaims)
	}
	for name, pattern := range w.Claims {
		if name == "" || len(name) > 64 || len(pattern) > maxPattern || pattern == "" {
			return fmt.Errorf("claim %q: name or pattern is empty or too long", grant.VisibleText(name))
		}
	}
	fixed, _, any := strings.Cut(w.Subject, "*")
	switch {
	case w.Subject == "" || len(w.Subject) > maxPattern:
		return errors.New("the subject is empty or too long")
	case any && fixed == "":
		return errors.New("the subject begins with *: say at least whose pipelines these are")
	}
	prefix, isShared := shared[u.Host]
	if !isShared {
		return nil
	}
	rest, ok := strings.CutPrefix(fixed, prefix)
	if owner, _, whole := strings.Cut(rest, "/"); !ok || !whole || owner == "" {
		return fmt.Errorf("everybody's pipelines have tokens of %s: the subject must begin with "+
			"%sOWNER/", u.Host, prefix)
	}
	return nil
}

func loopback(u *url.URL) bool {
	return u.Scheme == "http" && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
}

// matches says whether a token is of this workload.
func (w *Workload) matches(t WorkloadToken) bool {
	if t.Issuer != w.Issuer || !Match(w.Subject, t.Subject) {
		return false
	}
	for name, pattern := range w.Claims {
		value, ok := t.Claims[name]
		if !ok || !Match(pattern, value) {
			return false
		}
	}
	return true
}

// Match says whether a pattern fits a text as a whole; * stands for any text, also none.
func Match(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(text, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, last)
}

// Audience is what workloads' tokens must name.
func (s *Service) Audience() string { return s.c.Audience }

// WorkloadLogin is what a pipeline sends.
type WorkloadLogin struct {
	Challenge, SessionKey []byte
	Token                 string
	User                  string // empty: the one that matches
	Device, Address       string
}

// LoginWorkload turns a pipeline's ID token into a session, once.
func (s *Service) LoginWorkload(ctx context.Context, l WorkloadLogin) (Session, error) {
	if s.c.Pipelines == nil {
		return Session{}, reason.Invalid("workloads cannot sign in here")
	}
	if len(l.Token) > maxToken {
		return Session{}, reason.Limit("the token has %d bytes; at most %d", len(l.Token), maxToken)
	}
	b, err := s.spend(ctx, l.Challenge, l.SessionKey)
	if err != nil {
		return Session{}, err
	}
	none := reason.SignIn("no workload signs in with this token").
		WithHint("curfew admin workload ls shows issuers, subjects and claims; the audience is %s",
			s.c.Audience)
	issuer, err := s.c.Pipelines.Peek(l.Token)
	if err != nil {
		return Session{}, reason.Invalid("the token cannot be read: %v", err)
	}
	// Only an issuer that an admin named is ever asked for its keys.
	known, err := s.workloads(ctx, func(w *Workload) bool {
		return w.Issuer == issuer && (l.User == "" || l.User == w.Name)
	})
	if err != nil {
		return Session{}, err
	}
	if len(known) == 0 {
		return Session{}, none
	}
	token, err := s.c.Pipelines.Verify(ctx, issuer, l.Token, s.c.Audience, b.Audience(s.c.Audience))
	if err != nil {
		return Session{}, s.outage(err)
	}
	session := s.newSession(b.Session, MethodWorkload, l.Device, l.Address)
	session.Expires = session.Created.Add(min(s.c.WorkloadTTL, s.c.SessionTTL))
	session.Claims = token.Claims
	var refused error
	err = s.c.Store.Update(ctx, func(tx Tx) (err error) {
		refused, err = s.admitWorkload(tx, l.User, token, &session, none)
		return err
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return Session{}, err
	}
	s.c.Log.Info("signed in", "workload", session.User, "subject", token.Subject)
	return session, nil
}

func (s *Service) admitWorkload(
	tx Tx, name string, token WorkloadToken, session *Session, none error,
) (refused, err error) {
	all, err := tx.Workloads()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(w Workload) bool {
		return !w.matches(token) || name != "" && w.Name != name
	})
	switch {
	case len(all) == 0:
		s.c.Log.Warn("a workload's token matches nothing", "issuer", token.Issuer,
			"subject", grant.VisibleText(token.Subject))
		return none, nil
	case len(all) > 1:
		return reason.Invalid("the token is of workloads %s and %s", all[0].Name, all[1].Name).
			WithHint("say which: --user NAME"), nil
	}
	user, err := tx.User(all[0].Name)
	if err != nil {
		return nil, err
	}
	why := ""
	if user.Disabled || user.Kind != KindWorkload {
		why = "the workload is disabled"
	} else if fresh, err := tx.SpendToken(token.Once, token.Expires); err != nil {
		return nil, err
	} else if !fresh {
		why = "the token was used before"
	}
	if why != "" {
		return reason.SignIn("sign-in refused: %s", why).
				WithHint("get a new token from the pipeline; each is good for one sign-in"),
			tx.Append(trail.Record{
				TimeMS: session.Created.UnixMilli(), Kind: KindNotSigned, Actor: user.Name,
				Details: map[string]string{
					"method": string(MethodWorkload), "why": why,
					"subject": grant.VisibleText(token.Subject),
				},
			})
	}
	session.User = user.Name
	return s.open(tx, *session, map[string]string{
		"subject": grant.VisibleText(token.Subject), "issuer": token.Issuer,
	})
}

func (s *Service) workloads(ctx context.Context, which func(*Workload) bool) (
	out []Workload, err error,
) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		out, err = tx.Workloads()
		return err
	})
	return slices.DeleteFunc(out, func(w Workload) bool { return !which(&w) }), err
}

// Workloads lists all, with the users that they are.
func (s *Service) Workloads(ctx context.Context) (out []Workload, users map[string]User, err error) {
	users = make(map[string]User)
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		if out, err = tx.Workloads(); err != nil {
			return err
		}
		for _, w := range out {
			if users[w.Name], err = tx.User(w.Name); err != nil {
				return err
			}
		}
		return nil
	})
	return out, users, err
}

// PutWorkload creates a workload and its user, or replaces what its tokens must say; then the
// sessions that the old ones opened end.
func (s *Service) PutWorkload(ctx context.Context, by string, w Workload) (is User, err error) {
	if err := w.Check(); err != nil {
		return is, reason.Invalid("workload %s: %v", grant.VisibleText(w.Name), err)
	}
	return is, s.c.Store.Update(ctx, func(tx Tx) error {
		was, err := tx.User(w.Name)
		switch {
		case errors.Is(err, ErrNone):
			is, err = s.putUser(tx, by, User{}, User{
				Name: w.Name, Kind: KindWorkload, Source: SourceLocal,
			})
			if err != nil {
				return err
			}
		case err != nil:
			return err
		case was.Kind != KindWorkload:
			return reason.Conflict("%s is a person", w.Name).WithHint("give the workload another name")
		default:
			is = was
		}
		if err := s.endWorkload(tx, w.Name); err != nil {
			return err
		}
		details := map[string]string{"workload": w.Name, "issuer": w.Issuer, "subject": w.Subject}
		for _, name := range slices.Sorted(maps.Keys(w.Claims)) {
			details["claim "+grant.VisibleText(name)] = grant.VisibleText(w.Claims[name])
		}
		return errors.Join(tx.PutWorkload(w), s.note(tx, by, KindWorkloadPut, details))
	})
}

// endWorkload drops a workload's sessions: they rest on tokens that may match no longer.
func (s *Service) endWorkload(tx Tx, name string) error {
	sessions, err := tx.SessionsOf(name)
	for _, session := range sessions {
		err = errors.Join(err, tx.DeleteSession(session.Key))
	}
	return err
}

// DeleteWorkload takes a workload's sign-in, in the caller's transaction; its user stays, disabled.
// Ending what it has is package access's.
func (s *Service) DeleteWorkload(tx Tx, by, name string) error {
	if _, err := tx.Workload(name); errors.Is(err, ErrNone) {
		return reason.NotFound("there is no workload %s", grant.VisibleText(name))
	} else if err != nil {
		return err
	}
	return errors.Join(tx.DeleteWorkload(name), s.endWorkload(tx, name),
		s.note(tx, by, KindWorkloadDeleted, map[string]string{"workload": name}))
}
