/* pam_curfew.so asks Curfew's agent whether a person may log in or elevate (proto/PROTOCOL.md,
 * sections 4 and 5). It runs inside sshd, sudo, su, login and cron, as root but sometimes with the
 * caller's real uid and environment, so it holds nothing that could hurt its host program: no
 * threads, no mutable globals, no signal handling, no fork, no look-up of users, no environment.
 *
 * Every failure denies a managed person. Nobody else ever waits for the agent. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include <security/pam_appl.h>
#include <security/pam_ext.h>
#include <security/pam_modules.h>

#include "ask.h"
#include "fdstat.h"
#include "table.h"
#include "wire.h"

#define EXPORT __attribute__((visibility("default")))
#define SOCKET_PATH "/run/curfew/gate.sock"
#define TABLE_PATH "/var/lib/curfew/gate.conf"
#define MARKS_PATH "/run/curfew"
#define FIRST_PERSON 1000
#define STATE "curfew_state"
#define CANNOT "Curfew cannot check this right now; try again"

struct config {
	const char *socket, *table, *marks;
};

/* Kept with the PAM handle. fd is the connection over which open_session was allowed, or -1: its
 * end is the session's end, so it lives until close_session, pam_end or death, SIGKILL included.
 *
 * What the agent sees of it: the descriptor is CLOEXEC, so no shell or command holds it, but a
 * child that is forked and does not exec holds a copy: sshd's unprivileged half, sudo's monitor
 * under use_pty, systemd's (sd-pam). The agent reads end-of-file only when the last of these is
 * gone. SO_PEERCRED names the process that connected (sshd's root monitor, sudo itself, the
 * later `systemd --user`), so the agent watches that one's pidfd as well, takes whichever comes
 * first as the end, and never reads from the connection again: the copy in sshd's unprivileged
 * half belongs to a process of the user's. */
struct state {
	int64_t spent_ns; /* of the budget, by all exchanges of this handle */
	int fd;
	dev_t dev; /* with ino: which socket fd was */
	ino_t ino;
};

static void end_session(struct state *st)
{
	struct stat now;

	/* A forked child may have closed every descriptor before it calls pam_end; the number can
	 * by then be somebody else's file. */
	if (st->fd >= 0 && fd_stat(st->fd, &now) == 0 && now.st_dev == st->dev &&
	    now.st_ino == st->ino)
		close(st->fd);
	st->fd = -1;
}

static void free_state(pam_handle_t *pamh, void *data, int status)
{
	(void)pamh, (void)status;
	end_session(data);
	free(data);
}

static struct state *state_of(pam_handle_t *pamh)
{
	const void *kept = NULL;
	struct state *st;

	if (pam_get_data(pamh, STATE, &kept) == PAM_SUCCESS && kept)
		return (struct state *)kept;
	st = calloc(1, sizeof(*st));
	if (!st)
		return NULL;
	st->fd = -1;
	if (pam_set_data(pamh, STATE, st, free_state) != PAM_SUCCESS) {
		free(st);
		return NULL;
	}
	return st;
}

static struct config read_args(pam_handle_t *pamh, int argc, const char **argv)
{
	struct config c = { SOCKET_PATH, TABLE_PATH, MARKS_PATH };

	for (int i = 0; i < argc; i++) {
		if (strncmp(argv[i], "socket=/", 8) == 0)
			c.socket = argv[i] + 7;
		else if (strncmp(argv[i], "conf=/", 6) == 0)
			c.table = argv[i] + 5;
		else if (strncmp(argv[i], "marks=/", 7) == 0)
			c.marks = argv[i] + 6;
		else
			pam_syslog(pamh, LOG_ERR, "ignoring unknown argument %s", argv[i]);
	}
	return c;
}

enum table_state { TABLE_WHOLE, TABLE_ABSENT, TABLE_UNREADABLE };

static enum table_state read_table(const char *path, struct gate_table *t)
{
	struct stat st;
	char piece[4096];
	ssize_t n;
	int fd;

	/* O_NONBLOCK: a FIFO in its place must not hold up anybody's login. */
	do {
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	} while (fd < 0 && errno == EINTR);
	if (fd < 0)
		return errno == ENOENT ? TABLE_ABSENT : TABLE_UNREADABLE;
	if (fd_stat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != 0 ||
	    (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
		close(fd);
		return TABLE_UNREADABLE;
	}
	do {
		n = read(fd, piece, sizeof(piece));
		if (n > 0)
			gate_table_feed(t, piece, (size_t)n);
	} while ((n > 0 && t->at != BROKEN) || (n < 0 && errno == EINTR));
	close(fd);
	return n == 0 && gate_table_whole(t) ? TABLE_WHOLE : TABLE_UNREADABLE;
}

static int open_path(int dir, const char *name, int flags)
{
	int fd;

	do {
		fd = openat(dir, name, O_PATH | O_CLOEXEC | flags);
	} while (fd < 0 && errno == EINTR);
	return fd;
}

/* Is there such a file of root's among the marks? The real uid may be the user's, so not access(2). */
static bool marked(const char *marks, const char *name)
{
	int dir = open_path(AT_FDCWD, marks, O_DIRECTORY);
	struct stat st;
	bool found;
	int fd;

	if (dir < 0)
		return false;
	fd = open_path(dir, name, O_NOFOLLOW);
	found = fd >= 0 && fd_stat(fd, &st) == 0 && st.st_uid == 0;
	if (fd >= 0)
		close(fd);
	close(dir);
	return found;
}

static uint64_t now_ms(clockid_t clock)
{
	struct timespec now;

	/* A clock that cannot be read has passed every deadline. */
	if (clock_gettime(clock, &now) != 0 || now.tv_sec < 0)
		return UINT64_MAX;
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool observes(const struct config *conf, enum table_state read, const struct gate_table *t)
{
	if (marked(conf->marks, "observe"))
		return true;
	return read == TABLE_WHOLE &&
	       gate_table_observes(t, t->trial && marked(conf->marks, "trial"),
				   now_ms(CLOCK_REALTIME), now_ms(CLOCK_BOOTTIME));
}

static bool is(const char *service, const char *name)
{
	return service && strcmp(service, name) == 0;
}

static const char *item(const pam_handle_t *pamh, int which)
{
	const void *value = NULL;

	return pam_get_item(pamh, which, &value) == PAM_SUCCESS ? value : NULL;
}

/* Takes the connection over or closes it. False when there is nowhere to keep it. */
static bool keep(struct state *st, int fd, bool session)
{
	struct stat now;

	if (!session) {
		close(fd);
		return true;
	}
	if (fd_stat(fd, &now) != 0) {
		close(fd);
		return false;
	}
	end_session(st);
	st->fd = fd;
	st->dev = now.st_dev;
	st->ino = now.st_ino;
	return true;
}

static int conclude(pam_handle_t *pamh, enum gate_verdict verdict, const char *text, bool silent)
{
	switch (verdict) {
	case GATE_ALLOW:
		if (!silent && text[0] != '\0')
			pam_info(pamh, "%s", text);
		return PAM_SUCCESS;
	case GATE_IGNORE:
		return PAM_IGNORE;
	case GATE_DENY:
		if (!silent)
			pam_error(pamh, "%s", text[0] != '\0' ? text : "Curfew denies this");
		return PAM_PERM_DENIED;
	case GATE_RETRY:
	case GATE_NONE:
		break;
	}
	if (!silent)
		pam_error(pamh, "%s", CANNOT);
	return PAM_PERM_DENIED;
}

static int gate(pam_handle_t *pamh, enum gate_op op, int flags, int argc, const char **argv)
{
	struct config conf = read_args(pamh, argc, argv);
	struct gate_request r = {
		.op = op,
		.uid = getuid(),
		.service = item(pamh, PAM_SERVICE),
		.user = item(pamh, PAM_USER),
		.ruser = item(pamh, PAM_RUSER),
		.rhost = item(pamh, PAM_RHOST),
		.tty = item(pamh, PAM_TTY),
		.auth_info = pam_getenv(pamh, "SSH_AUTH_INFO_0"),
	};
	bool sudo = is(r.service, "sudo") || is(r.service, "sudo-i");
	bool su = is(r.service, "su") || is(r.service, "su-l");
	/* sudo's PAM_USER is root in open_session: the person is whoever called. su's caller may be
	 * nobody's business and still become somebody who is gated. */
	struct gate_table table = {
		.by_uid = sudo || su,
		.uid = r.uid,
		.name = sudo ? NULL : r.user,
	};
	unsigned char request[GATE_REQUEST_MAX];
	char text[GATE_TEXT_MAX + 1] = "";
	enum gate_verdict verdict = GATE_NONE;
	enum table_state read;
	struct state *st;
	size_t len;
	int kept = -1;

	if (table.by_uid ? r.uid < FIRST_PERSON : is(r.user, "root"))
		return PAM_IGNORE;
	read = read_table(conf.table, &table);
	if (read == TABLE_ABSENT)
		return PAM_IGNORE;
	if (!r.user)
		return PAM_USER_UNKNOWN;
	if (read == TABLE_WHOLE && !gate_table_asks(&table, sudo))
		return PAM_IGNORE;

	st = state_of(pamh);
	len = gate_request_build(&r, request);
	if (st && len > 0)
		verdict = gate_ask(conf.socket, &st->spent_ns, request, len, text, &kept);
	else
		errno = st ? EINVAL : ENOMEM;
	if (verdict == GATE_NONE)
		pam_syslog(pamh, LOG_ERR, "no answer from the agent at %s: %m", conf.socket);
	else if (!keep(st, kept, op == GATE_OPEN_SESSION && verdict == GATE_ALLOW))
		verdict = GATE_NONE;

	if (observes(&conf, read, &table))
		return PAM_IGNORE;
	if (read == TABLE_UNREADABLE && (verdict == GATE_NONE || verdict == GATE_RETRY)) {
		/* Nobody can tell who is managed; local people keep their logins. A screen locker
		 * without root's rights ends here too, and is no reason for alarm. */
		pam_syslog(pamh, geteuid() == 0 ? LOG_ALERT : LOG_NOTICE,
			   "%s is unreadable and the agent does not answer: not checking this",
			   conf.table);
		return PAM_IGNORE;
	}
	return conclude(pamh, verdict, text, (flags & PAM_SILENT) != 0);
}

EXPORT int pam_sm_acct_mgmt(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	return gate(pamh, GATE_ACCOUNT, flags, argc, argv);
}

EXPORT int pam_sm_open_session(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	return gate(pamh, GATE_OPEN_SESSION, flags, argc, argv);
}

EXPORT int pam_sm_close_session(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	const void *kept = NULL;
	struct state *st;

	(void)flags, (void)argc, (void)argv;
	if (pam_get_data(pamh, STATE, &kept) != PAM_SUCCESS || !kept)
		return PAM_IGNORE;
	st = (struct state *)kept;
	if (st->fd < 0)
		return PAM_IGNORE;
	end_session(st);
	return PAM_SUCCESS;
}

/* sshd calls setcred twice, the second time in a child; Curfew has no part in either. */
EXPORT int pam_sm_authenticate(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	(void)pamh, (void)flags, (void)argc, (void)argv;
	return PAM_IGNORE;
}

EXPORT int pam_sm_setcred(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	(void)pamh, (void)flags, (void)argc, (void)argv;
	return PAM_IGNORE;
}
