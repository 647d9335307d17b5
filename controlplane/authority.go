package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/trail"
)

// Kinds of trail records about the CA.
const (
	kindCAPrepared = "ca.prepared"
	kindCASwitched = "ca.switched"
	kindCADropped  = "ca.dropped"
	kindCAReplaced = "ca.replaced"
)

// CA is how the control plane's CA stands, and its hosts with it.
type CA struct {
	Pin string
	// Next is the pin of the CA that waits; empty for none. NotYet are the hosts that have not said that
	// they accept it.
	Next   string
	NotYet []string
	// Old are pins of the CAs before that still count; Behind are the hosts whose certificates are not
	// from the present one.
	Old    []string
	Behind []string
	Hosts  int
}

// ErrHostsBehind means that a step of a rotation would lose hosts.
var ErrHostsBehind = errors.New("hosts would be lost")

// CA reads how the CA stands.
func (o *Offline) CA(ctx context.Context) (ca CA, err error) {
	authority, err := enrol.LoadAuthority(o.dir)
	if err != nil {
		return ca, err
	}
	ca.Pin = PinText(authority)
	if authority.Next() != nil {
		ca.Next = pinOf(authority.Next())
	}
	for _, old := range authority.Old() {
		ca.Old = append(ca.Old, pinOf(old))
	}
	present := enrol.Name(authority.Certificate())
	err = o.store.View(ctx, func(t *store.Tx) error {
		hosts, err := t.HostCAs()
		ca.Hosts = len(hosts)
		for _, h := range hosts {
			if h.CertifiedBy != present {
				ca.Behind = append(ca.Behind, h.Host)
			}
			if authority.Next() != nil && !slices.Contains(h.Accepts, enrol.Name(authority.Next())) {
				ca.NotYet = append(ca.NotYet, h.Host)
			}
		}
		return err
	})
	return ca, err
}

// PrepareCA draws the CA that shall take the present one's place. The server announces it, and hosts and
// people accept both from then on.
func (o *Offline) PrepareCA(ctx context.Context) (CA, error) {
	if err := enrol.PrepareNext(o.dir, o.Organisation, o.now()); err != nil {
		return CA{}, err
	}
	ca, err := o.CA(ctx)
	if err != nil {
		return ca, err
	}
	return ca, o.note(ctx, kindCAPrepared, map[string]string{"pin": ca.Pin, "next": ca.Next})
}

// SwitchCA puts the prepared CA into force. Hosts that do not accept it would be lost: they are named,
// and force goes on without them.
func (o *Offline) SwitchCA(ctx context.Context, force bool) (CA, error) {
	before, err := o.CA(ctx)
	switch {
	case err != nil:
		return before, err
	case before.Next == "":
		return before, errors.New("no CA was prepared: curfew-controlplane ca rotate")
	case len(before.NotYet) > 0 && !force:
		return before, fmt.Errorf("%w: %s do not accept the new CA yet", ErrHostsBehind,
			strings.Join(before.NotYet, ", "))
	}
	if err := enrol.Switch(o.dir); err != nil {
		return before, err
	}
	ca, err := o.CA(ctx)
	if err != nil {
		return ca, err
	}
	return ca, o.note(ctx, kindCASwitched, map[string]string{
		"pin": ca.Pin, "before": before.Pin, "without": strings.Join(before.NotYet, " "),
	})
}

// DropCA ends the CAs before the present one. Hosts whose certificates are from them would be lost: they
// are named, and force goes on without them.
func (o *Offline) DropCA(ctx context.Context, force bool) (CA, error) {
	before, err := o.CA(ctx)
	switch {
	case err != nil:
		return before, err
	case len(before.Old) == 0:
		return before, errors.New("no CA before the present one counts")
	case len(before.Behind) > 0 && !force:
		return before, fmt.Errorf("%w: %s still show certificates from an old CA", ErrHostsBehind,
			strings.Join(before.Behind, ", "))
	}
	if err := enrol.DropOld(o.dir); err != nil {
		return before, err
	}
	return before, o.note(ctx, kindCADropped, map[string]string{
		"pin": before.Pin, "dropped": strings.Join(before.Old, " "), "without": strings.Join(before.Behind, " "),
	})
}

func (o *Offline) note(ctx context.Context, kind string, details map[string]string) error {
	return o.store.Update(ctx, func(t *store.Tx) error {
		return t.Append(trail.Record{
			TimeMS: o.now().UnixMilli(), Kind: kind, Actor: "curfew", Details: details,
		})
	})
}

// ReplaceLostCA makes a new CA where the key of the present one is gone. Hosts do not accept it by
// themselves: each is told its pin by hand. Their own certificates still count.
func ReplaceLostCA(ctx context.Context, dir string, now func() time.Time) (pin string, err error) {
	key := filepath.Join(dir, enrol.CAKeyFile)
	if _, err := os.Stat(key); err == nil {
		return "", fmt.Errorf("the CA's key is there, in %s: curfew-controlplane ca rotate", key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	db, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, storeFile), Now: now})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	organisation, _, err := remembered(ctx, db)
	if err != nil {
		return "", err
	}
	if err := enrol.PrepareNext(dir, organisation, now()); err != nil {
		return "", err
	}
	if err := enrol.Switch(dir); err != nil {
		return "", err
	}
	authority, err := enrol.LoadAuthority(dir)
	if err != nil {
		return "", err
	}
	o := &Offline{store: db, dir: dir, now: now}
	return PinText(authority), o.note(ctx, kindCAReplaced, map[string]string{"pin": PinText(authority)})
}

func pinOf(cert *x509.Certificate) string { return pinText(cert.Raw) }
