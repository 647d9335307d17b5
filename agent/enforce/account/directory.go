package account

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Directory asks the host's whole name service, of which the local files and Curfew's own module are
// parts: whether a name or a uid is somebody's in a directory elsewhere, and whether programs really
// find an account that was written. It runs getent, a process of its own, since the agent never
// resolves users through itself. It is asked when a grant is applied, never for a purge.
type Directory struct {
	// Getent and Nscd are absolute paths; NscdSocket says whether the cache runs.
	Getent, Nscd, NscdSocket string
	// Timeout bounds each run: directories are elsewhere and may be down.
	Timeout time.Duration
}

// ErrDirectory means that the host's name service does not answer.
var ErrDirectory = errors.New("the host's name service does not answer")

const maxEntry = 64 << 10

// Lookup finds a user by login or by uid in decimal.
func (d Directory) Lookup(
	ctx context.Context, key string,
) (name string, uid uint32, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	out, err := d.run(ctx, d.Getent, "passwd", key)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return "", 0, false, nil
	}
	if err != nil {
		return "", 0, false, fmt.Errorf("%w: getent passwd %s: %w", ErrDirectory, key, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Split(line, ":")
	if len(fields) != 7 {
		return "", 0, false, fmt.Errorf("%w: getent passwd %s prints %d fields", ErrDirectory, key,
			len(fields))
	}
	n, err := strconv.ParseUint(fields[2], 10, 32)
	if err != nil {
		return "", 0, false, fmt.Errorf("%w: getent passwd %s: %w", ErrDirectory, key, err)
	}
	return fields[0], uint32(n), true, nil
}

// Free tells whether login and uid belong to each other or to nobody.
func (d Directory) Free(ctx context.Context, login string, uid uint32) error {
	_, have, found, err := d.Lookup(ctx, login)
	if err != nil {
		return err
	}
	if found && have != uid {
		return fmt.Errorf("login %s is somebody with uid %d in this host's directory", login, have)
	}
	name, _, found, err := d.Lookup(ctx, strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return err
	}
	if found && name != login {
		return fmt.Errorf("uid %d of login %s belongs to %s in this host's directory", uid, login, name)
	}
	return nil
}

// Resolves tells whether programs on this host find the account.
func (d Directory) Resolves(ctx context.Context, login string, uid uint32) error {
	_, have, found, err := d.Lookup(ctx, login)
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("programs on this host do not find the account %s: curfew must stand behind "+
			"files in /etc/nsswitch.conf, and libnss_curfew.so.2 must load (curfew-agent doctor)", login)
	case have != uid:
		return fmt.Errorf("login %s is somebody with uid %d in this host's directory", login, have)
	}
	return nil
}

// Forget has the name service's cache, where one runs, forget what it knows: it also remembers who
// was not there.
func (d Directory) Forget(ctx context.Context) error {
	if _, err := os.Stat(d.NscdSocket); err != nil {
		return nil //nolint:nilerr // no cache runs
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	for _, table := range []string{"passwd", "group"} {
		if _, err := d.run(ctx, d.Nscd, "-i", table); err != nil {
			return fmt.Errorf("emptying the name service's cache: %w", err)
		}
	}
	return nil
}

func (d Directory) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return out.Bytes()[:min(out.Len(), maxEntry)], err
}
