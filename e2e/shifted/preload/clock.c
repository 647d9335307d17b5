/*
 * Shifts the wall clock and the boot-time clock of the C programs of a throw-away host: sudo, sshd,
 * PAM and NSS. The machine's own clocks are never set. /etc/story-clock holds the two shifts in
 * seconds; without it nothing is shifted. Loaded by /etc/ld.so.preload, into setuid programs too.
 * The monotonic clock stays as it is, since nobody can set that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const char *number(const char *text, long long *n)
{
	int minus = 0;

	while (*text == ' ')
		text++;
	if (*text == '-') {
		minus = 1;
		text++;
	}
	for (*n = 0; *text >= '0' && *text <= '9'; text++)
		*n = *n * 10 + (*text - '0');
	if (minus)
		*n = -*n;
	return text;
}

static void shifts(long long *wall, long long *boot)
{
	char text[64];
	int saved = errno;
	int fd = (int)syscall(SYS_openat, AT_FDCWD, "/etc/story-clock", O_RDONLY | O_CLOEXEC);

	*wall = *boot = 0;
	if (fd >= 0) {
		ssize_t n = read(fd, text, sizeof(text) - 1);
		if (n > 0) {
			text[n] = '\0';
			number(number(text, wall), boot);
		}
		close(fd);
	}
	errno = saved;
}

int clock_gettime(clockid_t clock, struct timespec *t)
{
	long long wall, boot;

	if (syscall(SYS_clock_gettime, clock, t) != 0)
		return -1;
	shifts(&wall, &boot);
	if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
		t->tv_sec += wall;
	if (clock == CLOCK_BOOTTIME)
		t->tv_sec += boot;
	return 0;
}

time_t time(time_t *out)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	if (out)
		*out = t.tv_sec;
	return t.tv_sec;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone)
{
	struct timespec t;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &t);
	tv->tv_sec = t.tv_sec;
	tv->tv_usec = t.tv_nsec / 1000;
	return 0;
}
