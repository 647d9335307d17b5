package controlplane

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/keyfile"
	"github.com/curfew-access/curfew/internal/trail"
)

// Settings that `init` leaves in the store.
const (
	metaOrganisation = "organisation"
	metaURL          = "url"
)

// kindInit is the first record of a trail, kindRestored the first after a restore.
const (
	kindInit     = "store.created"
	kindRestored = "store.restored"
)

// Setup is what a new control plane needs to know.
type Setup struct {
	DataDir      string
	Organisation string
	URL          string // HOST:PORT
	Admin        string
	AdminKey     string // an SSH public key
	Now          func() time.Time
	Log          hclog.Logger
}

// Init makes a new control plane: CA, grant key, root key, trust file version 1 and the first admin.
// It returns the CA's pin in the form that people type. It refuses a data folder that holds anything.
func Init(ctx context.Context, c Setup) (pin string, err error) {
	if err := errors.Join(grant.CheckOrganisation(c.Organisation), CheckURL(c.URL),
		grant.CheckUserName(c.Admin)); err != nil {
		return "", err
	}
	if _, err := grant.CanonicalSSHKey(c.AdminKey); err != nil {
		return "", fmt.Errorf("the admin's key: %w", err)
	}
	if err := emptyDir(c.DataDir); err != nil {
		return "", err
	}
	authority, err := enrol.CreateAuthority(c.DataDir, c.Organisation, c.Now())
	if err != nil {
		return "", err
	}
	issuer, err := keyfile.Create(filepath.Join(c.DataDir, issuerFile), "grant key", rand.Reader)
	if err != nil {
		return "", err
	}
	root, err := keyfile.Create(filepath.Join(c.DataDir, RootFile), "root key", rand.Reader)
	if err != nil {
		return "", err
	}
	trust, err := grant.SealTrust(identity.FirstTrust(c.Organisation,
		root.Public().(ed25519.PublicKey), issuer.Public().(ed25519.PublicKey)), root)
	if err != nil {
		return "", err
	}
	db, err := store.Open(ctx, store.Config{
		Path: filepath.Join(c.DataDir, storeFile), Create: true, Now: c.Now,
	})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	people, err := directory(db, c.DataDir, c.Organisation, authority, c.Now, c.Log)
	if err != nil {
		return "", err
	}
	err = db.Update(ctx, func(tx *store.Tx) error {
		if err := errors.Join(
			tx.PutMeta(metaOrganisation, c.Organisation), tx.PutMeta(metaURL, c.URL),
			tx.PutTrust(identity.TrustRow{Version: 1, Envelope: trust}),
			tx.Append(trail.Record{
				TimeMS: c.Now().UnixMilli(), Kind: kindInit, Actor: "curfew",
				Details: map[string]string{"organisation": c.Organisation, "url": c.URL},
			}),
		); err != nil {
			return err
		}
		_, _, err := people.PutUser(tx, "curfew",
			identity.Edit{Name: c.Admin, Admin: true, SSHKeys: []string{c.AdminKey}}, true)
		return err
	})
	return PinText(authority), err
}

// Made says whether a data folder holds a control plane. Whether it is whole, serving it shows.
func Made(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, storeFile))
	return err == nil
}

// PinText is a CA's pin as people type it: base64url without padding.
func PinText(a *enrol.Authority) string {
	return pinText(a.Certificate().Raw)
}

func pinText(der []byte) string {
	pin := join.Pin(der)
	return base64.RawURLEncoding.EncodeToString(pin[:])
}

// emptyDir demands a folder that holds nothing, and makes it, only for its owner, when it is missing.
func emptyDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("reading the data folder: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("the data folder %s is not empty (%s is there); nothing was changed: "+
			"move it away, or choose another with --data-dir", path, entries[0].Name())
	}
	return nil
}

// remembered reads what `init` was told.
func remembered(ctx context.Context, db *store.Store) (organisation, url string, err error) {
	err = db.View(ctx, func(tx *store.Tx) error {
		var errOrg, errURL error
		organisation, errOrg = tx.Meta(metaOrganisation)
		url, errURL = tx.Meta(metaURL)
		return errors.Join(errOrg, errURL)
	})
	if err == nil && (organisation == "" || url == "") {
		err = errors.New("the store is not set up: init did not finish; move the data folder away and " +
			"run curfew-controlplane init again")
	}
	return organisation, url, err
}

// directory is the identity service as the commands that run beside a server need it.
func directory(db *store.Store, dir, organisation string, authority *enrol.Authority,
	now func() time.Time, log hclog.Logger,
) (*identity.Service, error) {
	return identity.New(identity.Config{
		Store: store.Identity{Store: db}, Organisation: organisation, CA: authority.Pin(),
		SessionTTL: identity.MaxSessionTTL, RootKeys: rootKeys(dir), Now: now, Rand: rand.Reader,
		Log: log,
	})
}

// Offline is an opened data folder, for the commands that run beside a server or without one.
type Offline struct {
	People       *identity.Service
	Organisation string
	URL          string
	Pin          string
	store        *store.Store
	dir          string
	now          func() time.Time
}

// OpenOffline opens a data folder.
func OpenOffline(ctx context.Context, dir string, now func() time.Time, log hclog.Logger) (
	o *Offline, err error,
) {
	db, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, storeFile), Now: now})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	o = &Offline{store: db, dir: dir, now: now}
	if o.Organisation, o.URL, err = remembered(ctx, db); err != nil {
		return nil, err
	}
	authority, err := enrol.LoadAuthority(dir)
	if err != nil {
		return nil, err
	}
	o.Pin = PinText(authority)
	o.People, err = directory(db, dir, o.Organisation, authority, now, log)
	return o, err
}

// Close closes the store.
func (o *Offline) Close() error { return o.store.Close() }
