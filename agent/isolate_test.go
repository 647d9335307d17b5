package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a process namespace of their own. A root half kills whatever of its uids
// runs without a live grant, and on a machine with Curfew on it, or with other tests on it, these
// would be somebody else's.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		if err := ownProc(); err != nil {
			fmt.Fprintln(os.Stderr, "isolating the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if slices.Contains(os.Args, "-test.fuzzworker") { // the fuzzer's child, in the namespaces of its own
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make root's files and namespaces: run them as root")
		os.Exit(1)
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	err := again.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		fmt.Fprintln(os.Stderr, "isolating the tests:", err)
		os.Exit(1)
	}
	os.Exit(again.ProcessState.ExitCode())
}

func ownProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}
