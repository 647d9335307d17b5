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
	"sync"
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

// An entry is a user or a group.
type entry struct {
	name string
	id   uint32
}

// entries asks for the entries of a table, whose lines have that many fields, that go by any of the
// keys: names, or numbers in decimal.
func (d Directory) entries(ctx context.Context, table string, fields int, keys ...string) ([]entry, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	out, err := d.run(ctx, d.Getent, append([]string{table}, keys...)...)
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == missing) {
		return nil, fmt.Errorf("%w: getent %s %s: %w", ErrDirectory, table, strings.Join(keys, " "), err)
	}
	var list []entry
	for line := range strings.Lines(string(out)) {
		parts := strings.SplitN(line, ":", fields)
		if len(parts) != fields {
			return nil, fmt.Errorf("%w: getent %s prints %d fields", ErrDirectory, table, len(parts))
		}
		n, err := strconv.ParseUint(parts[2], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%w: getent %s: %w", ErrDirectory, table, err)
		}
		list = append(list, entry{parts[0], uint32(n)})
	}
	return list, nil
}

// missing is how getent exits when it does not find all of the keys.
const missing = 2

func (d Directory) users(ctx context.Context, keys ...string) ([]entry, error) {
	return d.entries(ctx, "passwd", 7, keys...)
}

func (d Directory) groups(ctx context.Context, keys ...string) ([]entry, error) {
	return d.entries(ctx, "group", 4, keys...)
}

// Free tells whether login and uid belong to each other or to nobody, as a user and as the account's
// private group: a directory's group of that number has files, and one of that name rights.
func (d Directory) Free(ctx context.Context, login string, uid uint32) error {
	keys := []string{login, strconv.FormatUint(uint64(uid), 10)}
	var byGroup sync.WaitGroup
	var groups []entry
	var errGroups error
	byGroup.Go(func() { groups, errGroups = d.groups(ctx, keys...) })
	users, err := d.users(ctx, keys...)
	byGroup.Wait()
	if err != nil {
		return err
	}
	for _, u := range users {
		switch {
		case u == entry{login, uid}:
		case u.id == uid:
			return fmt.Errorf("uid %d of login %s belongs to %s in this host's directory", uid, login, u.name)
		default:
			return somebodyElse(login, u.id)
		}
	}
	if errGroups != nil {
		return errGroups
	}
	for _, g := range groups {
		switch {
		case g == entry{login, uid}:
		case g.id == uid:
			return fmt.Errorf("gid %d of login %s belongs to the group %s in this host's directory", uid,
				login, g.name)
		default:
			return fmt.Errorf("login %s is a group with gid %d in this host's directory", login, g.id)
		}
	}
	return nil
}

func somebodyElse(login string, uid uint32) error {
	return fmt.Errorf("login %s is somebody with uid %d in this host's directory", login, uid)
}

// Resolves tells whether programs on this host find the account.
func (d Directory) Resolves(ctx context.Context, login string, uid uint32) error {
	users, err := d.users(ctx, login)
	switch {
	case err != nil:
		return err
	case len(users) == 0:
		return fmt.Errorf("programs on this host do not find the account %s: curfew must stand behind "+
			"files in /etc/nsswitch.conf, and libnss_curfew.so.2 must load (curfew-agent doctor)", login)
	case users[0].id != uid:
		return somebodyElse(login, users[0].id)
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
