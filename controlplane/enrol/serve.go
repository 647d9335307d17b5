package enrol

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/enrol/cloud"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const newTokenHint = "ask an admin for a new token; a token works once and for 30 minutes"

// Enrol implements curfew.api.v1.Enrolment: it makes the caller a host, once per token or instance.
func (s *Service) Enrol(
	ctx context.Context, req *apiv1.EnrolRequest,
) (*apiv1.EnrolResponse, error) {
	key, now := peerKey(peerAddr(ctx)), s.now()
	if !s.tries.take(key, now) {
		return nil, s.refuse("enrolment", reason.Limit("too many enrolments from %s", key).
			WithHint("wait a minute"))
	}
	resp, err := s.enrol(ctx, req, now)
	if err != nil {
		s.log.Warn("enrolment refused", "peer", key, "error", err)
		return nil, s.refuse("enrolment", err)
	}
	s.tries.giveBack(key, now)
	s.log.Info("host enrolled", "peer", key, "host", resp.GetName(),
		"host_id", hex.EncodeToString(resp.GetHostId()))
	return resp, nil
}

func (s *Service) enrol(
	ctx context.Context, req *apiv1.EnrolRequest, now time.Time,
) (*apiv1.EnrolResponse, error) {
	message, err := s.signedMessage(req)
	if err != nil {
		return nil, err
	}
	host, csr, err := candidate(req, message, now)
	if err != nil {
		return nil, reason.Invalid("%v", err)
	}
	trust, err := s.store.NewestTrust(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the trust file for an enrolment: %w", err)
	}
	// Signed before the token is spent: nothing may fail after that.
	cert, err := s.authority.SignHost(csr.PublicKey, host.ID, now)
	if err != nil {
		return nil, err
	}
	host.CertificateEnds, host.CertifiedBy = cert.NotAfter, Name(s.authority.Certificate())
	if req.GetCloud() != nil {
		host, err = s.enrolInstance(ctx, req.GetCloud(), host, now)
	} else {
		host, err = s.enrolByToken(ctx, join.TokenHash(req.GetToken()), host, now)
	}
	if err != nil {
		return nil, enrolReason(err, host)
	}
	s.enrolled(ctx, host.Name)
	return &apiv1.EnrolResponse{
		HostId: host.ID[:], Name: host.Name, Organisation: s.org, Certificate: cert.Raw,
		CaCertificate: s.authority.Certificate().Raw, TrustEnvelope: trust,
	}, nil
}

// signedMessage is what the root half must have signed: it ties its key to what admits it.
func (s *Service) signedMessage(req *apiv1.EnrolRequest) ([]byte, error) {
	word := req.GetCloud()
	if word == nil {
		if _, err := join.ParseToken(req.GetToken()); err != nil {
			return nil, reason.Denied("%v", err).WithHint(newTokenHint)
		}
		return join.Message(req.GetToken(), req.GetCsr()), nil
	}
	switch {
	case req.GetToken() != "":
		return nil, reason.Invalid("a token and a cloud's word: want one of them")
	case len(word.GetDocument()) > join.MaxDocument:
		return nil, reason.Invalid("identity document of %d bytes; at most %d", len(word.GetDocument()),
			join.MaxDocument)
	}
	return join.CloudMessage(s.authority.Pin(), word.GetProvider(), word.GetDocument(),
		req.GetCsr()), nil
}

// enrolByToken spends the token for the host.
func (s *Service) enrolByToken(
	ctx context.Context, hash [32]byte, host Host, now time.Time,
) (Host, error) {
	err := s.store.EnrolHost(ctx, hash, func(t JoinToken) (Host, trail.Record, error) {
		h, err := admit(host, t, hash, now)
		host.Name = h.Name
		return h, enrolRecord(h, map[string]string{"token_by": t.CreatedBy}, now), err
	})
	return host, err
}

// enrolInstance admits the host by its cloud's word, once for each instance.
func (s *Service) enrolInstance(
	ctx context.Context, word *apiv1.CloudIdentity, h Host, now time.Time,
) (Host, error) {
	for _, name := range cloud.Reserved {
		if _, claimed := h.Labels[name]; claimed {
			return h, reason.Invalid("the label %s is the control plane's to set, from what the cloud says",
				name)
		}
	}
	binding := join.CloudBinding(s.authority.Pin(), h.RootKey)
	i, err := s.cloud.Verify(ctx, word.GetProvider(), word.GetDocument(), binding, now)
	if err != nil {
		return h, err
	}
	if h.Name == "" {
		h.Name = cmp.Or(i.Name, i.ID)
	}
	if err := grant.CheckHostName(h.Name); err != nil {
		return h, reason.Invalid("%v", err).WithHint("say another name: curfew-agent join --name")
	}
	h.Address = cmp.Or(h.Address, h.Name)
	if h.Labels, err = withLabels(h.Labels, i.Labels()); err != nil {
		return h, err
	}
	return h, s.store.EnrolInstance(ctx, i.Key(), h, enrolRecord(h, map[string]string{
		"joined_by": i.Provider + " instance " + i.ID + " of " + i.Account,
	}, now))
}

// candidate checks all that can be checked without what is at rest.
func candidate(
	req *apiv1.EnrolRequest, message []byte, now time.Time,
) (Host, *x509.CertificateRequest, error) {
	if len(req.GetRootPublicKey()) != ed25519.PublicKeySize {
		return Host{}, nil, fmt.Errorf("root public key of %d bytes, want %d",
			len(req.GetRootPublicKey()), ed25519.PublicKeySize)
	}
	root := ed25519.PublicKey(req.GetRootPublicKey())
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return Host{}, nil, err
	}
	if !ed25519.Verify(root, message, req.GetSignature()) {
		return Host{}, nil, errors.New("the root half's signature does not verify")
	}
	if req.GetName() != "" {
		if err := grant.CheckHostName(req.GetName()); err != nil {
			return Host{}, nil, err
		}
	}
	if req.GetAddress() != "" {
		if err := checkAddress(req.GetAddress()); err != nil {
			return Host{}, nil, err
		}
	}
	keys, err := checkHostKeys(req.GetSshHostKeys())
	if err != nil {
		return Host{}, nil, err
	}
	err = errors.Join(CheckLabels(req.GetLabels()), checkVersion(req.GetAgentVersion()))
	if err != nil {
		return Host{}, nil, err
	}
	return Host{
		ID: grant.HostIDOf(root), Name: req.GetName(), Address: req.GetAddress(),
		Labels: req.GetLabels(), SSHHostKeys: keys, RootKey: root,
		LinkKey: keyHash(csr.RawSubjectPublicKeyInfo), AgentVersion: req.GetAgentVersion(),
		EnrolledAt: now,
	}, csr, nil
}

// admit holds a candidate against its token. What the admin said of the host wins.
func admit(h Host, t JoinToken, hash [32]byte, now time.Time) (Host, error) {
	switch {
	case subtle.ConstantTimeCompare(t.Hash[:], hash[:]) != 1:
		return h, ErrNoToken
	case !t.UsedAt.IsZero():
		return h, ErrTokenUsed
	case !now.Before(t.ExpiresAt):
		return h, reason.Denied("the join token has expired").WithHint(newTokenHint)
	case t.Name != "" && h.Name != "" && t.Name != h.Name:
		return h, reason.Invalid("the join token is for host %s, not for %s", t.Name, h.Name)
	case t.Name == "" && h.Name == "":
		return h, reason.Invalid("the host has no name: neither token nor machine says one")
	}
	if h.Name == "" {
		h.Name = t.Name
	}
	if h.Address == "" {
		h.Address = h.Name
	}
	var err error
	h.Labels, err = withLabels(h.Labels, t.Labels)
	return h, err
}

// withLabels adds to what a machine says of itself what is known better.
func withLabels(said, known map[string]string) (map[string]string, error) {
	labels := make(map[string]string, len(said)+len(known))
	maps.Copy(labels, said)
	maps.Copy(labels, known)
	if len(labels) > maxLabels {
		return nil, reason.Invalid("%d labels; at most %d", len(labels), maxLabels)
	}
	return labels, nil
}

func enrolRecord(h Host, details map[string]string, now time.Time) trail.Record {
	maps.Copy(details, labelDetails(h.Labels))
	details["address"] = h.Address
	// Readers of the trail check this host's later events under it.
	details["root_key"] = base64.StdEncoding.EncodeToString(h.RootKey)
	return trail.Record{
		TimeMS: now.UnixMilli(), Kind: KindHostEnrolled, Actor: "host " + h.Name,
		HostID: h.ID.String(), Host: h.Name, Details: details,
	}
}

func enrolReason(err error, h Host) error {
	switch {
	case errors.Is(err, ErrNoToken):
		return reason.Denied("the join token is not known here").WithHint(newTokenHint)
	case errors.Is(err, ErrTokenUsed):
		return reason.Denied("the join token was used already").WithHint(newTokenHint)
	case errors.Is(err, ErrInstanceKnown):
		return reason.Denied("this instance has joined before: a cloud's word is good once for each").
			WithHint("%s", cloud.TokenHint)
	case errors.Is(err, ErrNameTaken):
		return reason.Conflict("a host named %s exists", h.Name).
			WithHint("remove that host first, or choose another name")
	case errors.Is(err, ErrKeyKnown):
		return reason.Conflict("this root key was enrolled before: a cloned image?").
			WithHint("make fresh keys on the machine: curfew-agent join does when none exist")
	}
	return err
}

// Renew implements curfew.api.v1.Enrolment: a new certificate for the same link key. A certificate
// that ended at most LateRenewal ago is good for this call alone: a machine that was switched off
// for a while comes back by itself.
func (s *Service) Renew(
	ctx context.Context, req *apiv1.RenewRequest,
) (*apiv1.RenewResponse, error) {
	cert, err := s.renew(ctx, req)
	if err != nil {
		return nil, s.refuse("renewal", err)
	}
	return &apiv1.RenewResponse{Certificate: cert.Raw}, nil
}

func (s *Service) renew(
	ctx context.Context, req *apiv1.RenewRequest,
) (*x509.Certificate, error) {
	now := s.now()
	id, old, err := s.renewingHost(ctx, now)
	if err != nil {
		return nil, reason.Denied("%v", err)
	}
	if !s.renewals.take(id.String(), now) {
		return nil, reason.Limit("too many renewals of one host").WithHint("wait a minute")
	}
	host, err := s.servedHost(ctx, id)
	if err != nil {
		return nil, err
	}
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, reason.Invalid("%v", err)
	}
	if hash := keyHash(csr.RawSubjectPublicKeyInfo); hash != keyHash(old.RawSubjectPublicKeyInfo) ||
		hash != host.LinkKey {
		return nil, reason.Denied("a renewal is for the enrolled link key only").
			WithHint("enrol the host anew to change its keys")
	}
	cert, err := s.authority.SignHost(csr.PublicKey, id, now)
	if err != nil {
		return nil, err
	}
	err = s.store.PutCertificate(ctx, id, cert.NotAfter, Name(s.authority.Certificate()))
	if err != nil {
		return nil, fmt.Errorf("noting the renewal of host %s: %w", id, err)
	}
	s.log.Info("host certificate renewed", "host", host.Name, "ends", cert.NotAfter.UTC())
	return cert, nil
}

// servedHost reads a host that is served.
func (s *Service) servedHost(ctx context.Context, id grant.HostID) (Host, error) {
	host, err := s.store.EnrolledHost(ctx, id)
	switch {
	case errors.Is(err, ErrNoHost), err == nil && host.Removed:
		return host, reason.Denied("this host is not enrolled").WithHint("enrol it anew")
	case err != nil:
		return host, fmt.Errorf("reading host %s: %w", id, err)
	case host.Refused != "":
		return host, reason.Denied("host %s is refused: %s", host.Name, host.Refused).
			WithHint("enrol it anew")
	}
	return host, nil
}

func (s *Service) renewingHost(
	ctx context.Context, now time.Time,
) (grant.HostID, *x509.Certificate, error) {
	cert, id, err := s.authority.hostCertificate(ctx, now)
	if err == nil {
		return id, cert, nil
	}
	// Ended, but not for long: verified as of its last moment.
	late := clientCertificate(ctx)
	if late == nil || now.Before(late.NotAfter) || now.After(late.NotAfter.Add(LateRenewal)) {
		return id, nil, err
	}
	cert, id, lateErr := s.authority.hostCertificate(ctx, late.NotAfter)
	if lateErr != nil {
		return id, nil, err
	}
	return id, cert, nil
}

// refuse turns an error into what may cross the wire: a reason, or "internal error" with the rest
// in the log alone.
func (s *Service) refuse(what string, err error) error {
	r, ok := reason.Of(err)
	if !ok {
		s.log.Error(what+" failed", "error", err)
		r = &reason.Error{Code: apiv1.Code_CODE_INTERNAL, Text: "internal error"}
	}
	st := status.New(grpcCode(r.Code), r.Text)
	with, err := st.WithDetails(&apiv1.Reason{Code: r.Code, Text: r.Text, Hint: r.Hint})
	if err != nil {
		return st.Err()
	}
	return with.Err()
}

func grpcCode(c apiv1.Code) codes.Code {
	switch c {
	case apiv1.Code_CODE_INVALID:
		return codes.InvalidArgument
	case apiv1.Code_CODE_DENIED:
		return codes.PermissionDenied
	case apiv1.Code_CODE_CONFLICT:
		return codes.FailedPrecondition
	case apiv1.Code_CODE_LIMIT:
		return codes.ResourceExhausted
	}
	return codes.Internal
}

func peerAddr(ctx context.Context) net.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	return p.Addr
}
