package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// useView is one thing that somebody did on hosts that observe.
type useView struct {
	Login   string   `json:"login"`
	Does    string   `json:"does"` // login, su or sudo
	As      string   `json:"as"`
	Command string   `json:"command"`
	Times   int      `json:"times"`
	Hosts   []string `json:"hosts"`
	Last    *string  `json:"last_at"`
	// Class is what Curfew has to do with the login on these hosts.
	Class string `json:"class"`
	// NeedsGrant: once the hosts enforce, this is refused without a grant.
	NeedsGrant bool `json:"needs_grant"`
	// WouldRefuse is how often that would have been, as the hosts' own gates said.
	WouldRefuse int      `json:"would_refuse"`
	Roles       []string `json:"roles"` // that would cover it on all of the hosts
}

func (a *app) reportCmd() *cobra.Command {
	since, host := "7d", ""
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Tell who uses the hosts that observe, and what enforcing would refuse",
		Long: "Tell from the trail who logged in and who used sudo on hosts that observe: how often, what " +
			"enforcing would have refused, and which roles would cover it. A host that begins to observe tells " +
			"of the seven days before, as far as its journal goes back. Admins and auditors see it.\n\n" +
			"Columns in a pipe: login, what, times, hosts, last, when enforced, times refused, roles.\n" +
			"Prints a JSON array with --json. " + jsonHelp(useView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			d, err := parseDuration(since)
			if err != nil {
				return usage("--since: %w", err)
			}
			return a.report(ctx, c, a.env.Now().Add(-d), host)
		}),
	}
	cmd.Flags().StringVar(&since, "since", since, "how far back: 12h, 30d")
	cmd.Flags().StringVar(&host, "host", "", "only of this host")
	a.completeFlag(cmd, "host", manyHosts)
	return cmd
}

func (a *app) report(ctx context.Context, c *client, since time.Time, host string) error {
	hosts, err := call(ctx, c, c.access.ListHosts, &apiv1.ListHostsRequest{})
	if err != nil {
		return err
	}
	roles, err := call(ctx, c, c.access.ListRoles, &apiv1.ListRolesRequest{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	first, err := c.firstSince(ctx, since)
	if err != nil {
		return err
	}
	r := newUseReport(since, host)
	err = c.records(ctx, &apiv1.ListRecordsRequest{From: first, All: true}, func(answer *apiv1.ListRecordsResponse) error {
		for _, leaf := range answer.GetRecords() {
			record, err := trail.ParseRecord(leaf.GetLeaf())
			if err != nil {
				return fail(exitFailed, "record %d: %w", leaf.GetNumber(), err)
			}
			r.read(record)
		}
		return nil
	})
	if err != nil {
		return err
	}
	list := r.views(hosts.GetHosts(), roles.GetRoles())
	if a.json {
		return jsonList(a.printer, list)
	}
	a.printUses(list, hosts.GetHosts())
	return nil
}

// firstSince finds the first record that is not older, by halving: the trail is in the order of time, and
// may be long.
func (c *client) firstSince(ctx context.Context, since time.Time) (uint64, error) {
	var count uint64
	at := func(n uint64) (ms int64, err error) {
		err = c.records(ctx, &apiv1.ListRecordsRequest{From: n, Limit: 1, All: true},
			func(answer *apiv1.ListRecordsResponse) error {
				count = max(count, answer.GetTrailCount())
				for _, leaf := range answer.GetRecords() {
					record, err := trail.ParseRecord(leaf.GetLeaf())
					if err != nil {
						return fail(exitFailed, "record %d: %w", leaf.GetNumber(), err)
					}
					ms = record.TimeMS
				}
				return nil
			})
		return ms, err
	}
	if ms, err := at(0); err != nil || ms >= since.UnixMilli() {
		return 0, err
	}
	low, high := uint64(0), count // the record at low is older, the one at high is not
	for high-low > 1 {
		middle := low + (high-low)/2
		ms, err := at(middle)
		if err != nil {
			return 0, err
		}
		if ms < since.UnixMilli() {
			low = middle
		} else {
			high = middle
		}
	}
	return high, nil
}

type useKey struct{ login, does, as, command string }

type used struct {
	times int
	last  int64
	hosts map[string]bool
	class map[string]bool
}

// useReport adds up what hosts said.
type useReport struct {
	since   time.Time
	host    string
	uses    map[useKey]*used
	refused map[[2]string]int // by login, and login or sudo
}

func newUseReport(since time.Time, host string) *useReport {
	return &useReport{
		since: since, host: host, uses: make(map[useKey]*used), refused: make(map[[2]string]int),
	}
}

func (r *useReport) read(record *trail.Record) {
	d := record.Details
	if r.host != "" && record.Host != r.host {
		return
	}
	switch record.Kind {
	case trail.KindWouldDeny:
		// A session that opens asks once more, and then for the user's manager.
		if d["op"] == "account" && d["service"] != "systemd-user" {
			before, _ := strconv.Atoi(d["unrecorded_before"]) // absent is none
			r.refused[[2]string{d["login"], does(d["service"])}] += 1 + before
		}
	case trail.KindAccessSeen:
		last, err := time.Parse(time.RFC3339, d["last"])
		times, errTimes := strconv.Atoi(d["count"])
		if err != nil || errTimes != nil || last.Before(r.since) {
			return
		}
		k := useKey{d["login"], does(d["service"]), d["as"], d["command"]}
		u := r.uses[k]
		if u == nil {
			u = &used{hosts: make(map[string]bool), class: make(map[string]bool)}
			r.uses[k] = u
		}
		u.times += times
		u.last = max(u.last, last.UnixMilli())
		u.hosts[record.Host], u.class[d["class"]] = true, true
	}
}

// does is what a PAM service is for.
func does(service string) string {
	switch service {
	case "sudo", "sudo-i":
		return "sudo"
	case "su", "su-l":
		return "su"
	}
	return "login"
}

// needsGrant tells what an enforcing host refuses without a grant, by class: see docs/concepts.md.
func needsGrant(class, does string) bool {
	switch class {
	case "account", "gated":
		return true
	case "elevate":
		return does == "sudo"
	}
	return false
}

func (r *useReport) list() []useView {
	list := make([]useView, 0, len(r.uses))
	for k, u := range r.uses {
		v := useView{
			Login: k.login, Does: k.does, As: k.as, Command: k.command, Times: u.times,
			Hosts: slices.Sorted(maps.Keys(u.hosts)), Last: moment(u.last),
			Class: strings.Join(slices.Sorted(maps.Keys(u.class)), ", "),
		}
		for class := range u.class {
			v.NeedsGrant = v.NeedsGrant || needsGrant(class, k.does)
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b useView) int {
		return cmp.Or(cmp.Compare(a.Login, b.Login), cmp.Compare(a.Does, b.Does), cmp.Compare(b.Times, a.Times),
			cmp.Compare(a.Command, b.Command), cmp.Compare(a.As, b.As))
	})
	return list
}

// views is the report: what was done, by whom, and which roles would cover it.
func (r *useReport) views(hosts []*apiv1.Host, roles []*apiv1.Role) []useView {
	labels := make(map[string]map[string]string)
	for _, h := range hosts {
		labels[h.GetName()] = h.GetLabels()
	}
	list := r.list()
	for i := range list {
		v := &list[i]
		v.Roles = []string{}
		for _, role := range roles {
			if covers(role, *v, labels) {
				v.Roles = append(v.Roles, role.GetName())
			}
		}
		slices.Sort(v.Roles)
		// The gate does not know sudo's command: what it would have refused stands with the first.
		k := [2]string{v.Login, v.Does}
		v.WouldRefuse = r.refused[k]
		delete(r.refused, k)
	}
	return list
}

// covers tells whether a role opens what somebody did, on all hosts where they did it.
func covers(role *apiv1.Role, v useView, labels map[string]map[string]string) bool {
	for _, host := range v.Hosts {
		for key, value := range role.GetHostLabels() {
			if labels[host][key] != value {
				return false
			}
		}
	}
	switch v.Does {
	case "login":
		return role.GetAllowLogin()
	case "su":
		return false // somebody else's account is nothing that a role opens
	}
	return slices.ContainsFunc(role.GetSudoRules(), func(rule *curfewv1.SudoRule) bool {
		path, args, _ := strings.Cut(v.Command, " ")
		return rule.GetAll() || rule.GetRunAs() == v.As && rule.GetCommand() == path &&
			(rule.GetAnyArgs() || strings.Join(rule.GetArgs(), " ") == args)
	})
}

// unixMS is moment, back.
func unixMS(moment *string) int64 {
	if moment == nil {
		return 0
	}
	t, err := time.Parse(time.RFC3339Nano, *moment)
	if err != nil {
		return 0
	}
	return t.UnixMilli()
}

func (a *app) printUses(list []useView, hosts []*apiv1.Host) {
	if len(list) == 0 {
		a.Talk("Nobody was seen on a host that observes.")
		if !slices.ContainsFunc(hosts, func(h *apiv1.Host) bool { return h.GetMode() == "observe" }) {
			a.Hint("no host observes now: a host does as long as nobody says curfew-agent enforce-on on it")
		}
		return
	}
	rows := make([][]cell, len(list))
	refused := 0
	for i, v := range list {
		what := v.Does
		switch {
		case v.Command != "":
			what += " " + v.Command
			if v.As != "root" {
				what += " as " + v.As
			}
		case v.As != "":
			what += " to " + v.As
		}
		enforced := text("as now (" + v.Class + ")")
		if v.NeedsGrant {
			enforced = styled(yellow, "needs a grant ("+v.Class+")")
		}
		roles := strings.Join(v.Roles, ", ")
		if roles == "" {
			roles = "none"
		}
		rows[i] = []cell{
			text(v.Login), text(what), text(fmt.Sprint(v.Times)), text(strings.Join(v.Hosts, ",")),
			a.when(unixMS(v.Last)), enforced, text(fmt.Sprint(v.WouldRefuse)), text(roles),
		}
		refused += v.WouldRefuse
	}
	a.Table([]string{"LOGIN", "DOES", "TIMES", "HOSTS", "LAST", "WHEN ENFORCED", "REFUSED", "ROLES"}, rows)
	a.Talk("Enforcing would have refused %d of what people asked for.", refused)
}
