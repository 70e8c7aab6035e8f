/* tspool/version.h - the version of the library, at compile time and at run time. */
#ifndef TSPOOL_VERSION_H
#define TSPOOL_VERSION_H

#ifdef __cplusplus
extern "C" {
#endif

#define TSPOOL_VERSION_MAJOR 0
#define TSPOOL_VERSION_MINOR 1
#define TSPOOL_VERSION_PATCH 0
#define TSPOOL_VERSION "0.1.0"

/* The version of the library that is linked at run time, as "MAJOR.MINOR.PATCH". Static; never freed. */
const char *tspool_version(void);

#ifdef __cplusplus
}
#endif
#endif
