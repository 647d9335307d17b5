package enforce

import (
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/curfew-access/curfew/agent/folder"
)

// Tree is the complete desired content of every place that Curfew writes.
type Tree []Place

// Place is one folder. An exclusive one holds exactly Files; in another one only Files are Curfew's.
type Place struct {
	// Path is relative to the file system's root.
	Path      string
	Mode      fs.FileMode
	Exclusive bool
	Files     map[string]folder.File
	// Reserve is how many bytes are kept aside here for a purge on a full disk.
	Reserve int64
}

// Repair is one thing that Sync found otherwise than desired, and put right.
type Repair struct {
	Path string
	// What is "removed" or "written".
	What string
}

// Failure is one path that Sync could not make as desired.
type Failure struct {
	Path string
	Err  error
}

func (f Failure) Error() string { return fmt.Sprintf("%s: %v", f.Path, f.Err) }

// Sync makes the disk below root equal to the tree, by descriptors only, and follows nothing that
// stands there. Access goes before it comes: first everything undesired is removed, then shared files
// are replaced, then the files that open access are written. One path's failure does not keep the
// others from being made right.
func Sync(root *folder.Folder, tree Tree) (repairs []Repair, failures []Failure) {
	s := syncer{repairs: &repairs, failures: &failures}
	open := make([]*folder.Folder, len(tree))
	for i, p := range tree {
		reach := root.Sub // systemd mounts ReadWritePaths= over the folders that are shared
		if p.Exclusive {
			reach = root.SubOwn // sudo and sshd would read what lies below a mount that we do not see
		}
		sub, err := reach(p.Path, p.Mode)
		if err != nil {
			s.failed(p.Path, err)
			continue
		}
		open[i] = sub
	}
	s.each(tree, open, true, s.remove)
	s.each(tree, open, false, s.write)
	s.each(tree, open, true, s.write)
	for i, sub := range open {
		if sub != nil {
			if err := sub.Close(); err != nil {
				s.failed(tree[i].Path, err)
			}
		}
	}
	return repairs, failures
}

type syncer struct {
	repairs  *[]Repair
	failures *[]Failure
}

func (s syncer) each(
	tree Tree, open []*folder.Folder, exclusive bool, do func(*folder.Folder, Place),
) {
	for i, p := range tree {
		if open[i] != nil && p.Exclusive == exclusive {
			do(open[i], p)
		}
	}
}

func (s syncer) remove(dir *folder.Folder, p Place) {
	names, err := dir.List()
	if err != nil {
		s.failed(p.Path, err)
		return
	}
	removed := false
	for _, name := range names {
		if _, wanted := p.Files[name]; wanted {
			continue
		}
		if err := dir.Remove(name); err != nil {
			s.failed(path.Join(p.Path, name), err)
			continue
		}
		removed = true
		*s.repairs = append(*s.repairs, Repair{Path: path.Join(p.Path, name), What: "removed"})
	}
	if removed {
		if err := dir.Sync(); err != nil {
			s.failed(p.Path, err)
		}
	}
}

func (s syncer) write(dir *folder.Folder, p Place) {
	if p.Reserve > 0 {
		// Where there is no room to take access away again, none is given.
		defer func() {
			if err := dir.Reserve(p.Reserve); err != nil {
				s.failed(p.Path, err)
			}
		}()
	}
	for _, name := range sortedNames(p.Files) {
		want := p.Files[name]
		same, err := dir.Holds(name, want)
		if err == nil && same {
			continue
		}
		if err := dir.Write(name, want); err != nil {
			s.failed(path.Join(p.Path, name), err)
			continue
		}
		*s.repairs = append(*s.repairs, Repair{Path: path.Join(p.Path, name), What: "written"})
	}
}

func (s syncer) failed(path string, err error) {
	*s.failures = append(*s.failures, Failure{Path: path, Err: err})
}

func sortedNames(files map[string]folder.File) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// equal tells whether two trees are the same.
func (t Tree) equal(o Tree) bool {
	return slices.EqualFunc(t, o, func(a, b Place) bool {
		if a.Path != b.Path || a.Mode != b.Mode || a.Exclusive != b.Exclusive ||
			len(a.Files) != len(b.Files) {
			return false
		}
		for name, x := range a.Files {
			y, ok := b.Files[name]
			if !ok || x.Mode != y.Mode || x.GID != y.GID || string(x.Data) != string(y.Data) {
				return false
			}
		}
		return true
	})
}
