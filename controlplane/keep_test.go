package controlplane_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func quietLog() hclog.Logger { return hclog.NewNullLogger() }

func rename(from, to string) error { return os.Rename(from, to) }

func (h *house) backup(path string) {
	h.t.Helper()
	o, err := controlplane.OpenOffline(h.t.Context(), h.dir, time.Now, quietLog())
	must(h.t, err)
	must(h.t, o.Backup(h.t.Context(), path))
	must(h.t, o.Close())
}

// A host that has seen newer states goes on with a restored control plane, and what ended on it
// stays ended.
func TestRestoredControlPlaneIsObeyed(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	kept, ended := alice.ask("web1"), alice.ask("web1")
	_, err := bob.approve(kept)
	must(t, err)
	_, err = bob.approve(ended)
	must(t, err)
	web1.eventually(2)
	web1.tell(&curfewv1.Event{Kind: trail.KindAgentStarted})
	file := filepath.Join(t.TempDir(), "b.tar")
	h.backup(file)
	// Durable, says the control plane, and the host drops them; then the restore loses them.
	web1.tell(&curfewv1.Event{Kind: trail.KindConfigLoaded})
	web1.tell(&curfewv1.Event{Kind: trail.KindConfigLoaded})
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the backup is %v, %v", info, err)
	}
	// After the backup: lost here, but not on the host.
	_, err = bob.Revoke(t.Context(), &apiv1.RevokeRequest{Id: ended.GetId()})
	must(t, err)
	web1.eventually(1)
	lost := alice.ask("web1")
	h.add("eve") // has the next uid
	web1.disconnect()
	h.stop()
	h.dir = filepath.Join(t.TempDir(), "restored")
	r, err := controlplane.Restore(t.Context(), file, h.dir, time.Now, quietLog())
	must(t, err)
	if !r.Signed {
		t.Fatal("the epoch was not raised although the root key is there")
	}
	h.config.DataDir = h.dir
	h.start()
	web1.connect()
	h.admin = h.signIn("dana", h.admin.key)
	alice, bob = h.signIn("alice", alice.key), h.signIn("bob", bob.key)
	_, err = alice.GetRequest(t.Context(), &apiv1.GetRequestRequest{Id: lost.GetId()})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
	time.Sleep(300 * time.Millisecond)
	if live := web1.eventually(1); live[0].Terms.GetRequestId() != kept.GetId() {
		t.Errorf("after the restore %s is live", live[0].Terms.GetRequestId())
	}
	// The restored control plane is obeyed: a revocation and a new grant reach the host.
	_, err = bob.Revoke(t.Context(), &apiv1.RevokeRequest{Id: kept.GetId()})
	must(t, err)
	web1.eventually(0)
	fresh := alice.ask("web1")
	_, err = bob.approve(fresh)
	must(t, err)
	web1.eventually(1)
	web1.tell(&curfewv1.Event{Kind: trail.KindConfigLoaded})
	lostEvents := 0
	for _, rec := range h.admin.records() {
		if strings.Contains(string(rec.GetLeaf()), `"from":"2","to":"3"`) {
			lostEvents++
		}
	}
	if lostEvents != 1 {
		t.Errorf("%d records tell of the events that were lost", lostEvents)
	}
	// Eve's uid is not given to frank.
	frank, err := h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{Name: "frank"}})
	must(t, err)
	users, err := h.admin.ListUsers(t.Context(), &apiv1.ListUsersRequest{})
	must(t, err)
	for _, u := range users.GetUsers() {
		if u.GetName() != "frank" && u.GetUid()+10 > frank.GetUser().GetUid() {
			t.Errorf("frank has uid %d, close to %s's %d: a lost user may have it",
				frank.GetUser().GetUid(), u.GetName(), u.GetUid())
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	h := build(t, nil)
	good := filepath.Join(t.TempDir(), "b.tar")
	h.backup(good)
	data, err := os.ReadFile(good)
	must(t, err)
	write := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "x.tar")
		must(t, os.WriteFile(path, content, 0o600))
		return path
	}
	evil := func(name string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: 1}))
		_, err := w.Write([]byte("x"))
		must(t, errors.Join(err, w.Close()))
		return b.Bytes()
	}
	flipped := bytes.Clone(data)
	for i := len(flipped) / 2; i < len(flipped)/2+20000; i++ {
		flipped[i] ^= 0xff
	}
	for name, path := range map[string]string{
		"half a file":  write(data[:len(data)/2]),
		"nothing":      write(nil),
		"garbage":      write(bytes.Repeat([]byte("no"), 4096)),
		"a way out":    write(evil("../../etc/passwd")),
		"another name": write(evil("id_rsa")),
		"flipped bits": write(flipped),
	} {
		dir := filepath.Join(t.TempDir(), "data")
		if _, err := controlplane.Restore(t.Context(), path, dir, time.Now, quietLog()); err == nil {
			t.Errorf("%s was restored", name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s left %v behind", name, left)
		}
	}
	if _, err := controlplane.Restore(t.Context(), good, h.dir, time.Now, quietLog()); err == nil ||
		!strings.Contains(err.Error(), "not empty") {
		t.Errorf("restoring over a live folder says %v", err)
	}
	o, err := controlplane.OpenOffline(t.Context(), h.dir, time.Now, quietLog())
	must(t, err)
	defer o.Close()
	if err := o.Backup(t.Context(), good); err == nil {
		t.Error("a backup was written over another")
	}
}

// init never touches what is there.
func TestInitRefusesToOverwrite(t *testing.T) {
	h := build(t, nil)
	_, err := controlplane.Init(t.Context(), controlplane.Setup{
		DataDir: h.dir, Organisation: "acme", URL: "x:1", Admin: "dana",
		AdminKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVnSfmJ1CKPYBIQ8C8oIVz2Bw8MFnKJcSPz3aMmG0mf",
		Now:      time.Now, Log: quietLog(),
	})
	if err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("init over a control plane says %v", err)
	}
}

// A damaged store is refused with what to do, never half-read, and nothing is changed.
func TestDamagedStoreIsRefused(t *testing.T) {
	h := build(t, nil)
	h.stop()
	path := filepath.Join(h.dir, "curfew.db")
	good, err := os.ReadFile(path)
	must(t, err)
	for name, spoil := range map[string]func([]byte) []byte{
		"empty":      func([]byte) []byte { return nil },
		"truncated":  func(b []byte) []byte { return b[:len(b)/2] },
		"no header":  func(b []byte) []byte { return append([]byte("not a database!!"), b[16:]...) },
		"bad pages":  func(b []byte) []byte { copy(b[len(b)/3:], bytes.Repeat([]byte{0xa5}, 40000)); return b },
		"other text": func([]byte) []byte { return []byte(strings.Repeat("hello world ", 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := spoil(bytes.Clone(good))
			must(t, os.WriteFile(path, bad, 0o600))
			_, err := controlplane.New(t.Context(), h.config, time.Now, "test", quietLog())
			if !errors.Is(err, store.ErrDamaged) {
				t.Fatalf("opening it says %v", err)
			}
			if !strings.Contains(err.Error(), "restore") {
				t.Errorf("it does not say what to do: %v", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, bad) {
				t.Error("the damaged file was changed")
			}
		})
	}
	must(t, os.WriteFile(path, good, 0o644))
	must(t, os.Chmod(path, 0o644))
	if _, err := controlplane.New(t.Context(), h.config, time.Now, "test", quietLog()); err == nil ||
		!strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a store that others can read is opened: %v", err)
	}
}

// A watcher sees what is, then every change, and nothing of other people.
func TestWatch(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, _ := h.cast(1)
	mallory := h.add("mallory")
	old := alice.ask("web1")
	w, err := bob.WatchRequests(t.Context(),
		&apiv1.WatchRequestsRequest{Filter: &apiv1.RequestFilter{PendingForMe: true}})
	must(t, err)
	silent, err := mallory.WatchRequests(t.Context(), &apiv1.WatchRequestsRequest{})
	must(t, err)
	next := func(id string, state apiv1.RequestState) {
		t.Helper()
		got, err := w.Recv()
		must(t, err)
		if got.GetRequest().GetId() != id || got.GetRequest().GetState() != state {
			t.Fatalf("the watcher sees %s %v, want %s %v", got.GetRequest().GetId(),
				got.GetRequest().GetState(), id, state)
		}
	}
	next(old.GetId(), apiv1.RequestState_REQUEST_STATE_PENDING)
	fresh := alice.ask("web1")
	next(fresh.GetId(), apiv1.RequestState_REQUEST_STATE_PENDING)
	_, err = alice.Withdraw(t.Context(), &apiv1.WithdrawRequest{Id: fresh.GetId()})
	must(t, err)
	next(fresh.GetId(), apiv1.RequestState_REQUEST_STATE_WITHDRAWN)
	_, err = mallory.WatchRequests(t.Context(), &apiv1.WatchRequestsRequest{Id: old.GetId()})
	must(t, err)
	got := make(chan error, 1)
	go func() {
		_, err := silent.Recv()
		got <- err
	}()
	// A session that ends, ends its watch.
	_, err = h.admin.DisableUser(t.Context(), &apiv1.DisableUserRequest{Name: "mallory"})
	must(t, err)
	alice.ask("web1") // a change, so that the watch looks
	select {
	case err := <-got:
		refused(t, err, apiv1.Code_CODE_SIGN_IN)
	case <-time.After(10 * time.Second):
		t.Error("the watch of a disabled user goes on")
	}
	h.stop()
	for {
		if _, err := w.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				t.Error("a watch ends at a stop as if all were said")
			}
			break
		}
	}
}
