package residue

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func texts(r *Report) string {
	var all []string
	for _, f := range r.Left {
		all = append(all, string(f.Kind)+": "+f.Text)
	}
	return strings.Join(all, "\n")
}

func (h *host) began(name string) Record {
	r := ended(time.Now())
	r.Request, r.Ended, r.RootEquivalent = name, false, true
	h.ok(h.job.Store.Put(r))
	h.ok(h.job.Work(h.t.Context()))
	return r
}

func (h *host) over(r Record) Outcome {
	r.Ended = true
	h.ok(h.job.Store.Put(r))
	return h.work(r.Request)
}

const oneKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBMwBRGCOzGCFXMgpIvmEyeCz4C9EFGWAbUzbCdGhRvW a@x\n"

// Every place where root leaves what lasts, told by name; what nobody touched is not.
func TestReportTellsWhatRootLeft(t *testing.T) {
	h := newHost(t)
	h.write("home/carol/.ssh/authorized_keys", oneKey)
	h.write("etc/untouched", "x")
	h.program("usr/bin/su", 0, 0, 0o4755)
	time.Sleep(20 * time.Millisecond)
	r := h.began(request)
	time.Sleep(20 * time.Millisecond)
	h.program("usr/bin/rootsh", 0, 0, 0o4755)
	h.program("srv/carolsh", carol, 0, 0o4755)
	h.program("srv/groupsh", 0, web, 0o2755)
	h.program("tmp/kims", kim, kim, 0o4755) // Curfew's own to clear, and not residue
	h.write("etc/sudoers.d/evil", "x")
	h.write("etc/systemd/system/evil.timer", "x")
	h.write("run/systemd/transient/run-u7.service", "x")
	h.write("run/systemd/transient/curfew-k3v9x2m7q4ab-1-00000000.scope", "x")
	h.write("run/systemd/transient/session-3.scope", "x")
	h.write("var/spool/cron/crontabs/root", "x")
	h.write("etc/ld.so.preload", "")
	h.write("etc/other", "x")
	h.write("usr/bin/ls", "x")
	h.write("root/.bashrc", "x")
	h.write("home/carol/.ssh/authorized_keys", oneKey+strings.ReplaceAll(oneKey, "a@x", "evil"))
	h.write("etc/passwd", "root:x:0:0::/root:/bin/sh\ncarol:x:1001:1001::/home/carol:/bin/bash\nmallory:x:0:0::/:/bin/sh\n")
	h.ok(os.Remove(h.path("etc/sudoers.d/base")))
	h.ok(os.Chmod(h.path("etc/untouched"), 0o600)) // and back: the same as at the start
	h.ok(os.Chmod(h.path("etc/untouched"), 0o644))
	o := h.over(r)
	got := texts(o.Report)
	for _, want := range []string{
		"setuid: new or changed setuid /usr/bin/rootsh (uid 0)",
		"setuid: new or changed setuid /srv/carolsh (uid 1001)",
		"setuid: new or changed setgid /srv/groupsh (gid 4242, of uid 0)",
		"account: new user mallory", "account: changed user carol", "account: gone user lou",
		"sudo: new /etc/sudoers.d/evil", "sudo: gone /etc/sudoers.d/base",
		"key: changed /home/carol/.ssh/authorized_keys (1 key more)",
		"auth: new /etc/ld.so.preload", "unit: new /etc/systemd/system/evil.timer",
		"unit: new /run/systemd/transient/run-u7.service", "job: new /var/spool/cron/crontabs/root",
		"startup: new /root/.bashrc", "system: new or changed /usr/bin/ls", "etc: new /etc/other",
	} {
		if !strings.Contains(got+"\n", want+"\n") {
			t.Errorf("want %q", want)
		}
	}
	for _, never := range []string{"/su (", "untouched", "curfew-", "session-3", "kims", "shadow"} {
		if strings.Contains(got, never) {
			t.Errorf("tells of %s", never)
		}
	}
	if !o.Through || o.Report.BaseMS == 0 || h.mode("usr/bin/rootsh") != 0o4755 || h.mode("tmp/kims") != 0o755 {
		t.Errorf("%+v", o)
	}
	if t.Failed() {
		t.Log(got)
	}
}

// Two grants that overlap are each compared with their own start.
func TestOverlappingGrantsHaveTheirOwnStart(t *testing.T) {
	h := newHost(t)
	first := h.began(request)
	time.Sleep(20 * time.Millisecond)
	h.write("etc/cron.d/one", "x")
	h.program("srv/one", 0, 0, 0o4755)
	time.Sleep(20 * time.Millisecond)
	other := h.began(second)
	time.Sleep(20 * time.Millisecond)
	h.write("etc/cron.d/two", "x")
	h.program("srv/two", 0, 0, 0o4755)
	// They end together, so that one look serves both.
	first.Ended, other.Ended = true, true
	h.ok(h.job.Store.Put(first))
	h.ok(h.job.Store.Put(other))
	both, later := texts(h.work(request).Report), texts(h.work(second).Report)
	for _, name := range []string{"cron.d/one", "cron.d/two", "srv/one", "srv/two"} {
		if !strings.Contains(both, name) {
			t.Errorf("the first does not tell of %s:\n%s", name, both)
		}
		if strings.Contains(later, name) != strings.HasSuffix(name, "two") {
			t.Errorf("the second and %s:\n%s", name, later)
		}
	}
}

// What root did before the state at the start was taken is not taken for the start.
func TestALateBaseHidesNothing(t *testing.T) {
	h := newHost(t)
	r := ended(time.Now().Add(-time.Second))
	r.Ended, r.RootEquivalent = false, true
	h.ok(h.job.Store.Put(r))
	h.write("etc/cron.d/quick", "x")
	h.ok(h.job.Work(t.Context()))
	if got := texts(h.over(r).Report); !strings.Contains(got, "new or changed /etc/cron.d/quick") {
		t.Error(got)
	}
	// Without any base, times of change tell.
	h.ok(h.job.Store.Drop(request))
	o := h.over(r)
	if got := texts(o.Report); o.Report.BaseMS != 0 || !strings.Contains(got, "/etc/cron.d/quick") {
		t.Error(got)
	}
	if d := o.Report.Details(1 << 10); !strings.Contains(d["not_looked_at"], "the state at the start") {
		t.Errorf("%v", d)
	}
}

// A report fits on the trail, whatever was left, and says how much it does not list.
func TestReportsAreBounded(t *testing.T) {
	now := &Inventory{Entries: make(map[string]Entry)}
	for i := range 5_000 {
		now.Entries[fmt.Sprintf("/etc/%04d-%s", i, strings.Repeat("x", 60))] = Entry{Kind: KindEtc, ChangedMS: 9}
	}
	now.Entries["/etc/sudoers"] = Entry{Kind: KindSudo, ChangedMS: 9}
	marks := []Mark{{Finding: Finding{KindSetid, strings.Repeat("y", 600)}, ChangedMS: 9}}
	r := compare(&Inventory{Entries: map[string]Entry{}, AtMS: 1}, now, 5, marks)
	if len(r.Left) != maxListed || r.More != 5_002-maxListed || r.Left[0].Kind != KindSetid || r.Left[1].Kind != KindSudo {
		t.Errorf("%d listed, %d more, %v first", len(r.Left), r.More, r.Left[0])
	}
	d := r.Details(1 << 10)
	listed := 0
	for k, v := range d {
		if len(v) > 1<<10 || len(k) > 64 {
			t.Errorf("%s has %d bytes", k, len(v))
		}
		if k != "count" && k != "not_listed" {
			listed += strings.Count(v, "; ") + 1
		}
	}
	if len(d)+3 > 16 || d["count"] != "5002" || d["not_listed"] != fmt.Sprint(5_002-listed) {
		t.Errorf("%d details, count %s, not listed %s, listed %d", len(d), d["count"], d["not_listed"], listed)
	}
	// All kinds at once still fit into the 16 details of an event, with the two that the agent adds.
	all := &Report{Cut: []string{"x"}, More: 1} // and without a base
	for _, k := range Kinds {
		all.Left = append(all.Left, Finding{k, "z"})
	}
	if n := len(all.Details(1<<10)) + 2; n > 16 {
		t.Errorf("%d details", n)
	}
}

// Files that cannot be read are no licence to forget, and what is not a record is left alone.
func TestStoreRefusesNonsense(t *testing.T) {
	h := newHost(t)
	dir := "var/lib/curfew/residue/"
	for name, text := range map[string]string{
		"k3v9x2m7q4ab.record.json": "{", "k3v9x2m7q4ac.record.json": `{"version":9,"request":"k3v9x2m7q4ac"}`,
		"k3v9x2m7q4ad.record.json": `{"version":1,"request":"k3v9x2m7q4ab"}`,
		"k3v9x2m7q4ae.record.json": `{"version":1,"request":"k3v9x2m7q4ae","account":true,"uid":33}`,
	} {
		h.write(dir+name, text)
		h.ok(os.Chmod(h.path(dir+name), 0o600))
	}
	list, problems := h.job.Store.Records()
	if len(list) != 0 || len(problems) != 4 {
		t.Errorf("%v %v", list, problems)
	}
	h.ok(h.job.Work(t.Context()))
	r := ended(time.Now())
	r.Account, r.UID = true, 999
	if err := h.job.Store.Put(r); err == nil {
		t.Error("a system user's files would be hunted")
	}
}

func TestMountsAreChosenOnce(t *testing.T) {
	info := `22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw - proc proc rw
24 22 0:30 / /dev/shm rw - tmpfs tmpfs rw
25 22 0:41 / /net rw - nfs4 srv:/x rw
26 22 8:1 /srv /bind rw - ext4 /dev/sda1 rw
27 22 8:2 /@home /home rw shared:1 - btrfs /dev/sda2 rw
28 22 8:2 /@var /var\040x rw - btrfs /dev/sda2 rw
29 22 0:50 / /mnt/sshfs rw - fuse.sshfs x rw
30 22 8:3 / /boot/efi rw - vfat /dev/sda3 rw
31 22 8:4 / /win rw - fuseblk /dev/sda4 rw
32 25 8:5 / /net/disk rw - ext4 /dev/sdb rw
33 22 0:60 / /cifs rw - cifs x rw
`
	all, err := parseMounts([]byte(info))
	if err != nil {
		t.Fatal(err)
	}
	local := localKinds([]byte("nodev\tproc\nnodev\ttmpfs\n\text4\n\tvfat\n\tfuseblk\nnodev\tnfs4\nnodev\tcifs\n"))
	var paths []string
	for _, m := range chosen(all, local) {
		paths = append(paths, m.path)
	}
	if got := strings.Join(paths, " "); got != "/ /dev/shm /home /net/disk /var x" {
		t.Errorf("%q", got)
	}
	m := mounts{all: all, local: local}
	for p, want := range map[string]bool{
		"/": true, "/etc": true, "/net": false, "/net/home/a": false, "/net/disk/a": true, "/network": true,
		"/home/a": true, "/mnt/sshfs/a": false, "/cifs": false, "/proc/1": false,
	} {
		if m.isLocal(p) != want {
			t.Errorf("%s: %v", p, !want)
		}
	}
	for _, bad := range []string{"1 2", "x 1 8:1 / / rw - ext4 x rw", "1 1 8:1 / / rw ext4"} {
		if _, err := parseMounts([]byte(bad + "\n")); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzMounts(f *testing.F) {
	f.Add([]byte("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n26 22 8:1 /a\\040b /b\\134 rw x:1 - ext4 d rw\n"))
	f.Fuzz(func(t *testing.T, info []byte) {
		all, err := parseMounts(info)
		if err != nil {
			return
		}
		for _, m := range chosen(all, map[string]bool{"ext4": true}) {
			if m.kind != "ext4" {
				t.Errorf("%+v was chosen", m)
			}
		}
	})
}

// The outcome of the largest look fits into the file that it is read from.
func TestOutcomesFit(t *testing.T) {
	o := Outcome{Report: &Report{}}
	for range maxListed {
		o.Report.Left = append(o.Report.Left, Finding{KindSetid, strings.Repeat("x", maxPath+64)})
	}
	for range maxCleared {
		o.Cleared = append(o.Cleared, strings.Repeat("x", maxPath))
		o.Problems = append(o.Problems, strings.Repeat("x", maxPath+100))
	}
	if b, err := json.Marshal(o); err != nil || len(b) > maxOutcome {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
