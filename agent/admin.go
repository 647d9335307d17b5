package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	maxAdminRequest  = 512 << 10 // new break-glass codes come sealed to many keys
	maxAdminAnswer   = 16 << 20
	adminTimeout     = 5 * time.Second
	maxAdminsAtATime = 16
)

// Status is what the root half says of itself on the admin socket.
type Status struct {
	Version   string          `json:"version"`
	HostID    string          `json:"host_id"`
	Name      string          `json:"name"`
	Mode      string          `json:"mode"`
	TrialEnd  time.Time       `json:"trial_end,omitzero"` // of enforcing, unless it is confirmed
	Connected bool            `json:"connected"`
	Refused   string          `json:"refused,omitempty"`
	MayOpen   string          `json:"may_open,omitempty"` // why nothing new opens
	LeaseEnd  time.Time       `json:"lease_end,omitzero"` // until when, if nobody is heard
	Trust     uint64          `json:"trust_version"`
	Epoch     uint64          `json:"epoch"`
	Sequence  uint64          `json:"sequence"`
	Events    uint64          `json:"events"`
	Grants    []GrantStatus   `json:"grants"`
	Sessions  []SessionStatus `json:"sessions"`
	Ending    []string        `json:"ending"`
	Residue   []ResidueStatus `json:"residue"`
	Problems  []string        `json:"problems"`
	Drift     uint64          `json:"drift_repaired"`
	// BreakGlass is how the host stands with its codes, in words; empty when they are not enabled.
	BreakGlass string `json:"break_glass,omitempty"`
	// Rollout is how the host stands with staged rollouts; nil where its file lets none switch it.
	Rollout *RolloutStatus `json:"rollout,omitempty"`
}

// RolloutStatus is the newest attempt that the host acted on.
type RolloutStatus struct {
	ID      string `json:"id,omitempty"`
	Attempt uint32 `json:"attempt,omitempty"`
	Phase   string `json:"phase,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// GrantStatus is one live grant.
type GrantStatus struct {
	ID      string `json:"id"`
	Request string `json:"request"`
	Login   string `json:"login"`
	Role    string `json:"role"`
	// RootEquivalent: whoever holds it can become root.
	RootEquivalent bool      `json:"root_equivalent"`
	Class          string    `json:"class"`
	Status         string    `json:"status"`
	Detail         string    `json:"detail,omitempty"`
	Start          time.Time `json:"start"`
	End            time.Time `json:"end"`
	// Local: a break-glass code opened it here.
	Local bool `json:"local,omitempty"`
}

// SessionStatus is one session.
type SessionStatus struct {
	Request  string    `json:"request"`
	Login    string    `json:"login"`
	Service  string    `json:"service"`
	PID      int32     `json:"pid"`
	TTY      string    `json:"tty,omitempty"`
	Remote   string    `json:"remote,omitempty"`
	Since    time.Time `json:"since"`
	Commands []string  `json:"commands,omitempty"`
}

type adminRequest struct {
	Verb  string    `json:"verb"`
	Codes *NewCodes `json:"codes,omitempty"`
	ForMS int64     `json:"for_ms,omitempty"`
	// Rollout goes with the verb of that name.
	Rollout *RolloutStep `json:"rollout,omitempty"`
}

type adminAnswer struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// serveAdmin answers root until ctx ends.
func (o *owner) serveAdmin(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // wakes Accept
	defer stop()
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxAdminsAtATime)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return group.Wait()
			}
			return errors.Join(fmt.Errorf("accepting on the admin socket: %w", err), group.Wait())
		}
		group.Go(func() error {
			defer func() { _ = conn.Close() }() // the answer was written or not
			if err := o.answerAdmin(groupCtx, conn); err != nil {
				o.log.Warn("an admin's question was not answered", "error", err)
			}
			return nil
		})
	}
}

func (o *owner) answerAdmin(ctx context.Context, conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(adminTimeout)); err != nil {
		return err
	}
	cred, err := peer(conn)
	if err != nil {
		return err
	}
	if cred.Uid != 0 {
		return fmt.Errorf("uid %d is not root", cred.Uid)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxAdminRequest)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("reading the question: %w", err)
	}
	var answer adminAnswer
	var question adminRequest
	switch err := json.Unmarshal(line, &question); {
	case err != nil:
		answer.Error = "not a line of JSON"
	default:
		ctx, cancel := context.WithTimeout(ctx, adminTimeout)
		defer cancel()
		if err := o.do(ctx, func(ctx context.Context) {
			answer = o.answer(ctx, question, int(cred.Pid))
		}); err != nil {
			return err
		}
	}
	return json.NewEncoder(conn).Encode(answer)
}

// answer answers root, in the person of a process.
func (o *owner) answer(ctx context.Context, q adminRequest, pid int) adminAnswer {
	switch {
	case q.Verb == "status":
		return adminAnswer{Status: o.describe()}
	case q.Verb == "break-glass-codes" && q.Codes != nil:
		return adminAnswer{Error: textOf(o.installCodes(*q.Codes)), Status: o.describe()}
	case q.Verb == "rollout" && q.Rollout != nil:
		return adminAnswer{Error: textOf(o.rolloutStep(ctx, *q.Rollout)), Status: o.describe()}
	}
	throw, ok := map[string]func(process.Process) error{
		"enforce-on": func(by process.Process) error {
			return o.enforceOn(ctx, time.Duration(q.ForMS)*time.Millisecond, Who(by), nil)
		},
		"confirm":     func(by process.Process) error { return o.confirm(ctx, by) },
		"enforce-off": func(by process.Process) error { return o.enforceOff(ctx, by) },
	}[q.Verb]
	if !ok {
		return adminAnswer{Error: fmt.Sprintf("unknown verb %q; there are: status, break-glass-codes, "+
			"enforce-on, confirm, enforce-off, rollout", q.Verb)}
	}
	by, err := process.Read(pid)
	if err == nil {
		err = throw(by)
	}
	return adminAnswer{Error: textOf(err), Status: o.describe()}
}

func (o *owner) describe() *Status {
	s := &Status{
		Version: o.cfg.Version, HostID: o.ledger.Host().String(), Name: o.welcome,
		Mode: o.word(), Connected: o.up.connected(), Refused: o.refused,
		Trust: o.ledger.TrustVersion(), Epoch: o.ledger.Epoch(), Sequence: o.ledger.Sequence(),
		Events: o.rec.chain().Count, Problems: o.allProblems(), Drift: o.recon.DriftRepaired(),
		Grants: []GrantStatus{}, Sessions: []SessionStatus{}, Ending: []string{},
	}
	if _, trial := o.mode(); trial != nil {
		s.TrialEnd = trial.Wall.UTC()
	}
	if err := o.mayOpen(); err != nil {
		s.MayOpen = err.Error()
	}
	now := o.cfg.Clock()
	if end := o.ledger.LeaseEnd(now); end != 0 {
		s.LeaseEnd = now.Wall.Add(end - now.Boot).UTC()
	}
	for _, r := range o.results {
		terms := r.Live.Terms
		g := GrantStatus{
			ID: r.Live.ID.String(), Request: terms.GetRequestId(), Login: terms.GetLogin(),
			Role: terms.GetRole(), RootEquivalent: terms.GetRootEquivalent(),
			Status: statusText(r.Status), Detail: r.Detail,
			Start: r.Live.Start.UTC(), End: r.Live.End.UTC(), Local: r.Live.Local,
		}
		if r.Subject.Class != 0 {
			g.Class = r.Subject.Class.String()
		}
		s.Grants = append(s.Grants, g)
	}
	for _, m := range o.sessions.Sessions() {
		s.Sessions = append(s.Sessions, SessionStatus{
			Request: m.GetRequestId(), Login: m.GetLogin(), Service: m.GetService(), PID: m.GetPid(),
			TTY: m.GetTty(), Remote: m.GetRemoteHost(), Since: time.UnixMilli(m.GetSinceMs()).UTC(),
			Commands: m.GetCommands(),
		})
	}
	for id, e := range o.ending {
		what := "processes"
		if e.stage == stageFiles {
			what = "files"
		}
		s.Ending = append(s.Ending, id+" ("+what+")")
	}
	slices.Sort(s.Ending)
	s.BreakGlass = describeCodes(o.codesHealth())
	if r := o.rolloutReport(); r.GetFollows() {
		s.Rollout = &RolloutStatus{
			ID: r.GetId(), Attempt: r.GetAttempt(), Phase: phaseText(r.GetPhase()), Detail: r.GetDetail(),
		}
	}
	s.Residue = append([]ResidueStatus{}, o.left.reports...)
	return s
}

func statusText(s curfewv1.GrantStatus) string {
	switch s {
	case curfewv1.GrantStatus_GRANT_STATUS_APPLIED:
		return "applied"
	case curfewv1.GrantStatus_GRANT_STATUS_FAILED:
		return "failed"
	}
	return "pending"
}

// AskStatus asks the root half that serves the admin socket at path.
func AskStatus(ctx context.Context, path string) (*Status, error) {
	return askAdmin(ctx, path, adminRequest{Verb: "status"})
}

// InstallCodes puts new break-glass codes in force on the root half that serves the admin socket at path.
func InstallCodes(ctx context.Context, path string, codes NewCodes) error {
	_, err := askAdmin(ctx, path, adminRequest{Verb: "break-glass-codes", Codes: &codes})
	return err
}

// EnforceOn begins a trial of enforcing on the root half that serves the admin socket at path.
func EnforceOn(ctx context.Context, path string, lasts time.Duration) (*Status, error) {
	return askAdmin(ctx, path, adminRequest{Verb: "enforce-on", ForMS: lasts.Milliseconds()})
}

// ConfirmEnforcing makes a trial last.
func ConfirmEnforcing(ctx context.Context, path string) (*Status, error) {
	return askAdmin(ctx, path, adminRequest{Verb: "confirm"})
}

// TellRollout says how the host takes a rollout's attempt.
func TellRollout(ctx context.Context, path string, step RolloutStep) (*Status, error) {
	return askAdmin(ctx, path, adminRequest{Verb: "rollout", Rollout: &step})
}

// EnforceOff has the root half take in that the switch was thrown: see modeswitch.Dir.Off.
func EnforceOff(ctx context.Context, path string) (*Status, error) {
	return askAdmin(ctx, path, adminRequest{Verb: "enforce-off"})
}

func askAdmin(ctx context.Context, path string, q adminRequest) (*Status, error) {
	var answer adminAnswer
	if err := ask(ctx, path, adminTimeout, q, &answer); err != nil {
		return nil, err
	}
	if answer.Error != "" || answer.Status == nil {
		return nil, fmt.Errorf("the root half answers: %s", answer.Error)
	}
	return answer.Status, nil
}

// ask sends one line of JSON to the root half and reads its answer.
func ask(ctx context.Context, path string, within time.Duration, question, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("reaching the root half: %w; is curfew-enforce.service running?", err)
	}
	defer func() { _ = conn.Close() }() // the answer is in or not
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(conn).Encode(question); err != nil {
		return fmt.Errorf("asking the root half: %w", err)
	}
	if err := json.NewDecoder(io.LimitReader(conn, maxAdminAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("reading the root half's answer: %w", err)
	}
	return nil
}

func sameSettings(a, b Settings) bool { return reflect.DeepEqual(a, b) }
