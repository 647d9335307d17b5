package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// connectOnce is one connection from its beginning to its end: control plane first, then the root
// half, then frames both ways until either side closes, and then both are closed.
func (l *Link) connectOnce(ctx context.Context) error {
	conn, err := l.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := l.awaitReady(ctx, conn); err != nil {
		return err
	}
	var dialer net.Dialer
	sock, err := dialer.DialContext(ctx, "unix", l.socket)
	if err != nil {
		return fmt.Errorf("reaching the root half: %w", err)
	}
	defer sock.Close()
	return l.relay(ctx, conn, sock)
}

func (l *Link) dial() (*grpc.ClientConn, error) {
	return dialServer(l.server, l.id.tls(l.now), l.timing, func() { l.reached.Store(true) })
}

// dialServer makes a connection that fails for good instead of reconnecting by itself: the caller
// owns the backoff. It calls reached when the server's address has answered.
func dialServer(
	server string, config *tls.Config, t Timing, reached func(),
) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+server,
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := dialTCP(ctx, address, t.Unreached)
			if err == nil {
				reached()
			}
			return conn, err
		}),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: t.Ping, Timeout: t.PingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(frame.Max), grpc.MaxCallSendMsgSize(frame.Max)),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("preparing a connection to %s: %w", server, err)
	}
	return conn, nil
}

// dialTCP tries each address of a server for a short time. The kernel repeats what was lost on the
// way at ever longer intervals, which is too slow when the network has just come back.
func dialTCP(ctx context.Context, server string, each time.Duration) (net.Conn, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		return nil, err
	}
	// Looking a name up takes longer where the first name server is down.
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: each}
	var failed []error
	for _, a := range addresses {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(a, port))
		if err == nil {
			return conn, nil
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// awaitReady connects, once.
func (l *Link) awaitReady(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, l.timing.Connect)
	defer cancel()
	conn.Connect()
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return l.whyNot(ctx, conn)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connecting to the control plane at %s: %w", l.server, ctx.Err())
		}
	}
}

// whyNot asks gRPC for the reason of a failed connection: only a call carries it.
func (l *Link) whyNot(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := apiv1.NewHostLinkClient(conn).Connect(ctx)
	if err == nil {
		err = errors.New("the connection failed")
	}
	return fmt.Errorf("connecting to the control plane at %s: %w", l.server, err)
}

// relay carries frames until one side ends, and returns why.
func (l *Link) relay(ctx context.Context, conn *grpc.ClientConn, sock net.Conn) error {
	group, ctx := errgroup.WithContext(ctx)
	stream, err := conn.NewStream(ctx, &apiv1.HostLink_ServiceDesc.Streams[0],
		apiv1.HostLink_Connect_FullMethodName, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return fmt.Errorf("opening the stream: %w", err)
	}
	l.log.Info("connected", "server", l.server)
	l.tell("STATUS=connected to " + l.server)
	// Closing the socket wakes the reader that waits in it.
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	defer stop()
	group.Go(func() error { return l.up(sock, stream) })
	group.Go(func() error { return l.down(sock, stream) })
	group.Go(func() error {
		if err := l.learnAuthorities(ctx, conn); err != nil && ctx.Err() == nil {
			l.log.Warn("the control plane's CAs are not known afresh", "error", err)
		}
		return nil
	})
	return group.Wait()
}

// up carries the root half's frames to the control plane.
func (l *Link) up(sock net.Conn, stream grpc.ClientStream) error {
	for {
		b, err := frame.Read(sock, frame.Max)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("it closed the socket")
			}
			return fmt.Errorf("root half: %w", err)
		}
		if err := stream.SendMsg(raw(b)); err != nil {
			return streamEnd(stream, err)
		}
		l.gauges.messages.WithLabelValues("up").Inc()
	}
}

// down carries the control plane's messages to the root half.
func (l *Link) down(sock net.Conn, stream grpc.ClientStream) error {
	for {
		var b raw
		if err := stream.RecvMsg(&b); err != nil {
			return streamEnd(stream, err)
		}
		l.carried.Store(true)
		l.gauges.connected.Set(1)
		l.gauges.messages.WithLabelValues("down").Inc()
		if len(b) == 0 { // an empty message says nothing, and a frame is never empty
			continue
		}
		if err := sock.SetWriteDeadline(time.Now().Add(l.timing.Write)); err != nil {
			return fmt.Errorf("root half: %w", err)
		}
		if err := frame.Write(sock, b); err != nil {
			return fmt.Errorf("root half: %w", err)
		}
	}
}

// streamEnd returns the status with which the control plane ended the stream: after a failed send,
// io.EOF stands for it, and only a receive tells it.
func streamEnd(stream grpc.ClientStream, err error) error {
	if errors.Is(err, io.EOF) {
		var b raw
		for err = stream.RecvMsg(&b); err == nil; err = stream.RecvMsg(&b) {
		}
		if errors.Is(err, io.EOF) {
			return errors.New("the control plane ended the stream")
		}
	}
	return fmt.Errorf("control plane: %w", err)
}

// raw is a message as it came: the link parses nothing.
type raw []byte

// rawCodec passes bytes through gRPC. Its name is that of the encoding which they are in.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(raw)
	if !ok {
		return nil, fmt.Errorf("relaying a %T", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*raw)
	if !ok {
		return fmt.Errorf("relaying into a %T", v)
	}
	// gRPC takes its buffer back after this call.
	*b = append(raw(nil), data...)
	return nil
}

// tls is the client's side of the mutual TLS: the pinned CAs, and the newest certificate each time.
func (i *identity) tls(now func() time.Time) *tls.Config {
	cas := i.authorities()
	config := join.ClientTLS(cas[0], now, cas[1:]...)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return i.certificate(), nil
	}
	return config
}

func newPool(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool
}
