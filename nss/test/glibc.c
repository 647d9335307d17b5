/* A program that meets the module through glibc's own dispatch, as every program of a host does:
 * many threads, forks, closed descriptors. usage: glibc MODE, with LD_LIBRARY_PATH at the object
 * and a mount namespace with its own /run. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <nss.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern int __nss_configure_lookup(const char *db, const char *service_line);

static int descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* What the snapshot of the tests holds; 0 when all of it is answered rightly. */
static int wrong(void)
{
	struct passwd pw, *p = NULL;
	struct group gr, *g = NULL;
	char room[4096];
	gid_t gids[64];
	int n = 64;

	if (getpwnam_r("alice", &pw, room, sizeof(room), &p) != 0 || !p ||
	    strcmp(p->pw_dir, "/home/alice") != 0)
		return 1;
	if (getpwuid_r(1900000002, &pw, room, sizeof(room), &p) != 0 || !p ||
	    strcmp(p->pw_name, "alice") != 0)
		return 2;
	if (getpwnam_r("no-such-user", &pw, room, sizeof(room), &p) != 0 || p)
		return 3;
	if (getpwnam_r("root", &pw, room, sizeof(room), &p) != 0 || !p || p->pw_uid != 0)
		return 4;
	if (getgrnam_r("aaa-team", &gr, room, sizeof(room), &g) != 0 || !g || !g->gr_mem[0] ||
	    strcmp(g->gr_mem[0], "alice") != 0)
		return 5;
	if (getgrouplist("alice", 1900000002, gids, &n) != 4)
		return 6;
	return 0;
}

static void *in_thread(void *arg)
{
	long *bad = arg;

	*bad = 0;
	for (int i = 0; i < 300; i++)
		*bad += wrong() != 0;
	return NULL;
}

/* Enumerations from several threads share one cursor; they must end and stay sane. */
static void *enumerating(void *arg)
{
	long *bad = arg;

	*bad = 0;
	for (int i = 0; i < 20; i++) {
		struct passwd pw, *p;
		char room[4096];

		setpwent();
		while (getpwent_r(&pw, room, sizeof(room), &p) == 0)
			*bad += p->pw_name[0] == '\0';
		endpwent();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	enum { THREADS = 16 };
	pthread_t t[THREADS];
	long bad[THREADS], sum = 0;
	int before, status;

	if (argc != 2)
		return 2;
	__nss_configure_lookup("passwd", "files curfew");
	__nss_configure_lookup("group", "files curfew");
	if (strcmp(argv[1], "closed") == 0) {
		int out = fcntl(1, F_DUPFD, 10), rc;

		close(0);
		close(1);
		close(2);
		rc = wrong();
		dprintf(out, "wrong %d open %d\n", rc,
			fcntl(0, F_GETFD) >= 0 || fcntl(1, F_GETFD) >= 0 || fcntl(2, F_GETFD) >= 0);
		return 0;
	}
	sum = wrong();
	before = descriptors();
	for (int i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, i % 4 == 3 ? enumerating : in_thread, &bad[i]);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		sum += bad[i];
	}
	for (int i = 0; i < 100; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			alarm(10);
			_exit(wrong());
		}
		waitpid(pid, &status, 0);
		sum += status != 0;
	}
	printf("wrong %ld descriptors %d\n", sum, descriptors() - before);
	return 0;
}
