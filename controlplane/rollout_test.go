package controlplane_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// follows sends a heartbeat that says how the host stands with rollouts.
func (m *host) follows(mode string, r *curfewv1.RolloutReport) {
	m.h.t.Helper()
	m.mu.Lock()
	nonce := m.hello().GetNonce()
	m.mu.Unlock()
	m.say <- &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Heartbeat{Heartbeat: &curfewv1.Heartbeat{
		Nonce: nonce, Mode: mode, Rollout: r, TimeMs: time.Now().UnixMilli(),
	}}}
}

// wanted waits until the host's state wants this of it.
func (m *host) wanted(wish curfewv1.RolloutWish, attempt uint32) *curfewv1.Rollout {
	m.h.t.Helper()
	var r *curfewv1.Rollout
	for range 1000 {
		m.mu.Lock()
		r = m.wish
		m.mu.Unlock()
		if r.GetWish() == wish && r.GetAttempt() == attempt {
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.h.t.Fatalf("host %s is wanted to %v, want %v of attempt %d", m.name, r, wish, attempt)
	return nil
}

// reports says what became of what is wanted.
func (m *host) reports(mode string, phase curfewv1.RolloutPhase, detail string) {
	m.h.t.Helper()
	m.mu.Lock()
	r := &curfewv1.RolloutReport{
		Follows: true, Id: m.last.GetId(), Attempt: m.last.GetAttempt(), Phase: phase, Detail: detail,
	}
	m.mu.Unlock()
	m.follows(mode, r)
}

func (p *person) rollouts() apiv1.RolloutsClient { return apiv1.NewRolloutsClient(p.conn) }

// rollout waits until it is as it should; hosts are written as NAME:STATE.
func (p *person) rollout(name, want string) *apiv1.Rollout {
	p.t.Helper()
	var got string
	for range 1000 {
		answer, err := p.rollouts().GetRollout(p.t.Context(), &apiv1.GetRolloutRequest{Name: name})
		must(p.t, err)
		r := answer.GetRollout()
		got = strings.TrimPrefix(r.GetState().String(), "ROLLOUT_STATE_")
		for _, stage := range r.GetStages() {
			for _, h := range stage.GetHosts() {
				got += " " + h.GetName() + ":" + strings.TrimPrefix(h.GetState().String(), "ROLLOUT_HOST_STATE_")
			}
		}
		if got == want {
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatalf("rollout %s is %s, want %s", name, got, want)
	return nil
}

func stagesOf(labels ...string) (out []*apiv1.RolloutStage) {
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		out = append(out, &apiv1.RolloutStage{Labels: map[string]string{k: v}})
	}
	return out
}

const (
	hostTry    = curfewv1.RolloutWish_ROLLOUT_WISH_TRY
	hostKeep   = curfewv1.RolloutWish_ROLLOUT_WISH_KEEP
	hostReturn = curfewv1.RolloutWish_ROLLOUT_WISH_RETURN
	onTrial    = curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL
)

// What a rollout wants stands in the signed states of hosts that follow, across a restart; refusals that
// hosts report take it back, with records and a notice.
func TestRolloutReachesHostsAndRollsBack(t *testing.T) {
	h := build(t, nil)
	web1 := h.joinWith("web1", map[string]string{"env": "test"})
	web2 := h.joinWith("web2", map[string]string{"env": "prod"})
	old := h.joinWith("old", map[string]string{"env": "prod"})
	start := func(name string, stages ...string) error {
		_, err := h.admin.rollouts().StartRollout(t.Context(), &apiv1.StartRolloutRequest{
			Name: name, Stages: stagesOf(stages...), SoakMs: (3 * time.Minute).Milliseconds(), MaxRefusals: 1,
		})
		return err
	}
	refused(t, start("winter", "env=test", "env=nowhere"), apiv1.Code_CODE_NOT_FOUND)
	refused(t, start("winter"), apiv1.Code_CODE_INVALID)
	must(t, start("winter", "env=test", "env=prod"))
	refused(t, start("summer", "env=test"), apiv1.Code_CODE_CONFLICT)
	following := &curfewv1.RolloutReport{Follows: true}
	web1.follows("observe", following)
	web2.follows("observe", following)
	old.follows("observe", nil)
	web1.tell(&curfewv1.Event{Kind: trail.KindLoginDenied, Login: "gus"}) // by another word: not counted
	web2.tell(&curfewv1.Event{Kind: trail.KindWouldDeny, Login: "gus"})
	web1.wanted(hostTry, 1)
	web1.reports("enforce, on trial", onTrial, "")
	r := h.admin.rollout("winter", "RUNNING web1:TRIAL old:WAITING web2:WAITING")
	if prod := r.GetStages()[1].GetHosts(); prod[1].GetWouldRefuse() != 1 || prod[0].GetFollows() ||
		!prod[1].GetFollows() {
		t.Errorf("the second stage is %v", prod)
	}
	h.stop()
	h.start()
	h.admin = h.signIn("dana", h.admin.key)
	for _, m := range []*host{web1, web2, old} {
		m.disconnect()
		m.connect()
	}
	web1.reports("enforce, on trial", onTrial, "")
	web2.follows("observe", following)
	web1.wanted(hostTry, 1)
	h.ahead.Store(int64(4 * time.Minute)) // hosts bear five
	web1.wanted(hostKeep, 1)
	web1.reports("enforce", curfewv1.RolloutPhase_ROLLOUT_PHASE_KEPT, "")
	web2.wanted(hostTry, 1)
	web1.wanted(0, 0)
	web2.reports("enforce, on trial", onTrial, "")
	h.admin.rollout("winter", "RUNNING web1:KEPT old:WAITING web2:TRIAL")
	web2.tell(&curfewv1.Event{Kind: trail.KindLoginDenied, Login: "gus"})
	web2.tell(&curfewv1.Event{Kind: trail.KindSudoDenied, Login: "gus"})
	r = h.admin.rollout("winter", "ROLLED_BACK web1:RETURNING old:WAITING web2:RETURNING")
	if !strings.Contains(r.GetReason(), "2 refusals in stage 2") {
		t.Errorf("why: %s", r.GetReason())
	}
	for _, m := range []*host{web1, web2} {
		m.wanted(hostReturn, 1)
		m.reports("observe", curfewv1.RolloutPhase_ROLLOUT_PHASE_RETURNED, "")
	}
	h.admin.rollout("winter", "ROLLED_BACK web1:RETURNED old:WAITING web2:RETURNED")
	web1.wanted(0, 0)
	if old.last != nil {
		t.Errorf("a host that does not know rollouts was sent %v", old.last)
	}
	var kinds []string
	for _, record := range h.admin.records() {
		parsed, err := trail.ParseRecord(record.GetLeaf())
		must(t, err)
		if strings.HasPrefix(parsed.Kind, "rollout.") {
			kinds = append(kinds, strings.TrimSpace(parsed.Kind+" "+parsed.Host+" "+parsed.Details["state"]))
		}
	}
	want := []string{
		"rollout.started", "rollout.host web1 on trial", "rollout.host web1 enforces", "rollout.stage",
		"rollout.host web2 on trial", "rollout.rolled_back", "rollout.host web1 returning",
		"rollout.host web2 returning", "rollout.host web1 returned", "rollout.host web2 returned",
	}
	slices.Sort(kinds)
	slices.Sort(want)
	if !slices.Equal(kinds, want) {
		t.Errorf("the trail has\n%s, want\n%s", strings.Join(kinds, "\n"), strings.Join(want, "\n"))
	}
}

// A host's words pause it; an admin steers it; an auditor looks on.
func TestRolloutIsSteered(t *testing.T) {
	h := build(t, nil)
	web1 := h.joinWith("web1", map[string]string{"env": "test"})
	_, err := h.admin.rollouts().StartRollout(t.Context(), &apiv1.StartRolloutRequest{
		Name: "winter", Stages: stagesOf("env=test"), SoakMs: time.Hour.Milliseconds(),
	})
	must(t, err)
	web1.follows("observe", &curfewv1.RolloutReport{Follows: true})
	web1.wanted(hostTry, 1)
	web1.reports("observe", curfewv1.RolloutPhase_ROLLOUT_PHASE_REFUSED, "sshd lets everybody in")
	r := h.auditor("otto").rollout("winter", "PAUSED web1:REFUSED")
	if !strings.Contains(r.GetReason(), "web1 cannot enforce: sshd lets everybody in") {
		t.Errorf("why: %s", r.GetReason())
	}
	steer := func(to apiv1.RolloutState) error {
		_, err := h.admin.rollouts().SteerRollout(t.Context(),
			&apiv1.SteerRolloutRequest{Name: "winter", To: to, Reason: "try again"})
		return err
	}
	must(t, steer(apiv1.RolloutState_ROLLOUT_STATE_RUNNING))
	web1.wanted(hostTry, 2)
	refused(t, steer(apiv1.RolloutState_ROLLOUT_STATE_RUNNING), apiv1.Code_CODE_CONFLICT)
	refused(t, steer(0), apiv1.Code_CODE_INVALID)
	must(t, steer(apiv1.RolloutState_ROLLOUT_STATE_PAUSED))
	web1.wanted(0, 0)
	must(t, steer(apiv1.RolloutState_ROLLOUT_STATE_FINISHED))
	list, err := h.admin.rollouts().ListRollouts(t.Context(), &apiv1.ListRolloutsRequest{})
	must(t, err)
	if len(list.GetRollouts()) != 1 || list.GetRollouts()[0].GetReason() != "try again" {
		t.Errorf("the list is %v", list)
	}
	// A host that is relabelled before anything was tried leaves.
	_, err = h.admin.LabelHost(t.Context(), &apiv1.LabelHostRequest{
		Name: "web1", Labels: map[string]string{"env": "prod"},
	})
	must(t, err)
	_, err = h.admin.rollouts().StartRollout(t.Context(), &apiv1.StartRolloutRequest{
		Name: "spring", Stages: stagesOf("env=prod"), SoakMs: time.Hour.Milliseconds(),
	})
	must(t, err)
	web1.wanted(hostTry, 1)
}
