/* The module's pure half under libFuzzer, ASan and UBSan. The first byte chooses: a reply, a gate
 * table or a request; the rest is its content, always in a heap block of its exact size. What must
 * hold beside the sanitizers' rules is said here. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/table.h"
#include "../src/wire.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "broken: %s\n", what);
	abort();
}

static void *exact(const void *data, size_t len)
{
	void *copy = malloc(len);

	if (len > 0)
		memcpy(copy, data, len);
	return copy;
}

static void reply(const unsigned char *data, size_t len)
{
	char *text = malloc(GATE_TEXT_MAX + 1);
	unsigned char *in = exact(data, len);
	enum gate_verdict verdict;
	size_t n;

	memset(text, 'x', GATE_TEXT_MAX + 1);
	verdict = gate_reply_parse(in, len, text);
	n = strnlen(text, GATE_TEXT_MAX + 1);
	must(n <= GATE_TEXT_MAX, "a text has its end");
	must(verdict >= GATE_NONE && verdict <= GATE_RETRY, "a verdict is one of five");
	must(verdict != GATE_NONE || n == 0, "a refused packet says nothing");
	must(verdict == GATE_NONE || (len >= 8 && memcmp(in, "CFA1", 4) == 0 && in[4] == verdict),
	     "a verdict is what the packet says");
	for (size_t i = 0; i < n; i++)
		must((unsigned char)text[i] >= 0x20 && text[i] != 0x7f, "no control byte");
	free(in);
	free(text);
}

static struct gate_table feed(const unsigned char *data, size_t len, size_t piece,
			      const char *name, uint32_t uid)
{
	struct gate_table t = { .by_uid = true, .uid = uid, .name = name };

	for (size_t at = 0; at < len; at += piece) {
		size_t n = len - at < piece ? len - at : piece;
		char *in = exact(data + at, n);

		gate_table_feed(&t, in, n);
		free(in);
	}
	return t;
}

/* However a table is cut into pieces, it says the same, and a system uid is never asked about. */
static void table(const unsigned char *data, size_t len)
{
	static const uint32_t uids[] = { 0, 999, 1000, 1001, 1900000001, UINT32_MAX };
	uint32_t uid = uids[data[0] % (sizeof(uids) / sizeof(uids[0]))];
	size_t piece = data[1] ? data[1] : 1;
	struct gate_table whole = feed(data + 2, len - 2, len, "alice", uid);
	struct gate_table pieces = feed(data + 2, len - 2, piece, "alice", uid);

	must(gate_table_whole(&whole) == gate_table_whole(&pieces), "pieces make the same table");
	if (!gate_table_whole(&whole))
		return;
	must(whole.trial == pieces.trial && whole.trial_wall_ms == pieces.trial_wall_ms &&
		     whole.trial_boot_ms == pieces.trial_boot_ms && !(whole.trial && whole.observe),
	     "pieces try for as long");
	must(whole.observe == pieces.observe && whole.uid_class == pieces.uid_class &&
		     whole.name_class == pieces.name_class,
	     "pieces say the same of a person");
	for (int elevation = 0; elevation < 2; elevation++) {
		bool asks = gate_table_asks(&whole, elevation);

		must(asks == gate_table_asks(&pieces, elevation), "pieces ask the same");
		must(!asks || uid >= 1000 || whole.name_class != GATE_UNMANAGED,
		     "nobody asks about root");
		must(!asks || whole.uid_class != GATE_EXEMPT, "nobody asks about the exempt");
	}
}

/* Cuts the next field off: a length byte (255 for none at all), times its multiplier. */
static char *field(const unsigned char **data, size_t *len, size_t times)
{
	size_t n;
	char *s;

	if (*len == 0 || (*data)[0] == 255)
		return NULL;
	n = (*data)[0] * times;
	(*data)++;
	(*len)--;
	if (n > *len)
		n = *len;
	s = malloc(n + 1);
	memcpy(s, *data, n);
	s[n] = '\0';
	*data += n;
	*len -= n;
	return s;
}

/* What is sent can be read: fields of the seven tags, in order, once each, within their caps. */
static void request(const unsigned char *data, size_t len)
{
	static const size_t caps[8] = { 0, GATE_SERVICE_MAX, GATE_USER_MAX, 64, 255, 64, 4, 2048 };
	struct gate_request r = { .op = GATE_ACCOUNT, .uid = data[0] };
	unsigned char *out = malloc(GATE_REQUEST_MAX), last = 0;
	char *s[6];
	size_t n, at = 6;

	data++, len--;
	for (int i = 0; i < 6; i++)
		s[i] = field(&data, &len, i == 5 ? 16 : 1);
	r.service = s[0], r.user = s[1], r.ruser = s[2];
	r.rhost = s[3], r.tty = s[4], r.auth_info = s[5];
	n = gate_request_build(&r, out);
	must(n <= GATE_REQUEST_MAX, "a request fits");
	must(n == 0 || (r.service && r.user && *r.service && *r.user), "it says who and where");
	for (int i = 0; n > 0 && i < out[5]; i++) {
		size_t size;

		must(at + 3 <= n && out[at] > last && out[at] <= 7, "the tags rise");
		last = out[at];
		size = out[at + 1] | (size_t)out[at + 2] << 8;
		must(size > 0 && size <= caps[last] && at + 3 + size <= n, "a field fits");
		for (size_t j = 0; last != 6 && j < size; j++)
			must(out[at + 3 + j] >= 0x20 || (last == 7 && out[at + 3 + j] == '\n'),
			     "no control byte is sent");
		at += 3 + size;
	}
	must(n == 0 || at == n, "no byte behind the last field");
	for (int i = 0; i < 6; i++)
		free(s[i]);
	free(out);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len)
{
	if (len < 3)
		return 0;
	switch (data[0] % 3) {
	case 0:
		reply(data + 1, len - 1);
		break;
	case 1:
		table(data + 1, len - 1);
		break;
	default:
		request(data + 1, len - 1);
	}
	return 0;
}
