/* Times pam_acct_mgmt with three one-line stacks, and a bare SEQPACKET exchange, in turns.
 *
 *     pamloop ROUNDS DIR OURS-USER UNIX-USER SOCKET
 *
 * DIR/ours, DIR/permit and DIR/unix are folders with a service "sshd" each. Prints a line per round:
 * nanoseconds of ours, permit, unix, exchange. Whatever does not answer as it should ends the run. */
#include <dlfcn.h>
#include <security/pam_appl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int converse(int n, const struct pam_message **m, struct pam_response **r, void *p) {
  (void)m, (void)p;
  *r = calloc(n, sizeof **r);
  return *r ? PAM_SUCCESS : PAM_BUF_ERR;
}

static long account(const char *dir, const char *stack, const char *user) {
  char confdir[512];
  struct pam_conv conv = {converse, NULL};
  pam_handle_t *h;
  snprintf(confdir, sizeof confdir, "%s/%s", dir, stack);
  if (pam_start_confdir("sshd", user, &conv, confdir, &h) != PAM_SUCCESS) die("pam_start");
  pam_set_item(h, PAM_RHOST, "10.99.0.12");
  pam_set_item(h, PAM_TTY, "ssh");
  long began = now();
  int r = pam_acct_mgmt(h, 0);
  long took = now() - began;
  if (r != PAM_SUCCESS) {
    fprintf(stderr, "%s says %s to %s\n", stack, pam_strerror(h, r), user);
    exit(1);
  }
  pam_end(h, r);
  return took;
}

static long exchange(const char *path) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  char message[96] = "question", answer[1024];
  strncpy(to.sun_path, path, sizeof to.sun_path - 1);
  long began = now();
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  if (send(fd, message, sizeof message, MSG_NOSIGNAL) < 0) die("send");
  if (recv(fd, answer, sizeof answer, 0) <= 0) die("recv");
  close(fd);
  return now() - began;
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  /* Held open, so that no stack pays for loading its module. */
  const char *modules[] = {"pam_curfew.so", "pam_permit.so", "pam_unix.so"};
  for (int i = 0; i < 3; i++) {
    char path[256];
    snprintf(path, sizeof path, "/lib/%s-linux-gnu/security/%s", MACHINE, modules[i]);
    if (!dlopen(path, RTLD_NOW)) fprintf(stderr, "note: %s\n", dlerror());
  }
  for (int i = 0, n = atoi(argv[1]); i <= n; i++) {
    long ours = account(argv[2], "ours", argv[3]);
    long bare = exchange(argv[5]);
    long permit = account(argv[2], "permit", argv[3]);
    long plain = account(argv[2], "unix", argv[4]);
    if (i > 0) printf("%ld %ld %ld %ld\n", ours, permit, plain, bare);
  }
  return 0;
}
