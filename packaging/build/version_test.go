package main

import (
	"errors"
	"os/exec"
	"testing"
	"time"
)

var commit = time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)

func TestVersionsOfPackages(t *testing.T) {
	// In the order in which dpkg and rpm must sort them.
	sorted := []struct{ described, want string }{
		{"ffb4dd0", "0~git20261129.ffb4dd0"},
		{"1234567-dirty", "0~git20261129.1234567+dirty"},
		{"v0.9.0", "0.9.0"},
		{"v1.0.0-rc1", "1.0.0~rc1"},
		{"v1.0.0-rc1-3-gabcdef1", "1.0.0~rc1+3.gabcdef1"},
		{"v1.0.0-rc2", "1.0.0~rc2"},
		{"v1.0.0", "1.0.0"},
		{"v1.0.0-dirty", "1.0.0+dirty"},
		{"v1.0.1-4-gabcdef1", "1.0.1+4.gabcdef1"},
		{"v1.0.10", "1.0.10"},
	}
	last := ""
	for _, tt := range sorted {
		v, err := ParseVersion(tt.described, commit)
		if err != nil || v.Package != tt.want || v.Program != tt.described {
			t.Errorf("%s: %+v, %v; want %s", tt.described, v, err, tt.want)
		}
		// The third is another day's commit: hashes have no order.
		if last != "" && tt.described != "1234567-dirty" {
			if out, err := exec.Command("dpkg", "--compare-versions", last, "lt", v.Package).CombinedOutput(); err != nil {
				t.Errorf("dpkg does not sort %s before %s: %v %s", last, v.Package, err, out)
			}
		}
		last = v.Package
	}
	for _, bad := range []string{"", "dev", "v", "1.0 0", "v1.0.0_1", "v1.0.0-RC1", "../1"} {
		if v, err := ParseVersion(bad, commit); !errors.Is(err, errUsage) {
			t.Errorf("%q is taken as %+v, %v", bad, v, err)
		}
	}
}
