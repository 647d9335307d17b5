package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
	"github.com/curfew-access/curfew/internal/trail"
)

const (
	cyclePolicy = "policy: 1\nroles: {ops: {login: true, max: 1h}}\n" +
		"hosts: {all: {env: bench}}\nrules:\n" +
		"  - {name: open, who: [dev], hosts: [all], roles: [ops], then: auto}\n"
	cycleHosts   = 20
	cyclePeople  = 16
	cycleBatch   = 40 // cycles in one sample of one client
	cycleSamples = 9
	// cycleTxs is how many synced transactions one cycle is: the request with its approval, and the
	// sealed grants.
	cycleTxs = 2
)

// requestCycle compares a request that a standing rule opens, until its sealed grant is durable, with
// a bare loop of as many synced transactions of one row, and sixteen clients with one.
func requestCycle(ctx context.Context, b *Bench) error {
	dir, err := os.MkdirTemp("/var/tmp", "curfew-cycle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := newCycle(ctx, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer c.store.Close()
	bare, err := newBare(filepath.Join(dir, "bare.db"))
	if err != nil {
		return err
	}
	defer bare.Close()
	loop := func() (time.Duration, error) {
		began := time.Now()
		for range cycleBatch * cycleTxs {
			if err := bareTx(ctx, bare); err != nil {
				return 0, err
			}
		}
		return time.Since(began), nil
	}
	one := func() (time.Duration, error) { return c.run(ctx, 1, cycleBatch) }
	mine, peer, err := Pairs(cycleSamples, one, loop)
	if err != nil {
		return err
	}
	perSecond := func(d time.Duration, n int) float64 { return float64(n) / d.Seconds() }
	b.Print(Line{
		Name: "request_cycle", Value: perSecond(mine.median(), cycleBatch), Unit: "/s",
		Peer: perSecond(peer.median(), cycleBatch), Against: "bare_sqlite_transactions", Bar: 0.6,
		AtLeast: true, N: len(mine),
	})
	sixteen := func() (time.Duration, error) { return c.run(ctx, cyclePeople, cycleBatch/4) }
	many, single, err := Pairs(cycleSamples, sixteen, one)
	if err != nil {
		return err
	}
	b.Print(Line{
		Name: "request_cycle_16", Value: perSecond(many.median(), cyclePeople*(cycleBatch/4)), Unit: "/s",
		Peer: perSecond(single.median(), cycleBatch), Against: "one_client", Bar: 3, AtLeast: true,
		N: len(many),
	})
	return nil
}

// cycle is a control plane's parts without its network, with people whom a standing rule lets in.
type cycle struct {
	store  *store.Store
	access *access.Service
	people []identity.Person
	asked  atomic.Int64
}

func newCycle(ctx context.Context, dir string) (*cycle, error) {
	admin, err := sshKey()
	if err != nil {
		return nil, err
	}
	log := hclog.NewNullLogger()
	if _, err := controlplane.Init(ctx, controlplane.Setup{
		DataDir: dir, Organisation: "acme", URL: "127.0.0.1:7443", Admin: "dana", AdminKey: admin,
		Now: time.Now, Log: log,
	}); err != nil {
		return nil, err
	}
	c := &cycle{}
	c.store, err = store.Open(ctx, store.Config{Path: filepath.Join(dir, "curfew.db"), Now: time.Now})
	if err != nil {
		return nil, err
	}
	key, err := keyfile.Load(filepath.Join(dir, "issuer.key"), "grant key")
	if err != nil {
		return nil, err
	}
	root, err := keyfile.Load(filepath.Join(dir, "root.key"), "root key")
	if err != nil {
		return nil, err
	}
	issuer, err := issue.New(issue.Config{Store: c.store, Key: key, Now: time.Now, Log: log})
	if err != nil {
		return nil, err
	}
	people, err := identity.New(identity.Config{
		Store: store.Identity{Store: c.store}, Organisation: "acme", SessionTTL: time.Hour,
		RootKeys: func() ([]ed25519.PrivateKey, error) { return []ed25519.PrivateKey{root}, nil },
		Now:      time.Now, Rand: rand.Reader, Log: log,
	})
	if err != nil {
		return nil, err
	}
	c.access, err = access.New(access.Config{
		Store: store.Access{Store: c.store}, Directory: people, Issuer: issuer, PendingTTL: time.Hour,
		Now: time.Now, Rand: rand.Reader, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return c, c.fill(ctx, people)
}

func sshKey() (string, error) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", err
	}
	return grant.SSHKeyText(key), nil
}

func (c *cycle) fill(ctx context.Context, people *identity.Service) error {
	admin := identity.Person{User: identity.User{Name: "dana", Admin: true}}
	var names []string
	for i := range cyclePeople {
		key, err := sshKey()
		if err != nil {
			return err
		}
		u, err := c.access.PutUser(ctx, admin, identity.Edit{
			Name: fmt.Sprintf("dev%d", i), SSHKeys: []string{key},
		}, true)
		if err != nil {
			return err
		}
		names = append(names, u.Name)
		c.people = append(c.people, identity.Person{User: u})
	}
	if _, err := people.PutGroup(ctx, "dana", identity.Group{Name: "dev", Members: names}); err != nil {
		return err
	}
	for i := range cycleHosts {
		if err := c.host(ctx, fmt.Sprintf("host%d", i)); err != nil {
			return err
		}
	}
	_, err := people.ApplyPolicy(ctx, "dana",
		identity.Apply{File: "bench.yaml", Text: []byte(cyclePolicy)})
	return err
}

func (c *cycle) host(ctx context.Context, name string) error {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	now, hash := time.Now(), sha256.Sum256([]byte(name))
	token := enrol.JoinToken{Hash: hash, Name: name, CreatedBy: "dana", ExpiresAt: now.Add(time.Hour)}
	record := trail.Record{TimeMS: now.UnixMilli(), Kind: enrol.KindHostEnrolled, Actor: "dana", Host: name}
	return errors.Join(
		c.store.PutJoinToken(ctx, token, record),
		c.store.EnrolHost(ctx, hash, func(enrol.JoinToken) (enrol.Host, trail.Record, error) {
			return enrol.Host{
				ID: grant.HostIDOf(pub), Name: name, RootKey: pub, LinkKey: hash,
				Labels: map[string]string{"env": "bench"}, EnrolledAt: now, CertificateEnds: now.Add(time.Hour),
			}, record, nil
		}))
}

// run lets clients ask n times each, and demands that each got a grant.
func (c *cycle) run(ctx context.Context, clients, n int) (time.Duration, error) {
	var wg sync.WaitGroup
	failed := make(chan error, clients)
	began := time.Now()
	for k := range clients {
		wg.Go(func() {
			for range n {
				if err := c.once(ctx, c.people[k]); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	close(failed)
	return took, <-failed
}

func (c *cycle) once(ctx context.Context, p identity.Person) error {
	host := fmt.Sprintf("host%d", c.asked.Add(1)%cycleHosts)
	r, err := c.access.Create(ctx, p, request.Ask{
		Role: "ops", Hosts: []string{host}, Duration: time.Minute, Reason: "measuring",
	}, false)
	if err != nil {
		return err
	}
	if r.State != request.Granted {
		return fmt.Errorf("request %s is %s", r.ID, r.State)
	}
	return nil
}

// newBare opens a database that syncs as ours does.
func newBare(path string) (*sql.DB, error) {
	q := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
	return db, err
}

func bareTx(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO t (v) VALUES (?)", make([]byte, 100)); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
