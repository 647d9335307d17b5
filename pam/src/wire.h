/* The gate socket's language, C half (proto/PROTOCOL.md, section 4). Pure: bytes in, bytes out;
 * no PAM, no I/O, no allocation, so that it can be fuzzed and tested by itself. */
#ifndef CURFEW_WIRE_H
#define CURFEW_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define GATE_REQUEST_MAX 4096
#define GATE_REPLY_MAX 1024
#define GATE_TEXT_MAX 512
#define GATE_SERVICE_MAX 32
#define GATE_USER_MAX 64

enum gate_op { GATE_ACCOUNT = 1, GATE_OPEN_SESSION = 2 };

enum gate_verdict { GATE_NONE = 0, GATE_ALLOW = 1, GATE_DENY = 2, GATE_IGNORE = 3, GATE_RETRY = 4 };

/* What PAM knows. Strings may be NULL; service and user must be there to be sent. */
struct gate_request {
	enum gate_op op;
	uint32_t uid;
	const char *service, *user, *ruser, *rhost, *tty, *auth_info;
};

/* Writes the packet and returns its length, or 0 when the request cannot be said: service or user
 * is missing, too long or holds a control byte. An optional field with such a value is left out:
 * a remote host name is an attacker's to choose and must not decide whether anybody may log in. */
size_t gate_request_build(const struct gate_request *r, unsigned char out[GATE_REQUEST_MAX]);

/* Parses one packet, strictly. GATE_NONE refuses it whole, and text is then empty. Text is valid
 * UTF-8 without control characters and ends with NUL. */
enum gate_verdict gate_reply_parse(const unsigned char *in, size_t len,
				   char text[GATE_TEXT_MAX + 1]);

#endif
