package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// inside is what this program does on a host.
func inside(what string, args []string) error {
	switch what {
	case "exchange":
		return exchange(args[0])
	case "lap":
		return laps(func() (time.Duration, error) { return timed(args...) })
	case "scope":
		return laps(scope)
	case "floor":
		return laps(func() (time.Duration, error) { return floor(args[0]) })
	case "desk":
		return atDesk(args)
	}
	return fmt.Errorf("unknown: inside %s", what)
}

// laps does something once for each line of standard input.
func laps(f side) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		d, err := f()
		if err != nil {
			return err
		}
		fmt.Println(d.Nanoseconds())
	}
	return in.Err()
}

func timed(argv ...string) (time.Duration, error) {
	began := time.Now()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return took, nil
}

// exchange is the least that a gate in Go can be: a packet comes, a packet goes.
func exchange(path string) error {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			packet := make([]byte, 4096)
			if n, err := conn.Read(packet); err == nil {
				_, _ = conn.Write(packet[:min(n, 8)]) // whoever hung up needs no answer
			}
		}()
	}
}

// scope is a bare StartTransientUnit: a scope around a child that waits, until PID 1 says that it is
// there.
func scope() (time.Duration, error) {
	child := exec.Command("/usr/bin/sleep", "60")
	if err := child.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait() // it was killed
	}()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	done := make(chan string, 1)
	name := fmt.Sprintf("bench-%d.scope", child.Process.Pid)
	_, err = conn.StartTransientUnitContext(ctx, name, "replace",
		[]dbus.Property{dbus.PropPids(uint32(child.Process.Pid))}, done)
	if err != nil {
		return 0, err
	}
	if result := <-done; result != "done" {
		return 0, errors.New("systemd says " + result)
	}
	return time.Since(began), nil
}

// floor is what an approval cannot do without on its way to a host's sudo: three durable writes (the
// approval, the grant, the host's ledger), one connection to the control plane, and sudo's own two
// checks of the rule.
func floor(server string) (time.Duration, error) {
	rule := "alice ALL=(root) NOTAFTER=20991231235959Z NOPASSWD: /usr/bin/true \"\"\n"
	began := time.Now()
	for range 3 {
		if err := durably("/var/lib/curfew-bench", []byte(rule)); err != nil {
			return 0, err
		}
	}
	conn, err := net.DialTimeout("tcp", server, 5*time.Second)
	if err != nil {
		return 0, err
	}
	_ = conn.Close() // it was there
	file := "/run/curfew-bench.sudoers"
	if err := os.WriteFile(file, []byte(rule), 0o440); err != nil {
		return 0, err
	}
	for _, check := range [][]string{
		{"/usr/sbin/visudo", "-cqf", file}, {"/usr/bin/cvtsudoers", "-f", "json", file},
	} {
		if out, err := exec.Command(check[0], check[1:]...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w: %s", check[0], err, out)
		}
	}
	took := time.Since(began)
	return took, os.Remove(file)
}

// durably replaces a file so that it survives a power cut.
func durably(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close(), os.Rename(path+".new", path))
	dir, errDir := os.Open(filepath.Dir(path))
	if errDir != nil {
		return errors.Join(err, errDir)
	}
	return errors.Join(err, dir.Sync(), dir.Close())
}
