package grant_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
)

func keysOf(keys ...ed25519.PrivateKey) []grant.Key {
	var out []grant.Key
	for _, k := range keys {
		out = append(out, grant.Key(granttest.Public(k)))
	}
	return out
}

// Version N+1 needs the threshold of N and the threshold of N+1.
func TestTrustRotationNeedsBothThresholds(t *testing.T) {
	w := granttest.NewWorld()
	a, b, c := granttest.Key("root a"), granttest.Key("root b"), granttest.Key("root c")
	x, y := granttest.Key("root x"), granttest.Key("root y")
	old := granttest.CloneTrust(w.Trust)
	old.RootKeys, old.RootThreshold = keysOf(a, b, c), 2
	next := granttest.CloneTrust(old)
	next.RootKeys, next.RootThreshold = keysOf(x, y), 2
	shared := granttest.CloneTrust(old)
	shared.RootKeys, shared.RootThreshold = keysOf(b, x), 1
	for _, s := range []struct {
		name string
		next *grant.Trust
		by   []ed25519.PrivateKey
		ok   bool
	}{
		{"both thresholds", next, []ed25519.PrivateKey{a, c, x, y}, true},
		{"both, in another order", next, []ed25519.PrivateKey{y, b, x, a}, true},
		{"more than both", next, []ed25519.PrivateKey{a, b, c, x, y}, true},
		{"old only", next, []ed25519.PrivateKey{a, b, c}, false},
		{"new only", next, []ed25519.PrivateKey{x, y}, false},
		{"one short of old", next, []ed25519.PrivateKey{a, x, y}, false},
		{"one short of new", next, []ed25519.PrivateKey{a, b, x}, false},
		{"a key of both counts for both", shared, []ed25519.PrivateKey{b, a}, true},
		{"but not twice for one", shared, []ed25519.PrivateKey{b}, false},
		{"old threshold without any new", shared, []ed25519.PrivateKey{a, c}, false},
		{"strangers", next, []ed25519.PrivateKey{granttest.Key("m"), granttest.Key("n")}, false},
	} {
		got, err := grant.OpenTrust(granttest.SealTrust(s.next, s.by...), old)
		if (err == nil) != s.ok {
			t.Errorf("%s: %v", s.name, err)
		}
		if err == nil && got.Version != s.next.Version {
			t.Errorf("%s: version %d", s.name, got.Version)
		}
		if err != nil && !errors.Is(err, grant.ErrSignature) {
			t.Errorf("%s: refused for another reason: %v", s.name, err)
		}
	}
	// At enrolment there is no old one; its own threshold is needed all the same.
	if _, err := grant.OpenTrust(granttest.SealTrust(next, x), nil); !errors.Is(err, grant.ErrSignature) {
		t.Errorf("first trust file with one of two signatures: %v", err)
	}
	if _, err := grant.OpenTrust(granttest.SealTrust(next, x, y), nil); err != nil {
		t.Error(err)
	}
}

func TestTrustGoesForwardOnly(t *testing.T) {
	w := granttest.NewWorld()
	current := granttest.CloneTrust(w.Trust)
	current.Version, current.Epoch = 5, 3
	for name, c := range map[string]struct {
		edit func(*grant.Trust)
		ok   bool
	}{
		"the next":             {func(*grant.Trust) {}, true},
		"a version skipped":    {func(n *grant.Trust) { n.Version = 9 }, true},
		"a new epoch":          {func(n *grant.Trust) { n.Epoch = 4 }, true},
		"the same version":     {func(n *grant.Trust) { n.Version = 5 }, false},
		"an older version":     {func(n *grant.Trust) { n.Version = 4 }, false},
		"a falling epoch":      {func(n *grant.Trust) { n.Epoch = 2 }, false},
		"another organisation": {func(n *grant.Trust) { n.Organisation = "elsewhere.org" }, false},
	} {
		next := granttest.CloneTrust(current)
		c.edit(next)
		if _, err := grant.OpenTrust(granttest.SealTrust(next, w.Root), current); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTrustRefusesWhatIsNotSound(t *testing.T) {
	w := granttest.NewWorld()
	for name, bad := range map[string]func(*grant.Trust){
		"version 0":          func(x *grant.Trust) { x.Version = 0 },
		"epoch 0":            func(x *grant.Trust) { x.Epoch = 0 },
		"organisation":       func(x *grant.Trust) { x.Organisation = "Exämple" },
		"no root key":        func(x *grant.Trust) { x.RootKeys = nil },
		"a root key twice":   func(x *grant.Trust) { x.RootKeys = keysOf(w.Root, w.Root) },
		"a short root key":   func(x *grant.Trust) { x.RootKeys = []grant.Key{make(grant.Key, 31)} },
		"threshold 0":        func(x *grant.Trust) { x.RootThreshold = 0 },
		"threshold negative": func(x *grant.Trust) { x.RootThreshold = -1 },
		"threshold of more":  func(x *grant.Trust) { x.RootThreshold = 2 },
		"no issuer key":      func(x *grant.Trust) { x.IssuerKeys = nil },
		"an issuer twice":    func(x *grant.Trust) { x.IssuerKeys = keysOf(w.Issuer, w.Issuer) },
		"approver's name":    func(x *grant.Trust) { x.Approvers[0].Name = "Bob" },
		"approver twice":     func(x *grant.Trust) { x.Approvers[1].Name = "bob" },
		"a key of two people": func(x *grant.Trust) {
			x.Approvers[1].SSHKeys = append(x.Approvers[1].SSHKeys, w.Bob.SSHKey)
		},
		"a key twice":        func(x *grant.Trust) { x.Approvers[0].SSHKeys = repeat(w.Bob.SSHKey, 2) },
		"a key with comment": func(x *grant.Trust) { x.Approvers[0].SSHKeys[0] += " bob" },
		"a key disguised":    func(x *grant.Trust) { x.Approvers[1].SSHKeys = []string{" " + w.Bob.SSHKey} },
		"a key of another type": func(x *grant.Trust) {
			x.Approvers[1].SSHKeys = []string{strings.Replace(w.Bob.SSHKey, "ssh-ed25519", "ssh-rsa", 1)}
		},
		"approver's group": func(x *grant.Trust) { x.Approvers[0].Groups = []string{"leads\n"} },
		"2001 approvers": func(x *grant.Trust) {
			for i := range 2001 {
				x.Approvers = append(x.Approvers, grant.Approver{Name: fmt.Sprint("p", i)})
			}
		},
		"quorum of nobody": func(x *grant.Trust) { x.Quorums[0].Approvals = 0 },
		"quorum of 17":     func(x *grant.Trust) { x.Quorums[0].Approvals = 17 },
		"quorum twice":     func(x *grant.Trust) { x.Quorums[1] = x.Quorums[0] },
		"quorum of 8 and 9": func(x *grant.Trust) {
			x.Quorums[0].Approvals, x.Quorums[0].Also = 8, []grant.Need{{Group: "owners", Approvals: 9}}
		},
		"a group needed twice": func(x *grant.Trust) {
			x.Quorums[0].Also = []grant.Need{{Group: granttest.GroupLeads, Approvals: 1}}
		},
		"two managers needed": func(x *grant.Trust) {
			x.Quorums[0].Also = []grant.Need{{Group: grant.GroupManager, Approvals: 2}}
		},
		"a requester of two managers": func(x *grant.Trust) {
			x.Approvers[0].Manages, x.Approvers[1].Manages = []string{"alice"}, []string{"alice"}
		},
		"one's own manager":       func(x *grant.Trust) { x.Approvers[0].Manages = []string{"bob"} },
		"a standing rule twice":   func(x *grant.Trust) { x.Standing = repeat(standing(), 2) },
		"a standing rule for all": func(x *grant.Trust) { x.Standing = repeat(standing(), 1); x.Standing[0].Groups = nil },
		"a standing rule for ever": func(x *grant.Trust) {
			x.Standing = repeat(standing(), 1)
			x.Standing[0].MaxDurationMS = grant.MaxDuration.Milliseconds() + 1
		},
		"a requester twice": func(x *grant.Trust) {
			x.Requesters = repeat(grant.Requester{Name: "alice", UID: 1900000001}, 2)
		},
		"requesters unsorted": func(x *grant.Trust) {
			x.Requesters = []grant.Requester{{Name: "bob", UID: 1900000002}, {Name: "alice", UID: 1900000001}}
		},
		"a uid of two requesters": func(x *grant.Trust) {
			x.Requesters = []grant.Requester{{Name: "alice", UID: 1900000001}, {Name: "bob", UID: 1900000001}}
		},
		"a system uid": func(x *grant.Trust) { x.Requesters = []grant.Requester{{Name: "alice", UID: 33}} },
		"a key of two requesters": func(x *grant.Trust) {
			x.Requesters = []grant.Requester{
				{Name: "alice", UID: 1900000001, SSHKeys: []string{w.Bob.SSHKey}},
				{Name: "bob", UID: 1900000002, SSHKeys: []string{w.Bob.SSHKey}},
			}
		},
		"quorum's role":  func(x *grant.Trust) { x.Quorums[0].Role = "" },
		"quorum's group": func(x *grant.Trust) { x.Quorums[0].Group = "" },
	} {
		next := granttest.CloneTrust(w.Trust)
		bad(next)
		if _, err := grant.SealTrust(next, w.Root); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// Strict canonical JSON: signed by the right key, and still refused in any second form.
func TestTrustHasOneForm(t *testing.T) {
	w := granttest.NewWorld()
	next := granttest.CloneTrust(w.Trust)
	payload, err := grant.MarshalTrust(next)
	if err != nil {
		t.Fatal(err)
	}
	text := string(payload)
	key := string(keyText(t, w.Issuer))
	for name, bad := range map[string]string{
		"a newline behind":     text + "\n",
		"a space":              strings.Replace(text, ":", ": ", 1),
		"another value behind": text + "{}",
		"unknown field":        strings.Replace(text, `"epoch":`, `"admin":true,"epoch":`, 1),
		"unknown field nested": strings.Replace(text, `"role":`, `"skip":true,"role":`, 1),
		"field doubled":        strings.Replace(text, `"root_threshold":1`, `"root_threshold":1,"root_threshold":1`, 1),
		"field in capitals":    strings.Replace(text, `"epoch":`, `"Epoch":`, 1),
		"number as 1.0":        strings.Replace(text, `"epoch":1`, `"epoch":1.0`, 1),
		"number as 1e0":        strings.Replace(text, `"epoch":1`, `"epoch":1e0`, 1),
		"escaped letter":       strings.Replace(text, `"bob"`, `"b\u006fb"`, 1),
		"key with a break":     strings.Replace(text, key, key[:4]+`\n`+key[4:], 1),
		"cut":                  text[:len(text)-1],
		"empty":                "",
		"null":                 "null",
	} {
		if bad == text {
			t.Fatalf("%s: nothing was altered", name)
		}
		env, err := grant.Seal(grant.TypeTrust, []byte(bad), w.Root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := grant.OpenTrust(env, w.Trust); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := grant.OpenTrust(env, nil); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s, at enrolment: %v", name, err)
		}
	}
	// Nothing of a new file is parsed before the old root keys have signed it.
	env, err := grant.Seal(grant.TypeTrust, []byte("not JSON at all"), granttest.Key("mallory"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grant.OpenTrust(env, w.Trust); !errors.Is(err, grant.ErrSignature) {
		t.Errorf("garbage of a stranger's: %v", err)
	}
	for _, other := range []string{grant.TypeGrant, grant.TypeHostState} {
		env, err := grant.Seal(other, payload, w.Root)
		if err != nil {
			t.Fatal(err)
		}
		for _, current := range []*grant.Trust{nil, w.Trust} {
			if _, err := grant.OpenTrust(env, current); !errors.Is(err, grant.ErrMalformed) {
				t.Errorf("sealed as %s: %v", other, err)
			}
		}
	}
}

func keyText(t *testing.T, k ed25519.PrivateKey) []byte {
	t.Helper()
	text, err := grant.Key(granttest.Public(k)).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A trust file may hold no approver's key at all; then nothing of a role with quorum is granted.
func TestTrustWithoutApproversGrantsNothing(t *testing.T) {
	w := granttest.NewWorld()
	bare := granttest.CloneTrust(w.Trust)
	bare.Approvers = nil
	terms := w.Terms(granttest.Noon())
	raw := granttest.Raw(terms)
	if err := grant.CheckQuorum(bare, terms, raw, []grant.HostID{w.Host}, nil); err == nil {
		t.Error("granted without approvers")
	}
	if bare.Approver("bob") != nil {
		t.Error("bob is an approver")
	}
}
