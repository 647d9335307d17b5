package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// maxAuthorities bounds the CAs that a control plane is accepted by.
const maxAuthorities = 4

// learnAuthorities asks the control plane, which a CA has vouched for that this host accepts already, by
// which CAs it shall be accepted from now on, and says which those are once they are on the disk. A host
// whose certificate is from a CA that is no longer in force renews it.
func (l *Link) learnAuthorities(ctx context.Context, conn *grpc.ClientConn) error {
	client := apiv1.NewEnrolmentClient(conn)
	for range 2 { // the second time to say what was learnt the first
		req := &apiv1.AuthoritiesRequest{}
		for _, cert := range l.id.authorities() {
			pin := join.Pin(cert.Raw)
			req.Accepts = append(req.Accepts, pin[:])
		}
		ask, cancel := context.WithTimeout(ctx, l.timing.Connect)
		resp, err := client.Authorities(ask, req)
		cancel()
		if status.Code(err) == codes.Unimplemented {
			return nil // of the version before
		}
		if err != nil {
			return fmt.Errorf("asking for the CAs: %w", err)
		}
		changed, err := l.id.acceptAuthorities(resp.GetCertificates())
		if err != nil {
			return err
		}
		if changed {
			l.log.Info("the control plane is accepted by other CAs from now on",
				"count", len(resp.GetCertificates()))
			continue
		}
		if resp.GetRenew() {
			return l.renew(ctx)
		}
		return nil
	}
	return nil
}

// acceptAuthorities puts a new set of CAs on the disk, then into use.
func (i *identity) acceptAuthorities(ders [][]byte) (changed bool, err error) {
	if len(ders) == 0 || len(ders) > maxAuthorities {
		return false, fmt.Errorf("%d CAs; 1 to %d", len(ders), maxAuthorities)
	}
	have := i.authorities()
	same := len(have) == len(ders)
	cas := make([]*x509.Certificate, 0, len(ders))
	for n, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil || !cert.IsCA {
			return false, errors.New("a CA of the control plane does not parse, or is none")
		}
		same = same && have[n].Equal(cert)
		cas = append(cas, cert)
	}
	if same {
		return false, nil
	}
	err = writeFile(filepath.Join(i.dir, caFile), pemOfAll(cas), 0o644, -1, -1)
	if err != nil {
		return false, fmt.Errorf("keeping the CAs: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cas = cas
	return true, nil
}

func pemOfAll(certs []*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pemOf("CERTIFICATE", cert.Raw)...)
	}
	return out
}

func readAuthorities(path string) ([]*x509.Certificate, error) {
	rest, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	var cas []*x509.Certificate
	for len(bytes.TrimSpace(rest)) > 0 && len(cas) < maxAuthorities {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			break
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		cas = append(cas, cert)
	}
	if len(cas) == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is not 1 to %d certificates in PEM", path, maxAuthorities)
	}
	return cas, nil
}

// TrustCA has this host accept its control plane by the CA with this pin, and by no other: what an
// administrator does whose control plane has lost its CA. The control plane itself sends the certificate;
// the pin says that it is the right one. Everything else of the host stays.
func TrustCA(ctx context.Context, directory string, pin [sha256.Size]byte, now func() time.Time) error {
	id, err := loadIdentity(directory)
	if err != nil {
		return fmt.Errorf("reading the identity of this host from %s: %w", directory, err)
	}
	path := filepath.Join(directory, caFile)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("whose %s is cannot be told", path)
	}
	var found *x509.Certificate
	config := join.PinnedTLS(pin, now, func(ca *x509.Certificate) { found = ca })
	config.NextProtos = []string{"h2"}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", id.settings.Server)
	if err != nil {
		return fmt.Errorf("connecting to the control plane at %s: %w", id.settings.Server, err)
	}
	if err := conn.Close(); err != nil {
		return err
	}
	return writeFile(path, pemOf("CERTIFICATE", found.Raw), 0o644, int(owner.Uid), int(owner.Gid))
}
