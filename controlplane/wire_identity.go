package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/curfew-access/curfew/controlplane/enrol/cloud"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/oidc"
	"github.com/curfew-access/curfew/controlplane/scim"
)

// federation builds what signs people and pipelines in by their issuers.
func (s *Server) federation(now func() time.Time) (
	f identity.Federation, pipelines *oidc.Pipelines, err error,
) {
	client, err := s.issuerClient()
	if err != nil {
		return f, nil, err
	}
	f = identity.Federation{Names: s.config.LoginNames, GroupPrefix: s.config.GroupPrefix}
	pipelines = oidc.NewPipelines(client, now)
	o := s.config.OIDC
	if o == nil {
		return f, pipelines, nil
	}
	secret := ""
	if o.SecretFile != "" {
		if secret, err = notify.LoadPassword(o.SecretFile); err != nil {
			return f, nil, fmt.Errorf("oidc.client_secret_file: %w", err)
		}
	}
	provider, err := oidc.New(oidc.Config{
		Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: secret, Scopes: o.Scopes,
		Audiences: o.Audiences, Claims: o.Claims, Device: o.DeviceFlow, RedirectPort: o.RedirectPort,
		HTTP: client, Now: now,
	})
	if err != nil {
		return f, nil, err
	}
	box, err := openSealbox(s.config.DataDir)
	if err != nil {
		return f, nil, err
	}
	f.Provider, f.Sealer = provider, box
	f.CreateUsers, f.DeprovisionAfter = o.CreateUsers, o.DeprovisionAfter
	return f, pipelines, nil
}

// issuerClient reaches whoever signs tokens for others.
func (s *Server) issuerClient() (*http.Client, error) {
	var cas []byte
	if s.config.IssuerCAFile != "" {
		var err error
		if cas, err = readSmall(s.config.IssuerCAFile); err != nil {
			return nil, fmt.Errorf("issuer_ca_file: %w", err)
		}
	}
	return oidc.NewClient(cas)
}

// instances builds what admits machines by their cloud's word; nil admits none.
func (s *Server) instances() (*cloud.Verifier, error) {
	client, err := s.issuerClient()
	if err != nil {
		return nil, err
	}
	return s.config.CloudJoin.verifier(client)
}

const maxSmallFile = 1 << 20

func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSmallFile+1))
	if err == nil && len(data) > maxSmallFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxSmallFile)
	}
	return data, err
}

// mailer is where mail goes out, with its password read; nil for none.
func (c *Config) mailer() (*notify.Mail, error) {
	if c.Mail == nil {
		return nil, nil
	}
	m := *c.Mail
	var err error
	if c.MailPasswordFile != "" {
		if m.Password, err = notify.LoadPassword(c.MailPasswordFile); err != nil {
			return nil, fmt.Errorf("mail.password_file: %w", err)
		}
	}
	if c.MailCAFile != "" {
		if m.CAs, err = readSmall(c.MailCAFile); err != nil {
			return nil, fmt.Errorf("mail.ca_file: %w", err)
		}
	}
	return &m, nil
}

// Limits of the SCIM port on how long a client may take.
const (
	scimHeaderTime = 5 * time.Second
	scimReadTime   = 30 * time.Second
	scimWriteTime  = time.Minute
	scimIdleTime   = 2 * time.Minute
)

// listenSCIM opens the SCIM port; nothing is served before Run.
func (s *Server) listenSCIM(now func() time.Time) error {
	c := s.config.SCIM
	if c == nil {
		return nil
	}
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("scim: %w", err)
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return errors.Join(fmt.Errorf("scim: %w", err), listener.Close())
		}
		listener = tls.NewListener(listener,
			&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	s.scimListener = listener
	s.scim = &http.Server{
		Handler:           scim.New(s.access, now, s.log.Named("scim")),
		ReadHeaderTimeout: scimHeaderTime, ReadTimeout: scimReadTime, WriteTimeout: scimWriteTime,
		IdleTimeout: scimIdleTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: s.log.Named("scim").StandardLogger(nil),
	}
	return nil
}

// SCIMAddr is where SCIM is served; nil when it is not.
func (s *Server) SCIMAddr() net.Addr {
	if s.scimListener == nil {
		return nil
	}
	return s.scimListener.Addr()
}

// serveSCIM serves until ctx ends.
func (s *Server) serveSCIM(ctx context.Context) error {
	if s.scim == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.Background(), drainTime)
		defer cancel()
		if err := s.scim.Shutdown(drain); err != nil {
			s.log.Warn("a SCIM call was cut off", "error", err)
		}
	}()
	err := s.scim.Serve(s.scimListener)
	if ctx.Err() == nil {
		return fmt.Errorf("serving SCIM: %w", err)
	}
	<-done
	return nil
}
