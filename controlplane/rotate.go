package controlplane

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
)

// nextIssuerFile holds a grant key that the trust file does not name yet.
const nextIssuerFile = issuerFile + ".next"

// errIssuer means that the trust file in force names another grant key than this process seals with.
// The next start takes it up.
var errIssuer = errors.New("the trust file names another grant key; starting anew with it")

// errAuthority means that the CA's files changed under this process: a rotation goes on. The next start
// takes them up; hosts come back by themselves.
var errAuthority = errors.New("the CA's files have changed; starting anew with them")

// certifiesFor ends the server when the CA's files are not those that it started with.
func (s *Server) certifiesFor() error {
	same, err := s.authority.Same(s.config.DataDir)
	if err != nil {
		if s.caTrouble != err.Error() {
			s.caTrouble = err.Error()
			s.log.Error("the CA's files cannot be read: the next start will fail", "error", err)
		}
		return nil // what was loaded still certifies
	}
	if !same {
		return errAuthority
	}
	return nil
}

// RotateIssuer draws a new grant key and proposes a trust file that names it alone, in a new epoch: what
// the old key signs is worth nothing from then on, on hosts that are offline now as soon as they hear
// of it. A key that was drawn before and waits is proposed again.
func (o *Offline) RotateIssuer(ctx context.Context, by string) (identity.Waiting, error) {
	path := filepath.Join(o.dir, nextIssuerFile)
	key, err := keyfile.Load(path, "next grant key")
	if errors.Is(err, fs.ErrNotExist) {
		key, err = keyfile.Create(path, "next grant key", rand.Reader)
	}
	if err != nil {
		return identity.Waiting{}, err
	}
	return o.People.ProposeTrust(ctx, by, identity.Change{
		IssuerKeys: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}, BumpEpoch: true,
	})
}

// issuerKey loads the grant key that the trust file in force names. When that is the next one, it
// seals anew what is live and takes the old one's place.
func issuerKey(ctx context.Context, dir string, s *store.Store) (ed25519.PrivateKey, error) {
	key, err := keyfile.Load(filepath.Join(dir, issuerFile), "grant key")
	if err != nil {
		return nil, err
	}
	issuers, err := issuersInForce(ctx, s)
	if err != nil || names(issuers, key) {
		return key, err
	}
	next, err := keyfile.Load(filepath.Join(dir, nextIssuerFile), "next grant key")
	if err != nil {
		return nil, fmt.Errorf("the trust file does not name the grant key %s: %w", issuerFile, err)
	}
	if !names(issuers, next) {
		return nil, fmt.Errorf("the trust file names neither the grant key %s nor %s", issuerFile,
			nextIssuerFile)
	}
	if err := reseal(ctx, s, key, next); err != nil {
		return nil, fmt.Errorf("sealing the live grants with the new grant key: %w", err)
	}
	err = os.Rename(filepath.Join(dir, nextIssuerFile), filepath.Join(dir, issuerFile))
	return next, errors.Join(err, syncDir(dir))
}

func issuersInForce(ctx context.Context, s *store.Store) (keys []ed25519.PublicKey, err error) {
	err = s.View(ctx, func(t *store.Tx) error {
		row, err := t.NewestTrust()
		if err != nil {
			return err
		}
		trust, err := identity.Trust(row)
		if err == nil {
			keys = trust.Issuers()
		}
		return err
	})
	return keys, err
}

func names(issuers []ed25519.PublicKey, key ed25519.PrivateKey) bool {
	return slices.ContainsFunc(issuers, func(k ed25519.PublicKey) bool {
		return k.Equal(key.Public())
	})
}

// reseal seals every live grant with the new key: hosts that do not hold it yet would refuse the old
// seal. Terms, approvals and so the grants' ids stay. Hosts check the approvals as ever.
func reseal(ctx context.Context, s *store.Store, old, next ed25519.PrivateKey) error {
	keys := []ed25519.PublicKey{
		old.Public().(ed25519.PublicKey), next.Public().(ed25519.PublicKey),
	}
	return s.Update(ctx, func(t *store.Tx) error {
		live, err := t.LiveEnvelopes()
		if err != nil {
			return err
		}
		for id, env := range live {
			g, _, err := grant.OpenGrant(env, keys)
			if err != nil {
				return fmt.Errorf("grant %s: %w", id, err)
			}
			sealed, err := grant.SealGrant(g, next)
			if err != nil {
				return fmt.Errorf("grant %s: %w", id, err)
			}
			if err := t.PutEnvelope(id, sealed); err != nil {
				return err
			}
		}
		return nil
	})
}
