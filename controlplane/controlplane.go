// Package controlplane wires the control plane: it is the only file that knows all its children.
//
// New opens what `init` made and Run serves it until its context ends. It holds no rule.
package controlplane

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/api"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/rollout"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
)

const (
	drainTime = 5 * time.Second
	// trustPoll is how soon a trust file that `trust sign` put into the store reaches the hosts.
	trustPoll = 2 * time.Second
)

// Server is a control plane, ready to run.
type Server struct {
	config   Config
	log      hclog.Logger
	store    *store.Store
	bell     watch.Bell
	hub      *stream.Hub
	access   *access.Service
	rollouts *rollout.Service
	people   *identity.Service
	sender   *notify.Sender
	grpc     *grpc.Server
	health   *health.Server
	listener net.Listener
	// issuer is the key that this process seals with, authority the CA that it certifies by.
	issuer    ed25519.PublicKey
	authority *enrol.Authority
	// caTrouble is what was last said of the CA's files; watchTrust's goroutine owns it.
	caTrouble string

	scim         *http.Server // nil for none
	scimListener net.Listener

	figures         *figures
	metricsListener net.Listener // nil for none
	// self is how the server is reached as hosts and people do.
	self *tls.Config
}

// New opens the store, loads the keys and starts listening; nothing is served before Run.
func New(ctx context.Context, c Config, now func() time.Time, version string, log hclog.Logger) (
	s *Server, err error,
) {
	s = &Server{config: c, log: log, figures: newFigures(version)}
	hooks := make([]notify.Webhook, 0, len(c.Webhooks))
	urls := make([]string, 0, len(c.Webhooks))
	for _, w := range c.Webhooks {
		secret, err := notify.LoadSecret(w.SecretFile)
		if err != nil {
			return nil, err
		}
		hooks, urls = append(hooks, notify.Webhook{URL: w.URL, Secret: secret}), append(urls, w.URL)
	}
	mail, err := c.mailer()
	if err != nil {
		return nil, err
	}
	s.store, err = store.Open(ctx, store.Config{
		Path: filepath.Join(c.DataDir, storeFile), Webhooks: urls, Mail: mail != nil,
		OnCommit: s.changed, OnRecord: s.recorded, Took: s.figures.took, Now: now,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	s.sender, err = notify.New(notify.Config{
		Store: s.store, Webhooks: hooks, Mail: mail, Now: now, Log: log.Named("notify"),
	})
	if err != nil {
		return nil, err
	}
	if err := s.wire(now, version); err != nil {
		return nil, err
	}
	if err := s.listenSCIM(now); err != nil {
		return nil, err
	}
	if s.listener, err = net.Listen("tcp", s.config.Listen); err != nil {
		return nil, err
	}
	s.listenMetrics()
	return s, nil
}

// settle completes the configuration with what `init` was told, and refuses another organisation.
func (s *Server) settle(ctx context.Context) error {
	organisation, url, err := remembered(ctx, s.store)
	if err != nil {
		return err
	}
	if s.config.Organisation != "" && s.config.Organisation != organisation {
		return fmt.Errorf("organisation: the configuration says %s, the store is of %s; "+
			"hosts obey the store's", s.config.Organisation, organisation)
	}
	s.config.Organisation = organisation
	if s.config.URL == "" {
		s.config.URL = url
	}
	return nil
}

// wire builds every part; the order is that of their needs.
func (s *Server) wire(now func() time.Time, version string) error {
	authority, err := enrol.LoadAuthority(s.config.DataDir)
	if err != nil {
		return err
	}
	s.authority = authority
	key, err := issuerKey(context.Background(), s.config.DataDir, s.store)
	if err != nil {
		return err
	}
	s.issuer = key.Public().(ed25519.PublicKey)
	issuer, err := issue.New(issue.Config{
		Store: s.store, Key: key, Lease: s.config.Lease, Now: now, Log: s.log.Named("issue"),
	})
	if err != nil {
		return err
	}
	hostOf := func(ctx context.Context) (grant.HostID, error) { return authority.HostOf(ctx, now()) }
	s.hub, err = stream.New(stream.Config{
		Store: s.store, Issuer: issuer, Identify: hostOf, Now: now, Log: s.log.Named("stream"),
		Heard: func(id grant.HostID) { s.bell.Ring(watch.Change{Heard: []grant.HostID{id}}) },
		Acked: s.figures.acked, Pushed: s.figures.pushed,
		Ahead: s.stepAbove,
	})
	if err != nil {
		return err
	}
	federation, pipelines, err := s.federation(now)
	if err != nil {
		return err
	}
	s.people, err = identity.New(identity.Config{
		Store: store.Identity{Store: s.store}, Organisation: s.config.Organisation,
		CA: authority.Pin(), SessionTTL: s.config.SessionTTL, RootKeys: rootKeys(s.config.DataDir),
		Federation: federation, Pipelines: pipelines, Audience: "curfew://" + s.config.URL,
		WorkloadTTL: s.config.WorkloadTTL, Checks: checkNames(s.config.TicketChecks),
		Now: now, Rand: rand.Reader, Log: s.log.Named("identity"),
	})
	if err != nil {
		return err
	}
	instances, err := s.instances()
	if err != nil {
		return err
	}
	tokens, err := enrol.New(enrol.Config{
		Store: s.store, Authority: authority, Organisation: s.config.Organisation, Now: now,
		Cloud: instances, Log: s.log.Named("enrol"), Enrolled: func(ctx context.Context, name string) {
			if err := s.people.HostsChanged(context.WithoutCancel(ctx)); err != nil {
				s.log.Error("the trust file lacks a new host", "host", name, "error", err)
			}
		},
	})
	if err != nil {
		return err
	}
	// A crash between an enrolment and the trust file that names its host leaves that to us.
	if err := s.people.HostsChanged(context.Background()); err != nil {
		s.log.Error("the trust file cannot be brought up to date", "error", err)
	}
	tickets, err := s.tickets(now)
	if err != nil {
		return err
	}
	s.access, err = access.New(access.Config{
		Store: store.Access{Store: s.store}, Directory: s.people, Issuer: issuer,
		Tickets: tickets, PendingTTL: s.config.PendingTTL, Now: now, Rand: rand.Reader,
		Log: s.log.Named("access"),
	})
	if err != nil {
		return err
	}
	s.rollouts, err = rollout.New(rollout.Config{
		Store: store.Rollouts{Store: s.store}, Said: s.said, Organisation: s.config.Organisation, Now: now,
		Rand: rand.Reader, Log: s.log.Named("rollout"),
	})
	if err != nil {
		return err
	}
	front, err := api.New(api.Config{
		Identity: s.people, Access: s.access, Rollouts: s.rollouts, Hub: s.hub, Tokens: tokens, HostOf: hostOf, Bell: &s.bell,
		URL: s.config.URL, Lease: s.config.Lease, Version: version, Now: now, Log: s.log.Named("api"),
		Authorities: authority.Announced(),
	})
	if err != nil {
		return err
	}
	return s.serve(authority, front, tokens, now)
}

func (s *Server) serve(
	authority *enrol.Authority, front *api.Server, tokens *enrol.Service, now func() time.Time,
) error {
	host, _, err := net.SplitHostPort(s.config.URL)
	if err != nil {
		return fmt.Errorf("url %q: %w", s.config.URL, err)
	}
	tlsConfig, err := authority.ServerTLS(now, host)
	if err != nil {
		return err
	}
	s.self = join.ClientTLS(authority.Certificate(), now)
	s.figures.watch(s, authority, now)
	keep := s.figures.guard(front.Fail)
	options := append(stream.ServerOptions(stream.Timing{}),
		grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.ChainUnaryInterceptor(keep.Unary, front.Unary),
		grpc.ChainStreamInterceptor(keep.Stream, front.Stream))
	s.grpc, s.health = grpc.NewServer(options...), health.NewServer()
	front.Register(s.grpc)
	tokens.Register(s.grpc)
	s.hub.Register(s.grpc)
	healthv1.RegisterHealthServer(s.grpc, s.health)
	return nil
}

// changed is told of every commit: it wakes whoever waits for what changed and never blocks.
func (s *Server) changed(c watch.Change) {
	s.bell.Ring(c)
	if s.hub != nil && c.Trust {
		s.hub.TrustChanged()
	}
	if s.hub != nil && len(c.Hosts) > 0 {
		s.hub.Changed(c.Hosts...)
	}
	if c.Messages {
		s.sender.Wake()
	}
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, then drains and closes the store.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.hub.Run(ctx) })
	group.Go(func() error { return s.access.Run(ctx) })
	group.Go(func() error { return s.access.RunRecheck(ctx) })
	group.Go(func() error { return s.rollouts.Run(ctx) })
	group.Go(func() error { return s.serveSCIM(ctx) })
	group.Go(func() error { return s.sender.Run(ctx) })
	group.Go(func() error { return s.watchTrust(ctx) })
	group.Go(func() error { return s.watchdog(ctx) })
	group.Go(func() error { return s.serveMetrics(ctx) })
	group.Go(func() error {
		if err := s.grpc.Serve(s.listener); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serving: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		s.drain()
		return nil
	})
	s.log.Info("serving", "listen", s.listener.Addr().String(), "url", s.config.URL,
		"organisation", s.config.Organisation)
	s.notify(daemon.SdNotifyReady)
	err := group.Wait()
	return errors.Join(err, s.Close())
}

// drain lets calls that run end, but not for long: hosts and watchers reconnect by themselves.
func (s *Server) drain() {
	s.log.Info("stopping")
	s.notify(daemon.SdNotifyStopping)
	s.health.Shutdown()
	s.bell.Close()
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(drainTime):
		s.grpc.Stop()
		<-stopped
	}
}

// Close frees what New took; Run does it by itself.
func (s *Server) Close() error {
	var err error
	for _, l := range []net.Listener{s.listener, s.scimListener, s.metricsListener} {
		if l == nil {
			continue
		}
		if closing := l.Close(); !errors.Is(closing, net.ErrClosed) {
			err = errors.Join(err, closing)
		}
	}
	return errors.Join(err, s.store.Close())
}

// watchTrust notices a trust file that another process, `trust sign`, put into the store.
func (s *Server) watchTrust(ctx context.Context) error {
	ticker := time.NewTicker(trustPoll)
	defer ticker.Stop()
	var last uint64
	for {
		version, err := trustVersion(ctx, s.store)
		if err != nil && ctx.Err() == nil {
			s.log.Error("the trust file cannot be read", "error", err)
		}
		if err == nil && last != 0 && version != last {
			s.hub.TrustChanged()
			if err := s.sealsFor(ctx); err != nil {
				return err
			}
		}
		if err == nil {
			last = version
		}
		if err := s.certifiesFor(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// sealsFor ends the server when its grant key is not the trust file's any more.
func (s *Server) sealsFor(ctx context.Context) error {
	issuers, err := issuersInForce(ctx, s.store)
	if err != nil {
		s.log.Error("the trust file cannot be read", "error", err)
		return nil
	}
	if !slices.ContainsFunc(issuers, func(k ed25519.PublicKey) bool { return k.Equal(s.issuer) }) {
		return errIssuer
	}
	return nil
}

// watchdog tells systemd that the store still answers.
func (s *Server) watchdog(ctx context.Context) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return nil // nobody watches
	}
	ticker := time.NewTicker(every / 3)
	defer ticker.Stop()
	for {
		if _, err := trustVersion(ctx, s.store); err == nil {
			s.notify(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (s *Server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}

func trustVersion(ctx context.Context, s *store.Store) (version uint64, err error) {
	err = s.View(ctx, func(t *store.Tx) error {
		row, err := t.NewestTrust()
		version = row.Version
		return err
	})
	return version, err
}
