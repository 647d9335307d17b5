// Package rollout switches a fleet to enforcing in stages, stops by itself, and takes back what it did.
//
// Step, which decides, is pure: what hosts said of themselves and what time it is come in, what is wanted
// of each host and what is to be recorded go out. The Service keeps that in the Store, a second at a time.
// What is wanted travels in the host's signed state (packages issue and stream; PROTOCOL.md, section 11),
// and a host obeys only as far as its own file and root on it permit: nothing here can force one.
package rollout

import (
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// State is where a rollout stands.
type State string

// The states, as they are stored and shown.
const (
	Running    State = "running"
	Paused     State = "paused"
	RolledBack State = "rolled back"
	Finished   State = "finished"
)

// Open says whether it may still switch a host.
func (s State) Open() bool { return s == Running || s == Paused }

// HostState is how far a rollout has got with one host.
type HostState string

// The states of hosts.
const (
	Waiting   HostState = "waiting"
	Checking  HostState = "checking"
	Trial     HostState = "on trial"
	Kept      HostState = "enforces"
	Own       HostState = "enforces by its own word"
	Refused   HostState = "cannot enforce"
	Overruled HostState = "overruled"
	Returning HostState = "returning"
	Returned  HostState = "returned"
)

// switched are the states in which the rollout has the host enforce, or may have.
func (s HostState) switched() bool { return s == Checking || s == Trial || s == Kept }

// settled are the states in which a rollout that goes on wants nothing more of a host.
func (s HostState) settled() bool { return s == Kept || s == Own || s == Overruled }

// Limits on what a rollout may be.
const (
	MaxStages  = 16
	MinSoak    = 10 * time.Second
	MaxSoak    = 30 * 24 * time.Hour
	MaxRefusal = 1000000
)

// Plan is what an admin asked for; it never changes.
type Plan struct {
	// ID names it towards hosts, Name towards people.
	ID, Name string
	// Stages are labels; a host is of the first stage all of whose labels it carries.
	Stages []map[string]string
	// Soak is how long a host enforces on trial.
	Soak time.Duration
	// MaxRefusals in one stage are borne, one more is too many: it is rolled back, or paused.
	MaxRefusals     int
	PauseOnRefusals bool
	StartedBy       string
	Started         time.Time
}

// Progress is how far it has got.
type Progress struct {
	State State
	// Stage is the stage that it is at, from 0, since StageSince.
	Stage      int
	StageSince time.Time
	// Refusals of hosts that it switched, since the stage began or it was resumed.
	Refusals int
	// Reason is why it stands still, in words.
	Reason string
}

// Rollout is one.
type Rollout struct {
	Plan
	Progress
}

// Host is how far a rollout has got with one host.
type Host struct {
	ID    grant.HostID
	Stage int
	State HostState
	Since time.Time
	// Attempt counts how often it was told to enforce; Wish is what is outstanding.
	Attempt uint32
	Wish    curfewv1.RolloutWish
	// Refused are what it refused since it was first told to enforce, WouldRefuse what it would have
	// refused before.
	Refused, WouldRefuse int
	Detail               string
}

// Said is what a host last said of itself, on the connection that is open now.
type Said struct {
	Connected bool
	// Mode is observe, enforce, or "enforce, on trial"; empty before its first word.
	Mode string
	// Report is nil before its first word, and of an agent that knows nothing of rollouts.
	Report *curfewv1.RolloutReport
}

// Follows says whether the host's own file lets rollouts switch it, by its own word.
func (s Said) Follows() bool { return s.Connected && s.Report.GetFollows() }

// Member is a host that is of a stage.
type Member struct {
	Host
	Name string
	Said Said
}

// News is one thing that happened, for the trail.
type News struct {
	Kind string
	// Host is whom it is about; nil for the rollout itself.
	Host *Member
	Text string
}

// Kinds of trail records.
const (
	KindStarted    = "rollout.started"
	KindStage      = "rollout.stage"
	KindHost       = "rollout.host"
	KindPaused     = "rollout.paused"
	KindResumed    = "rollout.resumed"
	KindRolledBack = "rollout.rolled_back"
	KindFinished   = "rollout.finished"
)

// StageOf returns the first stage whose labels a host carries; false for none.
func (p *Plan) StageOf(labels map[string]string) (stage int, ok bool) {
	for i, want := range p.Stages {
		if policy.Carries(labels, want) {
			return i, true
		}
	}
	return 0, false
}

// step is one look at a rollout.
type step struct {
	now     time.Time
	r       *Rollout
	members []*Member
	news    []News
}

// Step takes in what hosts said and does what is due, in place. It returns what happened.
func Step(now time.Time, r *Rollout, members []*Member) []News {
	s := &step{now: now, r: r, members: members}
	for _, m := range members {
		if m.Said.Connected {
			s.take(m)
		}
	}
	if r.State.Open() && r.Refusals > r.MaxRefusals {
		why := fmt.Sprintf("%d refusals in stage %d; %d are borne", r.Refusals, r.Stage+1, r.MaxRefusals)
		if !r.PauseOnRefusals {
			s.rollBack(why)
		} else {
			s.pause(why)
		}
	}
	if r.State == Running {
		s.move()
		s.advance()
	}
	return s.news
}

// becomes puts a host into a state and says so.
func (s *step) becomes(m *Member, to HostState, detail string) {
	m.State, m.Detail, m.Since = to, detail, s.now
	switch to {
	case Checking, Trial:
		m.Wish = curfewv1.RolloutWish_ROLLOUT_WISH_TRY
	case Returning:
		m.Wish = curfewv1.RolloutWish_ROLLOUT_WISH_RETURN
	default:
		m.Wish = curfewv1.RolloutWish_ROLLOUT_WISH_UNSPECIFIED
	}
	if to != Checking {
		s.news = append(s.news, News{Kind: KindHost, Host: m, Text: detail})
	}
}

// take takes in what a connected host says.
func (s *step) take(m *Member) {
	report := m.Said.Report
	phase := curfewv1.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED
	if report.GetId() == s.r.ID && report.GetAttempt() == m.Attempt ||
		report.GetPhase() == curfewv1.RolloutPhase_ROLLOUT_PHASE_OVERRULED {
		phase = report.GetPhase()
	}
	ours := report.GetId() == s.r.ID && (report.GetPhase() == curfewv1.RolloutPhase_ROLLOUT_PHASE_CHECKING ||
		report.GetPhase() == curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL ||
		report.GetPhase() == curfewv1.RolloutPhase_ROLLOUT_PHASE_KEPT)
	own := m.Said.Mode == "enforce" && !ours
	observes := m.Said.Mode == "observe"
	switch {
	case m.State == Waiting && own:
		s.becomes(m, Own, "")
	case m.State == Own && observes:
		s.becomes(m, Waiting, "")
	case report == nil: // not heard yet, or an older agent
	case m.State == Waiting && phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL && s.r.State.Open():
		s.becomes(m, Trial, "") // it had begun when it was told no more
	case m.State == Returning && own:
		s.becomes(m, Own, "root on the host has made it the host's own word")
	case m.State == Returning && observes:
		s.becomes(m, Returned, "")
	case m.State.switched():
		s.takeSwitched(m, phase, own, observes)
	}
}

// takeSwitched takes in what a host says that the rollout has told to enforce.
func (s *step) takeSwitched(m *Member, phase curfewv1.RolloutPhase, own, observes bool) {
	detail := m.Said.Report.GetDetail()
	switch {
	case own:
		s.becomes(m, Own, "root on the host has made it the host's own word")
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_OVERRULED && m.State == Checking:
		s.becomes(m, Overruled, detail) // as it was before anything was tried
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_OVERRULED:
		s.becomes(m, Overruled, detail)
		s.pause("root on " + m.Name + " has it observe again")
	case !m.Said.Follows() && m.State != Kept:
		s.becomes(m, Overruled, "its agent.yaml lets rollouts switch it no longer")
		s.pause("the agent.yaml of " + m.Name + " lets rollouts switch it no longer")
	case m.State == Kept && observes:
		s.becomes(m, Overruled, "it observes again by its own word")
		s.pause(m.Name + " observes again by its own word")
	case m.State == Kept:
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL && m.State == Checking:
		s.becomes(m, Trial, "")
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_KEPT:
		s.becomes(m, Kept, "")
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_REFUSED:
		s.becomes(m, Refused, detail)
		s.pause(m.Name + " cannot enforce: " + detail)
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_LAPSED:
		s.becomes(m, Waiting, detail) // told anew when it is here
	case phase == curfewv1.RolloutPhase_ROLLOUT_PHASE_RETURNED:
		s.becomes(m, Returned, "it was told so by a control plane that a restore has forgotten")
	}
}

// move tells hosts whose stage has come to enforce, and makes lasting what has soaked.
func (s *step) move() {
	for _, m := range s.members {
		switch {
		case m.Stage > s.r.Stage || !m.Said.Follows():
		case m.State == Waiting:
			m.Attempt++
			s.becomes(m, Checking, "")
		case m.State == Trial && s.now.Sub(m.Since) >= s.r.Soak:
			m.Wish = curfewv1.RolloutWish_ROLLOUT_WISH_KEEP
		}
	}
}

// advance goes on to the next stage when all hosts that are here and follow enforce for good, one of
// this stage among them.
func (s *step) advance() {
	some, missing := false, false
	for _, m := range s.members {
		if m.Stage > s.r.Stage {
			missing = true
			continue
		}
		if m.Said.Follows() && !m.State.settled() {
			return
		}
		if !m.State.settled() && (!m.Said.Connected || m.Said.Report.GetFollows()) {
			missing = true
		}
		some = some || m.Stage == s.r.Stage && (m.State == Kept || m.State == Own)
	}
	switch {
	case !some:
	case s.r.Stage+1 < len(s.r.Stages):
		s.r.Stage++
		s.r.StageSince, s.r.Refusals = s.now, 0
		s.news = append(s.news, News{Kind: KindStage, Text: fmt.Sprintf("stage %d of %d begins: %s", s.r.Stage+1,
			len(s.r.Stages), policy.LabelsText(s.r.Stages[s.r.Stage]))})
	case !missing:
		s.r.State = Finished
		s.news = append(s.news, News{Kind: KindFinished, Text: "every host that follows enforces"})
	}
}

// pause keeps everything as it is: nobody is told to enforce, and what is on trial goes on.
func (s *step) pause(why string) {
	if s.r.State != Running {
		return
	}
	s.r.State, s.r.Reason = Paused, why
	for _, m := range s.members {
		if m.State == Checking {
			m.State, m.Since, m.Wish = Waiting, s.now, curfewv1.RolloutWish_ROLLOUT_WISH_UNSPECIFIED
		}
	}
	s.news = append(s.news, News{Kind: KindPaused, Text: why})
}

// rollBack has every host observe again that this rollout has told to enforce, and no other.
func (s *step) rollBack(why string) {
	s.r.State, s.r.Reason = RolledBack, why
	s.news = append(s.news, News{Kind: KindRolledBack, Text: why})
	for _, m := range s.members {
		// One that waits may have begun when it was told no more.
		if m.State.switched() || m.State == Waiting && m.Attempt > 0 {
			s.becomes(m, Returning, "")
		}
	}
}

// resume goes on where it was paused, and tries again what could not enforce.
func (s *step) resume() {
	s.r.State, s.r.Reason, s.r.Refusals = Running, "", 0
	s.news = append(s.news, News{Kind: KindResumed})
	for _, m := range s.members {
		if m.State == Refused || m.State == Overruled {
			m.State, m.Since = Waiting, s.now
		}
	}
}

// finish leaves everything as it is. What is on trial observes again by itself.
func (s *step) finish(why string) {
	s.r.State, s.r.Reason = Finished, why
	s.news = append(s.news, News{Kind: KindFinished, Text: why})
	for _, m := range s.members {
		if m.State == Checking || m.State == Trial {
			s.becomes(m, Waiting, "it was on trial when the rollout was finished, and observes again by itself")
		}
	}
}
