package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// fake is a control plane with its hosts, on loopback and over real TLS. It checks what the CLI
// must get right (signatures, session keys) and can be told to lie.
type fake struct {
	apiv1.UnimplementedSignInServer
	apiv1.UnimplementedAccessServer
	apiv1.UnimplementedDirectoryServer
	apiv1.UnimplementedPolicyServer

	address string
	ca      *x509.Certificate
	server  *grpc.Server

	mu         sync.Mutex // guards all below
	changed    chan struct{}
	users      map[string]*apiv1.User
	groups     map[string][]string
	roles      map[string]*apiv1.Role
	hosts      map[string]*fakeHost
	requests   []*apiv1.Request
	policies   [][]byte          // texts, oldest first
	reasons    map[string]string // the first one of a request that was extended
	challenges map[string]bool
	sessions   map[[32]byte]string
	leaves     [][]byte
	hashes     hashList
	tamper     map[string]bool
	breaks     chan struct{} // closed to break every stream
	streams    int
	root       ed25519.PrivateKey
	codes      *fakeCodes
}

type fakeHost struct {
	*apiv1.Host
	key    ed25519.PrivateKey
	chain  trail.Chain
	refuse string // what it answers to grants; empty: it applies them
}

func startFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{
		changed: make(chan struct{}), breaks: make(chan struct{}), users: map[string]*apiv1.User{},
		groups: map[string][]string{}, roles: map[string]*apiv1.Role{},
		hosts: map[string]*fakeHost{}, challenges: map[string]bool{},
		sessions: map[[32]byte]string{}, reasons: map[string]string{}, tamper: map[string]bool{},
	}
	var err error
	if _, f.root, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	cert := f.certificates(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	f.server = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequestClientCert,
		})),
		grpc.UnaryInterceptor(f.authenticate),
		grpc.StreamInterceptor(f.authenticateStream),
	)
	apiv1.RegisterSignInServer(f.server, f)
	apiv1.RegisterAccessServer(f.server, f)
	apiv1.RegisterDirectoryServer(f.server, f)
	apiv1.RegisterPolicyServer(f.server, f)
	f.codes = &fakeCodes{f: f}
	apiv1.RegisterBreakGlassServer(f.server, f.codes)
	apiv1.RegisterRolloutsServer(f.server, &fakeRollouts{f: f})
	go func() {
		if err := f.server.Serve(listener); err != nil {
			t.Errorf("fake control plane: %v", err)
		}
	}()
	t.Cleanup(f.server.Stop)
	return f
}

func (f *fake) certificates(t testing.TB) tls.Certificate {
	t.Helper()
	public, caKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Curfew CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, public, caKey)
	if err != nil {
		t.Fatal(err)
	}
	if f.ca, err = x509.ParseCertificate(caDER); err != nil {
		t.Fatal(err)
	}
	leafPublic, leafKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, f.ca, leafPublic, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: leafKey}
}

func refuse(code apiv1.Code, format string, args ...any) error {
	st, err := status.New(codes.FailedPrecondition, "refused").
		WithDetails(&apiv1.Reason{Code: code, Text: fmt.Sprintf(format, args...)})
	if err != nil {
		return err
	}
	return st.Err()
}

type userKey struct{}

// caller is who called, by the session key of the client certificate.
func (f *fake) caller(ctx context.Context) (string, [32]byte) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", [32]byte{}
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", [32]byte{}
	}
	public, ok := info.State.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", [32]byte{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	hash := sha256.Sum256(public)
	return f.sessions[hash], hash
}

func (f *fake) authenticate(
	ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	user, _ := f.caller(ctx)
	open := info.FullMethod == apiv1.SignIn_Challenge_FullMethodName ||
		info.FullMethod == apiv1.SignIn_Login_FullMethodName
	if user == "" && !open {
		return nil, refuse(apiv1.Code_CODE_SIGN_IN, "there is no session for this key")
	}
	return next(context.WithValue(ctx, userKey{}, user), in)
}

func (f *fake) authenticateStream(
	srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler,
) error {
	if user, _ := f.caller(stream.Context()); user == "" {
		return refuse(apiv1.Code_CODE_SIGN_IN, "there is no session for this key")
	}
	return next(srv, stream)
}

func me(ctx context.Context) string {
	name, _ := ctx.Value(userKey{}).(string)
	return name
}

func (f *fake) Challenge(context.Context, *apiv1.ChallengeRequest) (*apiv1.ChallengeResponse, error) {
	challenge := make([]byte, signin.ChallengeSize)
	if _, err := rand.Read(challenge); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.challenges[string(challenge)] = true
	return &apiv1.ChallengeResponse{Challenge: challenge, Organisation: "acme"}, nil
}

func (f *fake) Login(_ context.Context, in *apiv1.LoginRequest) (*apiv1.LoginResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.challenges[string(in.GetChallenge())] {
		return nil, refuse(apiv1.Code_CODE_SIGN_IN, "the challenge is not known")
	}
	delete(f.challenges, string(in.GetChallenge()))
	session, ca := sha256.Sum256(in.GetSessionPublicKey()), sha256.Sum256(f.ca.Raw)
	message := slices.Concat([]byte("curfew login v1\x00"), in.GetChallenge(), session[:], ca[:])
	key, err := sshsig.Verify(in.GetSshsig(), sshsig.NamespaceLogin, message)
	if err != nil || !f.owns(in.GetUser(), key) {
		return nil, refuse(apiv1.Code_CODE_DENIED, "no such user with this key")
	}
	f.sessions[session] = in.GetUser()
	return &apiv1.LoginResponse{ExpiresMs: time.Now().Add(8 * time.Hour).UnixMilli()}, nil
}

func (f *fake) owns(user string, key ssh.PublicKey) bool {
	u := f.users[user]
	return u != nil && !u.GetDisabled() && slices.Contains(u.GetSshKeys(), grant.SSHKeyText(key))
}

func (f *fake) Logout(ctx context.Context, _ *apiv1.LogoutRequest) (*apiv1.LogoutResponse, error) {
	_, hash := f.caller(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sessions, hash)
	return &apiv1.LogoutResponse{}, nil
}

func (f *fake) WhoAmI(ctx context.Context, _ *apiv1.WhoAmIRequest) (*apiv1.WhoAmIResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := me(ctx)
	answer := &apiv1.WhoAmIResponse{
		User: name, Organisation: "acme", ApiRoles: []string{"user"}, Version: "1.0",
		SessionExpiresMs: time.Now().Add(8 * time.Hour).UnixMilli(), Groups: f.groupsOf(name),
	}
	if len(answer.GetGroups()) > 0 {
		answer.ApiRoles = append(answer.ApiRoles, "approver")
	}
	if f.users[name].GetAdmin() {
		answer.ApiRoles = append(answer.ApiRoles, "admin")
	}
	return answer, nil
}

func (f *fake) groupsOf(name string) []string {
	var out []string
	for group, members := range f.groups {
		if slices.Contains(members, name) {
			out = append(out, group)
		}
	}
	slices.Sort(out)
	return out
}

// addUser puts a person down as an admin would.
func (f *fake) addUser(name string, key ssh.PublicKey, admin bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users[name] = &apiv1.User{
		Name: name, Uid: 1900000000 + uint32(len(f.users)) + 1, Admin: admin,
		SshKeys: []string{grant.SSHKeyText(key)},
	}
}

// addHost enrols a host; its key stands in the trail.
func (f *fake) addHost(name string, connected bool) error {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	hostKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	sshKey, err := ssh.NewPublicKey(hostKey)
	if err != nil {
		return err
	}
	id := grant.HostIDOf(public)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts[name] = &fakeHost{key: key, Host: &apiv1.Host{
		Id: id[:], Name: name, Address: name + ".example.org", Labels: map[string]string{"env": "prod"},
		SshHostKeys: []string{grant.SSHKeyText(sshKey)}, Connected: connected, Mode: "enforce",
		LastSeenMs: time.Now().UnixMilli(), AgentVersion: "1.0",
	}}
	return f.record(&trail.Record{
		Kind: "host.enrolled", Actor: "host " + name, Host: name, HostID: id.String(),
		Details: map[string]string{"root_key": base64.StdEncoding.EncodeToString(public)},
	})
}

// record appends to the trail; the caller holds mu.
func (f *fake) record(r *trail.Record) error {
	r.Number, r.TimeMS = uint64(len(f.leaves)), time.Now().UnixMilli()
	leaf, err := r.Leaf()
	if err != nil {
		return err
	}
	hashes, err := trail.NewHashes(r.Number, leaf, f.hashes)
	if err != nil {
		return err
	}
	f.leaves, f.hashes = append(f.leaves, leaf), append(f.hashes, hashes...)
	f.wake()
	return nil
}

// hostEvent is what a host signs and the control plane records; the caller holds mu.
func (f *fake) hostEvent(h *fakeHost, kind, request string, grantID []byte) error {
	event := &curfewv1.Event{
		TimeMs: time.Now().UnixMilli(), BootId: "b", Kind: kind, RequestId: request, GrantId: grantID,
	}
	if err := h.chain.Append(event); err != nil {
		return err
	}
	signed, err := grant.SignHostMessage(
		&curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: event}}, h.key)
	if err != nil {
		return err
	}
	raw, err := proto.Marshal(signed)
	if err != nil {
		return err
	}
	return f.record(&trail.Record{
		Kind: kind, Actor: "host " + h.GetName(), RequestID: request, Host: h.GetName(),
		HostID:  grant.HostIDOf(h.key.Public().(ed25519.PublicKey)).String(),
		GrantID: fmt.Sprintf("%x", grantID), HostEvent: raw,
	})
}

// wake tells every stream that something changed; the caller holds mu.
func (f *fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func newSSHKey(t testing.TB) (ssh.PublicKey, []byte) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(block)
}

func newLockedKey(t testing.TB, passphrase string) (ssh.PublicKey, []byte) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(block)
}

// onlyRequest waits for the first request that is watched by somebody and returns its id.
func (f *fake) onlyRequest(t *testing.T) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		f.mu.Lock()
		changed, id := f.changed, ""
		if len(f.requests) == 1 && f.streams > 0 {
			id = f.requests[0].GetId()
		}
		f.mu.Unlock()
		if id != "" {
			return id
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatal("nobody asked and waited")
	return ""
}

// breakStreams ends every stream as a restart of the control plane would.
func (f *fake) breakStreams(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.breaks)
	f.breaks = make(chan struct{})
}
