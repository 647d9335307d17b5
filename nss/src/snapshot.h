/* Reading the account snapshot (proto/PROTOCOL.md, section 6). One struct snap lives for one call
 * of the module: nothing is kept between calls, nothing is allocated, nothing is mapped (a file
 * that is truncated under a mapping is SIGBUS in every process of the host). */
#ifndef CURFEW_SNAPSHOT_H
#define CURFEW_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef CURFEW_NSS_DB
#define CURFEW_NSS_DB "/run/curfew/nss.db"
#endif

#define SNAP_SIZE_MAX (16u << 20)
#define SNAP_NAME_MAX 64
#define SNAP_WINDOW 4096
#define SNAP_ENTRIES 64

enum snap_result {
	SNAP_OK,
	SNAP_MISSING, /* no file, or no such record */
	SNAP_BAD,     /* the file fails a check; errno says more */
	SNAP_SMALL,   /* the caller's buffer */
};

enum snap_kind { SNAP_PASSWD, SNAP_GROUP };

struct snap {
	int fd;
	uint32_t size;
	bool headed;                         /* the header was read: what follows is known */
	uint32_t n[2], by_name[2], by_id[2]; /* by enum snap_kind */
	uint32_t joined, n_joined;           /* index of the groups that can have members */

	/* What was read last of records and of an index, so that neighbours need no further system
	 * call: without these, one user's groups among 1,000 cost three times as much. */
	uint32_t at, len;
	unsigned char window[SNAP_WINDOW];
	uint32_t entries_at, entries_len;
	unsigned char entries[4 * SNAP_ENTRIES];
};

/* One record whose lengths have been checked against the file and against each other. */
struct snap_record {
	uint32_t offset, length;
	uint32_t id, gid;
	uint64_t wall, boot; /* deadlines, in ms */
	uint16_t name, gecos, home, shell; /* lengths */
	uint16_t count;                    /* of gids or of members */
	uint32_t names_at;                 /* offset of the first string */
};

enum snap_result snap_open(struct snap *s);
void snap_close(struct snap *s);

enum snap_result snap_by_name(struct snap *s, enum snap_kind kind, const char *name,
			      struct snap_record *r);
enum snap_result snap_by_id(struct snap *s, enum snap_kind kind, uint32_t id,
			    struct snap_record *r);

/* True past either deadline of the record. */
bool snap_expired(const struct snap_record *r);

/* The record with the smallest id that is at least `from`: enumeration by id survives a
 * replacement of the file between two calls without a skip or a repeat. */
enum snap_result snap_next(struct snap *s, enum snap_kind kind, uint64_t from,
			   struct snap_record *r);

/* The record at position i in order of ids, 0 to n - 1. */
enum snap_result snap_nth(struct snap *s, enum snap_kind kind, uint32_t i, struct snap_record *r);

/* Record i of the groups that can have members, 0 to n_joined - 1, in order of gids; after
 * snap_by_name. */
enum snap_result snap_joined(struct snap *s, uint32_t i, struct snap_record *r);

/* Where the next member of a group record stands; *at, first the end of the group's name, moves
 * past it. */
enum snap_result snap_member(struct snap *s, const struct snap_record *r, uint32_t *at,
			     uint32_t *name, uint16_t *len);

/* Copies len bytes at offset; SNAP_BAD when the file does not hold them. */
enum snap_result snap_copy(struct snap *s, uint32_t offset, uint32_t len, void *to);

/* Copies a string and its NUL; SNAP_BAD too when it holds what is syntax in passwd or group. */
enum snap_result snap_string(struct snap *s, uint32_t offset, uint32_t len, char *to);

#endif
