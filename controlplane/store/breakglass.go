package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// PutCodeSet keeps a host's sealed break-glass codes; see stream.Store.
func (s *Store) PutCodeSet(
	ctx context.Context, id grant.HostID, set stream.CodeSet, r trail.Record,
) error {
	return s.Update(ctx, func(t *Tx) error {
		if err := t.dropCodes(id); err != nil {
			return err
		}
		custodians, err := jsonText(set.Custodians)
		if err != nil {
			return err
		}
		err = t.exec(`INSERT INTO break_glass_sets (host, set_id, made_ms, custodians, message)
			VALUES (?, ?, ?, ?, ?)`, id[:], set.ID[:], ms(set.Made), custodians, set.Message)
		for number := 1; number <= set.Codes && err == nil; number++ {
			err = t.exec("INSERT INTO break_glass_codes (host, number) VALUES (?, ?)", id[:], number)
		}
		return errors.Join(err, t.Append(r))
	})
}

func (t *Tx) dropCodes(id grant.HostID) error {
	return t.exec("DELETE FROM break_glass_sets WHERE host = ?", id[:])
}

// CodeSet reads what is known of a host's break-glass codes; see access.Tx.
func (t *Tx) CodeSet(host grant.HostID) (access.CodeSet, error) {
	set := access.CodeSet{Host: host}
	var id []byte
	var made int64
	var custodians string
	err := t.row(`SELECT set_id, made_ms, custodians, renew_by FROM break_glass_sets WHERE host = ?`,
		host[:]).Scan(&id, &made, &custodians, &set.RotatingBy)
	if noRows(err) {
		return set, fmt.Errorf("break-glass codes of host %s: %w", host, identity.ErrNone)
	}
	if err != nil {
		return set, fmt.Errorf("reading the break-glass codes of host %s: %w", host, err)
	}
	if len(id) != len(set.ID) {
		return set, fmt.Errorf("%w: a set of break-glass codes has an id of %d bytes", ErrDamaged, len(id))
	}
	set.ID, set.Made = breakglass.SetID(id), fromMS(made)
	if err := json.Unmarshal([]byte(custodians), &set.Custodians); err != nil {
		return set, err
	}
	set.Codes, err = list(t, func(scan func(...any) error) (c access.Code, err error) {
		var fetched, used int64
		err = scan(&c.Number, &c.FetchedBy, &fetched, &c.UsedBy, &used)
		c.Fetched, c.Used = fromMS(fetched), fromMS(used)
		return c, err
	}, `SELECT number, fetched_by, fetched_ms, used_by, used_ms FROM break_glass_codes
		WHERE host = ? ORDER BY number`, host[:])
	return set, err
}

// SealedCode reads one code as the host sealed it; see access.Tx.
func (t *Tx) SealedCode(host grant.HostID, number int) ([]byte, error) {
	var raw []byte
	err := t.row("SELECT message FROM break_glass_sets WHERE host = ?", host[:]).Scan(&raw)
	if err != nil {
		return nil, fmt.Errorf("reading the break-glass codes of host %s: %w", host, err)
	}
	signed, body := new(curfewv1.SignedHostMessage), new(curfewv1.HostMessage)
	if err = proto.Unmarshal(raw, signed); err == nil {
		err = proto.Unmarshal(signed.GetBody(), body)
	}
	codes := body.GetBreakGlassSet().GetCodes()
	if err != nil || number < 1 || number > len(codes) {
		return nil, fmt.Errorf("%w: break-glass code %d of host %s cannot be read", ErrDamaged, number, host)
	}
	return codes[number-1], nil
}

// PutFetched notes who fetched a code; see access.Tx.
func (t *Tx) PutFetched(host grant.HostID, number int, by string, at time.Time) error {
	return t.exec(`UPDATE break_glass_codes SET fetched_by = ?, fetched_ms = ?
		WHERE host = ? AND number = ?`, by, ms(at), host[:], number)
}

// PutRotation notes who asked for a new set; see access.Tx.
func (t *Tx) PutRotation(host grant.HostID, by string) error {
	return t.exec("UPDATE break_glass_sets SET renew_by = ? WHERE host = ?", by, host[:])
}

// codeUsed notes a host's word that one of its codes was used, and raises the alarm. A set that was
// replaced meanwhile has no row any more; the alarm is raised all the same.
func (t *Tx) codeUsed(host grant.HostID, e stream.HostEvent) error {
	at, details := time.UnixMilli(e.Event.GetTimeMs()), e.Event.GetDetails()
	number, _ := strconv.Atoi(details["code"]) // 0, which no code has, when it is no number
	var set breakglass.SetID
	if set.UnmarshalText([]byte(details["set"])) == nil {
		err := t.exec(`UPDATE break_glass_codes SET used_by = ?, used_ms = ? WHERE number = ? AND host =
			(SELECT host FROM break_glass_sets WHERE host = ? AND set_id = ?)`,
			grant.VisibleText(e.Event.GetLogin()), ms(at), number, host[:], set[:])
		if err != nil {
			return err
		}
	}
	trust, err := t.trust()
	if err != nil {
		return err
	}
	return access.AlarmOfCode(t, trust, access.CodeUse{
		Host: e.Record.Host, Event: fmt.Sprintf("%s.%d", host, e.Event.GetNumber()),
		Login: e.Event.GetLogin(), Request: e.Record.RequestID, Number: number,
		Reason: details["reason"], Until: details["until"],
		RootEquivalent: details["root_equivalent"] == "true", At: at,
	})
}
