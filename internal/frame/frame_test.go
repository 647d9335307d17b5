package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/curfew-access/curfew/internal/frame"
)

func TestFramesComeBackInOrder(t *testing.T) {
	var wire bytes.Buffer
	sent := [][]byte{{1}, bytes.Repeat([]byte("x"), 100_000), make([]byte, frame.Max)}
	for _, b := range sent {
		if err := frame.Write(&wire, b); err != nil {
			t.Fatal(err)
		}
	}
	r := iotest.HalfReader(&wire)
	for i, want := range sent {
		got, err := frame.Read(r, frame.Max)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("frame %d: %d bytes, %v; want %d bytes", i, len(got), err, len(want))
		}
	}
	if _, err := frame.Read(r, frame.Max); err != io.EOF {
		t.Fatalf("after the last frame: %v, want io.EOF itself", err)
	}
}

func TestWriteRefusesWhatReadWouldRefuse(t *testing.T) {
	for _, n := range []int{0, frame.Max + 1} {
		var wire bytes.Buffer
		if err := frame.Write(&wire, make([]byte, n)); !errors.Is(err, frame.ErrTooLong) {
			t.Errorf("writing %d bytes: %v, want ErrTooLong", n, err)
		}
		if wire.Len() != 0 {
			t.Errorf("writing %d bytes left %d bytes on the wire", n, wire.Len())
		}
	}
}

func TestReadRefuses(t *testing.T) {
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, c := range map[string]struct {
		wire  []byte
		limit int
		want  error
	}{
		"empty frame":            {length(0), frame.Max, frame.ErrTooLong},
		"over the caller's":      {append(length(5), "hello"...), 4, frame.ErrTooLong},
		"over the cap":           {length(frame.Max + 1), 1 << 30, frame.ErrTooLong},
		"largest number":         {length(1<<32 - 1), 1 << 30, frame.ErrTooLong},
		"cut in the length":      {length(5)[:3], frame.Max, io.ErrUnexpectedEOF},
		"cut before the body":    {length(5), frame.Max, io.ErrUnexpectedEOF},
		"cut in the body":        {append(length(5), "hell"...), frame.Max, io.ErrUnexpectedEOF},
		"cut in the second half": {append(length(70_000), make([]byte, 69_999)...), frame.Max, io.ErrUnexpectedEOF},
	} {
		if b, err := frame.Read(bytes.NewReader(c.wire), c.limit); !errors.Is(err, c.want) || b != nil {
			t.Errorf("%s: %d bytes, %v; want %v", name, len(b), err, c.want)
		}
	}
}

// A peer that announces a megabyte a thousand times and sends nothing must not cost a gigabyte.
func TestAnnouncedBytesCostNothing(t *testing.T) {
	head := binary.BigEndian.AppendUint32(nil, frame.Max)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		if _, err := frame.Read(bytes.NewReader(head), frame.Max); err == nil {
			t.Fatal("a frame without body was read")
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 200<<20 {
		t.Errorf("1000 announcements took %d MiB", got>>20)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x'}, 10)
	f.Add([]byte{0, 0, 0, 0}, 10)
	f.Add([]byte{0, 0, 0, 9, 'x'}, 4)
	f.Add([]byte{255, 255, 255, 255}, frame.Max)
	f.Fuzz(func(t *testing.T, wire []byte, limit int) {
		r := bytes.NewReader(wire)
		for {
			rest := r.Len()
			b, err := frame.Read(r, limit)
			if err != nil {
				if b != nil {
					t.Fatalf("bytes with an error: %v", err)
				}
				if (err == io.EOF) != (rest == 0) {
					t.Fatalf("%v with %d bytes left", err, rest)
				}
				return
			}
			if len(b) == 0 || len(b) > limit || len(b) > frame.Max {
				t.Fatalf("a frame of %d bytes passed the limit %d", len(b), limit)
			}
			var again bytes.Buffer
			if err := frame.Write(&again, b); err != nil {
				t.Fatal(err)
			}
			at := len(wire) - rest
			if !bytes.Equal(again.Bytes(), wire[at:at+again.Len()]) {
				t.Fatal("a frame that was read is written differently")
			}
		}
	})
}
