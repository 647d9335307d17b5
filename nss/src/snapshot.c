#define _GNU_SOURCE
#include "../../pam/src/fdstat.h"
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEADER 64
#define PAGE 4096
#define PAGE_HEAD 32
#define SLOT 8
#define PASSWD_FIXED 44
#define GROUP_FIXED 28
#define FIRST_PERSON 1000

static uint16_t u16(const unsigned char *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32(const unsigned char *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t u64(const unsigned char *p)
{
	return u32(p) | (uint64_t)u32(p + 4) << 32;
}

static enum snap_result bad(void)
{
	errno = EIO;
	return SNAP_BAD;
}

/* Reads exactly len bytes. The size was checked at open, so fewer means that the file was cut. */
static enum snap_result read_at(const struct snap *s, uint32_t offset, uint32_t len, void *to)
{
	unsigned char *p = to;

	while (len > 0) {
		ssize_t n = pread(s->fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? SNAP_BAD : bad();
		p += n;
		offset += (uint32_t)n;
		len -= (uint32_t)n;
	}
	return SNAP_OK;
}

static bool within(const struct snap *s, uint32_t offset, uint64_t len)
{
	return offset + len <= s->size;
}

/* A view of len bytes at offset, at most a window's worth, good until the next call; or NULL. */
static const unsigned char *view(struct snap *s, uint32_t offset, uint32_t len)
{
	if (len > SNAP_WINDOW || !within(s, offset, len)) {
		errno = EIO;
		return NULL;
	}
	if (offset < s->at || (uint64_t)offset + len > (uint64_t)s->at + s->len) {
		uint32_t most = s->size - offset;

		s->len = 0;
		if (most > SNAP_WINDOW)
			most = SNAP_WINDOW;
		if (read_at(s, offset, most, s->window) != SNAP_OK)
			return NULL;
		s->at = offset;
		s->len = most;
	}
	return s->window + (offset - s->at);
}

enum snap_result snap_copy(struct snap *s, uint32_t offset, uint32_t len, void *to)
{
	const unsigned char *p;

	if (!within(s, offset, len))
		return bad();
	if (len > SNAP_WINDOW)
		return read_at(s, offset, len, to);
	p = view(s, offset, len);
	if (!p)
		return SNAP_BAD;
	memcpy(to, p, len);
	return SNAP_OK;
}

enum snap_result snap_string(struct snap *s, uint32_t offset, uint32_t len, char *to)
{
	enum snap_result rc = snap_copy(s, offset, len, to);

	if (rc != SNAP_OK)
		return rc;
	for (uint32_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)to[i];

		if (c < 0x20 || c == 0x7f || c == ':')
			return bad();
	}
	to[len] = '\0';
	return SNAP_OK;
}

/* Reads and checks the header, once a call. A look-up that finds its page needs none of it. */
static enum snap_result header(struct snap *s)
{
	static const unsigned char zero[HEADER];
	const unsigned char *h;

	if (s->headed)
		return SNAP_OK;
	h = view(s, 0, HEADER);
	if (!h)
		return SNAP_BAD;
	if (memcmp(h, "CFNSS01\n", 8) != 0 || u32(h + 8) != s->size ||
	    memcmp(h + 36, zero, HEADER - 36) != 0)
		return bad();
	for (int kind = SNAP_PASSWD; kind <= SNAP_GROUP; kind++) {
		s->n[kind] = u32(h + 12 + 4 * kind);
		s->by_name[kind] = u32(h + 20 + 8 * kind);
		s->by_id[kind] = u32(h + 24 + 8 * kind);
		if (s->by_name[kind] < HEADER || s->by_id[kind] < HEADER ||
		    !within(s, s->by_name[kind], UINT64_C(4) * s->n[kind]) ||
		    !within(s, s->by_id[kind], UINT64_C(4) * s->n[kind]))
			return bad();
	}
	s->joined = s->by_id[SNAP_GROUP];
	s->n_joined = s->n[SNAP_GROUP];
	s->headed = true;
	return SNAP_OK;
}

enum snap_result snap_open(struct snap *s)
{
	struct stat st;
	enum snap_result rc = SNAP_BAD;

	s->at = s->len = s->entries_at = s->entries_len = 0;
	s->headed = false;
	do {
		/* O_NONBLOCK: a FIFO in its place must not hang every `ls -l` of the host. */
		s->fd = open(CURFEW_NSS_DB,
			     O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	} while (s->fd < 0 && errno == EINTR);
	if (s->fd < 0)
		return errno == ENOENT ? SNAP_MISSING : SNAP_BAD;
	if (fd_stat(s->fd, &st) == 0) {
		if (!S_ISREG(st.st_mode) || st.st_uid != 0 ||
		    (st.st_mode & (S_IWGRP | S_IWOTH)) != 0 || st.st_size < HEADER ||
		    st.st_size > SNAP_SIZE_MAX)
			bad();
		else
			rc = SNAP_OK;
		s->size = (uint32_t)st.st_size;
	}
	if (rc != SNAP_OK)
		snap_close(s);
	return rc;
}

void snap_close(struct snap *s)
{
	int saved = errno;

	close(s->fd);
	errno = saved;
}

/* A deadline of zero has passed, and so has every deadline when the clock cannot be read. */
static bool passed(clockid_t clock, uint64_t deadline_ms)
{
	struct timespec t;

	if (clock_gettime(clock, &t) != 0 || t.tv_sec < 0)
		return true;
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000 >= deadline_ms;
}

bool snap_expired(const struct snap_record *r)
{
	return passed(CLOCK_REALTIME, r->wall) || passed(CLOCK_BOOTTIME, r->boot);
}

/* Reads and checks the head of a record. A wrong number here could make a person root, so uids
 * and gids that no person has are refused even though the writer never writes them. */
static enum snap_result read_record(struct snap *s, enum snap_kind kind, uint32_t offset,
				    struct snap_record *r)
{
	uint32_t fixed = kind == SNAP_PASSWD ? PASSWD_FIXED : GROUP_FIXED;
	const unsigned char *p = offset < HEADER ? NULL : view(s, offset, fixed);
	uint64_t total;

	if (!p)
		return offset < HEADER ? bad() : SNAP_BAD;
	*r = (struct snap_record){ .offset = offset, .length = u32(p), .id = u32(p + 4) };
	if (kind == SNAP_PASSWD) {
		r->gid = u32(p + 8);
		r->wall = u64(p + 16);
		r->boot = u64(p + 24);
		r->name = u16(p + 32);
		r->gecos = u16(p + 34);
		r->home = u16(p + 36);
		r->shell = u16(p + 38);
		r->count = u16(p + 40);
		r->names_at = offset + fixed + 4u * r->count;
		total = fixed + UINT64_C(4) * r->count + r->name + r->gecos + r->home + r->shell;
		if (u32(p + 12) != 0 || u16(p + 42) != 0 || total != r->length)
			return bad();
	} else {
		r->gid = r->id;
		r->wall = u64(p + 8);
		r->boot = u64(p + 16);
		r->name = u16(p + 24);
		r->count = u16(p + 26);
		r->names_at = offset + fixed;
		total = fixed + UINT64_C(2) * r->count + r->name;
		if (total > r->length)
			return bad();
	}
	if (!within(s, offset, r->length) || r->name == 0 || r->name > SNAP_NAME_MAX ||
	    r->id < FIRST_PERSON || r->gid < FIRST_PERSON)
		return bad();
	return SNAP_OK;
}

/* Record i of an index of n. */
static enum snap_result indexed(struct snap *s, enum snap_kind kind, uint32_t index, uint32_t n,
				uint32_t i, struct snap_record *r)
{
	uint32_t chunk = i - i % SNAP_ENTRIES, at = index + 4 * chunk, len = 4 * (n - chunk);

	if (i >= n)
		return SNAP_MISSING;
	if (len > sizeof(s->entries))
		len = sizeof(s->entries);
	if (s->entries_at != at || s->entries_len != len) {
		s->entries_len = 0;
		if (read_at(s, at, len, s->entries) != SNAP_OK)
			return SNAP_BAD;
		s->entries_at = at;
		s->entries_len = len;
	}
	return read_record(s, kind, u32(s->entries + 4 * (i - chunk)), r);
}

enum snap_result snap_nth(struct snap *s, enum snap_kind kind, uint32_t i, struct snap_record *r)
{
	enum snap_result rc = header(s);

	return rc == SNAP_OK ? indexed(s, kind, s->by_id[kind], s->n[kind], i, r) : rc;
}

enum snap_result snap_joined(struct snap *s, uint32_t i, struct snap_record *r)
{
	return indexed(s, SNAP_GROUP, s->joined, s->n_joined, i, r);
}

/* Compares a name with the record's; rc is SNAP_BAD when that cannot be read. */
static int compare(struct snap *s, const struct snap_record *r, const char *name, size_t len,
		   enum snap_result *rc)
{
	const unsigned char *p = view(s, r->names_at, r->name);
	int order;

	if (!p) {
		*rc = SNAP_BAD;
		return 0;
	}
	order = memcmp(name, p, len < r->name ? len : r->name);
	return order != 0 ? order : (int)len - (int)r->name;
}

/* Finds the page for a hash: *page is its offset, and 0 in a file that has none, as those of older
 * agents. The file's size says how many there are, so that nothing else need be read before. */
static enum snap_result find_page(struct snap *s, uint32_t hash, uint32_t *page, uint32_t *slots)
{
	uint32_t pages = s->size % PAGE, end = s->size / PAGE;
	const unsigned char *p;

	*page = 0;
	if (pages == 0 || end <= pages)
		return SNAP_OK;
	hash %= pages;
	p = view(s, PAGE * (end - pages + hash), PAGE);
	if (!p)
		return SNAP_BAD;
	if (memcmp(p, "CFPAGE1\n", 8) != 0)
		return SNAP_OK;
	*slots = u32(p + 16);
	s->joined = u32(p + 20);
	s->n_joined = u32(p + 24);
	if (u32(p + 8) != s->size || u32(p + 12) != hash || *slots > (PAGE - PAGE_HEAD) / SLOT ||
	    s->joined < HEADER || !within(s, s->joined, UINT64_C(4) * s->n_joined))
		return bad();
	*page = PAGE * (end - pages + hash);
	return SNAP_OK;
}

/* Looks a name, or the four bytes of an id, up in its page; *paged is false in a file without. */
static enum snap_result find(struct snap *s, enum snap_kind kind, const char *name,
			     const unsigned char *key, size_t len, struct snap_record *r,
			     bool *paged)
{
	uint32_t hash = (UINT32_C(2166136261) ^ (uint32_t)kind) * UINT32_C(16777619);
	uint32_t page, slots = 0;
	enum snap_result rc;

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ key[i]) * UINT32_C(16777619);
	rc = find_page(s, hash, &page, &slots);
	*paged = rc != SNAP_OK || page != 0;
	for (uint32_t i = 0; i < slots && rc == SNAP_OK && page != 0; i++) {
		/* Again for each: a record elsewhere, of another with this hash, takes its place. */
		const unsigned char *p = view(s, page, PAGE);
		uint32_t offset;

		if (!p)
			return SNAP_BAD;
		p += PAGE_HEAD + SLOT * i;
		offset = u32(p + 4);
		if (u32(p) != hash || offset >> 31 != (uint32_t)kind)
			continue;
		rc = read_record(s, kind, offset & INT32_MAX, r);
		if (rc == SNAP_OK && (name ? compare(s, r, name, len, &rc) == 0 : r->id == u32(key)))
			return rc;
	}
	return rc == SNAP_OK ? SNAP_MISSING : rc;
}

enum snap_result snap_by_name(struct snap *s, enum snap_kind kind, const char *name,
			      struct snap_record *r)
{
	size_t len = strnlen(name, SNAP_NAME_MAX + 1);
	bool paged = false, nobody = len == 0 || len > SNAP_NAME_MAX;
	enum snap_result rc = SNAP_MISSING;
	uint32_t low = 0, high;

	if (!nobody)
		rc = find(s, kind, name, (const unsigned char *)name, len, r, &paged);
	if (!paged)
		rc = header(s);
	if (paged || rc != SNAP_OK)
		return rc;
	high = nobody ? 0 : s->n[kind];
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		int order;

		rc = indexed(s, kind, s->by_name[kind], s->n[kind], mid, r);
		order = rc == SNAP_OK ? compare(s, r, name, len, &rc) : 0;
		if (order == 0)
			return rc;
		if (order < 0)
			high = mid;
		else
			low = mid + 1;
	}
	return SNAP_MISSING;
}

enum snap_result snap_next(struct snap *s, enum snap_kind kind, uint64_t from,
			   struct snap_record *r)
{
	enum snap_result rc = header(s);
	uint32_t low = 0, high = rc == SNAP_OK ? s->n[kind] : 0;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		rc = snap_nth(s, kind, mid, r);

		if (rc != SNAP_OK)
			return rc;
		if (r->id < from)
			low = mid + 1;
		else
			high = mid;
	}
	return rc == SNAP_OK ? snap_nth(s, kind, low, r) : rc;
}

enum snap_result snap_by_id(struct snap *s, enum snap_kind kind, uint32_t id,
			    struct snap_record *r)
{
	const unsigned char key[] = { id & 0xff, id >> 8 & 0xff, id >> 16 & 0xff, id >> 24 };
	bool paged;
	enum snap_result rc = find(s, kind, NULL, key, sizeof(key), r, &paged);

	if (paged)
		return rc;
	rc = snap_next(s, kind, id, r);
	if (rc == SNAP_OK && r->id != id)
		return SNAP_MISSING;
	return rc;
}

enum snap_result snap_member(struct snap *s, const struct snap_record *r, uint32_t *at,
			     uint32_t *name, uint16_t *len)
{
	unsigned char n[2];
	uint32_t left = r->offset + r->length - *at;

	if (left < sizeof(n))
		return bad();
	if (snap_copy(s, *at, sizeof(n), n) != SNAP_OK)
		return SNAP_BAD;
	*len = u16(n);
	*name = *at + (uint32_t)sizeof(n);
	if (*len == 0 || *len > SNAP_NAME_MAX || *len > left - sizeof(n))
		return bad();
	*at = *name + *len;
	return SNAP_OK;
}
