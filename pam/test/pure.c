/* Runs the module's pure half under ASan and UBSan for the Go tests: one framed question on stdin,
 * one framed answer on stdout, until end-of-file. A frame is u32 little-endian length and bytes.
 * Every input is copied to a heap block of its exact size, so that one byte too far is caught. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/table.h"
#include "../src/wire.h"

static unsigned char *in;
static size_t in_len, in_at;

static void need(size_t n)
{
	if (in_len - in_at < n) {
		fprintf(stderr, "the question is cut\n");
		exit(2);
	}
}

static unsigned char byte(void)
{
	need(1);
	return in[in_at++];
}

static uint32_t number(void)
{
	uint32_t v;

	need(4);
	memcpy(&v, in + in_at, 4);
	in_at += 4;
	return v;
}

/* A string of its own heap block, NULL for the length 0xffffffff. */
static char *string(void)
{
	uint32_t n = number();
	char *s;

	if (n == UINT32_MAX)
		return NULL;
	need(n);
	s = malloc((size_t)n + 1);
	memcpy(s, in + in_at, n);
	s[n] = '\0';
	in_at += n;
	return s;
}

static void answer(const void *p, size_t n)
{
	uint32_t len = (uint32_t)n;

	fwrite(&len, 4, 1, stdout);
	fwrite(p, 1, n, stdout);
	fflush(stdout);
}

static void table(void)
{
	unsigned char elevation, out[22];
	struct gate_table t = { 0 };
	char *name;
	size_t piece;

	t.by_uid = byte();
	t.uid = number();
	name = string();
	t.name = name;
	elevation = byte();
	piece = number();
	while (in_at < in_len) {
		size_t n = in_len - in_at < piece ? in_len - in_at : piece;
		char *exact = malloc(n);

		memcpy(exact, in + in_at, n);
		gate_table_feed(&t, exact, n);
		free(exact);
		in_at += n;
	}
	out[0] = gate_table_whole(&t);
	out[1] = t.observe;
	out[2] = (unsigned char)t.uid_class;
	out[3] = (unsigned char)t.name_class;
	out[4] = gate_table_asks(&t, elevation);
	out[5] = t.trial;
	memcpy(out + 6, &t.trial_wall_ms, 8);
	memcpy(out + 14, &t.trial_boot_ms, 8);
	answer(out, sizeof(out));
	free(name);
}

static void reply(void)
{
	size_t n = in_len - in_at;
	unsigned char *exact = malloc(n);
	char *text = malloc(GATE_TEXT_MAX + 1);
	char out[1 + GATE_TEXT_MAX + 1];

	memset(text, 'x', GATE_TEXT_MAX + 1);
	memcpy(exact, in + in_at, n);
	out[0] = (char)gate_reply_parse(exact, n, text);
	n = strlen(text);
	memcpy(out + 1, text, n);
	answer(out, 1 + n);
	free(exact);
	free(text);
}

static void request(void)
{
	struct gate_request r = { .op = (enum gate_op)byte(), .uid = number() };
	char *field[6];
	unsigned char *out = malloc(GATE_REQUEST_MAX);

	for (int i = 0; i < 6; i++)
		field[i] = string();
	r.service = field[0];
	r.user = field[1];
	r.ruser = field[2];
	r.rhost = field[3];
	r.tty = field[4];
	r.auth_info = field[5];
	answer(out, gate_request_build(&r, out));
	for (int i = 0; i < 6; i++)
		free(field[i]);
	free(out);
}

int main(void)
{
	uint32_t len;

	while (fread(&len, 4, 1, stdin) == 1) {
		in = malloc(len);
		in_len = len;
		in_at = 0;
		if (fread(in, 1, len, stdin) != len)
			return 2;
		switch (byte()) {
		case 'T':
			table();
			break;
		case 'R':
			reply();
			break;
		case 'Q':
			request();
			break;
		default:
			return 2;
		}
		free(in);
	}
	return 0;
}
