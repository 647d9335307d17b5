package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// disk is where a host's files are: the shared root below, its own changes above. The upper layer
// is a folder of the world's, or, for hosts which are to lose power, an ext4 file system in a file.
type disk struct {
	lower string // folder of the shared root, as the stage sees it
	own   bool
}

// mountScript mounts the disk of the host in folder $1 on $1/root, with $2 as lower layer.
const mountScript = `
mkdir -p "$1/disk" "$1/root"
if [ -e "$1/disk.ext4" ]; then mount -o loop "$1/disk.ext4" "$1/disk"; fi
mkdir -p "$1/disk/upper" "$1/disk/work"
mount -t overlay -o "lowerdir=$2,upperdir=$1/disk/upper,workdir=$1/disk/work" overlay "$1/root"
`

func (h *Host) mount(ctx context.Context, lower string, own bool) error {
	h.disk = disk{lower: "/run/roots/" + filepath.Base(lower), own: own}
	if own {
		const script = `
mkdir -p "$1"
truncate -s 2G "$1/disk.ext4"
mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1 "$1/disk.ext4"`
		if err := h.w.stage.sh(ctx, script, h.inStage()); err != nil {
			return err
		}
	}
	return h.w.stage.sh(ctx, mountScript, h.inStage(), h.disk.lower)
}

// inStage is the host's folder as the stage sees it.
func (h *Host) inStage() string { return filepath.Join("/run/world/hosts", h.name) }

// diskRoot is the host's root folder as the machine sees it, whether the host runs or not. Mounts
// that the host makes, /run among them, are not in it.
func (h *Host) diskRoot() string { return filepath.Join(h.w.stage.root(), h.inStage(), "root") }

// PowerLoss takes the power from a running host that has a Disk of its own: what has not been
// synced to it is lost, as it would be on a real one. Start boots the host again.
func (h *Host) PowerLoss(ctx context.Context) error {
	if !h.disk.own {
		return fmt.Errorf("%s has no disk of its own to lose power: set HostOptions.Disk", h.name)
	}
	h.starting.Lock()
	defer h.starting.Unlock()
	// Everything stops at once: nobody may see the disk dead, nor a sync that was under way succeed,
	// and still tell others.
	err := h.cgroup.freeze(ctx, true)
	if err == nil {
		err = h.cutPower()
	}
	if err != nil {
		return fmt.Errorf("cutting the power of %s: %w", h.name, errors.Join(err, h.cgroup.freeze(ctx, false)))
	}
	if err := errors.Join(h.Kill(ctx), h.cgroup.freeze(ctx, false)); err != nil {
		return err
	}
	// The namespaces of a dead host let go of its mounts a little later.
	var busy error
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		busy = h.w.stage.sh(ctx, `
if mountpoint -q "$1/root"; then umount "$1/root"; fi
umount "$1/disk"`, h.inStage())
		return busy == nil, nil
	})
	if err != nil {
		return fmt.Errorf("unmounting the disk of %s: %w", h.name, errors.Join(err, busy))
	}
	return h.w.stage.sh(ctx, mountScript, h.inStage(), h.disk.lower)
}

// cutPower makes the disk's file system refuse everything from now on, without flushing its log
// (EXT4_IOC_SHUTDOWN in the kernel's fs/ext4/ext4.h).
func (h *Host) cutPower() error {
	const shutdown, noLogFlush = 0x8004587d, 2
	dir, err := os.Open(filepath.Join(h.w.stage.root(), h.inStage(), "disk"))
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, noLogFlush)
}
