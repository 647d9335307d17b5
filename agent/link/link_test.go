package link_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/pace"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func upMessage(n byte, size int) *curfewv1.SignedHostMessage {
	return &curfewv1.SignedHostMessage{
		Body: bytes.Repeat([]byte{n}, size), Signature: bytes.Repeat([]byte{n}, 64),
	}
}

func downMessage(n uint64) *curfewv1.ControlMessage {
	return &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_EventAck{
		EventAck: &curfewv1.EventAck{Count: n},
	}}
}

func readFrame(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b, err := frame.Read(conn, frame.Max)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFramesAreRelayedAsTheyAre(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	c.run(c.joined(), r, nil)
	root := r.accept()
	written := make(chan error, 1)
	go func() { // the root half begins
		var err error
		for n := byte(0); n < 20 && err == nil; n++ {
			err = frame.Write(root, encode(t, upMessage(n+1, 1+int(n)*40_000)))
		}
		written <- err
	}()
	s := c.accept()
	for n := range byte(20) {
		got, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, upMessage(n+1, 1+int(n)*40_000)) {
			t.Fatalf("message %d came altered", n)
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	for n := range uint64(100) {
		if err := s.Send(downMessage(n + 1)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(100) {
		if got := readFrame(t, root); !bytes.Equal(got, encode(t, downMessage(n+1))) {
			t.Fatalf("message %d came altered: %x", n, got)
		}
	}
}

// When either side closes, the link closes the other, and begins again.
func TestEitherEndEndsBoth(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	c.run(c.joined(), r, nil)
	root, s := r.accept(), c.accept()
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err == nil {
		t.Error("the stream outlives the root half's socket")
	}
	root, s = r.accept(), c.accept()
	s.end <- status.Error(codes.PermissionDenied, "a cloned image")
	if err := root.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the socket outlives the stream: %v", err)
	}
	r.accept()
	c.accept()
}

// Garbage from the root half's side costs that connection and nothing else.
func TestGarbageFromTheRootHalf(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	c.run(c.joined(), r, nil)
	for name, garbage := range map[string][]byte{
		"too long":    binary.BigEndian.AppendUint32(nil, frame.Max+1),
		"empty":       binary.BigEndian.AppendUint32(nil, 0),
		"no protocol": append(binary.BigEndian.AppendUint32(nil, 5), "hello"...),
		"text":        []byte("GET / HTTP/1.1\r\n\r\n"),
	} {
		root, s := r.accept(), c.accept()
		if _, err := root.Write(garbage); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err == nil {
			t.Errorf("%s: it came through as a message", name)
		} else {
			s.end <- err
		}
		if err := root.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		// What it left unread may turn the end into a reset.
		if _, err := io.Copy(io.Discard, root); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the link keeps the connection: %v", name, err)
		}
	}
	root, s := r.accept(), c.accept()
	if err := frame.Write(root, encode(t, upMessage(1, 10))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Errorf("after the garbage: %v", err)
	}
}

// What the control plane sends is bounded, and the root half gets what it does not understand too:
// only it may judge.
func TestBytesFromTheControlPlane(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	c.run(c.joined(), r, nil)
	root, s := r.accept(), c.accept()
	unknown := &curfewv1.ControlMessage{}
	if err := proto.Unmarshal([]byte{0xfa, 0x3f, 1, 'x'}, unknown); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&curfewv1.ControlMessage{}); err != nil { // empty: no frame
		t.Fatal(err)
	}
	if err := s.Send(unknown); err != nil {
		t.Fatal(err)
	}
	if got := readFrame(t, root); !bytes.Equal(got, []byte{0xfa, 0x3f, 1, 'x'}) {
		t.Errorf("the root half gets %x", got)
	}
	big := &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Trust{
		Trust: &curfewv1.TrustUpdate{Envelope: make([]byte, 2<<20)},
	}}
	if err := s.Send(big); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, root); err != nil {
		t.Errorf("after two megabytes: %v", err)
	}
	r.accept()
	c.accept()
}

// A root half that takes nothing does not make the link's memory grow: the connection ends.
func TestARootHalfThatTakesNothing(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	c.run(c.joined(), r, func(config *link.Config) {
		config.Timing.Write = 300 * time.Millisecond
	})
	r.accept() // and never reads
	s := c.accept()
	message := &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Trust{
		Trust: &curfewv1.TrustUpdate{Envelope: make([]byte, 512<<10)},
	}}
	var sent atomic.Int64
	for s.Send(message) == nil {
		if sent.Add(1) > 200 {
			t.Fatal("100 MiB went into a socket that nobody reads")
		}
	}
	r.accept()
}

// The control plane goes and comes back; so does the root half. The link waits and connects.
func TestConnectsAgain(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	c.run(c.joined(), r, nil)
	root := r.accept()
	c.accept()
	c.server.Stop()
	if _, err := root.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the control plane is gone, the socket says %v", err)
	}
	c.listen(c.address)
	root = r.accept()
	s := c.accept()
	if err := r.listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err == nil {
		t.Error("the stream outlives the root half")
	}
	r.listen()
	r.accept()
	c.accept()
}

func TestBackoffNeverStormsNorSleeps(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	dir := c.joined()
	c.run(dir, r, func(config *link.Config) {
		config.Timing = link.Timing{
			MinBackoff: 20 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
		}
	})
	streams := 0
	for end := time.After(2 * time.Second); ; {
		select {
		case s := <-c.streams:
			streams++
			s.end <- status.Error(codes.PermissionDenied, "refused")
			continue
		case <-end:
		}
		break
	}
	// Pauses are drawn below 100 ms; 50 ms on average.
	if streams < 10 || streams > 150 {
		t.Errorf("%d connections in 2 s", streams)
	}
}

func TestRunStopsWhileItWaits(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	dir := c.joined()
	c.server.Stop()
	stop := c.run(dir, r, func(config *link.Config) { config.Timing = link.Timing{} })
	time.Sleep(100 * time.Millisecond)
	start := pace.Start()
	stop()
	if d := start.Elapsed(); d > 2*time.Second {
		t.Errorf("stopping took %s", d)
	}
}

// systemd hears READY at once and STATUS as things change.
func TestTellsSystemd(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	path := t.TempDir() + "/notify"
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "100000")
	t.Setenv("WATCHDOG_PID", "")
	if err := os.Unsetenv("WATCHDOG_PID"); err != nil {
		t.Fatal(err)
	}
	stop := c.run(c.joined(), r, nil)
	r.accept()
	c.accept()
	want := map[string]bool{
		"READY=1": true, "WATCHDOG=1": true, "STATUS=connected to " + c.address: true,
	}
	buf := make([]byte, 1024)
	for len(want) > 0 {
		if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := notify.Read(buf)
		if err != nil {
			t.Fatalf("systemd never heard %v: %v", want, err)
		}
		delete(want, string(buf[:n]))
	}
	stop()
}
