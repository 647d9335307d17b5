// Package faults breaks what Curfew runs on, at every point where that can matter, and looks at what
// is left: the real curfew-agent on a booted host and the real curfew-controlplane are killed before
// each of their changing system calls (package inject), lose their power with what was not synced,
// and meet full, broken and read-only disks, a visudo that lies, and a host without logind and D-Bus.
//
// Each test that has a long list of points plays a sample of it, drawn by a seed that it prints; with
// -every it plays all (make faults). On the hosts the tests play the control plane themselves: they
// hold its keys and talk over the link socket, so that one point costs about a second.
package faults
