package access

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Verdict says in words what a request still needs or what decided it.
func Verdict(r *request.Request) string {
	rev := r.Newest()
	var names []string
	for _, d := range rev.Decisions {
		switch {
		case d.Approved && !d.Void:
			names = append(names, d.Approver)
		case !d.Approved:
			return fmt.Sprintf("%sdenied by %s: %s", extension(rev), d.Approver,
				grant.VisibleText(d.Reason))
		}
	}
	given := ""
	if len(names) > 0 {
		given = "; approved by " + strings.Join(names, ", ")
	}
	switch rev.Outcome {
	case request.Open:
		left := max(int(rev.Needed)-len(names), 0)
		return fmt.Sprintf("%sneeds %d more of %s from group %s%s", extension(rev), left,
			count(rev.Needed), rev.Group, given)
	case request.OutWithdraw:
		return extension(rev) + "withdrawn"
	case request.OutLapsed:
		return extension(rev) + "lapsed: nobody decided in time" + given
	case request.OutVoid:
		return extension(rev) + "void: the grant ended first" + given
	}
	return fmt.Sprintf("%s%s of group %s%s", extension(rev), count(rev.Needed), rev.Group, given)
}

func count(k uint32) string {
	if k == 1 {
		return "1 approval"
	}
	return fmt.Sprintf("%d approvals", k)
}

func extension(rev *request.Revision) string {
	if rev.Number > 1 {
		return "extension: "
	}
	return ""
}

func hostNames(r *request.Request) []string {
	out := make([]string, 0, len(r.Hosts))
	for _, h := range r.Hosts {
		out = append(out, h.Name)
	}
	return out
}

// Notice is what approvers are told of a request's newest revision.
func Notice(r *request.Request, organisation, event, by string) Message {
	rev := r.Newest()
	m := Message{
		ID:    fmt.Sprintf("%s.%d.%s", r.ID, rev.Number, event),
		Event: event, Organisation: organisation, AtMS: r.Changed.UnixMilli(), RequestID: r.ID,
		Revision: rev.Number, Requester: r.Requester, Role: r.Role, RootEquivalent: r.RootEquivalent,
		Hosts: hostNames(r), DurationMS: rev.Duration.Milliseconds(),
		Reason: grant.VisibleText(rev.Reason), LapsesMS: rev.Lapses.UnixMilli(), By: by,
	}
	what := "asks for"
	if rev.Number > 1 {
		what = "asks to extend"
	}
	m.Text = fmt.Sprintf("%s %s role %s on %s for %s: %s", r.Requester, what, r.Role,
		strings.Join(m.Hosts, ", "), rev.Duration, m.Reason)
	if rev.Outcome == request.Open {
		m.Command = "curfew approve " + r.ID
	} else {
		m.Text = fmt.Sprintf("request %s of %s is %s", r.ID, r.Requester, r.State)
	}
	return m
}

// asked is the trail's record of a new revision.
func (s *Service) asked(r *request.Request, kind string) trail.Record {
	rev := r.Newest()
	digest := grant.TermsDigest(rev.Terms)
	return trail.Record{
		TimeMS: rev.Created.UnixMilli(), Kind: kind, Actor: r.Requester, RequestID: r.ID,
		Details: map[string]string{
			"role": r.Role, "hosts": strings.Join(hostNames(r), " "),
			"duration": rev.Duration.String(), "reason": grant.VisibleText(rev.Reason),
			"revision": fmt.Sprint(rev.Number), "terms_digest": hex.EncodeToString(digest[:]),
			"needs": fmt.Sprintf("%s of group %s", count(rev.Needed), rev.Group),
		},
	}
}

func noteOn(r *request.Request, kind, actor string, at time.Time, details map[string]string) trail.Record {
	return trail.Record{
		TimeMS: at.UnixMilli(), Kind: kind, Actor: actor, RequestID: r.ID, Details: details,
	}
}

// EndedRecord is the trail's record of a request whose grants are over.
func EndedRecord(r *request.Request, why string, at time.Time) trail.Record {
	actor := r.EndedBy
	if actor == "" {
		actor = Actor
	}
	details := map[string]string{"cause": CauseWord(r.Cause)}
	if why != "" {
		details["reason"] = grant.VisibleText(why)
	}
	return noteOn(r, KindEnded, actor, at, details)
}

// CauseWord is an end's cause in one word: expired, revoked, done, extended, withdrawn.
func CauseWord(c curfewv1.EndCause) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "END_CAUSE_"))
}
