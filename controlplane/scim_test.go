package controlplane_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/oidctest"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// client is a SCIM client of an identity provider.
type client struct {
	t     *testing.T
	base  string
	token string
}

func (o *office) scim() *client {
	o.t.Helper()
	tok, err := o.admin.identity().CreateSCIMToken(o.t.Context(), &apiv1.CreateSCIMTokenRequest{})
	must(o.t, err)
	return &client{t: o.t, base: "http://" + o.scimAddr + "/scim/v2", token: tok.GetToken()}
}

// call makes one call and demands its status.
func (c *client) call(status int, method, path string, body any, header ...string) map[string]any {
	c.t.Helper()
	var text []byte
	if s, ok := body.(string); ok {
		text = []byte(s)
	} else if body != nil {
		var err error
		text, err = json.Marshal(body)
		must(c.t, err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, bytes.NewReader(text))
	must(c.t, err)
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/scim+json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	must(c.t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	must(c.t, err)
	if resp.StatusCode != status {
		c.t.Fatalf("%s %s answers %s, want %d: %s", method, path, resp.Status, status, data)
	}
	out := map[string]any{}
	if len(data) > 0 {
		must(c.t, json.Unmarshal(data, &out))
	}
	return out
}

func (c *client) create(name string, more map[string]any) string {
	c.t.Helper()
	body := map[string]any{
		"schemas":  []string{"urn:ietf:params:scim:schemas:core:2.0:User"},
		"userName": name, "active": true, "externalId": "ext-" + name,
		"emails": []any{map[string]any{"value": name + "@acme.org", "type": "work", "primary": true}},
	}
	for k, v := range more {
		body[k] = v
	}
	id, _ := c.call(201, "POST", "/Users", body)["id"].(string)
	return id
}

func op(kind, path string, value any) map[string]any {
	o := map[string]any{"op": kind}
	if path != "" {
		o["path"] = path
	}
	if value != nil {
		o["value"] = value
	}
	return map[string]any{
		"schemas":    []string{"urn:ietf:params:scim:api:messages:2.0:PatchOp"},
		"Operations": []any{o},
	}
}

func withSCIM(c *controlplane.Config) { c.SCIM = &controlplane.SCIM{Listen: "127.0.0.1:0"} }

// Whoever the provider switches off by SCIM loses sign-in, sessions and live access at once, by every
// spelling that clients use; and comes back as the same person.
func TestSCIMDeprovisions(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, withSCIM)
	c := o.scim()
	bob := o.add("bob")
	o.group("sre", "bob")
	o.role(opsRole(1))
	web1 := o.join("web1")
	for i, off := range []struct {
		method string
		body   func(name string) any
	}{
		{"PATCH", func(string) any { return op("replace", "active", false) }},
		{"PATCH", func(string) any { return op("Replace", "", map[string]any{"active": "False"}) }},
		{"PATCH", func(string) any {
			return op("add", "urn:ietf:params:scim:schemas:core:2.0:User:Active", false)
		}},
		{"PUT", func(name string) any { return map[string]any{"userName": name, "active": false} }},
		{"DELETE", func(string) any { return nil }},
	} {
		name := fmt.Sprintf("user%d", i)
		id := c.create(name, nil)
		key := newKey(t)
		_, err := o.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
			Name: name, SshKeys: []string{grant.SSHKeyText(key.PublicKey())},
		}})
		must(t, err)
		p := o.signIn(name, key)
		r := p.ask("web1")
		_, err = bob.approve(r)
		must(t, err)
		web1.eventually(1)
		pending := p.ask("web1")
		uid := o.user(name).GetUid()
		status := 200
		if off.method == "DELETE" {
			status = 204
		}
		began := time.Now()
		c.call(status, off.method, "/Users/"+id, off.body(name))
		web1.eventually(0)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%s took %s", off.method, took)
		}
		_, err = p.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
		refused(t, err, apiv1.Code_CODE_SIGN_IN)
		refused(t, o.attempt(attempt{user: name, key: key}), apiv1.Code_CODE_SIGN_IN)
		if got := bob.get(pending.GetId()); got.GetState() != apiv1.RequestState_REQUEST_STATE_WITHDRAWN {
			t.Errorf("a pending request is %s", got.GetState())
		}
		if u := o.user(name); u.GetDisabledBy() != "scim" || u.GetUid() != uid {
			t.Errorf("%s is %v", name, u)
		}
		if off.method == "DELETE" {
			c.call(404, "GET", "/Users/"+id, nil)
			// Somebody else of that name is not given the uid.
			c.call(409, "POST", "/Users", map[string]any{"userName": name, "externalId": "another"})
			again := c.create(name, nil) // the same externalId: the same person
			if u := o.user(name); again != id || u.GetDisabled() || u.GetUid() != uid {
				t.Errorf("%s came back as %s, %v", name, again, u)
			}
			continue
		}
		// Silence about active enables nobody.
		c.call(200, "PUT", "/Users/"+id, map[string]any{"userName": name, "displayName": "X"})
		if !o.user(name).GetDisabled() {
			t.Errorf("%s was enabled by silence", name)
		}
		c.call(200, "PATCH", "/Users/"+id, op("replace", "active", true))
		o.signIn(name, key).me()
	}
	if !o.onTrail(`"kind":"user.disabled"`, `"actor":"scim"`, `"user":"user0"`) {
		t.Error("the trail does not tell")
	}
}

// What admins made is not SCIM's, what admins disabled SCIM does not enable, and the last admin who
// can sign in stays.
func TestSCIMTakesNobodyOver(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, withSCIM, oidctest.User{Name: "alice"})
	c := o.scim()
	for _, name := range []string{"dana", "root", "curfew", "Alice", "аlice", "a b", "../x", ""} {
		status := 400
		if name == "dana" {
			status = 409
		}
		c.call(status, "POST", "/Users", map[string]any{"userName": name})
	}
	_, err := o.admin.identity().LinkUser(t.Context(), &apiv1.LinkUserRequest{User: "dana"})
	must(t, err)
	id := c.create("dana", nil)
	c.call(409, "PATCH", "/Users/"+id, op("replace", "active", false))
	o.admin.me()
	// The same organisation's sign-in finds whom SCIM made.
	alice := c.create("alice", nil)
	if me := o.sso("alice").me(); me.GetUser() != "alice" || o.user("alice").GetSource() != "scim" {
		t.Errorf("alice is %v", o.user("alice"))
	}
	_, err = o.admin.DisableUser(t.Context(), &apiv1.DisableUserRequest{Name: "alice"})
	must(t, err)
	c.call(200, "PATCH", "/Users/"+alice, op("replace", "active", true))
	if o.user("alice").GetDisabledBy() != "admin" {
		t.Error("SCIM took an admin's word back")
	}
	c.call(409, "POST", "/Users", map[string]any{"userName": "alice"})
}

// Groups carry people into roles and out of them; those kept here stay as they are.
func TestSCIMGroups(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, func(c *controlplane.Config) {
		withSCIM(c)
		c.GroupPrefix = "curfew-"
	})
	c := o.scim()
	alice, bob := c.create("alice", nil), c.create("bob", map[string]any{
		"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": map[string]any{
			"manager": map[string]any{"value": ""},
		},
	})
	c.call(200, "PATCH", "/Users/"+bob, op("replace",
		"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager", map[string]any{"value": alice}))
	if u := o.user("bob"); u.GetManager() != "alice" || u.GetEmail() != "bob@acme.org" {
		t.Errorf("bob is %v", u)
	}
	members := func(ids ...string) []any {
		out := []any{}
		for _, id := range ids {
			out = append(out, map[string]any{"value": id})
		}
		return out
	}
	g, _ := c.call(201, "POST", "/Groups",
		map[string]any{"displayName": "curfew-sre", "members": members(alice)})["id"].(string)
	in := func(want ...string) {
		t.Helper()
		all, err := o.admin.ListGroups(t.Context(), &apiv1.ListGroupsRequest{})
		must(t, err)
		for _, group := range all.GetGroups() {
			if group.GetName() == "sre" {
				if got := strings.Join(group.GetMembers(), " "); got != strings.Join(want, " ") {
					t.Fatalf("sre has %q, want %q", got, want)
				}
				return
			}
		}
		t.Fatal("there is no group sre")
	}
	in("alice")
	c.call(200, "PATCH", "/Groups/"+g, op("add", "members", members(bob)))
	in("alice", "bob")
	c.call(200, "PATCH", "/Groups/"+g, op("Remove", `members[value eq "`+alice+`"]`, nil))
	in("bob")
	c.call(200, "PATCH", "/Groups/"+g, op("add", "members", members(alice, bob)))
	c.call(200, "PATCH", "/Groups/"+g, op("remove", "members", members(bob)))
	in("alice")
	c.call(200, "PATCH", "/Groups/"+g, op("replace", "", map[string]any{"members": members(bob)}))
	in("bob")
	c.call(400, "PATCH", "/Groups/"+g, op("add", "members", members("nobody")))
	c.call(400, "PUT", "/Groups/"+g, map[string]any{"displayName": "curfew-dba"})
	c.call(400, "POST", "/Groups", map[string]any{"displayName": "sre"})
	c.call(400, "POST", "/Groups", map[string]any{"displayName": "curfew-Platform SRE"})
	c.call(409, "POST", "/Groups", map[string]any{"displayName": "curfew-sre"})
	o.group("dba", "dana")
	c.call(409, "POST", "/Groups", map[string]any{"displayName": "curfew-dba", "members": members(bob)})
	// A group that a role names is emptied and not deleted.
	role := opsRole(1)
	role.ApproverGroup = "sre"
	o.role(role)
	c.call(204, "DELETE", "/Groups/"+g, nil)
	in()
	c.call(404, "GET", "/Groups/"+g, nil)
}

// Lists are filtered and paged; changes of what has changed since are refused.
func TestSCIMReads(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, withSCIM)
	c := o.scim()
	ids := map[string]string{}
	for i := range 5 {
		name := fmt.Sprintf("user%d", i)
		ids[name] = c.create(name, nil)
	}
	find := func(query url.Values) (names []string, total int) {
		t.Helper()
		list := c.call(200, "GET", "/Users?"+query.Encode(), nil)
		for _, r := range list["Resources"].([]any) {
			names = append(names, r.(map[string]any)["userName"].(string))
		}
		return names, int(list["totalResults"].(float64))
	}
	for filter, want := range map[string]string{
		`userName eq "user3"`: "user3", `USERNAME EQ "USER3"`: "user3", `userName eq "user"`: "",
		`externalId eq "ext-user2"`: "user2", `externalId eq "EXT-user2"`: "",
		`id eq "` + ids["user1"] + `"`: "user1", `active eq false`: "",
	} {
		if got, n := find(url.Values{"filter": {filter}}); strings.Join(got, " ") != want || n != len(got) {
			t.Errorf("%s finds %v", filter, got)
		}
	}
	for _, bad := range []string{`userName sw "u"`, `userName`, `password eq "x"`, `userName eq user1`, `x eq "`} {
		c.call(400, "GET", "/Users?"+url.Values{"filter": {bad}}.Encode(), nil)
	}
	if got, n := find(url.Values{"startIndex": {"2"}, "count": {"2"}}); n != 5 || len(got) != 2 || got[0] != "user1" {
		t.Errorf("the second page is %v of %d", got, n)
	}
	for _, edge := range []url.Values{
		{"startIndex": {"9"}}, {"count": {"0"}}, {"startIndex": {"-3"}, "count": {"-1"}},
	} {
		if got, n := find(edge); n != 5 || len(got) != 0 {
			t.Errorf("%v is %v of %d", edge, got, n)
		}
	}
	one := c.call(200, "GET", "/Users/"+ids["user0"], nil)
	version := one["meta"].(map[string]any)["version"].(string)
	c.call(200, "PATCH", "/Users/"+ids["user0"], op("replace", "displayName", "A"), "If-Match", version)
	c.call(412, "PATCH", "/Users/"+ids["user0"], op("replace", "displayName", "B"), "If-Match", version)
	c.call(412, "PUT", "/Users/"+ids["user0"], map[string]any{"userName": "user0"}, "If-Match", version)
	c.call(200, "PATCH", "/Users/"+ids["user0"], op("replace", `emails[type eq "work"].value`, "new@acme.org"))
	if got := o.user("user0").GetEmail(); got != "new@acme.org" {
		t.Errorf("the address is %q", got)
	}
	for _, path := range []string{"/ServiceProviderConfig", "/ResourceTypes", "/Schemas"} {
		c.call(200, "GET", path, nil)
	}
	c.call(404, "GET", "/Nothing", nil)
	for _, bad := range []any{
		"", "[]", "{", `{"Operations":[]}`, `{"Operations":[{"op":"move"}]}`,
		`{"Operations":[{"op":"replace","path":"a[b"}]}`, `{"Operations":[{"op":"replace","value":1}]}`,
		`{"Operations":[{"op":"replace","path":"active","value":"maybe"}]}`,
		`{"Operations":[{"op":"replace","path":"userName","value":7}]}`,
	} {
		c.call(400, "PATCH", "/Users/"+ids["user0"], bad)
	}
	c.call(413, "POST", "/Users", strings.Repeat(" ", 2<<20))
}

// Nothing is said without a token, tokens are kept as hashes, and guessing is slow.
func TestSCIMTokens(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, withSCIM)
	c := o.scim()
	if len(c.token) < 40 || o.inStore(c.token) {
		t.Errorf("the token %q is short, or the store holds it", c.token)
	}
	c.call(200, "GET", "/Users", nil)
	second := o.scim()
	c.call(200, "GET", "/Users", nil) // the old one works until it is revoked
	_, err := o.admin.identity().DeleteSCIMTokens(t.Context(), &apiv1.DeleteSCIMTokensRequest{})
	must(t, err)
	c.call(401, "GET", "/Users", nil)
	second.call(401, "DELETE", "/Users/x", nil)
	for _, token := range []string{"", "cfs1.", "cfs1." + strings.Repeat("A", 43), strings.Repeat("x", 5000)} {
		(&client{t: t, base: c.base, token: token}).call(401, "POST", "/Users", "{}")
	}
	for range 40 {
		resp, err := http.Get(c.base + "/Users")
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode == http.StatusTooManyRequests {
			return
		}
	}
	t.Error("guessing goes on at full speed")
}

// inStore says whether some file of the data folder holds a text.
func (h *house) inStore(text string) bool {
	h.t.Helper()
	entries, err := os.ReadDir(h.dir)
	must(h.t, err)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(h.dir, e.Name()))
		must(h.t, err)
		if bytes.Contains(data, []byte(text)) {
			return true
		}
	}
	return false
}
