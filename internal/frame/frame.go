// Package frame cuts a byte stream into bounded messages: a big-endian uint32 length, then that
// many bytes. It is the language of the link socket (PROTOCOL.md section 3), spoken by both halves
// of the agent, so it knows nothing of gRPC and imports the standard library alone.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Max is the length in bytes that no frame exceeds.
const Max = 1 << 20

// chunk bounds what one Read takes in advance: a peer that announces a long frame and sends nothing
// costs this much memory and no more.
const chunk = 32 << 10

// ErrTooLong means that a frame is empty or longer than the cap. The stream is of no use
// afterwards.
var ErrTooLong = errors.New("frame is empty or over its limit")

// Write sends b as one frame in one call of w.Write. It fails with ErrTooLong when b is empty or
// longer than Max, and then writes nothing.
func Write(w io.Writer, b []byte) error {
	if len(b) == 0 || len(b) > Max {
		return fmt.Errorf("writing %d bytes: %w", len(b), ErrTooLong)
	}
	buf := make([]byte, 4+len(b))
	binary.BigEndian.PutUint32(buf, uint32(len(b)))
	copy(buf[4:], b)
	if _, err := w.Write(buf); err != nil {
		return fmt.Errorf("writing a frame: %w", err)
	}
	return nil
}

// Read returns the next frame of 1 to limit bytes. The error is io.EOF exactly when the stream
// ended between two frames, io.ErrUnexpectedEOF when it ended inside one, ErrTooLong when the
// length is out of bounds.
func Read(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("reading a frame's length: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || int64(n) > int64(min(limit, Max)) {
		return nil, fmt.Errorf("reading %d bytes: %w", n, ErrTooLong)
	}
	return readBody(r, int(n))
}

// readBody grows with what really arrives, not with what the peer announced.
func readBody(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, 0, min(n, chunk))
	for len(b) < n {
		at := len(b)
		step := min(n-at, max(at, chunk))
		b = append(b, make([]byte, step)...)
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("reading a frame of %d bytes: %w", n, err)
		}
	}
	return b, nil
}
