// Package world boots throw-away Debian hosts for the end-to-end stories and for the demo.
//
// A host is a real one as far as user space goes: systemd is PID 1, and logind, sshd, sudo, cron,
// at, dbus and journald are Debian's own, untouched. It shares the machine's kernel and nothing
// else. A laptop is a person's machine, and much less: an account and a home of its own behind a
// network of its own, from where the machine's ssh and any program under test are run.
//
// A World is one network with its hosts and laptops. Everything in it hangs on one process, the
// stage, whose private mount namespace holds all mounts and whose network namespace is the switch
// that everyone is plugged into; and everything in it runs below one cgroup. So the machine's own
// mounts, network and processes never see a world, worlds run side by side, and a world ends by
// killing its cgroup and removing its folder, even when the test which made it was killed before.
//
//	w, err := world.New(ctx, world.Options{Name: t.Name()})
//	defer w.Close()
//	web, err := w.AddHost(ctx, world.HostOptions{Name: "web1", Install: installAgent})
//	ada, err := w.AddLaptop(ctx, "ada")
//	out, _, exit, err := ada.Run(ctx, "ssh", "web1", "sudo systemctl restart nginx")
//
// What a host is not: /proc/self/cgroup also lists the machine's version 1 hierarchies where there
// are any (its own line starts with 0::); audit session ids are counted by the one kernel for all
// hosts; systemd knows that it runs in a container, and from 257 on does not name logind's sessions
// after the audit session then; and what Host.Cmd starts has all of the machine's capabilities,
// which the host's own services have not.
//
// The package needs root, a mounted cgroup2 hierarchy with cgroup.kill (kernel 5.14) and the
// programs of mmdebstrap, systemd-container, iproute2, util-linux and openssh-client. It asserts
// nothing about Curfew and imports none of it: stories install what they test with
// HostOptions.Install and Laptop.Put.
package world
