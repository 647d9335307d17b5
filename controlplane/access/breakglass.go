package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// The trail's words for a break-glass code that was handed to somebody, and for a set that somebody
// wants replaced.
const (
	KindCodeFetched = "break_glass.fetched"
	KindRotation    = "break_glass.rotation_asked"
)

// Events that are told of break-glass codes.
const (
	EventCodeFetched = "break_glass.fetched"
	EventCodeUsed    = "break_glass.used"
)

// RoleBreakGlass stands where messages and terms name a role.
const RoleBreakGlass = "break-glass"

// CodeSet is what is known of a host's break-glass codes. What they are, nobody here can read.
type CodeSet struct {
	Host       grant.HostID
	HostName   string
	ID         breakglass.SetID
	Made       time.Time
	Custodians []string
	Codes      []Code
	// RotatingBy is who has asked for a new set that is not there yet.
	RotatingBy string
}

// Code is one code of a set: who fetched it, and who used it as its host said.
type Code struct {
	Number            int
	FetchedBy, UsedBy string
	Fetched, Used     time.Time
}

// Alarms are what people should know of a host beyond what it says of itself.
func (h *Host) Alarms(open uint32) (out []string) {
	if open > 0 {
		out = append(out, fmt.Sprintf("ALARM: %d open by break-glass code; to see it: curfew log", open))
	}
	if h.CodesUsed > 0 {
		out = append(out, fmt.Sprintf("%d break-glass codes used, the last at %s; once looked into: "+
			"curfew admin break-glass rotate %s", h.CodesUsed,
			h.CodeUsed.UTC().Format("2006-01-02 15:04 MST"), h.Name))
	}
	return out
}

// Codes lists the sets of codes that are held: one host's, or all.
func (s *Service) Codes(ctx context.Context, name string) (out []CodeSet, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		if name != "" {
			_, set, err := codesOf(tx, name)
			out = append(out, set)
			return err
		}
		hosts, err := tx.Hosts()
		for _, h := range hosts {
			set, err := tx.CodeSet(h.ID)
			if errors.Is(err, identity.ErrNone) {
				continue
			}
			if err != nil {
				return err
			}
			set.HostName = h.Name
			out = append(out, set)
		}
		return err
	})
	return out, err
}

func codesOf(tx Tx, name string) (h Host, set CodeSet, err error) {
	if h, err = hostNamed(tx, name); err != nil {
		return h, set, err
	}
	set, err = tx.CodeSet(h.ID)
	set.HostName = h.Name
	if errors.Is(err, identity.ErrNone) {
		err = reason.NotFound("no break-glass codes of %s are held here", name).
			WithHint("on %s: break_glass.enabled in /etc/curfew/agent.yaml, then curfew-agent break-glass "+
				"renew", name)
	}
	return h, set, err
}

// FetchCode hands a sealed code to one of its custodians: the first that nobody has fetched, or again
// one that they fetched before. It is on the trail, and the others are told, before anybody has it.
func (s *Service) FetchCode(ctx context.Context, p identity.Person, name string, number int) (
	set CodeSet, code int, sealed []byte, err error,
) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		var h Host
		if h, set, err = codesOf(tx, name); err != nil {
			return err
		}
		if code, err = set.next(p.Name, number); err != nil {
			return err
		}
		if sealed, err = tx.SealedCode(h.ID, code); err != nil {
			return err
		}
		now := s.now()
		set.Codes[code-1].FetchedBy, set.Codes[code-1].Fetched = p.Name, now
		return errors.Join(tx.PutFetched(h.ID, code, p.Name, now), tx.Append(trail.Record{
			TimeMS: now.UnixMilli(), Kind: KindCodeFetched, Actor: p.Name, Host: name, HostID: h.ID.String(),
			Details: map[string]string{"code": fmt.Sprint(code), "set": set.ID.String()},
		}), s.tellFetched(tx, set, code, p.Name, now))
	})
	return set, code, sealed, err
}

// RotateCodes has a host make a new set of codes, when it is there.
func (s *Service) RotateCodes(ctx context.Context, p identity.Person, name string) (set CodeSet, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		var h Host
		if h, set, err = codesOf(tx, name); err != nil {
			return err
		}
		if !p.Admin && !slices.Contains(set.Custodians, p.Name) {
			return reason.Denied("new break-glass codes of %s are for admins and its custodians (%s) to ask for",
				name, strings.Join(set.Custodians, ", "))
		}
		set.RotatingBy = p.Name
		return errors.Join(tx.PutRotation(h.ID, p.Name), tx.Append(trail.Record{
			TimeMS: s.now().UnixMilli(), Kind: KindRotation, Actor: p.Name, Host: name, HostID: h.ID.String(),
			Details: map[string]string{"set": set.ID.String()},
		}))
	})
	return set, err
}

// next is the number of the code that a person gets.
func (c *CodeSet) next(who string, number int) (int, error) {
	if !slices.Contains(c.Custodians, who) {
		return 0, reason.Denied("the break-glass codes of %s are sealed to %s; nobody else can open them",
			c.HostName, strings.Join(c.Custodians, ", "))
	}
	if number == 0 {
		i := slices.IndexFunc(c.Codes, func(one Code) bool { return one.FetchedBy == "" && one.Used.IsZero() })
		if i < 0 {
			return 0, reason.Conflict("all break-glass codes of %s are fetched or used", c.HostName).
				WithHint("curfew admin break-glass rotate %s", c.HostName)
		}
		return c.Codes[i].Number, nil
	}
	i := slices.IndexFunc(c.Codes, func(one Code) bool { return one.Number == number })
	if i < 0 {
		return 0, reason.NotFound("%s has break-glass codes 1 to %d", c.HostName, len(c.Codes))
	}
	switch one := c.Codes[i]; {
	case !one.Used.IsZero():
		return 0, reason.Conflict("break-glass code %d of %s is used", number, c.HostName)
	case one.FetchedBy != who:
		return 0, reason.Denied("break-glass code %d of %s is not one that you fetched before", number,
			c.HostName)
	}
	return number, nil
}

func (s *Service) tellFetched(tx Tx, set CodeSet, code int, who string, at time.Time) error {
	row, err := tx.NewestTrust()
	if err != nil {
		return err
	}
	trust, err := grant.OpenTrust(row.Envelope, nil)
	if err != nil {
		return err
	}
	m := Message{
		ID:    fmt.Sprintf("break-glass.%s.%d.fetched.%d", set.ID, code, at.UnixMilli()),
		Event: EventCodeFetched, Organisation: trust.Organisation, AtMS: at.UnixMilli(), Requester: who,
		Role: RoleBreakGlass, Hosts: []string{set.HostName}, By: who,
		Text:    fmt.Sprintf("%s fetched break-glass code %d of %s", who, code, set.HostName),
		Command: "curfew admin break-glass ls",
	}
	if m.To, err = watchers(tx, trust); err != nil {
		return err
	}
	return tx.Notify(m)
}

// CodeUse is a host's word that one of its codes was used.
type CodeUse struct {
	Host, Login, Request string
	// Event names the host's event, once and for all.
	Event          string
	Number         int
	Reason, Until  string
	RootEquivalent bool
	At             time.Time
}

// AlarmOfCode tells all who approve or administer that a host was opened by a code.
func AlarmOfCode(tx Tx, trust *grant.Trust, u CodeUse) error {
	login, what := grant.VisibleText(u.Login), "access"
	if u.RootEquivalent {
		what = "ROOT-EQUIVALENT access"
	}
	m := Message{
		ID: "break-glass." + u.Event, Event: EventCodeUsed, Organisation: trust.Organisation,
		AtMS: u.At.UnixMilli(), RequestID: u.Request, Requester: login, Role: RoleBreakGlass,
		RootEquivalent: u.RootEquivalent, Hosts: []string{u.Host}, Reason: grant.VisibleText(u.Reason),
		By: login,
	}
	if until, err := time.Parse(time.RFC3339, u.Until); err == nil {
		m.DurationMS = max(until.Sub(u.At), 0).Milliseconds()
	}
	m.Text = fmt.Sprintf("BREAK-GLASS: %s opened %s on %s by code %d at %s, until %s: %s", login, what,
		u.Host, u.Number, u.At.UTC().Format("2006-01-02 15:04:05 MST"), grant.VisibleText(u.Until), m.Reason)
	m.Command = "curfew admin break-glass ls; curfew log"
	var err error
	if m.To, err = watchers(tx, trust); err != nil {
		return err
	}
	return tx.Notify(m)
}

// watchers are the addresses of all admins and approvers.
func watchers(tx Tx, trust *grant.Trust) (out []string, err error) {
	users, err := tx.Users()
	for _, u := range users {
		approves := slices.ContainsFunc(trust.Approvers, func(a grant.Approver) bool {
			return a.Name == u.Name
		})
		if u.Email != "" && !u.Disabled && (u.Admin || approves) {
			out = append(out, u.Email)
		}
	}
	return out, err
}
