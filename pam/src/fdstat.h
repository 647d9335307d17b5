/* fstat(2) without glibc's symbol of that name, which came with 2.33: the modules also run on Debian
 * 11, whose glibc is 2.31. On 64-bit Linux the kernel's struct stat is glibc's; elsewhere it is not,
 * and a module that is built there needs the newer glibc. */
#ifndef CURFEW_FDSTAT_H
#define CURFEW_FDSTAT_H

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int fd_stat(int fd, struct stat *st)
{
#if __SIZEOF_LONG__ == 8 && defined(SYS_fstat)
	return (int)syscall(SYS_fstat, fd, st);
#else
	return fstat(fd, st);
#endif
}

#endif
