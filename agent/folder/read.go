package folder

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

func statRegular(file *os.File, path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return st, fmt.Errorf("reading %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return st, fmt.Errorf("%w: %s is not a regular file", ErrUnsafe, path)
	}
	return st, nil
}

func readAll(file *os.File, path string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: it grew past %d bytes", path, limit)
	}
	return data, nil
}
