package inject

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

var legacy = []call{
	{unix.SYS_OPEN, "open", aboutOpen},
	{unix.SYS_CREAT, "creat", aboutPath},
	{unix.SYS_MKDIR, "mkdir", aboutPath},
	{unix.SYS_RMDIR, "rmdir", aboutPath},
	{unix.SYS_MKNOD, "mknod", aboutPath},
	{unix.SYS_LINK, "link", aboutTo},
	{unix.SYS_SYMLINK, "symlink", aboutTo},
	{unix.SYS_RENAME, "rename", aboutTo},
	{unix.SYS_RENAMEAT, "renameat", aboutFrom},
	{unix.SYS_UNLINK, "unlink", aboutPath},
	{unix.SYS_CHMOD, "chmod", aboutPath},
	{unix.SYS_CHOWN, "chown", aboutPath},
	{unix.SYS_LCHOWN, "lchown", aboutPath},
}
