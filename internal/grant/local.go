package grant

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/breakglass"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// LocalRole is the role of every grant that a break-glass code opens.
const LocalRole = "break-glass"

// localLatest is how long after a local grant was drawn up it may be opened.
const localLatest = time.Minute

// LocalCeiling is what the host's own file lets a break-glass code open. The zero value opens nothing.
type LocalCeiling struct {
	Enabled        bool
	MaxDuration    time.Duration
	RootEquivalent bool
	Rules          []*curfewv1.SudoRule
}

// Permits returns nil, or what of a local grant's terms is over the ceiling.
func (c LocalCeiling) Permits(terms *curfewv1.Terms) error {
	switch d := Duration(terms); {
	case !c.Enabled:
		return fmt.Errorf("%w: break-glass is not enabled here (break_glass.enabled)", ErrCeiling)
	case d > c.MaxDuration:
		return fmt.Errorf("%w: a duration of %s; a break-glass code opens at most %s", ErrCeiling, d,
			c.MaxDuration)
	case terms.GetRootEquivalent() && !c.RootEquivalent:
		return fmt.Errorf("%w: root-equivalent rules are not allowed for break-glass here", ErrCeiling)
	case len(terms.GetGroups()) > 0 || len(terms.GetAuthorizedKeys()) > 0:
		return fmt.Errorf("%w: a break-glass code gives neither groups nor keys", ErrCeiling)
	}
	for _, r := range terms.GetSudoRules() {
		if !slices.ContainsFunc(c.Rules, func(ours *curfewv1.SudoRule) bool { return proto.Equal(ours, r) }) {
			return fmt.Errorf("%w: a break-glass code does not open %s", ErrCeiling, RuleText(r))
		}
	}
	return nil
}

// Refusals of a break-glass code.
var (
	ErrNoCodes   = errors.New("this host has no break-glass codes")
	ErrWrongCode = errors.New("not one of this host's break-glass codes")
	ErrCodeSpent = errors.New("this break-glass code was used before; each is good once")
)

// codesData is the set of codes in force, as hashes.
type codesData struct {
	Set    breakglass.SetID `json:"set"`
	MadeMS int64            `json:"made_ms"`
	// Place is where the set was installed: another place holds a copy, whose codes may be spent.
	Place string     `json:"place"`
	Codes []codeData `json:"codes"`
}

type codeData struct {
	Hash breakglass.Hash `json:"hash"`
	// SpentMS is 0 until the code is used; Grant is what it opened.
	SpentMS int64 `json:"spent_ms"`
	Grant   ID    `json:"grant"`
}

// Codes is what a host knows of its break-glass codes. The zero value means that there are none.
type Codes struct {
	Set   breakglass.SetID
	Made  time.Time
	Place string
	// Spent has one entry a code, in order of their numbers, which begin with 1.
	Spent []bool
}

// Left is how many codes can still be used.
func (c Codes) Left() (n int) {
	for _, spent := range c.Spent {
		if !spent {
			n++
		}
	}
	return n
}

// Codes returns the set in force.
func (l *Ledger) Codes() Codes {
	d := l.data.Codes
	if d == nil {
		return Codes{}
	}
	c := Codes{Set: d.Set, Made: time.UnixMilli(d.MadeMS), Place: d.Place}
	for _, code := range d.Codes {
		c.Spent = append(c.Spent, code.SpentMS != 0)
	}
	return c
}

// InstallCodes puts a new set of codes in force. Those of the set before it are good for nothing from
// then on.
func (l *Ledger) InstallCodes(
	set breakglass.SetID, hashes []breakglass.Hash, place string, now Clock,
) error {
	l.observe(now)
	if len(hashes) == 0 || len(hashes) > breakglass.MaxCodes {
		return fmt.Errorf("%d break-glass codes; want 1 to %d", len(hashes), breakglass.MaxCodes)
	}
	if d := l.data.Codes; d != nil && d.Set == set {
		return errors.New("this set of break-glass codes is in force already")
	}
	d := &codesData{Set: set, MadeMS: l.effective(now), Place: place}
	for i, h := range hashes {
		if slices.Contains(hashes[:i], h) {
			return errors.New("one break-glass code stands twice")
		}
		d.Codes = append(d.Codes, codeData{Hash: h})
	}
	l.data.Codes = d
	return nil
}

// CheckCode returns the number of a code that could be spent; it changes nothing. How long it takes
// does not depend on which code is right.
func (l *Ledger) CheckCode(c breakglass.Code) (number int, err error) {
	d := l.data.Codes
	if d == nil {
		return 0, ErrNoCodes
	}
	h := breakglass.HashOf(l.data.HostID, d.Set, c)
	for i := range d.Codes {
		same := subtle.ConstantTimeCompare(d.Codes[i].Hash[:], h[:])
		number = subtle.ConstantTimeSelect(same, i+1, number)
	}
	switch {
	case number == 0:
		return 0, ErrWrongCode
	case d.Codes[number-1].SpentMS != 0:
		return 0, ErrCodeSpent
	}
	return number, nil
}

// Wish is what a local grant is to be.
type Wish struct {
	Request, Login, HostName, Reason string
	UID                              uint32
	Duration                         time.Duration
}

// DrawLocal draws up the terms of a local grant: everything that the ceiling opens, for one login. They
// can be opened (OpenLocal) within the next minute.
func (l *Ledger) DrawLocal(w Wish, now Clock, c LocalCeiling) (*curfewv1.Terms, error) {
	l.observe(now)
	at := l.effective(now)
	rules := sha256.New()
	for _, r := range c.Rules {
		raw, err := canonical.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("drawing up a local grant: %w", err)
		}
		rules.Write(raw)
	}
	t := &curfewv1.Terms{
		Version: Version, Organisation: l.trust.Organisation, RequestId: w.Request, Revision: 1,
		Requester: w.Login, Hosts: []*curfewv1.HostRef{{Id: l.data.HostID[:], Name: w.HostName}},
		Role: LocalRole, Login: w.Login, Uid: w.UID, AllowLogin: true, SudoRules: c.Rules,
		RootEquivalent: RootEquivalent(c.Rules, nil),
		StartMode:      curfewv1.StartMode_START_MODE_CONFIRMATION, StartEarliestMs: at,
		StartLatestMs: at + localLatest.Milliseconds(), DurationMs: w.Duration.Milliseconds(),
		HardEndMs:  at + (localLatest + w.Duration).Milliseconds(),
		PolicyHash: rules.Sum(nil), ReasonHash: ReasonHash(w.Reason),
		StandingRule: LocalRole, Emergency: true,
	}
	if err := CheckTerms(t); err != nil {
		return nil, err
	}
	return t, c.Permits(t)
}

// LocalID is the id of a local grant. No sealed grant's can equal it.
func LocalID(rawTerms []byte, host HostID) ID {
	digest := TermsDigest(rawTerms)
	h := sha256.New()
	h.Write([]byte("curfew local grant v1\x00"))
	h.Write(digest[:])
	h.Write(host[:])
	return ID(h.Sum(nil))
}

// OpenLocal spends a code and opens the local grant that DrawLocal drew up, in one step: whoever
// persists the ledger persists both, so no code opens twice and none is lost to a crash.
func (l *Ledger) OpenLocal(
	c breakglass.Code, terms *curfewv1.Terms, now Clock, ceiling LocalCeiling,
) (Live, error) {
	l.observe(now)
	number, err := l.CheckCode(c)
	if err != nil {
		return Live{}, err
	}
	raw, err := MarshalTerms(terms)
	if err != nil {
		return Live{}, err
	}
	if err := ceiling.Permits(terms); err != nil {
		return Live{}, err
	}
	h, err := holdLocal(heldData{ID: LocalID(raw, l.data.HostID), Terms: raw}, l.data.HostID)
	if err != nil {
		return Live{}, err
	}
	if _, ended := l.data.Tombstones[h.ID]; ended {
		return Live{}, ErrTombstoned
	}
	if err := l.mayStart(h.window, now); err != nil {
		return Live{}, err
	}
	h.StartMS = l.effective(now)
	h = l.timed(h, now)
	l.held[h.ID] = h
	codes := *l.data.Codes
	codes.Codes = slices.Clone(codes.Codes)
	codes.Codes[number-1].SpentMS, codes.Codes[number-1].Grant = h.StartMS, h.ID
	l.data.Codes = &codes
	return h.live(), nil
}

// holdLocal reads what OpenLocal persisted.
func holdLocal(h heldData, host HostID) (held, error) {
	terms, err := ParseTerms(h.Terms)
	if err != nil {
		return held{}, err
	}
	if LocalID(h.Terms, host) != h.ID || !NamesHost(terms, host) || len(terms.GetHosts()) != 1 {
		return held{}, errors.New("the id does not fit the terms and the host")
	}
	if terms.GetRole() != LocalRole || terms.GetStandingRule() != LocalRole ||
		len(terms.GetWindows()) > 0 || len(terms.GetFollows()) > 0 || h.Envelope != nil {
		return held{}, errors.New("not the terms of a local grant")
	}
	w, err := windowOf(terms, 0)
	return held{heldData: h, terms: terms, window: w, digest: TermsDigest(h.Terms)}, err
}

// local tells whether a code opened it here: no host state lists it, and none ends it in silence.
func (h held) local() bool { return h.Terms != nil }

// IsLocal tells whether a grant that is held was opened by a break-glass code.
func (l *Ledger) IsLocal(id ID) bool { return l.held[id].local() }

// liveIDs are the grants that may be live: listed by the newest state, or local. Sorted.
func (l *Ledger) liveIDs() []ID {
	var local []ID
	for id, h := range l.held {
		if h.local() {
			local = append(local, id)
		}
	}
	if len(local) == 0 {
		return l.data.Listed
	}
	ids := slices.Concat(l.data.Listed, local)
	slices.SortFunc(ids, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

// EndLocal ends a local grant before its time, at the word of somebody on the host.
func (l *Ledger) EndLocal(id ID, by string) (Change, error) {
	var change Change
	if !l.held[id].local() {
		return change, ErrNotLive
	}
	l.end(&change, id, curfewv1.EndCause_END_CAUSE_DONE, by)
	return change, nil
}

// checkCodes accepts a persisted set of codes.
func (l *Ledger) checkCodes() error {
	d := l.data.Codes
	if d == nil {
		return nil
	}
	if len(d.Codes) == 0 || len(d.Codes) > breakglass.MaxCodes || d.MadeMS <= 0 {
		return errors.New("the set of break-glass codes is out of bounds")
	}
	for i, c := range d.Codes {
		if c.SpentMS < 0 || (c.SpentMS == 0) != (c.Grant == ID{}) {
			return fmt.Errorf("break-glass code %d is neither spent nor unspent", i+1)
		}
	}
	return nil
}
