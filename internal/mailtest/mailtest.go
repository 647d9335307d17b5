// Package mailtest is a real SMTP server on loopback for tests, with TLS of its own CA.
package mailtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Mail is one that was delivered.
type Mail struct {
	From string
	To   []string
	Data string
}

// Options of a server. The zero value offers STARTTLS and wants no password.
type Options struct {
	Implicit           bool
	NoTLS              bool   // offers none: nothing may be sent to it
	Username, Password string // empty: nobody need say who they are
	// Refuse says whether a recipient is refused now.
	Refuse func(to string) error
}

// Server is a running one.
type Server struct {
	Addr string
	CAs  []byte // PEM

	options Options
	got     func(Mail) // takes what is delivered; nil keeps it
	mu      sync.Mutex // guards mails
	mails   []Mail
}

// Start starts a server that ends with the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	cert, cas, err := Certificate("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: listener.Addr().String(), CAs: cas, options: o}
	server := s.over(&listener, cert)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(listener) // ends with Close below
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return s
}

// Serve takes mail on a listener until it fails, and hands each one to got.
func Serve(l net.Listener, cert tls.Certificate, got func(Mail)) error {
	s := &Server{got: got}
	return s.over(&l, cert).Serve(l)
}

func (s *Server) over(l *net.Listener, cert tls.Certificate) *smtp.Server {
	server := smtp.NewServer(s)
	server.Domain, server.MaxRecipients = "mail.test", 1
	server.ErrorLog = quiet{}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if !s.options.NoTLS {
		server.TLSConfig = config
	}
	if s.options.Implicit {
		*l = tls.NewListener(*l, config)
	}
	return server
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

// Certificate makes one for a name or an address that is its own CA, in PEM.
func Certificate(name string) (cert tls.Certificate, ca []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return cert, nil, err
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, ca, nil
}

// Mails are those that were delivered.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Mail{}, s.mails...)
}

// NewSession implements smtp.Backend.
func (s *Server) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{server: s, conn: c, known: s.options.Username == ""}, nil
}

type session struct {
	server *Server
	conn   *smtp.Conn
	known  bool
	mail   Mail
}

// AuthMechanisms implements smtp.AuthSession.
func (x *session) AuthMechanisms() []string {
	if x.server.options.Username == "" {
		return nil
	}
	return []string{sasl.Plain}
}

// Auth implements smtp.AuthSession.
func (x *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, username, password string) error {
		o := x.server.options
		if username != o.Username || password != o.Password {
			return smtp.ErrAuthFailed
		}
		x.known = true
		return nil
	}), nil
}

func (x *session) Mail(from string, _ *smtp.MailOptions) error {
	if !x.known {
		return smtp.ErrAuthRequired
	}
	if _, secret := x.conn.TLSConnectionState(); !secret && !x.server.options.NoTLS {
		return errors.New("not without TLS")
	}
	x.mail = Mail{From: from}
	return nil
}

func (x *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if x.server.options.Refuse != nil {
		if err := x.server.options.Refuse(to); err != nil {
			return err
		}
	}
	x.mail.To = append(x.mail.To, to)
	return nil
}

func (x *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	x.mail.Data = string(data)
	if x.server.got != nil {
		x.server.got(x.mail)
		return nil
	}
	x.server.mu.Lock()
	defer x.server.mu.Unlock()
	x.server.mails = append(x.server.mails, x.mail)
	return nil
}

func (x *session) Reset()        {}
func (x *session) Logout() error { return nil }
