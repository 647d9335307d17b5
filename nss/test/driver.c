/* Calls the module's functions for the Go tests: one framed question on stdin, one framed answer
 * on stdout. A frame is u32 little-endian length and bytes.
 *
 * Built with the module's sources under ASan and UBSan (usage: driver SNAPSHOT), and alone, to
 * dlopen the real object (usage: driver OBJECT, inside a mount namespace with its own /run).
 *
 * Every result is checked here: each pointer lies inside the caller's buffer and is aligned, errno
 * is what glibc relies on, no descriptor is left open. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
#include <shadow.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FUNCTIONS(X)                                                                              \
	X(getpwnam_r, (const char *, struct passwd *, char *, size_t, int *))                     \
	X(getpwuid_r, (uid_t, struct passwd *, char *, size_t, int *))                            \
	X(getgrnam_r, (const char *, struct group *, char *, size_t, int *))                      \
	X(getgrgid_r, (gid_t, struct group *, char *, size_t, int *))                             \
	X(getspnam_r, (const char *, struct spwd *, char *, size_t, int *))                       \
	X(setpwent, (int))                                                                        \
	X(endpwent, (void))                                                                       \
	X(getpwent_r, (struct passwd *, char *, size_t, int *))                                   \
	X(setgrent, (int))                                                                        \
	X(endgrent, (void))                                                                       \
	X(getgrent_r, (struct group *, char *, size_t, int *))                                    \
	X(initgroups_dyn, (const char *, gid_t, long *, long *, gid_t **, long, int *))

#ifdef LINKED
const char *driver_db;
#undef pread

/* Faults: the file is cut to cut_to before read number cut_at; a read returns at most `most` bytes,
 * and every other one is interrupted by a signal. 0 is none. */
static uint32_t reads, cut_at, cut_to, most;

ssize_t driver_pread(int fd, void *to, size_t len, off_t offset)
{
	reads++;
	if (cut_at && reads == cut_at && truncate(driver_db, cut_to) != 0)
		abort();
	if (most && reads % 2) {
		errno = EINTR;
		return -1;
	}
	return pread(fd, to, most && len > most ? most : len, offset);
}

#define X(name, args) enum nss_status _nss_curfew_##name args;
FUNCTIONS(X)
#undef X
#endif
#define X(name, args) static enum nss_status(*name##_) args;
FUNCTIONS(X)
#undef X

static char text[1 << 22];
static size_t text_len;

static void add(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	text_len += (size_t)vsnprintf(text + text_len, sizeof(text) - text_len, format, args);
	va_end(args);
	if (text_len >= sizeof(text))
		abort();
}

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "the module broke its contract: %s\n", what);
	abort();
}

/* A buffer of the exact size, which starts askew by as much as the test says. */
static char *block;
static size_t block_len, skew;

static char *buffer(size_t len)
{
	free(block);
	block = malloc(len + skew);
	block_len = len;
	memset(block, 0xa5, len + skew);
	return block + skew;
}

static void inside(const char *s)
{
	const char *start = block + skew, *end = start + block_len;

	must(s >= start && s < end, "a string lies outside of the buffer");
	must(memchr(s, '\0', (size_t)(end - s)) != NULL, "a string does not end in the buffer");
}

enum { SENTINEL = 77 };

static void check_status(enum nss_status rc)
{
	switch (rc) {
	case NSS_STATUS_SUCCESS:
	case NSS_STATUS_NOTFOUND:
		must(errno == SENTINEL, "errno changed without an error");
		break;
	case NSS_STATUS_TRYAGAIN:
		must(errno == ERANGE, "TRYAGAIN without ERANGE");
		break;
	case NSS_STATUS_UNAVAIL:
		must(errno != ERANGE && errno != 0 && errno != SENTINEL, "UNAVAIL without a reason");
		break;
	default:
		must(0, "no such status");
	}
}

struct query {
	char what; /* N U G H P, or e E for the next of an enumeration */
	const char *name;
	uint32_t id;
};

static union {
	struct passwd pw;
	struct group gr;
	struct spwd sp;
} result;

static enum nss_status call(const struct query *q, size_t len)
{
	char *b = buffer(len);
	enum nss_status rc = NSS_STATUS_UNAVAIL;

	memset(&result, 0x5a, sizeof(result));
	errno = SENTINEL;
	switch (q->what) {
	case 'N':
		rc = getpwnam_r_(q->name, &result.pw, b, len, &errno);
		break;
	case 'U':
		rc = getpwuid_r_(q->id, &result.pw, b, len, &errno);
		break;
	case 'e':
		rc = getpwent_r_(&result.pw, b, len, &errno);
		break;
	case 'G':
		rc = getgrnam_r_(q->name, &result.gr, b, len, &errno);
		break;
	case 'H':
		rc = getgrgid_r_(q->id, &result.gr, b, len, &errno);
		break;
	case 'E':
		rc = getgrent_r_(&result.gr, b, len, &errno);
		break;
	case 'P':
		rc = getspnam_r_(q->name, &result.sp, b, len, &errno);
		break;
	}
	check_status(rc);
	return rc;
}

/* Checks a result and writes it down as getent does. */
static void entry(char what)
{
	switch (what) {
	case 'N':
	case 'U':
	case 'e':
		inside(result.pw.pw_name);
		inside(result.pw.pw_passwd);
		inside(result.pw.pw_gecos);
		inside(result.pw.pw_dir);
		inside(result.pw.pw_shell);
		must(result.pw.pw_uid >= 1000 && result.pw.pw_gid >= 1000, "a system uid or gid");
		add("%s:%s:%u:%u:%s:%s:%s\n", result.pw.pw_name, result.pw.pw_passwd,
		    result.pw.pw_uid, result.pw.pw_gid, result.pw.pw_gecos, result.pw.pw_dir,
		    result.pw.pw_shell);
		break;
	case 'P':
		inside(result.sp.sp_namp);
		inside(result.sp.sp_pwdp);
		add("%s:%s:%ld:%ld:%ld:%ld:%ld:%ld:%lu\n", result.sp.sp_namp, result.sp.sp_pwdp,
		    result.sp.sp_lstchg, result.sp.sp_min, result.sp.sp_max, result.sp.sp_warn,
		    result.sp.sp_inact, result.sp.sp_expire, result.sp.sp_flag);
		break;
	default:
		inside(result.gr.gr_name);
		inside(result.gr.gr_passwd);
		must(result.gr.gr_gid >= 1000, "a system gid");
		must((uintptr_t)result.gr.gr_mem % sizeof(char *) == 0, "gr_mem is not aligned");
		add("%s:%s:%u:", result.gr.gr_name, result.gr.gr_passwd, result.gr.gr_gid);
		for (char **m = result.gr.gr_mem;; m++) {
			must((char *)m >= block + skew &&
				     (char *)(m + 1) <= block + skew + block_len,
			     "gr_mem lies outside of the buffer");
			if (!*m)
				break;
			inside(*m);
			add("%s%s", m == result.gr.gr_mem ? "" : ",", *m);
		}
		add("\n");
	}
}

/* Calls with a buffer that grows: by single bytes, or in the battery as glibc does. */
static int fast;

static enum nss_status grow(const struct query *q, size_t len)
{
	enum nss_status rc;

	for (size_t n = len;; n = n < 512 && !fast ? n + 1 : n * 2 + 1) {
		rc = call(q, n);
		if (rc != NSS_STATUS_TRYAGAIN)
			break;
		must(n < (1u << 24), "no buffer is large enough");
	}
	if (rc == NSS_STATUS_SUCCESS)
		entry(q->what);
	return rc;
}

static enum nss_status groups(const char *name, gid_t primary, long size, long limit)
{
	gid_t *gids = malloc((size_t)size * sizeof(gid_t));
	long start = 0, had = size;
	enum nss_status rc;

	errno = SENTINEL;
	rc = initgroups_dyn_(name, primary, &start, &size, &gids, limit, &errno);
	check_status(rc);
	must(start <= size && size >= had, "more gids than there is room for");
	must(limit <= 0 || start <= limit, "more gids than the limit");
	must(rc == NSS_STATUS_SUCCESS || start == 0, "gids without success");
	for (long i = 0; i < start; i++) {
		must(gids[i] != 0 && gids[i] != primary, "group 0, or the primary one");
		add("%s%u", i ? "," : "", gids[i]);
	}
	add("\n");
	free(gids);
	return rc;
}

static int enumerate(char what, int battery)
{
	struct query q = { .what = what };
	int n = 0;

	what == 'e' ? setpwent_(0) : setgrent_(0);
	while (grow(&q, battery ? 0 : 1024) == NSS_STATUS_SUCCESS) {
		must(++n < 100000, "an enumeration without end");
		if (battery) {
			char name[128];
			struct query again = { .name = name };

			snprintf(name, sizeof(name), "%s",
				 what == 'e' ? result.pw.pw_name : result.gr.gr_name);
			again.id = what == 'e' ? result.pw.pw_uid : result.gr.gr_gid;
			again.what = what == 'e' ? 'N' : 'G';
			grow(&again, 0);
			again.what = what == 'e' ? 'U' : 'H';
			grow(&again, 0);
			if (what == 'e') {
				again.what = 'P';
				grow(&again, 0);
				groups(name, 1, 1, -1);
			}
			text_len = 0;
		}
	}
	what == 'e' ? endpwent_() : endgrent_();
	return n;
}

/* Everything at once, on a file that may be anything at all. */
static void battery(void)
{
	static const char *const names[] = { "root", "", "alice", "bob", "aaa-team", "zzz", "a",
					     /* longer than any name */
					     ("0123456789012345678901234567890123456789012345678"
					      "901234567890123456789") };
	static const uint32_t ids[] = { 0, 1, 999, 1000, 1900000001, 1900000002, UINT32_MAX };
	int passwds = enumerate('e', 1), grs = enumerate('E', 1);

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		for (const char *what = "NGP"; *what; what++) {
			enum nss_status rc = grow(
				&(struct query){ .what = *what, .name = names[i] }, 0);

			must(rc != NSS_STATUS_SUCCESS || names[i][0] != '\0', "nobody has a name");
		}
		groups(names[i], 1900000001, 1, -1);
	}
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
		for (const char *what = "UH"; *what; what++) {
			enum nss_status rc = grow(&(struct query){ .what = *what, .id = ids[i] },
						  0);

			must(rc != NSS_STATUS_SUCCESS || ids[i] >= 1000, "a system id exists");
		}
	text_len = 0;
	add("%d %d", passwds, grs);
}

#ifdef FUZZ
/* One file of any content, asked everything. The first byte of the input says whether the header is
 * made to agree with the file, which lets the fuzzer in. */
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len)
{
	static char path[64];
	unsigned char *file;
	int fd;

	if (len < 1)
		return 0;
	if (!driver_db) {
		snprintf(path, sizeof(path), "/dev/shm/curfew-nss-fuzz.%d", getpid());
		driver_db = path;
#define X(name, args) name##_ = _nss_curfew_##name;
		FUNCTIONS(X)
	}
	file = malloc(len);
	memcpy(file, data + 1, --len);
	if ((data[0] & 1) && len >= 64) {
		memcpy(file, "CFNSS01\n", 8);
		for (int i = 0; i < 4; i++)
			file[8 + i] = (unsigned char)(len >> (8 * i));
		memset(file + 36, 0, 28);
	}
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, file, len) != (ssize_t)len)
		abort();
	close(fd);
	free(file);
	reads = 0;
	most = data[0] & 2 ? 7 : 0;
	cut_at = data[0] & 4 ? data[0] >> 3 : 0;
	cut_to = 70;
	skew = 0;
	fast = 1;
	battery();
	unlink(path);
	return 0;
}
#else
static void bench(const struct query *q, uint32_t n)
{
	struct timespec a, b;
	static char room[4096];
	int e;

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (uint32_t i = 0; i < n; i++) {
		if (q->what == 'N')
			getpwnam_r_(q->name, &result.pw, room, sizeof(room), &e);
		else if (q->what == 'U')
			getpwuid_r_(q->id, &result.pw, room, sizeof(room), &e);
		else {
			long start = 0, size = 16;
			gid_t *gids = malloc(16 * sizeof(gid_t));

			initgroups_dyn_(q->name, 1, &start, &size, &gids, -1, &e);
			free(gids);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	add("%ld", ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec) / (long)n);
}

/* A question: what u8, skew u8, buffer u32 (or count, or size), id u32, limit i32, name. */
static void serve(const unsigned char *in, size_t len)
{
	struct query q;
	uint32_t size;
	int32_t limit;
	char *name;
	enum nss_status rc;

	if (len < 14)
		exit(2);
	q.what = (char)in[0];
	skew = in[1];
	memcpy(&size, in + 2, 4);
	memcpy(&q.id, in + 6, 4);
	memcpy(&limit, in + 10, 4);
	name = malloc(len - 14 + 1);
	memcpy(name, in + 14, len - 14);
	name[len - 14] = '\0';
	q.name = name;
	text_len = 0;
	switch (q.what) {
	case 'I':
		rc = groups(name, q.id, size, limit);
		add("%d %d", rc, errno == SENTINEL ? 0 : errno);
		break;
	case 'e':
	case 'E':
		enumerate(q.what, 0);
		break;
	case 'A':
		fast = 1;
		battery();
		fast = 0;
		break;
#ifdef LINKED
	case 'F': /* answers how many reads there were since the last of these */
		add("%u", reads);
		cut_at = q.id;
		cut_to = size;
		most = (uint32_t)limit;
		reads = 0;
		break;
#endif
	case 'B':
		q.what = (char)limit;
		bench(&q, size);
		break;
	case 'O': /* one call with exactly this buffer */
		q.what = (char)limit;
		rc = call(&q, size);
		if (rc == NSS_STATUS_SUCCESS)
			entry(q.what);
		add("%d %d", rc, errno == SENTINEL ? 0 : errno);
		break;
	default:
		rc = grow(&q, size);
		add("%d %d", rc, errno == SENTINEL ? 0 : errno);
	}
	free(name);
}

int main(int argc, char **argv)
{
	uint32_t len;

	if (argc != 2)
		return 2;
#ifdef LINKED
	driver_db = argv[1];
#define X(name, args) name##_ = _nss_curfew_##name;
#else
	void *object = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);

	if (!object) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
#define X(name, args) *(void **)&name##_ = dlsym(object, "_nss_curfew_" #name);
#endif
	FUNCTIONS(X)
	while (fread(&len, 4, 1, stdin) == 1) {
		unsigned char *in = malloc(len ? len : 1);
		int before, after;
		uint32_t n;

		if (fread(in, 1, len, stdin) != len)
			return 2;
		before = dup(0);
		close(before);
		serve(in, len);
		after = dup(0);
		close(after);
		must(before == after, "a descriptor is left open");
		free(in);
		n = (uint32_t)text_len;
		fwrite(&n, 4, 1, stdout);
		fwrite(text, 1, text_len, stdout);
		fflush(stdout);
	}
	free(block);
	return 0;
}
#endif
