/* libnss_curfew.so.2 resolves the accounts and groups of live grants (proto/PROTOCOL.md, section
 * 6). glibc loads it into every process of the host, so it asks nobody: one file, read anew by
 * each call, and each record carries the time from which it answers no more than "this uid has
 * this name". A hung or dead agent can therefore neither hang `ls -l` nor keep anybody's groups. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
#include <shadow.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "snapshot.h"

#define EXPORT __attribute__((visibility("default")))
#define NOLOGIN "/usr/sbin/nologin"

static enum nss_status status(enum snap_result rc, int *errnop)
{
	switch (rc) {
	case SNAP_OK:
		return NSS_STATUS_SUCCESS;
	case SNAP_MISSING:
		return NSS_STATUS_NOTFOUND;
	case SNAP_SMALL:
		*errnop = ERANGE;
		return NSS_STATUS_TRYAGAIN;
	case SNAP_BAD:
		break;
	}
	/* glibc takes ERANGE for "call again with a larger buffer", for ever. */
	*errnop = errno == ERANGE ? EIO : errno;
	return NSS_STATUS_UNAVAIL;
}

/* Space in the caller's buffer. */
struct space {
	char *at;
	size_t left;
};

static void *take(struct space *b, size_t len)
{
	char *p = b->at;

	if (len > b->left)
		return NULL;
	b->at += len;
	b->left -= len;
	return p;
}

/* Copies one string of the file; SNAP_SMALL when there is no room for it. */
static enum snap_result take_string(struct snap *s, struct space *b, uint32_t offset, uint32_t len,
				    char **out)
{
	char *p = take(b, (size_t)len + 1);

	if (!p)
		return SNAP_SMALL;
	*out = p;
	return snap_string(s, offset, len, p);
}

static enum snap_result take_literal(struct space *b, const char *text, char **out)
{
	size_t len = strlen(text) + 1;
	char *p = take(b, len);

	if (!p)
		return SNAP_SMALL;
	*out = memcpy(p, text, len);
	return SNAP_OK;
}

static enum snap_result fill_passwd(struct snap *s, const struct snap_record *r, struct space b,
				    void *result)
{
	struct passwd *pw = result;
	uint32_t at = r->names_at;
	enum snap_result rc = take_string(s, &b, at, r->name, &pw->pw_name);

	/* Not "x": with that and no shadow entry, pam_unix fails sudo's account check. */
	if (rc == SNAP_OK)
		rc = take_literal(&b, "*", &pw->pw_passwd);
	at += r->name;
	if (rc == SNAP_OK)
		rc = take_string(s, &b, at, r->gecos, &pw->pw_gecos);
	at += r->gecos;
	if (rc == SNAP_OK)
		rc = take_string(s, &b, at, r->home, &pw->pw_dir);
	at += r->home;
	if (rc == SNAP_OK)
		rc = snap_expired(r) ? take_literal(&b, NOLOGIN, &pw->pw_shell) :
				       take_string(s, &b, at, r->shell, &pw->pw_shell);
	pw->pw_uid = r->id;
	pw->pw_gid = r->gid;
	return rc;
}

static enum snap_result fill_group(struct snap *s, const struct snap_record *r, struct space b,
				   void *result)
{
	struct group *gr = result;
	uint32_t at = r->names_at + r->name, name;
	bool expired = snap_expired(r);
	uint16_t len, count = expired ? 0 : r->count;
	enum snap_result rc = SNAP_OK;
	size_t skew = (uintptr_t)b.at % _Alignof(char *);

	if (skew != 0 && !take(&b, _Alignof(char *) - skew))
		return SNAP_SMALL;
	gr->gr_mem = take(&b, ((size_t)count + 1) * sizeof(char *));
	if (!gr->gr_mem)
		return SNAP_SMALL;
	for (uint16_t i = 0; i < count && rc == SNAP_OK; i++) {
		rc = snap_member(s, r, &at, &name, &len);
		if (rc == SNAP_OK)
			rc = take_string(s, &b, name, len, &gr->gr_mem[i]);
	}
	if (rc != SNAP_OK)
		return rc;
	gr->gr_mem[count] = NULL;
	if (!expired && at != r->offset + r->length) {
		errno = EIO;
		return SNAP_BAD;
	}
	gr->gr_gid = r->id;
	rc = take_string(s, &b, r->names_at, r->name, &gr->gr_name);
	return rc == SNAP_OK ? take_literal(&b, "*", &gr->gr_passwd) : rc;
}

static enum snap_result fill_shadow(struct snap *s, const struct snap_record *r, struct space b,
				    void *result)
{
	struct spwd *sp = result;
	enum snap_result rc = take_string(s, &b, r->names_at, r->name, &sp->sp_namp);

	sp->sp_lstchg = 1; /* 0 is "change the password now" */
	sp->sp_min = sp->sp_max = sp->sp_warn = sp->sp_inact = sp->sp_expire = -1;
	sp->sp_flag = ~0ul;
	return rc == SNAP_OK ? take_literal(&b, "*", &sp->sp_pwdp) : rc;
}

/* The key of a look-up, and where the result goes. */
struct lookup {
	enum snap_kind kind;
	const char *name; /* NULL: by id */
	uint64_t id;
	bool next; /* the first id that is not below */
	enum snap_result (*fill)(struct snap *s, const struct snap_record *r, struct space b,
				 void *result);
	void *result;
};

/* One call of the module: open, find, fill, close. errno is as before unless it says why not. */
static enum nss_status look_up(struct lookup *l, char *buffer, size_t buflen, int *errnop)
{
	struct space b = { buffer, buflen };
	struct snap_record r;
	struct snap s;
	int saved = errno;
	enum snap_result rc = snap_open(&s);

	if (rc == SNAP_OK) {
		if (l->name)
			rc = snap_by_name(&s, l->kind, l->name, &r);
		else if (l->next)
			rc = snap_next(&s, l->kind, l->id, &r);
		else
			rc = snap_by_id(&s, l->kind, (uint32_t)l->id, &r);
		if (rc == SNAP_OK)
			rc = l->fill(&s, &r, b, l->result);
		snap_close(&s);
	}
	if (rc == SNAP_OK)
		l->id = r.id;
	if (rc == SNAP_OK || rc == SNAP_MISSING)
		errno = saved;
	return status(rc, errnop);
}

EXPORT enum nss_status _nss_curfew_getpwnam_r(const char *name, struct passwd *pw, char *buffer,
					      size_t buflen, int *errnop)
{
	struct lookup l = { SNAP_PASSWD, .name = name, .fill = fill_passwd, .result = pw };

	return look_up(&l, buffer, buflen, errnop);
}

EXPORT enum nss_status _nss_curfew_getpwuid_r(uid_t uid, struct passwd *pw, char *buffer,
					      size_t buflen, int *errnop)
{
	struct lookup l = { SNAP_PASSWD, .id = uid, .fill = fill_passwd, .result = pw };

	return look_up(&l, buffer, buflen, errnop);
}

EXPORT enum nss_status _nss_curfew_getgrnam_r(const char *name, struct group *gr, char *buffer,
					      size_t buflen, int *errnop)
{
	struct lookup l = { SNAP_GROUP, .name = name, .fill = fill_group, .result = gr };

	return look_up(&l, buffer, buflen, errnop);
}

EXPORT enum nss_status _nss_curfew_getgrgid_r(gid_t gid, struct group *gr, char *buffer,
					      size_t buflen, int *errnop)
{
	struct lookup l = { SNAP_GROUP, .id = gid, .fill = fill_group, .result = gr };

	return look_up(&l, buffer, buflen, errnop);
}

EXPORT enum nss_status _nss_curfew_getspnam_r(const char *name, struct spwd *sp, char *buffer,
					      size_t buflen, int *errnop)
{
	struct lookup l = { SNAP_PASSWD, .name = name, .fill = fill_shadow, .result = sp };

	return look_up(&l, buffer, buflen, errnop);
}

/* Enumeration: the smallest id not yet returned, by enum snap_kind. glibc calls the ent functions
 * of one database under a lock of its own, and no descriptor outlives a call. */
static uint64_t next_id[2];

static enum nss_status enumerate(struct lookup *l, char *buffer, size_t buflen, int *errnop)
{
	enum nss_status rc;

	l->next = true;
	l->id = next_id[l->kind];
	rc = look_up(l, buffer, buflen, errnop);
	if (rc == NSS_STATUS_SUCCESS)
		next_id[l->kind] = l->id + 1;
	return rc;
}

EXPORT enum nss_status _nss_curfew_setpwent(int stayopen)
{
	(void)stayopen;
	next_id[SNAP_PASSWD] = 0;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_curfew_endpwent(void)
{
	return _nss_curfew_setpwent(0);
}

EXPORT enum nss_status _nss_curfew_getpwent_r(struct passwd *pw, char *buffer, size_t buflen,
					      int *errnop)
{
	struct lookup l = { SNAP_PASSWD, .fill = fill_passwd, .result = pw };

	return enumerate(&l, buffer, buflen, errnop);
}

EXPORT enum nss_status _nss_curfew_setgrent(int stayopen)
{
	(void)stayopen;
	next_id[SNAP_GROUP] = 0;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_curfew_endgrent(void)
{
	return _nss_curfew_setgrent(0);
}

EXPORT enum nss_status _nss_curfew_getgrent_r(struct group *gr, char *buffer, size_t buflen,
					      int *errnop)
{
	struct lookup l = { SNAP_GROUP, .fill = fill_group, .result = gr };

	return enumerate(&l, buffer, buflen, errnop);
}

/* glibc's growing list of gids, while it is ours. */
struct gid_list {
	gid_t *gids;
	long count, size;
	long limit; /* 0 or less: none */
	gid_t primary;
};

static bool full(const struct gid_list *l)
{
	return l->limit > 0 && l->count >= l->limit;
}

/* False when memory is short. */
static bool add(struct gid_list *l, gid_t gid)
{
	/* 0 is never Curfew's to give, and glibc has the primary group already. */
	if (gid == 0 || gid == l->primary || full(l))
		return true;
	for (long i = 0; i < l->count; i++)
		if (l->gids[i] == gid)
			return true;
	if (l->count == l->size) {
		long more = l->size > 0 ? l->size * 2 : 16;
		gid_t *grown;

		grown = realloc(l->gids, (size_t)more * sizeof(gid_t));
		if (!grown)
			return false;
		l->gids = grown;
		l->size = more;
	}
	l->gids[l->count++] = gid;
	return true;
}

static enum snap_result add_own(struct snap *s, const struct snap_record *r, struct gid_list *l)
{
	for (uint16_t i = 0; i < r->count && !full(l); i++) {
		unsigned char g[4];
		enum snap_result rc = snap_copy(s, r->names_at - 4u * (r->count - i), 4, g);

		if (rc != SNAP_OK)
			return rc;
		if (!add(l, g[0] | (gid_t)g[1] << 8 | (gid_t)g[2] << 16 | (gid_t)g[3] << 24))
			return SNAP_SMALL;
	}
	return SNAP_OK;
}

/* Adds the group when user is among its members. */
static enum snap_result add_if_member(struct snap *s, const struct snap_record *r,
				      const char *user, struct gid_list *l)
{
	uint32_t at = r->names_at + r->name, name;
	size_t user_len = strlen(user);
	char buf[SNAP_NAME_MAX + 1];
	uint16_t len;

	for (uint16_t i = 0; i < r->count; i++) {
		enum snap_result rc = snap_member(s, r, &at, &name, &len);

		if (rc == SNAP_OK)
			rc = snap_string(s, name, len, buf);
		if (rc != SNAP_OK)
			return rc;
		if (len == user_len && memcmp(buf, user, len) == 0)
			return add(l, r->id) ? SNAP_OK : SNAP_SMALL;
	}
	return SNAP_OK;
}

/* The gids of a live account's own record, and every live group that names the user. glibc asks
 * this of local users too and merges the answers: that is how a grant's group reaches them. */
EXPORT enum nss_status _nss_curfew_initgroups_dyn(const char *user, gid_t group, long *start,
						  long *size, gid_t **groupsp, long limit,
						  int *errnop)
{
	struct gid_list l = { *groupsp, *start, *size, limit, group };
	struct snap_record r;
	struct snap s;
	int saved = errno;
	enum snap_result rc = snap_open(&s);

	if (rc == SNAP_OK) {
		bool known = false;

		rc = snap_by_name(&s, SNAP_PASSWD, user, &r);
		if (rc == SNAP_OK) {
			known = true;
			if (!snap_expired(&r))
				rc = add_own(&s, &r, &l);
		} else if (rc == SNAP_MISSING) {
			rc = SNAP_OK;
		}
		for (uint32_t i = 0; rc == SNAP_OK && i < s.n_joined && !full(&l); i++) {
			rc = snap_joined(&s, i, &r);
			if (rc == SNAP_OK && r.count > 0 && !snap_expired(&r))
				rc = add_if_member(&s, &r, user, &l);
		}
		snap_close(&s);
		if (rc == SNAP_OK && !known && l.count == *start)
			rc = SNAP_MISSING;
	}
	*groupsp = l.gids;
	*size = l.size;
	if (rc == SNAP_SMALL) {
		*errnop = ENOMEM;
		return NSS_STATUS_TRYAGAIN;
	}
	/* Half a list is no answer: what a bad file said so far is not counted. */
	if (rc == SNAP_OK || rc == SNAP_MISSING) {
		*start = l.count;
		errno = saved;
	}
	return status(rc, errnop);
}
