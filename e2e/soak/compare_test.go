package soak

import (
	"strings"
	"testing"
)

func resting() Inventory {
	return Inventory{
		Things:      []string{"socket /run/curfew/gate.sock", "socket /run/curfew/gate.sock"},
		Processes:   map[string]int{"sshd": 1, "curfew-agent": 2},
		UIDs:        map[string]int{"ada": 1900000001},
		Descriptors: map[string]int{"root half": 17, "systemd": 60},
		MiB: map[string]float64{
			"root half": 12, "link half": 16, "control plane": 28, "/run/curfew": 0.1,
			"/var/lib/curfew": 0.1, "systemd": 11,
		},
	}
}

// Compare finds each kind of thing that may be too many, and nothing where nothing is.
func TestCompare(t *testing.T) {
	people := map[string]int{"ada": 1900000001, "eve": 1900000002}
	if got := Compare("web1", resting(), resting(), people); len(got) != 0 {
		t.Fatalf("two times the same: %v", got)
	}
	for want, plant := range map[string]func(*Inventory){
		"file /run/curfew/sudoers.d/x too many": func(in *Inventory) {
			in.Things = append(in.Things, "file /run/curfew/sudoers.d/x")
		},
		"socket /run/curfew/gate.sock too many": func(in *Inventory) {
			in.Things = append(in.Things, in.Things[0])
		},
		"1 processes sshd too many":      func(in *Inventory) { in.Processes["sshd"]++ },
		"2 processes sleep too many":     func(in *Inventory) { in.Processes["sleep"] = 2 },
		"who was never anybody's login":  func(in *Inventory) { in.UIDs["zoe"] = 1900000003 },
		"eve has the uid 1900000001":     func(in *Inventory) { in.UIDs["eve"] = 1900000001 },
		"has forgotten ada":              func(in *Inventory) { delete(in.UIDs, "ada") },
		"root half has 21 descriptors":   func(in *Inventory) { in.Descriptors["root half"] += 4 },
		"root half has 19.0 MiB":         func(in *Inventory) { in.MiB["root half"] += 7 },
		"link half has 23.0 MiB":         func(in *Inventory) { in.MiB["link half"] += 7 },
		"control plane has 53.0 MiB":     func(in *Inventory) { in.MiB["control plane"] += 25 },
		"/run/curfew has 0.6 MiB":        func(in *Inventory) { in.MiB["/run/curfew"] += 0.5 },
		"/var/lib/curfew has 3.1 MiB":    func(in *Inventory) { in.MiB["/var/lib/curfew"] += 3 },
		"systemd has 20.0 MiB, 9.0 more": func(in *Inventory) { in.MiB["systemd"] += 9 },
		"1 processes (sd-pam) too many":  func(in *Inventory) { in.Processes["(sd-pam)"] = 1 },
		"systemd has 64 descriptors":     func(in *Inventory) { in.Descriptors["systemd"] += 4 },
		"cron has 9 descriptors, 9 more": func(in *Inventory) { in.Descriptors["cron"] = 9 },
		"curfew-agent too many":          func(in *Inventory) { in.Processes["curfew-agent"]++ },
	} {
		changed := resting()
		plant(&changed)
		got := Compare("web1", resting(), changed, people)
		if len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("want one finding with %q, got %q", want, got)
		}
	}
}
