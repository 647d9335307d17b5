// Package inject stops a program right before one of its system calls, to kill it there, to make the
// call fail, or to take the power away. It is how the fault tests reach "at every system call".
//
// A small launcher puts a seccomp filter on itself and becomes the program (execve keeps the filter).
// Calls that change something outside of the process wait in the kernel until the injector has decided
// about each (seccomp_unotify(2)); all others run at full speed. The filter holds for every thread and
// is inherited by every child, so nothing has to be followed; a child's calls (visudo's, getent's)
// pass undecided. The program is the one that is shipped, started by whoever starts it in real life:
// systemd restarts the launcher, which comes back to the same injector as the next life.
//
//	script := new(inject.Script)
//	in, err := inject.Listen("/run/inject.sock", script.Decide, nil)
//	cmd := exec.Command(launcher, "/run/inject.sock", "curfew-agent", "enforce")
//	script.Begin(nil)             // record
//	…                             // what is to be killed in
//	points := script.End()        // every changing call, in order
//	script.Begin(&points[7])      // once more, and die right before the eighth
//
// # Which calls
//
// Those that create, write, sync, rename, remove or change the mode, owner or length of files, that
// send on sockets and that signal other processes: see calls. Opening a file counts when it may create
// or truncate it. Being killed before any other call (a read, a look-up, a wait) leaves the world as
// being killed before the next of these does, so these are all the states that a SIGKILL can leave
// behind. Calls on pipes, on anonymous inodes (the runtime's own wake-ups) and on standard output and
// error change nothing that outlives the process, and are not counted.
//
// # How points are numbered
//
// A program with threads makes its calls in an order that differs a little from run to run. So a point
// is not "the 17th call" but "the 2nd fsync of ledger.json.new since the window was opened": the name
// of the call, what it is about with everything random in it replaced (grant ids, process ids), and
// which one of these it is. Threads may interleave as they like, and the same point is the same step
// of the same piece of work. While one call is decided all others wait, so that what has happened
// before a kill is a prefix of the program's work, with no call half done. A point that a run does not
// come by is told as not reached, never as passed.
//
// The package needs root and Linux 5.19 (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: without it the Go
// runtime's own signals would interrupt waiting calls and count them twice). The launcher must reach
// the injector's socket; a unit that filters system calls needs SystemCallFilter=seccomp in a drop-in.
// Close the injector only when the program is gone: a filter without a listener fails the calls.
package inject
