package link

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/curfew-access/curfew/internal/join"
)

// Files of the link's folder.
const (
	keyFile      = "link.key"
	certFile     = "link.crt"
	caFile       = "ca.crt"
	settingsFile = "link.json"
	machineFile  = "machine-id"
	maxFile      = 64 << 10
)

// ErrNotJoined means that this machine has no identity yet: run "curfew-agent join".
var ErrNotJoined = errors.New("this machine has not joined a control plane; " +
	"run \"curfew-agent join\" with a token")

// settings are what Join learnt besides keys and certificates.
type settings struct {
	Server       string `json:"server"`
	HostID       string `json:"host_id"`
	Name         string `json:"name"`
	Organisation string `json:"organisation"`
}

// identity is who this host is on the wire.
type identity struct {
	dir      string
	settings settings
	key      ed25519.PrivateKey

	mu   sync.Mutex // guards the rest
	cert *tls.Certificate
	// cas are those that the control plane is accepted by: one, and two while it changes.
	cas []*x509.Certificate
}

// authorities are the CAs that the control plane is accepted by.
func (i *identity) authorities() []*x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cas
}

func (i *identity) certificate() *tls.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert
}

// loadIdentity reads all four files and checks that they belong together.
func loadIdentity(dir string) (*identity, error) {
	i := &identity{dir: dir}
	raw, err := readBounded(filepath.Join(dir, settingsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotJoined
	}
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&i.settings); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", settingsFile, err)
	}
	if i.cas, err = readAuthorities(filepath.Join(dir, caFile)); err != nil {
		return nil, err
	}
	if i.key, err = readKey(filepath.Join(dir, keyFile)); err != nil {
		return nil, err
	}
	cert, err := readCertificate(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	return i, i.use(cert)
}

// adopt takes a certificate that came over the wire into use when it is this host's and from a CA that
// the control plane is accepted by.
func (i *identity) adopt(cert *x509.Certificate) error {
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: newPool(i.authorities()), CurrentTime: cert.NotAfter,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("the certificate is not from the pinned CA: %w", err)
	}
	return i.use(cert)
}

// use takes a certificate into use when it is this host's: of its key, under its name. Whether it is
// still valid, and its CA still in force, is the control plane's to say: an old one still renews.
func (i *identity) use(cert *x509.Certificate) error {
	pub, ok := i.key.Public().(ed25519.PublicKey)
	if !ok || !pub.Equal(cert.PublicKey) {
		return errors.New("the certificate is not of the link's key")
	}
	id, err := join.HostOf(cert)
	if err != nil {
		return err
	}
	if id.String() != i.settings.HostID {
		return errors.New("the certificate is of another host")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cert = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: i.key, Leaf: cert}
	return nil
}

// store writes a renewed certificate, durably, before it is used.
func (i *identity) store(cert *x509.Certificate) error {
	return writeFile(filepath.Join(i.dir, certFile), pemOf("CERTIFICATE", cert.Raw), 0o644, -1, -1)
}

// overdue says whether two thirds of the certificate's life are over.
func (i *identity) overdue(now time.Time) bool {
	c := i.certificate().Leaf
	return !now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2))
}

func pemOf(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return b, nil
}

func readBlock(path, block string) ([]byte, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	b, rest := pem.Decode(data)
	if b == nil || b.Type != block || len(rest) > 0 {
		return nil, fmt.Errorf("%s is not one PEM block of type %q", path, block)
	}
	return b.Bytes, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	der, err := readBlock(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

func readKey(path string) (ed25519.PrivateKey, error) {
	der, err := readBlock(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an Ed25519 key", path)
	}
	return key, nil
}

// writeFile replaces a file durably: beside, fsync, owner, rename, fsync of the folder. uid and gid
// of -1 keep the caller's.
func writeFile(path string, data []byte, mode os.FileMode, uid, gid int) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if uid >= 0 || gid >= 0 { // the link half's own unit forbids it even where it changes nothing
		err = errors.Join(err, f.Chown(uid, gid))
	}
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
