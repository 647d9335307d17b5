// Package gatewire is the Go half of the gate socket's language (proto/PROTOCOL.md, section 4).
//
// A request comes from pam_curfew.so, which runs inside sshd, sudo and login; the agent's gate
// decodes it, answers with a [Reply], and that is all either side ever says. The package turns
// bytes into values and back and does nothing else: no I/O, no clock, no opinion on who may pass.
//
// Whoever reaches the socket is root already, but what it says is still only a claim (a remote
// host name may be chosen by an attacker's DNS), so the decoders refuse whatever is not exactly
// what the encoders would have written.
package gatewire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Caps of section 4, in bytes.
const (
	MaxRequest  = 4096
	MaxReply    = 1024
	MaxService  = 32
	MaxUser     = 64
	MaxRUser    = 64
	MaxRHost    = 255
	MaxTTY      = 64
	MaxAuthInfo = 2048
	MaxText     = 512
)

// ErrRefused is wrapped by every decoding and encoding error: the message as a whole is not to
// be acted on. A gate that meets it closes the connection without a reply.
var ErrRefused = errors.New("gate message refused")

const (
	requestMagic = "CFQ1"
	replyMagic   = "CFA1"
	replyHead    = len(replyMagic) + 4
)

// Op is what the PAM module asks about.
type Op uint8

// The two questions: may this person pass the account phase, and may the session open.
const (
	OpAccount     Op = 1
	OpOpenSession Op = 2
)

func (o Op) String() string {
	switch o {
	case OpAccount:
		return "account"
	case OpOpenSession:
		return "open_session"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Verdict is the agent's answer. The zero Verdict is none of them and cannot be encoded, so a
// forgotten assignment denies.
type Verdict uint8

// The four answers; what PAM makes of them stands in section 4's second table.
const (
	Allow    Verdict = 1
	Deny     Verdict = 2
	Ignore   Verdict = 3
	TryAgain Verdict = 4
)

func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	case Ignore:
		return "ignore"
	case TryAgain:
		return "try again"
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// Request is one question of the PAM module. Service and User are never empty in a decoded
// request; the other strings are empty when PAM did not know them. UID is the real uid of the
// asking process as it reports it itself: the agent checks it against /proc. AuthInfo is
// sshd's SSH_AUTH_INFO_0, possibly cut in the middle of its last line.
type Request struct {
	Op       Op
	Service  string
	User     string
	RUser    string
	RHost    string
	TTY      string
	UID      uint32
	AuthInfo string
}

// The tags of section 4's first table.
const (
	tagService  = 1
	tagUser     = 2
	tagRUser    = 3
	tagRHost    = 4
	tagTTY      = 5
	tagUID      = 6
	tagAuthInfo = 7
)

// text returns where the text field of a tag is kept and its cap; nil for tagUID and unknown tags.
func (r *Request) text(tag uint8) (field *string, limit int) {
	switch tag {
	case tagService:
		return &r.Service, MaxService
	case tagUser:
		return &r.User, MaxUser
	case tagRUser:
		return &r.RUser, MaxRUser
	case tagRHost:
		return &r.RHost, MaxRHost
	case tagTTY:
		return &r.TTY, MaxTTY
	case tagAuthInfo:
		return &r.AuthInfo, MaxAuthInfo
	}
	return nil, 0
}

// Encode returns the one packet that says r. It refuses an unknown Op, an empty Service or User,
// and text that is over its cap or holds a control byte.
func (r Request) Encode() ([]byte, error) {
	if r.Op != OpAccount && r.Op != OpOpenSession {
		return nil, refusedf("unknown %v", r.Op)
	}
	b := append(make([]byte, 0, 256), requestMagic...)
	b = append(b, byte(r.Op), 0)
	count := byte(0)
	for tag := uint8(tagService); tag <= tagAuthInfo; tag++ {
		if tag == tagUID {
			b = append(b, tagUID, 4, 0)
			b = binary.LittleEndian.AppendUint32(b, r.UID)
			count++
			continue
		}
		field, limit := r.text(tag)
		if *field == "" {
			if tag == tagService || tag == tagUser {
				return nil, refusedf("field %d is required", tag)
			}
			continue
		}
		if err := checkText(tag, *field, limit); err != nil {
			return nil, err
		}
		b = append(b, tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(*field)))
		b = append(b, *field...)
		count++
	}
	b[5] = count
	return b, nil
}

// DecodeRequest parses one packet. It accepts exactly what [Request.Encode] writes and refuses
// everything else with an error that wraps [ErrRefused].
func DecodeRequest(b []byte) (Request, error) {
	var r Request
	if len(b) > MaxRequest {
		return Request{}, refusedf("%d bytes are over the cap of %d", len(b), MaxRequest)
	}
	if len(b) < 6 || string(b[:4]) != requestMagic {
		return Request{}, refusedf("no request")
	}
	r.Op = Op(b[4])
	if r.Op != OpAccount && r.Op != OpOpenSession {
		return Request{}, refusedf("unknown %v", r.Op)
	}
	count, rest := b[5], b[6:]
	sawUID, last := false, uint8(0)
	for range count {
		if len(rest) < 3 {
			return Request{}, refusedf("truncated")
		}
		tag, n := rest[0], int(binary.LittleEndian.Uint16(rest[1:]))
		rest = rest[3:]
		if n > len(rest) {
			return Request{}, refusedf("truncated in field %d", tag)
		}
		if tag <= last {
			return Request{}, refusedf("field %d after field %d", tag, last)
		}
		value := rest[:n]
		rest, last = rest[n:], tag
		if tag == tagUID {
			if n != 4 {
				return Request{}, refusedf("a uid of %d bytes", n)
			}
			r.UID, sawUID = binary.LittleEndian.Uint32(value), true
			continue
		}
		field, limit := r.text(tag)
		if field == nil {
			return Request{}, refusedf("unknown field %d", tag)
		}
		if n == 0 {
			return Request{}, refusedf("field %d is empty", tag)
		}
		*field = string(value)
		if err := checkText(tag, *field, limit); err != nil {
			return Request{}, err
		}
	}
	if len(rest) != 0 {
		return Request{}, refusedf("%d trailing bytes", len(rest))
	}
	if r.Service == "" || r.User == "" || !sawUID {
		return Request{}, refusedf("service, user and uid are required")
	}
	return r, nil
}

func checkText(tag uint8, s string, limit int) error {
	if len(s) > limit {
		return refusedf("field %d has %d bytes, the cap is %d", tag, len(s), limit)
	}
	for i := range len(s) {
		c := s[i]
		if (c < 0x20 && (tag != tagAuthInfo || c != '\n')) || c == 0x7f {
			return refusedf("control byte %#02x in field %d", c, tag)
		}
	}
	return nil
}

// Reply is the agent's answer. Text is one line for the person: what, why, what to type next.
type Reply struct {
	Verdict Verdict
	Text    string
}

// Encode returns the one packet that says r. Text must be within [MaxText], valid UTF-8 and free
// of control characters: pass text that others wrote through [CleanText] first.
func (r Reply) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, replyHead+len(r.Text)), replyMagic...)
	b = append(b, byte(r.Verdict), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.Text)))
	return append(b, r.Text...), nil
}

// DecodeReply parses one packet. It accepts exactly what [Reply.Encode] writes and refuses
// everything else with an error that wraps [ErrRefused].
func DecodeReply(b []byte) (Reply, error) {
	if len(b) > MaxReply {
		return Reply{}, refusedf("%d bytes are over the cap of %d", len(b), MaxReply)
	}
	if len(b) < replyHead || string(b[:4]) != replyMagic {
		return Reply{}, refusedf("no reply")
	}
	if b[5] != 0 {
		return Reply{}, refusedf("flags %#02x", b[5])
	}
	if n := int(binary.LittleEndian.Uint16(b[6:])); n != len(b)-replyHead {
		return Reply{}, refusedf("text of %d bytes in a packet that holds %d", n, len(b)-replyHead)
	}
	r := Reply{Verdict: Verdict(b[4]), Text: string(b[replyHead:])}
	if err := r.check(); err != nil {
		return Reply{}, err
	}
	return r, nil
}

func (r Reply) check() error {
	if r.Verdict < Allow || r.Verdict > TryAgain {
		return refusedf("unknown %v", r.Verdict)
	}
	if len(r.Text) > MaxText {
		return refusedf("text has %d bytes, the cap is %d", len(r.Text), MaxText)
	}
	if !utf8.ValidString(r.Text) {
		return refusedf("text is not UTF-8")
	}
	if i := strings.IndexFunc(r.Text, unicode.IsControl); i >= 0 {
		return refusedf("control character in the text at byte %d", i)
	}
	return nil
}

// CleanText makes any string fit for [Reply.Text]: what is not UTF-8, every control character
// and every character that can reorder or hide its neighbours (A19 in the threat model: a
// reason is written by whoever asks) becomes U+FFFD, and the rest is cut at [MaxText] bytes.
func CleanText(s string) string {
	var b strings.Builder
	for _, c := range s {
		if unicode.IsControl(c) || unicode.In(c, unicode.Cf, unicode.Zl, unicode.Zp) {
			c = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(c) > MaxText {
			break
		}
		b.WriteRune(c)
	}
	return b.String()
}

func refusedf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}
