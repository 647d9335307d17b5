package sudoers

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Known remembers which programs were tried and found honest, so that not every grant that somebody
// waits for tries them anew. A program that was replaced, or changed in its place, is unknown again:
// nobody, not even root, sets the time of a file's last change back without changing the clock. The
// zero value knows nothing; a nil Known remembers nothing.
type Known struct {
	mu    sync.Mutex
	files map[string]identity
}

// identity is what the kernel says of a program's file.
type identity struct {
	dev, inode   uint64
	size         int64
	mtime, ctime unix.Timespec
}

// settled is how long a file must have been left alone for its times to tell it from the next one: a
// kernel stamps files by a clock that ticks every 10 ms at worst.
const settled = time.Second

func identify(program string, now time.Time) (id identity, ok bool) {
	var st unix.Stat_t
	if err := unix.Stat(program, &st); err != nil {
		return id, false
	}
	changed := time.Unix(st.Ctim.Sec, st.Ctim.Nsec)
	return identity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, now.Sub(changed).Abs() > settled
}

// once runs a trial of a program unless the very same file passed it before.
func (k *Known) once(program string, trial func() error) error {
	if k == nil {
		return trial()
	}
	before, ok := identify(program, time.Now())
	k.mu.Lock()
	known, tried := k.files[program]
	k.mu.Unlock()
	if ok && tried && known == before {
		return nil
	}
	if err := trial(); err != nil {
		return err
	}
	if after, still := identify(program, time.Now()); !ok || !still || after != before {
		return nil // it held for this time; the next one tries again
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files == nil {
		k.files = make(map[string]identity)
	}
	k.files[program] = before
	return nil
}
