package grant

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Limits on terms. MaxDuration caps what any role and any host may permit.
const (
	Version       = 1
	MaxHosts      = 20
	MaxGroups     = 16
	MaxSSHKeys    = 16
	MaxApprovals  = 16
	MaxWindows    = 64
	MaxDuration   = 30 * 24 * time.Hour
	MinDuration   = time.Second
	maxAhead      = 400 * 24 * time.Hour // hard_end after start_earliest
	MaxLive       = 2048                 // live grants of one host
	MaxClockSkew  = 5 * time.Minute
	firstLoginUID = 1000
)

// MarshalTerms checks terms and returns their canonical bytes: what approvers sign.
func MarshalTerms(t *curfewv1.Terms) ([]byte, error) {
	if err := CheckTerms(t); err != nil {
		return nil, err
	}
	return canonical.Marshal(t)
}

// ParseTerms reads canonical terms and checks them.
func ParseTerms(raw []byte) (*curfewv1.Terms, error) {
	t := new(curfewv1.Terms)
	if err := unmarshalCanonical(raw, t); err != nil {
		return nil, fmt.Errorf("terms: %w", err)
	}
	if err := CheckTerms(t); err != nil {
		return nil, err
	}
	return t, nil
}

// CheckTerms accepts terms that are complete and consistent in themselves.
func CheckTerms(t *curfewv1.Terms) error {
	for _, check := range []func(*curfewv1.Terms) error{
		checkTermsNames, checkTermsHosts, checkTermsRights, checkTermsTimes, checkTermsHashes,
		checkTermsForms,
	} {
		if err := check(t); err != nil {
			return fmt.Errorf("%w: terms: %w", ErrMalformed, err)
		}
	}
	return nil
}

func checkTermsNames(t *curfewv1.Terms) error {
	if t.GetVersion() != Version {
		return fmt.Errorf("version %d, want %d", t.GetVersion(), Version)
	}
	if t.GetRevision() == 0 {
		return errors.New("revision is zero")
	}
	if t.GetLogin() == "root" || t.GetUid() < firstLoginUID || t.GetUid() > 1<<31-2 {
		return fmt.Errorf("login %q with uid %d: want a person's login and uid",
			VisibleText(t.GetLogin()), t.GetUid())
	}
	return errors.Join(
		CheckOrganisation(t.GetOrganisation()), CheckRequestID(t.GetRequestId()),
		CheckUserName(t.GetRequester()), CheckRoleName(t.GetRole()),
		CheckUserName(t.GetLogin()), checkTermsNeeds(t),
	)
}

// checkTermsNeeds: either a standing rule opens the terms, or people have to agree.
func checkTermsNeeds(t *curfewv1.Terms) error {
	if t.GetStandingRule() != "" {
		if t.GetApproverGroup() != "" || t.GetApprovalsNeeded() != 0 || len(t.GetAlsoNeeded()) != 0 {
			return errors.New("they name a standing rule and need approvals")
		}
		return CheckRoleName(t.GetStandingRule())
	}
	if t.GetEmergency() {
		return errors.New("an emergency without a standing rule for it")
	}
	for i, n := range t.GetAlsoNeeded() {
		if i > 0 && t.GetAlsoNeeded()[i-1].GetGroup() >= n.GetGroup() {
			return errors.New("needs are not sorted, or one stands twice")
		}
	}
	return CheckNeeds(NeedsOf(t))
}

func checkTermsHosts(t *curfewv1.Terms) error {
	if n := len(t.GetHosts()); n == 0 || n > MaxHosts {
		return fmt.Errorf("%d hosts: want 1 to %d", n, MaxHosts)
	}
	for i, h := range t.GetHosts() {
		if _, err := HostIDFromBytes(h.GetId()); err != nil {
			return err
		}
		if err := CheckHostName(h.GetName()); err != nil {
			return err
		}
		if i > 0 && bytes.Compare(t.GetHosts()[i-1].GetId(), h.GetId()) >= 0 {
			return errors.New("hosts are not sorted, or one stands twice")
		}
	}
	return nil
}

func checkTermsRights(t *curfewv1.Terms) error {
	if len(t.GetSudoRules()) > MaxSudoRules || len(t.GetGroups()) > MaxGroups ||
		len(t.GetAuthorizedKeys()) > MaxSSHKeys {
		return errors.New("too many sudo rules, groups or SSH keys")
	}
	if !t.GetAllowLogin() && len(t.GetSudoRules()) == 0 {
		return errors.New("they give nothing: neither login nor sudo rule")
	}
	for _, r := range t.GetSudoRules() {
		if err := CheckSudoRule(r); err != nil {
			return err
		}
	}
	if t.GetRootEquivalent() != RootEquivalent(t.GetSudoRules(), t.GetGroups()) {
		return errors.New("the root-equivalent label does not agree with the sudo rules and groups")
	}
	for i, g := range t.GetGroups() {
		if err := CheckUnixGroup(g); err != nil {
			return err
		}
		if i > 0 && t.GetGroups()[i-1] >= g {
			return errors.New("groups are not sorted, or one stands twice")
		}
	}
	for _, k := range t.GetAuthorizedKeys() {
		if err := checkCanonicalKey(k); err != nil {
			return err
		}
	}
	return nil
}

func checkTermsTimes(t *curfewv1.Terms) error {
	if m := t.GetStartMode(); m != curfewv1.StartMode_START_MODE_CONFIRMATION &&
		m != curfewv1.StartMode_START_MODE_FIRST_USE {
		return fmt.Errorf("start mode %s is not supported", m)
	}
	d := Duration(t)
	earliest, latest, hard := t.GetStartEarliestMs(), t.GetStartLatestMs(), t.GetHardEndMs()
	switch {
	case t.GetDurationMs() > MaxDuration.Milliseconds() || t.GetDurationMs() < 0 || d < MinDuration:
		return fmt.Errorf("duration of %d ms: want %s to %s", t.GetDurationMs(), MinDuration,
			MaxDuration)
	case earliest <= 0 || latest < earliest || hard <= latest:
		return errors.New("times are not in order: start earliest ≤ start latest < hard end")
	case hard-earliest > maxAhead.Milliseconds():
		return fmt.Errorf("hard end is more than %s after the earliest start", maxAhead)
	}
	return nil
}

func checkTermsHashes(t *curfewv1.Terms) error {
	for name, h := range map[string][]byte{
		"policy hash": t.GetPolicyHash(), "reason hash": t.GetReasonHash(),
	} {
		if len(h) != sha256.Size {
			return fmt.Errorf("%s has %d bytes, want %d", name, len(h), sha256.Size)
		}
	}
	if n := len(t.GetFollows()); n != 0 && n != sha256.Size {
		return fmt.Errorf("digest of the followed terms has %d bytes, want %d", n, sha256.Size)
	}
	return nil
}

// checkTermsForms demands that the forms of a grant go together.
func checkTermsForms(t *curfewv1.Terms) error {
	firstUse := t.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE
	switch {
	case t.GetSingleUse() && !t.GetAllowLogin():
		return errors.New("a single use of a login that they do not give")
	case len(t.GetWindows()) == 0:
		return nil
	case len(t.GetFollows()) > 0:
		return errors.New("terms with a list of windows extend nothing")
	case firstUse:
		return errors.New("terms with a list of windows start with each of them")
	}
	return checkWindows(t)
}

// checkWindows demands windows in order, and times that say the same as they do.
func checkWindows(t *curfewv1.Terms) error {
	w := t.GetWindows()
	if len(w) > MaxWindows {
		return fmt.Errorf("%d windows; at most %d", len(w), MaxWindows)
	}
	var longest int64
	for i, span := range w {
		length := span.GetEndMs() - span.GetStartMs()
		if span.GetStartMs() <= 0 || length < MinDuration.Milliseconds() ||
			length > MaxDuration.Milliseconds() {
			return fmt.Errorf("window %d of %d ms: want %s to %s", i+1, length, MinDuration, MaxDuration)
		}
		if i > 0 && span.GetStartMs() < w[i-1].GetEndMs() {
			return fmt.Errorf("window %d begins before the one before it ends", i+1)
		}
		longest = max(longest, length)
	}
	end := w[len(w)-1].GetEndMs()
	if t.GetDurationMs() != longest || t.GetStartEarliestMs() != w[0].GetStartMs() ||
		t.GetStartLatestMs() != end-1 || t.GetHardEndMs() != end {
		return errors.New("duration, start or hard end do not fit the windows")
	}
	return nil
}

// window is when one grant may open and how long it lasts.
type window struct {
	earliest, latest, hard int64
	// duration bounds it from its start; a window of a list lasts to its hard end.
	duration int64
}

// windowOf returns window i of terms, from 1; 0 is that of terms which have only one.
func windowOf(t *curfewv1.Terms, i uint32) (window, error) {
	n := uint32(len(t.GetWindows()))
	switch {
	case i > n || i == 0 && n > 0:
		return window{}, fmt.Errorf("window %d of terms with %d", i, n)
	case i == 0:
		return window{
			earliest: t.GetStartEarliestMs(), latest: t.GetStartLatestMs(), hard: t.GetHardEndMs(),
			duration: t.GetDurationMs(),
		}, nil
	}
	span := t.GetWindows()[i-1]
	return window{
		earliest: span.GetStartMs(), latest: span.GetEndMs() - 1, hard: span.GetEndMs(),
		duration: span.GetEndMs(),
	}, nil
}

// end is when a window that was started then is over.
func (w window) end(startMS int64) int64 { return min(startMS+w.duration, w.hard) }

// Duration of the window that the terms give.
func Duration(t *curfewv1.Terms) time.Duration {
	return time.Duration(t.GetDurationMs()) * time.Millisecond
}

// HardEnd is the moment past which no window of these terms is open.
func HardEnd(t *curfewv1.Terms) time.Time { return time.UnixMilli(t.GetHardEndMs()) }

// ReasonHash is what terms carry of a reason.
func ReasonHash(reason string) []byte {
	sum := sha256.Sum256([]byte(reason))
	return sum[:]
}

// NamesHost tells whether the terms are for this host.
func NamesHost(t *curfewv1.Terms, host HostID) bool {
	for _, h := range t.GetHosts() {
		if bytes.Equal(h.GetId(), host[:]) {
			return true
		}
	}
	return false
}

// HostsOf are the ids of the hosts that terms name.
func HostsOf(t *curfewv1.Terms) ([]HostID, error) {
	hosts := make([]HostID, 0, len(t.GetHosts()))
	for _, h := range t.GetHosts() {
		id, err := HostIDFromBytes(h.GetId())
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, id)
	}
	return hosts, nil
}

// SealGrant checks a grant and seals it with the issuer's key.
func SealGrant(g *curfewv1.Grant, key ed25519.PrivateKey) ([]byte, error) {
	if _, err := checkGrant(g); err != nil {
		return nil, err
	}
	payload, err := canonical.Marshal(g)
	if err != nil {
		return nil, fmt.Errorf("encoding a grant: %w", err)
	}
	env, err := Seal(TypeGrant, payload, key)
	if err == nil && len(env) > MaxGrant {
		err = fmt.Errorf("sealed grant of %d bytes is over the limit of %d", len(env), MaxGrant)
	}
	return env, err
}

// OpenGrant verifies a sealed grant under one of the issuers' keys and parses it with its terms. It
// does not count approvals: CheckQuorum does.
func OpenGrant(
	env []byte, issuers []ed25519.PublicKey,
) (*curfewv1.Grant, *curfewv1.Terms, error) {
	payload, err := Open(env, TypeGrant, MaxGrant, 1, issuers)
	if err != nil {
		return nil, nil, fmt.Errorf("grant: %w", err)
	}
	g := new(curfewv1.Grant)
	if err := unmarshalCanonical(payload, g); err != nil {
		return nil, nil, fmt.Errorf("grant: %w", err)
	}
	t, err := checkGrant(g)
	if err != nil {
		return nil, nil, err
	}
	return g, t, nil
}

func checkGrant(g *curfewv1.Grant) (*curfewv1.Terms, error) {
	if g.GetVersion() != Version {
		return nil, fmt.Errorf("%w: grant version %d", ErrMalformed, g.GetVersion())
	}
	host, err := HostIDFromBytes(g.GetHostId())
	if err != nil {
		return nil, fmt.Errorf("%w: grant: %w", ErrMalformed, err)
	}
	if len(g.GetApprovals()) > MaxApprovals {
		return nil, fmt.Errorf("%w: grant with %d approvals", ErrMalformed, len(g.GetApprovals()))
	}
	if g.GetIssuedAtMs() <= 0 {
		return nil, fmt.Errorf("%w: grant without time of issue", ErrMalformed)
	}
	t, err := ParseTerms(g.GetTerms())
	if err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	if !NamesHost(t, host) {
		return nil, fmt.Errorf("%w: grant for a host that its terms do not name", ErrMalformed)
	}
	if _, err := windowOf(t, g.GetWindow()); err != nil {
		return nil, fmt.Errorf("%w: grant: %w", ErrMalformed, err)
	}
	return t, nil
}
