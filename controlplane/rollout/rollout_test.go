package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	checking  = curfewv1.RolloutPhase_ROLLOUT_PHASE_CHECKING
	trial     = curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL
	kept      = curfewv1.RolloutPhase_ROLLOUT_PHASE_KEPT
	refused   = curfewv1.RolloutPhase_ROLLOUT_PHASE_REFUSED
	lapsed    = curfewv1.RolloutPhase_ROLLOUT_PHASE_LAPSED
	overruled = curfewv1.RolloutPhase_ROLLOUT_PHASE_OVERRULED
	returned  = curfewv1.RolloutPhase_ROLLOUT_PHASE_RETURNED
)

// fleet is a rollout with hosts that do as they are told, on a clock of its own.
type fleet struct {
	t    *testing.T
	now  time.Time
	r    Rollout
	all  []*Member
	news []News
}

// newFleet has the stages 0, 1 and 2, with the hosts a0 and b0, a1, a2.
func newFleet(t *testing.T) *fleet {
	f := &fleet{t: t, now: time.UnixMilli(1_800_000_000_000), r: Rollout{
		Plan: Plan{
			ID: "rollout00001", Name: "winter", Soak: time.Hour, MaxRefusals: 3,
			Stages: []map[string]string{{"env": "test"}, {"env": "prod", "canary": "yes"}, {"env": "prod"}},
		},
		Progress: Progress{State: Running},
	}}
	for i, name := range []string{"a0", "b0", "a1", "a2"} {
		f.all = append(f.all, &Member{
			Name: name, Host: Host{ID: grant.HostID{byte(i + 1)}, Stage: int(name[1] - '0'), State: Waiting},
			Said: Said{Connected: true, Mode: "observe", Report: &curfewv1.RolloutReport{Follows: true}},
		})
	}
	return f
}

func (f *fleet) host(name string) *Member {
	i := slices.IndexFunc(f.all, func(m *Member) bool { return m.Name == name })
	return f.all[i]
}

func (f *fleet) step() {
	f.t.Helper()
	f.news = append(f.news, Step(f.now, &f.r, f.all)...)
}

// says has a host report on its present attempt.
func (f *fleet) says(name string, phase curfewv1.RolloutPhase, detail string) {
	m := f.host(name)
	m.Said.Mode = "observe"
	switch phase {
	case checking, trial:
		m.Said.Mode = "enforce, on trial"
	case kept:
		m.Said.Mode = "enforce"
	}
	m.Said.Report = &curfewv1.RolloutReport{
		Follows: true, Id: f.r.ID, Attempt: m.Attempt, Phase: phase, Detail: detail,
	}
}

func (f *fleet) states(want string) {
	f.t.Helper()
	got := string(f.r.State)
	for _, m := range f.all {
		got += "; " + m.Name + " " + string(m.State)
	}
	if got != want {
		f.t.Fatalf("it is\n%s, want\n%s", got, want)
	}
}

func (f *fleet) wishes(want ...curfewv1.RolloutWish) {
	f.t.Helper()
	var got []curfewv1.RolloutWish
	for _, m := range f.all {
		got = append(got, m.Wish)
	}
	if !slices.Equal(got, want) {
		f.t.Fatalf("wishes are %v, want %v", got, want)
	}
}

const (
	none   = curfewv1.RolloutWish_ROLLOUT_WISH_UNSPECIFIED
	toTry  = curfewv1.RolloutWish_ROLLOUT_WISH_TRY
	toKeep = curfewv1.RolloutWish_ROLLOUT_WISH_KEEP
	toBack = curfewv1.RolloutWish_ROLLOUT_WISH_RETURN
)

// keeps brings hosts to where they enforce for good.
func (f *fleet) keeps(names ...string) {
	f.t.Helper()
	f.step()
	for _, n := range names {
		f.says(n, trial, "")
	}
	f.step()
	f.now = f.now.Add(f.r.Soak)
	f.step()
	for _, n := range names {
		if w := f.host(n).Wish; w != toKeep {
			f.t.Fatalf("%s has soaked, and is wanted to %v", n, w)
		}
		f.says(n, kept, "")
	}
	f.step()
}

// Stage follows stage when every host that is here has soaked, and it ends with the last.
func TestStagesAdvance(t *testing.T) {
	f := newFleet(t)
	f.step()
	f.states("running; a0 checking; b0 checking; a1 waiting; a2 waiting")
	f.says("a0", checking, "")
	f.says("b0", trial, "")
	f.step()
	f.states("running; a0 checking; b0 on trial; a1 waiting; a2 waiting")
	f.wishes(toTry, toTry, none, none)
	f.now = f.now.Add(30 * time.Minute)
	f.says("a0", trial, "")
	f.step()
	f.now = f.now.Add(30 * time.Minute)
	f.step()
	f.wishes(toTry, toKeep, none, none)
	f.says("b0", kept, "")
	f.step()
	f.states("running; a0 on trial; b0 enforces; a1 waiting; a2 waiting")
	f.now = f.now.Add(30 * time.Minute)
	f.step()
	f.says("a0", kept, "")
	f.r.Refusals = 3 // are borne
	f.step()
	if f.r.Stage != 1 || f.r.Refusals != 0 || !f.r.StageSince.Equal(f.now) {
		t.Fatalf("the next stage has not begun: %+v", f.r.Progress)
	}
	f.keeps("a1")
	f.keeps("a2")
	f.states("finished; a0 enforces; b0 enforces; a1 enforces; a2 enforces")
	f.wishes(none, none, none, none)
	if last := f.news[len(f.news)-1]; last.Kind != KindFinished {
		t.Errorf("the last news is %+v", last)
	}
}

// Hosts that are away or do not follow keep no stage back, and are switched when they are here.
func TestAwayHostsStayPending(t *testing.T) {
	f := newFleet(t)
	away, other := f.host("b0"), f.host("a2")
	away.Said = Said{}
	other.Said.Report.Follows = false
	f.keeps("a0")
	f.keeps("a1")
	f.states("running; a0 enforces; b0 waiting; a1 enforces; a2 waiting")
	if f.r.Stage != 2 {
		t.Fatalf("it is at stage %d", f.r.Stage)
	}
	f.step()
	if (&View{Rollout: f.r, Members: f.all}).Next(f.now) != "no host of stage 3 is here and follows rollouts" {
		t.Error((&View{Rollout: f.r, Members: f.all}).Next(f.now))
	}
	other.Said.Report.Follows = true
	f.keeps("a2")
	f.states("running; a0 enforces; b0 waiting; a1 enforces; a2 enforces")
	away.Said = Said{Connected: true, Mode: "observe", Report: &curfewv1.RolloutReport{Follows: true}}
	f.keeps("b0")
	f.states("finished; a0 enforces; b0 enforces; a1 enforces; a2 enforces")
}

// A stage in which nobody enforces is no reason to go on.
func TestStageWithoutFollowersIsNotPassed(t *testing.T) {
	f := newFleet(t)
	f.host("a0").Said.Report = nil // an older agent
	f.host("b0").Said = Said{}
	for range 3 {
		f.step()
		f.now = f.now.Add(time.Hour)
	}
	if f.r.Stage != 0 || f.host("a1").State != Waiting {
		t.Errorf("stage %d, a1 is %s", f.r.Stage, f.host("a1").State)
	}
}

// Too many refusals take back what this rollout did, and nothing else.
func TestRefusalsRollBack(t *testing.T) {
	f := newFleet(t)
	f.host("b0").Said.Mode = "enforce" // by its own word
	f.keeps("a0")
	f.states("running; a0 enforces; b0 enforces by its own word; a1 waiting; a2 waiting")
	f.step()
	f.says("a1", trial, "")
	f.r.Refusals = 3
	f.step()
	f.states("running; a0 enforces; b0 enforces by its own word; a1 on trial; a2 waiting")
	f.r.Refusals = 4
	f.step()
	f.states("rolled back; a0 returning; b0 enforces by its own word; a1 returning; a2 waiting")
	f.wishes(toBack, none, toBack, none)
	if f.r.Reason != "4 refusals in stage 2; 3 are borne" {
		t.Errorf("why: %s", f.r.Reason)
	}
	f.host("a0").Said.Connected = false
	f.says("a1", returned, "")
	f.step()
	f.states("rolled back; a0 returning; b0 enforces by its own word; a1 returned; a2 waiting")
	f.says("a0", kept, "") // back, and has not heard yet
	f.host("a0").Said.Connected = true
	f.step()
	f.wishes(toBack, none, none, none)
	f.host("a0").Said.Report.Phase = curfewv1.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED // root has confirmed it
	f.host("a0").Said.Report.Id = ""
	f.step()
	f.states("rolled back; a0 enforces by its own word; b0 enforces by its own word; a1 returned; a2 waiting")
}

func TestRefusalsMayOnlyPause(t *testing.T) {
	f := newFleet(t)
	f.r.PauseOnRefusals = true
	f.step()
	f.says("a0", trial, "")
	f.step()
	f.r.Refusals = 4
	f.step()
	f.states("paused; a0 on trial; b0 waiting; a1 waiting; a2 waiting")
	f.wishes(toTry, none, none, none) // what is on trial goes on; nobody else begins
	f.now = f.now.Add(2 * time.Hour)
	f.step()
	f.wishes(toTry, none, none, none)
	f.says("b0", trial, "") // it had begun when it was told no more
	f.step()
	f.wishes(toTry, toTry, none, none)
	f.steer(Running)
	f.step()
	f.states("running; a0 on trial; b0 on trial; a1 waiting; a2 waiting")
	if f.r.Refusals != 0 || f.host("b0").Attempt != 1 {
		t.Errorf("after resume: %d refusals, attempt %d", f.r.Refusals, f.host("b0").Attempt)
	}
}

func (f *fleet) steer(to State) {
	f.t.Helper()
	s := &step{now: f.now, r: &f.r, members: f.all}
	if err := s.steer(to, "by dana"); err != nil {
		f.t.Fatal(err)
	}
	f.news = append(f.news, s.news...)
}

// A host that cannot enforce pauses it, in its own words; resume tries it again.
func TestSelfTestThatFailsPauses(t *testing.T) {
	f := newFleet(t)
	f.step()
	f.says("a0", refused, "sshd lets everybody in")
	f.says("b0", trial, "")
	f.step()
	f.states("paused; a0 cannot enforce; b0 on trial; a1 waiting; a2 waiting")
	if !strings.Contains(f.r.Reason, "a0 cannot enforce: sshd lets everybody in") {
		t.Errorf("why: %s", f.r.Reason)
	}
	f.steer(Running)
	f.step()
	f.states("running; a0 checking; b0 on trial; a1 waiting; a2 waiting")
	if a := f.host("a0").Attempt; a != 2 {
		t.Errorf("attempt %d", a)
	}
	f.step() // what it says of the attempt before is no word of this one
	f.states("running; a0 checking; b0 on trial; a1 waiting; a2 waiting")
}

// A trial that lapsed is begun anew once its host is here; the soak time with it.
func TestLapsedTrialBeginsAnew(t *testing.T) {
	f := newFleet(t)
	f.step()
	f.says("a0", trial, "")
	f.says("b0", trial, "")
	f.step()
	f.host("a0").Said.Connected = false
	f.now = f.now.Add(time.Hour)
	f.says("a0", lapsed, "the control plane was not heard")
	f.step()
	f.wishes(toTry, toKeep, none, none) // it is away: nobody knows yet
	f.host("a0").Said.Connected = true
	f.step()
	f.states("running; a0 checking; b0 on trial; a1 waiting; a2 waiting")
	if m := f.host("a0"); m.Attempt != 2 || !m.Since.Equal(f.now) {
		t.Errorf("it is %+v", m.Host)
	}
}

// Root's word on a host pauses it when it takes something back, and is left alone from then on.
func TestRootsWordOnAHostStands(t *testing.T) {
	f := newFleet(t)
	f.says("a0", overruled, "root on this host said observe") // before anything was tried
	f.keeps("b0")
	f.step()
	f.states("running; a0 overruled; b0 enforces; a1 checking; a2 waiting")
	f.says("b0", overruled, "root on this host said observe")
	f.step()
	f.states("paused; a0 overruled; b0 overruled; a1 waiting; a2 waiting")
	f.wishes(none, none, none, none)
	f.steer(Running)
	f.step()
	f.step()
	f.states("running; a0 overruled; b0 overruled; a1 checking; a2 waiting")
	f.steer(RolledBack)
	f.states("rolled back; a0 overruled; b0 overruled; a1 returning; a2 waiting")
}

func TestHostsThatLeaveMidwayPause(t *testing.T) {
	for name, leave := range map[string]func(m *Member){
		"its file lets rollouts switch it no more": func(m *Member) { m.Said.Report.Follows = false },
		"its trial was taken back by hand": func(m *Member) {
			m.Said.Report.Phase = overruled
		},
	} {
		f := newFleet(t)
		f.step()
		f.says("a0", trial, "")
		f.step()
		leave(f.host("a0"))
		f.step()
		if f.r.State != Paused || f.host("a0").State != Overruled {
			t.Errorf("%s: %s, %s", name, f.r.State, f.host("a0").State)
		}
	}
	f := newFleet(t)
	f.keeps("a0", "b0")
	f.host("a0").Said = Said{Connected: true, Mode: "observe", Report: &curfewv1.RolloutReport{}}
	f.step()
	if f.r.State != Paused || f.host("a0").State != Overruled {
		t.Errorf("one that observes by its own word: %s, %s", f.r.State, f.host("a0").State)
	}
}

// Finishing leaves hosts as they are; rolling back is possible afterwards too.
func TestFinishAndRollBack(t *testing.T) {
	f := newFleet(t)
	f.keeps("a0", "b0")
	f.step()
	f.says("a1", trial, "")
	f.step()
	f.steer(Finished)
	f.states("finished; a0 enforces; b0 enforces; a1 waiting; a2 waiting")
	f.wishes(none, none, none, none)
	f.step()
	f.states("finished; a0 enforces; b0 enforces; a1 waiting; a2 waiting")
	f.steer(RolledBack)
	f.states("rolled back; a0 returning; b0 returning; a1 returning; a2 waiting")
	s := &step{now: f.now, r: &f.r, members: f.all}
	for _, to := range []State{Running, Paused, Finished, RolledBack} {
		if s.steer(to, "") == nil {
			t.Errorf("one that is rolled back becomes %s", to)
		}
	}
}

func TestPlansThatCannotStand(t *testing.T) {
	good := func() Plan {
		return Plan{Name: "winter", Stages: []map[string]string{{"env": "prod"}}, Soak: time.Hour, MaxRefusals: 3}
	}
	if err := check(good()); err != nil {
		t.Fatal(err)
	}
	for what, edit := range map[string]func(*Plan){
		"no name":          func(p *Plan) { p.Name = "" },
		"a name of spaces": func(p *Plan) { p.Name = "a b" },
		"no stage":         func(p *Plan) { p.Stages = nil },
		"17 stages":        func(p *Plan) { p.Stages = slices.Repeat(p.Stages, 17) },
		"a stage of all":   func(p *Plan) { p.Stages[0] = nil },
		"a bad label":      func(p *Plan) { p.Stages[0] = map[string]string{"Env": "x y"} },
		"no soak":          func(p *Plan) { p.Soak = 0 },
		"a year's soak":    func(p *Plan) { p.Soak = 365 * 24 * time.Hour },
		"less than none":   func(p *Plan) { p.MaxRefusals = -1 },
	} {
		p := good()
		edit(&p)
		if check(p) == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
