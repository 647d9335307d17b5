/* One question over the gate socket (proto/PROTOCOL.md, section 4). No PAM here. */
#ifndef CURFEW_ASK_H
#define CURFEW_ASK_H

#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* Asks the agent at path, and adds the time that took to *spent_ns, which all questions of one
 * PAM handle share: past two seconds the rest are not asked. GATE_NONE with errno when there is
 * no answer to rely on; otherwise *kept is the connection, still open and the caller's to close.
 *
 * An agent that is restarted under a login drops the connection, and its socket unit holds the
 * next one until it is back: so a hang-up without a word is tried once more. */
enum gate_verdict gate_ask(const char *path, int64_t *spent_ns, const unsigned char *request,
			   size_t len, char text[GATE_TEXT_MAX + 1], int *kept);

#endif
