package enrol

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/internal/grant"
)

// Limits on what a joining machine says of itself. Sizes are in bytes.
const (
	maxCSR      = 8 << 10
	maxLabels   = 32
	maxLabel    = 63
	maxAddress  = 255
	maxHostKeys = 8
	maxVersion  = 64
)

// CheckLabels accepts at most 32 labels whose keys and values are 1 to 63 of a-z, A-Z, 0-9, '.',
// '_', '-' and '/', values possibly empty.
func CheckLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("%d labels; at most %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		if k == "" || !labelText(k) {
			return fmt.Errorf("label %q: the name must be 1 to %d of a-z, A-Z, 0-9, . _ - /",
				grant.VisibleText(clip(k, maxLabel)), maxLabel)
		}
		if !labelText(v) {
			return fmt.Errorf("label %s: the value must be at most %d of a-z, A-Z, 0-9, . _ - /",
				k, maxLabel)
		}
	}
	return nil
}

func labelText(s string) bool {
	if len(s) > maxLabel {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') &&
			!strings.ContainsRune("._-/", rune(c)) {
			return false
		}
	}
	return true
}

// checkAddress accepts a host name or an IP address, with or without a port: it becomes an argument
// of ssh, so it never begins with a dash.
func checkAddress(s string) error {
	if len(s) > maxAddress {
		return fmt.Errorf("address has %d bytes; at most %d", len(s), maxAddress)
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return nil
	}
	if grant.CheckHostName(s) != nil {
		return fmt.Errorf("address %q is neither a host name nor an IP address",
			grant.VisibleText(s))
	}
	return nil
}

func checkHostKeys(lines []string) ([]string, error) {
	if len(lines) > maxHostKeys {
		return nil, fmt.Errorf("%d SSH host keys; at most %d", len(lines), maxHostKeys)
	}
	keys := make([]string, 0, len(lines))
	for _, line := range lines {
		key, err := grant.CanonicalSSHKey(line)
		if err != nil {
			return nil, fmt.Errorf("SSH host key: %w", err)
		}
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

func checkVersion(s string) error {
	if len(s) > maxVersion || grant.VisibleText(s) != s {
		return fmt.Errorf("agent version of %d bytes: want at most %d visible characters",
			len(s), maxVersion)
	}
	return nil
}

// parseCSR returns the link key that a certificate request is for. Everything else in it is
// ignored: names come from the enrolment, never from the request.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request of %d bytes; at most %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("the certificate request does not parse")
	}
	switch key := csr.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize < 256 {
			return nil, errors.New("the link key is too short")
		}
	default:
		return nil, errors.New("the link key is neither Ed25519 nor ECDSA")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("the certificate request is not signed by its own key")
	}
	return csr, nil
}

// keyHash identifies a link key: SHA-256 of its SubjectPublicKeyInfo.
func keyHash(spki []byte) [sha256.Size]byte { return sha256.Sum256(spki) }

func labelDetails(labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(k + "=" + labels[k])
	}
	return map[string]string{"labels": b.String()}
}

func clip(s string, n int) string { return s[:min(len(s), n)] }
