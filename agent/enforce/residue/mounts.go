package residue

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// mount is one line of /proc/self/mountinfo (proc(5)).
type mount struct {
	id     int
	device string // major:minor
	root   string // of the file system, what is mounted
	path   string
	kind   string // file system type
}

// disks are file systems without a device of their own that live on this machine all the same.
var disks = []string{"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "zfs", "ubifs", "btrfs", "bcachefs"}

// shared are file systems on a device that other machines, or a daemon in user space, answer for: a
// look into them may hang for ever, and what is there is another host's to sweep.
var shared = []string{"fuseblk", "gfs2", "ocfs2", "lustre"}

// flat are file systems that know no owners or no setuid bits, or cannot be written.
var flat = []string{"vfat", "msdos", "exfat", "iso9660", "udf", "squashfs", "erofs", "cramfs", "romfs"}

// localKinds are the types whose files the hunt looks at: those on a block device, as the kernel says
// in /proc/filesystems, and the few others that are local.
func localKinds(filesystems []byte) map[string]bool {
	local := make(map[string]bool)
	for line := range strings.Lines(string(filesystems)) {
		nodev, kind, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if nodev == "" && !slices.Contains(shared, kind) && !slices.Contains(flat, kind) {
			local[kind] = true
		}
	}
	for _, kind := range disks {
		local[kind] = true
	}
	return local
}

// parseMounts reads mountinfo.
func parseMounts(info []byte) ([]mount, error) {
	var list []mount
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+3 {
			return nil, fmt.Errorf("a line of mountinfo has %d fields", len(fields))
		}
		id, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %w", err)
		}
		list = append(list, mount{
			id: id, device: fields[2], root: unescape(fields[3]), path: unescape(fields[4]),
			kind: fields[dash+1],
		})
	}
	return list, nil
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// chosen are the mounts to walk: each local file system once, by the mounts that show the most of it.
// A bind mount shows again what another mount shows already.
func chosen(all []mount, local map[string]bool) []mount {
	byRoot := slices.Clone(all)
	slices.SortStableFunc(byRoot, func(a, b mount) int { return len(a.root) - len(b.root) })
	var list []mount
	for _, m := range byRoot {
		covered := slices.ContainsFunc(list, func(have mount) bool {
			return have.device == m.device && inside(m.root, have.root)
		})
		if local[m.kind] && !covered {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b mount) int { return strings.Compare(a.path, b.path) })
	return list
}

// inside tells whether a clean path is dir or lies below it.
func inside(path, dir string) bool {
	if dir == "/" {
		return true
	}
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/')
}

// mounts is what this machine has mounted.
type mounts struct {
	all   []mount
	local map[string]bool
}

func readMounts() (mounts, error) {
	info, errInfo := os.ReadFile("/proc/self/mountinfo")
	kinds, errKinds := os.ReadFile("/proc/filesystems")
	if err := errors.Join(errInfo, errKinds); err != nil {
		return mounts{}, fmt.Errorf("looking at what is mounted: %w", err)
	}
	all, err := parseMounts(info)
	return mounts{all: all, local: localKinds(kinds)}, err
}

// isLocal tells, without touching it, whether a path lies on a local file system: a look at a path on
// a dead NFS server never returns.
func (m mounts) isLocal(path string) bool {
	best := mount{path: ""}
	for _, one := range m.all { // the later line is mounted over the earlier one
		if inside(path, one.path) && len(one.path) >= len(best.path) {
			best = one
		}
	}
	return m.local[best.kind]
}

// mountOf reads which mount an open file is on, from /proc/self/fdinfo.
func mountOf(fd uintptr) (id int, err error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(info) {
		if text, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(text)))
		}
	}
	return 0, errors.New("fdinfo without mnt_id")
}
