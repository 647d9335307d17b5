package controlplane_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/cli"
	"github.com/curfew-access/curfew/internal/oidctest"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// terminal is a person, or a pipeline, with the real command and a home of their own.
type terminal struct {
	o    *office
	home string
	env  map[string]string
	mu   sync.Mutex // guards out and err
	out  bytes.Buffer
	err  bytes.Buffer
}

func (o *office) terminal(env map[string]string) *terminal {
	t := &terminal{o: o, home: o.t.TempDir(), env: map[string]string{}}
	for k, v := range env {
		t.env[k] = v
	}
	return t
}

// locked is a buffer that may be read while the command writes.
type locked struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (t *terminal) seen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err.String()
}

// run runs one command line.
func (t *terminal) run(args ...string) int {
	t.mu.Lock()
	t.out.Reset()
	t.err.Reset()
	t.mu.Unlock()
	return cli.Main(cli.Env{
		Args: args, Stdin: strings.NewReader(""), Stdout: locked{&t.mu, &t.out},
		Stderr: locked{&t.mu, &t.err}, Now: time.Now, Version: "test",
		Getenv: func(name string) string {
			switch name {
			case "HOME":
				return t.home
			case "USER":
				return "somebody"
			}
			return t.env[name]
		},
	})
}

// want runs a command line that must end so, and say that.
func (t *terminal) want(exit int, word string, args ...string) {
	t.o.t.Helper()
	if got := t.run(args...); got != exit || !strings.Contains(t.out.String()+t.err.String(), word) {
		t.o.t.Fatalf("curfew %s: exit %d, want %d and %q\n%s%s", strings.Join(args, " "), got, exit, word,
			t.out.String(), t.err.String())
	}
}

func (o *office) here() []string {
	return []string{
		"--server", o.addr, "--ca-pin", base64.RawURLEncoding.EncodeToString(o.pin[:]),
	}
}

// during runs a command line and do beside it, once the command has said what the pattern finds.
func (t *terminal) during(pattern string, do func(found []string), args ...string) int {
	t.o.t.Helper()
	done := make(chan int, 1)
	re := regexp.MustCompile(pattern)
	t.mu.Lock()
	t.err.Reset() // what an earlier command said does not count
	t.mu.Unlock()
	go func() { done <- t.run(args...) }()
	for range 1000 {
		if m := re.FindStringSubmatch(t.seen()); m != nil {
			do(m)
			return <-done
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.o.t.Fatalf("curfew %s says only %s", strings.Join(args, " "), t.seen())
	return 0
}

// sso signs in by a browser on this device.
func (t *terminal) sso(name string, more ...string) {
	t.o.t.Helper()
	exit := t.during(`(http://\S+/auth\?\S+)`, func(m []string) {
		page, err := (&oidctest.Browser{Name: name}).SignIn(t.o.t.Context(), m[1])
		must(t.o.t, err)
		if !strings.Contains(page, "You may close this window") {
			t.o.t.Errorf("the browser shows %q", page)
		}
	}, append([]string{"login", "--no-browser"}, more...)...)
	if exit != 0 || !strings.Contains(t.seen(), "as "+name+" until") {
		t.o.t.Fatalf("exit %d: %s", exit, t.seen())
	}
}

func (t *terminal) sshKey() (path string) {
	t.o.t.Helper()
	block, err := ssh.MarshalPrivateKey(newPrivate(t.o.t), "")
	must(t.o.t, err)
	path = filepath.Join(t.home, ".ssh", "id_ed25519")
	must(t.o.t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t.o.t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	return path
}

// The command signs in by browser, remembers how, enrols a key, signs in by it, lists sessions and
// ends one.
func TestCommandSignsInAtTheProvider(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice", Groups: []string{"staff"}})
	alice := o.terminal(nil)
	alice.sso("alice", append(o.here(), "--sso")...)
	alice.want(0, "staff", "whoami")
	alice.sso("alice") // without a flag the same way again
	key := alice.sshKey()
	alice.want(0, "is yours now", "keys", "add", key)
	alice.want(0, "SHA256:", "keys", "ls")
	fingerprint := regexp.MustCompile(`SHA256:\S+`).FindString(alice.out.String())
	alice.want(0, "as alice until", "login", "--ssh")
	alice.want(4, "curfew login --sso", "keys", "add", key)
	alice.want(0, "", "sessions", "--json")
	var sessions []struct {
		ID, Method string
		Current    bool
	}
	must(t, json.Unmarshal(alice.out.Bytes(), &sessions))
	if len(sessions) != 3 || sessions[0].Method != "oidc" || sessions[2].Method != "ssh" ||
		!sessions[2].Current {
		t.Fatalf("alice has sessions %+v", sessions)
	}
	alice.want(0, "ended", "sessions", "rm", sessions[0].ID)
	alice.want(1, "no session", "sessions", "rm", sessions[0].ID)
	alice.want(0, "no longer yours", "keys", "rm", fingerprint)
	alice.want(4, "needs a sign-in", "whoami")
	alice.want(0, "", "logout")
}

// A browser that comes back with another state, or from another provider, signs nobody in.
func TestCommandIgnoresStrangeRedirects(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	alice := o.terminal(nil)
	redirect := func(address string) (back, state string) {
		q := regexp.MustCompile(`redirect_uri=([^&]+)`).FindStringSubmatch(address)
		s := regexp.MustCompile(`state=([^&]+)`).FindStringSubmatch(address)
		back = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(q[1])
		return back, s[1]
	}
	get := func(address string) {
		b := &oidctest.Browser{Name: "mallory"}
		// It is no login page; what matters is that the command saw it.
		if _, err := b.SignIn(t.Context(), address); err == nil {
			t.Errorf("%s is a login page", address)
		}
	}
	args := append([]string{"login", "--no-browser", "--sso"}, o.here()...)
	exit := alice.during(`(http://\S+/auth\?\S+)`, func(m []string) {
		back, state := redirect(m[1])
		get(back + "?code=stolen&state=guess")
		get(back + "?code=stolen")
		get(back + "?code=stolen&state=" + state + "&iss=https://evil.example")
	}, args...)
	if exit != 4 || !strings.Contains(alice.seen(), "another identity provider") {
		t.Errorf("exit %d: %s", exit, alice.seen())
	}
	exit = alice.during(`(http://\S+/auth\?\S+)`, func(m []string) {
		back, state := redirect(m[1])
		get(back + "?error=access_denied&error_description=no%1b[2J&state=" + state)
	}, args...)
	if exit != 4 || !strings.Contains(alice.seen(), `access_denied no\x1b[2J`) {
		t.Errorf("exit %d: %s", exit, alice.seen())
	}
	o.provider.Down(true)
}

// The command signs in with a code that is typed elsewhere.
func TestCommandSignsInByDevice(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	alice := o.terminal(nil)
	exit := alice.during(`(?s)open (http://\S+)\n.*code: (\S+)`, func(m []string) {
		must(t, (&oidctest.Browser{Name: "alice"}).Agree(t.Context(), m[1], m[2], "allowed"))
	}, append([]string{"login", "--device"}, o.here()...)...)
	if exit != 0 {
		t.Fatalf("exit %d: %s", exit, alice.seen())
	}
	alice.want(0, "alice", "whoami")
}

// A pipeline signs in with the token of its CI, in each of the shapes, and a script can tell from
// the exit code what came of its request.
func TestPipelineWithTheCommand(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil)
	bob := o.add("bob")
	o.group("sre", "bob")
	role := opsRole(1)
	role.Name, role.AllowLogin = "restart", false
	o.role(role)
	web1 := o.join("web1")
	admin := o.terminal(nil)
	block, err := ssh.MarshalPrivateKey(o.adminKey, "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(admin.home, "key"), pem.EncodeToMemory(block), 0o600))
	admin.want(0, "as dana", append(o.here(), "login", "--user", "dana", "--key", admin.home+"/key")...)
	admin.want(0, "has uid", "admin", "workload", "set", "deploy", "--issuer", o.issuer, "--subject",
		"repo:acme/shop:*", "--claim", "ref_protected=true")
	admin.want(0, "repo:acme/shop:*", "admin", "workload", "ls")
	admin.want(0, audience, "admin", "workload", "ls")
	claims := map[string]any{
		"sub": "repo:acme/shop:ref:refs/heads/main", "ref_protected": "true",
	}
	gitlab := func() string {
		c := map[string]any{"aud": audience}
		for k, v := range claims {
			c[k] = v
		}
		token, err := o.provider.Mint(c)
		must(t, err)
		return token
	}
	login := append(o.here(), "login", "--workload")

	none := o.terminal(nil)
	none.want(2, "id_tokens", login...)
	file := filepath.Join(none.home, "token")
	must(t, os.WriteFile(file, []byte(gitlab()+"\n"), 0o600))
	byFile := o.terminal(map[string]string{"CURFEW_ID_TOKEN_FILE": file})
	byFile.want(0, "as deploy", login...)
	byFile.want(4, "used before", login...)
	byEnv := o.terminal(map[string]string{"CURFEW_ID_TOKEN": gitlab()})
	byEnv.want(0, "as deploy", append(login, "--user", "deploy")...)
	o.provider.Actions(claims)
	actions := o.terminal(map[string]string{
		"ACTIONS_ID_TOKEN_REQUEST_URL":   o.issuer + "/actions/token?api-version=2.0",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN": oidctest.Runner,
	})
	actions.want(0, "as deploy", login...)
	actions.want(0, "as deploy", login...) // each sign-in gets a token of its own
	actions.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = "wrong"
	actions.want(1, "401", login...)
	o.provider.Actions(map[string]any{"sub": "repo:evil/shop:ref"})
	actions.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = oidctest.Runner
	actions.want(4, "no workload", login...)

	ask := func(more ...string) []string {
		return append([]string{
			"request", "web1", "--role", "restart", "--for", "5m", "--reason", "deploy 1.2",
		}, more...)
	}
	decide := func(decide func(id string)) func([]string) {
		return func([]string) {
			for range 500 {
				resp, err := bob.ListRequests(t.Context(), &apiv1.ListRequestsRequest{
					Filter: &apiv1.RequestFilter{PendingForMe: true},
				})
				must(t, err)
				if len(resp.GetRequests()) == 1 {
					decide(resp.GetRequests()[0].GetId())
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Error("nobody asked")
		}
	}
	approve := decide(func(id string) {
		_, err := bob.approve(bob.get(id))
		must(t, err)
	})
	deny := decide(func(id string) {
		_, err := bob.Deny(t.Context(), &apiv1.DenyRequest{Id: id, Revision: 1, Reason: "not today"})
		must(t, err)
	})
	for _, c := range []struct {
		exit int
		do   func([]string)
		args []string
	}{
		{0, approve, ask("--timeout", "60s")}, {3, deny, ask("--timeout", "60s")},
	} {
		if exit := byEnv.during(`pending`, c.do, c.args...); exit != c.exit {
			t.Errorf("curfew %v: exit %d, want %d: %s", c.args, exit, c.exit, byEnv.seen())
		}
	}
	web1.eventually(1)
	byEnv.want(5, "not there after", ask("--timeout", "1s")...)
	byEnv.want(2, "duration", ask("--for", "never")...)
	admin.want(0, "session", "admin", "sessions", "rm", "--user", "deploy")
	byEnv.want(4, "sign", ask("--no-wait")...)
	o.stop()
	byFile.want(6, "cannot be reached", ask("--no-wait")...)
}
