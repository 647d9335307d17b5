/* Times look-ups by one NSS service.
 *
 *     nssloop passwd|initgroups SERVICE NAME ROUNDS found|missing
 *
 * Prints the median in nanoseconds. An answer other than the promised one ends the run. */
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int order(const void *a, const void *b) {
  long x = *(const long *)a, y = *(const long *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int groups = !strcmp(argv[1], "initgroups"), want = !strcmp(argv[5], "found");
  int n = atoi(argv[4]);
  long *took = calloc(n, sizeof *took);
  if (__nss_configure_lookup("passwd", argv[2]) || __nss_configure_lookup("group", argv[2]))
    return perror("configure"), 1;
  for (int i = -3; i < n; i++) {
    struct passwd p, *found = NULL;
    gid_t list[64];
    char buffer[4096];
    int count = 64, ok;
    long began = now();
    if (groups)
      ok = getgrouplist(argv[3], 4711, list, &count) >= 0;
    else
      getpwnam_r(argv[3], &p, buffer, sizeof buffer, &found), ok = (found != NULL) == want;
    long t = now() - began;
    if (!ok) return fprintf(stderr, "%s of %s by %s: not %s\n", argv[1], argv[3], argv[2], argv[5]), 1;
    if (i >= 0) took[i] = t;
  }
  qsort(took, n, sizeof *took, order);
  printf("%ld\n", took[n / 2]);
  return 0;
}
