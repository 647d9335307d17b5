// Package session knows who runs what under which request, and ends it.
//
// A session is a login or an elevation that the gate allowed. The Manager keeps the registry of
// them by request, puts elevations into systemd scopes of their own, warns on their terminals, tells
// heartbeats what runs, and at the end kills everything that was started: by cgroup, by uid, by audit
// session and by the connection's own sshd. It decides nothing: which grants are live comes from the
// agent by Publish, what is over comes by Kill, sessions come from the gate by Open. What it learns
// goes to the trail (Config.Events) and into heartbeats.
//
// The truth is the kernel's: scopes carry the request in their name, processes their audit session.
// What cannot be read back from there is kept in one small file per session below /run, so that an
// agent that was killed knows its sessions again.
package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// MaxSessions bounds the registry; past it no session opens.
const MaxSessions = 2048

// ErrFull means that the registry is at MaxSessions.
var ErrFull = errors.New("too many sessions on this host")

// ErrNotLive means that a session's request ended before the session could open.
var ErrNotLive = errors.New("the grant has just ended")

// Session is one login or elevation. It is a value: the registry owns the original.
type Session struct {
	// ID is random and names the session's file.
	ID string `json:"id"`
	// RequestID is what the session belongs to; GrantID is the grant that opened it, which an
	// extension may have replaced since.
	RequestID string   `json:"request_id"`
	GrantID   grant.ID `json:"grant_id"`
	Login     string   `json:"login"`
	UID       uint32   `json:"uid"`
	Service   string   `json:"service"`
	// Elevation: opened by sudo. Its audit session is the caller's, and says that a process is the
	// request's only when that has left the slice of its user: see AtHome.
	Elevation bool   `json:"elevation"`
	TTY       string `json:"tty"`
	RHost     string `json:"rhost"`
	// PID and StartTicks (field 22 of /proc/PID/stat) name the process that holds the session: sshd's
	// root monitor, or sudo. LoginUID and AuditSession are its audit identity; NoAudit when unset.
	PID          int    `json:"pid"`
	StartTicks   uint64 `json:"start_ticks"`
	LoginUID     uint32 `json:"login_uid"`
	AuditSession uint32 `json:"audit_session"`
	// CGroup is where that process stood when the session opened, such as
	// /user.slice/user-1000.slice/session-3.scope.
	CGroup   string    `json:"cgroup"`
	OpenedAt time.Time `json:"opened_at"`
	// Over: the session's process has ended, but others of the session may run on.
	Over bool `json:"over"`
}

// audited tells whether the kernel knows the session's processes by their audit identity.
func (s Session) audited() bool { return s.AuditSession != NoAudit && s.LoginUID != NoAudit }

// NoAudit is the kernel's value for an unset loginuid or audit session.
const NoAudit = process.NoAudit

// firstPerson is the lowest uid that can be a person's; what is below is never managed.
const firstPerson = 1000

// Live is a grant that is in force, as the manager needs it.
type Live struct {
	RequestID string
	GrantID   grant.ID
	Login     string
	UID       uint32
	Class     account.Class
	Role      string
	// RootEquivalent: whoever holds the grant can become root and leave any cage.
	RootEquivalent bool
	// GIDs are those of the unix groups that the grant gives.
	GIDs       []uint32
	Start, End time.Time
	// BootDeadline is the end on the boot-time clock; the earlier of both counts.
	BootDeadline time.Duration
	// Local: a break-glass code opened it; it cannot be extended.
	Local bool
}

// Target is a request whose processes are to end.
type Target struct {
	RequestID string
	Login     string
	UID       uint32
	Class     account.Class
	// Whole: no other live grant of this login remains, so that everything of the login's goes, not
	// just this request's sessions. Has no effect on class elevate.
	Whole bool
	// Cause and By tell the people whose sessions end why, on their terminals; without a cause they
	// are told nothing here.
	Cause curfewv1.EndCause
	By    string
	// Why says it on the trail where no cause of a grant's end does.
	Why string
	// Goodbye is what they read instead, where it is set. Thousands are told in one go.
	Goodbye string
}

// Residue is what is left of a target after Kill.
type Residue struct {
	RequestID string
	// Processes that still run, at most 16, as "pid comm (state)".
	Processes []string
	// Problems are steps that failed, such as a ticket that could not be removed.
	Problems []string
}

// Clean tells whether nothing is left.
func (r Residue) Clean() bool { return len(r.Processes) == 0 && len(r.Problems) == 0 }

// Events takes what belongs on the trail. Record returns once the event is durable.
type Events interface {
	Record(ctx context.Context, event *curfewv1.Event) error
}

// Config of a Manager.
type Config struct {
	// Dir keeps one file per session; on a tmpfs, 0700, owned by root: /run/curfew/sessions. It is
	// made when it is missing.
	Dir string
	// Host is the host's name for warnings.
	Host string
	// UIDMin and UIDMax bound the uids of Curfew accounts, both included.
	UIDMin, UIDMax uint32
	Clock          func() grant.Clock
	Events         Events
	// MayHold tells whether a local user may hold a gid by the host's own files, or is none of Curfew's
	// to touch. Nil is nobody.
	MayHold func(uid, gid uint32) bool
	// OnChange is told when a session opened or ended; it must not block. Nil is nobody.
	OnChange func()
	// Backstop is the command that ends a request without the agent, to which PID 1's timer adds the
	// request id as last argument, such as {"/usr/bin/curfew-agent", "purge", "--request"}.
	Backstop []string
	Log      hclog.Logger
}

func (c Config) check() error {
	switch {
	case c.Dir == "" || c.Dir[0] != '/':
		return fmt.Errorf("session: Dir %q is not an absolute path", c.Dir)
	case c.Clock == nil || c.Events == nil || c.Log == nil:
		return errors.New("session: Clock, Events and Log are required")
	case c.UIDMin < firstPerson || c.UIDMin > c.UIDMax:
		return fmt.Errorf("session: uids %d to %d are no range of people's", c.UIDMin, c.UIDMax)
	case len(c.Backstop) == 0 || len(c.Backstop[0]) == 0 || c.Backstop[0][0] != '/':
		return fmt.Errorf("session: backstop command %q has no absolute path", c.Backstop)
	}
	return grant.CheckHostName(c.Host)
}
