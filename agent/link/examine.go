package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"
)

// Examined is what a look at the link's way to the control plane found.
type Examined struct {
	// Server is the address that Join wrote.
	Server string
	// Unreached says why no TLS connection could be made: no route, no answer, another CA's server. Nil
	// when one was.
	Unreached error
	// ServerUntil, Until and CAUntil are when the certificates of the control plane, of this host and of
	// their CA end.
	ServerUntil, Until, CAUntil time.Time
	// Overdue: the host's certificate should have been renewed and was not.
	Overdue bool
}

// Examine connects once to the control plane, as the link half does, and says nothing there. An error
// means that this machine has not joined, or that what Join wrote is damaged.
func Examine(ctx context.Context, directory string, now func() time.Time) (Examined, error) {
	id, err := loadIdentity(directory)
	if err != nil {
		return Examined{}, fmt.Errorf("reading the identity of this host from %s: %w", directory, err)
	}
	e := Examined{
		Server: id.settings.Server, Until: id.certificate().Leaf.NotAfter, CAUntil: id.authorities()[0].NotAfter,
	}
	// A renewal is tried every minute from two thirds of the life on; half a day more says that it fails.
	e.Overdue = id.overdue(now().Add(-12 * time.Hour))
	timing := Timing{}.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, timing.Connect)
	defer cancel()
	raw, err := dialTCP(ctx, e.Server, timing.Unreached)
	if err != nil {
		e.Unreached = fmt.Errorf("connecting to %s: %w", e.Server, err)
		return e, nil
	}
	config := id.tls(now)
	config.NextProtos = []string{"h2"} // as gRPC has it
	conn := tls.Client(raw, config)
	defer func() { _ = conn.Close() }() // nothing was said
	if err := conn.HandshakeContext(ctx); err != nil {
		e.Unreached = fmt.Errorf("speaking TLS with %s: %w", e.Server, err)
		return e, nil
	}
	e.ServerUntil = conn.ConnectionState().PeerCertificates[0].NotAfter
	return e, nil
}
