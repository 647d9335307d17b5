package issue_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// memory is a Store for one request and any hosts.
type memory struct {
	mu        sync.Mutex
	request   issue.Approved
	err       error
	grants    []issue.SealedGrant
	records   []trail.Record
	sequences map[grant.HostID]uint64
	facts     issue.StateFacts
	hashes    []tlog.Hash
	reads     int
}

func (m *memory) ApprovedRequest(context.Context, string) (issue.Approved, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.request, m.err
}

func (m *memory) PutGrants(
	_ context.Context, id string, revision uint32, grants []issue.SealedGrant, r trail.Record,
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case id != m.request.RequestID || revision != m.request.Revision:
		return issue.ErrNotApproved
	case m.request.Issued:
		return issue.ErrIssued
	}
	m.request.Issued = true
	m.grants, m.records = append(m.grants, grants...), append(m.records, r)
	return nil
}

func (m *memory) NextState(
	_ context.Context, host grant.HostID, _ time.Time, maxEnded int,
) (issue.StateFacts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return issue.StateFacts{}, m.err
	}
	m.sequences[host]++
	f := m.facts
	f.Sequence = m.sequences[host]
	f.Ended = f.Ended[:min(len(f.Ended), maxEnded)]
	return f, nil
}

func (m *memory) TrailHashes(context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.reads++
		out := make([]tlog.Hash, 0, len(indexes))
		for _, x := range indexes {
			out = append(out, m.hashes[x])
		}
		return out, nil
	})
}

func (m *memory) grow(t *testing.T, n uint64) {
	t.Helper()
	r := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, 0, len(indexes))
		for _, x := range indexes {
			out = append(out, m.hashes[x])
		}
		return out, nil
	})
	for ; m.facts.TrailCount < n; m.facts.TrailCount++ {
		leaf := fmt.Appendf(nil, "record %d", m.facts.TrailCount)
		more, err := trail.NewHashes(m.facts.TrailCount, leaf, r)
		if err != nil {
			t.Fatal(err)
		}
		m.hashes = append(m.hashes, more...)
	}
}

func newIssuer(t *testing.T, m *memory) *issue.Issuer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m.sequences = make(map[grant.HostID]uint64)
	i, err := issue.New(issue.Config{
		Store: m, Key: key, Now: func() time.Time { return noon }, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func accepted() *curfewv1.Terms {
	web1, web2 := grant.HostID{1}, grant.HostID{2}
	return &curfewv1.Terms{
		Version: grant.Version, Organisation: "example", RequestId: "0123456789ab", Revision: 1,
		Requester: "alice", Login: "alice", Uid: 1900000000,
		Hosts: []*curfewv1.HostRef{{Id: web1[:], Name: "web1"}, {Id: web2[:], Name: "web2"}},
		Role:  "ops", AllowLogin: true,
		SudoRules: []*curfewv1.SudoRule{{RunAs: "root", Command: "/usr/bin/id", Contained: true}},
		StartMode: curfewv1.StartMode_START_MODE_CONFIRMATION, DurationMs: time.Hour.Milliseconds(),
		StartEarliestMs: noon.UnixMilli(), StartLatestMs: noon.Add(24 * time.Hour).UnixMilli(),
		HardEndMs:       noon.Add(25 * time.Hour).UnixMilli(),
		ApprovalsNeeded: 1, ApproverGroup: "leads", PolicyHash: make([]byte, 32),
		ReasonHash: grant.ReasonHash("nginx is down"),
	}
}

func marshalled(t *testing.T, a *curfewv1.Terms) []byte {
	t.Helper()
	terms, err := grant.MarshalTerms(a)
	if err != nil {
		t.Fatal(err)
	}
	return terms
}

func approvedRequest(t *testing.T, a *curfewv1.Terms, follows []byte) issue.Approved {
	t.Helper()
	terms := marshalled(t, a)
	return issue.Approved{
		RequestID: a.RequestId, Revision: a.Revision, Terms: terms, Follows: follows,
		Approvals: []*curfewv1.Approval{{Approver: "bob", Sshsig: []byte("signature")}},
	}
}

func TestAnApprovedRequestBecomesOneGrantPerHost(t *testing.T) {
	m := &memory{request: approvedRequest(t, accepted(), nil)}
	i := newIssuer(t, m)
	hosts, err := i.Issue(context.Background(), "0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]grant.HostID{{1}, {2}}, hosts); diff != "" {
		t.Error(diff)
	}
	for k, g := range m.grants {
		opened, terms, err := grant.OpenGrant(g.Envelope, []ed25519.PublicKey{i.PublicKey()})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(opened.GetHostId(), hosts[k][:]) ||
			!bytes.Equal(opened.GetTerms(), m.request.Terms) ||
			opened.GetApprovals()[0].GetApprover() != "bob" || terms.GetLogin() != "alice" {
			t.Errorf("grant %d holds %v", k, opened)
		}
		if g.ID != grant.IDOf(m.request.Terms, hosts[k]) || g.Extends != (grant.ID{}) ||
			!g.HardEnd.Equal(grant.HardEnd(terms)) {
			t.Errorf("grant %d is stored as %+v", k, g)
		}
	}
	if len(m.records) != 1 || m.records[0].RequestID != "0123456789ab" ||
		m.records[0].Details["approvers"] != "bob" {
		t.Errorf("trail says %+v", m.records)
	}
}

// F13: whatever repeats, a request is granted once.
func TestIssuingTwiceGrantsOnce(t *testing.T) {
	m := &memory{request: approvedRequest(t, accepted(), nil)}
	i := newIssuer(t, m)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			hosts, err := i.Issue(context.Background(), "0123456789ab")
			if err != nil || len(hosts) != 2 {
				t.Errorf("%d hosts, %v", len(hosts), err)
			}
		})
	}
	wg.Wait()
	if len(m.grants) != 2 || len(m.records) != 1 {
		t.Errorf("%d grants and %d records after eight calls", len(m.grants), len(m.records))
	}
}

func TestExtensionNamesWhatItReplaces(t *testing.T) {
	first := marshalled(t, accepted())
	digest := grant.TermsDigest(first)
	a := accepted()
	a.Revision, a.DurationMs, a.Follows = 2, 2*time.Hour.Milliseconds(), digest[:]
	m := &memory{request: approvedRequest(t, a, first)}
	i := newIssuer(t, m)
	if _, err := i.Issue(context.Background(), a.RequestId); err != nil {
		t.Fatal(err)
	}
	terms, err := grant.ParseTerms(m.request.Terms)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(terms.GetFollows(), digest[:]) {
		t.Error("the terms do not name the terms they follow")
	}
	for _, g := range m.grants {
		if g.Extends != grant.IDOf(first, g.Host) {
			t.Errorf("grant of host %s replaces %s", g.Host, g.Extends)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	for name, change := range map[string]func(*issue.Approved){
		"too few approvals": func(a *issue.Approved) { a.Approvals = nil },
		"one's own approval": func(a *issue.Approved) {
			a.Approvals = append(a.Approvals,
				&curfewv1.Approval{Approver: "alice", Sshsig: []byte("x")})
		},
		"terms of another request": func(a *issue.Approved) { a.RequestID = "ba9876543210" },
		"another revision":         func(a *issue.Approved) { a.Revision = 2 },
		"altered terms":            func(a *issue.Approved) { a.Terms = append(a.Terms, 0) },
	} {
		m := &memory{request: approvedRequest(t, accepted(), nil)}
		change(&m.request)
		if _, err := newIssuer(t, m).Issue(context.Background(), "0123456789ab"); err == nil {
			t.Errorf("%s: issued", name)
		}
		if len(m.grants) != 0 {
			t.Errorf("%s: %d grants stored", name, len(m.grants))
		}
	}
}

// One person's approval counts once, however often it is attached.
func TestOnePersonApprovesOnce(t *testing.T) {
	a := accepted()
	a.ApprovalsNeeded = 2
	m := &memory{request: approvedRequest(t, a, nil)}
	m.request.Approvals = append(m.request.Approvals, m.request.Approvals[0])
	_, err := newIssuer(t, m).Issue(context.Background(), a.RequestId)
	if !errors.Is(err, issue.ErrNotApproved) {
		t.Errorf("two approvals of one person: %v", err)
	}
}

func TestIssueTooLate(t *testing.T) {
	a := accepted()
	a.StartEarliestMs, a.StartLatestMs = noon.Add(-2*time.Hour).UnixMilli(), noon.UnixMilli()
	m := &memory{request: approvedRequest(t, a, nil)}
	_, err := newIssuer(t, m).Issue(context.Background(), a.RequestId)
	if !errors.Is(err, issue.ErrNotApproved) {
		t.Errorf("no host could start it any more: %v", err)
	}
}
