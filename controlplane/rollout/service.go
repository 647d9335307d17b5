package rollout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

const stepEvery = time.Second

// Config is what a Service needs.
type Config struct {
	Store Store
	// Said is what a host last said of itself.
	Said         func(grant.HostID) Said
	Organisation string
	Now          func() time.Time
	Rand         io.Reader
	Log          hclog.Logger
}

// Service runs rollouts. Safe for concurrent use.
type Service struct{ c Config }

// New checks the configuration.
func New(c Config) (*Service, error) {
	if c.Store == nil || c.Said == nil || c.Now == nil || c.Rand == nil || c.Log == nil {
		return nil, errors.New("rollout: store, hosts' word, clock, randomness or log is missing")
	}
	return &Service{c: c}, nil
}

func (s *Service) now() time.Time { return s.c.Now().Truncate(time.Millisecond) }

// Run takes a step every second until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(stepEvery)
	defer ticker.Stop()
	for {
		if err := s.Advance(ctx); err != nil && ctx.Err() == nil {
			s.c.Log.Error("rollouts stand still; the next look is in a second", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Advance takes one step with every rollout of which something is to be done.
func (s *Service) Advance(ctx context.Context) error {
	var due []Rollout
	err := s.c.Store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.RolloutsDue()
		return err
	})
	for _, r := range due {
		err = errors.Join(err, s.advance(ctx, r.Name))
	}
	return err
}

// advance looks first, so that nothing is written in the seconds in which nothing happens.
func (s *Service) advance(ctx context.Context, name string) error {
	look := func(tx Tx) (*view, error) {
		v, err := s.read(tx, name)
		if err == nil {
			v.news = Step(s.now(), &v.Rollout, v.Members)
		}
		return v, err
	}
	changed := false
	err := s.c.Store.View(ctx, func(tx Tx) error {
		v, err := look(tx)
		changed = err == nil && v.changed()
		return err
	})
	if err != nil || !changed {
		return err
	}
	return s.c.Store.Update(ctx, func(tx Tx) error {
		v, err := look(tx)
		if err != nil {
			return err
		}
		return s.write(tx, v, access.Actor)
	})
}

// View is a rollout with its hosts, by stage and name.
type View struct {
	Rollout
	Members []*Member
}

// view is a View that is being changed.
type view struct {
	View
	was     Progress
	hosts   map[grant.HostID]Host // as they are stored
	dropped []grant.HostID
	news    []News
}

// read reads a rollout and assigns hosts to stages: one that it has never told anything follows its labels.
func (s *Service) read(tx Tx, name string) (*view, error) {
	r, err := tx.RolloutNamed(name)
	if errors.Is(err, identity.ErrNone) {
		return nil, reason.NotFound("there is no rollout %s", grant.VisibleText(name)).
			WithHint("curfew admin rollout list")
	}
	if err != nil {
		return nil, err
	}
	stored, err := tx.RolloutHosts(r.ID)
	if err != nil {
		return nil, err
	}
	all, err := tx.Hosts()
	if err != nil {
		return nil, err
	}
	v := &view{View: View{Rollout: r}, was: r.Progress, hosts: make(map[grant.HostID]Host, len(stored))}
	for _, h := range stored {
		v.hosts[h.ID] = h
	}
	for _, h := range all {
		row, known := v.hosts[h.ID]
		if row.Attempt == 0 && r.State.Open() {
			stage, member := r.StageOf(h.Labels)
			switch {
			case !member && known:
				v.dropped = append(v.dropped, h.ID)
			case member && !known:
				row = Host{ID: h.ID, State: Waiting, Since: s.now()}
			}
			row.Stage, known = stage, member
		}
		if known {
			v.Members = append(v.Members, &Member{Host: row, Name: h.Name, Said: s.said(h)})
		}
	}
	slices.SortFunc(v.Members, func(a, b *Member) int {
		return cmp.Or(cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Name, b.Name))
	})
	return v, nil
}

// said is a host's word; one that is refused has none.
func (s *Service) said(h access.Host) Said {
	if h.Refused != "" {
		return Said{}
	}
	return s.c.Said(h.ID)
}

func (v *view) changed() bool {
	return v.Progress != v.was || len(v.dropped) > 0 ||
		slices.ContainsFunc(v.Members, func(m *Member) bool { return m.Host != v.hosts[m.ID] })
}

// write stores what has changed, with its records, and tells admins what happened by itself.
func (s *Service) write(tx Tx, v *view, by string) error {
	if v.Progress != v.was {
		if err := tx.PutProgress(v.ID, v.Progress); err != nil {
			return err
		}
	}
	for _, m := range v.Members {
		if m.Host != v.hosts[m.ID] {
			if err := tx.PutRolloutHost(v.ID, m.Host); err != nil {
				return err
			}
		}
	}
	for _, id := range v.dropped {
		if err := tx.DropRolloutHost(v.ID, id); err != nil {
			return err
		}
	}
	for _, n := range v.news {
		if err := tx.Append(s.record(&v.Rollout, n, by)); err != nil {
			return err
		}
		if by == access.Actor && n.Host == nil {
			if err := s.notify(tx, &v.Rollout, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxText bounds a host's words in a record.
const maxText = 512

func (s *Service) record(r *Rollout, n News, by string) trail.Record {
	record := trail.Record{
		TimeMS: s.now().UnixMilli(), Kind: n.Kind, Actor: by, Details: map[string]string{"rollout": r.Name},
	}
	text := grant.Clip(grant.VisibleText(n.Text), maxText)
	if text != "" {
		record.Details["why"] = text
	}
	if n.Host != nil {
		record.Host, record.HostID = n.Host.Name, n.Host.ID.String()
		record.Details["state"] = string(n.Host.State)
		record.Details["stage"] = fmt.Sprint(n.Host.Stage + 1)
	}
	return record
}

// notify tells admins by mail, and whoever listens to webhooks.
func (s *Service) notify(tx Tx, r *Rollout, n News) error {
	users, err := tx.Users()
	if err != nil {
		return err
	}
	var to []string
	for _, u := range users {
		if u.Admin && !u.Disabled && u.Email != "" {
			to = append(to, u.Email)
		}
	}
	at := s.now()
	return tx.Notify(access.Message{
		ID: fmt.Sprintf("%s-%s-%d", r.ID, n.Kind, at.UnixMilli()), Event: n.Kind,
		Organisation: s.c.Organisation, AtMS: at.UnixMilli(), Reason: n.Text, To: to,
		Text:    fmt.Sprintf("rollout %s is %s: %s", r.Name, r.State, grant.Clip(n.Text, maxText)),
		Command: "curfew admin rollout show " + r.Name,
	})
}
