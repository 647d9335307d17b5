package policy

import (
	"bytes"
	"errors"
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
var ErrChanged = errors.New("the role or the requester's SSH keys changed since this was asked")

// Terms are the exact bytes to approve for an accepted ask.
func Terms(a request.Ask, f Facts, d Draft) ([]byte, error) {
	hash, err := f.Role.Hash()
	if err != nil {
		return nil, err
	}
	latest := d.Lapses.Add(startSlack)
	t := &curfewv1.Terms{
		Version: grant.Version, Organisation: f.Trust.Organisation, RequestId: d.RequestID,
		Revision: d.Revision, Requester: a.Requester, Hosts: hostRefs(a, f), Role: a.Role,
		Login: a.Requester, Uid: f.Requester.UID, AllowLogin: f.Role.AllowLogin,
		Groups: f.Role.Groups, SudoRules: f.Role.Rules(), AuthorizedKeys: loginKeys(f),
		StartMode:       curfewv1.StartMode_START_MODE_CONFIRMATION,
		StartEarliestMs: d.Now.UnixMilli(), StartLatestMs: latest.UnixMilli(),
		DurationMs: a.Duration.Milliseconds(), HardEndMs: latest.Add(a.Duration).UnixMilli(),
		ApprovalsNeeded: f.Role.Approvals, ApproverGroup: f.Role.ApproverGroup,
		PolicyHash: hash, ReasonHash: grant.ReasonHash(a.Reason),
		RootEquivalent: f.Role.RootEquivalent(),
	}
	if d.Follows != nil {
		if err := follow(t, d); err != nil {
			return nil, err
		}
	}
	return grant.MarshalTerms(t)
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

// Unchanged says whether the terms still are what the directory would give; ErrChanged when not.
func Unchanged(raw []byte, f Facts) error {
	t, err := grant.ParseTerms(raw)
	if err != nil {
		return err
	}
	if f.Role == nil {
		return ErrChanged
	}
	hash, err := f.Role.Hash()
	if err != nil {
		return err
	}
	if !bytes.Equal(hash, t.GetPolicyHash()) || t.GetUid() != f.Requester.UID ||
		!slices.Equal(t.GetAuthorizedKeys(), loginKeys(f)) {
		return ErrChanged
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
