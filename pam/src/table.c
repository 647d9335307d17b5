#include "table.h"

#include <string.h>

#define NAME_MAX_BYTES 64
#define FIRST_PERSON 1000

static const struct {
	const char *word;
	enum gate_class class;
} classes[] = {
	{ "account ", GATE_ACCOUNT_CLASS },
	{ "gated ", GATE_GATED },
	{ "elevate ", GATE_ELEVATE },
	{ "exempt ", GATE_EXEMPT },
};

/* Reads a canonical decimal number of at most so many digits, which stop follows, and returns
 * what stands there; NULL when it is none. 18 digits always fit. */
static const char *read_number(const char *s, int most, char stop, uint64_t *number)
{
	uint64_t v = 0;

	if (s[0] == '0' && s[1] != stop)
		return NULL;
	for (int digits = 0; digits <= most; digits++, s++) {
		if (*s == stop && digits > 0) {
			*number = v;
			return s;
		}
		if (*s < '0' || *s > '9')
			return NULL;
		v = v * 10 + (uint64_t)(*s - '0');
	}
	return NULL;
}

static const char *read_uid(const char *s, uint32_t *uid)
{
	uint64_t v = 0;

	s = read_number(s, 10, ' ', &v);
	*uid = (uint32_t)v;
	return s && v <= UINT32_MAX ? s + 1 : NULL;
}

static bool read_mode(struct gate_table *t, const char *line)
{
	static const char trial[] = "mode trial ";

	if (strcmp(line, "mode enforce") == 0)
		return true;
	t->observe = strcmp(line, "mode observe") == 0;
	if (t->observe)
		return true;
	if (strncmp(line, trial, sizeof(trial) - 1) != 0)
		return false;
	line = read_number(line + sizeof(trial) - 1, 15, ' ', &t->trial_wall_ms);
	t->trial = line && read_number(line + 1, 15, '\0', &t->trial_boot_ms);
	return t->trial;
}

/* One principal; false when the line is not one. The line ends with NUL and holds no other. */
static bool principal(struct gate_table *t, const char *line)
{
	enum gate_class class = GATE_UNMANAGED;
	uint32_t uid = 0;
	size_t len;

	for (size_t i = 0; i < sizeof(classes) / sizeof(classes[0]); i++) {
		size_t n = strlen(classes[i].word);

		if (strncmp(line, classes[i].word, n) == 0) {
			class = classes[i].class;
			line += n;
			break;
		}
	}
	if (class == GATE_UNMANAGED)
		return false;
	line = read_uid(line, &uid);
	if (!line)
		return false;
	len = strlen(line);
	if (len == 0 || len > NAME_MAX_BYTES)
		return false;
	for (size_t i = 0; i < len; i++)
		if (line[i] <= ' ' || line[i] > '~')
			return false;

	/* Root and system users are never asked about, whatever a table says. */
	if (uid < FIRST_PERSON)
		class = GATE_EXEMPT;
	if (t->by_uid && uid == t->uid)
		t->uid_class = class;
	if (t->name && strcmp(line, t->name) == 0)
		t->name_class = class;
	return true;
}

static void line_done(struct gate_table *t)
{
	const char *line = t->line;

	t->line[t->line_len] = '\0';
	if (strlen(line) != t->line_len) {
		t->at = BROKEN;
	} else if (t->at == AT_MAGIC) {
		t->at = strcmp(line, "curfew-gate 1") == 0 ? AT_MODE : BROKEN;
	} else if (t->at == AT_MODE) {
		t->at = read_mode(t, line) ? AT_PRINCIPALS : BROKEN;
	} else if (t->at == AT_PRINCIPALS && strcmp(line, "end") == 0) {
		t->at = AT_END;
	} else if (t->at != AT_PRINCIPALS || !principal(t, line)) {
		t->at = BROKEN;
	}
	t->line_len = 0;
}

void gate_table_feed(struct gate_table *t, const char *piece, size_t len)
{
	for (size_t i = 0; i < len && t->at != BROKEN; i++) {
		if (++t->total > GATE_TABLE_MAX) {
			t->at = BROKEN;
		} else if (piece[i] == '\n') {
			line_done(t);
		} else if (t->line_len < GATE_LINE_MAX - 1) {
			t->line[t->line_len++] = piece[i];
		} else {
			t->at = BROKEN;
		}
	}
}

bool gate_table_whole(const struct gate_table *t)
{
	return t->at == AT_END && t->line_len == 0;
}

bool gate_table_observes(const struct gate_table *t, bool marked, uint64_t wall_ms,
			 uint64_t boot_ms)
{
	if (!t->trial)
		return t->observe;
	return !marked || wall_ms >= t->trial_wall_ms || boot_ms >= t->trial_boot_ms;
}

static bool asks(enum gate_class class, bool elevation)
{
	switch (class) {
	case GATE_ACCOUNT_CLASS:
	case GATE_GATED:
		return true;
	case GATE_ELEVATE:
		return elevation;
	case GATE_UNMANAGED:
	case GATE_EXEMPT:
		break;
	}
	return false;
}

bool gate_table_asks(const struct gate_table *t, bool elevation)
{
	if (asks(t->uid_class, elevation))
		return true;
	/* A break-glass person may become anybody without asking. */
	return t->uid_class != GATE_EXEMPT && asks(t->name_class, elevation);
}
