package enrol_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// showing is the context of a call whose connection has shown a certificate.
func showing(cert *x509.Certificate) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{
		State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}},
	}})
}

func (w *world) authorities(cert *tls.Certificate, accepts ...[]byte) (*apiv1.AuthoritiesResponse, error) {
	w.t.Helper()
	return w.client(cert).Authorities(context.Background(), &apiv1.AuthoritiesRequest{Accepts: accepts})
}

func loaded(t *testing.T, dir string) *enrol.Authority {
	t.Helper()
	a, err := enrol.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func did(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A rotation goes on from wherever it was interrupted, and its files say in each moment what counts.
func TestRotationOfTheCA(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, err := enrol.CreateAuthority(dir, "example", now)
	did(t, err)
	host := grant.HostID{1}
	key := newMachine(t).link
	old, err := first.SignHost(key.Public(), host, now)
	did(t, err)
	did(t, enrol.PrepareNext(dir, "example", now))
	a := loaded(t, dir)
	next := a.Next()
	if a.Pin() != first.Pin() || next == nil || len(a.Announced()) != 2 {
		t.Fatalf("after it was prepared: %d announced", len(a.Announced()))
	}
	if same, err := first.Same(dir); err != nil || same {
		t.Errorf("who was loaded before notices nothing: %v", err)
	}
	did(t, enrol.PrepareNext(dir, "example", now))
	if !loaded(t, dir).Next().Equal(next) {
		t.Error("preparing again draws another")
	}
	// The power fails between the two renames.
	did(t, enrol.Switch(dir))
	der, err := os.ReadFile(filepath.Join(dir, enrol.CACertFile))
	did(t, err)
	did(t, os.Rename(filepath.Join(dir, enrol.CACertFile), filepath.Join(dir, enrol.NextCertFile)))
	before, err := os.ReadFile(filepath.Join(dir, enrol.OldCertsFile))
	did(t, err)
	did(t, os.WriteFile(filepath.Join(dir, enrol.CACertFile), before, 0o644))
	a = loaded(t, dir)
	if !a.Certificate().Equal(next) || a.Next() != nil || len(a.Old()) != 1 ||
		!a.Old()[0].Equal(first.Certificate()) || len(a.Announced()) != 1 {
		t.Errorf("after a switch that was interrupted: %d old, %d announced", len(a.Old()), len(a.Announced()))
	}
	if again, err := os.ReadFile(filepath.Join(dir, enrol.CACertFile)); err != nil || string(again) != string(der) {
		t.Errorf("the certificate is not in its place: %v", err)
	}
	fresh, err := a.SignHost(key.Public(), host, now)
	did(t, err)
	for name, cert := range map[string]*x509.Certificate{"the old CA's": old, "the new CA's": fresh} {
		if _, err := a.HostOf(showing(cert), now); err != nil {
			t.Errorf("%s certificate: %v", name, err)
		}
	}
	did(t, enrol.DropOld(dir))
	a = loaded(t, dir)
	if _, err := a.HostOf(showing(old), now); err == nil {
		t.Error("a certificate from a dropped CA counts")
	}
	if _, err := a.HostOf(showing(fresh), now); err != nil {
		t.Errorf("the new CA's certificate: %v", err)
	}
	if err := enrol.Switch(dir); err == nil {
		t.Error("switched to nothing")
	}
}

// A host says which CAs it accepts and hears which it shall, and whether its certificate is to be renewed.
func TestHostsAskForTheCAs(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	cert := w.enrolled(m, "web1")
	pin := w.authority.Pin()
	resp, err := w.authorities(cert, pin[:])
	did(t, err)
	if len(resp.GetCertificates()) != 1 || resp.GetRenew() {
		t.Errorf("the answer is %d CAs, renew %v", len(resp.GetCertificates()), resp.GetRenew())
	}
	w.store.mu.Lock()
	said := w.store.accepted[m.id()]
	w.store.mu.Unlock()
	if len(said) != 1 || said[0] != enrol.Name(w.authority.Certificate()) {
		t.Errorf("kept is %q", said)
	}
	host, err := w.store.EnrolledHost(context.Background(), m.id())
	did(t, err)
	if host.CertifiedBy != enrol.Name(w.authority.Certificate()) {
		t.Errorf("certified by %q", host.CertifiedBy)
	}
	for name, bad := range map[string][][]byte{
		"a short pin": {{1}}, "five": {pin[:], pin[:], pin[:], pin[:], pin[:]},
	} {
		if _, err := w.authorities(cert, bad...); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := w.authorities(nil, pin[:]); err == nil {
		t.Error("a stranger is answered")
	}
	w.store.change(m.id(), func(h *enrol.Host) { h.Removed = true })
	if _, err := w.authorities(cert, pin[:]); err == nil {
		t.Error("a removed host is answered")
	}
}
