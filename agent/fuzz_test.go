package agent

import (
	"bytes"
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/frame"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// socketPair is a connection of the link socket's kind, both ends.
func socketPair(t testing.TB) (root, link *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "link.sock")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close() // FileConn has its own
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func frames(t testing.TB, messages ...proto.Message) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := frame.Write(&out, b); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// FuzzLinkStream is a link half that somebody else took over: it says whatever it likes to root,
// in pieces of any length. Root takes the whole messages before the first broken one, in their
// order and nothing after it, and the connection ends.
func FuzzLinkStream(f *testing.F) {
	welcome := &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Welcome{
		Welcome: &curfewv1.Welcome{HostName: "web1", EventCount: 3},
	}}
	refused := &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Refused{
		Refused: &curfewv1.Refused{Reason: "a clone"},
	}}
	grants := &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Grant{
		Grant: &curfewv1.GrantEnvelope{Envelope: []byte("{}")},
	}}
	f.Add(frames(f, welcome, grants, refused), uint16(1))
	f.Add(frames(f, welcome, welcome, refused), uint16(7))
	f.Add(append(frames(f, welcome), 0, 0, 0, 0), uint16(100))
	f.Add(append(frames(f, refused), 0, 0, 0, 3, 0xff, 0xff, 0xff, 0, 0, 0, 1), uint16(3))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint16(4))
	f.Fuzz(func(t *testing.T, wire []byte, piece uint16) {
		root, link := socketPair(t)
		defer link.Close()
		var got []*curfewv1.ControlMessage
		u := &uplink{log: hclog.NewNullLogger(), deliver: func(_ context.Context,
			m *curfewv1.ControlMessage,
		) error {
			got = append(got, m)
			return nil
		}}
		c := &connection{conn: root, welcomed: make(chan uint64, 1)}
		done := make(chan error, 1)
		go func() {
			err := u.read(context.Background(), c)
			_ = root.Close() // as run does, which frees a link that still writes
			done <- err
		}()
		for at := 0; at < len(wire); {
			n := min(len(wire)-at, max(1, int(piece)))
			if _, err := link.Write(wire[at : at+n]); err != nil {
				break // it has hung up
			}
			at += n
		}
		_ = link.Close()
		select {
		case err := <-done:
			if err == nil {
				t.Error("the connection ends without a reason")
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it goes on reading after the end")
		}
		want := readAll(wire)
		if len(got) != len(want) {
			t.Fatalf("%d messages are taken, %d are whole", len(got), len(want))
		}
		for i := range want {
			if !proto.Equal(got[i], want[i]) {
				t.Errorf("message %d is taken as %v, it says %v", i, got[i], want[i])
			}
		}
	})
}

// readAll is what section 3 of PROTOCOL.md says of a stream: a length and a body, until one is
// broken, too long, empty, or a second welcome.
func readAll(wire []byte) (out []*curfewv1.ControlMessage) {
	welcomed := false
	for len(wire) >= 4 {
		n := int64(wire[0])<<24 | int64(wire[1])<<16 | int64(wire[2])<<8 | int64(wire[3])
		wire = wire[4:]
		m := new(curfewv1.ControlMessage)
		if n < 1 || n > 1<<20 || n > int64(len(wire)) || proto.Unmarshal(wire[:n], m) != nil {
			return out
		}
		wire = wire[n:]
		if m.GetWelcome() != nil {
			if welcomed {
				return out
			}
			welcomed = true
		}
		out = append(out, m)
	}
	return out
}
