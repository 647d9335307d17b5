package cli

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// The names of JSON fields are a promise to scripts: fields are added, never renamed.
func TestJSONFields(t *testing.T) {
	for name, c := range map[string]struct {
		view any
		want string
	}{
		"request": {requestView{}, "id, state, requester, role, hosts, duration_ms, reason, " +
			"created_at, lapses_at, revision, verdict, root_equivalent, extension_pending, " +
			"terms_sha256, decisions[{approver, approved, reason, at, revision}], " +
			"grants[{grant_id, host, host_id, status, detail, confirmed_at, start_at, end_at, " +
			"ended_at, end_cause, ended_by, revision, aftermath, residue, cleared, left_behind}], " +
			"sessions[{request_id, grant_id, login, " +
			"service, pid, tty, remote_host, since, commands}], end_cause, ended_by, rule, starts_at, " +
			"windows[{start, end}], single_use, first_use, emergency, review_due"},
		"host": {hostView{}, "id, name, address, labels, ssh_host_keys, connected, last_seen_at, " +
			"mode, problems, agent_version, refused, epoch, sequence, certificate_expires_at, " +
			"live_grants"},
		"role": {roleView{}, "name, description, allow_login, sudo_rules[{run_as, all, command, " +
			"args, any_args, contained}], groups, max_duration_ms, approver_group, approvals, " +
			"requester_groups, host_labels, root_equivalent"},
		"record": {recordView{}, "number, at, kind, actor, request_id, grant_id, host, host_id, " +
			"details"},
		"user": {userView{}, "name, uid, admin, disabled, ssh_keys, groups, auditor, kind, source, " +
			"disabled_by, email, manager"},
		"verify": {verdictView{}, "records, head, host_events, host_events_unchecked, hosts, " +
			"extends, host_events_lost"},
		"use": {useView{}, "login, does, as, command, times, hosts, last_at, class, needs_grant, would_refuse, " +
			"roles"},
		"codes": {codeSetView{}, "host, host_id, set, made_at, custodians, codes[{number, fetched_by, " +
			"fetched_at, used_by, used_at}], connected, enabled, max_duration_ms, open, rotating_by"},
		"rollout": {rolloutView{}, "name, id, state, stages[{labels, hosts}], stage, stage_since_at, soak_ms, " +
			"max_refusals, pause_on_refusals, refusals, reason, next, started_by, started_at"},
		"host of a rollout": {rolloutHostView{}, "name, state, since_at, mode, connected, follows, refused, " +
			"would_refuse, detail"},
		"code": {codeView{}, "host, set, number, code, max_duration_ms"},
		"join": {joinView{}, "name, token, expires_at, command"},
	} {
		if diff := cmp.Diff("JSON fields: "+c.want+".", jsonHelp(c.view)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Nothing is null but an absent moment, so that scripts need no second case.
func TestEmptyViews(t *testing.T) {
	line, err := encodeJSON(viewRequest(&apiv1.Request{}))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		t.Fatal(err)
	}
	for name, value := range fields {
		if value == nil && !strings.HasSuffix(name, "_at") {
			t.Errorf("%s is null", name)
		}
	}
}

// Every command says what it is for, in help that fits 80 columns, and its flags say what they do.
func TestHelp(t *testing.T) {
	a := &app{printer: &printer{}}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short help %q", cmd.CommandPath(), cmd.Short)
		}
		for line := range strings.Lines(cmd.Long) {
			if n := columns(strings.TrimSuffix(line, "\n")); n > helpWidth {
				t.Errorf("%s: help line of %d columns: %q", cmd.CommandPath(), n, line)
			}
		}
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk(a.root())
}

func FuzzParseSudo(f *testing.F) {
	for _, seed := range []string{
		"/usr/bin/systemctl restart nginx.service", "/bin/id", "", " ", "/a  b", "/a 'b'", "/a\tb",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rule string) {
		got, err := parseSudo(rule)
		if err != nil {
			return
		}
		words := append([]string{got.Command}, got.Args...)
		if strings.Join(words, " ") != rule || slices.Contains(words, "") || got.All || got.AnyArgs {
			t.Fatalf("%q became %+v", rule, got)
		}
	})
}
