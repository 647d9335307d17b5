package link

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// JoinConfig is what Join needs to make this machine a host.
type JoinConfig struct {
	// Server is the control plane's host:port, Token the one-use invitation.
	Server, Token string
	// Cloud is aws, gcp or azure, whose word for this instance takes the token's place. CAPin is then the
	// control plane's, which otherwise the token carries.
	Cloud string
	CAPin [sha256.Size]byte
	// Metadata is where the instance's metadata service listens; empty takes MetadataURL.
	Metadata string
	// Name is the host's name; empty takes the token's or the instance's. Address is where ssh reaches the host;
	// empty takes the name.
	Name, Address string
	Labels        map[string]string
	// SSHHostKeys are the contents of /etc/ssh/ssh_host_*_key.pub, one key each. Keys that the
	// control plane would refuse (DSA, short RSA) are left out.
	SSHHostKeys []string
	// RootKey is the root half's key, made by the caller, who has stored it durably.
	RootKey      ed25519.PrivateKey
	AgentVersion string
	// MachineID overrides the path of that name.
	MachineID string
	// Directory is made when it is absent and gets the link's files, owned by UID and GID (-1: the
	// caller's).
	Directory string
	UID, GID  int
	Now       func() time.Time
	// Timing overrides the defaults; its zero value takes all of them.
	Timing Timing
}

// Joined is what enrolment gave.
type Joined struct {
	// HostID is hex.
	HostID             string
	Name, Organisation string
	// TrustEnvelope is the first trust version, for the root half's ledger.
	TrustEnvelope []byte
}

// ErrJoined means that the folder holds an identity already.
var ErrJoined = errors.New("this machine has joined a control plane already; " +
	"to join anew, have the host removed there and delete the agent's state here")

// Join enrols this machine: it makes the link's key, proves the root half's key to the control
// plane that is pinned, and writes the link's files. link.json is written last: until then
// the machine has not joined. It runs once, as root.
func Join(ctx context.Context, c JoinConfig) (*Joined, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Cloud == "" {
		token, err := join.ParseToken(c.Token)
		if err != nil {
			return nil, err
		}
		c.CAPin = token.Pin
	}
	if err := c.prepareFolder(); err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("drawing the link's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the link's key: %w", err)
	}
	// The key is on the disk before the token is spent.
	if err := c.write(keyFile, pemOf("PRIVATE KEY", der), 0o600); err != nil {
		return nil, err
	}
	resp, err := c.enrol(ctx, key)
	if err != nil {
		return nil, err
	}
	return c.keep(resp, key)
}

func (c *JoinConfig) check() error {
	switch {
	case c.Directory == "" || c.Now == nil:
		return errors.New("joining: folder or clock is missing")
	case len(c.RootKey) != ed25519.PrivateKeySize:
		return errors.New("joining: the root half's key is missing")
	case c.Cloud != "" && c.Token != "":
		return errors.New("joining: a token and a cloud's word: want one of them")
	case c.Cloud != "" && c.CAPin == [sha256.Size]byte{}:
		return errors.New("joining by a cloud's word: the pin of the control plane's CA is missing")
	}
	if _, _, err := net.SplitHostPort(c.Server); err != nil {
		return fmt.Errorf("address of the control plane %q: want host:port", c.Server)
	}
	c.Timing, c.MachineID = c.Timing.withDefaults(), cmp.Or(c.MachineID, MachineID)
	return nil
}

func (c *JoinConfig) prepareFolder() error {
	if err := os.MkdirAll(c.Directory, 0o700); err != nil {
		return fmt.Errorf("making the link's folder: %w", err)
	}
	if err := os.Chown(c.Directory, c.UID, c.GID); err != nil {
		return fmt.Errorf("giving the link's folder to its user: %w", err)
	}
	_, err := os.Stat(filepath.Join(c.Directory, settingsFile))
	if err == nil {
		return ErrJoined
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking into the link's folder: %w", err)
	}
	return nil
}

func (c *JoinConfig) write(name string, data []byte, mode os.FileMode) error {
	return writeFile(filepath.Join(c.Directory, name), data, mode, c.UID, c.GID)
}

// enrol makes the one call, on a connection whose CA is the one that is pinned.
func (c *JoinConfig) enrol(ctx context.Context, key ed25519.PrivateKey) (*apiv1.EnrolResponse, error) {
	req, err := c.request(ctx, key)
	if err != nil {
		return nil, err
	}
	conn, err := dialServer(c.Server, join.PinnedTLS(c.CAPin, c.Now, nil), c.Timing, func() {})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, c.Timing.Connect)
	defer cancel()
	resp, err := apiv1.NewEnrolmentClient(conn).Enrol(ctx, req)
	if err != nil {
		return nil, enrolError(err)
	}
	return resp, nil
}

func (c *JoinConfig) request(ctx context.Context, key ed25519.PrivateKey) (*apiv1.EnrolRequest, error) {
	csr, err := certificateRequest(key)
	if err != nil {
		return nil, err
	}
	pub, ok := c.RootKey.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("joining: the root half's key is not Ed25519")
	}
	req := &apiv1.EnrolRequest{
		Token: c.Token, RootPublicKey: pub, Csr: csr,
		Name: c.Name, Address: c.Address, SshHostKeys: usableKeys(c.SSHHostKeys),
		Labels: c.Labels, AgentVersion: c.AgentVersion,
	}
	message := join.Message(c.Token, csr)
	if c.Cloud != "" {
		document, err := newMetadata(c.Metadata).document(ctx, c.Cloud, join.CloudBinding(c.CAPin, pub))
		if err != nil {
			return nil, err
		}
		req.Cloud = &apiv1.CloudIdentity{Provider: c.Cloud, Document: document}
		message = join.CloudMessage(c.CAPin, c.Cloud, document, csr)
	}
	req.Signature = ed25519.Sign(c.RootKey, message)
	return req, nil
}

// keep checks what came and writes it, link.json last.
func (c *JoinConfig) keep(
	resp *apiv1.EnrolResponse, key ed25519.PrivateKey,
) (*Joined, error) {
	ca, err := x509.ParseCertificate(resp.GetCaCertificate())
	if err != nil || join.Pin(ca.Raw) != c.CAPin {
		return nil, errors.New("the control plane sent another CA than the one that is pinned")
	}
	cert, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return nil, fmt.Errorf("the certificate from the control plane does not parse: %w", err)
	}
	pub, ok := c.RootKey.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("joining: the root half's key is not Ed25519")
	}
	s := settings{
		Server: c.Server, HostID: grant.HostIDOf(pub).String(), Name: resp.GetName(),
		Organisation: resp.GetOrganisation(),
	}
	if s.HostID != hex.EncodeToString(resp.GetHostId()) {
		return nil, errors.New("the control plane enrolled another host id than this root key's")
	}
	id := &identity{dir: c.Directory, settings: s, cas: []*x509.Certificate{ca}, key: key}
	if err := id.adopt(cert); err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", settingsFile, err)
	}
	here, err := machine(c.MachineID)
	if err != nil {
		return nil, fmt.Errorf("reading the machine-id: %w", err)
	}
	if here != "" {
		if err := c.write(machineFile, []byte(here+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{certFile, pemOf("CERTIFICATE", cert.Raw)},
		{caFile, pemOf("CERTIFICATE", ca.Raw)},
		{settingsFile, append(raw, '\n')},
	} {
		if err := c.write(f.name, f.data, 0o644); err != nil {
			return nil, err
		}
	}
	return &Joined{
		HostID: s.HostID, Name: s.Name, Organisation: s.Organisation,
		TrustEnvelope: resp.GetTrustEnvelope(),
	}, nil
}

func usableKeys(lines []string) []string {
	var keys []string
	for _, line := range lines {
		if key, err := grant.CanonicalSSHKey(line); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// tryLater marks what may be over in a while: no network yet, a control plane that restarts.
type tryLater struct{ error }

// Unwrap is the error itself.
func (t tryLater) Unwrap() error { return t.error }

// TryLater says whether the same Join may succeed later, with nothing changed on this machine.
func TryLater(err error) bool {
	var t tryLater
	return errors.As(err, &t)
}

// enrolError says what the control plane said, and what to do.
func enrolError(err error) error {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if r, ok := d.(*apiv1.Reason); ok {
			text := "the control plane refused to enrol this machine: " + r.GetText()
			if r.GetHint() != "" {
				text += "; " + r.GetHint()
			}
			if c := r.GetCode(); c == apiv1.Code_CODE_LIMIT || c == apiv1.Code_CODE_INTERNAL {
				return tryLater{errors.New(text)}
			}
			return errors.New(text)
		}
	}
	return tryLater{fmt.Errorf("enrolling with the control plane: %w", err)}
}
