package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// keeperFile names the process that owns the world of `demo up`.
func keeperFile() string { return filepath.Join(world.CacheDir(), "demo.pid") }

func laptopFile(name string) string { return filepath.Join(world.CacheDir(), "demo-"+name) }

// up starts a process that owns the world and lives on, and waits until its world is ready.
func up(ctx context.Context) error {
	if pid, err := keeper(); err == nil {
		return fmt.Errorf("a demo is up already (process %d); make demo-down removes it", pid)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "keep")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout // and not ours: the keeper outlives whoever reads that
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "ready" {
			fmt.Printf(howTo, self)
			return nil
		}
		fmt.Println(lines.Text())
	}
	return errors.Join(errors.New("the demo's world did not come up"), cmd.Wait())
}

const howTo = `
A control plane, the hosts web1 and web2, and the laptops of alice, bob and dana (admin) are up. Try:

  demo=%s
  $demo as alice ssh web1                                   # refused: no grant
  $demo as alice curfew request web1 --role root --for 10m --reason "look around" --no-wait
  $demo as bob curfew watch --pending
  $demo as bob curfew approve ID
  $demo as alice curfew ssh web1
  $demo as alice curfew extend ID --for 5m --reason "more"  # or: curfew done ID
  $demo as bob curfew revoke ID --reason "enough"
  $demo as dana curfew log --verify

make demo-down removes it all.
`

// keep owns the world until it is told to end.
func keep(ctx context.Context) error {
	signal.Ignore(syscall.SIGPIPE) // whoever started us stops listening
	s, err := stage.New(ctx, stage.Options{Name: "demo-up", Hosts: []string{"web1", "web2"}, Out: os.Stdout})
	if err != nil {
		return err
	}
	defer s.Close()
	alice, bob, err := s.Cast(ctx)
	if err != nil {
		return err
	}
	for _, p := range []*stage.Person{alice, bob, s.Admin} {
		line := strings.Join(p.Cmd(ctx, "true").Args, "\n")
		if err := os.WriteFile(laptopFile(p.Name()), []byte(line), 0o600); err != nil {
			return err
		}
		defer os.Remove(laptopFile(p.Name()))
	}
	if err := os.WriteFile(keeperFile(), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	defer os.Remove(keeperFile())
	fmt.Println("ready")
	<-ctx.Done()
	return s.Close()
}

// as runs a command on a laptop of the world that is up, in the place of this process.
func as(name string, command []string) error {
	line, err := os.ReadFile(laptopFile(filepath.Base(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no demo is up, or it has no %s: make demo-up", name)
	} else if err != nil {
		return err
	}
	argv := strings.Split(string(line), "\n")
	argv = append(argv[:len(argv)-1], command...)
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	home := "/home/" + name
	return syscall.Exec(path, argv, []string{
		"PATH=" + home + "/bin:/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "USER=" + name,
		"LOGNAME=" + name, "SHELL=/bin/bash", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM"),
	})
}

// down ends the world of up and waits until it is gone.
func down(ctx context.Context) error {
	pid, err := keeper()
	if err != nil {
		return world.CleanStale(ctx)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return stage.Eventually(ctx, "the demo to end", func() (bool, string) {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH), fmt.Sprintf("process %d lives", pid)
	})
}

// keeper returns the process that owns the world of up.
func keeper() (int, error) {
	text, err := os.ReadFile(keeperFile())
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(comm), "keep") {
		return 0, errors.New("its process is gone")
	}
	return pid, nil
}
