package enrol_test

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/enrol/cloud"
	"github.com/curfew-access/curfew/internal/cloudtest"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// cloudWorld is a control plane that admits instances of the fixtures' accounts.
func cloudWorld(t *testing.T) (*world, *cloudtest.Clouds) {
	t.Helper()
	now := time.Now
	c := cloudtest.New(t, func() time.Time { return now() })
	roots := x509.NewCertPool()
	roots.AddCert(c.Root)
	v, err := cloud.New(cloud.Config{
		AWS: &cloud.AWS{
			Accounts: []string{cloudtest.Account}, Certificates: []*x509.Certificate{c.AWSCert},
			MaxAge: cloud.DefaultMaxAge,
		},
		Azure: &cloud.Azure{
			Subscriptions: []string{cloudtest.Subscription}, Roots: roots,
			Intermediates: []*x509.Certificate{c.Middle}, MaxAge: cloud.DefaultMaxAge,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldWith(t, func(c *enrol.Config) { c.Cloud = v })
	now = w.clock.now
	return w, c
}

// cloudRequest is what a machine sends that its cloud vouches for.
func (w *world) cloudRequest(m machine, provider string, document []byte) *apiv1.EnrolRequest {
	csr := newCSR(w.t, m.link)
	pin := w.authority.Pin()
	return &apiv1.EnrolRequest{
		Cloud:         &apiv1.CloudIdentity{Provider: provider, Document: document},
		RootPublicKey: m.root.Public().(ed25519.PublicKey), Csr: csr, AgentVersion: "0.1.0",
		Signature: ed25519.Sign(m.root, join.CloudMessage(pin, provider, document, csr)),
	}
}

func (w *world) nonce(m machine) string {
	return join.CloudBinding(w.authority.Pin(), m.root.Public().(ed25519.PublicKey)).Nonce()
}

func TestAnInstanceBecomesAHost(t *testing.T) {
	w, c := cloudWorld(t)
	m := newMachine(t)
	req := w.cloudRequest(m, "aws", c.AWS(t, c.EC2()))
	req.Labels = map[string]string{"rack": "b4"}
	resp, err := w.client(nil).Enrol(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetName() != cloudtest.EC2Instance {
		t.Errorf("it is called %q", resp.GetName())
	}
	host, err := w.store.EnrolledHost(context.Background(), m.id())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{
		"rack": "b4", "cloud": "aws", "account": cloudtest.Account, "region": cloudtest.Region,
		"zone": cloudtest.Region + "a", "instance": cloudtest.EC2Instance,
	}, host.Labels); diff != "" {
		t.Errorf("its labels:\n%s", diff)
	}
	checkCertificate(t, w, resp.GetCertificate(), m)
	last := w.store.records[len(w.store.records)-1]
	if want := "aws instance " + cloudtest.EC2Instance + " of " + cloudtest.Account; last.Kind !=
		enrol.KindHostEnrolled || last.Details["joined_by"] != want {
		t.Errorf("the trail says %+v", last)
	}

	named := newMachine(t)
	req = w.cloudRequest(named, "azure", c.Azure(t, c.AttestedData(w.nonce(named))))
	req.Name, req.Address = "db1", "192.0.2.9"
	if resp, err = w.client(nil).Enrol(context.Background(), req); err != nil || resp.GetName() != "db1" {
		t.Errorf("by its own name: %v, %v", resp.GetName(), err)
	}
}

// An instance joins once, whoever brings its document, also after its host is gone.
func TestOneInstanceOneHost(t *testing.T) {
	w, c := cloudWorld(t)
	document := c.AWS(t, c.EC2())
	var (
		wg    sync.WaitGroup
		won   atomic.Int32
		first atomic.Value
	)
	for i := range 8 {
		m, client := newMachine(t), w.client(nil)
		req := w.cloudRequest(m, "aws", document)
		req.Name = fmt.Sprintf("web%d", i)
		wg.Go(func() {
			_, err := client.Enrol(context.Background(), req)
			switch {
			case err == nil:
				won.Add(1)
				first.Store(m)
			case reasonOf(err) != denied || !strings.Contains(err.Error(), "joined before"):
				t.Errorf("a loser hears %v", err)
			}
		})
	}
	wg.Wait()
	if hosts, _ := w.store.count(); won.Load() != 1 || hosts != 1 {
		t.Fatalf("%d enrolled, %d hosts; want one", won.Load(), hosts)
	}
	w.clock.pass(5 * time.Minute) // losers are limited for a while
	w.store.change(first.Load().(machine).id(), func(h *enrol.Host) { h.Removed = true })
	_, err := w.client(nil).Enrol(context.Background(), w.cloudRequest(newMachine(t), "aws", document))
	if reasonOf(err) != denied {
		t.Errorf("after its host was removed: %v", err)
	}
	if hint := hintOf(err); !strings.Contains(hint, "curfew admin host add") {
		t.Errorf("the hint is %q", hint)
	}
	m := newMachine(t)
	if _, err := w.client(nil).Enrol(context.Background(),
		m.request(t, w.token("web1", nil), "")); err != nil {
		t.Errorf("with an admin's token: %v", err)
	}
}

func TestInstancesAreRefused(t *testing.T) {
	w, c := cloudWorld(t)
	resign := func(m machine, r *request) {
		r.Signature = ed25519.Sign(m.root, join.CloudMessage(w.authority.Pin(), r.Cloud.Provider,
			r.Cloud.Document, r.Csr))
	}
	label := func(name string) func(machine, *request) {
		return func(_ machine, r *request) { r.Labels = map[string]string{name: "x"} }
	}
	for name, r := range map[string]struct {
		change func(machine, *request)
		want   apiv1.Code
	}{
		"both words":       {func(m machine, r *request) { r.Token = w.token("web1", nil) }, invalid},
		"no signature":     {func(_ machine, r *request) { r.Signature = nil }, invalid},
		"another's key":    {func(_ machine, r *request) { r.RootPublicKey = newKey(t).Public().(ed25519.PublicKey) }, invalid},
		"another link key": {func(_ machine, r *request) { r.Csr = newCSR(t, newKey(t)) }, invalid},
		"another document": {func(_ machine, r *request) { r.Cloud.Document = c.AWS(t, c.EC2()) }, invalid},
		"another provider": {func(_ machine, r *request) { r.Cloud.Provider = "aws" }, invalid},
		"no provider":      {func(m machine, r *request) { r.Cloud.Provider = ""; resign(m, r) }, invalid},
		"wrong provider":   {func(m machine, r *request) { r.Cloud.Provider = "aws"; resign(m, r) }, denied},
		"not configured":   {func(m machine, r *request) { r.Cloud.Provider = "gcp"; resign(m, r) }, denied},
		"no document":      {func(m machine, r *request) { r.Cloud.Document = nil; resign(m, r) }, denied},
		"oversized": {func(m machine, r *request) {
			r.Cloud.Document = make([]byte, 16<<10+1)
			resign(m, r)
		}, invalid},
		"another control plane": {func(m machine, r *request) {
			r.Signature = ed25519.Sign(m.root, join.CloudMessage([32]byte{1}, "azure", r.Cloud.Document, r.Csr))
		}, invalid},
		"signed as a token": {func(m machine, r *request) {
			r.Signature = ed25519.Sign(m.root, join.Message("", r.Csr))
		}, invalid},
		"another machine's document": {func(m machine, r *request) {
			r.Cloud.Document = c.Azure(t, c.AttestedData(w.nonce(newMachine(t))))
			resign(m, r)
		}, denied},
		"its own cloud":    {label("cloud"), invalid},
		"its own account":  {label("account"), invalid},
		"its own region":   {label("region"), invalid},
		"its own zone":     {label("zone"), invalid},
		"its own instance": {label("instance"), invalid},
		"bad name":         {func(_ machine, r *request) { r.Name = "Web1" }, invalid},
	} {
		t.Run(name, func(t *testing.T) {
			w.clock.pass(time.Minute)
			m := newMachine(t)
			req := w.cloudRequest(m, "azure", c.Azure(t, c.AttestedData(w.nonce(m))))
			r.change(m, req)
			if _, err := w.client(nil).Enrol(context.Background(), req); reasonOf(err) != r.want {
				t.Errorf("answer %v, want %s", err, r.want)
			}
			if hosts, used := w.store.count(); hosts != 0 || used != 0 || len(w.store.instances) != 0 {
				t.Errorf("%d hosts, %d tokens, %d instances after a refusal", hosts, used,
					len(w.store.instances))
			}
		})
	}
	m := newMachine(t)
	if _, err := w.client(nil).Enrol(context.Background(),
		w.cloudRequest(m, "azure", c.Azure(t, c.AttestedData(w.nonce(m))))); err != nil {
		t.Errorf("the honest instance afterwards: %v", err)
	}
}

// A control plane that was told of no cloud says so, and what to do.
func TestNoCloudByDefault(t *testing.T) {
	w := newWorld(t)
	c := cloudtest.New(t, w.clock.now)
	_, err := w.client(nil).Enrol(context.Background(),
		w.cloudRequest(newMachine(t), "aws", c.AWS(t, c.EC2())))
	if reasonOf(err) != denied || !strings.Contains(hintOf(err), "cloud_join.aws") {
		t.Errorf("it says %v, %s", err, hintOf(err))
	}
}

func hintOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*apiv1.Reason); ok {
			return r.GetHint()
		}
	}
	return ""
}
