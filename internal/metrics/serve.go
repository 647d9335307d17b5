package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	maxRequest    = 8 << 10
	maxAtATime    = 8
	perConnection = 10 * time.Second
	perAnswer     = 5 * time.Second
)

// ContentType is Prometheus' text format.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Answer is what a path is answered with: the page, or an error that says why it is not well (503).
type Answer func(context.Context) (string, error)

// Serve answers GET for each path until ctx ends, one question a connection. It closes the listener.
func Serve(ctx context.Context, l net.Listener, paths map[string]Answer) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // wakes Accept
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	places := make(chan struct{}, maxAtATime)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serving metrics: %w", err)
		case err != nil:
			select { // out of descriptors, most likely
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case places <- struct{}{}:
			serving.Go(func() {
				defer func() { <-places }()
				defer func() { _ = conn.Close() }()
				answer(ctx, conn, paths)
			})
		default:
			_ = conn.Close() // whoever asks this often can wait for its next time
		}
	}
}

func answer(ctx context.Context, conn net.Conn, paths map[string]Answer) {
	if conn.SetDeadline(time.Now().Add(perConnection)) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	status, body := ask(ctx, bufio.NewReader(io.LimitReader(conn, maxRequest)), paths)
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n"+
		"Connection: close\r\n\r\n%s", status, ContentType, len(body), body) // who asked is gone, or not
}

func ask(ctx context.Context, r *bufio.Reader, paths map[string]Answer) (status, body string) {
	first, err := r.ReadString('\n')
	for line := first; err == nil && strings.TrimSpace(line) != ""; {
		line, err = r.ReadString('\n')
	}
	fields := strings.Fields(first)
	if err != nil || len(fields) != 3 || !strings.HasPrefix(fields[2], "HTTP/1.") {
		return "400 Bad Request", "this is an HTTP socket\n"
	}
	path, _, _ := strings.Cut(fields[1], "?")
	f, ok := paths[path]
	switch {
	case fields[0] != "GET":
		return "405 Method Not Allowed", "only GET\n"
	case !ok:
		return "404 Not Found", "there is /metrics, /healthz and /readyz\n"
	}
	ctx, cancel := context.WithTimeout(ctx, perAnswer)
	defer cancel()
	if body, err = f(ctx); err != nil {
		return "503 Service Unavailable", err.Error() + "\n"
	}
	return "200 OK", body
}
