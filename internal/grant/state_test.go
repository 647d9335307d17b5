package grant_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestStatesRefuseWhatIsNotSound(t *testing.T) {
	w := granttest.NewWorld()
	a, b := grant.ID{1}, grant.ID{2}
	sound := func() *curfewv1.HostState {
		s := w.HostState(granttest.Noon(), make([]byte, 16), a, b)
		s.Ended = []*curfewv1.Ended{{GrantId: bytes.Repeat([]byte{3}, 32)}}
		s.TrailCount, s.TrailHead = 1, make([]byte, 32)
		s.Rollout = &curfewv1.Rollout{
			Id: "rollout00001", Attempt: 1, Wish: curfewv1.RolloutWish_ROLLOUT_WISH_KEEP,
		}
		return s
	}
	opened, err := grant.OpenState(granttest.SealState(sound(), w.Issuer), w.Trust.Issuers())
	if err != nil || len(opened.GetLive()) != 2 {
		t.Fatalf("%v: %v", err, opened)
	}
	many := make([][]byte, grant.MaxLive+1)
	for i := range many {
		many[i] = append(make([]byte, 30), byte(i>>8), byte(i))
	}
	for name, bad := range map[string]func(*curfewv1.HostState){
		"version":               func(s *curfewv1.HostState) { s.Version = 2 },
		"no host":               func(s *curfewv1.HostState) { s.HostId = nil },
		"epoch 0":               func(s *curfewv1.HostState) { s.Epoch = 0 },
		"sequence 0":            func(s *curfewv1.HostState) { s.Sequence = 0 },
		"no time of issue":      func(s *curfewv1.HostState) { s.IssuedAtMs = 0 },
		"time of issue before":  func(s *curfewv1.HostState) { s.IssuedAtMs = -1 },
		"no lease":              func(s *curfewv1.HostState) { s.ValidForMs = 0 },
		"lease negative":        func(s *curfewv1.HostState) { s.ValidForMs = -1 },
		"lease over a day":      func(s *curfewv1.HostState) { s.ValidForMs = 24*3600_000 + 1 },
		"lease of ages":         func(s *curfewv1.HostState) { s.ValidForMs = math.MaxInt64 },
		"nonce short":           func(s *curfewv1.HostState) { s.Nonce = s.Nonce[:15] },
		"nonce long":            func(s *curfewv1.HostState) { s.Nonce = make([]byte, 17) },
		"head without records":  func(s *curfewv1.HostState) { s.TrailCount = 0 },
		"records without head":  func(s *curfewv1.HostState) { s.TrailHead = nil },
		"head short":            func(s *curfewv1.HostState) { s.TrailHead = s.TrailHead[:31] },
		"more records than are": func(s *curfewv1.HostState) { s.TrailCount = math.MaxUint64 },
		"live unsorted":         func(s *curfewv1.HostState) { s.Live[0], s.Live[1] = s.Live[1], s.Live[0] },
		"live twice":            func(s *curfewv1.HostState) { s.Live[1] = s.Live[0] },
		"live short":            func(s *curfewv1.HostState) { s.Live[1] = s.Live[1][:31] },
		"live too many":         func(s *curfewv1.HostState) { s.Live = many },
		"ended twice":           func(s *curfewv1.HostState) { s.Ended = repeat(s.Ended[0], 2) },
		"ended nil":             func(s *curfewv1.HostState) { s.Ended = []*curfewv1.Ended{nil} },
		"ended by whom":         func(s *curfewv1.HostState) { s.Ended[0].By = strings.Repeat("x", 256) },
		"rollout without id":    func(s *curfewv1.HostState) { s.Rollout.Id = "" },
		"rollout without wish":  func(s *curfewv1.HostState) { s.Rollout.Wish = 0 },
		"rollout's wish":        func(s *curfewv1.HostState) { s.Rollout.Wish = 4 },
		"rollout's attempt":     func(s *curfewv1.HostState) { s.Rollout.Attempt = 0 },
	} {
		s := sound()
		bad(s)
		if _, err := grant.SealState(s, w.Issuer); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: sealed: %v", name, err)
		}
		env, err := grant.Seal(grant.TypeHostState, mustMarshal(t, s), w.Issuer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := grant.OpenState(env, w.Trust.Issuers()); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: opened: %v", name, err)
		}
	}
	extra := protowire.AppendVarint(protowire.AppendTag(nil, unknown, protowire.VarintType), 1)
	raw := mustMarshal(t, sound())
	nested := protowire.AppendBytes(protowire.AppendTag(bytes.Clone(raw), 6, protowire.BytesType),
		append(mustMarshal(t, &curfewv1.Ended{GrantId: bytes.Repeat([]byte{4}, 32)}), extra...))
	for name, bad := range map[string][]byte{
		"unknown field": append(bytes.Clone(raw), extra...), "unknown field nested": nested,
		"a second sequence": append(bytes.Clone(raw), 4<<3, 9),
	} {
		env, err := grant.Seal(grant.TypeHostState, bad, w.Issuer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := grant.OpenState(env, w.Trust.Issuers()); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	asGrant, err := grant.Seal(grant.TypeGrant, raw, w.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grant.OpenState(asGrant, w.Trust.Issuers()); !errors.Is(err, grant.ErrMalformed) {
		t.Errorf("sealed as a grant: %v", err)
	}
}

// A full list still fits into an envelope.
func TestAFullStateFits(t *testing.T) {
	w := granttest.NewWorld()
	s := w.HostState(granttest.Noon(), make([]byte, 16))
	for i := range grant.MaxLive {
		s.Live = append(s.Live, append(make([]byte, 30), byte(i>>8), byte(i)))
	}
	for i := range 256 {
		s.Ended = append(s.Ended, &curfewv1.Ended{
			GrantId: append(bytes.Repeat([]byte{0xff}, 31), byte(i)), Cause: 2, By: strings.Repeat("x", 32),
		})
	}
	if _, err := grant.SealState(s, w.Issuer); err != nil {
		t.Error(err)
	}
}

func TestHostMessages(t *testing.T) {
	key := granttest.Key("host")
	m := &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: &curfewv1.Event{
		Number: 1, Kind: "agent.started", Details: map[string]string{"b": "2", "a": "1", "c": "3"},
	}}}
	s, err := grant.SignHostMessage(m, key)
	if err != nil {
		t.Fatal(err)
	}
	back, err := grant.OpenHostMessage(s, granttest.Public(key))
	if err != nil || back.GetEvent().GetDetails()["b"] != "2" {
		t.Fatalf("%v: %v", err, back)
	}
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}
	for name, bad := range map[string]*curfewv1.SignedHostMessage{
		"nothing":             nil,
		"no signature":        {Body: s.GetBody()},
		"an altered body":     {Body: flip(s.GetBody()), Signature: s.GetSignature()},
		"an altered sig":      {Body: s.GetBody(), Signature: flip(s.GetSignature())},
		"bytes behind a body": {Body: append(bytes.Clone(s.GetBody()), 0), Signature: s.GetSignature()},
	} {
		if _, err := grant.OpenHostMessage(bad, granttest.Public(key)); !errors.Is(err, grant.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, pub := range map[string][]byte{
		"another's key": granttest.Public(granttest.Key("other")), "no key": nil, "a short key": make([]byte, 31),
	} {
		if _, err := grant.OpenHostMessage(s, pub); !errors.Is(err, grant.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: &curfewv1.Event{
		Kind: strings.Repeat("x", grant.MaxHostMessage),
	}}}
	if _, err := grant.SignHostMessage(big, key); err == nil {
		t.Error("a message over the limit is signed")
	}
	if _, err := grant.OpenHostMessage(&curfewv1.SignedHostMessage{Body: make([]byte, grant.MaxHostMessage+1)},
		granttest.Public(key)); !errors.Is(err, grant.ErrMalformed) {
		t.Errorf("a message over the limit: %v", err)
	}
}
