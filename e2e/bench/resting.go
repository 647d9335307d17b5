package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

// memory tells the resident memory of both halves with two grants live.
func memory(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	for _, half := range []struct {
		name, unit string
		bar        float64
	}{{"memory_root_half", "curfew-enforce.service", 16}, {"memory_link_half", "curfew-link.service", 24}} {
		mib, err := resident(ctx, l.web, half.unit)
		if err != nil {
			return err
		}
		b.Print(Line{Name: half.name, Value: mib, Unit: "MiB", Bar: half.bar, BarUnit: "MiB"})
	}
	return nil
}

// resident is VmRSS of a unit's processes.
func resident(ctx context.Context, h *world.Host, unit string) (mib float64, err error) {
	all, err := h.Processes(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if !strings.HasSuffix(p.CGroup, "/"+unit) {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.OuterPID))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		kib, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			return 0, err
		}
		mib += float64(kib) / 1024
	}
	if mib == 0 {
		return 0, fmt.Errorf("nothing runs in %s", unit)
	}
	return mib, nil
}

// idle tells how much of a core both halves take in a minute in which nothing happens.
func idle(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	used := func() (total time.Duration, err error) {
		for _, unit := range []string{"curfew-enforce.service", "curfew-link.service"} {
			part, err := cpuOf(ctx, l.web, unit)
			if err != nil {
				return 0, err
			}
			total += part
		}
		return total, nil
	}
	before, err := used()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := used()
	if err != nil {
		return err
	}
	share := float64(after-before) / float64(time.Since(began)) * 100
	b.Print(Line{Name: "idle_both_halves", Value: share, Unit: "%_of_a_core", Bar: 0.2, BarUnit: "%"})
	return nil
}

// cpuOf is what a unit has used of the processors, in user space and in the kernel.
func cpuOf(ctx context.Context, h *world.Host, unit string) (time.Duration, error) {
	out, err := h.Exec(ctx, "cat", "/sys/fs/cgroup/system.slice/"+unit+"/cpu.stat")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.Fields(string(out))[1]) // "usage_usec N" comes first
	return time.Duration(n) * time.Microsecond, err
}
