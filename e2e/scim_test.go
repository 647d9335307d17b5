package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// provisioner is the SCIM client of an identity provider.
type provisioner struct {
	s      *story
	client *http.Client
	token  string
}

// call makes one call, demands its status and returns the resource.
func (p *provisioner) call(status int, method, path, body string) (resource struct {
	ID     string `json:"id"`
	Active bool   `json:"active"`
},
) {
	p.s.t.Helper()
	req, err := http.NewRequestWithContext(p.s.ctx, method, "https://control:7444/scim/v2"+path,
		strings.NewReader(body))
	p.s.ok(err)
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.Header.Set("Content-Type", "application/scim+json")
	resp, err := p.client.Do(req)
	p.s.ok(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	p.s.ok(err)
	if resp.StatusCode != status {
		p.s.t.Fatalf("%s %s answers %s, want %d: %s", method, path, resp.Status, status, text)
	}
	p.s.ok(json.Unmarshal(text, &resource))
	return resource
}

// active sets whether a user may come at all, as Entra ID and Okta do.
func (p *provisioner) active(id, value string) {
	p.s.t.Helper()
	p.call(http.StatusOK, "PATCH", "/Users/"+id, `{
  "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
  "Operations": [{"op": "replace", "path": "active", "value": `+value+`}]}`)
}

// Whom the organisation's provider switches off by SCIM loses the live root shell on a host, the
// sign-in and what still waits within a minute; switched on again, nothing of it comes back by itself.
func TestSCIMTakesLiveAccess(t *testing.T) {
	cert, key := selfSigned(t, "control")
	s := tell(t, stage.Options{
		Name:    "scim",
		Control: "scim: {listen: \":7444\", cert_file: /etc/curfew/scim.pem, key_file: /etc/curfew/scim.key}\n",
		ControlFiles: map[string]string{
			"/etc/curfew/scim.pem": string(cert), "/etc/curfew/scim.key": string(key),
		},
	})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.curfew(s.Admin, 0, []string{"admin", "user", "link", "alice", "--scim"})
	r := s.curfew(s.Admin, 0, []string{"admin", "scim", "token"})
	p := &provisioner{s: s, client: s.trusting(cert), token: strings.TrimSpace(r.Out)}
	user := p.call(http.StatusCreated, "POST", "/Users", `{
  "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
  "userName": "alice", "externalId": "00u1", "active": true}`)

	_, err = s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	uid := s.on("web1", "id -u alice")
	tty := s.rootShell(alice)
	waits, err := alice.Ask(s.ctx, "web1", "docs", time.Hour)
	s.ok(err)

	p.active(user.ID, "false")
	off := time.Now()
	s.gone("web1", "alice", mark, time.Minute)
	t.Logf("the last of it was gone %s after the answer to active=false",
		time.Since(off).Round(time.Millisecond))
	s.hangsUp(tty)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	s.curfew(alice, 4, []string{"ls"})
	s.curfew(alice, 4, []string{"login", "--ssh"})
	s.curfew(bob, 0, []string{"show", waits}, "withdrawn")
	s.curfew(s.Admin, 0, []string{"log"}, "user.disabled")
	if took := time.Since(off); took > time.Minute {
		t.Errorf("all of it took %s", took)
	}

	p.active(user.ID, "true")
	s.curfew(alice, 0, []string{"login", "--ssh"})
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	_, err = s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "id -u", uid)
}
