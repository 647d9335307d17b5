/* A program that hosts the module as sshd and sudo do, for what cannot be tried inside a Go
 * process: forks, signals, closed descriptors, death. Prints lines that begin with a word; what
 * goes to syslog is printed instead, since the real one is the machine's.
 *
 * usage: host CONFDIR SERVICE USER MODE [N] */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include <security/pam_appl.h>

static const char *confdir, *service, *user;
static int out = STDOUT_FILENO;

static void say(const char *format, ...)
{
	char line[2048];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	strcat(line, "\n");
	if (write(out, line, strlen(line)) < 0)
		_exit(3);
}

/* libpam logs through these; the program's own come first. */
static void logged(int priority, const char *format, va_list args)
{
	char text[1024];

	vsnprintf(text, sizeof(text), format, args);
	say("log %d %s", priority & LOG_PRIMASK, text);
}

void syslog(int priority, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	logged(priority, format, args);
	va_end(args);
}

void __syslog_chk(int priority, int flag, const char *format, ...);
void __syslog_chk(int priority, int flag, const char *format, ...)
{
	va_list args;

	(void)flag;
	va_start(args, format);
	logged(priority, format, args);
	va_end(args);
}

/* The module sends through this one: in the time it takes an agent can hang up. Linux raises no
 * SIGPIPE for this kind of socket, which nobody promises: a send that would allow it gets one. */
static int slow;

ssize_t send(int fd, const void *buf, size_t n, int flags)
{
	if (slow)
		usleep(3000);
	if ((flags & MSG_NOSIGNAL) == 0)
		raise(SIGPIPE);
	return syscall(SYS_sendto, fd, buf, n, flags, NULL, 0);
}

static int converse(int n, const struct pam_message **msg, struct pam_response **resp, void *data)
{
	(void)data;
	for (int i = 0; i < n; i++)
		say("message %d %s", msg[i]->msg_style, msg[i]->msg);
	*resp = calloc((size_t)n, sizeof(**resp));
	return *resp ? PAM_SUCCESS : PAM_BUF_ERR;
}

static pam_handle_t *start(void)
{
	static const struct pam_conv conv = { converse, NULL };
	pam_handle_t *pamh = NULL;
	int rc = pam_start_confdir(service, user, &conv, confdir, &pamh);

	if (rc != PAM_SUCCESS) {
		say("failed to start: %d", rc);
		_exit(3);
	}
	return pamh;
}

static int descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int tasks(void)
{
	DIR *d = opendir("/proc/self/task");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

static void on_child(int sig)
{
	(void)sig;
}

/* What the module must leave as it finds it: every handler and the mask. */
static void signals(char *into, size_t size)
{
	sigset_t mask;

	memset(into, 0, size);
	for (int sig = 1; sig < 32; sig++) {
		struct sigaction a;

		sigaction(sig, NULL, &a);
		into += sprintf(into, "%lx,", (unsigned long)a.sa_handler);
	}
	sigprocmask(SIG_BLOCK, NULL, &mask);
	for (int sig = 1; sig < 32; sig++)
		*into++ = sigismember(&mask, sig) ? '1' : '0';
}

static void whole_login(int *account, int *session)
{
	pam_handle_t *pamh = start();

	*account = pam_acct_mgmt(pamh, 0);
	*session = pam_open_session(pamh, 0);
	pam_setcred(pamh, PAM_ESTABLISH_CRED);
	pam_setcred(pamh, PAM_REINITIALIZE_CRED);
	pam_close_session(pamh, 0);
	pam_end(pamh, PAM_SUCCESS);
}

/* N logins, one after the other: nothing may be left behind by any of them. */
static void repeat(int n)
{
	char before[2048], after[2048];
	int allowed = 0, denied = 0, fds, account, session;

	signal(SIGCHLD, on_child);
	whole_login(&account, &session);
	fds = descriptors();
	signals(before, sizeof(before));
	for (int i = 0; i < n; i++) {
		whole_login(&account, &session);
		if (account == PAM_SUCCESS && session == PAM_SUCCESS)
			allowed++;
		else
			denied++;
	}
	signals(after, sizeof(after));
	say("allowed %d", allowed);
	say("denied %d", denied);
	say("descriptors %d", descriptors() - fds);
	say("tasks %d", tasks());
	say("signals %s", strcmp(before, after) == 0 ? "same" : "changed");
}

/* sshd's pattern: the handle goes through fork, and children call the module again. */
static void forks(int n)
{
	pam_handle_t *pamh = start();
	int good = 0;

	say("account %d", pam_acct_mgmt(pamh, 0));
	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			pid_t grandchild;
			int rc;

			alarm(10); /* a hang is a failure, not a wait */
			rc = pam_acct_mgmt(pamh, 0) + pam_setcred(pamh, PAM_REINITIALIZE_CRED) +
			     pam_open_session(pamh, 0);
			grandchild = fork();
			if (grandchild == 0) {
				alarm(10);
				_exit(pam_acct_mgmt(pamh, 0));
			}
			waitpid(grandchild, &status, 0);
			rc += WIFEXITED(status) ? WEXITSTATUS(status) : 1;
			pam_end(pamh, PAM_SUCCESS | PAM_DATA_SILENT);
			_exit(rc);
		}
		waitpid(pid, &status, 0);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			good++;
	}
	say("children %d", good);
	say("session %d", pam_open_session(pamh, 0));
	pam_end(pamh, PAM_SUCCESS);
}

static void *in_thread(void *arg)
{
	long *bad = arg, n = *bad;

	*bad = 0;
	for (long i = 0; i < n; i++) {
		int account, session;

		whole_login(&account, &session);
		if (account != PAM_SUCCESS || session != PAM_SUCCESS)
			(*bad)++;
	}
	return NULL;
}

static void threads(int n)
{
	enum { THREADS = 16 };
	pthread_t t[THREADS];
	long bad[THREADS], sum = 0;

	for (int i = 0; i < THREADS; i++) {
		bad[i] = n;
		pthread_create(&t[i], NULL, in_thread, &bad[i]);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		sum += bad[i];
	}
	say("bad %ld", sum);
}

/* A daemon that was started with 0 to 2 closed. */
static void closed(void)
{
	pam_handle_t *pamh;
	int account, session;

	out = fcntl(STDOUT_FILENO, F_DUPFD, 10);
	close(0);
	close(1);
	close(2);
	pamh = start();
	account = pam_acct_mgmt(pamh, 0);
	session = pam_open_session(pamh, 0);
	say("account %d session %d", account, session);
	for (int fd = 0; fd <= 2; fd++)
		say("fd %d %s", fd, fcntl(fd, F_GETFD) < 0 ? "closed" : "open");
	pam_end(pamh, PAM_SUCCESS);
}

/* Opens a session and stays. With a forked child that holds a copy, or one that execs. */
static void hold(const char *how)
{
	pam_handle_t *pamh = start();
	pid_t child = 0;

	say("session %d", pam_open_session(pamh, 0));
	if (strcmp(how, "hold") != 0)
		child = fork();
	if (child == 0 && strcmp(how, "hold-exec") == 0) {
		execl("/bin/sleep", "sleep", "60", (char *)NULL);
		_exit(3);
	}
	if (child != 0 || strcmp(how, "hold") == 0)
		say("child %d", (int)child);
	for (;;)
		pause();
}

/* A child that closes everything and gets the session's number for a file of its own. */
static void reuse(void)
{
	pam_handle_t *pamh = start();
	int top = open("/dev/null", O_RDONLY), status;
	pid_t child;

	close(top);
	say("session %d", pam_open_session(pamh, 0));
	child = fork();
	if (child == 0) {
		int fd;

		close(top);
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (fd != top)
			_exit(4); /* the test tried nothing */
		pam_end(pamh, PAM_SUCCESS | PAM_DATA_SILENT);
		_exit(fcntl(fd, F_GETFD) < 0 ? 5 : 0);
	}
	waitpid(child, &status, 0);
	say("child %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
	say("close %d", pam_close_session(pamh, 0));
	pam_end(pamh, PAM_SUCCESS);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 4 ? argv[4] : "";
	int n = argc > 5 ? atoi(argv[5]) : 0, account, session;

	if (argc < 5)
		return 2;
	confdir = argv[1];
	service = argv[2];
	user = argv[3];
	if (strcmp(mode, "login") == 0) {
		whole_login(&account, &session);
		say("account %d session %d", account, session);
	} else if (strncmp(mode, "repeat", 6) == 0) {
		slow = strcmp(mode, "repeat-slowly") == 0;
		repeat(n);
	} else if (strcmp(mode, "forks") == 0) {
		forks(n);
	} else if (strcmp(mode, "threads") == 0) {
		threads(n);
	} else if (strcmp(mode, "closed") == 0) {
		closed();
	} else if (strncmp(mode, "hold", 4) == 0) {
		hold(mode);
	} else if (strcmp(mode, "reuse") == 0) {
		reuse();
	} else {
		return 2;
	}
	return 0;
}
