package inject

import "golang.org/x/sys/unix"

// about says where in a call's arguments stands what it is about.
type about int

const (
	aboutFD     about = iota // argument 0 is a descriptor
	aboutAt                  // argument 0 is a folder's descriptor, 1 a path
	aboutFrom                // the same, and 2 and 3 are where it goes
	aboutPath                // argument 0 is a path
	aboutTo                  // argument 0 is a path, 1 another
	aboutOpenAt              // aboutAt; counts if argument 2 says create or truncate
	aboutHow                 // aboutAt; counts if the struct at argument 2 says so
	aboutOpen                // aboutPath; counts if argument 1 says so
	aboutPID                 // argument 0 is a process id, 1 a signal
	aboutPidfd               // argument 0 is a process descriptor, 1 a signal
)

type call struct {
	number int
	name   string
	about  about
}

// calls are those that change something outside of the process and exist on every architecture;
// legacy holds what amd64 has beside.
var calls = append([]call{
	{unix.SYS_OPENAT, "openat", aboutOpenAt},
	{unix.SYS_OPENAT2, "openat2", aboutHow},
	{unix.SYS_WRITE, "write", aboutFD},
	{unix.SYS_PWRITE64, "pwrite", aboutFD},
	{unix.SYS_WRITEV, "writev", aboutFD},
	{unix.SYS_PWRITEV, "pwritev", aboutFD},
	{unix.SYS_PWRITEV2, "pwritev2", aboutFD},
	{unix.SYS_COPY_FILE_RANGE, "copy_file_range", aboutFD},
	{unix.SYS_SENDFILE, "sendfile", aboutFD},
	{unix.SYS_FTRUNCATE, "ftruncate", aboutFD},
	{unix.SYS_TRUNCATE, "truncate", aboutPath},
	{unix.SYS_FALLOCATE, "fallocate", aboutFD},
	{unix.SYS_FSYNC, "fsync", aboutFD},
	{unix.SYS_FDATASYNC, "fdatasync", aboutFD},
	{unix.SYS_SYNC_FILE_RANGE, "sync_file_range", aboutFD},
	{unix.SYS_SYNCFS, "syncfs", aboutFD},
	{unix.SYS_FCHMOD, "fchmod", aboutFD},
	{unix.SYS_FCHMODAT, "fchmodat", aboutAt},
	{unix.SYS_FCHOWN, "fchown", aboutFD},
	{unix.SYS_FCHOWNAT, "fchownat", aboutAt},
	{unix.SYS_UTIMENSAT, "utimensat", aboutAt},
	{unix.SYS_MKDIRAT, "mkdirat", aboutAt},
	{unix.SYS_MKNODAT, "mknodat", aboutAt},
	{unix.SYS_SYMLINKAT, "symlinkat", aboutPath},
	{unix.SYS_LINKAT, "linkat", aboutFrom},
	{unix.SYS_RENAMEAT2, "renameat2", aboutFrom},
	{unix.SYS_UNLINKAT, "unlinkat", aboutAt},
	{unix.SYS_SENDTO, "sendto", aboutFD},
	{unix.SYS_SENDMSG, "sendmsg", aboutFD},
	{unix.SYS_SENDMMSG, "sendmmsg", aboutFD},
	{unix.SYS_KILL, "kill", aboutPID},
	{unix.SYS_PIDFD_SEND_SIGNAL, "pidfd_send_signal", aboutPidfd},
}, legacy...)
