package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// startSlack is what a host that was away has to confirm a grant that was approved at the last
// moment.
const startSlack = time.Hour

// Draft is what terms need beside the ask and the facts.
type Draft struct {
	RequestID string
	Revision  uint32
	// Now is when the terms are drawn up; nothing starts before.
	Now time.Time
	// Lapses is until when they can be approved.
	Lapses time.Time
	// Follows are the exact terms that an extension follows; nil for a new request.
	Follows []byte
}

// ErrChanged means that the directory says something else than when the terms were drawn up.
var ErrChanged = errors.New("the role, what it needs or the requester's SSH keys changed since this " +
	"was asked")

// Terms are the exact bytes to approve for an accepted ask, or to seal at once when the verdict names
// a standing rule.
func Terms(a request.Ask, f Facts, v Verdict, d Draft) ([]byte, error) {
	earliest := d.Now
	if a.Start.After(earliest) {
		earliest = a.Start
	}
	latest := d.Lapses.Add(startSlack)
	t := &curfewv1.Terms{
		Version: grant.Version, Organisation: f.Trust.Organisation, RequestId: d.RequestID,
		Revision: d.Revision, Requester: a.Requester, Hosts: hostRefs(a, f), Role: a.Role,
		Login: a.Requester, Uid: f.Requester.UID, AllowLogin: f.Role.AllowLogin,
		Groups: f.Role.Groups, SudoRules: f.Role.Rules(), AuthorizedKeys: loginKeys(f),
		StartMode:       curfewv1.StartMode_START_MODE_CONFIRMATION,
		StartEarliestMs: earliest.UnixMilli(), StartLatestMs: latest.UnixMilli(),
		DurationMs: a.Duration.Milliseconds(), HardEndMs: latest.Add(a.Duration).UnixMilli(),
		PolicyHash: v.PolicyHash, ReasonHash: grant.ReasonHash(a.Reason),
		RootEquivalent: f.Role.RootEquivalent(), StandingRule: v.Standing, Emergency: v.Emergency,
		SingleUse: a.SingleUse,
	}
	if len(a.Windows) > 0 {
		windows(t, a)
	} else if v.FirstUse {
		t.StartMode = curfewv1.StartMode_START_MODE_FIRST_USE
	}
	for i, n := range v.Needs {
		if i == 0 {
			t.ApproverGroup, t.ApprovalsNeeded = n.Group, n.Approvals
		} else {
			t.AlsoNeeded = append(t.AlsoNeeded, &curfewv1.Need{Group: n.Group, Approvals: n.Approvals})
		}
	}
	if d.Follows != nil {
		if err := follow(t, d); err != nil {
			return nil, err
		}
	}
	return grant.MarshalTerms(t)
}

// windows makes terms of a list of windows: each becomes a grant of its own (PROTOCOL.md section 1).
func windows(t *curfewv1.Terms, a request.Ask) {
	for _, w := range a.Windows {
		t.Windows = append(t.Windows, &curfewv1.Span{
			StartMs: w.Start.UnixMilli(), EndMs: w.End.UnixMilli(),
		})
	}
	end := a.Windows[len(a.Windows)-1].End.UnixMilli()
	t.DurationMs, t.StartEarliestMs = a.Longest().Milliseconds(), a.Windows[0].Start.UnixMilli()
	t.StartLatestMs, t.HardEndMs = end-1, end
}

// follow ties an extension to the terms in force. The hard end moves by what the duration gains, so
// that a host that has started the window can always give the whole new duration.
func follow(t *curfewv1.Terms, d Draft) error {
	old, err := grant.ParseTerms(d.Follows)
	if err != nil {
		return err
	}
	digest := grant.TermsDigest(d.Follows)
	t.Follows = digest[:]
	t.Hosts = old.GetHosts()
	t.HardEndMs = old.GetHardEndMs() + t.GetDurationMs() - old.GetDurationMs()
	t.StartLatestMs = min(t.GetStartLatestMs(), t.GetHardEndMs()-1)
	return nil
}

// Unchanged says whether terms that wait still are good: they give what the verdict of now would give,
// to the same person, and need at least as much. ErrChanged when not.
func Unchanged(raw []byte, a request.Ask, f Facts, v Verdict) error {
	t, err := grant.ParseTerms(raw)
	if err != nil {
		return err
	}
	if f.Role == nil {
		return ErrChanged
	}
	now := standingTerms(&a, &f, v)
	was, errWas := grant.RightsDigest(t)
	is, errIs := grant.RightsDigest(now)
	if err := errors.Join(errWas, errIs); err != nil {
		return err
	}
	if was != is || t.GetUid() != now.GetUid() ||
		!slices.Equal(t.GetAuthorizedKeys(), now.GetAuthorizedKeys()) {
		return ErrChanged
	}
	needs := grant.NeedsOf(t)
	if v.Standing == "" && !grant.Covers(needs, v.Needs) {
		return fmt.Errorf("%w: it now needs %s", ErrChanged, grant.NeedsText(v.Needs))
	}
	hosts, err := grant.HostsOf(t)
	if err != nil {
		return err
	}
	if err := grant.CheckFloor(f.Trust, t.GetRole(), needs, hosts); err != nil {
		return fmt.Errorf("%w: hosts would not take it any more: %w", ErrChanged, err)
	}
	if missing := grant.Missing(needs, a.Requester, f.approvers(&a, needs)); len(missing) > 0 {
		return fmt.Errorf("%w: nobody can give %s any more", ErrChanged, grant.NeedsText(missing))
	}
	return nil
}

func loginKeys(f Facts) []string {
	if !f.Role.AllowLogin {
		return nil
	}
	return f.Requester.SSHKeys
}

func hostRefs(a request.Ask, f Facts) []*curfewv1.HostRef {
	refs := make([]*curfewv1.HostRef, 0, len(a.Hosts))
	for _, name := range a.Hosts {
		id := f.Hosts[name].ID
		refs = append(refs, &curfewv1.HostRef{Id: id[:], Name: name})
	}
	slices.SortFunc(refs, func(x, y *curfewv1.HostRef) int { return bytes.Compare(x.Id, y.Id) })
	return refs
}
