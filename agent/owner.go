package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/gate"
	"github.com/curfew-access/curfew/agent/modeswitch"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// maxCalls bounds what waits for the owner; who comes when it is full waits himself.
const maxCalls = 256

// owner is the one goroutine that changes the ledger. Everybody else hands it functions through a
// bounded queue, and reads what it publishes. It never runs another program and never waits for a
// process to die: those jobs run beside it and come back as functions.
type owner struct {
	cfg      EnforceConfig
	store    *store.Store
	rec      *recorder
	recon    *enforce.Reconciler
	sessions *session.Manager
	gate     *gate.Server
	timer    *expiry.Timer
	up       *uplink
	// machine tells this machine from a clone of it in the hello: containers share the kernel's boot id.
	machine string
	log     hclog.Logger
	calls   chan func(context.Context)
	stopped chan struct{} // closed when nobody takes calls any more
	// jobs has one token per small job that runs beside; beside is waited for at the end.
	jobs   chan struct{}
	beside sync.WaitGroup

	// homes and making are for making homes, which the gate's goroutines do.
	homes  atomic.Pointer[homeRules]
	making sync.Mutex
	// once are the live grants that have something to spend: a first use or the only one.
	once atomic.Pointer[map[grant.ID]bool]

	// What follows belongs to the owner's goroutine.
	ledger   *grant.Ledger
	settings Settings
	// modes is where the switch of enforcing is, thrown what it said last, and marked that the PAM module
	// observes by a mark of root's.
	modes    modeswitch.Dir
	thrown   *modeswitch.Switch
	marked   bool
	fromFile bool // there was a file that said something
	results  []enforce.Result
	// said is what was last recorded of each live grant, so that each word is said once.
	said map[grant.ID]string
	// armed is what PID 1's timer of a request was set for.
	armed map[string]armed
	// condemned are grants that a state has ended, while the ledger that says so cannot be kept.
	condemned map[grant.ID]bool
	finished  bool // the ledger has forgotten endings that are over, and the disk has not
	ending    map[string]*ending
	killing   bool // a batch of them is dying
	left      *leftovers
	seen      useWatch
	// carried are grants that an extension has replaced while it is still being checked: their files
	// stay until the extension's stand, so that nobody loses access in between.
	carried   map[grant.ID]grant.Live
	checking  bool
	ack       *pendingAck
	leaseOver bool
	// leaseFor is how long the newest lease was when it was given, and leaseWarned: half of it is over.
	leaseFor    time.Duration
	leaseWarned bool
	saved       time.Time
	problems    map[string]string // by what they are about
	welcome     string            // the name the control plane calls this host by
	introduce   bool              // a heartbeat is due with the first state after a welcome
	refused     string            // why the control plane does not serve this host
	// heard is when the newest answer to one of this host's nonces came, on the boot-time clock; before
	// the first, when this program began, which cannot know.
	heard      time.Duration
	heardSince bool
	codesThere breakglass.SetID // the set of codes that the control plane has or was sent
	tries      map[uint32]tries // wrong break-glass codes
	renewal    renewal
	rollout    rollout
	// listed is when a state first listed a grant that does not stand yet, on the boot-time clock.
	listed map[grant.ID]time.Duration
	counts counts
}

// pendingAck is the answer to the newest state, once everything that it lists is applied or failed.
type pendingAck struct {
	epoch, sequence uint64
	missing         []grant.ID
}

// do runs f in the owner and waits for it.
func (o *owner) do(ctx context.Context, f func(context.Context)) error {
	done := make(chan struct{})
	call := func(ctx context.Context) { defer close(done); f(ctx) }
	select {
	case o.calls <- call:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// post runs f in the owner some time later.
func (o *owner) post(ctx context.Context, f func(context.Context)) {
	select {
	case o.calls <- f:
	case <-ctx.Done():
	case <-o.stopped:
	}
}

// run is the owner's goroutine.
func (o *owner) run(ctx context.Context, heartbeat <-chan struct{}, tell func()) error {
	defer close(o.stopped)
	beat := time.NewTicker(heartbeatEvery)
	defer beat.Stop()
	pulse := time.NewTicker(pulseEvery)
	defer pulse.Stop()
	// What opened or ended is told a moment later, all of that moment at once: a word costs the host and the
	// control plane a signed and synced state, which sudo need not wait behind.
	var soon <-chan time.Time
	o.lookAtUse(ctx)
	tell()
	trim := o.trim(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-o.calls:
			f(ctx)
		case <-beat.C:
			o.renewCodes(ctx)
			o.heartbeat()
			o.lookAtUse(ctx)
		case <-heartbeat:
			if soon == nil {
				soon = time.After(tellAfter)
			}
		case <-soon:
			soon = nil
			o.heartbeat()
		case <-pulse.C:
			if o.quiet() {
				continue
			}
			o.retryEndings(ctx)
			o.endUsed(ctx)
			o.settleMode(ctx)
		}
		tell()
		trim()
	}
}

// quiet tells whether there is nothing to see to each second: no grant, nothing that ends, no trial, and no mark
// of observing. Most hosts are quiet most of the time, and looking closer costs them each second.
func (o *owner) quiet() bool {
	held := o.holds()
	return len(o.results) == 0 && len(o.ending) == 0 && !o.finished && (held == nil || held.Trial == nil) &&
		!o.marked && !o.modes.Marked(modeswitch.MarkObserve)
}

// spawn runs a job beside the owner. There is one check at a time, and one kill per batch.
func (o *owner) spawn(job func()) {
	o.beside.Add(1)
	go func() {
		defer o.beside.Done()
		job()
	}()
}

// spawnSmall runs small jobs beside the owner; a few of all that there are run at once. Those that wait do
// so as one goroutine: the runtime never gives back what it knows of a thousand.
func (o *owner) spawnSmall(ctx context.Context, jobs ...func()) {
	o.spawn(func() {
		for _, job := range jobs {
			select {
			case o.jobs <- struct{}{}:
			case <-ctx.Done():
				return
			}
			o.spawn(func() {
				defer func() { <-o.jobs }()
				job()
			})
		}
	})
}

// deliver takes a message from the control plane.
func (o *owner) deliver(ctx context.Context, m *curfewv1.ControlMessage) (err error) {
	errDo := o.do(ctx, func(ctx context.Context) {
		switch body := m.GetBody().(type) {
		case *curfewv1.ControlMessage_Welcome:
			o.welcome, o.refused = body.Welcome.GetHostName(), ""
			o.log.Info("the control plane serves this host", "name", o.welcome)
			o.publishGate()
			o.introduce = true
			o.welcomed(body.Welcome.GetBreakGlassSet())
		case *curfewv1.ControlMessage_BreakGlassRenew:
			o.renewal.wanted = body.BreakGlassRenew.GetSetId()
			o.renewCodes(ctx)
		case *curfewv1.ControlMessage_Trust:
			o.acceptTrust(body.Trust.GetEnvelope())
		case *curfewv1.ControlMessage_Grant:
			o.acceptGrant(body.Grant.GetEnvelope())
		case *curfewv1.ControlMessage_State:
			o.acceptState(ctx, body.State)
		case *curfewv1.ControlMessage_EventAck:
			err = o.rec.acknowledged(body.EventAck.GetCount())
		case *curfewv1.ControlMessage_Refused:
			o.refused = grant.VisibleText(body.Refused.GetReason())
			o.log.Error("the control plane refuses this host", "reason", o.refused)
			// Nobody has signed this, but it can only close: a cloned image must open nothing more.
			o.publishGate()
		default:
			// Of a control plane of the next version. To end the connection would cut this host off for
			// good; nothing in a message that is not understood opens anything.
			o.log.Warn("a message of unknown kind is ignored")
		}
	})
	return errors.Join(errDo, err)
}

func (o *owner) acceptTrust(env []byte) {
	next := o.ledger.Clone()
	err := next.AcceptTrust(env)
	if err == nil {
		err = o.save(next)
	}
	if err != nil {
		o.rec.note(trail.KindTrustRejected, func(e *curfewv1.Event) {
			e.Details = detail("error", err.Error())
		})
		return
	}
	o.ledger = next
	o.rec.note(trail.KindTrustAccepted, func(e *curfewv1.Event) {
		e.Details = detail("version", fmt.Sprint(next.TrustVersion()))
	})
}

// acceptGrant verifies a grant and holds it. It becomes durable with the state that lists it; until
// then nothing rests on it.
func (o *owner) acceptGrant(env []byte) {
	// In its place: a refusal is remembered too, and a copy for each of a thousand grants is a thousand
	// times a thousand.
	before := o.ledger.Held()
	id, err := o.ledger.AcceptGrant(env, o.cfg.Clock(), o.settings.ceiling())
	if err == nil && o.ledger.Held() == before {
		return // it was held already
	}
	kind := trail.KindGrantAccepted
	if err != nil {
		kind = trail.KindGrantRejected
	}
	o.rec.note(kind, func(e *curfewv1.Event) {
		if id != (grant.ID{}) {
			e.GrantId = id[:]
		}
		if err != nil {
			e.Details = detail("error", err.Error())
		}
	})
}

// acceptState takes a newer list of live grants: kept first, then enforced, then acknowledged.
func (o *owner) acceptState(ctx context.Context, msg *curfewv1.State) {
	next := o.ledger.Clone()
	change, err := next.AcceptState(msg, o.cfg.Clock())
	if err != nil {
		o.refuseState(err)
		return
	}
	if len(change.Started) > 0 {
		// Somebody waits for these: the host's programs are asked while the disk writes. Nothing opens by that.
		o.recon.Retry()
		s := o.state()
		s.Live = append(s.Live, change.Started...)
		o.check(ctx, s)
	}
	if err := o.save(next); err != nil {
		// Nothing opens on what cannot be kept; what ended is over all the same.
		for _, e := range change.Ended {
			if !extended(e) {
				o.condemned[e.ID] = true
			}
		}
		o.refuseState(err)
		o.ended(ctx, change.Ended)
		o.reconcile(ctx)
		return
	}
	o.ledger = next
	clear(o.condemned)
	o.ack = &pendingAck{epoch: next.Epoch(), sequence: next.Sequence(), missing: change.Missing}
	if change.LeaseRenewed {
		o.heard, o.heardSince = o.cfg.Clock().Boot, true
		o.leaseRenewed()
	}
	for _, l := range change.Started {
		o.listed[l.ID] = o.cfg.Clock().Boot
	}
	o.ended(ctx, change.Ended)
	o.reconcile(ctx)
	o.wished(ctx, change.Rollout)
	if o.introduce { // people look at a host's mode and problems as soon as it is there
		o.introduce = false
		o.heartbeat()
	}
}

func (o *owner) refuseState(err error) {
	o.rec.note(trail.KindStateRejected, func(e *curfewv1.Event) {
		e.Details = detail("error", err.Error())
	})
	o.up.send(&curfewv1.HostMessage{Body: &curfewv1.HostMessage_Ack{Ack: &curfewv1.Ack{
		Epoch: o.ledger.Epoch(), Sequence: o.ledger.Sequence(), Detail: grant.VisibleText(err.Error()),
		TrailCount: o.ledger.TrailCount(),
	}}})
}

// save makes a ledger durable, which must come before anything rests on it.
func (o *owner) save(l *grant.Ledger) error {
	err := o.store.SaveLedger(l)
	o.problem("store", err)
	if err == nil {
		o.saved = o.cfg.Clock().Wall
	}
	return err
}

// problem notes or clears what is wrong about something, and records it once.
func (o *owner) problem(about string, err error) {
	if err == nil {
		delete(o.problems, about)
		return
	}
	if o.problems[about] == err.Error() {
		return
	}
	o.problems[about] = err.Error()
	o.rec.note(trail.KindProblem, func(e *curfewv1.Event) {
		e.Details = detail("about", about, "error", err.Error())
	})
}

// due is called when a deadline has come, every 30 s, and when the clock was set.
func (o *owner) due(ctx context.Context, d expiry.Due) {
	if d.Cause == expiry.CauseJump {
		o.log.Warn("the wall clock was set", "by", d.Jump)
		o.rec.note(trail.KindClockJumped, func(e *curfewv1.Event) {
			e.Details = detail("by", d.Jump.String())
		})
	}
	if d.Cause == expiry.CauseRescan {
		o.recon.Retry()
		o.disarmStale(ctx)
	}
	next := o.ledger.Clone()
	change := next.Tick(o.cfg.Clock())
	if len(change.Ended) > 0 || o.cfg.Clock().Wall.Sub(o.saved).Abs() > saveEvery {
		// When this fails the grants are over all the same: their ends are on disk.
		_ = o.save(next) // save says so
	}
	o.ledger = next
	o.ended(ctx, change.Ended)
	o.tellAgain()
	o.reconcile(ctx)
	if d.Cause == expiry.CauseJump || o.mayOpen() != nil {
		// After a suspend the next heartbeat may be half a minute away; a new state may heal this now.
		o.heartbeat()
	}
}

// hello makes the cursor that opens a connection.
func (o *owner) hello(ctx context.Context) (m *curfewv1.HostMessage, err error) {
	errDo := o.do(ctx, func(context.Context) {
		now := o.cfg.Clock()
		nonce, errNonce := o.ledger.NewNonce(now, rand.Reader)
		if errNonce != nil {
			err = errNonce
			return
		}
		host, chain := o.ledger.Host(), o.rec.chain()
		h := &curfewv1.Hello{
			Protocol: 1, HostId: host[:], AgentVersion: o.cfg.Version,
			BootId:       now.BootID + o.machine,
			TrustVersion: o.ledger.TrustVersion(), Epoch: o.ledger.Epoch(),
			Sequence: o.ledger.Sequence(), TrailCount: o.ledger.TrailCount(),
			TrailHead: o.ledger.TrailHead(), EventCount: chain.Count, EventHead: chain.Head, Nonce: nonce,
		}
		for _, id := range o.ledger.HeldIDs() {
			if !o.ledger.IsLocal(id) { // the control plane has no such grant
				h.GrantIds = append(h.GrantIds, id[:])
			}
		}
		m = &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Hello{Hello: h}}
	})
	return m, errors.Join(errDo, err)
}

// heartbeat says what runs and how the host is; its nonce renews the lease.
func (o *owner) heartbeat() {
	if !o.up.connected() {
		return
	}
	now := o.cfg.Clock()
	nonce, err := o.ledger.NewNonce(now, rand.Reader)
	if err != nil {
		o.log.Error("no heartbeat", "error", err)
		return
	}
	o.up.send(&curfewv1.HostMessage{Body: &curfewv1.HostMessage_Heartbeat{
		Heartbeat: &curfewv1.Heartbeat{
			Nonce: nonce, Sessions: o.sessions.Sessions(), Mode: o.word(),
			Problems: o.allProblems(), DriftRepaired: o.recon.DriftRepaired(),
			TimeMs: now.Wall.UnixMilli(), BreakGlass: o.codesHealth(), Rollout: o.rolloutReport(),
		},
	}})
}
