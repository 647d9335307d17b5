// Package link is the unprivileged half of the agent: it holds the TLS identity, keeps one gRPC
// stream to the control plane and relays frames between it and the root half's socket (PROTOCOL.md
// sections 2 and 3).
//
// It understands none of what it carries: it can read, delay and drop messages, not alter them. It
// is the only package of the agent that links gRPC, and it may not touch anything outside its own
// folder and the link socket. What it knows comes from Join and from the control plane's
// certificates; what it carries goes to the root half as it came.
package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// DefaultSocket is where the root half listens.
const DefaultSocket = "/run/curfew/link.sock"

// Config is what a Link needs.
type Config struct {
	// Directory holds what Join wrote: link.key, link.crt, ca.crt, link.json. 0700, the link's own.
	Directory string
	// Socket is the root half's link socket; empty takes DefaultSocket.
	Socket string
	// Server overrides the address that Join wrote, as host:port.
	Server string
	// MachineID overrides the path of that name.
	MachineID string
	Now       func() time.Time
	Log       hclog.Logger
	// Timing overrides the defaults; its zero value takes all of them.
	Timing Timing
	// Metrics is where metrics and health are served over HTTP, HOST:PORT; empty for nowhere.
	Metrics string
	// MetricsSocket is where the root half says how it is; empty takes DefaultMetricsSocket.
	MetricsSocket string
}

// Timing bounds what a Link waits for.
type Timing struct {
	// MinBackoff and MaxBackoff bound the pause between two connections before jitter: 200 ms and
	// 15 s.
	MinBackoff, MaxBackoff time.Duration
	// Unreached takes MaxBackoff's place while the control plane's address does not answer at all,
	// and bounds each try to reach it: 2 s. What was cut off is back within 5 s of the network.
	Unreached time.Duration
	// Connect is how long a connection may take to be ready: 10 s.
	Connect time.Duration
	// Ping and PingTimeout are gRPC's keep-alive, 10 s and 8 s; gRPC raises a Ping below 10 s.
	Ping, PingTimeout time.Duration
	// Write is how long the root half may leave a frame untaken: 20 s.
	Write time.Duration
	// RenewCheck is how often the certificate's age is looked at: 1 min.
	RenewCheck time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.MinBackoff, 200 * time.Millisecond},
		{&t.MaxBackoff, 15 * time.Second},
		{&t.Unreached, 2 * time.Second},
		{&t.Connect, 10 * time.Second},
		{&t.Ping, 10 * time.Second},
		{&t.PingTimeout, 8 * time.Second},
		{&t.Write, 20 * time.Second},
		{&t.RenewCheck, time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return t
}

// Link relays between the control plane and the root half.
type Link struct {
	id     *identity
	server string
	socket string
	now    func() time.Time
	log    hclog.Logger
	timing Timing
	// reached is set when the present try has a TCP connection, carried when it has brought a frame
	// from the control plane.
	reached, carried atomic.Bool
	metrics          string
	gauges           *gauges
}

// New reads the identity that Join wrote. The error says what to do when the machine has not
// joined.
func New(c Config) (*Link, error) {
	if c.Directory == "" || c.Now == nil || c.Log == nil {
		return nil, errors.New("link: folder, clock or log is missing")
	}
	id, err := loadIdentity(c.Directory)
	if err != nil {
		return nil, fmt.Errorf("reading the identity of this host from %s: %w", c.Directory, err)
	}
	if err := sameMachine(c.Directory, cmp.Or(c.MachineID, MachineID)); err != nil {
		return nil, err
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if c.Server == "" {
		c.Server = id.settings.Server
	}
	if c.MetricsSocket == "" {
		c.MetricsSocket = DefaultMetricsSocket
	}
	if _, _, err := net.SplitHostPort(c.Server); err != nil {
		return nil, fmt.Errorf("address of the control plane %q: want host:port", c.Server)
	}
	return &Link{
		id: id, server: c.Server, socket: c.Socket, now: c.Now, log: c.Log,
		timing: c.Timing.withDefaults(), metrics: c.Metrics, gauges: newGauges(id, c.MetricsSocket),
	}, nil
}

// Run keeps the stream up and the certificate fresh until ctx is done. It tells systemd READY at
// once: a host without a network is up, only alone.
func (l *Link) Run(ctx context.Context) error {
	l.tell(daemon.SdNotifyReady)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.keepConnected(ctx) })
	group.Go(func() error { return l.keepFresh(ctx) })
	group.Go(func() error { return l.feedWatchdog(ctx) })
	group.Go(func() error { return l.serveMetrics(ctx) })
	err := group.Wait()
	l.tell(daemon.SdNotifyStopping)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// keepConnected connects again and again, with full jitter so that the hosts of a restarted control
// plane do not come all at once.
func (l *Link) keepConnected(ctx context.Context) error {
	for failures := 0; ; failures++ {
		l.reached.Store(false)
		l.carried.Store(false)
		l.gauges.attempts.Inc()
		err := l.connectOnce(ctx)
		l.gauges.connected.Set(0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if l.carried.Load() {
			failures = 0
		}
		l.report(err)
		if err := pause(ctx, l.backoff(failures)); err != nil {
			return err
		}
	}
}

// longestPause bounds the pause after a try.
func (l *Link) longestPause() time.Duration {
	if !l.reached.Load() {
		return min(l.timing.MaxBackoff, l.timing.Unreached) // nobody there is troubled by another try
	}
	return l.timing.MaxBackoff
}

// backoff draws a pause: full jitter below a bound that doubles from MinBackoff to the longest.
func (l *Link) backoff(failures int) time.Duration {
	most := l.longestPause()
	bound := min(l.timing.MinBackoff, most)
	for range min(failures, 32) {
		if bound *= 2; bound >= most {
			bound = most
			break
		}
	}
	return rand.N(bound) + time.Millisecond
}

func (l *Link) report(err error) {
	text := "connecting again"
	switch status.Code(err) {
	case codes.PermissionDenied:
		text = "refused by the control plane: " + status.Convert(err).Message()
		l.log.Error("refused by the control plane", "why", status.Convert(err).Message())
	case codes.Unauthenticated:
		text = "certificate not accepted: " + status.Convert(err).Message()
		l.log.Error("certificate not accepted; renewing, or enrol anew", "error", err)
	default:
		l.log.Warn("not connected", "error", err)
	}
	l.tell("STATUS=" + text)
}

// feedWatchdog tells systemd that the process still turns, at half the interval that it asks for.
func (l *Link) feedWatchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return nil
	}
	for {
		l.tell(daemon.SdNotifyWatchdog)
		if err := pause(ctx, interval/2); err != nil {
			return err
		}
	}
}

func (l *Link) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		l.log.Debug("telling systemd", "error", err)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
