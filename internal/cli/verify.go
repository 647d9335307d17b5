package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	maxRecords   = 5_000_000 // 64 bytes of memory each
	maxCatchUps  = 10        // times that the trail may grow while it is read
	maxMemory    = 64 << 10  // bytes of verified.json
	hashesPerLog = 1 << 12
)

// verdictView is what --verify found.
type verdictView struct {
	Records    uint64 `json:"records"`
	Head       string `json:"head"`
	HostEvents int    `json:"host_events"`
	Unchecked  int    `json:"host_events_unchecked"`
	Hosts      int    `json:"hosts"`
	Extends    uint64 `json:"extends"`
	Lost       uint64 `json:"host_events_lost"`
}

// verified is what this command remembers of a trail that it accepted.
type verified struct {
	Server string `json:"server"`
	CAPin  string `json:"ca_pin"`
	Count  uint64 `json:"count"`
	Head   string `json:"head"` // hex
}

// hashList is the trail's tree, in memory.
type hashList []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (h hashList) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		if at < 0 || at >= int64(len(h)) {
			return nil, fmt.Errorf("tree hash %d is not there yet", at)
		}
		out[i] = h[at]
	}
	return out, nil
}

// audit is one verification: the tree so far, and the chain of each host.
type audit struct {
	hashes hashList
	count  uint64
	hosts  map[string]*hostAudit
	events int
	// unchecked counts events of hosts whose key the trail does not hold.
	unchecked int
	// lost counts events that records of the trail itself admit to be missing.
	lost uint64
}

type hostAudit struct {
	// key is nil when the first record about the host did not hold it: then nothing is checked.
	key   ed25519.PublicKey
	chain trail.Chain
	// lostTo is the last event of a gap that a record admits; 0 when none is open.
	lostTo uint64
}

func newAudit() *audit {
	return &audit{hashes: make(hashList, 0, hashesPerLog), hosts: map[string]*hostAudit{}}
}

// mismatch names the record at which the trail is not what it should be.
func mismatch(number uint64, format string, args ...any) *failure {
	f := fail(exitFailed, "record %d: %w", number, fmt.Errorf(format, args...))
	return f.hint("the trail was altered or is corrupt; keep this output and tell an admin")
}

// add takes the next record.
func (u *audit) add(r *apiv1.Record) error {
	if r.GetNumber() != u.count {
		return mismatch(u.count, "the control plane sent record %d in its place", r.GetNumber())
	}
	if u.count >= maxRecords {
		return fail(exitFailed, "the trail has more than %d records; this command checks no more",
			maxRecords)
	}
	record, err := trail.ParseRecord(r.GetLeaf())
	if err != nil {
		return mismatch(u.count, "%w", err)
	}
	if record.Number != u.count {
		return mismatch(u.count, "its bytes say that it is record %d", record.Number)
	}
	if err := u.checkHost(record); err != nil {
		return mismatch(u.count, "%w", err)
	}
	hashes, err := trail.NewHashes(u.count, r.GetLeaf(), u.hashes)
	if err != nil {
		return err
	}
	u.hashes = append(u.hashes, hashes...)
	u.count++
	return nil
}

// checkHost checks what a host reported: its signature, and that it continues the host's chain.
func (u *audit) checkHost(r *trail.Record) error {
	if r.HostID == "" {
		return nil
	}
	host := u.hosts[r.HostID]
	if host == nil {
		host = &hostAudit{key: hostKey(r)}
		u.hosts[r.HostID] = host
	}
	if len(r.HostEvent) == 0 {
		return u.admit(r, host)
	}
	u.events++
	if host.key == nil {
		u.unchecked++
		return nil
	}
	signed := new(curfewv1.SignedHostMessage)
	if err := proto.Unmarshal(r.HostEvent, signed); err != nil {
		return fmt.Errorf("the event of host %s: %w", r.Host, err)
	}
	message, err := grant.OpenHostMessage(signed, host.key)
	if err != nil {
		return fmt.Errorf("the event of host %s: %w", r.Host, err)
	}
	event := message.GetEvent()
	if event == nil {
		return fmt.Errorf("what host %s signed is not an event", r.Host)
	}
	if err := agrees(r, event); err != nil {
		return err
	}
	if host.lostTo > 0 && event.GetNumber() == host.lostTo+1 {
		// Nobody holds what was lost; what follows is chained to the host's own word on it.
		host.chain, host.lostTo = trail.Chain{Count: host.lostTo, Head: event.GetPrevious()}, 0
	}
	if host.chain, err = host.chain.Next(event); err != nil {
		return fmt.Errorf("the event of host %s: %w", r.Host, err)
	}
	return nil
}

// kindLost is how the control plane records that a restore of it lost events of a host. The gap is
// told, not hidden: it is counted and shown.
const kindLost = "host.events_lost"

// admit takes a record about a gap in a host's events, which must begin where the events ended.
func (u *audit) admit(r *trail.Record, host *hostAudit) error {
	if r.Kind != kindLost {
		return nil
	}
	from, errFrom := strconv.ParseUint(r.Details["from"], 10, 63)
	to, errTo := strconv.ParseUint(r.Details["to"], 10, 63)
	if err := errors.Join(errFrom, errTo); err != nil {
		return fmt.Errorf("lost events of host %s: %w", r.Host, err)
	}
	if from != host.chain.Count+1 || to < from {
		return fmt.Errorf("lost events of host %s: %d to %d after event %d", r.Host, from, to,
			host.chain.Count)
	}
	host.lostTo = to
	u.lost += to - from + 1
	return nil
}

// kindOther is how the control plane records a host's event of a kind that it does not know; the
// event's own kind stands in the details.
const kindOther = "host.other"

// agrees compares a record with the event inside it, which the host signed. Ids that a host made up
// are left out of the record.
func agrees(r *trail.Record, e *curfewv1.Event) error {
	kind, request, grantID := e.GetKind(), "", ""
	if r.Kind == kindOther && r.Details["kind"] == grant.VisibleText(kind) {
		kind = kindOther
	}
	if grant.CheckRequestID(e.GetRequestId()) == nil {
		request = e.GetRequestId()
	}
	if id, err := grant.IDFromBytes(e.GetGrantId()); err == nil {
		grantID = id.String()
	}
	var wrong []string
	if r.Kind != kind {
		wrong = append(wrong, "kind")
	}
	if r.RequestID != request {
		wrong = append(wrong, "request")
	}
	if r.GrantID != grantID {
		wrong = append(wrong, "grant")
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the record and the event that host %s signed disagree about: %s", r.Host,
			strings.Join(wrong, ", "))
	}
	return nil
}

// hostKey finds a host's public key among a record's details. It proves itself: the host id is its
// hash.
func hostKey(r *trail.Record) ed25519.PublicKey {
	for _, value := range r.Details {
		key, err := base64.StdEncoding.DecodeString(value)
		if err != nil || len(key) != ed25519.PublicKeySize {
			continue
		}
		if grant.HostIDOf(key).String() == r.HostID {
			return key
		}
	}
	return nil
}

// read fetches the trail until the control plane's head and ours speak of the same count.
func (u *audit) read(ctx context.Context, c *client) error {
	for range maxCatchUps {
		var count uint64
		var head []byte
		answered := false
		question := &apiv1.ListRecordsRequest{From: u.count, All: true}
		err := c.records(ctx, question, func(answer *apiv1.ListRecordsResponse) error {
			for _, r := range answer.GetRecords() {
				if err := u.add(r); err != nil {
					return err
				}
			}
			count, head, answered = answer.GetTrailCount(), answer.GetTrailHead(), true
			return nil
		})
		switch {
		case err != nil:
			return err
		case !answered:
			return fail(exitFailed, "the control plane did not say where the trail stands")
		case count <= u.count:
			return u.compare(count, head)
		}
	}
	return fail(exitFailed, "the trail grew faster than it could be read").hint("try again")
}

// compare holds the control plane's head against the one computed from the records.
func (u *audit) compare(count uint64, head []byte) error {
	if count < u.count {
		return mismatch(count, "the control plane says that the trail has %d records and sent %d",
			count, u.count)
	}
	own, err := trail.Head(count, u.hashes)
	if err != nil {
		return err
	}
	if !bytes.Equal(own, head) {
		return fail(exitFailed, "records 0 to %d: they give head %x, the control plane says %x",
			max(count, 1)-1, own, head).
			hint("the trail was altered or is corrupt; keep this output and tell an admin")
	}
	return nil
}

// extends demands that the trail continues what was verified before.
func (u *audit) extends(before *verified) error {
	if before.Count > u.count {
		return mismatch(u.count, "the trail has %d records; when it was last verified here it had %d",
			u.count, before.Count)
	}
	own, err := trail.Head(before.Count, u.hashes)
	if err != nil {
		return err
	}
	if hex.EncodeToString(own) != before.Head {
		return fail(exitFailed, "records 0 to %d are not those that were verified here before: "+
			"their head is %x, it was %s", max(before.Count, 1)-1, own, before.Head).
			hint("the trail was rewritten; keep this output and tell an admin")
	}
	return nil
}

func (a *app) verify(ctx context.Context, c *client) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	dir, err := configDir(a.env.Getenv)
	if err != nil {
		return err
	}
	before, err := loadVerified(dir, pinOf(c.cfg.ca))
	if err != nil {
		return err
	}
	u := newAudit()
	if err := u.read(ctx, c); err != nil {
		return err
	}
	if err := u.extends(before); err != nil {
		return err
	}
	head, err := trail.Head(u.count, u.hashes)
	if err != nil {
		return err
	}
	now := verified{
		Server: c.cfg.Server, CAPin: pinOf(c.cfg.ca), Count: u.count,
		Head: hex.EncodeToString(head),
	}
	if err := now.save(dir); err != nil {
		return err
	}
	return a.tellVerdict(u, before, now)
}

func (a *app) tellVerdict(u *audit, before *verified, now verified) error {
	if a.json {
		return a.JSON(verdictView{
			Records: u.count, Head: now.Head, HostEvents: u.events, Unchecked: u.unchecked,
			Hosts: len(u.hosts), Extends: before.Count, Lost: u.lost,
		})
	}
	a.Line("The trail is whole: %s, head %.16s…", count(int(u.count), "record"), now.Head)
	a.Line("Checked: each record's form and number; the head against the control plane's; "+
		"signatures and chains of %s from %s", count(u.events-u.unchecked, "host event"),
		count(len(u.hosts), "host"))
	if before.Count > 0 {
		a.Line("It extends the %s that were verified here before", count(int(before.Count), "record"))
	} else {
		a.Line("Nothing was verified here before; from now on it must extend this")
	}
	if u.lost > 0 {
		a.Warn("%s were lost when the control plane was restored from a backup; see the records of "+
			"kind %s", count(int(u.lost), "host event"), kindLost)
	}
	if u.unchecked > 0 {
		a.Warn("%s could not be checked: the trail does not hold the key of the host",
			count(u.unchecked, "host event"))
	}
	return nil
}

// loadVerified reads what was verified before; another control plane's memory counts as none.
func loadVerified(dir, pin string) (*verified, error) {
	path := filepath.Join(dir, verifiedName)
	data, err := readCapped(path, maxMemory)
	if errors.Is(err, fs.ErrNotExist) {
		return &verified{}, nil
	}
	if err != nil {
		return nil, err
	}
	before := new(verified)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(before); err != nil {
		return nil, fail(exitFailed, "%s is corrupt: %w", path, err).
			hint("without it an older trail cannot be told from a newer one; if you know why it " +
				"broke, delete it and verify again")
	}
	if before.CAPin != pin {
		return &verified{}, nil
	}
	return before, nil
}

// moveVerified carries what was verified over to the CA that took the place of the one before.
func moveVerified(dir, from, to string) error {
	v, err := loadVerified(dir, from)
	if err != nil || v.CAPin == "" {
		return err
	}
	v.CAPin = to
	return v.save(dir)
}

func (v verified) save(dir string) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", verifiedName, err)
	}
	return writeFile(dir, verifiedName, append(data, '\n'))
}
