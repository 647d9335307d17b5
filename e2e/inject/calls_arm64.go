package inject

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

var legacy = []call{{unix.SYS_RENAMEAT, "renameat", aboutFrom}}
