package grant_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestTermsComeBackAsTheyWere(t *testing.T) {
	w := granttest.NewWorld()
	terms := w.Terms(granttest.Noon())
	raw := granttest.Raw(terms)
	back, err := grant.ParseTerms(raw)
	if err != nil || !proto.Equal(terms, back) {
		t.Fatalf("%v: %v", err, back)
	}
	if grant.Duration(back) != time.Hour || !grant.HardEnd(back).Equal(granttest.Noon().Add(25*time.Hour)) {
		t.Errorf("duration %s, hard end %s", grant.Duration(back), grant.HardEnd(back))
	}
	if !grant.NamesHost(back, w.Host) || grant.NamesHost(back, grant.HostID{1}) {
		t.Error("the terms are for another host than they name")
	}
}

// A13, A6 and A7 in terms: whatever an attacker puts into any field is refused when the terms are
// made and when they are read.
func TestTermsRefuseWhatIsNotSound(t *testing.T) {
	w := granttest.NewWorld()
	other := grant.HostID{0xff}
	for name, bad := range map[string]func(*curfewv1.Terms){
		"version 0":       func(x *curfewv1.Terms) { x.Version = 0 },
		"version 2":       func(x *curfewv1.Terms) { x.Version = 2 },
		"no organisation": func(x *curfewv1.Terms) { x.Organisation = "" },
		"organisation":    func(x *curfewv1.Terms) { x.Organisation = "Example.org" },
		"request id":      func(x *curfewv1.Terms) { x.RequestId = "../../../etc" },
		"revision 0":      func(x *curfewv1.Terms) { x.Revision = 0 },
		"requester":       func(x *curfewv1.Terms) { x.Requester = "аlice" },
		"no host":         func(x *curfewv1.Terms) { x.Hosts = nil },
		"host nil":        func(x *curfewv1.Terms) { x.Hosts = []*curfewv1.HostRef{nil} },
		"host id short":   func(x *curfewv1.Terms) { x.Hosts[0].Id = x.Hosts[0].Id[:31] },
		"host name":       func(x *curfewv1.Terms) { x.Hosts[0].Name = "web1\n" },
		"host twice":      func(x *curfewv1.Terms) { x.Hosts = append(x.Hosts, x.Hosts[0]) },
		"hosts unsorted": func(x *curfewv1.Terms) {
			x.Hosts = []*curfewv1.HostRef{{Id: other[:], Name: "z"}, x.Hosts[0]}
		},
		"21 hosts": func(x *curfewv1.Terms) {
			for i := range 20 {
				id := grant.HostID{0xff, byte(i)}
				x.Hosts = append(x.Hosts, &curfewv1.HostRef{Id: id[:], Name: "z"})
			}
		},
		"role":                   func(x *curfewv1.Terms) { x.Role = "ops:admin" },
		"login root":             func(x *curfewv1.Terms) { x.Login = "root" },
		"login":                  func(x *curfewv1.Terms) { x.Login = "alice\nroot ALL=(ALL) ALL" },
		"login with a dot":       func(x *curfewv1.Terms) { x.Login = "a.b" },
		"uid 0":                  func(x *curfewv1.Terms) { x.Uid = 0 },
		"uid 999":                func(x *curfewv1.Terms) { x.Uid = 999 },
		"uid -1":                 func(x *curfewv1.Terms) { x.Uid = math.MaxUint32 },
		"uid 2^31":               func(x *curfewv1.Terms) { x.Uid = 1 << 31 },
		"nothing given":          func(x *curfewv1.Terms) { x.AllowLogin, x.SudoRules = false, nil },
		"group":                  func(x *curfewv1.Terms) { x.Groups = []string{"adm,wheel"} },
		"groups twice":           func(x *curfewv1.Terms) { x.Groups = []string{"adm", "adm"} },
		"groups unsorted":        func(x *curfewv1.Terms) { x.Groups = []string{"b", "a"} },
		"17 groups":              func(x *curfewv1.Terms) { x.Groups = strings.Split("a b c d e f g h i j k l m n o p q", " ") },
		"sudo rule nil":          func(x *curfewv1.Terms) { x.SudoRules = []*curfewv1.SudoRule{nil} },
		"sudo rule":              func(x *curfewv1.Terms) { x.SudoRules[0].Command = "/bin/*" },
		"65 rules":               func(x *curfewv1.Terms) { x.SudoRules = repeat(x.SudoRules[0], 65) },
		"label denies root":      func(x *curfewv1.Terms) { x.SudoRules[0].Contained = false },
		"label denies ALL":       func(x *curfewv1.Terms) { x.SudoRules[0] = &curfewv1.SudoRule{RunAs: "root", All: true} },
		"label denies docker":    func(x *curfewv1.Terms) { x.Groups = []string{"adm", "docker"} },
		"label claims root":      func(x *curfewv1.Terms) { x.RootEquivalent = true },
		"key with options":       func(x *curfewv1.Terms) { x.AuthorizedKeys[0] = `command="sh" ` + x.AuthorizedKeys[0] },
		"key with comment":       func(x *curfewv1.Terms) { x.AuthorizedKeys[0] += " alice" },
		"key with a newline":     func(x *curfewv1.Terms) { x.AuthorizedKeys[0] += "\n" + x.AuthorizedKeys[0] },
		"key is none":            func(x *curfewv1.Terms) { x.AuthorizedKeys[0] = "ssh-ed25519 AAAA" },
		"17 keys":                func(x *curfewv1.Terms) { x.AuthorizedKeys = repeat(x.AuthorizedKeys[0], 17) },
		"no start mode":          func(x *curfewv1.Terms) { x.StartMode = 0 },
		"unknown start mode":     func(x *curfewv1.Terms) { x.StartMode = 9 },
		"duration 0":             func(x *curfewv1.Terms) { x.DurationMs = 0 },
		"duration negative":      func(x *curfewv1.Terms) { x.DurationMs = -1 },
		"duration most negative": func(x *curfewv1.Terms) { x.DurationMs = math.MinInt64 },
		"duration overflows":     func(x *curfewv1.Terms) { x.DurationMs = math.MaxInt64 },
		"duration wraps":         func(x *curfewv1.Terms) { x.DurationMs = math.MaxInt64/1_000_000 + 3600_000 },
		"duration under 1 s":     func(x *curfewv1.Terms) { x.DurationMs = 999 },
		"duration over 30 d":     func(x *curfewv1.Terms) { x.DurationMs = 30*24*3600_000 + 1 },
		"no earliest start":      func(x *curfewv1.Terms) { x.StartEarliestMs = 0 },
		"no latest start":        func(x *curfewv1.Terms) { x.StartLatestMs = 0 },
		"latest before earliest": func(x *curfewv1.Terms) { x.StartLatestMs = x.StartEarliestMs - 1 },
		"no hard end":            func(x *curfewv1.Terms) { x.HardEndMs = 0 },
		"hard end at the start":  func(x *curfewv1.Terms) { x.HardEndMs = x.StartLatestMs },
		"hard end in years":      func(x *curfewv1.Terms) { x.HardEndMs = x.StartEarliestMs + 401*24*3600_000 },
		"hard end never":         func(x *curfewv1.Terms) { x.HardEndMs = math.MaxInt64 },
		"no approval needed":     func(x *curfewv1.Terms) { x.ApprovalsNeeded = 0 },
		"17 approvals needed":    func(x *curfewv1.Terms) { x.ApprovalsNeeded = 17 },
		"approver group":         func(x *curfewv1.Terms) { x.ApproverGroup = "" },
		"policy hash":            func(x *curfewv1.Terms) { x.PolicyHash = x.PolicyHash[1:] },
		"reason hash":            func(x *curfewv1.Terms) { x.ReasonHash = nil },
		"follows half a digest":  func(x *curfewv1.Terms) { x.Follows = make([]byte, 16) },
	} {
		terms := w.Terms(granttest.Noon())
		bad(terms)
		if _, err := grant.MarshalTerms(terms); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: made: %v", name, err)
		}
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(terms)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := grant.ParseTerms(raw); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: read: %v", name, err)
		} else if !clean(err.Error()) {
			t.Errorf("%s: the refusal has control characters: %q", name, err)
		}
	}
}

func repeat[T any](x T, n int) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = x
	}
	return out
}

// unknown is a field number that no message of this version has.
const unknown = 500

// Attack A4: unknown fields at the top and nested, doubled fields, other encodings, trailing bytes.
func TestTermsHaveOneEncoding(t *testing.T) {
	w := granttest.NewWorld()
	raw := granttest.Raw(w.Terms(granttest.Noon()))
	extra := protowire.AppendVarint(protowire.AppendTag(nil, unknown, protowire.VarintType), 1)
	nested := func(field protowire.Number) []byte {
		var out []byte
		for rest := raw; len(rest) > 0; {
			num, typ, n := protowire.ConsumeField(rest)
			_ = typ
			if num == field {
				_, _, tag := protowire.ConsumeTag(rest)
				inner, _ := protowire.ConsumeBytes(rest[tag:])
				out = protowire.AppendTag(out, num, protowire.BytesType)
				out = protowire.AppendBytes(out, append(bytes.Clone(inner), extra...))
			} else {
				out = append(out, rest[:n]...)
			}
			rest = rest[n:]
		}
		return out
	}
	again := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1)
	zero := protowire.AppendVarint(protowire.AppendTag(nil, 24, protowire.VarintType), 0)
	if raw[0] != 8 || raw[1] != 1 {
		t.Fatal("the terms do not begin with their version")
	}
	for name, bad := range map[string][]byte{
		"empty":                     nil,
		"cut":                       raw[:len(raw)-1],
		"a zero byte behind":        append(bytes.Clone(raw), 0),
		"unknown field":             append(bytes.Clone(raw), extra...),
		"unknown field in a host":   nested(6),
		"unknown field in a rule":   nested(12),
		"version doubled":           append(bytes.Clone(raw), again...),
		"default spelled out":       append(bytes.Clone(raw), zero...),
		"version in front of all":   append(bytes.Clone(again), raw...),
		"fields in another order":   append(bytes.Clone(raw[2:]), raw[:2]...),
		"varint longer than needed": append([]byte{8, 0x81, 0}, raw[2:]...),
		"two terms":                 append(bytes.Clone(raw), raw...),
		"a group":                   append(bytes.Clone(raw), protowire.AppendTag(nil, unknown, protowire.StartGroupType)...),
	} {
		if _, err := grant.ParseTerms(bad); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range raw {
		if _, err := grant.ParseTerms(raw[:i]); err == nil {
			t.Errorf("cut after %d of %d bytes: read", i, len(raw))
		}
	}
}

func TestGrantsRefuseWhatIsNotSound(t *testing.T) {
	w := granttest.NewWorld()
	raw := granttest.Raw(w.Terms(granttest.Noon()))
	sound := func() *curfewv1.Grant {
		return &curfewv1.Grant{
			Version: 1, HostId: w.Host[:], Terms: raw, IssuedAtMs: 1,
			Approvals: []*curfewv1.Approval{w.Bob.Approve(raw)},
		}
	}
	if _, err := grant.SealGrant(sound(), w.Issuer); err != nil {
		t.Fatal(err)
	}
	other := grant.HostID{9}
	for name, bad := range map[string]func(*curfewv1.Grant){
		"version":          func(g *curfewv1.Grant) { g.Version = 2 },
		"no host":          func(g *curfewv1.Grant) { g.HostId = nil },
		"host not named":   func(g *curfewv1.Grant) { g.HostId = other[:] },
		"no terms":         func(g *curfewv1.Grant) { g.Terms = nil },
		"terms altered":    func(g *curfewv1.Grant) { g.Terms = append(bytes.Clone(raw), 0) },
		"no time of issue": func(g *curfewv1.Grant) { g.IssuedAtMs = 0 },
		"17 approvals":     func(g *curfewv1.Grant) { g.Approvals = repeat(g.Approvals[0], 17) },
		"over 64 KiB": func(g *curfewv1.Grant) {
			g.Approvals = []*curfewv1.Approval{{Approver: "bob", Sshsig: make([]byte, 64<<10)}}
		},
	} {
		g := sound()
		bad(g)
		if _, err := grant.SealGrant(g, w.Issuer); err == nil {
			t.Errorf("%s: sealed", name)
		}
		payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		env, err := grant.Seal(grant.TypeGrant, payload, w.Issuer)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := grant.OpenGrant(env, w.Trust.Issuers()); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: opened: %v", name, err)
		}
	}
	withUnknown := append(mustMarshal(t, sound()), protowire.AppendVarint(
		protowire.AppendTag(nil, unknown, protowire.VarintType), 1)...)
	env, err := grant.Seal(grant.TypeGrant, withUnknown, w.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := grant.OpenGrant(env, w.Trust.Issuers()); !errors.Is(err, grant.ErrMalformed) {
		t.Errorf("unknown field: %v", err)
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The id is a function of terms and host, and of nothing that anybody could choose.
func TestGrantIDs(t *testing.T) {
	w := granttest.NewWorld()
	raw := granttest.Raw(w.Terms(granttest.Noon()))
	id := grant.IDOf(raw, w.Host)
	if id == grant.IDOf(raw, grant.HostID{1}) || id == grant.IDOf(raw[1:], w.Host) {
		t.Error("two grants share an id")
	}
	const want = "a12390e17ab880b6a226339a3039dba809ed79f29a88689b7f0eedcad3558f11" // by PROTOCOL.md, computed elsewhere
	if got := grant.IDOf([]byte("terms"), grant.HostID{}).String(); got != want {
		t.Errorf("the id of a fixed grant is %s", got)
	}
	back, err := grant.ParseID(id.String())
	if err != nil || back != id {
		t.Errorf("%v %v", back, err)
	}
	for _, s := range []string{
		"", "00", strings.ToUpper(id.String()), id.String() + "0", id.String()[1:] + "g",
		" " + id.String()[1:], "\x1b" + id.String()[1:],
	} {
		if _, err := grant.ParseID(s); err == nil || !clean(err.Error()) {
			t.Errorf("%q: %v", s, err)
		}
		if _, err := grant.ParseHostID(s); err == nil {
			t.Errorf("%q is a host id", s)
		}
	}
}
