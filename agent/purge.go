package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// PurgeConfig is what Purge needs; the fields are those of EnforceConfig.
type PurgeConfig struct {
	Root    string
	Program string
	Clock   func() grant.Clock
	Log     hclog.Logger
	// RequestID is what has ended.
	RequestID string
}

// ErrLives means that a request is still open by this host's own ledger, so that nothing was ended.
var ErrLives = errors.New("the request is still live")

// Purge ends what a request left running. PID 1's timer runs it when a grant is over and the root half
// may be dead: it needs neither that nor the control plane, only the ledger on disk, and it writes
// nothing. Files need no purge here: drop-ins, keys and accounts carry their deadline themselves.
func Purge(ctx context.Context, cfg PurgeConfig) error {
	if err := grant.CheckRequestID(cfg.RequestID); err != nil {
		return err
	}
	e := &Enforce{cfg: EnforceConfig{Root: cfg.Root}}
	s, err := store.Open(store.Config{Directory: e.path(enforce.StateDir), WithoutEvents: true})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // only read
	ledger, err := s.Ledger()
	if err != nil {
		return err
	}
	settings, err := LoadSettings(e.path(ConfigPath))
	if err != nil {
		cfg.Log.Warn("the settings are broken; the defaults hold for this purge", "error", err)
		settings = DefaultSettings()
	}
	local, err := account.ReadLocal(cfg.Root)
	if err != nil {
		return err
	}
	host, err := s.Host()
	if err != nil {
		return err
	}
	sessions, err := session.New(session.Config{
		Dir: e.path(enforce.RunDir + "/sessions"), Host: host.Name,
		UIDMin: settings.UIDRange.Min, UIDMax: settings.UIDRange.Max, Clock: cfg.Clock,
		Events: logged{cfg.Log}, Log: cfg.Log,
		Backstop: []string{cfg.Program, "purge", "--request"},
	})
	if err != nil {
		return err
	}
	target, err := purgeTarget(cfg, ledger, sessions.LoginOf(cfg.RequestID), settings.rules(), local,
		s.UIDs())
	if err != nil {
		return err
	}
	for _, r := range sessions.Kill(ctx, []session.Target{target}) {
		if !r.Clean() {
			return fmt.Errorf("ending request %s: left: %s", cfg.RequestID,
				strings.Join(append(r.Processes, r.Problems...), "; "))
		}
	}
	return nil
}

// purgeTarget finds whose a request was: the ledger on disk still holds it while the root half is
// dead, since nobody has told it that time has passed. When the root half died between writing the
// end down and ending what ran, only the records of sessions know: login is what they say.
func purgeTarget(
	cfg PurgeConfig, ledger *grant.Ledger, login string, rules account.Rules, local account.Local,
	uids map[string]uint32,
) (session.Target, error) {
	now := cfg.Clock()
	t := session.Target{RequestID: cfg.RequestID, Login: login, Whole: true}
	for _, l := range ledger.Live(now) {
		if l.Terms.GetRequestId() == cfg.RequestID {
			return t, fmt.Errorf("%w until %s", ErrLives, l.End.UTC())
		}
	}
	for _, over := range ledger.Clone().Tick(now).Ended {
		if over.RequestID == cfg.RequestID {
			t.Login = over.Login
		}
	}
	if t.Login == "" {
		return t, fmt.Errorf("request %s is known neither by this host's ledger nor by a session", cfg.RequestID)
	}
	subject, err := rules.Classify(local, t.Login, uids[t.Login])
	if err != nil {
		return t, err
	}
	t.UID, t.Class = subject.UID, subject.Class
	for _, l := range ledger.Live(now) {
		t.Whole = t.Whole && l.Terms.GetLogin() != t.Login
	}
	return t, nil
}

// logged stands in for the event log, which only the root half may write.
type logged struct{ log hclog.Logger }

func (l logged) Record(_ context.Context, e *curfewv1.Event) error {
	tell(l.log, e)
	return nil
}
