/* api/version.c - the version at run time. */
#include <tspool/version.h>

const char *tspool_version(void) { return TSPOOL_VERSION; }
