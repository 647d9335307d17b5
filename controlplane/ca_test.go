package controlplane_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// offline does something to the data folder beside the server.
func (h *house) offline(do func(*controlplane.Offline) error) error {
	h.t.Helper()
	o, err := controlplane.OpenOffline(h.t.Context(), h.dir, time.Now, quietLog())
	must(h.t, err)
	return errors.Join(do(o), o.Close())
}

// startsAnew waits for the server to end itself, and starts it as systemd does.
func (h *house) startsAnew() {
	h.t.Helper()
	select {
	case err := <-h.done:
		if err == nil {
			h.t.Error("the server ended without saying why")
		}
	case <-time.After(20 * time.Second):
		h.t.Fatal("the server does not notice")
	}
	h.start()
}

// accepts says for a host by which CAs it accepts the control plane, and returns what it is told.
func (m *host) accepts(pins ...[32]byte) *apiv1.AuthoritiesResponse {
	m.h.t.Helper()
	req := &apiv1.AuthoritiesRequest{}
	for _, pin := range pins {
		req.Accepts = append(req.Accepts, pin[:])
	}
	resp, err := apiv1.NewEnrolmentClient(m.h.dial(m.cert)).Authorities(m.h.t.Context(), req)
	must(m.h.t, err)
	return resp
}

// A rotation of the CA goes on only as far as no host is lost, across backups and restarts; hosts and people
// hear of it over what they believe already.
func TestCARotationWaitsForHosts(t *testing.T) {
	h := build(t, nil)
	_, _, _, web1 := h.cast(1)
	must(t, h.offline(func(o *controlplane.Offline) error {
		if _, err := o.SwitchCA(t.Context(), true); err == nil {
			t.Error("switched to a CA that nobody drew")
		}
		_, err := o.PrepareCA(t.Context())
		return err
	}))
	web1.disconnect()
	h.startsAnew()
	old := h.pin
	told := web1.accepts(old)
	if len(told.GetCertificates()) != 2 || told.GetRenew() {
		t.Fatalf("the host is told %d CAs, renew %v", len(told.GetCertificates()), told.GetRenew())
	}
	next := join.Pin(told.GetCertificates()[1])
	me, err := h.signIn("dana", h.admin.key).WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	must(t, err)
	if !slices.EqualFunc(me.GetAuthorities(), told.GetCertificates(), slices.Equal) {
		t.Error("people are told other CAs than hosts")
	}
	force := func(step func(*controlplane.Offline) error) { t.Helper(); must(t, h.offline(step)) }
	force(func(o *controlplane.Offline) error {
		if ca, err := o.SwitchCA(t.Context(), false); !errors.Is(err, controlplane.ErrHostsBehind) ||
			!slices.Equal(ca.NotYet, []string{"web1"}) {
			t.Errorf("a switch that loses web1: %v, %v", ca, err)
		}
		return nil
	})
	web1.accepts(old, next)
	// The rotation goes on in a restored control plane.
	file := filepath.Join(t.TempDir(), "b.tar")
	h.backup(file)
	h.restore(file, time.Now)
	force(func(o *controlplane.Offline) error {
		_, err := o.SwitchCA(t.Context(), false)
		return err
	})
	h.startsAnew()
	h.pin = next
	told = web1.accepts(next)
	if len(told.GetCertificates()) != 1 || join.Pin(told.GetCertificates()[0]) != next || !told.GetRenew() {
		t.Errorf("after the switch the host is told %d CAs, renew %v", len(told.GetCertificates()), told.GetRenew())
	}
	web1.connect() // its certificate is from the old one
	force(func(o *controlplane.Offline) error {
		if ca, err := o.DropCA(t.Context(), false); !errors.Is(err, controlplane.ErrHostsBehind) ||
			!slices.Equal(ca.Behind, []string{"web1"}) {
			t.Errorf("a drop that loses web1: %v, %v", ca, err)
		}
		return nil
	})
	before := *web1.cert
	web1.renewCertificate()
	force(func(o *controlplane.Offline) error {
		_, err := o.DropCA(t.Context(), false)
		return err
	})
	web1.disconnect()
	h.startsAnew()
	if !web1.served() {
		t.Error("a host with a certificate from the new CA is not served")
	}
	web1.cert = &before
	if web1.served() {
		t.Error("a certificate from a CA that was dropped counts")
	}
}

// renewCertificate has the host certified anew.
func (m *host) renewCertificate() {
	m.h.t.Helper()
	resp, err := apiv1.NewEnrolmentClient(m.h.dial(m.cert)).Renew(m.h.t.Context(),
		&apiv1.RenewRequest{Csr: m.csr()})
	must(m.h.t, err)
	m.cert = &tls.Certificate{Certificate: [][]byte{resp.GetCertificate()}, PrivateKey: m.cert.PrivateKey}
}

func (m *host) csr() []byte {
	m.h.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, m.cert.PrivateKey)
	must(m.h.t, err)
	return der
}

// Where the CA's key is lost a new one is made, and hosts' certificates from the lost one still count.
func TestLostCAIsReplaced(t *testing.T) {
	h := build(t, nil)
	web1 := h.join("web1")
	if _, err := controlplane.ReplaceLostCA(t.Context(), h.dir, time.Now); err == nil {
		t.Error("a CA that is there is replaced")
	}
	web1.disconnect()
	h.stop()
	must(t, rename(filepath.Join(h.dir, "ca.key"), filepath.Join(t.TempDir(), "lost")))
	pin, err := controlplane.ReplaceLostCA(t.Context(), h.dir, time.Now)
	must(t, err)
	h.start()
	h.pin, err = join.ParsePin(pin)
	must(t, err)
	if !web1.served() {
		t.Error("a host that was told of the new CA is not served")
	}
	if !web1.accepts(h.pin).GetRenew() {
		t.Error("it is not told to renew")
	}
}
