package join

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
)

// Providers whose word for an instance stands in for a join token.
const (
	AWS   = "aws"
	GCP   = "gcp"
	Azure = "azure"
)

// MaxDocument is how long an identity document may be, in bytes.
const MaxDocument = 16 << 10

// ParsePin reads the text form of a CA's pin: base64url without padding.
func ParsePin(s string) (pin [sha256.Size]byte, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != sha256.Size || base64.RawURLEncoding.EncodeToString(b) != s {
		return pin, errors.New("not the pin of a control plane's CA: it is 43 characters of base64url; " +
			"`curfew admin trust show` prints it")
	}
	return [sha256.Size]byte(b), nil
}

// Binding ties a cloud's word for an instance to one control plane and to the root half's key.
type Binding [sha256.Size]byte

// CloudBinding computes it (PROTOCOL.md section 2).
func CloudBinding(pin [sha256.Size]byte, root ed25519.PublicKey) Binding {
	return sha256.Sum256(bytes.Join([][]byte{[]byte("curfew cloud join v1\x00"), pin[:], root}, nil))
}

// Audience is what an instance asks Google's identity endpoint for.
func (b Binding) Audience() string {
	return "curfew:" + base64.RawURLEncoding.EncodeToString(b[:])
}

// Nonce is what an instance asks Azure's attested document for: ten digits are all that it takes.
func (b Binding) Nonce() string {
	return fmt.Sprintf("%010d", binary.BigEndian.Uint64(b[:8])%1e10)
}

// CloudMessage is what the root half's key signs at an enrolment by a cloud's word.
func CloudMessage(pin [sha256.Size]byte, provider string, document, csr []byte) []byte {
	word := sha256.Sum256(bytes.Join([][]byte{[]byte(provider), {0}, document}, nil))
	request := sha256.Sum256(csr)
	return bytes.Join([][]byte{[]byte("curfew cloud enrol v1\x00"), pin[:], word[:], request[:]}, nil)
}
