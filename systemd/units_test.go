// Package systemd holds only this test: the units are understood by systemd, and as closed as promised.
package systemd

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

// What a service may do beyond its work, by `systemd-analyze security`; 10 is everything.
func TestExposure(t *testing.T) {
	bars := map[string]float64{
		"curfew-enforce.service": 2.5, "curfew-link.service": 1.5, "curfew-controlplane.service": 1.5,
		"curfew-codes.service": 1.5,
		// It asks the host's PAM modules, which may want of it what they want of a login.
		"curfew-rollout.service": 4,
		// It runs once, before the machine is a host, and writes the files of both halves.
		"curfew-join.service": 3,
		// It reads every file of the host and clears bits on any local file system.
		"curfew-residue.service": 3,
	}
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) != len(bars) {
		t.Errorf("%d services, %d bars: %v", len(units), len(bars), err)
	}
	for _, unit := range units {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", unit).CombinedOutput()
		found := exposure.FindSubmatch(out)
		if err != nil || found == nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
			continue
		}
		level, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil || level > bars[unit] {
			t.Errorf("%s: exposure %s, at most %v: %v\n%s", unit, found[1], bars[unit], err, out)
		}
	}
}

// A name or value that systemd does not know is a line that does nothing.
func TestUnderstood(t *testing.T) {
	ours, err := filepath.Glob("*.*")
	if err != nil {
		t.Fatal(err)
	}
	unknown := regexp.MustCompile(`(?i)unknown|ignoring|invalid|failed to parse|not a valid`)
	for _, unit := range ours {
		switch filepath.Ext(unit) {
		case ".service", ".socket", ".timer", ".target":
		default:
			continue
		}
		t.Run(unit, func(t *testing.T) {
			abs, err := filepath.Abs(unit)
			if err != nil {
				t.Fatal(err)
			}
			// Its exit status also tells of programs that are not installed here.
			out, _ := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", abs).CombinedOutput()
			for _, line := range regexp.MustCompile(`(?m)^.*$`).FindAllString(string(out), -1) {
				if unknown.MatchString(line) {
					t.Error(fmt.Sprint(line))
				}
			}
		})
	}
}
