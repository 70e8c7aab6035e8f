/* bench/shape_model.h - models by name: the parameters that their authors published, and how ranks share them. */
#ifndef BENCH_SHAPE_MODEL_H
#define BENCH_SHAPE_MODEL_H

#include "shape.h"

bool shape_model_knows(const char *name);
/* Always -1: the complaint lists what there is, the nearest first. */
int shape_model_unknown(const char *name, struct complaint *complaint);
/* Ranks are numbered as in Megatron: tensor parallel fastest, then pipeline, then data. */
int shape_model_make(const struct job *job, unsigned member, struct shape *shape, struct complaint *complaint);

#endif
