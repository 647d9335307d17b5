// Package breakglass holds the one-use codes that open a host while its control plane is away: how
// they are drawn, written for people, read back, and kept on the host.
//
// A host keeps hashes only; what people hold is the text. The package is pure: randomness is passed
// in, and who may use a code, when and for what is decided elsewhere (internal/grant spends one,
// agent says when). The format is that of proto/PROTOCOL.md, section 10.
package breakglass

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Sizes. A code has Groups groups of four symbols of five bits: 140 random bits.
const (
	Groups    = 7
	perGroup  = 4
	groupText = perGroup + 1 // with its check symbol
	symbols   = Groups * perGroup
	// SetIDSize is the length of what names a set of codes, in bytes.
	SetIDSize = 16
	// MaxCodes is how many codes one set has at most.
	MaxCodes = 32
	// TextSize is the length of a code's canonical text.
	TextSize = Groups*groupText + Groups - 1
)

// alphabet is Crockford's base 32: without I, L, O and U, which are read and heard wrongly.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// Code is one code: symbols of five bits each. It is a secret until it is spent.
type Code [symbols]byte

// SetID names a set of codes of one host. The codes of another set are nobody's.
type SetID [SetIDSize]byte

// Hash is what a host keeps of a code.
type Hash [sha256.Size]byte

// String is the set's name in lower-case hex.
func (id SetID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns lower-case hex.
func (id SetID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText accepts exactly what MarshalText writes.
func (id *SetID) UnmarshalText(text []byte) error { return unhex(id[:], text) }

// MarshalText returns lower-case hex.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText accepts exactly what MarshalText writes.
func (h *Hash) UnmarshalText(text []byte) error { return unhex(h[:], text) }

func unhex(into, text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(into) || hex.EncodeToString(raw) != string(text) {
		return fmt.Errorf("not %d bytes in lower-case hex", len(into))
	}
	copy(into, raw)
	return nil
}

// NewCode draws a code.
func NewCode(random io.Reader) (Code, error) {
	var c Code
	if _, err := io.ReadFull(random, c[:]); err != nil {
		return Code{}, fmt.Errorf("drawing a break-glass code: %w", err)
	}
	for i := range c {
		c[i] &= 31 // each byte is uniform, so are its lower five bits
	}
	return c, nil
}

// NewSetID draws the name of a set.
func NewSetID(random io.Reader) (SetID, error) {
	var id SetID
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return SetID{}, fmt.Errorf("drawing the name of a set of codes: %w", err)
	}
	return id, nil
}

// HashOf binds a code to its host and its set: the hash of one host's code is of no use to another.
//
// Plain SHA-256 is enough. A slow hash makes guessing dear where people choose the secret; among 2^140
// equally likely codes there is nothing to guess, however fast each guess is.
func HashOf(host [32]byte, set SetID, c Code) Hash {
	h := sha256.New()
	h.Write([]byte("curfew break-glass code v1\x00"))
	h.Write(host[:])
	h.Write(set[:])
	h.Write(c[:])
	return Hash(h.Sum(nil))
}

// String is the code for people: seven groups of five symbols, the fifth a check of the four.
func (c Code) String() string {
	var b strings.Builder
	for g := range Groups {
		if g > 0 {
			b.WriteByte('-')
		}
		four := c[g*perGroup : (g+1)*perGroup]
		for _, s := range four {
			b.WriteByte(alphabet[s])
		}
		b.WriteByte(alphabet[check(g, four)])
	}
	return b.String()
}

// ErrNoCode means that a text is no break-glass code at all, of no host.
var ErrNoCode = errors.New("not a break-glass code")

// ParseCode reads what people type: groups with a hyphen, a space or nothing between them, in either
// case, with O for 0 and I or L for 1. Anything else is refused, and a mistyped group is named: its
// check symbol finds one wrong symbol, two that changed places, and groups that did.
func ParseCode(text string) (Code, error) {
	var c Code
	text = strings.Trim(text, " \t\r\n")
	for g := range Groups {
		if g > 0 && len(text) > 0 && (text[0] == '-' || text[0] == ' ') {
			text = text[1:]
		}
		if len(text) < groupText {
			return Code{}, fmt.Errorf("%w: it ends in group %d of %d", ErrNoCode, g+1, Groups)
		}
		var five [groupText]byte
		for i := range five {
			s, ok := symbol(text[i])
			if !ok {
				return Code{}, fmt.Errorf("%w: group %d: a group is five letters or digits", ErrNoCode, g+1)
			}
			five[i] = s
		}
		if check(g, five[:perGroup]) != five[perGroup] {
			return Code{}, fmt.Errorf("%w: group %d is mistyped", ErrNoCode, g+1)
		}
		copy(c[g*perGroup:], five[:perGroup])
		text = text[groupText:]
	}
	if text != "" {
		return Code{}, fmt.Errorf("%w: something follows group %d", ErrNoCode, Groups)
	}
	return c, nil
}

// symbol reads one letter or digit.
func symbol(b byte) (byte, bool) {
	if b >= 'a' && b <= 'z' {
		b -= 'a' - 'A'
	}
	switch b {
	case 'O':
		b = '0'
	case 'I', 'L':
		b = '1'
	}
	i := strings.IndexByte(alphabet, b)
	return byte(max(i, 0)), i >= 0
}

// check is a group's check symbol: a sum in the field of 32 elements in which every place has a weight
// of its own, other than the check symbol's, so that any single error and any exchange of two symbols
// shows; and the group's number, so that exchanged groups show.
func check(group int, four []byte) byte {
	sum := byte(group + 1)
	weight := byte(1)
	for _, s := range four {
		weight = double(weight)
		sum ^= times(weight, s)
	}
	return sum
}

// double multiplies by x in GF(2)[x] modulo x^5 + x^2 + 1.
func double(a byte) byte {
	a <<= 1
	if a&32 != 0 {
		a ^= 0b100101
	}
	return a
}

func times(a, b byte) (product byte) {
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			product ^= a
		}
		a = double(a)
	}
	return product
}
