package stream

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Limits on what the Hub remembers of one host.
const (
	maxSessions = 256
	maxProblems = 32
	maxText     = 512
	maxCommands = 16
	maxNotes    = 8
)

// Health is what a host last said of itself: claims, kept in memory only. Text is safe to show.
type Health struct {
	Connected bool
	// Since is when the present or last connection began; LastSeen when the host last spoke.
	Since, LastSeen time.Time
	AgentVersion    string
	BootID          string
	// Mode is observe or enforce; empty before the first heartbeat.
	Mode string
	// Problems are the host's own, then what the Hub noticed about it.
	Problems      []string
	DriftRepaired uint64
	// Epoch and Sequence are of the newest state that the host accepted.
	Epoch, Sequence uint64
	Sessions        []*curfewv1.Session
	Codes           CodesHealth
	// Heard: a heartbeat has come on this connection. Rollout is what it said of rollouts; nil of an agent
	// that knows none.
	Heard   bool
	Rollout *curfewv1.RolloutReport

	// notes are the Hub's own; they last as long as the connection.
	notes []string
}

// HostSession is a session that a host says is live.
type HostSession struct {
	Host    grant.HostID
	Session *curfewv1.Session
}

// Health returns what is known of a host since the Hub started; false when nothing is.
func (h *Hub) Health(id grant.HostID) (Health, bool) {
	s := h.known(id)
	if s == nil {
		return Health{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.health.Since.IsZero() {
		return Health{}, false
	}
	out := s.health
	out.Problems = slices.Concat(out.Problems, out.notes)
	out.Sessions, out.notes = slices.Clone(out.Sessions), nil
	return out, true
}

// Sessions returns the live sessions of a request on the hosts that it is for. Other hosts are not
// asked: a host's word counts for itself alone. The sessions are shared; do not change them.
func (h *Hub) Sessions(requestID string, hosts ...grant.HostID) []HostSession {
	var out []HostSession
	for _, id := range hosts {
		s := h.known(id)
		if s == nil {
			continue
		}
		s.mu.Lock()
		for _, session := range s.health.Sessions {
			if session.GetRequestId() == requestID {
				out = append(out, HostSession{Host: id, Session: session})
			}
		}
		s.mu.Unlock()
	}
	return out
}

func seenOf(h Health) Seen {
	return Seen{
		At: h.LastSeen, AgentVersion: h.AgentVersion, Mode: h.Mode, Epoch: h.Epoch,
		Sequence: h.Sequence,
	}
}

func (s *slot) saw(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health.LastSeen = now
}

// note adds a problem that the Hub noticed.
func (s *slot) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.health.notes) < maxNotes && !slices.Contains(s.health.notes, text) {
		s.health.notes = append(slices.Clip(s.health.notes), text)
	}
}

func (s *slot) acked(a Ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.Accepted {
		s.health.Epoch, s.health.Sequence = a.Epoch, a.Sequence
	}
}

// beat keeps a heartbeat and says whether anything that people see has changed.
func (s *slot) beat(b *curfewv1.Heartbeat) bool {
	problems := make([]string, 0, len(b.GetProblems()))
	for _, p := range b.GetProblems() {
		problems = append(problems, shown(p))
	}
	sessions := make([]*curfewv1.Session, 0, len(b.GetSessions()))
	for _, x := range b.GetSessions() {
		sessions = append(sessions, cleanSession(x))
	}
	mode := ""
	if slices.Contains([]string{"observe", "enforce", "enforce, on trial"}, b.GetMode()) {
		mode = b.GetMode()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	codes, rollout := codesHealth(b.GetBreakGlass()), cleanRollout(b.GetRollout())
	same := s.health.Mode == mode && s.health.Codes == codes && proto.Equal(s.health.Rollout, rollout) && slices.Equal(s.health.Problems, problems) &&
		slices.EqualFunc(s.health.Sessions, sessions, func(x, y *curfewv1.Session) bool {
			return proto.Equal(x, y)
		})
	s.health.Mode, s.health.Problems, s.health.Sessions = mode, problems, sessions
	s.health.DriftRepaired, s.health.Codes = b.GetDriftRepaired(), codes
	s.health.Heard, s.health.Rollout = true, rollout
	return !same
}

func cleanRollout(r *curfewv1.RolloutReport) *curfewv1.RolloutReport {
	if r == nil {
		return nil
	}
	return &curfewv1.RolloutReport{
		Follows: r.GetFollows(), Id: shown(r.GetId()), Attempt: r.GetAttempt(), Phase: r.GetPhase(),
		Detail: shown(r.GetDetail()),
	}
}

func cleanSession(x *curfewv1.Session) *curfewv1.Session {
	out := &curfewv1.Session{
		RequestId: shown(x.GetRequestId()), Login: shown(x.GetLogin()),
		Service: shown(x.GetService()), Pid: x.GetPid(), Tty: shown(x.GetTty()),
		RemoteHost: shown(x.GetRemoteHost()), SinceMs: x.GetSinceMs(),
	}
	if len(x.GetGrantId()) == len(grant.ID{}) {
		out.GrantId = x.GetGrantId()
	}
	for _, cmd := range x.GetCommands()[:min(len(x.GetCommands()), maxCommands)] {
		out.Commands = append(out.Commands, shown(cmd))
	}
	return out
}

// shown makes a host's text safe to show, and bounded.
func shown(s string) string {
	return grant.VisibleText(s[:min(len(s), maxText)])
}
