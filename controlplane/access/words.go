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
			return fmt.Sprintf("%sdenied by %s: %s", extension(r, rev), d.Approver,
				grant.VisibleText(d.Reason))
		}
	}
	given := ""
	if len(names) > 0 {
		given = "; approved by " + strings.Join(names, ", ")
	}
	switch rev.Outcome {
	case request.Open:
		return fmt.Sprintf("%sneeds %s%s%s", extension(r, rev), leftText(r, rev), given, by(rev))
	case request.OutWithdraw:
		return extension(r, rev) + "withdrawn"
	case request.OutLapsed:
		return extension(r, rev) + "lapsed: nobody decided in time" + given
	case request.OutVoid:
		return extension(r, rev) + "void: the grant ended first" + given
	}
	if rev.Standing != "" {
		return fmt.Sprintf("%sapproved by the policy%s", extension(r, rev), by(rev))
	}
	return fmt.Sprintf("%s%s%s%s", extension(r, rev), grant.NeedsText(rev.Needs), given, by(rev))
}

// by names the rule that decided, when a policy file did.
func by(rev *request.Revision) string {
	if rev.Rule == "" {
		return ""
	}
	return fmt.Sprintf(" (rule %s)", rev.Rule)
}

// leftText says what is still needed, and of how much.
func leftText(r *request.Request, rev *request.Revision) string {
	var parts []string
	for _, n := range rev.Left(r.Requester) {
		all := n
		for _, need := range rev.Needs {
			if need.Group == n.Group {
				all = need
			}
		}
		if n.Group == grant.GroupManager {
			parts = append(parts, n.String())
			continue
		}
		parts = append(parts, fmt.Sprintf("%d more of %s", n.Approvals, all))
	}
	if len(parts) == 0 {
		return "nothing more"
	}
	return strings.Join(parts, " and ")
}

func extension(r *request.Request, rev *request.Revision) string {
	if r.Extends(rev) {
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
	if r.Extends(rev) {
		what = "asks to extend"
	}
	role := "role " + r.Role
	if r.RootEquivalent {
		role = "ROOT-EQUIVALENT role " + r.Role
	}
	m.Text = fmt.Sprintf("%s %s %s on %s for %s: %s", r.Requester, what, role,
		strings.Join(m.Hosts, ", "), rev.Duration, m.Reason)
	switch {
	case rev.Outcome == request.Open:
		m.Command = "curfew approve " + r.ID
	case event == EventEmergency:
		m.Text = fmt.Sprintf("EMERGENCY, opened without approval: %s %s %s on %s for %s: %s",
			r.Requester, "has", role, strings.Join(m.Hosts, ", "), rev.Duration, m.Reason)
		m.Command = "curfew revoke " + r.ID + " --reason …; afterwards: curfew review " + r.ID
	case event == EventReviewDue:
		m.Text = fmt.Sprintf("nobody has reviewed the emergency access of %s (%s on %s): %s",
			r.Requester, role, strings.Join(m.Hosts, ", "), m.Reason)
		m.Command = "curfew review " + r.ID
	case event == EventReviewed && r.Review != nil:
		word := "justified"
		if !r.Review.Justified {
			word = "NOT justified"
		}
		m.Text = fmt.Sprintf("%s found the emergency access of %s %s: %s", by, r.Requester, word,
			grant.VisibleText(r.Review.Comment))
	default:
		m.Text = fmt.Sprintf("request %s of %s is %s", r.ID, r.Requester, r.State)
	}
	return m
}

// asked is the trail's record of a new revision.
func (s *Service) asked(r *request.Request, kind string) trail.Record {
	rev := r.Newest()
	digest := grant.TermsDigest(rev.Terms)
	record := trail.Record{
		TimeMS: rev.Created.UnixMilli(), Kind: kind, Actor: r.Requester, RequestID: r.ID,
		Details: map[string]string{
			"role": r.Role, "hosts": strings.Join(hostNames(r), " "),
			"duration": rev.Duration.String(), "reason": grant.VisibleText(rev.Reason),
			"revision": fmt.Sprint(rev.Number), "terms_digest": hex.EncodeToString(digest[:]),
			"root_equivalent": fmt.Sprint(r.RootEquivalent),
			"needs":           grant.NeedsText(rev.Needs), "policy_hash": hex.EncodeToString(rev.PolicyHash),
		},
	}
	for name, value := range map[string]string{"rule": rev.Rule, "standing_rule": rev.Standing} {
		if value != "" {
			record.Details[name] = value
		}
	}
	return record
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
