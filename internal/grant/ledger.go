package grant

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Ledger is everything that a host has accepted: its trust file, the highest (epoch, sequence), the
// grants it holds with their persisted starts, tombstones, the trail's head, the lease and what it
// knows of time. It decides which grants are live, and nothing else does.
//
// It is a pure state machine. Its owner works on a Clone, persists that, and only then puts it in
// the Ledger's place and applies the Change; a crash between two steps leaves the state before or
// the state after. One goroutine owns a Ledger.
type Ledger struct {
	data  ledgerData
	trust *Trust
	held  map[ID]held
	// refused says why grants were not accepted, for acknowledgements. Not persisted; bounded.
	refused map[ID]string
	// nonces are the newest heartbeats', for the lease. Not persisted.
	nonces []sentNonce
	// jumped is true while the wall clock disagrees with the boot-time clock.
	jumped bool
}

// ledgerData is the persisted form.
type ledgerData struct {
	Version    int              `json:"version"`
	HostID     HostID           `json:"host_id"`
	Trust      []byte           `json:"trust"`
	Epoch      uint64           `json:"epoch"`
	Sequence   uint64           `json:"sequence"`
	TrailCount uint64           `json:"trail_count"`
	TrailHead  []byte           `json:"trail_head"`
	Listed     []ID             `json:"listed"`
	Held       []heldData       `json:"held"`
	Tombstones map[ID]tombstone `json:"tombstones"`
	// Ending are those of the tombstones' grants that the host has not finished with.
	Ending []EndedGrant `json:"ending,omitempty"`
	Lease  lease        `json:"lease"`
	Time   timeBase     `json:"time"`
	// Codes are the break-glass codes in force; nil when the host has none.
	Codes *codesData `json:"codes,omitempty"`
}

// heldData is one accepted grant. StartMS is 0 until its window's clock runs; it is set once. By
// START_MODE_FIRST_USE that is with the first use; OpenMS is since when such a grant waits for it.
type heldData struct {
	ID       ID     `json:"id"`
	Envelope []byte `json:"envelope"`
	// Terms are those of a local grant, which a break-glass code opened and nobody sealed.
	Terms   []byte `json:"terms,omitempty"`
	OpenMS  int64  `json:"open_ms,omitempty"`
	StartMS int64  `json:"start_ms"`
	EndMS   int64  `json:"end_ms"`
	// BootMS is the deadline on the boot-time clock of the boot that BootID names.
	BootID string `json:"boot_id"`
	BootMS int64  `json:"boot_ms"`
	// Used: the one session of a single-use grant has begun.
	Used bool `json:"used,omitempty"`
}

type held struct {
	heldData
	terms  *curfewv1.Terms
	window window
	digest [32]byte
}

// open tells whether it can be used, or could before its end.
func (h held) open() bool { return h.StartMS != 0 || h.OpenMS != 0 }

// since is when it could first be used.
func (h held) since() int64 { return cmp.Or(h.StartMS, h.OpenMS) }

// end is when the grant is over, as far as is known yet: unused, it expires with its latest start.
func (h held) end() int64 {
	switch {
	case h.StartMS != 0:
		return h.window.end(h.StartMS)
	case h.OpenMS != 0:
		return h.window.latest
	}
	return 0
}

// tombstone keeps an ended grant from coming back until its terms are void anyway.
type tombstone struct {
	UntilMS int64             `json:"until_ms"`
	Cause   curfewv1.EndCause `json:"cause"`
}

// lease is until when new access may open without fresh word from the control plane.
type lease struct {
	BootID string `json:"boot_id"`
	BootMS int64  `json:"boot_ms"`
	WallMS int64  `json:"wall_ms"`
}

type sentNonce struct {
	nonce []byte
	boot  time.Duration
}

const (
	ledgerVersion = 1
	maxNonces     = 8
	maxHeld       = 2 * MaxLive
	maxRefused    = 256
)

// ErrCorrupt means that a persisted ledger is not what was written. Nothing of it is used.
var ErrCorrupt = errors.New("ledger is corrupt")

// NewLedger starts the ledger of a freshly enrolled host with the trust file that enrolment gave.
func NewLedger(host HostID, trustEnvelope []byte) (*Ledger, error) {
	trust, err := OpenTrust(trustEnvelope, nil)
	if err != nil {
		return nil, err
	}
	return &Ledger{
		data: ledgerData{
			Version: ledgerVersion, HostID: host, Trust: trustEnvelope, Epoch: trust.Epoch,
			Tombstones: make(map[ID]tombstone),
		},
		trust: trust, held: make(map[ID]held), refused: make(map[ID]string),
	}, nil
}

// Clone returns a copy to work on. What it shares with the original neither of them changes.
func (l *Ledger) Clone() *Ledger {
	c := *l
	c.data.Tombstones = maps.Clone(l.data.Tombstones)
	c.data.Ending = slices.Clone(l.data.Ending)
	c.held = maps.Clone(l.held)
	c.refused = maps.Clone(l.refused)
	c.nonces = slices.Clone(l.nonces)
	return &c
}

// Host returns whose ledger it is.
func (l *Ledger) Host() HostID { return l.data.HostID }

// Trust returns the trust file in force. It must not be changed.
func (l *Ledger) Trust() *Trust { return l.trust }

// Epoch and Sequence return the highest pair accepted; the sequence is 0 before the first state.
func (l *Ledger) Epoch() uint64 { return l.data.Epoch }

// Sequence returns the highest sequence accepted within Epoch.
func (l *Ledger) Sequence() uint64 { return l.data.Sequence }

// TrailCount returns how many records the control plane's trail had when last seen.
func (l *Ledger) TrailCount() uint64 { return l.data.TrailCount }

// TrailHead returns the trail's root hash at TrailCount.
func (l *Ledger) TrailHead() []byte { return l.data.TrailHead }

// HeldIDs returns every grant that the host holds, sorted: the cursor that Hello carries.
func (l *Ledger) HeldIDs() []ID { return sortedIDs(maps.Keys(l.held)) }

// Held is how many grants the host holds.
func (l *Ledger) Held() int { return len(l.held) }

// Refusal says why a grant was not accepted, as far as it is still remembered.
func (l *Ledger) Refusal(id ID) string { return l.refused[id] }

// Ended tells whether a grant is tombstoned here, and why it ended.
func (l *Ledger) Ended(id ID) (curfewv1.EndCause, bool) {
	t, ok := l.data.Tombstones[id]
	return t.Cause, ok
}

func sortedIDs(ids func(func(ID) bool)) []ID {
	return slices.SortedFunc(ids, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
}

type sealedLedger struct {
	Ledger json.RawMessage `json:"ledger"`
	SHA256 string          `json:"sha256"`
}

// MarshalJSON returns the persisted form with a checksum over it. With a thousand grants that is
// megabytes, once a minute: they are written into one piece of memory and never copied.
func (l *Ledger) MarshalJSON() ([]byte, error) {
	d := l.data
	d.Held = []heldData{}
	rest, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding the ledger: %w", err)
	}
	// No string in JSON has a bare quotation mark, so this is the list itself.
	before, after, _ := bytes.Cut(rest, []byte(noneHeld))
	size := len(rest) + 256
	for _, h := range l.held {
		size += (len(h.Envelope)+len(h.Terms))*4/3 + 384
	}
	b := append(make([]byte, 0, size), `{"ledger":`...)
	start := len(b)
	b = append(b, before...)
	b = append(b, noneHeld[:len(noneHeld)-1]...)
	for i, id := range l.HeldIDs() {
		one, err := json.Marshal(l.held[id].heldData)
		if err != nil {
			return nil, fmt.Errorf("encoding the ledger: %w", err)
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, one...)
	}
	b = append(append(b, ']'), after...)
	sum := sha256.Sum256(b[start:])
	return fmt.Appendf(b, `,"sha256":"%x"}`, sum), nil
}

// noneHeld is how the ledger's list of grants begins and ends.
const noneHeld = `"held":[]`

// UnmarshalJSON reads what MarshalJSON wrote; anything else is ErrCorrupt and leaves l untouched.
func (l *Ledger) UnmarshalJSON(b []byte) error {
	read, err := parseLedger(b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	*l = *read
	return nil
}

func parseLedger(b []byte) (*Ledger, error) {
	var sealed sealedLedger
	if err := strictJSON(b, &sealed); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(sealed.Ledger)
	if hex.EncodeToString(sum[:]) != sealed.SHA256 {
		return nil, errors.New("the checksum does not fit")
	}
	l := &Ledger{held: make(map[ID]held), refused: make(map[ID]string)}
	if err := strictJSON(sealed.Ledger, &l.data); err != nil {
		return nil, err
	}
	if l.data.Version != ledgerVersion {
		return nil, fmt.Errorf("version %d, this program reads %d", l.data.Version, ledgerVersion)
	}
	if l.data.Tombstones == nil {
		l.data.Tombstones = make(map[ID]tombstone)
	}
	var err error
	if l.trust, err = OpenTrust(l.data.Trust, nil); err != nil {
		return nil, err
	}
	if err := l.checkCodes(); err != nil {
		return nil, err
	}
	for _, h := range l.data.Held {
		read, err := reopen(h, l.data.HostID)
		if err != nil {
			return nil, fmt.Errorf("held grant %s: %w", h.ID, err)
		}
		l.held[h.ID] = read
	}
	l.data.Held = nil
	// What was written has one form; doubled or differently cased names are not what was written.
	if again, err := l.MarshalJSON(); err != nil || !bytes.Equal(again, b) {
		return nil, errors.New("not in the form in which it was written")
	}
	return l, nil
}

// reopen parses a grant that this host verified before it wrote it. Signatures are not checked
// again: the issuer's key may have been rotated since, and that ends no grant.
func reopen(h heldData, host HostID) (held, error) {
	if h.Terms != nil {
		read, err := holdLocal(h, host)
		if err == nil && (h.StartMS <= 0 || h.OpenMS != 0 || h.EndMS != read.end() || h.Used) {
			err = errors.New("the window does not fit the terms")
		}
		return read, err
	}
	_, payload, err := parseEnvelope(h.Envelope)
	if err != nil {
		return held{}, err
	}
	g := new(curfewv1.Grant)
	if err := unmarshalCanonical(payload, g); err != nil {
		return held{}, err
	}
	terms, err := checkGrant(g)
	if err != nil {
		return held{}, err
	}
	if HostID(g.GetHostId()) != host ||
		IDOfWindow(g.GetTerms(), host, g.GetWindow()) != h.ID {
		return held{}, errors.New("the id does not fit the terms and the host")
	}
	read, err := hold(h, g, terms)
	if err != nil {
		return held{}, err
	}
	firstUse := terms.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE
	if h.StartMS < 0 || h.OpenMS < 0 || h.EndMS != read.end() || h.StartMS != 0 && h.OpenMS != 0 ||
		h.OpenMS != 0 && !firstUse || h.Used && !terms.GetSingleUse() {
		return held{}, errors.New("the window does not fit the terms")
	}
	return read, nil
}

func hold(h heldData, g *curfewv1.Grant, terms *curfewv1.Terms) (held, error) {
	w, err := windowOf(terms, g.GetWindow())
	return held{heldData: h, terms: terms, window: w, digest: TermsDigest(g.GetTerms())}, err
}

func strictJSON(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the end")
	}
	return nil
}
