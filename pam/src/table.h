/* The gate table (proto/PROTOCOL.md, section 5): who must be asked about. Pure and streaming: the
 * caller feeds the file in pieces, nothing is allocated, no line is kept. */
#ifndef CURFEW_TABLE_H
#define CURFEW_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GATE_TABLE_MAX (4u << 20)
#define GATE_LINE_MAX 128 /* with its newline */

enum gate_class { GATE_UNMANAGED, GATE_ACCOUNT_CLASS, GATE_GATED, GATE_ELEVATE, GATE_EXEMPT };

struct gate_table {
	/* Whom to look for, set by the caller: the caller's uid where by_uid, and a name unless it
	 * is NULL. Both are looked for in su: who is it that becomes whom? */
	bool by_uid;
	uint32_t uid;
	const char *name;

	/* What was found. A trial enforces until either clock, in ms, has come this far. */
	bool observe, trial;
	uint64_t trial_wall_ms, trial_boot_ms;
	enum gate_class uid_class, name_class;

	/* Progress; all zero at the start. */
	enum { AT_MAGIC, AT_MODE, AT_PRINCIPALS, AT_END, BROKEN } at;
	size_t total, line_len;
	char line[GATE_LINE_MAX];
};

void gate_table_feed(struct gate_table *t, const char *piece, size_t len);

/* True when what was fed is one whole table. Until then nothing in it is to be relied on. */
bool gate_table_whole(const struct gate_table *t);

/* True when the mode of a whole table is observe, with these clocks; marked is true while the mark
 * of a trial is there. */
bool gate_table_observes(const struct gate_table *t, bool marked, uint64_t wall_ms,
			 uint64_t boot_ms);

/* True when the agent must be asked; elevation is true for the services sudo and sudo-i. */
bool gate_table_asks(const struct gate_table *t, bool elevation);

#endif
