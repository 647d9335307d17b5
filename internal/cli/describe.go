package cli

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const rootLoud = "ROOT-EQUIVALENT: whoever holds this can become root and stay it"

// describeTerms says in words what terms open: everything in it is decoded from the bytes that are
// signed, but for the reason, whose hash stands in them and was checked.
func (a *app) describeTerms(r *apiv1.Request, t *curfewv1.Terms) []field {
	fields := []field{
		{"Request", text(fmt.Sprintf("%s, revision %d, at %s", t.GetRequestId(), t.GetRevision(),
			t.GetOrganisation()))},
		{"Who", styled(bold, whoText(t))},
	}
	for _, h := range t.GetHosts() {
		fields = append(fields, field{"Host", text(fmt.Sprintf("%s (%s…)", h.GetName(),
			hex.EncodeToString(h.GetId())[:12]))})
	}
	fields = append(fields, field{"Role", text(t.GetRole())})
	if t.GetRootEquivalent() {
		fields = append(fields, field{"", styled(alarm, rootLoud)})
	}
	fields = append(fields, opens(t)...)
	fields = append(fields, a.times(t)...)
	if len(t.GetFollows()) > 0 {
		fields = append(fields, field{"Extends", text(a.followed(r, t))})
	}
	digest := grant.TermsDigest(r.GetTerms())
	return append(fields,
		field{"Approvals", text(cmp.Or(grant.NeedsText(grant.NeedsOf(t)),
			"none: standing rule "+t.GetStandingRule()))},
		field{"Reason", styled(bold, r.GetReason())},
		field{"Terms", text("SHA-256 " + hex.EncodeToString(digest[:]))},
	)
}

// times says when terms open and end.
func (a *app) times(t *curfewv1.Terms) (fields []field) {
	for i, w := range t.GetWindows() {
		name := ""
		if i == 0 {
			name = "Windows"
		}
		fields = append(fields, field{name, styled(bold,
			a.when(w.GetStartMs()).text+" to "+a.when(w.GetEndMs()).text)})
	}
	if len(fields) == 0 {
		from := " from the host's confirmation"
		if t.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE {
			from = " from the first login or sudo"
		}
		fields = append(fields,
			field{"For", styled(bold, exactDuration(grant.Duration(t))+from)},
			field{"Starts", text("between " + a.when(t.GetStartEarliestMs()).text + " and " +
				a.when(t.GetStartLatestMs()).text)},
			field{"Hard end", text(a.when(t.GetHardEndMs()).text + ", whatever happens")})
	}
	if t.GetSingleUse() {
		fields = append(fields, field{"Uses", text("one login session; it ends with that")})
	}
	if t.GetEmergency() {
		fields = append(fields, field{"", styled(alarm, "EMERGENCY: opened without approval, to be reviewed")})
	}
	return fields
}

func whoText(t *curfewv1.Terms) string {
	if t.GetRequester() == t.GetLogin() {
		return fmt.Sprintf("%s (uid %d)", t.GetRequester(), t.GetUid())
	}
	return fmt.Sprintf("%s, as login %s (uid %d)", t.GetRequester(), t.GetLogin(), t.GetUid())
}

// followed says what an extension extends. The total replaces the old time and counts from the
// old start.
func (a *app) followed(r *apiv1.Request, t *curfewv1.Terms) string {
	words := "the running access of this request (terms " + hex.EncodeToString(t.GetFollows())[:12] +
		"…); the time above is the new total from its start"
	for _, g := range r.GetGrants() {
		if g.GetEndedMs() == 0 && g.GetEndMs() != 0 && g.GetRevision() < t.GetRevision() {
			return words + "; now it ends " + a.when(g.GetEndMs()).text
		}
	}
	return words
}

// opens lists what terms give, one line each.
func opens(t *curfewv1.Terms) []field {
	var fields []field
	if t.GetAllowLogin() {
		fields = append(fields, field{"Opens", text("login by ssh")})
		for _, k := range t.GetAuthorizedKeys() {
			fields = append(fields, field{"Key", text(keyText(k))})
		}
	} else {
		fields = append(fields, field{"Opens", text("no login; for somebody who is already there")})
	}
	for _, rule := range t.GetSudoRules() {
		look := plain
		if grant.RuleRootEquivalent(rule) {
			look = alarm
		}
		fields = append(fields, field{"Sudo", styled(look, ruleText(rule))})
	}
	for _, g := range t.GetGroups() {
		group := text(g)
		if grant.GroupRootEquivalent(g) {
			group = styled(alarm, g+" (root-equivalent: its members can become root)")
		}
		fields = append(fields, field{"Group", group})
	}
	return fields
}

// ruleText says a sudo rule in words.
func ruleText(r *curfewv1.SudoRule) string {
	command := r.GetCommand()
	for _, arg := range r.GetArgs() {
		command += " " + arg
	}
	var words string
	switch {
	case r.GetAll():
		return "ANY command as any user: all of root"
	case r.GetAnyArgs():
		words = fmt.Sprintf("%s with any arguments, as %s", command, r.GetRunAs())
	case len(r.GetArgs()) == 0:
		words = fmt.Sprintf("%s without arguments, as %s", command, r.GetRunAs())
	default:
		words = fmt.Sprintf("exactly %s, as %s", command, r.GetRunAs())
	}
	if grant.RuleRootEquivalent(r) {
		words += " (root-equivalent: not declared contained)"
	}
	return words
}

func keyText(line string) string {
	key, err := grant.ParseSSHKey(line)
	if err != nil {
		return line
	}
	return key.Type() + " " + ssh.FingerprintSHA256(key)
}

// describeRequest is `show`: everything that became of a request.
func (a *app) describeRequest(r *apiv1.Request, after map[string]*aftermath) []field {
	state := styled(stateStyle(r.GetState()), stateWord(r.GetState()))
	if r.GetExtensionPending() {
		state.text += ", extension pending"
	}
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_ENDED {
		for _, m := range after {
			if !m.purged && m.residue != "" {
				state = styled(alarm, state.text+" with residue")
			}
		}
		state.text += ": " + endText(r)
	}
	fields := []field{
		{"Request", text(r.GetId() + ", revision " + strconv.Itoa(int(r.GetRevision())))},
		{"State", state},
		{"Who", text(r.GetRequester())},
		{"Hosts", text(joined(r.GetHosts()))},
		{"Role", text(r.GetRole())},
		{"For", text(exactDuration(dur(r.GetDurationMs())))},
		{"Reason", text(r.GetReason())},
		{"Asked", a.when(r.GetCreatedMs())},
	}
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_PENDING {
		fields = append(fields, field{"Lapses", a.when(r.GetLapsesMs())},
			field{"Needs", text(strings.TrimPrefix(needs(r), "needs "))})
	} else if r.GetVerdict() != "" {
		fields = append(fields, field{"Verdict", text(r.GetVerdict())})
	}
	fields = append(fields, a.termsOf(r)...)
	fields = append(fields, a.reviewOf(r)...)
	for _, d := range r.GetDecisions() {
		fields = append(fields, a.decision(d))
	}
	for _, g := range r.GetGrants() {
		fields = append(fields, field{"Grant", a.grantText(g)})
		if m := after[hex.EncodeToString(g.GetGrantId())]; m != nil {
			fields = append(fields, m.describe()...)
		}
	}
	for _, s := range r.GetSessions() {
		fields = append(fields, field{"Session", a.sessionText(s)})
	}
	return fields
}

// termsOf says what the newest terms open. Of an extension that was decided, the terms are newer than
// the reason and the duration that the request shows.
func (a *app) termsOf(r *apiv1.Request) []field {
	t, err := grant.ParseTerms(r.GetTerms())
	if err == nil && t.GetRequestId() != r.GetId() {
		err = errors.New("the terms are another request's")
	}
	if err != nil {
		return []field{{"Terms", styled(alarm, err.Error())}}
	}
	var fields []field
	if t.GetRootEquivalent() {
		fields = append(fields, field{"", styled(alarm, rootLoud)})
	}
	if len(t.GetWindows()) > 0 || t.GetSingleUse() || t.GetEmergency() {
		fields = append(fields, a.times(t)...)
	} else if t.GetStartEarliestMs() > r.GetCreatedMs() && len(t.GetFollows()) == 0 {
		fields = append(fields, field{"Starts", a.when(t.GetStartEarliestMs())})
	}
	return append(fields, opens(t)...)
}

// reviewOf says what became of an emergency request afterwards.
func (a *app) reviewOf(r *apiv1.Request) []field {
	if r.GetReviewDue() {
		return []field{{"Review", styled(alarm, "due: curfew review "+r.GetId())}}
	}
	v := r.GetReview()
	if v == nil {
		return nil
	}
	found, look := "justified", plain
	if !v.GetJustified() {
		found, look = "NOT justified", alarm
	}
	return []field{{"Review", styled(look, fmt.Sprintf("%s by %s %s: %s", found, v.GetReviewer(),
		a.when(v.GetAtMs()).text, v.GetComment()))}}
}

func (a *app) decision(d *apiv1.Decision) field {
	words, label := d.GetApprover()+" "+a.when(d.GetAtMs()).text, "Approved"
	switch {
	case denial(d):
		label = "Denied"
		words += ": " + d.GetReason()
	case !d.GetApproved():
		label = "Void" // an approval that no longer counts
	}
	if d.GetRevision() > 1 {
		words += fmt.Sprintf(", revision %d", d.GetRevision())
	}
	return field{label, text(words)}
}

// denial tells a no, which always has a reason, from an approval that no longer counts.
func denial(d *apiv1.Decision) bool { return !d.GetApproved() && d.GetReason() != "" }

func (a *app) grantText(g *apiv1.HostGrant) cell {
	id := hex.EncodeToString(g.GetGrantId())
	words := fmt.Sprintf("%s %s", g.GetHostName(), id[:min(12, len(id))])
	look := plain
	switch g.GetStatus() {
	case curfewv1.GrantStatus_GRANT_STATUS_APPLIED:
		words += " applied " + a.clock(ms(g.GetStartMs()))
	case curfewv1.GrantStatus_GRANT_STATUS_FAILED, curfewv1.GrantStatus_GRANT_STATUS_REJECTED:
		look = red
		words += " " + statusWord(g.GetStatus()) + ": " + g.GetDetail()
	default:
		words += " not confirmed yet"
	}
	switch {
	case g.GetEndedMs() != 0:
		words += fmt.Sprintf("; %s %s", causeWord(g.GetEndCause()), a.when(g.GetEndedMs()).text)
		if g.GetEndedBy() != "" {
			words += " by " + g.GetEndedBy()
		}
	case g.GetEndMs() != 0:
		words += "; ends " + a.when(g.GetEndMs()).text
	}
	return styled(look, words)
}

func (a *app) sessionText(s *curfewv1.Session) cell {
	words := fmt.Sprintf("%s by %s, pid %d", s.GetLogin(), s.GetService(), s.GetPid())
	if s.GetTty() != "" {
		words += " on " + s.GetTty()
	}
	if s.GetRemoteHost() != "" {
		words += " from " + s.GetRemoteHost()
	}
	words += " since " + a.when(s.GetSinceMs()).text
	if len(s.GetCommands()) > 0 {
		words += ", runs " + strings.Join(s.GetCommands(), ", ")
	}
	return text(words)
}

func stateStyle(s apiv1.RequestState) style {
	switch s {
	case apiv1.RequestState_REQUEST_STATE_PENDING, apiv1.RequestState_REQUEST_STATE_APPROVED:
		return yellow
	case apiv1.RequestState_REQUEST_STATE_GRANTED:
		return green
	case apiv1.RequestState_REQUEST_STATE_DENIED:
		return red
	}
	return dim
}
