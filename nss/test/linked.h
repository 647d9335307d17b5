/* Lets a test driver choose the snapshot and stand in for pread; the compiler includes this before
 * the module's sources. */
#define _GNU_SOURCE
#include <unistd.h>

extern const char *driver_db;
ssize_t driver_pread(int fd, void *to, size_t len, off_t offset);
#define CURFEW_NSS_DB driver_db
#define pread driver_pread
