package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
)

// Limits on signing in.
const (
	ChallengeSize = signin.ChallengeSize
	ChallengeLife = 2 * time.Minute
	maxChallenges = 10000
	maxSessions   = 20 // of one user
	maxPipelines  = 500
	MinSessionTTL = time.Minute
	MaxSessionTTL = 7 * 24 * time.Hour
	maxDevice     = 64 // bytes
)

// Kinds of trail records about signing in.
const (
	KindSignedIn  = "signin.accepted"
	KindNotSigned = "signin.refused"
	KindSignedOut = "signin.ended"
)

// Config is what a Service needs.
type Config struct {
	Store        Store
	Organisation string
	// CA is the SHA-256 of the CA certificate's DER: sign-ins are bound to this control plane.
	CA         [sha256.Size]byte
	SessionTTL time.Duration
	// Federation is how people sign in at a provider.
	Federation Federation
	// Pipelines verifies workloads' tokens, for Audience; their sessions last WorkloadTTL.
	Pipelines   Pipelines
	Audience    string
	WorkloadTTL time.Duration
	// RootKeys returns the trust root keys that lie here, or none when they are kept elsewhere.
	RootKeys func() ([]ed25519.PrivateKey, error)
	// Checks are the names of the ticket checks that a policy file may use.
	Checks []string
	Now    func() time.Time
	Rand   io.Reader
	Log    hclog.Logger
}

// Service signs people in and keeps the directory. Safe for concurrent use.
type Service struct {
	c     Config
	flows flows
	read  cache
}

// New checks the configuration.
func New(c Config) (*Service, error) {
	if c.Store == nil || c.RootKeys == nil || c.Now == nil || c.Rand == nil || c.Log == nil {
		return nil, errors.New("identity: store, root keys, clock, randomness or log is missing")
	}
	if err := grant.CheckOrganisation(c.Organisation); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if c.SessionTTL < MinSessionTTL || c.SessionTTL > MaxSessionTTL {
		return nil, fmt.Errorf("identity: a session of %s: want %s to %s", c.SessionTTL,
			MinSessionTTL, MaxSessionTTL)
	}
	if c.Federation.Provider != nil && c.Federation.Sealer == nil {
		return nil, errors.New("identity: nothing seals refresh tokens")
	}
	return &Service{c: c, read: cache{policies: make(map[[32]byte]*policy.Policy)}}, nil
}

// Organisation is the one that everything here belongs to.
func (s *Service) Organisation() string { return s.c.Organisation }

// SessionKey is how a session's public key is looked up.
func SessionKey(pub ed25519.PublicKey) [32]byte { return sha256.Sum256(pub) }

// Challenge draws a one-use challenge.
func (s *Service) Challenge(ctx context.Context) ([]byte, error) {
	challenge := make([]byte, ChallengeSize)
	if _, err := io.ReadFull(s.c.Rand, challenge); err != nil {
		return nil, fmt.Errorf("drawing a challenge: %w", err)
	}
	now := s.c.Now()
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		if err := tx.DeleteExpired(now); err != nil {
			return err
		}
		n, err := tx.Challenges()
		if err != nil {
			return err
		}
		if n >= maxChallenges {
			return reason.Limit("too many people are signing in at once").
				WithHint("try again in two minutes")
		}
		return tx.PutChallenge(sha256.Sum256(challenge), now.Add(ChallengeLife))
	})
	return challenge, err
}

// Login is what a person sends to sign in.
type Login struct {
	User       string
	Challenge  []byte
	SessionKey []byte // Ed25519 public key
	SSHSig     []byte
	Device     string // what the device calls itself; for people to recognise it
	Address    string // where the call came from
}

// Login turns an SSH signature into a session. The challenge is spent whether or not it succeeds.
func (s *Service) Login(ctx context.Context, l Login) (Session, error) {
	if err := grant.CheckUserName(l.User); err != nil {
		return Session{}, reason.Invalid("%v", err)
	}
	b, err := s.spend(ctx, l.Challenge, l.SessionKey)
	if err != nil {
		return Session{}, err
	}
	key, sigErr := sshsig.Verify(l.SSHSig, sshsig.NamespaceLogin, b.Login())
	session := s.newSession(b.Session, MethodSSH, l.Device, l.Address)
	session.User = l.User
	if sigErr == nil {
		session.SSHKey = grant.SSHKeyText(key)
	}
	var refused error
	err = s.c.Store.Update(ctx, func(tx Tx) (err error) {
		refused, err = s.admit(tx, session, sigErr)
		return err
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return Session{}, err
	}
	s.c.Log.Info("signed in", "user", l.User, "until", session.Expires.UTC())
	return session, nil
}

// admit stores the session, or the refusal when the user exists: an unknown name writes nothing.
func (s *Service) admit(tx Tx, session Session, sigErr error) (refused, err error) {
	user, err := tx.User(session.User)
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	// A workload's SSH keys open hosts; they do not speak for a pipeline that no token vouches for.
	if errors.Is(err, ErrNone) || sigErr != nil || user.Disabled || user.Kind == KindWorkload ||
		!slices.Contains(user.SSHKeys, session.SSHKey) {
		refused = reason.SignIn("sign-in refused: the signature is not by an SSH key of user %s, or "+
			"the user is unknown or disabled", session.User).
			WithHint("check --user and --key; an admin sees your keys with curfew admin user ls")
		s.c.Log.Warn("sign-in refused", "user", session.User, "signature", sigErr)
		if err != nil {
			return refused, nil
		}
		return refused, tx.Append(trail.Record{
			TimeMS: session.Created.UnixMilli(), Kind: KindNotSigned, Actor: session.User,
			Details: map[string]string{},
		})
	}
	first, err := s.askFirst(tx, session.User)
	if err != nil {
		return nil, err
	}
	if first {
		return reason.SignIn("sign in at the identity provider first: it has not vouched for %s yet",
			session.User).WithHint("curfew login --sso"), nil
	}
	return s.open(tx, session, map[string]string{"ssh_key": fingerprints([]string{session.SSHKey})})
}

// open stores a session, in the place of the user's oldest when there are too many.
func (s *Service) open(tx Tx, session Session, details map[string]string) (refused, err error) {
	if _, err := tx.Session(session.Key); !errors.Is(err, ErrNone) {
		return reason.Conflict("this session key is in use").WithHint("sign in again"), err
	}
	old, err := tx.SessionsOf(session.User)
	if err != nil {
		return nil, err
	}
	most := maxSessions
	if session.Method == MethodWorkload {
		most = maxPipelines // each job has its own
	}
	for len(old) >= most {
		if err := tx.DeleteSession(old[0].Key); err != nil {
			return nil, err
		}
		old = old[1:]
	}
	details["session"], details["method"] = session.ID(), string(session.Method)
	for name, value := range map[string]string{"device": session.Device, "from": session.Address} {
		if value != "" {
			details[name] = value
		}
	}
	return nil, errors.Join(tx.PutSession(session), tx.Append(trail.Record{
		TimeMS: session.Created.UnixMilli(), Kind: KindSignedIn, Actor: session.User, Details: details,
	}))
}

// Person is a signed-in user with what they may call.
type Person struct {
	User
	Session Session
	// Approver is whether some role's approver group holds them, or they are somebody's manager where
	// a policy wants the manager's approval.
	Approver bool
	// Reports are the users whose manager they are; set only when that counts.
	Reports []string
}

// ManagerOf is the person's own name when they manage somebody in a way that counts, else empty.
func (p *Person) ManagerOf(user string) string {
	if slices.Contains(p.Reports, user) {
		return p.Name
	}
	return ""
}

// Who finds the user for whom a client key speaks now; ErrNone when it speaks for nobody.
func (s *Service) Who(ctx context.Context, pub ed25519.PublicKey) (Person, error) {
	var p Person
	err := s.c.Store.View(ctx, func(tx Tx) error {
		session, err := tx.Session(SessionKey(pub))
		if err != nil {
			return err
		}
		if !s.c.Now().Before(session.Expires) {
			return fmt.Errorf("session has ended: %w", ErrNone)
		}
		user, err := tx.User(session.User)
		if err != nil {
			return err
		}
		if !session.stands(user) {
			return fmt.Errorf("user or key is disabled: %w", ErrNone)
		}
		p = Person{User: user, Session: session}
		if !user.decides() {
			return nil
		}
		return s.judge(tx, &p)
	})
	return p, err
}

// judge says whether a person may approve anything.
func (s *Service) judge(tx Tx, p *Person) error {
	inForce, err := s.Policy(tx)
	if err != nil {
		return err
	}
	var groups []string
	if inForce != nil {
		groups = inForce.Approving()
	} else if groups, err = approverGroups(tx); err != nil {
		return err
	}
	for _, g := range groups {
		if g == grant.GroupManager {
			if p.Reports, err = tx.Reports(p.Name); err != nil {
				return err
			}
		}
		p.Approver = p.Approver || slices.Contains(p.Groups, g)
	}
	p.Approver = p.Approver || len(p.Reports) > 0
	return nil
}

// approverGroups are those of the directory's roles.
func approverGroups(tx Tx) ([]string, error) {
	roles, err := tx.Roles()
	groups := make([]string, 0, len(roles))
	for _, r := range roles {
		groups = append(groups, r.ApproverGroup)
	}
	return groups, err
}

// deviceName keeps what a device calls itself to one short line.
func deviceName(s string) string { return grant.VisibleText(s[:min(len(s), maxDevice)]) }

// stands says whether a session's footing is still there: the user is enabled, and the SSH key that
// signed in has not been taken from them since.
func (s *Session) stands(u User) bool {
	return !u.Disabled && (s.Method != MethodSSH || slices.Contains(u.SSHKeys, s.SSHKey))
}

// decides says whether a user may be an approver at all.
func (u *User) decides() bool { return u.Kind != KindWorkload && !u.Auditor }
