package grant_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// What opens is exactly what was sealed: no second form of it does.
func FuzzOpen(f *testing.F) {
	a, b := granttest.Key("a"), granttest.Key("b")
	one, err := grant.Seal(testType, []byte("payload"), a)
	if err != nil {
		f.Fatal(err)
	}
	two, err := grant.Seal(testType, []byte("payload"), a, b)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range [][]byte{
		one, two, []byte("{}"), []byte(`{"payloadType":"","payload":"","signatures":[]}`),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if payload, err := grant.Open(data, testType, 4096, 1, publics(a)); err == nil {
			again, err := grant.Seal(testType, payload, a)
			if err != nil || !bytes.Equal(again, data) && !bytes.HasPrefix(data, again[:len(again)-2]) {
				t.Errorf("opened in another form: %s", data)
			}
		} else if !errors.Is(err, grant.ErrMalformed) && !errors.Is(err, grant.ErrSignature) {
			t.Errorf("an error of no known kind: %v", err)
		}
	})
}

// Terms that parse are sound and have one encoding.
func FuzzTerms(f *testing.F) {
	w := granttest.NewWorld()
	f.Add(granttest.Raw(w.Terms(granttest.Noon())))
	f.Add(granttest.Raw(w.Terms(granttest.Noon(), func(x *curfewv1.Terms) {
		x.SudoRules = []*curfewv1.SudoRule{{RunAs: "root", All: true}}
		x.RootEquivalent, x.Groups, x.Follows = true, []string{"adm", "www-data"}, make([]byte, 32)
	})))
	f.Fuzz(func(t *testing.T, raw []byte) {
		terms, err := grant.ParseTerms(raw)
		if err != nil {
			if !errors.Is(err, grant.ErrMalformed) {
				t.Errorf("an error of no known kind: %v", err)
			}
			return
		}
		again, err := grant.MarshalTerms(terms)
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("read and written again they differ: %v", err)
		}
		if terms.GetRootEquivalent() != grant.RootEquivalent(terms.GetSudoRules(), terms.GetGroups()) {
			t.Error("the label lies")
		}
		if d := grant.Duration(terms); d <= 0 || d > grant.MaxDuration {
			t.Errorf("a duration of %s", d)
		}
		if terms.GetLogin() == "root" || terms.GetUid() < 1000 {
			t.Errorf("for %q, uid %d", terms.GetLogin(), terms.GetUid())
		}
	})
}

// Whoever holds the issuer's key may seal any payload: without approvals nothing opens, and nothing
// that a grant says breaks the ledger.
func FuzzGrantOfAStolenIssuer(f *testing.F) {
	w := granttest.NewWorld()
	raw := granttest.Raw(w.Terms(granttest.Noon()))
	approved := &curfewv1.Grant{
		Version: 1, HostId: w.Host[:], Terms: raw, IssuedAtMs: 1,
		Approvals: []*curfewv1.Approval{w.Bob.Approve(raw)},
	}
	f.Add(fuzzMarshal(f, approved))
	f.Add(fuzzMarshal(f, &curfewv1.Grant{Version: 1, HostId: w.Host[:], Terms: raw, IssuedAtMs: 1}))
	clock := grant.Clock{Wall: granttest.Noon(), Boot: time.Hour, BootID: "boot"}
	fresh := w.Ledger()
	id := grant.IDOf(raw, w.Host)
	f.Fuzz(func(t *testing.T, payload []byte) {
		env, err := grant.Seal(grant.TypeGrant, payload, w.Issuer)
		if err != nil {
			t.Fatal(err)
		}
		l := fresh.Clone()
		got, err := l.AcceptGrant(env, clock, w.Ceiling())
		if err == nil && got != id {
			t.Errorf("terms that nobody approved are accepted as %s", got)
		}
		if err != nil && len(l.HeldIDs()) != 0 {
			t.Error("refused and held")
		}
	})
}

// A state that is accepted moves the sequence, and the ledger can be kept and read again.
func FuzzStateOfAStolenIssuer(f *testing.F) {
	w := granttest.NewWorld()
	clock := grant.Clock{Wall: granttest.Noon(), Boot: time.Hour, BootID: "boot"}
	base := w.Ledger()
	id, env := w.Grant(w.Terms(clock.Wall), w.Bob)
	if _, err := base.AcceptGrant(env, clock, w.Ceiling()); err != nil {
		f.Fatal(err)
	}
	nonce, err := base.NewNonce(clock, bytes.NewReader(make([]byte, 16)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(fuzzMarshal(f, w.HostState(clock.Wall, nonce, id)))
	s := w.HostState(clock.Wall, nil, grant.ID{1}, grant.ID{2})
	s.Ended = []*curfewv1.Ended{{GrantId: id[:], Cause: 2, By: "bob"}}
	s.TrailCount, s.TrailHead = 3, make([]byte, 32)
	f.Add(fuzzMarshal(f, s))
	f.Fuzz(func(t *testing.T, payload []byte) {
		env, err := grant.Seal(grant.TypeHostState, payload, w.Issuer)
		if err != nil {
			t.Fatal(err)
		}
		l := base.Clone()
		change, err := l.AcceptState(&curfewv1.State{Envelope: env}, clock)
		if err != nil {
			if l.Sequence() != 0 || len(l.Live(clock)) != 0 {
				t.Error("refused, and something happened")
			}
			return
		}
		if l.Sequence() == 0 || len(l.Live(clock)) > 1 || len(change.Started) > 1 {
			t.Errorf("sequence %d, %d live", l.Sequence(), len(l.Live(clock)))
		}
		data, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, new(grant.Ledger)); err != nil {
			t.Errorf("kept and not readable: %v", err)
		}
		later := clock
		later.Wall, later.Boot = later.Wall.Add(time.Hour), later.Boot+time.Hour
		if len(l.Live(later)) != 0 || l.MayOpen(later) == nil && l.LeaseEnd(later) <= later.Boot {
			t.Error("live past the end")
		}
	})
}

// A trust file that opens has one form, and lets nobody in without approvals.
func FuzzTrust(f *testing.F) {
	w := granttest.NewWorld()
	for _, t := range []*grant.Trust{w.Trust, granttest.CloneTrust(w.Trust)} {
		payload, err := grant.MarshalTrust(t)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Add([]byte("{}"))
	terms := w.Terms(granttest.Noon())
	raw := granttest.Raw(terms)
	f.Fuzz(func(t *testing.T, payload []byte) {
		env, err := grant.Seal(grant.TypeTrust, payload, w.Root)
		if err != nil {
			t.Fatal(err)
		}
		trust, err := grant.OpenTrust(env, nil)
		if err != nil {
			return
		}
		again, err := grant.MarshalTrust(trust)
		if err != nil || !bytes.Equal(again, payload) {
			t.Errorf("read and written again it differs: %v", err)
		}
		if grant.CheckQuorum(trust, terms, raw, []grant.HostID{w.Host}, nil) == nil {
			t.Error("granted without any approval")
		}
		if next, err := grant.OpenTrust(env, w.Trust); err == nil &&
			(next.Version <= w.Trust.Version || next.Epoch < w.Trust.Epoch) {
			t.Errorf("version %d, epoch %d is accepted after (%d, %d)", next.Version, next.Epoch,
				w.Trust.Version, w.Trust.Epoch)
		}
	})
}

// A ledger file is what was written, or it is corrupt; nothing is half read and nothing panics.
func FuzzLedgerFile(f *testing.F) {
	file := ledgerFile(f)
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add([]byte(`{"ledger":{},"sha256":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := new(grant.Ledger)
		if err := l.UnmarshalJSON(data); err != nil {
			if !errors.Is(err, grant.ErrCorrupt) || l.Trust() != nil {
				t.Errorf("half read, or an error of no known kind: %v", err)
			}
			return
		}
		useLedger(t, l, data)
	})
}

// The same behind a checksum that fits, as of a program that writes nonsense.
func FuzzLedgerBody(f *testing.F) {
	var sealed struct {
		Ledger json.RawMessage `json:"ledger"`
		SHA256 string          `json:"sha256"`
	}
	if err := json.Unmarshal(ledgerFile(f), &sealed); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(sealed.Ledger))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		data := append([]byte(`{"ledger":`), body...)
		data = append(data, `,"sha256":"`+hex.EncodeToString(sum[:])+`"}`...)
		l := new(grant.Ledger)
		if err := l.UnmarshalJSON(data); err == nil {
			useLedger(t, l, data)
		}
	})
}

func useLedger(t *testing.T, l *grant.Ledger, data []byte) {
	t.Helper()
	again, err := l.MarshalJSON()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("read and written again it differs: %v", err)
	}
	for _, boot := range []string{"boot-1", "boot-2"} {
		clock := grant.Clock{Wall: granttest.Noon().Add(time.Minute), Boot: 2 * time.Hour, BootID: boot}
		for _, g := range l.Live(clock) {
			if !clock.Wall.Before(g.End) || clock.Boot >= g.BootDeadline {
				t.Errorf("grant %s is live past its end", g.ID.Short())
			}
		}
		_ = l.MayOpen(clock)
		_, _, _ = l.Next(clock)
		l.Tick(clock)
	}
}

func fuzzMarshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}
