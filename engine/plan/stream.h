/* plan/stream.h - copying past the caches. For this room only. */
#ifndef PLAN_STREAM_H
#define PLAN_STREAM_H

#include <stddef.h>

/* As memcpy. Long copies use non-temporal stores where the CPU has AVX2; they are ordered before whatever this thread
 * does next. Any alignment of both. */
void stream_copy(void *to, const void *from, size_t size);

#endif
