package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// answer decides and, where a session is to open, opens it: first its cage, then its record and its
// event, and only then the yes. Whatever fails on the way is "try again".
func (s *Server) answer(ctx context.Context, r gatewire.Request, caller *process.Handle,
	conn *net.UnixConn,
) (decision, *opened) {
	now := s.cfg.Clock()
	q := question{Request: r, pid: caller.PID, uid: caller.RealUID, now: now}
	t := s.table.Load()
	if t == nil {
		return s.unready(q), nil
	}
	look := sync.OnceValues(caller.Read)
	if asksOwner(q.Service) {
		p, err := look()
		if err != nil {
			s.cfg.Log.Error("looking at who asks", "question", q.String(), "error", err)
			return tryAgain(Person{}, err.Error()), nil
		}
		q.owner, _ = s.cfg.Sessions.Owner(p)
	}
	d := decide(t, s.cfg.Host, q)
	if d.person.Login == account.SelfTest.Name {
		return d, nil // answered as if enforcing, whatever the mode, and not recorded: nobody was there
	}
	if t.observes(now) {
		return s.observe(ctx, q, d), nil
	}
	switch d.verdict {
	case gatewire.Deny:
		s.recordDenial(ctx, deniedKind(q.Service), q, d)
		return d, nil
	case gatewire.Allow:
		if q.Op != gatewire.OpOpenSession || d.treatment == inside {
			return d, nil
		}
	case gatewire.Ignore, gatewire.TryAgain:
		return d, nil
	}
	o, err := s.open(ctx, q, d, caller, look, conn)
	if err == nil {
		return d, o
	}
	s.cfg.Log.Error("opening a session", "login", d.person.Login, "service", q.Service,
		"request", d.grant.Terms.GetRequestId(), "error", err)
	again := tryAgain(d.person, err.Error())
	if errors.Is(err, account.ErrNoHome) {
		// Trying again does not help, and the module has words of its own for what does.
		again.verdict = gatewire.Deny
		again.text = fmt.Sprintf("%s has no home on %s and Curfew cannot make it: its administrators see why in "+
			"curfew log", d.person.Login, s.cfg.Host)
	}
	if errors.Is(err, session.ErrNotLive) || errors.Is(err, grant.ErrNotLive) ||
		errors.Is(err, grant.ErrUsed) {
		again = t.deny(d, s.cfg.Host, q.Service, err.Error())
	}
	s.recordDenial(ctx, deniedKind(q.Service), q, again)
	return again, nil
}

// unready is the answer before the first table: the agent has not yet checked what has expired.
// Root and system users do not wait for it.
func (s *Server) unready(q question) decision {
	if byRealUID[q.Service] && q.uid < firstPerson || q.User == "root" {
		return decision{verdict: gatewire.Ignore}
	}
	return tryAgain(Person{}, "the agent is starting")
}

// observe records what would have been denied, and denies nobody.
func (s *Server) observe(ctx context.Context, q question, d decision) decision {
	if d.verdict == gatewire.Deny {
		s.stats.wouldDeny.Add(1)
		s.recordDenial(ctx, trail.KindWouldDeny, q, d)
	}
	return decision{verdict: gatewire.Ignore}
}

// open makes a session of an allowed question, of who the caller was when it asked.
func (s *Server) open(ctx context.Context, q question, d decision, caller *process.Handle,
	look func() (process.Process, error), conn *net.UnixConn,
) (*opened, error) {
	p, err := look()
	if err != nil {
		return nil, err
	}
	request, home := d.grant.Terms.GetRequestId(), session.AtHome(p, d.person.UID)
	if d.treatment == elevate && !s.cfg.Sessions.InCage(p, request) {
		if p.CGroup, err = s.cfg.Sessions.Move(ctx, p.PID, request, d.person.UID); err != nil {
			return nil, err
		}
		if caller.Ended() {
			return nil, process.ErrGone
		}
	}
	opening := session.Session{
		RequestID: request, GrantID: d.grant.ID, Login: d.person.Login, UID: d.person.UID,
		Service: q.Service, Elevation: d.treatment == elevate,
		TTY: q.TTY, RHost: q.RHost, PID: p.PID, StartTicks: p.StartTicks,
		LoginUID: p.LoginUID, AuditSession: p.AuditSession, CGroup: p.CGroup,
	}
	if p.LoginUID != d.person.UID || opening.Elevation && !home {
		// Somebody else's audit session, such as a daemon's that logs people in, or one whose processes
		// stand elsewhere by right, such as a job of cron's: not to be killed.
		opening.LoginUID, opening.AuditSession = session.NoAudit, session.NoAudit
	}
	if isHungUp(conn) {
		return nil, errors.New("the caller hung up")
	}
	registered, ended, err := s.cfg.Sessions.Open(ctx, opening)
	if err != nil {
		return nil, err
	}
	return &opened{Session: registered, ended: ended}, nil
}

func isHungUp(conn *net.UnixConn) bool {
	gone := true
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) { gone = hungUp(int(fd)) })
	return err != nil || gone
}

func deniedKind(service string) string {
	if isSudo(service) {
		return trail.KindSudoDenied
	}
	return trail.KindLoginDenied
}

// recordDenial puts a denial on the trail. A denial stands whether or not that succeeds.
func (s *Server) recordDenial(ctx context.Context, kind string, q question, d decision) {
	unrecorded, ok := s.quiet.next(d.person.Login, q.now)
	if !ok {
		return
	}
	details := map[string]string{
		"service": q.Service, "op": q.Op.String(), "why": cut(d.why),
		"uid": strconv.FormatUint(uint64(q.uid), 10), "pid": strconv.Itoa(q.pid),
	}
	for key, value := range map[string]string{"user": q.User, "rhost": q.RHost, "tty": q.TTY} {
		if value != "" {
			details[key] = cut(value)
		}
	}
	if unrecorded > 0 {
		details["unrecorded_before"] = strconv.Itoa(unrecorded)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	err := s.cfg.Events.Record(ctx, &curfewv1.Event{
		Kind: kind, Login: d.person.Login, RequestId: d.grant.Terms.GetRequestId(), Details: details,
	})
	if err != nil {
		s.cfg.Log.Error("recording a denial", "login", d.person.Login, "why", d.why, "error", err)
	}
}

// cut makes text that others wrote fit for a detail.
func cut(text string) string {
	return grant.Clip(grant.VisibleText(text), trail.MaxDetail)
}

// recordLimit is how long a no waits for its own event.
const recordLimit = 250 * time.Millisecond

// Denials of one login that are recorded one by one; more are counted and told with the next.
const (
	denialBurst  = 20
	denialWindow = time.Minute
	maxDenied    = 4096 // logins that are counted apart
)

// denials keeps a person who starts sudo in a loop from filling the trail.
type denials struct {
	mu      sync.Mutex // guards byLogin
	byLogin map[string]*denied
}

type denied struct {
	since      time.Duration // on the boot-time clock
	recorded   int
	unrecorded int
}

func newDenials() *denials { return &denials{byLogin: make(map[string]*denied)} }

// next tells whether to record a denial now, and how many before it were not.
func (n *denials) next(login string, now grant.Clock) (unrecorded int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.byLogin[login]
	if d == nil {
		if len(n.byLogin) >= maxDenied {
			n.byLogin = make(map[string]*denied) // forgetting only records more
		}
		d = &denied{since: now.Boot}
		n.byLogin[login] = d
	}
	if now.Boot-d.since >= denialWindow {
		d.since, d.recorded = now.Boot, 0
	}
	if d.recorded >= denialBurst {
		d.unrecorded++
		return 0, false
	}
	d.recorded++
	unrecorded, d.unrecorded = d.unrecorded, 0
	return unrecorded, true
}

// String shows a question in logs.
func (q question) String() string {
	return fmt.Sprintf("%v of %s for %q by process %d", q.Op, q.Service, q.User, q.pid)
}
