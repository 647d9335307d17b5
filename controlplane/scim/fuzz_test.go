package scim

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/controlplane/identity"
)

// Whatever a client sends as a patch, nothing breaks, and nobody becomes active by a patch that does
// not speak of it.
func FuzzPatch(f *testing.F) {
	for _, seed := range []string{
		`{"Operations":[{"op":"replace","path":"active","value":true}]}`,
		`{"Operations":[{"op":"Add","value":{"active":"True","name.givenName":"A"}}]}`,
		`{"Operations":[{"op":"remove","path":"emails[type eq \"work\"].value"}]}`,
		`{"Operations":[{"op":"add","path":"emails[type eq \"home\"]","value":{"value":"a@b.org"}}]}`,
		`{"operations":{"OP":"replace","path":"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager","value":"x"}}`,
		`{"Operations":[{"op":"replace","path":"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User","value":7}]}`,
		`{"Operations":[{"op":"add","path":"name","value":[[]]},{"op":"add","path":"name.familyName","value":{}}]}`,
		`{"Operations":[{"op":"replace","path":"a.b.c"},{"op":"remove","path":"[x eq \"y\"]"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var message map[string]any
		if json.Unmarshal(body, &message) != nil || message == nil {
			return
		}
		r := httptest.NewRequest("PATCH", "/scim/v2/Users/1", nil)
		was := identity.SCIMUser{ID: "1", User: "alice", UserName: "alice", Version: 1}
		was.Email, was.ManagerID, was.GivenName = "alice@acme.org", "2", "Alice"
		o := showUser(r, was)
		if patch(o, canonical(message)) != nil {
			return
		}
		is := was
		if readUser(o, &is) != nil {
			return
		}
		if is.UserName == "" || is.ID != was.ID || is.User != was.User {
			t.Errorf("%s makes %+v", body, is)
		}
		text, err := json.Marshal(message) // without escapes that hide the word
		if err != nil {
			t.Fatal(err)
		}
		if is.Active && !strings.Contains(strings.ToLower(string(text)), "active") {
			t.Errorf("%s enables", body)
		}
		group := identity.SCIMGroup{ID: "3", DisplayName: "sre", Members: []string{"1", "2"}}
		g := withMembers(showGroup(r, group), group)
		if patch(g, canonical(message)) == nil {
			_ = readGroup(g, &group)
		}
	})
}

func FuzzFilter(f *testing.F) {
	for _, seed := range []string{`userName eq "a"`, `active eq true`, `x pr`, `a eq "b\"c"`, ` eq `, ``} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseFilter(text)
		if err != nil {
			return
		}
		if got.attr == "" {
			t.Errorf("%q has no attribute", text)
		}
		got.fits(object{got.attr: got.value, "active": "maybe"})
	})
}
