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

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
)

// Limits on signing in.
const (
	ChallengeSize = 32
	ChallengeLife = 2 * time.Minute
	maxChallenges = 10000
	maxSessions   = 20 // of one user
	MinSessionTTL = time.Minute
	MaxSessionTTL = 7 * 24 * time.Hour
	loginPreamble = "curfew login v1\x00"
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
	// RootKeys returns the trust root keys that lie here, or none when they are kept elsewhere.
	RootKeys func() ([]ed25519.PrivateKey, error)
	Now      func() time.Time
	Rand     io.Reader
	Log      hclog.Logger
}

// Service signs people in and keeps the directory. Safe for concurrent use.
type Service struct{ c Config }

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
	return &Service{c: c}, nil
}

// Organisation is the one that everything here belongs to.
func (s *Service) Organisation() string { return s.c.Organisation }

// LoginMessage is what a person's SSH key signs to make sessionKey speak for them
// (PROTOCOL.md section 7).
func LoginMessage(challenge []byte, sessionKey ed25519.PublicKey, ca [sha256.Size]byte) []byte {
	key := SessionKey(sessionKey)
	return slices.Concat([]byte(loginPreamble), challenge, key[:], ca[:])
}

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
}

// Login turns an SSH signature into a session. The challenge is spent whether or not it succeeds.
func (s *Service) Login(ctx context.Context, l Login) (Session, error) {
	if err := grant.CheckUserName(l.User); err != nil {
		return Session{}, reason.Invalid("%v", err)
	}
	if len(l.Challenge) != ChallengeSize || len(l.SessionKey) != ed25519.PublicKeySize {
		return Session{}, reason.Invalid("challenge or session key has the wrong length")
	}
	now := s.c.Now()
	var fresh bool
	err := s.c.Store.Update(ctx, func(tx Tx) (err error) {
		fresh, err = tx.TakeChallenge(sha256.Sum256(l.Challenge), now)
		return err
	})
	if err != nil {
		return Session{}, err
	}
	if !fresh {
		return Session{}, reason.SignIn("the challenge was used before or is older than %s",
			ChallengeLife).WithHint("sign in again")
	}
	pub := ed25519.PublicKey(l.SessionKey)
	key, sigErr := sshsig.Verify(l.SSHSig, sshsig.NamespaceLogin,
		LoginMessage(l.Challenge, pub, s.c.CA))
	session := Session{
		Key: SessionKey(pub), User: l.User, Created: now, Expires: now.Add(s.c.SessionTTL),
	}
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
	record := trail.Record{
		TimeMS: session.Created.UnixMilli(), Kind: KindSignedIn, Actor: session.User,
		Details: map[string]string{},
	}
	if errors.Is(err, ErrNone) || sigErr != nil || user.Disabled ||
		!slices.Contains(user.SSHKeys, session.SSHKey) {
		refused = reason.SignIn("sign-in refused: the signature is not by an SSH key of user %s, or "+
			"the user is unknown or disabled", session.User).
			WithHint("check --user and --key; an admin sees your keys with curfew admin user ls")
		s.c.Log.Warn("sign-in refused", "user", session.User, "signature", sigErr)
		if err != nil {
			return refused, nil
		}
		record.Kind = KindNotSigned
		return refused, tx.Append(record)
	}
	if _, err := tx.Session(session.Key); !errors.Is(err, ErrNone) {
		return reason.Conflict("this session key is in use").WithHint("sign in again"), err
	}
	old, err := tx.SessionsOf(session.User)
	if err != nil {
		return nil, err
	}
	for len(old) >= maxSessions {
		if err := tx.DeleteSession(old[0].Key); err != nil {
			return nil, err
		}
		old = old[1:]
	}
	record.Details["ssh_key"] = fingerprints([]string{session.SSHKey})
	record.Details["session"] = fmt.Sprintf("%x", session.Key[:8])
	return nil, errors.Join(tx.PutSession(session), tx.Append(record))
}

// Person is a signed-in user with what they may call.
type Person struct {
	User
	Session Session
	// Approver is whether some role's approver group holds them.
	Approver bool
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
		// The key that signed in may have been taken from the user since.
		if user.Disabled || !slices.Contains(user.SSHKeys, session.SSHKey) {
			return fmt.Errorf("user or key is disabled: %w", ErrNone)
		}
		p = Person{User: user, Session: session}
		roles, err := tx.Roles()
		for _, r := range roles {
			p.Approver = p.Approver || slices.Contains(user.Groups, r.ApproverGroup)
		}
		return err
	})
	return p, err
}

// Logout ends one session.
func (s *Service) Logout(ctx context.Context, p Person) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		return errors.Join(tx.DeleteSession(p.Session.Key), tx.Append(trail.Record{
			TimeMS: s.c.Now().UnixMilli(), Kind: KindSignedOut, Actor: p.Name,
			Details: map[string]string{"session": fmt.Sprintf("%x", p.Session.Key[:8])},
		}))
	})
}
