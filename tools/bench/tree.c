/* bench/tree.c - see tree.h. */
#include "tree.h"

#include "../commands/command.h"

#include <inttypes.h>
#include <math.h>

static void member(struct tree *tree, const char *key)
{
    fputs(tree->first ? "\n" : ",\n", tree->out);
    tree->first = false;
    fprintf(tree->out, "%*s", (int)tree->depth * 2, "");
    if (key) {
        json_text(tree->out, key);
        fputs(" : ", tree->out);
    }
}

static void open_with(struct tree *tree, const char *key, char bracket)
{
    member(tree, key);
    fputc(bracket, tree->out);
    tree->depth++;
    tree->first = true;
}

static void close_with(struct tree *tree, char bracket)
{
    tree->depth--;
    if (!tree->first)
        fprintf(tree->out, "\n%*s", (int)tree->depth * 2, "");
    fputc(bracket, tree->out);
    tree->first = false;
}

void tree_begin(struct tree *tree, FILE *out)
{
    *tree = (struct tree){ .out = out, .depth = 1, .first = true };
    fputc('{', out);
}

void tree_end(struct tree *tree)
{
    close_with(tree, '}');
    fputc('\n', tree->out);
}

void tree_open(struct tree *tree, const char *key) { open_with(tree, key, '{'); }
void tree_close(struct tree *tree) { close_with(tree, '}'); }
void tree_list_open(struct tree *tree, const char *key) { open_with(tree, key, '['); }
void tree_list_close(struct tree *tree) { close_with(tree, ']'); }

void tree_text(struct tree *tree, const char *key, const char *value)
{
    member(tree, key);
    if (value)
        json_text(tree->out, value);
    else
        fputs("null", tree->out);
}

void tree_number(struct tree *tree, const char *key, uint64_t value)
{
    member(tree, key);
    fprintf(tree->out, "%" PRIu64, value);
}

void tree_real(struct tree *tree, const char *key, double value)
{
    member(tree, key);
    fprintf(tree->out, "%f", isfinite(value) ? value : 0.0);
}

void tree_bool(struct tree *tree, const char *key, bool value)
{
    member(tree, key);
    fputs(value ? "true" : "false", tree->out);
}
