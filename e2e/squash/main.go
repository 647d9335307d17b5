// Command squash serves a folder by FUSE as an NFS server exports homes: whoever asks gets what their own user
// may have, and root is nobody. It stands in for NFS on hosts of stories, whose kernel has no client of it:
//
//	squash FOLDER MOUNTPOINT
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// nobody is whom root is taken for.
const nobody = 65534

func main() {
	err := errors.New("usage: squash FOLDER MOUNTPOINT")
	if len(os.Args) == 3 {
		err = serve(os.Args[1], os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "squash:", err)
		os.Exit(1)
	}
}

func serve(folder, at string) error {
	unix.Umask(0) // the kernel has applied the caller's
	root, err := fs.NewLoopbackRoot(folder)
	if err != nil {
		return err
	}
	var never time.Duration // what one may see says nothing of the next
	files := fs.NewNodeFS(root, &fs.Options{EntryTimeout: &never, AttrTimeout: &never})
	server, err := fuse.NewServer(squash{files}, at, &fuse.MountOptions{
		FsName: folder, Name: "squash", AllowOther: true, DirectMountStrict: true,
		DisableReadDirPlus: true, // it looks names up by the way
	})
	if err != nil {
		return fmt.Errorf("mounting on %s: %w", at, err)
	}
	server.Serve()
	return nil
}

// squash has everything that goes by a name, or by a file that is not open yet, done with the rights of who
// asks.
type squash struct{ fuse.RawFileSystem }

// as makes this thread act as who asks, and as nobody for root, until what it returns is called. A thread has
// its own fsuid.
func as(h *fuse.InHeader) (done func()) {
	runtime.LockOSThread()
	if h.Uid == 0 {
		h.Uid, h.Gid = nobody, nobody
	}
	// Group first: only root may change either. They tell the one before, never an error.
	_ = unix.Setfsgid(int(h.Gid))
	_ = unix.Setfsuid(int(h.Uid))
	return func() {
		_ = unix.Setfsuid(0)
		_ = unix.Setfsgid(0)
		runtime.UnlockOSThread()
	}
}

type cancelled = <-chan struct{}

func (s squash) Lookup(c cancelled, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer as(h)()
	return s.RawFileSystem.Lookup(c, h, name, out)
}

func (s squash) GetAttr(c cancelled, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.GetAttr(c, in, out)
}

func (s squash) SetAttr(c cancelled, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.SetAttr(c, in, out)
}

func (s squash) Mknod(c cancelled, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Mknod(c, in, name, out)
}

func (s squash) Mkdir(c cancelled, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Mkdir(c, in, name, out)
}

func (s squash) Unlink(c cancelled, h *fuse.InHeader, name string) fuse.Status {
	defer as(h)()
	return s.RawFileSystem.Unlink(c, h, name)
}

func (s squash) Rmdir(c cancelled, h *fuse.InHeader, name string) fuse.Status {
	defer as(h)()
	return s.RawFileSystem.Rmdir(c, h, name)
}

func (s squash) Rename(c cancelled, in *fuse.RenameIn, from, to string) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Rename(c, in, from, to)
}

func (s squash) Link(c cancelled, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Link(c, in, name, out)
}

func (s squash) Symlink(c cancelled, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	defer as(h)()
	return s.RawFileSystem.Symlink(c, h, to, name, out)
}

func (s squash) Readlink(c cancelled, h *fuse.InHeader) ([]byte, fuse.Status) {
	defer as(h)()
	return s.RawFileSystem.Readlink(c, h)
}

func (s squash) Access(c cancelled, in *fuse.AccessIn) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Access(c, in)
}

func (s squash) Create(c cancelled, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Create(c, in, name, out)
}

func (s squash) Open(c cancelled, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.Open(c, in, out)
}

func (s squash) OpenDir(c cancelled, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer as(&in.InHeader)()
	return s.RawFileSystem.OpenDir(c, in, out)
}
