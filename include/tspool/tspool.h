/* tspool/tspool.h - the whole API. See spool.h (open, reserve, close), save.h (saving),
 * publish.h (several ranks), checkpoint.h (reading), stream.h (one file of any format). */
#ifndef TSPOOL_TSPOOL_H
#define TSPOOL_TSPOOL_H

#include <tspool/checkpoint.h>
#include <tspool/failure.h>
#include <tspool/publish.h>
#include <tspool/save.h>
#include <tspool/spool.h>
#include <tspool/stream.h>
#include <tspool/tensor.h>
#include <tspool/version.h>

#endif
