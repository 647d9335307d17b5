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
	"time"

	"golang.org/x/sync/errgroup"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	maxAdminRequest  = 4 << 10
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
	Connected bool            `json:"connected"`
	Refused   string          `json:"refused,omitempty"`
	MayOpen   string          `json:"may_open,omitempty"` // why nothing new opens
	Trust     uint64          `json:"trust_version"`
	Epoch     uint64          `json:"epoch"`
	Sequence  uint64          `json:"sequence"`
	Events    uint64          `json:"events"`
	Grants    []GrantStatus   `json:"grants"`
	Sessions  []SessionStatus `json:"sessions"`
	Ending    []string        `json:"ending"`
	Problems  []string        `json:"problems"`
	Drift     uint64          `json:"drift_repaired"`
}

// GrantStatus is one live grant.
type GrantStatus struct {
	ID      string    `json:"id"`
	Request string    `json:"request"`
	Login   string    `json:"login"`
	Role    string    `json:"role"`
	Class   string    `json:"class"`
	Status  string    `json:"status"`
	Detail  string    `json:"detail,omitempty"`
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
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
	Verb string `json:"verb"`
}

type adminAnswer struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// serveAdmin answers curfew-agent status until ctx ends.
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
	uid, err := peerUID(conn)
	if err != nil {
		return err
	}
	if uid != 0 {
		return fmt.Errorf("uid %d is not root", uid)
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
	case question.Verb != "status":
		answer.Error = fmt.Sprintf("unknown verb %q; there is: status", question.Verb)
	default:
		ctx, cancel := context.WithTimeout(ctx, adminTimeout)
		defer cancel()
		if err := o.do(ctx, func(context.Context) { answer.Status = o.describe() }); err != nil {
			return err
		}
	}
	return json.NewEncoder(conn).Encode(answer)
}

func (o *owner) describe() *Status {
	s := &Status{
		Version: o.cfg.Version, HostID: o.ledger.Host().String(), Name: o.welcome,
		Mode: o.settings.Mode, Connected: o.up.connected(), Refused: o.refused,
		Trust: o.ledger.TrustVersion(), Epoch: o.ledger.Epoch(), Sequence: o.ledger.Sequence(),
		Events: o.rec.chain().Count, Problems: o.allProblems(), Drift: o.recon.DriftRepaired(),
		Grants: []GrantStatus{}, Sessions: []SessionStatus{}, Ending: []string{},
	}
	if err := o.mayOpen(); err != nil {
		s.MayOpen = err.Error()
	}
	for _, r := range o.results {
		terms := r.Live.Terms
		g := GrantStatus{
			ID: r.Live.ID.String(), Request: terms.GetRequestId(), Login: terms.GetLogin(),
			Role: terms.GetRole(), Status: statusText(r.Status), Detail: r.Detail,
			Start: r.Live.Start.UTC(), End: r.Live.End.UTC(),
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
	for id := range o.ending {
		s.Ending = append(s.Ending, id)
	}
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
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("reaching the root half: %w; is curfew-enforce.service running?", err)
	}
	defer func() { _ = conn.Close() }() // the answer is in or not
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if _, err := conn.Write([]byte(`{"verb":"status"}` + "\n")); err != nil {
		return nil, fmt.Errorf("asking the root half: %w", err)
	}
	var answer adminAnswer
	if err := json.NewDecoder(io.LimitReader(conn, maxAdminAnswer)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("reading the root half's answer: %w", err)
	}
	if answer.Error != "" || answer.Status == nil {
		return nil, fmt.Errorf("the root half answers: %s", answer.Error)
	}
	return answer.Status, nil
}

func sameSettings(a, b Settings) bool { return reflect.DeepEqual(a, b) }
