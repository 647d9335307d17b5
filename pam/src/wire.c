#define _GNU_SOURCE
#include "wire.h"

#include <stdbool.h>
#include <string.h>

#define AUTH_INFO_MAX 2048

/* The largest packet: head, seven field heads, and every field at its cap. */
_Static_assert(6 + 7 * 3 + GATE_SERVICE_MAX + GATE_USER_MAX + 64 + 255 + 64 + 4 + AUTH_INFO_MAX <=
		       GATE_REQUEST_MAX,
	       "a request with every field at its cap must fit");

struct writer {
	unsigned char *out;
	size_t len;
	unsigned char count;
};

static void put(struct writer *w, unsigned char tag, const void *value, size_t len)
{
	w->out[w->len++] = tag;
	w->out[w->len++] = (unsigned char)(len & 0xff);
	w->out[w->len++] = (unsigned char)(len >> 8);
	memcpy(w->out + w->len, value, len);
	w->len += len;
	w->count++;
}

static bool clean(const char *s, size_t len, bool newlines)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];

		if ((c < 0x20 && !(newlines && c == '\n')) || c == 0x7f)
			return false;
	}
	return true;
}

/* Appends a text field; false when it is absent or cannot be sent. */
static bool put_text(struct writer *w, unsigned char tag, const char *s, size_t cap)
{
	size_t len = s ? strnlen(s, cap + 1) : 0;

	if (len == 0 || len > cap || !clean(s, len, false))
		return false;
	put(w, tag, s, len);
	return true;
}

size_t gate_request_build(const struct gate_request *r, unsigned char out[GATE_REQUEST_MAX])
{
	struct writer w = { .out = out, .len = 6 };
	const unsigned char uid[4] = {
		(unsigned char)(r->uid & 0xff),
		(unsigned char)(r->uid >> 8 & 0xff),
		(unsigned char)(r->uid >> 16 & 0xff),
		(unsigned char)(r->uid >> 24),
	};

	if (!put_text(&w, 1, r->service, GATE_SERVICE_MAX) ||
	    !put_text(&w, 2, r->user, GATE_USER_MAX))
		return 0;
	put_text(&w, 3, r->ruser, 64);
	put_text(&w, 4, r->rhost, 255);
	put_text(&w, 5, r->tty, 64);
	put(&w, 6, uid, sizeof(uid));
	if (r->auth_info) {
		/* Certificates and long RSA keys exceed any cap; the agent expects a cut. */
		size_t len = strnlen(r->auth_info, AUTH_INFO_MAX);

		if (len > 0 && clean(r->auth_info, len, true))
			put(&w, 7, r->auth_info, len);
	}
	memcpy(out, "CFQ1", 4);
	out[4] = (unsigned char)r->op;
	out[5] = w.count;
	return w.len;
}

/* Returns the length of the character at s, or 0 when it is not UTF-8 (RFC 3629: no overlong
 * form, no surrogate, nothing above U+10FFFF) or is a control character (C0, DEL, C1), which
 * could steer the terminal that it is shown on. */
static size_t printable(const unsigned char *s, size_t left)
{
	uint32_t c = s[0], least;
	size_t n;

	if (c < 0x80)
		return c >= 0x20 && c != 0x7f ? 1 : 0;
	if (c >= 0xc2 && c <= 0xdf) {
		n = 2, c &= 0x1f, least = 0xa0; /* U+0080 to U+009F are C1 */
	} else if (c >= 0xe0 && c <= 0xef) {
		n = 3, c &= 0x0f, least = 0x800;
	} else if (c >= 0xf0 && c <= 0xf4) {
		n = 4, c &= 0x07, least = 0x10000;
	} else {
		return 0;
	}
	if (n > left)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	return c >= least && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff) ? n : 0;
}

enum gate_verdict gate_reply_parse(const unsigned char *in, size_t len,
				   char text[GATE_TEXT_MAX + 1])
{
	size_t n;

	text[0] = '\0';
	if (len < 8 || len > GATE_REPLY_MAX || memcmp(in, "CFA1", 4) != 0)
		return GATE_NONE;
	if (in[4] < GATE_ALLOW || in[4] > GATE_RETRY || in[5] != 0)
		return GATE_NONE;
	n = (size_t)in[6] | (size_t)in[7] << 8;
	if (n > GATE_TEXT_MAX || n != len - 8)
		return GATE_NONE;
	for (size_t i = 0; i < n;) {
		size_t step = printable(in + 8 + i, n - i);

		if (step == 0)
			return GATE_NONE;
		i += step;
	}
	memcpy(text, in + 8, n);
	text[n] = '\0';
	return (enum gate_verdict)in[4];
}
