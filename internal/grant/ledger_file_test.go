package grant_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
)

// ledgerFile is a persisted ledger with a live grant, a tombstone and a lease.
func ledgerFile(t testing.TB) []byte {
	t.Helper()
	w := granttest.NewWorld()
	l := w.Ledger()
	clock := grant.Clock{Wall: granttest.Noon(), Boot: time.Hour, BootID: "boot-1"}
	var ids []grant.ID
	for _, request := range []string{"0123456789ab", "ba9876543210"} {
		terms := w.Terms(clock.Wall)
		terms.RequestId = request
		id, env := w.Grant(terms, w.Bob)
		if _, err := l.AcceptGrant(env, clock, w.Ceiling()); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	nonce, err := l.NewNonce(clock, strings.NewReader("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range [][]grant.ID{ids, ids[:1]} {
		if _, err := l.AcceptState(w.State(clock.Wall, nonce, s...), clock); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLedgerFileKeepsEverything(t *testing.T) {
	data := ledgerFile(t)
	l := new(grant.Ledger)
	if err := json.Unmarshal(data, l); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(l)
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("read and written again it differs: %v", err)
	}
	// It is put together by hand; json.Marshal would say when it is not as it writes itself.
	if again, err := l.MarshalJSON(); err != nil || !bytes.Equal(data, again) {
		t.Errorf("not in the form that json.Marshal gives: %v", err)
	}
	clock := grant.Clock{
		Wall: granttest.Noon().Add(time.Minute), Boot: time.Hour + time.Minute, BootID: "boot-1",
	}
	live := l.Live(clock)
	if len(live) != 1 || len(l.HeldIDs()) != 1 || l.Sequence() != 2 || l.TrustVersion() != 1 {
		t.Errorf("%d live, %d held, sequence %d", len(live), len(l.HeldIDs()), l.Sequence())
	}
	if !live[0].Start.Equal(granttest.Noon()) {
		t.Errorf("start %s", live[0].Start)
	}
	if err := l.MayOpen(clock); err != nil {
		t.Error(err)
	}
}

// Every cut and every flipped bit is noticed, and nothing of such a file is used.
func TestLedgerFileRefusesDamage(t *testing.T) {
	data := ledgerFile(t)
	try := func(what string, at int, bad []byte) {
		l := new(grant.Ledger)
		err := l.UnmarshalJSON(bad)
		if !errors.Is(err, grant.ErrCorrupt) {
			t.Fatalf("%s at byte %d of %d: %v", what, at, len(data), err)
		}
		if l.Sequence() != 0 || l.Trust() != nil {
			t.Fatalf("%s at byte %d: half read", what, at)
		}
	}
	for i := range data {
		try("cut", i, data[:i])
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		try("a flipped bit", i, bad)
		bad[i] = 0
		try("a zeroed byte", i, bad)
	}
	for block := 0; block+512 <= len(data); block += 512 {
		bad := bytes.Clone(data)
		clear(bad[block : block+512])
		try("a lost block", block, bad)
	}
	try("doubled", 0, append(bytes.Clone(data), data...))
	try("a newline behind", 0, append(bytes.Clone(data), '\n'))
}

// Files that fit their checksum and still are not what a ledger writes.
func TestLedgerFileRefusesOtherForms(t *testing.T) {
	data := ledgerFile(t)
	var sealed struct {
		Ledger json.RawMessage `json:"ledger"`
		SHA256 string          `json:"sha256"`
	}
	if err := json.Unmarshal(data, &sealed); err != nil {
		t.Fatal(err)
	}
	body := string(sealed.Ledger)
	for name, edit := range map[string][2]string{
		"another version":        {`"version":1`, `"version":2`},
		"an unknown field":       {`"epoch":1`, `"extra":1,"epoch":1`},
		"a doubled field":        {`"sequence":2`, `"sequence":1,"sequence":2`},
		"a field in capitals":    {`"sequence":2`, `"Sequence":2`},
		"a field left out":       {`"sequence":2,`, ``},
		"a start without an end": {`"end_ms":1795525200000`, `"end_ms":0`},
		"an end moved":           {`"end_ms":1795525200000`, `"end_ms":1795525200001`},
		"a start taken away":     {`"start_ms":1795521600000`, `"start_ms":0`},
		"a start before time":    {`"start_ms":1795521600000`, `"start_ms":-1`},
		"another host":           {`"host_id":"`, `"host_id":"00`},
		"no tombstones":          {`"tombstones":{`, `"tombstones":null,"x":{`},
	} {
		bad := strings.Replace(body, edit[0], edit[1], 1)
		if bad == body {
			t.Fatalf("%s: nothing was altered in %s", name, body)
		}
		sum := sha256.Sum256([]byte(bad))
		sealed.Ledger, sealed.SHA256 = json.RawMessage(bad), hex.EncodeToString(sum[:])
		file, err := json.Marshal(sealed)
		if err != nil {
			t.Fatal(err)
		}
		l := new(grant.Ledger)
		if err := json.Unmarshal(file, l); !errors.Is(err, grant.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A clone and its original do not see each other's changes: what is not kept leaves no trace.
func TestClonesAreApart(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	before, err := json.Marshal(h.ledger)
	if err != nil {
		t.Fatal(err)
	}
	c := h.ledger.Clone()
	if _, err := c.AcceptState(h.State(h.clock.Wall, nil), h.clock); err != nil {
		t.Fatal(err)
	}
	next := granttest.CloneTrust(h.Trust)
	if err := c.AcceptTrust(granttest.SealTrust(next, h.Root)); err != nil {
		t.Fatal(err)
	}
	later := h.clock
	later.Wall, later.Boot = later.Wall.Add(48*time.Hour), later.Boot+48*time.Hour
	c.Tick(later)
	after, err := json.Marshal(h.ledger)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the original changed with its clone: %v", err)
	}
	h.live("in the original", id)
}
