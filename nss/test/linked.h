/* Lets a test driver choose the snapshot; included before the module's sources by the compiler. */
extern const char *driver_db;
#define CURFEW_NSS_DB driver_db
