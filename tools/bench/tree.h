/* bench/tree.h - nested JSON, one member a line, as fio prints it. */
#ifndef BENCH_TREE_H
#define BENCH_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct tree { FILE *out; unsigned depth; bool first; };

void tree_begin(struct tree *tree, FILE *out);
void tree_end(struct tree *tree);
/* key NULL: in a list. */
void tree_open(struct tree *tree, const char *key);
void tree_close(struct tree *tree);
void tree_list_open(struct tree *tree, const char *key);
void tree_list_close(struct tree *tree);
void tree_text(struct tree *tree, const char *key, const char *value);
void tree_number(struct tree *tree, const char *key, uint64_t value);
void tree_real(struct tree *tree, const char *key, double value);
void tree_bool(struct tree *tree, const char *key, bool value);

#endif
