package grant_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
)

// envelope is DSSE's JSON, to be tampered with.
type envelope struct {
	PayloadType string `json:"payloadType"`
	Payload     string `json:"payload"`
	Signatures  []sig  `json:"signatures"`
}

type sig struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

const testType = "application/vnd.curfew.test+json"

func seal(t *testing.T, payload string, keys ...ed25519.PrivateKey) []byte {
	t.Helper()
	env, err := grant.Seal(testType, []byte(payload), keys...)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func edit(t *testing.T, env []byte, change func(*envelope)) []byte {
	t.Helper()
	var e envelope
	if err := json.Unmarshal(env, &e); err != nil {
		t.Fatal(err)
	}
	change(&e)
	out, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func publics(keys ...ed25519.PrivateKey) []ed25519.PublicKey {
	var out []ed25519.PublicKey
	for _, k := range keys {
		out = append(out, granttest.Public(k))
	}
	return out
}

func TestOpenReturnsWhatWasSealed(t *testing.T) {
	a, b, c := granttest.Key("a"), granttest.Key("b"), granttest.Key("c")
	env := seal(t, "payload <&> \x00", a, b)
	for threshold, ok := range map[int]bool{-1: false, 0: false, 1: true, 2: true, 3: false} {
		got, err := grant.Open(env, testType, 4096, threshold, publics(a, b, c))
		if (err == nil) != ok {
			t.Errorf("threshold %d: %v", threshold, err)
		}
		if err == nil && string(got) != "payload <&> \x00" {
			t.Errorf("payload %q", got)
		}
	}
	if _, err := grant.Open(env, testType, len(env), 1, publics(a)); err != nil {
		t.Error(err)
	}
	_, err := grant.Open(env, testType, len(env)-1, 1, publics(a))
	if !errors.Is(err, grant.ErrMalformed) {
		t.Errorf("one byte over the limit: %v", err)
	}
}

// Attack A4: stripped, doubled and foreign signatures.
func TestOpenCountsOnlyDistinctTrustedKeys(t *testing.T) {
	a, b, mallory := granttest.Key("a"), granttest.Key("b"), granttest.Key("mallory")
	env := seal(t, "x", a, b)
	twice := func(e *envelope) { e.Signatures = append(e.Signatures[:1:1], e.Signatures[0]) }
	for name, bad := range map[string][]byte{
		"stripped of one":       edit(t, env, func(e *envelope) { e.Signatures = e.Signatures[:1] }),
		"stripped of all":       edit(t, env, func(e *envelope) { e.Signatures = []sig{} }),
		"signatures null":       edit(t, env, func(e *envelope) { e.Signatures = nil }),
		"one of them twice":     edit(t, env, twice),
		"one of them foreign":   seal(t, "x", a, mallory),
		"an empty signature":    edit(t, env, func(e *envelope) { e.Signatures[1].Sig = "" }),
		"a signature cut short": edit(t, env, func(e *envelope) { e.Signatures[1].Sig = e.Signatures[1].Sig[:84] }),
		"of another payload": edit(t, env, func(e *envelope) {
			var o envelope
			if err := json.Unmarshal(seal(t, "y", a, b), &o); err != nil {
				t.Fatal(err)
			}
			e.Signatures = o.Signatures
		}),
		"17 signatures": edit(t, env, func(e *envelope) {
			for len(e.Signatures) < 17 {
				e.Signatures = append(e.Signatures, sig{"x", base64.StdEncoding.EncodeToString(make([]byte, 64))})
			}
		}),
		"under another's key id": edit(t, env, func(e *envelope) {
			e.Signatures[0].KeyID, e.Signatures[1].KeyID = e.Signatures[1].KeyID, e.Signatures[0].KeyID
		}),
	} {
		if _, err := grant.Open(bad, testType, 8192, 2, publics(a, b)); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	// Also where one signature would do, a doubled one is no honest sealer's.
	if _, err := grant.Open(edit(t, env, twice), testType, 4096, 1, publics(a, b)); err == nil {
		t.Error("a doubled signature: opened")
	}
	// A foreign signature beside enough trusted ones counts for nothing and harms nothing: a trust
	// file is signed by the roots of two versions.
	if _, err := grant.Open(seal(t, "x", mallory, a), testType, 4096, 1, publics(a, b)); err != nil {
		t.Error(err)
	}
}

// Attack A4: algorithm and type confusion.
func TestOpenTakesTypeAndAlgorithmFromTheCaller(t *testing.T) {
	a := granttest.Key("a")
	env := seal(t, "x", a)
	_, err := grant.Open(env, grant.TypeGrant, 4096, 1, publics(a))
	if !errors.Is(err, grant.ErrMalformed) {
		t.Errorf("another type: %v", err)
	}
	renamed := edit(t, env, func(e *envelope) { e.PayloadType = grant.TypeGrant })
	_, err = grant.Open(renamed, grant.TypeGrant, 4096, 1, publics(a))
	if !errors.Is(err, grant.ErrSignature) {
		t.Errorf("a type changed after sealing: %v", err)
	}
	for name, keys := range map[string][]ed25519.PublicKey{
		"no keys": nil, "an empty key": {nil}, "a short key": {make([]byte, 31)}, "a long key": {make([]byte, 33)},
	} {
		if _, err := grant.Open(env, testType, 4096, 1, keys); !errors.Is(err, grant.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, keys := range [][]ed25519.PrivateKey{nil, {a, a}, {a[:32]}, make([]ed25519.PrivateKey, 17)} {
		if _, err := grant.Seal(testType, nil, keys...); err == nil {
			t.Errorf("sealed with %d keys", len(keys))
		}
	}
}

// One object has one form: whatever else decodes to the same is refused.
func TestOpenAcceptsOneFormOnly(t *testing.T) {
	a := granttest.Key("a")
	env := string(seal(t, "xy", a)) // "xy" is eHk= in base64: one padding sign, four free bits
	if !strings.Contains(env, `"payload":"eHk="`) {
		t.Fatalf("envelope is %s", env)
	}
	swap := func(old, replacement string) string { return strings.Replace(env, old, replacement, 1) }
	sigAt := strings.Index(env, `"sig":"`) + 7
	for name, bad := range map[string]string{
		"empty":                     "",
		"null":                      "null",
		"an array":                  "[" + env + "]",
		"a space in front":          " " + env,
		"a newline behind":          env + "\n",
		"another behind":            env + env,
		"a space inside":            swap(`:"eHk="`, `: "eHk="`),
		"payload without padding":   swap(`eHk=`, `eHk`),
		"payload with padding bits": swap(`eHk=`, `eHl=`),
		"payload in URL form":       swap(`eHk=`, `eH-_`),
		"payload with a line break": swap(`eHk=`, `eH\nk=`),
		"payload with a return":     swap(`eHk=`, `eHk=\r`),
		"payload escaped":           swap(`eHk=`, `eHk\u003d`),
		"signature, a line break":   env[:sigAt+4] + `\n` + env[sigAt+4:],
		"field doubled":             swap(`"payload":`, `"payload":"eHk=","payload":`),
		"field doubled before":      swap(`"payload":`, `"payload":"AAAA","payload":`),
		"field in capitals":         swap(`"payload":`, `"Payload":`),
		"field unknown":             swap(`"payload":`, `"alg":"none","payload":`),
		"field unknown, nested":     swap(`"keyid":`, `"alg":"none","keyid":`),
		"fields in another order":   swap(`"payloadType":"`+testType+`","payload":"eHk="`, `"payload":"eHk=","payloadType":"`+testType+`"`),
		"key id missing":            swap(`"keyid":"`+grant.KeyID(granttest.Public(a))+`",`, ``),
		"key id null":               swap(`"keyid":"`+grant.KeyID(granttest.Public(a))+`"`, `"keyid":null`),
		"broken UTF-8":              swap(`"keyid":"`, "\"keyid\":\"\xff"),
	} {
		if _, err := grant.Open([]byte(bad), testType, 8192, 1, publics(a)); err == nil {
			t.Errorf("%s: opened: %s", name, bad)
		} else if !errors.Is(err, grant.ErrMalformed) && !errors.Is(err, grant.ErrSignature) {
			t.Errorf("%s: an error of no known kind: %v", name, err)
		}
	}
}

// Each single bit of an envelope counts, and each cut.
func TestOpenRefusesEveryAlteredBit(t *testing.T) {
	a := granttest.Key("a")
	env := seal(t, "a payload", a)
	for i := range env {
		for bit := range 8 {
			bad := bytes.Clone(env)
			bad[i] ^= 1 << bit
			if _, err := grant.Open(bad, testType, 8192, 1, publics(a)); err == nil {
				t.Errorf("bit %d of byte %d flipped: opened", bit, i)
			}
		}
		if _, err := grant.Open(env[:i], testType, 8192, 1, publics(a)); err == nil {
			t.Errorf("cut after %d bytes: opened", i)
		}
	}
}
