package session

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
)

const (
	userSlice = "/user.slice"
	// maxEntries bounds how much of a cgroup folder is looked at.
	maxEntries = 100_000
)

// The two kinds of cgroup that end with a request. Both are direct children of a user's slice, where
// only PID 1 can make a cgroup: inside user@UID.service a person may call one whatever he likes.
var (
	scopePath = regexp.MustCompile(
		`^/user\.slice/user-(\d{1,10})\.slice/curfew-([0-9a-z]{12})-\d{1,10}-[0-9a-f]{8}\.scope(?:/|$)`)
	loginPath = regexp.MustCompile(
		`^(/user\.slice/user-(\d{1,10})\.slice/session-[0-9a-z]{1,16}\.scope)(?:/|$)`)
)

// scopeOf returns the request whose scope a cgroup path lies in.
func scopeOf(cgroup string) (request string, ok bool) {
	m := scopePath.FindStringSubmatch(cgroup)
	if m == nil {
		return "", false
	}
	return m[2], true
}

// loginScopeOf returns the scope of logind's that a cgroup path lies in, when it is one of uid's.
func loginScopeOf(cgroup string, uid uint32) (path string, ok bool) {
	m := loginPath.FindStringSubmatch(cgroup)
	if m == nil || m[2] != strconv.FormatUint(uint64(uid), 10) {
		return "", false
	}
	return m[1], true
}

// sliceUID returns whose slice a cgroup path lies in.
func sliceUID(cgroup string) (uid uint32, ok bool) {
	rest, ok := strings.CutPrefix(cgroup, userSlice+"/user-")
	if !ok {
		return 0, false
	}
	number, _, ok := strings.Cut(rest, ".slice")
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), ok && err == nil
}

// ofSystem tells the one thing in a user's slice that is PID 1's own: it unmounts /run/user/UID.
func ofSystem(cgroup string) bool {
	rest, ok := strings.CutPrefix(cgroup, userSlice+"/user-")
	if !ok {
		return false
	}
	_, inside, _ := strings.Cut(rest, ".slice/")
	return strings.HasPrefix(inside, "user-runtime-dir@")
}

// AtHome tells whether a process stands in the slice of a user. Whoever stands there cannot leave
// without root, so that an elevation which began there is what took a process of the same audit
// session elsewhere. One that began elsewhere, such as in a job of cron's, tells nothing.
func AtHome(p process.Process, uid uint32) bool { return within(p.CGroup, sliceOf(uid)) }

// strayed tells whether a process left the slice of the user who logged in.
func strayed(p process.Process) bool { return p.CGroup != "" && !AtHome(p, p.LoginUID) }

func sliceOf(uid uint32) string { return fmt.Sprintf("%s/user-%d.slice", userSlice, uid) }

// within tells whether a cgroup path is dir or lies below it.
func within(cgroup, dir string) bool {
	rest, ok := strings.CutPrefix(cgroup, dir)
	return ok && (rest == "" || rest[0] == '/')
}

// scopes lists the cgroups of every request, below every user's slice.
func scopes() (map[string][]string, error) {
	found := make(map[string][]string)
	slices, err := children(userSlice)
	if err != nil {
		return nil, err
	}
	for _, slice := range slices {
		names, err := children(slice)
		if err != nil {
			return nil, err
		}
		for _, path := range names {
			if request, ok := scopeOf(path); ok {
				found[request] = append(found[request], path)
			}
		}
	}
	return found, nil
}

// children lists the cgroups right below one. A cgroup that does not exist has none.
func children(path string) ([]string, error) {
	dir, err := os.Open(process.CGroupRoot() + path)
	if vanished(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing cgroup %s: %w", path, err)
	}
	defer func() { _ = dir.Close() }() // read only
	entries, err := dir.ReadDir(maxEntries)
	if err != nil && len(entries) == 0 && !vanished(err) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("listing cgroup %s: %w", path, err)
	}
	var paths []string
	for _, e := range entries {
		if e.IsDir() {
			paths = append(paths, filepath.Join(path, e.Name()))
		}
	}
	return paths, nil
}

// vanished tells an error that says: this cgroup is gone.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// killCGroup sends SIGKILL to everything in a cgroup and below it, at once for all. Where the kernel
// has no cgroup.kill (before 5.14) the cgroup is frozen, so that nothing can fork away, and killed
// process by process.
func killCGroup(path string, protect func(pid int) bool) error {
	err := writeCGroup(path, "cgroup.kill", "1")
	if err == nil || vanished(err) && !exists(path) {
		return nil
	}
	if !vanished(err) {
		return fmt.Errorf("killing cgroup %s: %w", path, err)
	}
	frozen := writeCGroup(path, "cgroup.freeze", "1") == nil
	errs := []error{killBelow(path, protect, 0)}
	if frozen {
		// A slice outlives its processes, and the next login must not be born frozen.
		if err := writeCGroup(path, "cgroup.freeze", "0"); err != nil && !vanished(err) {
			errs = append(errs, fmt.Errorf("thawing cgroup %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

const maxCGroupDepth = 16

func killBelow(path string, protect func(pid int) bool, depth int) error {
	if depth > maxCGroupDepth {
		return fmt.Errorf("cgroup %s is nested deeper than %d", path, maxCGroupDepth)
	}
	text, err := os.ReadFile(process.CGroupRoot() + path + "/cgroup.procs")
	if err != nil && !vanished(err) {
		return fmt.Errorf("killing cgroup %s: %w", path, err)
	}
	var errs []error
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 1 || protect(pid) {
			continue
		}
		if p, err := process.Read(pid); err == nil && within(p.CGroup, path) {
			errs = append(errs, process.Kill(p))
		}
	}
	below, err := children(path)
	errs = append(errs, err)
	for _, sub := range below {
		errs = append(errs, killBelow(sub, protect, depth+1))
	}
	return errors.Join(errs...)
}

func writeCGroup(path, file, value string) error {
	// Without O_CREAT: cgroupfs has no other files than its own.
	f, err := os.OpenFile(process.CGroupRoot()+path+"/"+file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func exists(path string) bool {
	_, err := os.Lstat(process.CGroupRoot() + path)
	return err == nil
}
