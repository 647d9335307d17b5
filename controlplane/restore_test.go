package controlplane_test

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/keyfile"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// restore brings a backup back in place of the control plane that runs, and starts it.
func (h *house) restore(file string, now func() time.Time) controlplane.Restored {
	h.t.Helper()
	h.stop()
	h.dir = filepath.Join(h.t.TempDir(), "restored")
	r, err := controlplane.Restore(h.t.Context(), file, h.dir, now, quietLog())
	must(h.t, err)
	h.config.DataDir = h.dir
	h.start()
	h.admin = h.signIn("dana", h.admin.key)
	return r
}

// again signs in anew after a restore.
func (h *house) again(people ...**person) {
	for _, p := range people {
		*p = h.signIn((*p).name, (*p).key)
	}
}

// told counts the records of the trail that hold all of some words.
func (h *house) told(words ...string) (n int) {
	for _, r := range h.admin.records() {
		all := true
		for _, w := range words {
			all = all && strings.Contains(string(r.GetLeaf()), w)
		}
		if all {
			n++
		}
	}
	return n
}

// obeyed demands that a host takes new grants and their ends.
func (h *house) obeyed(alice, bob *person, web1 *host, live int) {
	h.t.Helper()
	fresh := alice.ask("web1")
	_, err := bob.approve(fresh)
	must(h.t, err)
	web1.eventually(live + 1)
	_, err = bob.Revoke(h.t.Context(), &apiv1.RevokeRequest{Id: fresh.GetId()})
	must(h.t, err)
	web1.eventually(live)
}

// One backup is restored twice, and the second restore's clock repeats the first one's, or is behind it.
// Hosts have obeyed the first; they obey the second all the same, and keep what is valid.
func TestOneBackupRestoredTwice(t *testing.T) {
	for name, second := range map[string]time.Duration{
		"in the same instant": 0, "with the clock set back": -time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			h := build(t, nil)
			alice, bob, _, web1 := h.cast(1)
			kept := alice.ask("web1")
			_, err := bob.approve(kept)
			must(t, err)
			web1.eventually(1)
			file := filepath.Join(t.TempDir(), "b.tar")
			h.backup(file)
			instant := time.Now().Add(2 * time.Hour)
			web1.disconnect()
			h.restore(file, func() time.Time { return instant })
			h.again(&alice, &bob)
			web1.connect()
			h.obeyed(alice, bob, web1, 1)
			web1.disconnect()
			h.restore(file, func() time.Time { return instant.Add(second) })
			h.again(&alice, &bob)
			web1.connect()
			h.obeyed(alice, bob, web1, 1)
			if web1.grants()[0].Terms.GetRequestId() != kept.GetId() {
				t.Error("the valid grant is not the one that is live")
			}
			if n := h.told("trust.behind", "web1"); n != 1 {
				t.Errorf("%d records tell that the host has seen a newer control plane", n)
			}
			if p := h.problems("web1"); strings.Contains(p, "newer control plane") {
				t.Errorf("a problem that mended itself is shown: %s", p)
			}
			h.join("web2") // of the newest trust file
		})
	}
}

// Where the root key is kept elsewhere, the step above what hosts have seen waits for it, and people are
// told where they look.
func TestRestoredTwiceWithoutTheRootKey(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	kept := alice.ask("web1")
	_, err := bob.approve(kept)
	must(t, err)
	web1.eventually(1)
	withKey, without := filepath.Join(t.TempDir(), "b.tar"), filepath.Join(t.TempDir(), "c.tar")
	h.backup(withKey)
	away := filepath.Join(t.TempDir(), "root.key")
	must(t, os.Rename(filepath.Join(h.dir, controlplane.RootFile), away))
	h.backup(without)
	web1.disconnect()
	h.restore(withKey, func() time.Time { return time.Now().Add(time.Hour) })
	h.again(&alice, &bob)
	web1.connect()
	h.obeyed(alice, bob, web1, 1)
	web1.disconnect()
	if r := h.restore(without, time.Now); r.Signed {
		t.Fatal("signed without the key")
	}
	h.again(&alice, &bob)
	web1.connect()
	if h.stays(func() bool { return !strings.Contains(h.problems("web1"), "waits for root keys") }) {
		t.Fatalf("problems are %q", h.problems("web1"))
	}
	if live := web1.grants(); len(live) != 1 {
		t.Errorf("%d grants are live on a host that obeys nobody", len(live))
	}
	h.sign(away)
	web1.eventually(1)
	h.obeyed(alice, bob, web1, 1)
}

// sign signs what waits with a root key that lies elsewhere.
func (h *house) sign(file string) {
	h.t.Helper()
	key, err := keyfile.Load(file, "root key")
	must(h.t, err)
	o, err := controlplane.OpenOffline(h.t.Context(), h.dir, time.Now, quietLog())
	must(h.t, err)
	_, w, err := o.People.SignTrust(h.t.Context(), "curfew", []ed25519.PrivateKey{key})
	must(h.t, err)
	if w.Text != "" {
		h.t.Errorf("it still waits: %s", w.Text)
	}
	must(h.t, o.Close())
}

// A data folder that was put back without a restore is noticed by what hosts have seen; nothing steps
// above it by itself, and the epoch that an admin then raises is above it.
func TestDiskSetBackIsNoticed(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	h.stop()
	old := filepath.Join(t.TempDir(), "old")
	must(t, os.CopyFS(old, os.DirFS(h.dir)))
	must(t, filepath.WalkDir(old, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Chmod(path, 0o600)
		}
		return err
	}))
	h.start()
	h.admin = h.signIn("dana", h.admin.key)
	h.again(&alice, &bob)
	web1.disconnect()
	web1.connect()
	h.obeyed(alice, bob, web1, 0)
	h.ahead.Store(int64(time.Minute)) // the clock is ahead, and put right later
	_, err := h.admin.ProposeTrust(t.Context(), &apiv1.ProposeTrustRequest{BumpEpoch: true})
	must(t, err)
	h.obeyed(alice, bob, web1, 0)
	h.ahead.Store(0)
	web1.disconnect()
	h.stop()
	h.dir, h.config.DataDir = old, old
	h.start()
	h.admin = h.signIn("dana", h.admin.key)
	h.again(&alice, &bob)
	web1.connect()
	if h.stays(func() bool { return !strings.Contains(h.problems("web1"), "propose --bump-epoch") }) {
		t.Fatalf("problems are %q", h.problems("web1"))
	}
	if n := h.told("trust.behind"); n != 1 {
		t.Errorf("%d records tell of it", n)
	}
	_, err = h.admin.ProposeTrust(t.Context(), &apiv1.ProposeTrustRequest{BumpEpoch: true})
	must(t, err)
	h.obeyed(alice, bob, web1, 0)
}

// What a restore lost is told: grants that hosts hold and records that they have seen.
func TestRestoreTellsWhatItLost(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	file := filepath.Join(t.TempDir(), "b.tar")
	h.backup(file)
	lost := alice.ask("web1")
	_, err := bob.approve(lost)
	must(t, err)
	web1.eventually(1)
	web1.disconnect()
	h.restore(file, time.Now)
	web1.connect()
	web1.eventually(0)
	if n := h.told("host.lost_by_restore", `"grants":"1"`, "of the trail before", "web1"); n != 1 {
		t.Errorf("%d records tell what was lost", n)
	}
	if p := h.problems("web1"); !strings.Contains(p, "1 grants that it held") {
		t.Errorf("problems are %q", p)
	}
	web1.disconnect()
	web1.connect()
	h.join("web2")
	if n := h.told("host.lost_by_restore"); n != 1 {
		t.Errorf("it is told %d times", n)
	}
}
