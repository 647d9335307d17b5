package soak

import (
	"fmt"
	"maps"
	"slices"
)

// What the same daemon may hold more than after the warm-up. Go's runtime keeps what it freed for a
// while, and a long trail's head and tombstones are a few KiB each.
const (
	fdsSlack     = 3
	enforceMiB   = 6.0
	linkMiB      = 6.0
	controlMiB   = 24.0
	otherMiB     = 8.0
	runMiB       = 0.25
	stateMiB     = 2.0
	processSlack = 0
)

// Compare says what a host has too much, measured by how it was after the warm-up. people are all
// logins with their uids: each may be in the uid table once, with that uid, and nobody else.
func Compare(host string, before, after Inventory, people map[string]int) []string {
	var found []string
	note := func(format string, args ...any) {
		found = append(found, host+": "+fmt.Sprintf(format, args...))
	}
	counts := make(map[string]int)
	for _, thing := range before.Things {
		counts[thing]++
	}
	for _, thing := range after.Things {
		if counts[thing]--; counts[thing] < 0 {
			note("%s too many", thing)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after.Processes)) {
		if n := after.Processes[name] - before.Processes[name]; n > processSlack && !comesAndGoes(name) {
			note("%d processes %s too many", n, name)
		}
	}
	owners := make(map[int]string)
	for _, login := range slices.Sorted(maps.Keys(after.UIDs)) {
		uid := after.UIDs[login]
		want, known := people[login]
		switch {
		case !known:
			note("the uid table has %s, who was never anybody's login", login)
		case uid != want:
			note("%s has the uid %d in the table and %d in the directory", login, uid, want)
		case owners[uid] != "":
			note("uid %d stands for %s and %s", uid, owners[uid], login)
		}
		owners[uid] = login
	}
	for login := range before.UIDs {
		if _, kept := after.UIDs[login]; !kept {
			note("the uid table has forgotten %s", login)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after.Descriptors)) {
		if n := after.Descriptors[name] - before.Descriptors[name]; n > fdsSlack {
			note("%s has %d descriptors, %d more than after the warm-up", name, after.Descriptors[name], n)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after.MiB)) {
		if more := after.MiB[name] - before.MiB[name]; more > allowedMiB(name) {
			note("%s has %.1f MiB, %.1f more than after the warm-up", name, after.MiB[name], more)
		}
	}
	return found
}

func allowedMiB(name string) float64 {
	switch name {
	case "root half":
		return enforceMiB
	case "link half":
		return linkMiB
	case "control plane":
		return controlMiB
	case "/run/curfew":
		return runMiB
	case "/var/lib/curfew":
		return stateMiB
	}
	return otherMiB
}

// comesAndGoes names the programs that a host starts when it likes.
func comesAndGoes(name string) bool {
	return slices.Contains([]string{
		"systemd-timedat", "systemd-hostnam", "systemd-network",
		"systemd-tmpfile", "polkitd", "systemctl", "systemd-userwor",
	}, name)
}
