// Package agent is the root half of a host: it verifies what the control plane sends, keeps it, makes
// the host equal to it, answers PAM and takes everything back on time.
//
// It has root and no network: what comes from the control plane comes through the link half
// (agent/link, another process) as bounded frames over /run/curfew/link.sock, and everything in them
// is checked against the host's own trust file (internal/grant). This file wires the rooms together
// and is the only one that knows them all; owner.go is the one goroutine that changes the ledger.
// Nothing here decides whether a grant is good or when it ends: internal/grant does.
package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/keys"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/gate"
	"github.com/curfew-access/curfew/agent/seen"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	heartbeatEvery = 30 * time.Second
	pulseEvery     = time.Second
	// tellAfter is how long after a session opened or ended the control plane hears of it.
	tellAfter   = 500 * time.Millisecond
	saveEvery   = time.Minute
	maxJobs     = 8
	toolTimeout = 2 * time.Second

	// LinkUser runs the link half.
	LinkUser = "curfew-link"
)

// EnforceConfig is what the root half needs.
type EnforceConfig struct {
	// Root is the folder that all paths start from, "/" on a host.
	Root string
	// Program is this program's own path, which PID 1's timers run.
	Program string
	Version string
	Clock   func() grant.Clock
	Log     hclog.Logger
	// Gate is the gate socket on which systemd listens; nil has NewEnforce listen, who asks while there is
	// no root half is refused then.
	Gate *net.UnixListener
	// Look has the residue worker run; it does not wait for it. Nil has PID 1 start its unit.
	Look func(context.Context) error
	// RenewCodes has new break-glass codes made and put in force; it does not wait for it. Nil has PID 1
	// start its unit.
	RenewCodes func(context.Context) error
	// FollowRollout has the host looked over for a rollout; it does not wait for it. Nil has PID 1 start
	// its unit.
	FollowRollout func(context.Context) error
}

// Enforce is the root half.
type Enforce struct {
	cfg    EnforceConfig
	store  *store.Store
	owner  *owner
	gate   *gate.Server
	link   *net.UnixListener
	admin  *net.UnixListener
	users  *net.UnixListener
	gauges *net.UnixListener
	beats  chan struct{}
	closed []func() error
}

// NewEnforce opens the store and everything that the root half works with. It changes no access yet.
func NewEnforce(cfg EnforceConfig) (*Enforce, error) {
	switch {
	case !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.Program):
		return nil, errors.New("agent: root and program are absolute paths")
	case cfg.Clock == nil || cfg.Log == nil || cfg.Version == "":
		return nil, errors.New("agent: clock, log and version are needed")
	}
	e := &Enforce{cfg: cfg, beats: make(chan struct{}, 1)}
	if err := e.open(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// Close releases what NewEnforce opened. Access stays as it is.
func (e *Enforce) Close() error {
	var errs []error
	for i := len(e.closed) - 1; i >= 0; i-- {
		errs = append(errs, e.closed[i]())
	}
	e.closed = nil
	return errors.Join(errs...)
}

func (e *Enforce) path(name string) string { return filepath.Join(e.cfg.Root, name) }

func (e *Enforce) open() error {
	settings, said, err := loadSettings(e.path(ConfigPath))
	if err != nil {
		return err
	}
	e.store, err = store.Open(store.Config{Directory: e.path(enforce.StateDir)})
	if err != nil {
		return err
	}
	e.closed = append(e.closed, e.store.Close)
	key, err := e.store.Key()
	if err != nil {
		return err
	}
	ledger, err := e.store.Ledger()
	if err != nil {
		return err
	}
	host, err := e.store.Host()
	if err != nil {
		return err
	}
	o := &owner{
		cfg: e.cfg, store: e.store, log: e.cfg.Log, ledger: ledger,
		rec:     newRecorder(e.store.Events(), e.cfg.Clock, e.cfg.Log),
		stopped: make(chan struct{}),
		calls:   make(chan func(context.Context), maxCalls), jobs: make(chan struct{}, maxJobs),
		said: make(map[grant.ID]string), armed: make(map[string]armed),
		condemned: make(map[grant.ID]bool), carried: make(map[grant.ID]grant.Live),
		ending:   make(map[string]*ending),
		problems: make(map[string]string), welcome: host.Name,
		tries: make(map[uint32]tries), heard: e.cfg.Clock().Boot,
		listed: make(map[grant.ID]time.Duration), counts: newCounts(),
	}
	o.use(settings)
	o.fromFile = said
	o.modes = SwitchDir(e.cfg.Root)
	o.readSwitch()
	o.machine = e.machine()
	cursor, err := e.store.Cursor()
	if err != nil {
		return err
	}
	o.seen = useWatch{
		journal: seen.Journal{Program: e.path("usr/bin/journalctl"), Cursor: cursor}, tally: seen.NewTally(),
	}
	e.owner = o
	if err := e.openLeftovers(o); err != nil {
		return err
	}
	if err := e.openHost(o, host.Name); err != nil {
		return err
	}
	o.up = &uplink{
		key: key, rec: o.rec, log: e.cfg.Log, hello: o.hello, deliver: o.deliver,
		allowed: e.linkUID(),
	}
	return e.listen(host.Name)
}

// openHost opens what works on the host itself.
func (e *Enforce) openHost(o *owner, host string) (err error) {
	o.recon, err = enforce.New(enforce.Config{
		Root: e.cfg.Root, UIDs: e.store, Log: e.cfg.Log,
		Keys: keys.Detect(context.Background(), e.path("usr/sbin/sshd"), e.path("usr/bin/ssh")),
		Checker: sudoers.Checker{
			Sudo: e.path("usr/bin/sudo"), Visudo: e.path("usr/sbin/visudo"), Cvtsudoers: e.path("usr/bin/cvtsudoers"),
			Sudoers: e.path("etc/sudoers"), Timeout: toolTimeout, Known: new(sudoers.Known),
		},
		Directory: account.Directory{
			Getent: e.path("usr/bin/getent"), Nscd: e.path("usr/sbin/nscd"),
			NscdSocket: e.path("run/nscd/socket"), Timeout: toolTimeout,
		},
		Drift: func(repairs []enforce.Repair) { o.drifted(repairs) },
	})
	if err != nil {
		return err
	}
	e.closed = append(e.closed, o.recon.Close)
	o.sessions, err = session.New(session.Config{
		Dir: e.path(enforce.RunDir + "/sessions"), Host: host,
		UIDMin: o.settings.UIDRange.Min, UIDMax: o.settings.UIDRange.Max,
		Clock: e.cfg.Clock, Events: o.rec, Log: e.cfg.Log, OnChange: e.beat,
		MayHold: func(uid, gid uint32) bool {
			return mayHold(o.recon.Local(), o.homes.Load().rules.BreakGlass, uid, gid)
		},
		Backstop: []string{e.cfg.Program, "purge", "--request"},
	})
	if err != nil {
		return err
	}
	o.timer, err = expiry.New(expiry.Config{
		Clock: e.cfg.Clock, OnDue: func(d expiry.Due) {
			o.post(context.Background(), func(ctx context.Context) { o.due(ctx, d) })
		},
		// What ends access is a deadline's timer, this loop and the owner. Systemd hears that the program
		// lives only through all three.
		Pulse: e.watchdog() / 4,
		OnPulse: func() {
			o.post(context.Background(), func(context.Context) { e.notify(daemon.SdNotifyWatchdog) })
		},
	})
	return err
}

func (e *Enforce) listen(host string) (err error) {
	o := e.owner
	socket, path := e.cfg.Gate, e.path(enforce.RunDir+"/gate.sock")
	if socket != nil && !gate.Stands(path) {
		e.cfg.Log.Error("the gate's socket is not systemd's any more; logins wait for no restart until "+
			"systemctl stop curfew-gate.socket, systemctl start curfew-enforce", "path", path)
		err, socket = socket.Close(), nil
	}
	if err == nil && socket == nil {
		socket, err = gate.Listen(path)
	}
	if err != nil {
		return err
	}
	e.closed = append(e.closed, closer(socket))
	o.gate, err = gate.New(gate.Config{
		Listener: socket, Host: host, Sessions: &opener{Manager: o.sessions, owner: o},
		Events: o.rec, Clock: e.cfg.Clock, Log: e.cfg.Log,
	})
	if err != nil {
		return err
	}
	e.gate = o.gate
	if e.link, err = listen(e.path(enforce.RunDir+"/link.sock"), 0o660, e.linkGID()); err != nil {
		return err
	}
	e.closed = append(e.closed, closer(e.link))
	if e.admin, err = listen(e.path(enforce.RunDir+"/admin.sock"), 0o600, 0); err != nil {
		return err
	}
	e.closed = append(e.closed, closer(e.admin))
	if e.users, err = listen(e.path(enforce.RunDir+"/"+UserSocket), 0o666, 0); err != nil {
		return err
	}
	e.closed = append(e.closed, closer(e.users))
	e.gauges, err = listen(e.path(enforce.RunDir+"/"+MetricsSocket), 0o660, e.linkGID())
	if err != nil {
		return err
	}
	e.closed = append(e.closed, closer(e.gauges))
	return nil
}

// machine is a short suffix that differs between machines with one kernel and one key. The machine's
// id itself is not to be shown to others (machine-id(5)).
func (e *Enforce) machine() string {
	id, err := os.ReadFile(e.path("etc/machine-id"))
	if err != nil || len(id) > 64 {
		return ""
	}
	sum := sha256.Sum256(append([]byte("curfew machine v1\x00"), id...))
	return "-" + hex.EncodeToString(sum[:8])
}

// closer closes a listener that Run may have closed already.
func closer(l *net.UnixListener) func() error {
	return func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// linkUID is the uid that may use the link socket beside root. Without such a user only root may.
func (e *Enforce) linkUID() uint32 {
	if l, err := account.ReadLocal(e.cfg.Root); err == nil {
		if u, ok := l.User(LinkUser); ok {
			return u.UID
		}
	}
	e.cfg.Log.Error("the user curfew-link is missing; run systemd-sysusers")
	return 0
}

func (e *Enforce) linkGID() int {
	if l, err := account.ReadLocal(e.cfg.Root); err == nil {
		if g, ok := l.Group(LinkUser); ok {
			return int(g.GID)
		}
	}
	return 0
}

// beat asks for a heartbeat soon. It never waits.
func (e *Enforce) beat() {
	select {
	case e.beats <- struct{}{}:
	default:
	}
}

// Run expires what is over, makes the host equal to the ledger, and then serves until ctx ends. It
// leaves access as it is when it returns: the deadlines on disk and PID 1's timers end it.
func (e *Enforce) Run(ctx context.Context) error {
	o := e.owner
	if err := o.boot(ctx); err != nil {
		return fmt.Errorf("making the host equal to its grants: %w", err)
	}
	// The gate ends first: who has asked gets an answer, which takes all of the rest.
	asking, quit := context.WithCancel(ctx)
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, quit)()
	group.Go(func() error { defer end(); return e.gate.Run(asking) })
	group.Go(func() error { return o.run(ctx, e.beats, e.tell()) })
	group.Go(func() error { return o.timer.Run(ctx) })
	group.Go(func() error { return o.sessions.Run(ctx) })
	group.Go(func() error { return o.recon.Run(ctx) })
	group.Go(func() error { return o.up.serve(ctx, e.link) })
	group.Go(func() error { return o.serveAdmin(ctx, e.admin) })
	group.Go(func() error {
		return (&userDesk{owner: o, open: make(map[uint32]int)}).serve(ctx, e.users)
	})
	group.Go(func() error { return o.serveMetrics(ctx, e.gauges) })
	group.Go(func() error { return o.watchSettings(ctx, e.path(ConfigPath)) })
	e.notify(daemon.SdNotifyReady)
	e.cfg.Log.Info("serving", "mode", o.word(), "host", o.ledger.Host(), "version", e.cfg.Version)
	err := group.Wait()
	e.notify(daemon.SdNotifyStopping)
	o.beside.Wait()
	o.tellUse(true)
	o.rec.note(trail.KindAgentStopped, nil)
	return err
}

// boot runs before anything is served and before the owner's goroutine: what ended while nobody
// watched is closed first.
func (o *owner) boot(ctx context.Context) error {
	o.rec.note(trail.KindAgentStarted, func(ev *curfewv1.Event) {
		ev.Details = detail("version", o.cfg.Version, "mode", o.word())
	})
	next := o.ledger.Clone()
	next.Tick(o.cfg.Clock())
	err := o.save(next)
	o.ledger = next
	if err != nil {
		o.doubt()
	}
	o.ended(ctx, next.Ending()) // those too that an agent before this one was killed in
	o.orphans()
	o.unfinished()
	o.reconcile(ctx)
	o.settleMode(ctx)
	if why := o.problems["enforce"]; why != "" && len(o.recon.Local().Users) == 0 {
		return errors.New(why)
	}
	return nil
}

// doubt closes the grants whose files do not stand, at the start of a root half that cannot write to
// its disk: the one before it may have ended them without being able to keep that. Those whose files
// it left stay, and the next state that can be kept puts all of them right.
func (o *owner) doubt() {
	for _, l := range o.live() {
		if !o.recon.Stands(l, o.settings.rules()) {
			o.condemned[l.ID] = true
			o.log.Error("a grant stays closed: the disk cannot be written to, and its files are not there",
				"grant", l.ID, "request", l.Terms.GetRequestId())
		}
	}
}

// status is one line for systemctl status.
func (o *owner) status() string {
	var parts []string
	applied := 0
	var end time.Time
	for _, r := range o.results {
		if r.Applied() {
			applied++
		}
		if end.IsZero() || r.Live.End.Before(end) {
			end = r.Live.End
		}
	}
	parts = append(parts, fmt.Sprintf("%s, %d grants", o.word(), applied))
	if !end.IsZero() {
		parts = append(parts, "next end "+end.UTC().Format(time.RFC3339))
	}
	if !o.up.connected() {
		parts = append(parts, "link half not connected")
	}
	if n := len(o.problems); n > 0 {
		parts = append(parts, fmt.Sprintf("%d problems: see curfew-agent status", n))
	}
	return strings.Join(parts, "; ")
}
