package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/trail"
)

// Kinds of trail records about links with a provider.
const (
	KindLinked   = "user.linked"
	KindUnlinked = "user.unlinked"
)

const maxGroupsTaken = 200

// OIDCLogin is what the CLI sends after the browser came back.
type OIDCLogin struct {
	Challenge, SessionKey    []byte
	Code, Verifier, Redirect string
	Device, Address          string
}

// Methods is how the CLI may sign in; ok is false without a provider.
func (s *Service) Methods(ctx context.Context) (m OIDCMethod, ok bool, err error) {
	if s.c.Federation.Provider == nil {
		return m, false, nil
	}
	m, err = s.c.Federation.Provider.Method(ctx)
	return m, true, s.outage(err)
}

// outage words what a provider did not answer; refusals get their own words.
func (s *Service) outage(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := reason.Of(err); ok {
		return err
	}
	if errors.Is(err, ErrRefused) || errors.Is(err, ErrGone) {
		s.c.Log.Warn("sign-in refused", "error", err)
		return reason.SignIn("%v", err).WithHint("sign in again")
	}
	s.c.Log.Error("the identity provider does not answer", "error", err)
	return reason.Conflict("the identity provider does not answer as it should; nothing was changed").
		WithHint("try again; an admin sees why in the journal of curfew-controlplane. " +
			"With an SSH key of yours: curfew login --key FILE")
}

func (s *Service) noProvider() error {
	return reason.Invalid("this control plane has no identity provider").
		WithHint("sign in with an SSH key: curfew login")
}

// spend takes a challenge out of the store and checks what every sign-in brings along.
func (s *Service) spend(ctx context.Context, challenge, sessionKey []byte) (signin.Binding, error) {
	b := signin.Binding{Challenge: challenge, Session: sessionKey, CA: s.c.CA}
	if len(challenge) != ChallengeSize || len(sessionKey) != ed25519.PublicKeySize {
		return b, reason.Invalid("challenge or session key has the wrong length")
	}
	var fresh bool
	err := s.c.Store.Update(ctx, func(tx Tx) (err error) {
		fresh, err = tx.TakeChallenge(sha256.Sum256(challenge), s.c.Now())
		return err
	})
	if err == nil && !fresh {
		err = reason.SignIn("the challenge was used before or is older than %s", ChallengeLife).
			WithHint("sign in again")
	}
	return b, err
}

// LoginOIDC turns an authorization code into a session. The challenge is spent whether or not it
// succeeds.
func (s *Service) LoginOIDC(ctx context.Context, l OIDCLogin) (Session, error) {
	if s.c.Federation.Provider == nil {
		return Session{}, s.noProvider()
	}
	if err := checkLoopback(l.Redirect); err != nil {
		return Session{}, reason.Invalid("%v", err)
	}
	b, err := s.spend(ctx, l.Challenge, l.SessionKey)
	if err != nil {
		return Session{}, err
	}
	p, err := s.c.Federation.Provider.RedeemCode(ctx, l.Code, l.Verifier, l.Redirect, b.Nonce())
	if err != nil {
		return Session{}, s.outage(err)
	}
	return s.welcome(ctx, p, s.newSession(b.Session, MethodOIDC, l.Device, l.Address))
}

// checkLoopback refuses a redirect that could carry a code off the person's device.
func checkLoopback(raw string) error {
	u, err := url.Parse(raw)
	if err == nil {
		ip := net.ParseIP(u.Hostname())
		if u.Scheme == "http" && ip != nil && ip.IsLoopback() && u.User == nil {
			return nil
		}
	}
	return errors.New("the redirect is not to a loopback address")
}

func (s *Service) newSession(
	pub ed25519.PublicKey, method Method, device, address string,
) Session {
	now := s.c.Now()
	return Session{
		Key: SessionKey(pub), Method: method, Device: deviceName(device), Address: address,
		Created: now, Expires: now.Add(s.c.SessionTTL), Used: now, UsedFrom: address,
	}
}

// welcome opens a session for whom a proof names.
func (s *Service) welcome(ctx context.Context, p Proof, session Session) (Session, error) {
	if s.rechecks() && p.Refresh == "" {
		return Session{}, reason.SignIn("the identity provider gave no refresh token, so nobody would " +
			"notice when it disables you").WithHint("an admin adds offline_access to oidc.scopes, or " +
			"sets oidc.deprovision_after to 0s where SCIM sees to it")
	}
	var refused error
	err := s.c.Store.Update(ctx, func(tx Tx) (err error) {
		refused, err = s.admitProof(tx, p, &session)
		return err
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return Session{}, err
	}
	s.c.Log.Info("signed in", "user", session.User, "method", session.Method,
		"until", session.Expires.UTC())
	return session, nil
}

// rechecks says whether linked users are asked about.
func (s *Service) rechecks() bool {
	return s.c.Federation.Provider != nil && s.c.Federation.DeprovisionAfter > 0
}

// admitProof finds or makes the user of a proof, takes over what the provider says of them and opens
// the session. A refusal of somebody who is known is put on the trail.
func (s *Service) admitProof(tx Tx, p Proof, session *Session) (refused, err error) {
	user, link, err := s.linked(tx, p)
	if _, ok := reason.Of(err); ok {
		s.c.Log.Warn("sign-in refused", "issuer", p.Issuer, "subject", p.Subject, "error", err)
		if user.Name == "" {
			return err, nil
		}
		return err, tx.Append(trail.Record{
			TimeMS: session.Created.UnixMilli(), Kind: KindNotSigned, Actor: user.Name,
			Details: map[string]string{
				"method": string(session.Method), "subject": grant.VisibleText(p.Subject),
				"why": err.Error(),
			},
		})
	}
	if err != nil {
		return nil, err
	}
	if err := s.take(tx, user, p); err != nil {
		return nil, err
	}
	if err := s.keepLink(tx, link, p); err != nil {
		return nil, err
	}
	session.User = user.Name
	return s.open(tx, *session, map[string]string{"subject": grant.VisibleText(p.Subject)})
}

// linked is the user of a proof: by its link, or by a link that is made now.
func (s *Service) linked(tx Tx, p Proof) (User, Link, error) {
	link, err := tx.Link(p.Issuer, p.Subject)
	switch {
	case errors.Is(err, ErrNone):
		user, err := s.claimed(tx, p)
		return user, Link{Issuer: p.Issuer, Subject: p.Subject, User: user.Name}, err
	case err != nil:
		return User{}, link, err
	}
	user, err := tx.User(link.User)
	if err != nil {
		return User{}, link, err
	}
	if user.Disabled && user.DisabledBy != SourceOIDC {
		return user, link, reason.SignIn("user %s is disabled by %s", user.Name, user.DisabledBy).
			WithHint("ask an admin")
	}
	return user, link, nil
}

// claimed is the user whose name a proof claims that has no link yet. Nobody gets hold of a user who
// was there before, but for those whom the same organisation's SCIM put there.
func (s *Service) claimed(tx Tx, p Proof) (User, error) {
	if p.NameUnverified {
		return User{}, reason.SignIn("the identity provider has not verified the address %s",
			grant.VisibleText(p.Name)).WithHint("verify it there")
	}
	name, err := s.c.Federation.Names.Map(p.Name)
	if err != nil {
		return User{}, reason.SignIn("the identity provider's name for you is no login name here: %v",
			err).WithHint("an admin sees to oidc.claims.user and login_names")
	}
	user, err := tx.User(name)
	if errors.Is(err, ErrNone) {
		if !s.c.Federation.CreateUsers {
			return User{}, reason.SignIn("there is no user %s", name).
				WithHint("an admin adds you: curfew admin user add %s --subject %s", name,
					grant.VisibleText(p.Subject))
		}
		user, err := s.putUser(tx, Actor, User{}, User{
			Name: name, Kind: KindPerson, Source: SourceOIDC,
		})
		return user, err
	}
	if err != nil {
		return user, err
	}
	other, err := tx.LinkOf(name, p.Issuer)
	if err != nil && !errors.Is(err, ErrNone) {
		return user, err
	}
	switch {
	case err == nil:
		s.c.Log.Warn("two subjects claim one name", "user", name, "linked", other.Subject,
			"claims", p.Subject)
		return user, reason.SignIn("user %s is another person at the identity provider", name).
			WithHint("ask an admin")
	case user.Disabled:
		return user, reason.SignIn("user %s is disabled by %s", name, user.DisabledBy).
			WithHint("ask an admin")
	case user.Source != SourceSCIM || user.Kind != KindPerson:
		return user, reason.SignIn("user %s was here before this sign-in and is not linked to it", name).
			WithHint("an admin links them: curfew admin user link %s --subject %s", name,
				grant.VisibleText(p.Subject))
	}
	return user, nil
}

// take writes what the provider says of a user: address and manager where the provider keeps them,
// groups that are the provider's, and that it vouches for them again.
func (s *Service) take(tx Tx, user User, p Proof) error {
	is := user
	if is.DisabledBy == SourceOIDC {
		is.Disabled, is.DisabledBy = false, ""
	}
	if is.Source == SourceOIDC {
		if CheckEmail(p.Email) == nil {
			is.Email = p.Email
		}
		if p.HasManager {
			is.Manager = s.managerName(p.Manager)
		}
	}
	changed := is.Email != user.Email || is.Manager != user.Manager || is.Disabled != user.Disabled
	if changed {
		var err error
		if is, err = s.putUser(tx, string(SourceOIDC), user, is); err != nil {
			return err
		}
	}
	if p.HasGroups {
		regrouped, err := s.regroup(tx, is, SourceOIDC, p.Groups)
		if err != nil {
			return err
		}
		changed = changed || regrouped
	}
	if !changed {
		return nil
	}
	return s.refreshTrust(tx, string(SourceOIDC))
}

// managerName is the manager's login name; empty when the claim gives none that could be one.
func (s *Service) managerName(raw string) string {
	if raw == "" {
		return ""
	}
	name, err := s.c.Federation.Names.Map(raw)
	if err != nil {
		s.c.Log.Warn("a manager's name is no login name", "error", err)
		return ""
	}
	return name
}

// regroup makes the user a member of exactly those groups of a source that the provider names. A
// group that is kept by hand, or by another source, is not the provider's to fill.
func (s *Service) regroup(tx Tx, u User, source Source, claimed []string) (changed bool, err error) {
	want := make(map[string]bool)
	for _, raw := range claimed[:min(len(claimed), maxGroupsTaken)] {
		name, ok := strings.CutPrefix(raw, s.c.Federation.GroupPrefix)
		if ok && grant.CheckGroupName(name) == nil {
			want[name] = true
		}
	}
	groups, err := tx.Groups()
	if err != nil {
		return false, err
	}
	for _, g := range groups {
		if g.Source != source {
			if want[g.Name] && !slices.Contains(g.Members, u.Name) {
				s.c.Log.Warn("a group is kept here, the provider's word does not count", "group", g.Name,
					"user", u.Name)
			}
			delete(want, g.Name)
			continue
		}
		is := slices.Contains(g.Members, u.Name)
		if is == want[g.Name] {
			delete(want, g.Name)
			continue
		}
		g.Members = slices.DeleteFunc(g.Members, func(m string) bool { return m == u.Name })
		if want[g.Name] {
			g.Members = append(g.Members, u.Name)
		}
		delete(want, g.Name)
		if err := s.putGroup(tx, string(source), g); err != nil {
			return false, err
		}
		changed = true
	}
	for name := range want {
		err := s.putGroup(tx, string(source), Group{
			Name: name, Source: source, Members: []string{u.Name},
		})
		if err != nil {
			return false, err
		}
		changed = true
	}
	return changed, nil
}

// putGroup writes a group with its record; the caller refreshes the trust file.
func (s *Service) putGroup(tx Tx, by string, g Group) error {
	slices.Sort(g.Members)
	if len(g.Members) > maxMembers {
		return reason.Limit("group %s has %d members; at most %d", g.Name, len(g.Members), maxMembers)
	}
	return errors.Join(tx.PutGroup(g), s.note(tx, by, KindGroupPut, map[string]string{
		"group": g.Name, "members": strings.Join(g.Members, " "), "source": string(g.Source),
	}))
}

// keepLink stores a link with its refresh token sealed, and a record when it is new.
func (s *Service) keepLink(tx Tx, l Link, p Proof) error {
	isNew := l.Checked.IsZero() && l.Refresh == nil
	if p.Refresh != "" && s.rechecks() {
		sealed, err := s.c.Federation.Sealer.Seal([]byte(p.Refresh), l.about())
		if err != nil {
			return fmt.Errorf("sealing a refresh token: %w", err)
		}
		l.Refresh = sealed
	}
	l.Checked = s.c.Now()
	if err := tx.PutLink(l); err != nil || !isNew {
		return err
	}
	return s.note(tx, string(SourceOIDC), KindLinked, map[string]string{
		"user": l.User, "issuer": l.Issuer, "subject": grant.VisibleText(l.Subject),
	})
}
