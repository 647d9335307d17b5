#define _GNU_SOURCE
#include "ask.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BUDGET_NS INT64_C(2000000000)

static int64_t now_ns(void)
{
	struct timespec t = { 0 };

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Connects before the deadline, to a process of root's. -1 with errno. */
static int dial(const char *path, int64_t deadline)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct ucred peer = { .uid = (uid_t)-1 };
	socklen_t len = sizeof(peer);
	int fd, rc, saved;

	if (strlen(path) >= sizeof(addr.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(addr.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd >= 0 && fd <= STDERR_FILENO) {
		/* The host program runs with 0 to 2 closed. Kept there, the connection would take
		 * in whatever somebody prints. */
		int low = fd;

		fd = fcntl(low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		saved = errno;
		close(low);
		errno = saved;
	}
	if (fd < 0)
		return -1;
	do {
		/* connect blocks while the agent's backlog is full; this bounds it. */
		int64_t us = (deadline - now_ns()) / 1000;
		struct timeval limit = { .tv_sec = us / 1000000, .tv_usec = us % 1000000 };

		if (us <= 0) {
			errno = ETIMEDOUT;
			rc = -1;
		} else {
			rc = setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
			if (rc == 0)
				rc = connect(fd, (const struct sockaddr *)&addr, sizeof(addr));
		}
	} while (rc != 0 && errno == EINTR);
	if (rc == 0)
		rc = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	if (rc == 0 && (len != sizeof(peer) || peer.uid != 0)) {
		errno = EPERM;
		rc = -1;
	}
	if (rc != 0) {
		saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

/* A packet over the cap is cut to it by the kernel, and no reply is as long as that. */
_Static_assert(8 + GATE_TEXT_MAX < GATE_REPLY_MAX, "a cut packet must not parse");

/* Sends the request and waits for the one packet that answers it. Returns its length; -1 with
 * errno, ECONNRESET when the agent hung up without a word. */
static ssize_t exchange(int fd, int64_t deadline, const unsigned char *request, size_t len,
			unsigned char reply[GATE_REPLY_MAX])
{
	ssize_t n;

	do {
		n = send(fd, request, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		if (errno == EPIPE)
			errno = ECONNRESET;
		return -1;
	}
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int64_t left = deadline - now_ns();
		int rc;

		if (left <= 0) {
			errno = ETIMEDOUT;
			return -1;
		}
		rc = poll(&p, 1, (int)((left + 999999) / 1000000));
		if (rc < 0 && errno != EINTR)
			return -1;
		if (rc <= 0)
			continue;
		n = recv(fd, reply, GATE_REPLY_MAX, MSG_DONTWAIT);
		if (n > 0)
			return n;
		if (n == 0) {
			errno = ECONNRESET;
			return -1;
		}
		if (errno != EINTR && errno != EAGAIN)
			return -1;
	}
}

enum gate_verdict gate_ask(const char *path, int64_t *spent_ns, const unsigned char *request,
			   size_t len, char text[GATE_TEXT_MAX + 1], int *kept)
{
	unsigned char reply[GATE_REPLY_MAX];
	int64_t start = now_ns(), deadline = start + BUDGET_NS - *spent_ns;
	enum gate_verdict verdict = GATE_NONE;
	int saved = EBADMSG;

	for (int attempt = 0; attempt < 2; attempt++) {
		int fd = dial(path, deadline);
		ssize_t n = fd < 0 ? -1 : exchange(fd, deadline, request, len, reply);

		if (n >= 0) {
			verdict = gate_reply_parse(reply, (size_t)n, text);
			if (verdict != GATE_NONE) {
				*kept = fd;
				break;
			}
		}
		saved = n < 0 ? errno : EBADMSG;
		if (fd >= 0)
			close(fd);
		if (saved != ECONNRESET)
			break;
	}
	*spent_ns += now_ns() - start;
	errno = saved;
	return verdict;
}
