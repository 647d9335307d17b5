package residue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

// Limits of a walk. Each level holds one descriptor; the unit's LimitNOFILE= is above maxDepth.
const (
	readAtOnce  = 512
	maxDepth    = 16_000
	maxFolders  = 1_000_000 // in one folder, whose names are held in memory
	maxProblems = 8
	maxPath     = 512 // shown
)

// resolve is how every step goes: one name, never through a link, never onto another mount.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS |
	unix.RESOLVE_NO_XDEV

// found is a file that a walk came by.
type found struct {
	dir  int // its folder's descriptor, open during the call
	name string
	stat unix.Stat_t
	// path makes the file's path for people, cut when it is long. Only during the call.
	path func() string
}

// walk goes through one tree by descriptors alone: whatever is swapped under it, it neither follows a
// link nor leaves the mount. Folders are visited in the order of their names, so that a walk can be
// taken up where it was left.
type walk struct {
	// visit is called for each file that is no folder.
	visit func(found)
	// pass is called before each folder with its path below the root, for cursors and budgets.
	pass func(below string) error

	stack    []level
	problems []string
	lost     int // problems beyond those
	files    uint64
}

// level is a folder on the way down.
type level struct {
	file *os.File
	name string
	subs []string
}

// tree walks everything below root. With from, a path below root, it begins at that folder. An error
// means that it was cut short; what could not be read is in problems.
func (w *walk) tree(ctx context.Context, root string, id int, from string) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, root, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOATIME,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if vanished(err) || errors.Is(err, unix.ENOTDIR) {
		return nil // a file that is mounted over another is its admin's
	}
	if err != nil {
		w.problem(root, err)
		return nil
	}
	top := os.NewFile(uintptr(fd), root)
	if id != 0 {
		if have, err := mountOf(top.Fd()); err != nil || have != id {
			return errors.Join(err, top.Close()) // another mount covers it, and is walked by itself
		}
	}
	defer func() {
		for _, l := range w.stack {
			_ = l.file.Close() // read only
		}
		w.stack = nil
	}()
	w.stack = []level{{file: top, name: root}}
	resume := strings.FieldsFunc(from, func(r rune) bool { return r == '/' })
	if err := w.enter(resume); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := &w.stack[len(w.stack)-1]
		if len(at.subs) == 0 {
			_ = at.file.Close() // read only
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		name := at.subs[0]
		at.subs = at.subs[1:]
		// The folders on the way to the cursor are the only ones that are begun in their middle.
		if len(resume) > 0 && len(w.stack) == 1 || w.onTheWay(resume, len(w.stack)-1) {
			err = w.down(name, resume)
		} else {
			err = w.down(name, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// onTheWay tells whether the stack follows the cursor down to a depth.
func (w *walk) onTheWay(resume []string, depth int) bool {
	if depth > len(resume) {
		return false
	}
	for i := 1; i <= depth; i++ {
		if w.stack[i].name != resume[i-1] {
			return false
		}
	}
	return len(resume) > 0
}

// down opens a folder of the deepest one and enters it.
func (w *walk) down(name string, resume []string) error {
	at := w.stack[len(w.stack)-1]
	fd, err := unix.Openat2(int(at.file.Fd()), name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME,
		// A mount point answers EXDEV: it is walked by itself, or it is not local.
		Resolve: resolve,
	})
	if vanished(err) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTDIR) ||
		errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		w.problem(w.path(name), err)
		return nil
	}
	if len(w.stack) >= maxDepth {
		w.problem(w.path(name), fmt.Errorf("nested deeper than %d folders; not looked into", maxDepth))
		return unix.Close(fd)
	}
	w.stack = append(w.stack, level{file: os.NewFile(uintptr(fd), name), name: name})
	return w.enter(resume)
}

// enter reads the deepest folder: its files are visited, its folders remembered in order.
func (w *walk) enter(resume []string) error {
	at := &w.stack[len(w.stack)-1]
	below := w.below("")
	if w.pass != nil {
		if err := w.pass(below); err != nil {
			return err
		}
	}
	first := ""
	if depth := len(w.stack) - 1; w.onTheWay(resume, depth) && depth < len(resume) {
		first = resume[depth]
	}
	for {
		entries, err := at.file.ReadDir(readAtOnce)
		for _, e := range entries {
			w.entry(at, e, first)
		}
		if errors.Is(err, io.EOF) || err == nil && len(entries) == 0 {
			break
		}
		if err != nil {
			if !vanished(err) {
				w.problem(w.path(""), err)
			}
			break
		}
	}
	slices.Sort(at.subs)
	return nil
}

func (w *walk) entry(at *level, e os.DirEntry, first string) {
	if e.IsDir() {
		w.folder(at, e.Name(), first)
		return
	}
	f := found{dir: int(at.file.Fd()), name: e.Name()}
	if err := unix.Fstatat(f.dir, f.name, &f.stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if !vanished(err) {
			w.problem(w.path(e.Name()), err)
		}
		return
	}
	w.files++
	if f.stat.Mode&unix.S_IFMT == unix.S_IFDIR { // a file system that does not say so in its folders
		w.folder(at, e.Name(), first)
		return
	}
	f.path = func() string { return w.path(f.name) }
	w.visit(f)
}

func (w *walk) folder(at *level, name, first string) {
	switch {
	case name < first:
	case len(at.subs) >= maxFolders:
		w.problem(w.path(name), fmt.Errorf("more than %d folders in one", maxFolders))
	default:
		at.subs = append(at.subs, name)
	}
}

// below is the path of the deepest folder, or of a name in it, below the root.
func (w *walk) below(name string) string {
	var parts []string
	for _, l := range w.stack[1:] {
		parts = append(parts, l.name)
	}
	if name != "" {
		parts = append(parts, name)
	}
	return strings.Join(parts, "/")
}

// path is the same for people.
func (w *walk) path(name string) string {
	if len(w.stack) > 64 {
		return show(w.stack[0].name + "/…/" + w.stack[len(w.stack)-1].name + "/" + name)
	}
	return show(path.Join(w.stack[0].name, w.below(name)))
}

// show makes a path fit for a line: names may hold any byte.
func show(p string) string {
	p = grant.VisibleText(p)
	if len(p) > maxPath {
		p = "…" + strings.ToValidUTF8(p[len(p)-maxPath:], "")
	}
	return p
}

func (w *walk) problem(where string, err error) {
	if len(w.problems) == maxProblems {
		w.lost++
		return
	}
	w.problems = append(w.problems, fmt.Sprintf("%s: %v", show(where), err))
}

// vanished tells an error that says: it is gone, there is nothing to look at.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESTALE)
}
