package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/curfew-access/curfew/internal/gatewire"
)

const (
	lagCount  = 200
	crowdSize = 1000
)

// ask has the gate answer an account question about a login, as sshd would ask it.
func ask(login string) (gatewire.Verdict, error) {
	conn, err := net.DialUnix("unixpacket", nil,
		&net.UnixAddr{Name: "/run/curfew/gate.sock", Net: "unixpacket"})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	packet, err := gatewire.Request{
		Op: gatewire.OpAccount, Service: "sshd", User: login, RHost: "10.99.0.12", TTY: "ssh",
	}.Encode()
	if err != nil {
		return 0, err
	}
	if _, err := conn.Write(packet); err != nil {
		return 0, err
	}
	answer := make([]byte, gatewire.MaxReply)
	n, err := conn.Read(answer)
	if err != nil {
		return 0, err
	}
	reply, err := gatewire.DecodeReply(answer[:n])
	return reply.Verdict, err
}

// denied asks until the gate says no.
func denied(ctx context.Context, login string) (time.Time, error) {
	for {
		v, err := ask(login)
		if err == nil && v == gatewire.Deny {
			return time.Now(), nil
		}
		if ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("the gate still says %v to %s: %w", v, login, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// sleeper starts a process of a subject's that only its end ends.
func sleeper(p *subject) (*exec.Cmd, error) {
	cmd := exec.Command("/usr/bin/sleep", "86422")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: p.uid, Gid: p.uid}, Setsid: true,
	}
	return cmd, cmd.Start()
}

// An endOf says in nanoseconds how long after a grant's end the gate denied, its files were gone and
// its process was dead.
type endOf struct{ Denied, Files, Dead time.Duration }

// follow watches one grant end.
func follow(ctx context.Context, p *subject, process *exec.Cmd) (e endOf, err error) {
	time.Sleep(time.Until(p.end) - 20*time.Millisecond)
	dead := make(chan time.Time, 1)
	go func() {
		_ = process.Wait() // it is killed
		dead <- time.Now()
	}()
	var watch sync.WaitGroup
	var errs [3]error
	watch.Go(func() {
		var at time.Time
		at, errs[0] = denied(ctx, p.login)
		e.Denied = at.Sub(p.end)
	})
	for i, path := range files(p) {
		watch.Go(func() {
			var at time.Time
			at, errs[i+1] = gone(ctx, path)
			if i == 0 {
				e.Files = at.Sub(p.end)
			}
		})
	}
	watch.Wait()
	select {
	case at := <-dead:
		e.Dead = at.Sub(p.end)
	case <-ctx.Done():
		return e, fmt.Errorf("the process of %s lives on", p.login)
	}
	for _, one := range errs {
		if one != nil {
			return e, one
		}
	}
	return e, nil
}

// lagOfMany has grants end one after the other.
func lagOfMany() (any, error) {
	d, err := sit()
	if err != nil {
		return nil, err
	}
	first := time.Now().Add(20 * time.Second)
	list := people("lag", 5000, lagCount, func(i int) time.Time {
		return first.Add(time.Duration(i) * 97 * time.Millisecond).Truncate(time.Millisecond)
	})
	if err := d.issue(list); err != nil {
		return nil, err
	}
	if err := d.state(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(context.Background(), list[lagCount-1].end.Add(20*time.Second))
	defer cancel()
	ends, errs := make([]endOf, lagCount), make([]error, lagCount)
	var watch sync.WaitGroup
	for i, p := range list {
		process, err := sleeper(p)
		if err != nil {
			return nil, err
		}
		watch.Go(func() { ends[i], errs[i] = follow(ctx, p, process) })
	}
	if time.Now().After(first) {
		return nil, fmt.Errorf("%d processes took too long to start", lagCount)
	}
	watch.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// A crowdEnd is expireCrowd's result, in nanoseconds after the common end; Bare is what cgroup.kill
// took for as many processes, and Applied the grants' way in.
type crowdEnd struct{ Applied, Denied, Files, Dead, Bare time.Duration }

// expireCrowd has a thousand grants, each with a process, end in the same instant, after a time in
// which they can be made.
func expireCrowd(after string) (any, error) {
	wait, err := time.ParseDuration(after)
	if err != nil {
		return nil, err
	}
	bare, err := bareKill()
	if err != nil {
		return nil, err
	}
	d, err := sit()
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(wait).Truncate(time.Millisecond)
	crowd := people("crowd", 2000, crowdSize, func(int) time.Time { return end })
	began := time.Now()
	if err := d.issue(crowd); err != nil {
		return nil, err
	}
	if err := d.state(); err != nil {
		return nil, err
	}
	result := crowdEnd{Bare: bare, Applied: time.Since(began)}
	var last time.Time
	var mu sync.Mutex
	var alive sync.WaitGroup
	for _, p := range crowd {
		process, err := sleeper(p)
		if err != nil {
			return nil, err
		}
		alive.Go(func() {
			_ = process.Wait() // it is killed
			mu.Lock()
			defer mu.Unlock()
			last = latest(last, time.Now())
		})
	}
	if time.Now().After(end) {
		return nil, fmt.Errorf("%d grants and processes took longer than %s to start", crowdSize, wait)
	}
	time.Sleep(time.Until(end) - 50*time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The last one is asked about: nobody is let in while the others are dealt with.
	at, err := denied(ctx, crowd[crowdSize-1].login)
	if err != nil {
		return nil, err
	}
	result.Denied = at.Sub(end)
	if result.Files, err = empty(ctx, end); err != nil {
		return nil, err
	}
	alive.Wait()
	result.Dead = last.Sub(end)
	return result, nil
}

// empty waits until no drop-in and no key is left.
func empty(ctx context.Context, end time.Time) (time.Duration, error) {
	for ctx.Err() == nil {
		left := 0
		for _, dir := range []string{"/run/curfew/sudoers.d", "/run/curfew/keys"} {
			names, err := os.ReadDir(dir)
			if err != nil {
				return 0, err
			}
			left += len(names)
		}
		if left == 0 {
			return time.Since(end), nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0, fmt.Errorf("files are left a minute after the end")
}

// bareKill kills as many processes by cgroup.kill alone.
func bareKill() (time.Duration, error) {
	group := "/sys/fs/cgroup/curfew-bench"
	if err := os.Mkdir(group, 0o755); err != nil {
		return 0, err
	}
	dir, err := os.Open(group)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	var alive sync.WaitGroup
	for range crowdSize {
		cmd := exec.Command("/usr/bin/sleep", "86422")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		alive.Go(func() { _ = cmd.Wait() }) // it is killed
	}
	began := time.Now()
	if err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0); err != nil {
		return 0, err
	}
	alive.Wait()
	took := time.Since(began)
	return took, os.Remove(group)
}
