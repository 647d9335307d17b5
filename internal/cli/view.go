package cli

import (
	"encoding/hex"
	"reflect"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// The views are what --json prints: a contract of its own, so that a change of the wire does not
// break scripts. Times are RFC 3339 in UTC with milliseconds, or null; ids are lower-case hex.

type whoAmIView struct {
	User             string   `json:"user"`
	Organisation     string   `json:"organisation"`
	APIRoles         []string `json:"api_roles"`
	Groups           []string `json:"groups"`
	SessionExpiresAt *string  `json:"session_expires_at"`
	Server           string   `json:"server"`
	ServerVersion    string   `json:"server_version"`
}

type requestView struct {
	ID               string         `json:"id"`
	State            string         `json:"state"`
	Requester        string         `json:"requester"`
	Role             string         `json:"role"`
	Hosts            []string       `json:"hosts"`
	DurationMS       int64          `json:"duration_ms"`
	Reason           string         `json:"reason"`
	CreatedAt        *string        `json:"created_at"`
	LapsesAt         *string        `json:"lapses_at"`
	Revision         uint32         `json:"revision"`
	Verdict          string         `json:"verdict"`
	RootEquivalent   bool           `json:"root_equivalent"`
	ExtensionPending bool           `json:"extension_pending"`
	TermsSHA256      string         `json:"terms_sha256"`
	Decisions        []decisionView `json:"decisions"`
	Grants           []grantView    `json:"grants"`
	Sessions         []sessionView  `json:"sessions"`
	EndCause         string         `json:"end_cause"`
	EndedBy          string         `json:"ended_by"`
	Rule             string         `json:"rule"`
	StartsAt         *string        `json:"starts_at"`
	Windows          []windowView   `json:"windows"`
	SingleUse        bool           `json:"single_use"`
	FirstUse         bool           `json:"first_use"`
	Emergency        bool           `json:"emergency"`
	ReviewDue        bool           `json:"review_due"`
}

type windowView struct {
	Start *string `json:"start"`
	End   *string `json:"end"`
}

type decisionView struct {
	Approver string  `json:"approver"`
	Approved bool    `json:"approved"`
	Reason   string  `json:"reason"`
	At       *string `json:"at"`
	Revision uint32  `json:"revision"`
}

type grantView struct {
	GrantID     string  `json:"grant_id"`
	Host        string  `json:"host"`
	HostID      string  `json:"host_id"`
	Status      string  `json:"status"`
	Detail      string  `json:"detail"`
	ConfirmedAt *string `json:"confirmed_at"`
	StartAt     *string `json:"start_at"`
	EndAt       *string `json:"end_at"`
	EndedAt     *string `json:"ended_at"`
	EndCause    string  `json:"end_cause"`
	EndedBy     string  `json:"ended_by"`
	Revision    uint32  `json:"revision"`
	// Aftermath is empty while the grant is live, then "ended with residue", then "purged".
	Aftermath  string   `json:"aftermath"`
	Residue    string   `json:"residue"`
	Cleared    string   `json:"cleared"`
	LeftBehind []string `json:"left_behind"`
}

type sessionView struct {
	RequestID  string   `json:"request_id"`
	GrantID    string   `json:"grant_id"`
	Login      string   `json:"login"`
	Service    string   `json:"service"`
	PID        int32    `json:"pid"`
	TTY        string   `json:"tty"`
	RemoteHost string   `json:"remote_host"`
	Since      *string  `json:"since"`
	Commands   []string `json:"commands"`
}

type hostView struct {
	ID                   string            `json:"id"`
	Name                 string            `json:"name"`
	Address              string            `json:"address"`
	Labels               map[string]string `json:"labels"`
	SSHHostKeys          []string          `json:"ssh_host_keys"`
	Connected            bool              `json:"connected"`
	LastSeenAt           *string           `json:"last_seen_at"`
	Mode                 string            `json:"mode"`
	Problems             []string          `json:"problems"`
	AgentVersion         string            `json:"agent_version"`
	Refused              string            `json:"refused"`
	Epoch                uint64            `json:"epoch"`
	Sequence             uint64            `json:"sequence"`
	CertificateExpiresAt *string           `json:"certificate_expires_at"`
	LiveGrants           uint32            `json:"live_grants"`
}

type roleView struct {
	Name            string            `json:"name"`
	Description     string            `json:"description"`
	AllowLogin      bool              `json:"allow_login"`
	SudoRules       []sudoRuleView    `json:"sudo_rules"`
	Groups          []string          `json:"groups"`
	MaxDurationMS   int64             `json:"max_duration_ms"`
	ApproverGroup   string            `json:"approver_group"`
	Approvals       uint32            `json:"approvals"`
	RequesterGroups []string          `json:"requester_groups"`
	HostLabels      map[string]string `json:"host_labels"`
	RootEquivalent  bool              `json:"root_equivalent"`
}

type sudoRuleView struct {
	RunAs     string   `json:"run_as"`
	All       bool     `json:"all"`
	Command   string   `json:"command"`
	Args      []string `json:"args"`
	AnyArgs   bool     `json:"any_args"`
	Contained bool     `json:"contained"`
}

type userView struct {
	Name     string   `json:"name"`
	UID      uint32   `json:"uid"`
	Admin    bool     `json:"admin"`
	Disabled bool     `json:"disabled"`
	SSHKeys  []string `json:"ssh_keys"`
	Groups   []string `json:"groups"`

	Auditor    bool   `json:"auditor"`
	Kind       string `json:"kind"`
	Source     string `json:"source"`
	DisabledBy string `json:"disabled_by"`
	Email      string `json:"email"`
	Manager    string `json:"manager"`
}

type groupView struct {
	Name    string   `json:"name"`
	Members []string `json:"members"`
	Source  string   `json:"source"`
}

type recordView struct {
	Number    uint64            `json:"number"`
	At        *string           `json:"at"`
	Kind      string            `json:"kind"`
	Actor     string            `json:"actor"`
	RequestID string            `json:"request_id"`
	GrantID   string            `json:"grant_id"`
	Host      string            `json:"host"`
	HostID    string            `json:"host_id"`
	Details   map[string]string `json:"details"`
}

// jsonHelp lists a view's fields, for the help of the command that prints it.
func jsonHelp(view any) string {
	var names []string
	t := reflect.TypeOf(view)
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("json")
		if inner := t.Field(i).Type; inner.Kind() == reflect.Slice &&
			inner.Elem().Kind() == reflect.Struct {
			name += "[{" + strings.Join(jsonNames(inner.Elem()), ", ") + "}]"
		}
		names = append(names, name)
	}
	return "JSON fields: " + strings.Join(names, ", ") + "."
}

func jsonNames(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("json")
	}
	return names
}

func moment(unixMS int64) *string {
	if unixMS == 0 {
		return nil
	}
	s := ms(unixMS).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	return &s
}

// list keeps [] where a nil slice would print null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func labels(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func each[F, T any](from []F, view func(F) T) []T {
	out := make([]T, len(from))
	for i, f := range from {
		out[i] = view(f)
	}
	return out
}

// enumWord turns REQUEST_STATE_PENDING into "pending"; unspecified is the empty string.
func enumWord(full, prefix string) string {
	word := strings.ToLower(strings.TrimPrefix(full, prefix))
	if word == "unspecified" {
		return ""
	}
	return word
}

func stateWord(s apiv1.RequestState) string { return enumWord(s.String(), "REQUEST_STATE_") }

func statusWord(s curfewv1.GrantStatus) string { return enumWord(s.String(), "GRANT_STATUS_") }

func causeWord(c curfewv1.EndCause) string { return enumWord(c.String(), "END_CAUSE_") }

func viewWhoAmI(cfg *config, me *apiv1.WhoAmIResponse) whoAmIView {
	return whoAmIView{
		User: me.GetUser(), Organisation: me.GetOrganisation(), APIRoles: list(me.GetApiRoles()),
		Groups: list(me.GetGroups()), SessionExpiresAt: moment(me.GetSessionExpiresMs()),
		Server: cfg.Server, ServerVersion: me.GetVersion(),
	}
}

func viewRequest(r *apiv1.Request) requestView {
	v := requestView{
		ID: r.GetId(), State: stateWord(r.GetState()), Requester: r.GetRequester(),
		Role: r.GetRole(), Hosts: list(r.GetHosts()), DurationMS: r.GetDurationMs(),
		Reason: r.GetReason(), CreatedAt: moment(r.GetCreatedMs()), LapsesAt: moment(r.GetLapsesMs()),
		Revision: r.GetRevision(), Verdict: r.GetVerdict(), RootEquivalent: r.GetRootEquivalent(),
		ExtensionPending: r.GetExtensionPending(),
		Decisions:        each(r.GetDecisions(), viewDecision),
		Grants:           each(r.GetGrants(), viewGrant),
		Sessions:         each(r.GetSessions(), viewSession),
		EndCause:         causeWord(r.GetEndCause()), EndedBy: r.GetEndedBy(),
		Rule: r.GetRule(), StartsAt: moment(r.GetStartEarliestMs()),
		Windows: each(r.GetWindows(), func(w *curfewv1.Span) windowView {
			return windowView{Start: moment(w.GetStartMs()), End: moment(w.GetEndMs())}
		}),
		SingleUse: r.GetSingleUse(), FirstUse: r.GetFirstUse(), Emergency: r.GetEmergency(),
		ReviewDue: r.GetReviewDue(),
	}
	if len(r.GetTerms()) > 0 {
		digest := grant.TermsDigest(r.GetTerms())
		v.TermsSHA256 = hex.EncodeToString(digest[:])
	}
	return v
}

// viewRequestAfter is viewRequest with what hosts said after the end.
func viewRequestAfter(r *apiv1.Request, after map[string]*aftermath) requestView {
	v := viewRequest(r)
	for i := range v.Grants {
		m := after[v.Grants[i].GrantID]
		if m == nil {
			continue
		}
		g := &v.Grants[i]
		g.Aftermath, g.Cleared, g.LeftBehind = m.word(), m.cleared, list(m.left)
		if !m.purged {
			g.Residue = m.residue
		}
	}
	return v
}

func viewDecision(d *apiv1.Decision) decisionView {
	return decisionView{
		Approver: d.GetApprover(), Approved: d.GetApproved(), Reason: d.GetReason(),
		At: moment(d.GetAtMs()), Revision: d.GetRevision(),
	}
}

func viewGrant(g *apiv1.HostGrant) grantView {
	return grantView{
		GrantID: hex.EncodeToString(g.GetGrantId()), Host: g.GetHostName(),
		HostID: hex.EncodeToString(g.GetHostId()), Status: statusWord(g.GetStatus()),
		Detail: g.GetDetail(), ConfirmedAt: moment(g.GetConfirmedMs()),
		StartAt: moment(g.GetStartMs()), EndAt: moment(g.GetEndMs()),
		EndedAt: moment(g.GetEndedMs()), EndCause: causeWord(g.GetEndCause()),
		EndedBy: g.GetEndedBy(), Revision: g.GetRevision(), LeftBehind: []string{},
	}
}

func viewSession(s *curfewv1.Session) sessionView {
	return sessionView{
		RequestID: s.GetRequestId(), GrantID: hex.EncodeToString(s.GetGrantId()),
		Login: s.GetLogin(), Service: s.GetService(), PID: s.GetPid(), TTY: s.GetTty(),
		RemoteHost: s.GetRemoteHost(), Since: moment(s.GetSinceMs()),
		Commands: list(s.GetCommands()),
	}
}

func viewHost(h *apiv1.Host) hostView {
	return hostView{
		ID: hex.EncodeToString(h.GetId()), Name: h.GetName(), Address: h.GetAddress(),
		Labels: labels(h.GetLabels()), SSHHostKeys: list(h.GetSshHostKeys()),
		Connected: h.GetConnected(), LastSeenAt: moment(h.GetLastSeenMs()), Mode: h.GetMode(),
		Problems: list(h.GetProblems()), AgentVersion: h.GetAgentVersion(),
		Refused: h.GetRefused(), Epoch: h.GetEpoch(), Sequence: h.GetSequence(),
		CertificateExpiresAt: moment(h.GetCertificateExpiresMs()), LiveGrants: h.GetLiveGrants(),
	}
}

func viewRole(r *apiv1.Role) roleView {
	return roleView{
		Name: r.GetName(), Description: r.GetDescription(), AllowLogin: r.GetAllowLogin(),
		SudoRules: each(r.GetSudoRules(), viewSudoRule), Groups: list(r.GetGroups()),
		MaxDurationMS: r.GetMaxDurationMs(), ApproverGroup: r.GetApproverGroup(),
		Approvals: r.GetApprovals(), RequesterGroups: list(r.GetRequesterGroups()),
		HostLabels: labels(r.GetHostLabels()), RootEquivalent: r.GetRootEquivalent(),
	}
}

func viewSudoRule(r *curfewv1.SudoRule) sudoRuleView {
	return sudoRuleView{
		RunAs: r.GetRunAs(), All: r.GetAll(), Command: r.GetCommand(), Args: list(r.GetArgs()),
		AnyArgs: r.GetAnyArgs(), Contained: r.GetContained(),
	}
}

func viewUser(u *apiv1.User) userView {
	return userView{
		Name: u.GetName(), UID: u.GetUid(), Admin: u.GetAdmin(), Disabled: u.GetDisabled(),
		SSHKeys: list(u.GetSshKeys()), Groups: list(u.GetGroups()), Auditor: u.GetAuditor(),
		Kind: u.GetKind(), Source: u.GetSource(), DisabledBy: u.GetDisabledBy(), Email: u.GetEmail(),
		Manager: u.GetManager(),
	}
}

func viewGroup(g *apiv1.Group) groupView {
	return groupView{Name: g.GetName(), Members: list(g.GetMembers()), Source: g.GetSource()}
}

func joined(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ", ")
}

func dur(unixMS int64) time.Duration { return time.Duration(unixMS) * time.Millisecond }
