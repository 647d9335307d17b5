package grant_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	"github.com/curfew-access/curfew/internal/sshsig"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Attacks A5 and A11: whoever holds the issuer's key can put any approvals into a grant. Each row
// is one attempt on a role that needs two.
func TestQuorumCountsPeople(t *testing.T) {
	w := granttest.NewWorld()
	erin := granttest.NewPerson("erin", 1900000009)
	second := granttest.NewPerson("bob's second key", 0)
	second.Name = "bob"
	alias := w.Alice // alice's own key under the name of an approver
	alias.Name = "alice2"
	trust := granttest.CloneTrust(w.Trust)
	trust.Approvers[0].SSHKeys = append(trust.Approvers[0].SSHKeys, second.SSHKey)
	trust.Approvers = append(trust.Approvers,
		grant.Approver{Name: "erin", Groups: []string{"others"}, SSHKeys: []string{erin.SSHKey}},
		grant.Approver{Name: "alice", Groups: []string{"leads"}, SSHKeys: []string{}},
		grant.Approver{Name: "alice2", Groups: []string{"leads"}, SSHKeys: []string{alias.SSHKey}})
	terms := w.Terms(granttest.Noon(), func(x *curfewv1.Terms) {
		x.Role, x.ApprovalsNeeded = granttest.RoleRoot, 2
	})
	raw := granttest.Raw(terms)
	terms.Revision++
	otherRaw := granttest.Raw(terms)
	terms.Revision--
	named := func(name string, p granttest.Person) *curfewv1.Approval {
		a := p.Approve(raw)
		a.Approver = name
		return a
	}
	login, err := sshsig.Sign(w.Carol.Signer, sshsig.NamespaceLogin, raw)
	if err != nil {
		t.Fatal(err)
	}
	bob, carol, dave := w.Bob.Approve(raw), w.Carol.Approve(raw), w.Dave.Approve(raw)
	for _, c := range []struct {
		name string
		as   []*curfewv1.Approval
		want string // part of the refusal; empty: accepted
	}{
		{"two people", []*curfewv1.Approval{bob, carol}, ""},
		{"three people", []*curfewv1.Approval{bob, carol, dave}, ""},
		{"by a second key", []*curfewv1.Approval{second.Approve(raw), carol}, ""},
		{"nobody", nil, "0 of 2"},
		{"one person", []*curfewv1.Approval{bob}, "1 of 2"},
		{"one person, the same twice", []*curfewv1.Approval{bob, bob}, "1 of 2"},
		{"one person by two keys", []*curfewv1.Approval{bob, second.Approve(raw)}, "1 of 2"},
		{"one person under two names", []*curfewv1.Approval{bob, named("carol", w.Bob)}, "not theirs"},
		{"the requester", []*curfewv1.Approval{bob, w.Alice.Approve(raw)}, "their own"},
		{"the requester's second account", []*curfewv1.Approval{bob, alias.Approve(raw)}, "who asks"},
		{"the requester as another", []*curfewv1.Approval{bob, named("carol", w.Alice)}, "not theirs"},
		{"another group", []*curfewv1.Approval{bob, erin.Approve(raw)}, "counts for nothing"},
		{"nobody known", []*curfewv1.Approval{bob, granttest.NewPerson("eve", 0).Approve(raw)}, "not an approver"},
		{"another revision", []*curfewv1.Approval{bob, w.Carol.Approve(otherRaw)}, "does not verify"},
		{"another namespace", []*curfewv1.Approval{bob, {Approver: "carol", Sshsig: login}}, "is for"},
		{"an empty signature", []*curfewv1.Approval{bob, {Approver: "carol"}}, "not an SSH signature"},
		{"an empty approval", []*curfewv1.Approval{bob, {}}, "not an approver"},
		{"two good and a bad one", []*curfewv1.Approval{bob, carol, named("dave", w.Bob)}, "not theirs"},
		{"a name in capitals", []*curfewv1.Approval{bob, named("Carol", w.Carol)}, "not an approver"},
		{"a name with a space", []*curfewv1.Approval{bob, named("carol ", w.Carol)}, "not an approver"},
	} {
		err := grant.CheckQuorum(trust, terms, raw, []grant.HostID{w.Host}, c.as)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// The quorum is the trust file's. Terms may ask for more, never for less or for others.
func TestTermsCannotLowerTheQuorum(t *testing.T) {
	w := granttest.NewWorld()
	for _, c := range []struct {
		name string
		edit func(*curfewv1.Terms)
		by   []granttest.Person
		ok   bool
	}{
		{"as the quorum says", func(*curfewv1.Terms) {}, []granttest.Person{w.Bob}, true},
		{
			"more than the quorum, met", func(x *curfewv1.Terms) { x.ApprovalsNeeded = 2 },
			[]granttest.Person{w.Bob, w.Carol},
			true,
		},
		{
			"more than the quorum, not met", func(x *curfewv1.Terms) { x.ApprovalsNeeded = 2 },
			[]granttest.Person{w.Bob},
			false,
		},
		{
			"less than the quorum", func(x *curfewv1.Terms) { x.Role = granttest.RoleRoot },
			[]granttest.Person{w.Bob, w.Carol},
			false,
		},
		{
			"another group", func(x *curfewv1.Terms) { x.ApproverGroup = "others" },
			[]granttest.Person{w.Bob},
			false,
		},
		{
			"a role without quorum", func(x *curfewv1.Terms) { x.Role = "docs" },
			[]granttest.Person{w.Bob},
			false,
		},
		{
			"a login that approves", func(x *curfewv1.Terms) { x.Login = "bob" },
			[]granttest.Person{w.Bob},
			false,
		},
		{
			"a requester that approves", func(x *curfewv1.Terms) { x.Requester = "bob" },
			[]granttest.Person{w.Bob},
			false,
		},
	} {
		terms := w.Terms(granttest.Noon(), c.edit)
		raw := granttest.Raw(terms)
		var as []*curfewv1.Approval
		for _, p := range c.by {
			as = append(as, p.Approve(raw))
		}
		if err := grant.CheckQuorum(w.Trust, terms, raw, []grant.HostID{w.Host}, as); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestSSHKeys(t *testing.T) {
	w := granttest.NewWorld()
	ed := w.Alice.SSHKey
	line := func(key any) string {
		pub, err := ssh.NewPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return grant.SSHKeyText(pub)
	}
	rsaKey := func(bits int) string {
		t.Setenv("GODEBUG", "rsa1024min=0")
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return line(&k.PublicKey)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{
		ed, ed + " alice@laptop", "  " + ed + "\n", line(&ec.PublicKey), rsaKey(2048),
	} {
		got, err := grant.CanonicalSSHKey(good)
		if err != nil {
			t.Errorf("%.40s: %v", good, err)
		}
		again, err := grant.CanonicalSSHKey(got)
		if err != nil || again != got || strings.Count(got, " ") != 1 {
			t.Errorf("%q is not canonical", got)
		}
	}
	cert := &ssh.Certificate{
		Key: w.Alice.Signer.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity,
	}
	if err := cert.SignCert(rand.Reader, w.Bob.Signer); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty": "", "no key": "ssh-ed25519", "broken": "ssh-ed25519 AAAA", "two": ed + "\n" + ed,
		"options": `command="/bin/sh" ` + ed, "an option": "cert-authority " + ed,
		"a return": ed + "\r" + ed, "NUL": ed + "\x00", "short RSA": rsaKey(1024),
		"a certificate": grant.SSHKeyText(cert), "endless": ed + " " + strings.Repeat("x", 9000),
		"a comment line": "# " + ed, "DSA": "ssh-dss AAAAB3NzaC1kc3MAAAABAQ==",
	} {
		if got, err := grant.CanonicalSSHKey(bad); err == nil {
			t.Errorf("%s is accepted as %s", name, got)
		}
	}
}
