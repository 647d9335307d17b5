package enrol

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Files of a rotation, beside the CA's own. The next CA waits in two; the certificates of those before the
// present one, newest first, stand in the third while hosts show certificates from them.
const (
	NextKeyFile  = "ca.next.key"
	NextCertFile = "ca.next.crt"
	OldCertsFile = "ca.old.crt"
)

// maxAccepted bounds what a host says that it accepts.
const maxAccepted = 4

// maxOld bounds the CAs before the present one that count.
const maxOld = 3

// Name is a CA certificate's name where this package and its Store speak of one: SHA-256 in hex.
func Name(cert *x509.Certificate) string {
	pin := join.Pin(cert.Raw)
	return hex.EncodeToString(pin[:])
}

// Next is the CA that waits to take this one's place; nil for none. It counts for nothing yet.
func (a *Authority) Next() *x509.Certificate { return a.next }

// Old are the CAs before this one whose certificates of hosts still count, newest first.
func (a *Authority) Old() []*x509.Certificate { return a.old }

// Announced are the CAs that everybody shall accept the control plane by, in DER: this one, and the next.
func (a *Authority) Announced() [][]byte {
	out := [][]byte{a.cert.Raw}
	if a.next != nil {
		out = append(out, a.next.Raw)
	}
	return out
}

// Same tells whether the CA's files in dir still are what this Authority was loaded from.
func (a *Authority) Same(dir string) (bool, error) {
	now, err := LoadAuthority(dir)
	if err != nil {
		return false, err
	}
	same := bytes.Equal(bytes.Join(now.Announced(), nil), bytes.Join(a.Announced(), nil)) &&
		len(now.old) == len(a.old)
	for i := range min(len(now.old), len(a.old)) {
		same = same && now.old[i].Equal(a.old[i])
	}
	return same, nil
}

func (a *Authority) loadOthers(dir string) error {
	next, err := readCerts(filepath.Join(dir, NextCertFile))
	if err == nil && len(next) > 0 {
		a.next = next[0]
	}
	if err != nil {
		return fmt.Errorf("loading the next CA: %w", err)
	}
	if a.old, err = readCerts(filepath.Join(dir, OldCertsFile)); err != nil {
		return fmt.Errorf("loading the CAs before this one: %w", err)
	}
	return nil
}

// PrepareNext draws the CA that shall take the present one's place. One that waits already stays.
func PrepareNext(dir, organisation string, now time.Time) error {
	if err := grant.CheckOrganisation(organisation); err != nil {
		return fmt.Errorf("creating the CA: %w", err)
	}
	waiting, err := readCerts(filepath.Join(dir, NextCertFile))
	if err != nil || len(waiting) > 0 {
		return err
	}
	// A key without its certificate is of an attempt that failed: nobody has heard of it.
	if err := os.Remove(filepath.Join(dir, NextKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, _, err = writeAuthority(dir, NextKeyFile, NextCertFile, organisation, now)
	return err
}

// Switch puts the next CA into the present one's place, whose certificate is kept for the hosts that show
// certificates from it. After a crash in the middle LoadAuthority ends what was begun.
func Switch(dir string) error {
	next, err := readCerts(filepath.Join(dir, NextCertFile))
	if err == nil && len(next) == 0 {
		err = errors.New("no CA waits to take this one's place")
	}
	if err != nil {
		return err
	}
	present, err := readCerts(filepath.Join(dir, CACertFile))
	if err != nil {
		return err
	}
	old, err := readCerts(filepath.Join(dir, OldCertsFile))
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, cert := range distinct(append(present, old...)) {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return err
		}
	}
	if err := replaceFile(filepath.Join(dir, OldCertsFile), text.Bytes()); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, NextKeyFile), filepath.Join(dir, CAKeyFile)); err != nil {
		return err
	}
	return finishSwitch(dir)
}

// distinct drops doubles, and all but the newest few.
func distinct(certs []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range certs {
		double := false
		for _, have := range out {
			double = double || have.Equal(c)
		}
		if !double && len(out) < maxOld {
			out = append(out, c)
		}
	}
	return out
}

// finishSwitch renames the certificate whose key is in its place already.
func finishSwitch(dir string) error {
	next, err := readCerts(filepath.Join(dir, NextCertFile))
	if err != nil || len(next) == 0 {
		return err
	}
	key, err := readAuthorityKey(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil //nolint:nilerr // whoever loads the CA says what is wrong with it
	}
	pub, ok := next[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(key.Public()) {
		return nil
	}
	err = os.Rename(filepath.Join(dir, NextCertFile), filepath.Join(dir, CACertFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a server beside this may have been faster
		return err
	}
	return syncDir(dir)
}

// DropOld ends what certificates from the CAs before the present one count for.
func DropOld(dir string) error {
	if err := os.Remove(filepath.Join(dir, OldCertsFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(dir)
}

// Authorities implements curfew.api.v1.Enrolment: a host says which CAs it accepts, and hears which it
// shall. Whoever can answer it here is the control plane by a CA that the host accepts already.
func (s *Service) Authorities(
	ctx context.Context, req *apiv1.AuthoritiesRequest,
) (*apiv1.AuthoritiesResponse, error) {
	resp, err := s.authorities(ctx, req)
	if err != nil {
		return nil, s.refuse("asking for the CAs", err)
	}
	return resp, nil
}

func (s *Service) authorities(
	ctx context.Context, req *apiv1.AuthoritiesRequest,
) (*apiv1.AuthoritiesResponse, error) {
	cert, id, err := s.authority.hostCertificate(ctx, s.now())
	if err != nil {
		return nil, reason.Denied("%v", err)
	}
	if !s.asking.take(id.String(), s.now()) {
		return nil, reason.Limit("a host asks too often").WithHint("wait a minute")
	}
	if _, err := s.servedHost(ctx, id); err != nil {
		return nil, err
	}
	if n := len(req.GetAccepts()); n > maxAccepted {
		return nil, reason.Invalid("%d CAs; at most %d", n, maxAccepted)
	}
	names := make([]string, 0, len(req.GetAccepts()))
	for _, pin := range req.GetAccepts() {
		if len(pin) != sha256.Size {
			return nil, reason.Invalid("pin of %d bytes, want %d", len(pin), sha256.Size)
		}
		names = append(names, hex.EncodeToString(pin))
	}
	if err := s.store.PutAccepted(ctx, id, names); err != nil {
		return nil, fmt.Errorf("noting the CAs of host %s: %w", id, err)
	}
	return &apiv1.AuthoritiesResponse{
		Certificates: s.authority.Announced(),
		Renew:        cert.CheckSignatureFrom(s.authority.cert) != nil,
	}, nil
}

// readCerts reads the certificates of a file; none when there is no file.
func readCerts(path string) ([]*x509.Certificate, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rest, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(rest)) > 0 {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s does not hold certificates in PEM alone", path)
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("%s: a certificate is not a CA's", path)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".ca.*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
