package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// NewCodes is a set of break-glass codes as the root half gets it: it never sees the codes.
type NewCodes struct {
	Set    breakglass.SetID  `json:"set"`
	Hashes []breakglass.Hash `json:"hashes"`
	// Sealed is the BreakGlassSet for the control plane; empty when the codes were sealed to nobody.
	Sealed []byte `json:"sealed,omitempty"`
	// Custodians are the names of those who can open it, for the trail.
	Custodians string `json:"custodians,omitempty"`
	// Printed: the codes were printed too.
	Printed bool `json:"printed,omitempty"`
}

func (n NewCodes) printed() string {
	if n.Printed {
		return "true"
	}
	return ""
}

// FirstCodes puts codes in force on a host whose root half does not run yet: curfew-agent join does.
func FirstCodes(root string, in NewCodes) error {
	clock, err := expiry.SystemClock()
	if err != nil {
		return err
	}
	e := &Enforce{cfg: EnforceConfig{Root: root, Clock: clock}}
	s, err := store.Open(store.Config{Directory: e.path(enforce.StateDir)})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // everything in it was fsynced
	ledger, err := s.Ledger()
	if err != nil {
		return err
	}
	log := hclog.NewNullLogger()
	o := &owner{
		cfg: e.cfg, store: s, ledger: ledger, log: log, machine: e.machine(),
		rec: newRecorder(s.Events(), clock, log), up: &uplink{}, problems: make(map[string]string),
	}
	return o.putCodes(in)
}

// HostFacts is what making codes needs of a host.
type HostFacts struct {
	Host  grant.HostID
	Name  string
	Trust *grant.Trust
}

// ReadHost reads what making codes needs from the store below root; it changes nothing, and the root
// half may run meanwhile.
func ReadHost(root string) (facts HostFacts, err error) {
	e := &Enforce{cfg: EnforceConfig{Root: root}}
	s, err := store.Open(store.Config{Directory: e.path(enforce.StateDir), WithoutEvents: true})
	if err != nil {
		return facts, err
	}
	defer func() { _ = s.Close() }() // only read
	ledger, err := s.Ledger()
	if err != nil {
		return facts, err
	}
	host, err := s.Host()
	return HostFacts{Host: ledger.Host(), Name: host.Name, Trust: ledger.Trust()}, err
}

// offerCodes sends the sealed set to the control plane, when that has another one or none.
func (o *owner) offerCodes() {
	codes := o.ledger.Codes()
	if len(codes.Spent) == 0 || !o.up.connected() || o.codesThere == codes.Set {
		return
	}
	raw, err := o.store.SealedCodes()
	if err != nil || len(raw) == 0 {
		if err != nil {
			o.log.Error("the sealed break-glass codes cannot be read", "error", err)
		}
		return
	}
	set := new(curfewv1.BreakGlassSet)
	if err := proto.Unmarshal(raw, set); err != nil || string(set.GetSetId()) != string(codes.Set[:]) {
		o.log.Error("the sealed break-glass codes are not those in force; run curfew-agent break-glass renew",
			"error", err)
		return
	}
	o.codesThere = codes.Set
	o.up.send(&curfewv1.HostMessage{Body: &curfewv1.HostMessage_BreakGlassSet{BreakGlassSet: set}})
}

const (
	// codesUnit makes new codes: sealing is a command's work, and the root half runs no other program.
	codesUnit = "curfew-codes.service"
	// renewEvery bounds how often the control plane's word voids a set.
	renewEvery = 10 * time.Minute
)

// renewal is the control plane's wish for a new set of codes.
type renewal struct {
	// wanted is the set that is to be replaced; what is another set's was done.
	wanted []byte
	// started is when the last one was, on the boot-time clock, and of which set.
	started    time.Duration
	of         breakglass.SetID
	everBefore bool
}

// renewCodes has new codes made when the control plane wants some, and says when none came of it.
func (o *owner) renewCodes(ctx context.Context) {
	r, set, now := &o.renewal, o.ledger.Codes().Set, o.cfg.Clock().Boot
	if len(r.wanted) == 0 || string(r.wanted) != string(set[:]) || !o.settings.BreakGlass.Enabled {
		r.wanted = nil
		o.problem("break-glass renewal", nil)
		return
	}
	if r.everBefore && now-r.started < renewEvery {
		if r.of == set && now-r.started > renewEvery/10 {
			o.problem("break-glass renewal", fmt.Errorf("new break-glass codes are asked for, and none were "+
				"made; see journalctl -u %s", codesUnit))
		}
		return
	}
	r.started, r.of, r.everBefore = now, set, true
	o.log.Info("new break-glass codes are asked for")
	run := o.cfg.RenewCodes
	if run == nil {
		run = func(ctx context.Context) error { return session.StartUnit(ctx, codesUnit) }
	}
	o.spawnSmall(ctx, func() {
		if err := run(ctx); err != nil {
			o.log.Error("new break-glass codes cannot be made", "error", err)
		}
	})
}

// health is how the host stands with its codes, for heartbeats.
func (o *owner) codesHealth() *curfewv1.BreakGlassHealth {
	codes := o.ledger.Codes()
	h := &curfewv1.BreakGlassHealth{
		Enabled: o.settings.BreakGlass.Enabled, MaxDurationMs: o.settings.BreakGlass.MaxDuration.Milliseconds(),
		Codes: uint32(len(codes.Spent)),
	}
	if len(codes.Spent) > 0 {
		h.SetId, h.MadeMs = codes.Set[:], codes.Made.UnixMilli()
	}
	if o.codesUsable() == nil {
		h.Left = uint32(codes.Left())
	}
	for _, l := range o.ledger.Live(o.cfg.Clock()) {
		if l.Local {
			h.Open++
		}
	}
	return h
}

// welcomed takes in which set of codes the control plane holds.
func (o *owner) welcomed(set []byte) {
	o.codesThere = breakglass.SetID{}
	if len(set) == len(o.codesThere) {
		o.codesThere = breakglass.SetID(set)
	}
	o.offerCodes()
}

// describeCodes is one line for people.
func describeCodes(h *curfewv1.BreakGlassHealth) string {
	if !h.GetEnabled() {
		return ""
	}
	return fmt.Sprintf("%d of %d codes left", h.GetLeft(), h.GetCodes())
}
