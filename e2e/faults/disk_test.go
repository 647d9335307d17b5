package faults

import (
	"context"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/e2e/inject/power"
)

// disk is a small ext4 under a host's /var/lib/curfew.
type disk struct {
	r      *rig
	device string
}

const storeDir = "/var/lib/curfew"

func newDisk(r *rig) *disk {
	r.t.Helper()
	d := &disk{r: r, device: power.Device(r.t, 16<<20)}
	d.mount()
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := r.host.Shell(ctx, `systemctl stop curfew-gate.socket curfew-enforce.service; umount -l `+storeDir); err != nil {
			r.t.Error(err)
		}
	})
	return d
}

func (d *disk) mount() {
	d.r.t.Helper()
	info := power.Run(d.r.t, "stat", "-c", "%Hr %Lr", d.device)
	d.r.on(fmt.Sprintf(`rm -f /dev/store; mknod /dev/store b %s; mount -t ext4 /dev/store %s
chmod 700 %[2]s`, info, storeDir))
}

func (d *disk) path() string { return fmt.Sprintf("/proc/%d/root%s", d.r.host.PID(), storeDir) }

// remount is what a reboot does to the disk: its log is replayed.
func (d *disk) remount() {
	d.r.t.Helper()
	d.r.within(10*time.Second, "the disk to be let go", func() bool {
		_, err := d.r.host.Exec(d.r.ctx, "umount", storeDir)
		return err == nil
	})
	d.mount()
}

func (r *rig) within(limit time.Duration, what string, done func() bool) {
	r.t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waited %v for %s", limit, what)
		}
	}
}
