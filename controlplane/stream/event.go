package stream

import (
	"encoding/hex"
	"maps"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// knownKinds are the kinds that a host may put on the trail under their own name. Any other, a
// newer agent's or a hostile one's, is recorded as KindHostOther, so that no host can write a
// record that looks like the control plane's.
var knownKinds = map[string]bool{
	trail.KindAgentStarted: true, trail.KindAgentStopped: true, trail.KindConfigLoaded: true,
	trail.KindConfigRejected: true, trail.KindTrustAccepted: true, trail.KindTrustRejected: true,
	trail.KindStateRejected: true, trail.KindGrantAccepted: true, trail.KindGrantRejected: true,
	trail.KindGrantApplied: true, trail.KindGrantFailed: true, trail.KindGrantEnded: true,
	trail.KindGrantPurged: true, trail.KindGrantResidue: true, trail.KindLoginAllowed: true,
	trail.KindLoginDenied: true, trail.KindSudoAllowed: true, trail.KindSudoDenied: true,
	trail.KindWouldDeny: true, trail.KindSessionOpened: true, trail.KindSessionClosed: true,
	trail.KindSessionKilled: true, trail.KindDriftRepaired: true, trail.KindLeaseExpired: true,
	trail.KindLeaseRenewed: true, trail.KindClockJumped: true, trail.KindProblem: true,
	trail.KindEventsLost: true, trail.KindGrantLeft: true, trail.KindProcessKilled: true,
	trail.KindRootManager: true, trail.KindLeaseWarning: true, trail.KindBreakGlassUsed: true,
	trail.KindBreakGlassRefused: true, trail.KindBreakGlassRenewed: true,
	trail.KindModeChanged: true, trail.KindAccessSeen: true, trail.KindGrantStarted: true,
}

// lateEvent is how much older than its arrival an event must be for the record to say when it
// happened.
const lateEvent = 10 * time.Second

// eventOf makes an event's record. raw is the SignedHostMessage as it came: the record's claim can
// be checked against it.
func (c *conn) eventOf(e *curfewv1.Event, raw []byte) HostEvent {
	details := maps.Clone(e.GetDetails())
	if details == nil {
		details = make(map[string]string)
	}
	kind := e.GetKind()
	if !knownKinds[kind] {
		details["kind"] = grant.VisibleText(kind)
		kind = KindHostOther
	}
	if e.GetLogin() != "" {
		details["login"] = grant.VisibleText(e.GetLogin())
	}
	now := c.hub.now()
	if at := time.UnixMilli(e.GetTimeMs()); now.Sub(at).Abs() > lateEvent {
		details["happened"] = at.UTC().Format("2006-01-02T15:04:05.000Z")
	}
	r := c.record(kind, details)
	r.TimeMS = now.UnixMilli()
	r.HostEvent = raw
	if grant.CheckRequestID(e.GetRequestId()) == nil {
		r.RequestID = e.GetRequestId()
	}
	if len(e.GetGrantId()) == len(grant.ID{}) {
		r.GrantID = hex.EncodeToString(e.GetGrantId())
	}
	if len(details) == 0 {
		r.Details = nil
	}
	if _, err := r.Leaf(); err != nil {
		// Too long once escaped: the signed event below holds it all.
		r.Details = map[string]string{"details": "too long; see the host's event"}
	}
	return HostEvent{Event: e, Record: r, Ended: endOf(e)}
}

// endOf reads the end of a grant from its event; nil for any other event.
func endOf(e *curfewv1.Event) *GrantEnd {
	id, err := grant.IDFromBytes(e.GetGrantId())
	if e.GetKind() != trail.KindGrantEnded || err != nil {
		return nil
	}
	return &GrantEnd{
		ID: id, Cause: causeOf(e.GetDetails()["cause"]),
		By: grant.VisibleText(e.GetDetails()["by"]), At: time.UnixMilli(e.GetTimeMs()),
	}
}

// causeOf reads END_CAUSE_EXPIRED and expired alike; anything else is unspecified.
func causeOf(s string) curfewv1.EndCause {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "END_CAUSE_") {
		name = "END_CAUSE_" + name
	}
	return curfewv1.EndCause(curfewv1.EndCause_value[name])
}
