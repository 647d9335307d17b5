package grant

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Ceiling is what the host's own file permits, whatever anybody signed. The zero value permits
// nothing but logins without groups up to MaxDuration of zero: fill it from agent.yaml.
type Ceiling struct {
	MaxDuration    time.Duration
	AllowedGroups  []string
	RootEquivalent bool
	// Standing says which grants standing rules may open here.
	Standing StandingCeiling
	// Local is what break-glass codes may open.
	Local LocalCeiling
}

// StandingCeiling is how far a host follows standing rules. The zero value follows none.
type StandingCeiling uint8

// What standing rules may open: nothing, what is contained, or what is root-equivalent as well.
const (
	StandingNone StandingCeiling = iota
	StandingContained
	StandingAny
)

// Refusals of otherwise well-signed objects.
var (
	ErrWrongHost  = errors.New("for another host")
	ErrOld        = errors.New("older than what this host has accepted")
	ErrTombstoned = errors.New("the grant has ended; an approval cannot be spent twice")
	ErrWindow     = errors.New("outside of the time in which it may start")
	ErrCeiling    = errors.New("over this host's ceiling")
	ErrFull       = errors.New("the host holds as many grants as it can")
)

// AcceptTrust takes a newer trust file. Grants already held stay: ending them is the state's word.
func (l *Ledger) AcceptTrust(env []byte) error {
	next, err := OpenTrust(env, l.trust)
	if err != nil {
		return err
	}
	l.trust, l.data.Trust = next, slices.Clone(env)
	return nil
}

// TrustVersion returns the version of the trust file in force.
func (l *Ledger) TrustVersion() uint64 { return l.trust.Version }

// AcceptGrant verifies a sealed grant and holds it. Its window opens when a host state lists it. A
// known grant is a no-op. The checks run in the order of PROTOCOL.md section 1.
func (l *Ledger) AcceptGrant(env []byte, now Clock, c Ceiling) (ID, error) {
	l.observe(now)
	g, terms, err := OpenGrant(env, l.trust.Issuers())
	if err != nil {
		return ID{}, err
	}
	id := IDOfWindow(g.GetTerms(), HostID(g.GetHostId()), g.GetWindow())
	if _, known := l.held[id]; known {
		return id, nil
	}
	if err := l.checkGrant(id, g, terms, now, c); err != nil {
		l.refuse(id, err)
		return id, fmt.Errorf("grant %s of request %s: %w", id.Short(), terms.GetRequestId(), err)
	}
	h, err := hold(heldData{ID: id, Envelope: slices.Clone(env)}, g, terms)
	if err != nil {
		return id, err
	}
	l.held[id] = h
	delete(l.refused, id)
	return id, nil
}

func (l *Ledger) checkGrant(
	id ID, g *curfewv1.Grant, terms *curfewv1.Terms, now Clock, c Ceiling,
) error {
	if HostID(g.GetHostId()) != l.data.HostID {
		return ErrWrongHost
	}
	if terms.GetOrganisation() != l.trust.Organisation {
		return fmt.Errorf("for organisation %q, this host belongs to %q",
			terms.GetOrganisation(), l.trust.Organisation)
	}
	if _, ended := l.data.Tombstones[id]; ended {
		return ErrTombstoned
	}
	w, err := windowOf(terms, g.GetWindow())
	if err != nil {
		return err
	}
	if err := l.mayStart(w, now); err != nil {
		return err
	}
	if err := c.Permits(terms); err != nil {
		return err
	}
	if err := l.checkAgreed(g, terms); err != nil {
		return err
	}
	if _, err := l.followed(terms, now); err != nil {
		return err
	}
	if len(l.held) >= maxHeld {
		return ErrFull
	}
	return nil
}

// checkAgreed demands the approvals that the trust file and the terms ask for, or a standing rule.
func (l *Ledger) checkAgreed(g *curfewv1.Grant, terms *curfewv1.Terms) error {
	here := []HostID{l.data.HostID}
	if terms.GetStandingRule() != "" {
		return CheckStanding(l.trust, terms, here, g.GetApprovals())
	}
	return CheckQuorum(l.trust, terms, g.GetTerms(), here, g.GetApprovals())
}

func (l *Ledger) mayStart(w window, now Clock) error {
	at := l.effective(now)
	switch {
	case at >= w.hard:
		return fmt.Errorf("%w: its hard end has passed", ErrWindow)
	case at > w.latest:
		return fmt.Errorf("%w: its latest start has passed", ErrWindow)
	case at < w.earliest-MaxClockSkew.Milliseconds():
		return fmt.Errorf("%w: its earliest start is ahead", ErrWindow)
	}
	return nil
}

// Permits returns nil, or what of the terms is over the ceiling.
func (c Ceiling) Permits(terms *curfewv1.Terms) error {
	if d := Duration(terms); d > c.MaxDuration {
		return fmt.Errorf("%w: a duration of %s; at most %s", ErrCeiling, d, c.MaxDuration)
	}
	if terms.GetRootEquivalent() && !c.RootEquivalent {
		return fmt.Errorf("%w: root-equivalent rules and groups are not allowed here", ErrCeiling)
	}
	if terms.GetStandingRule() != "" && (c.Standing == StandingNone ||
		terms.GetRootEquivalent() && c.Standing != StandingAny) {
		return fmt.Errorf("%w: a standing rule does not open this here (ceiling.standing)", ErrCeiling)
	}
	for _, g := range terms.GetGroups() {
		if !slices.Contains(c.AllowedGroups, g) {
			return fmt.Errorf("%w: group %s is not allowed here", ErrCeiling, g)
		}
	}
	return nil
}

// PermitsLive is Permits for a live grant: one that a break-glass code opened has a ceiling of its own.
func (c Ceiling) PermitsLive(l Live) error {
	if l.Local {
		return c.Local.Permits(l.Terms)
	}
	return c.Permits(l.Terms)
}

// followed returns the live grant that an extension continues; the zero ID for plain terms.
func (l *Ledger) followed(terms *curfewv1.Terms, now Clock) (ID, error) {
	if len(terms.GetFollows()) == 0 {
		return ID{}, nil
	}
	for id, h := range l.held {
		if h.local() || !bytes.Equal(h.digest[:], terms.GetFollows()) {
			continue
		}
		closed, _ := l.over(h, now)
		if h.StartMS == 0 || closed {
			continue
		}
		o := h.terms
		if o.GetRequestId() != terms.GetRequestId() || o.GetLogin() != terms.GetLogin() ||
			o.GetUid() != terms.GetUid() || o.GetRequester() != terms.GetRequester() ||
			o.GetRevision() >= terms.GetRevision() || o.GetSingleUse() != terms.GetSingleUse() ||
			len(o.GetWindows()) > 0 {
			return ID{}, errors.New("the extension is not of the same request and person")
		}
		return id, nil
	}
	return ID{}, errors.New("what the extension follows is not live on this host")
}

func (l *Ledger) refuse(id ID, err error) {
	if len(l.refused) >= maxRefused {
		clear(l.refused)
	}
	l.refused[id] = err.Error()
}

// AcceptState takes a newer complete list of live grants: it opens and ends windows accordingly. On
// error nothing changed.
func (l *Ledger) AcceptState(msg *curfewv1.State, now Clock) (Change, error) {
	l.observe(now)
	s, err := OpenState(msg.GetEnvelope(), l.trust.Issuers())
	if err != nil {
		return Change{}, err
	}
	if err := l.checkState(s, msg, now); err != nil {
		return Change{}, fmt.Errorf("host state (%d, %d): %w", s.GetEpoch(), s.GetSequence(), err)
	}
	l.data.Epoch, l.data.Sequence = s.GetEpoch(), s.GetSequence()
	l.data.TrailCount, l.data.TrailHead = s.GetTrailCount(), s.GetTrailHead()
	l.data.Listed = make([]ID, 0, len(s.GetLive()))
	for _, raw := range s.GetLive() {
		l.data.Listed = append(l.data.Listed, ID(raw))
	}
	change := Change{LeaseRenewed: l.renewLease(s, now)}
	if change.LeaseRenewed { // whoever holds states back must not choose when they switch a host
		change.Rollout = s.GetRollout()
	}
	l.expire(&change, now) // what was over before the state came has expired, whatever it says
	l.openListed(&change, now)
	l.endUnlisted(&change, s)
	l.buryUnheld(s)
	l.expire(&change, now)
	return change, nil
}

func (l *Ledger) checkState(s *curfewv1.HostState, msg *curfewv1.State, now Clock) error {
	if HostID(s.GetHostId()) != l.data.HostID {
		return ErrWrongHost
	}
	if s.GetEpoch() != l.trust.Epoch {
		return fmt.Errorf("%w: epoch %d, the trust file says %d", ErrOld, s.GetEpoch(), l.trust.Epoch)
	}
	sameEpoch := s.GetEpoch() == l.data.Epoch
	if s.GetEpoch() < l.data.Epoch || sameEpoch && s.GetSequence() <= l.data.Sequence {
		return fmt.Errorf("%w: (%d, %d)", ErrOld, l.data.Epoch, l.data.Sequence)
	}
	// The wall clock counts even when it jumped: it may just have been put right. The highest known
	// time does not, or each state could carry it five minutes further.
	clock := now.Wall.UnixMilli()
	if l.jumped {
		clock = max(clock, l.derived(now))
	}
	if ahead := s.GetIssuedAtMs() - clock; ahead > MaxClockSkew.Milliseconds() {
		return fmt.Errorf("issued %s ahead of this host's clock",
			time.Duration(ahead)*time.Millisecond)
	}
	// A new epoch is the root keys' word that the trail may start anew, after a restore.
	if !sameEpoch {
		return nil
	}
	if msg.GetProofFrom() != l.data.TrailCount && s.GetTrailCount() > l.data.TrailCount &&
		l.data.TrailCount != 0 {
		return fmt.Errorf("the trail's proof starts from %d records, this host knows %d",
			msg.GetProofFrom(), l.data.TrailCount)
	}
	return trail.CheckExtends(l.data.TrailCount, l.data.TrailHead, s.GetTrailCount(),
		s.GetTrailHead(), msg.GetProof())
}

func (l *Ledger) renewLease(s *curfewv1.HostState, now Clock) bool {
	for _, n := range l.nonces {
		if len(s.GetNonce()) == 0 || !bytes.Equal(n.nonce, s.GetNonce()) {
			continue
		}
		sinceSent := (now.Boot - n.boot).Milliseconds()
		l.confirm(s.GetIssuedAtMs(), sinceSent, now)
		next := lease{
			BootID: now.BootID, BootMS: n.boot.Milliseconds() + s.GetValidForMs(),
			WallMS: l.effective(now) - sinceSent + s.GetValidForMs(),
		}
		if l.data.Lease.BootID == now.BootID && next.BootMS < l.data.Lease.BootMS &&
			s.GetValidForMs() >= l.data.Lease.BootMS-now.Boot.Milliseconds() {
			return true // an older nonce's answer came late; the newer one stands
		}
		l.data.Lease = next
		return true
	}
	return false
}

// dropStale forgets grants that were accepted but whose window can no longer open.
func (l *Ledger) dropStale(now Clock) {
	if !l.data.Time.Confirmed {
		return
	}
	maps.DeleteFunc(l.held, func(_ ID, h held) bool {
		return !h.open() && l.effective(now) > h.window.latest
	})
	high := l.data.Time.HighMS
	maps.DeleteFunc(l.data.Tombstones, func(_ ID, t tombstone) bool { return high > t.UntilMS })
}
