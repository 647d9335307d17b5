/* curfew-selftest asks a PAM stack whether a person may get in, as sshd, login and sudo do, and prints
 * what it says. `curfew-agent enforce-on` runs it, as root: with a service of its own in a private
 * folder before a host enforces, with the host's own services after.
 *
 *	curfew-selftest CONFDIR SERVICE USER UID
 *
 * CONFDIR is where the service is, - for the system's own; UID is who asks, by real uid. It opens no
 * session and authenticates nobody. Output: a line "said TEXT" for each message, and "result N". */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <security/pam_appl.h>

#define LIMIT_SECONDS 10

/* Nobody is there to answer; what is said is printed, one line each. */
static int converse(int n, const struct pam_message **messages, struct pam_response **answers,
		    void *data)
{
	struct pam_response *none = calloc((size_t)n, sizeof(*none));

	(void)data;
	if (!none)
		return PAM_BUF_ERR;
	for (int i = 0; i < n; i++) {
		if (messages[i]->msg_style != PAM_TEXT_INFO &&
		    messages[i]->msg_style != PAM_ERROR_MSG) {
			free(none);
			return PAM_CONV_ERR;
		}
		printf("said ");
		for (const char *c = messages[i]->msg; c && *c; c++)
			putchar(*c == '\n' || *c == '\r' ? ' ' : *c);
		putchar('\n');
	}
	*answers = none;
	return PAM_SUCCESS;
}

int main(int argc, char **argv)
{
	const struct pam_conv conv = { converse, NULL };
	pam_handle_t *pamh = NULL;
	unsigned long uid;
	char *end;
	int result;

	if (argc != 5) {
		fprintf(stderr, "usage: curfew-selftest CONFDIR|- SERVICE USER UID\n");
		return 2;
	}
	uid = strtoul(argv[4], &end, 10);
	if (*argv[4] == '\0' || *end != '\0' || uid >= (uid_t)-1) {
		fprintf(stderr, "curfew-selftest: %s is not a uid\n", argv[4]);
		return 2;
	}
	alarm(LIMIT_SECONDS);
	if (setresuid((uid_t)uid, 0, 0) != 0) {
		fprintf(stderr, "curfew-selftest: becoming uid %lu: %s\n", uid, strerror(errno));
		return 1;
	}
	result = strcmp(argv[1], "-") == 0 ?
			 pam_start(argv[2], argv[3], &conv, &pamh) :
			 pam_start_confdir(argv[2], argv[3], &conv, argv[1], &pamh);
	if (result == PAM_SUCCESS)
		result = pam_acct_mgmt(pamh, 0);
	printf("result %d\n", result);
	if (pamh)
		pam_end(pamh, result);
	return fflush(stdout) == 0 ? 0 : 1;
}

/* glibc 2.34 gave __libc_start_main a second version, and the startup files of a compiler that stands on
 * it ask for that one alone: the program would not run on Debian 11. So it starts itself (-nostartfiles),
 * by the version that every glibc has. It has no constructors to be run. */
#if defined(__x86_64__)
__asm__(".symver start_main, __libc_start_main@GLIBC_2.2.5\n"
	".globl _start\n"
	"_start: xor %ebp, %ebp\n"
	"mov %rsp, %rdi\n"
	"mov %rdx, %rsi\n"
	"and $-16, %rsp\n"
	"call start\n");
#elif defined(__aarch64__)
__asm__(".symver start_main, __libc_start_main@GLIBC_2.17\n"
	".globl _start\n"
	"_start: mov x29, #0\n"
	"mov x30, #0\n"
	"mov x1, x0\n"
	"mov x0, sp\n"
	"bl start\n");
#else
#error "write _start for this processor"
#endif

extern int start_main(int (*main)(int, char **), int argc, char **argv, void (*init)(void),
		      void (*fini)(void), void (*rtld_fini)(void), void *stack);

/* The ELF ABI's process entry: argc, then argv, at the stack pointer; the loader's exit in a register. */
__attribute__((used, noreturn)) void start(long *stack, void (*rtld_fini)(void))
{
	start_main(main, (int)stack[0], (char **)(stack + 1), NULL, NULL, rtld_fini, stack);
	abort();
}
