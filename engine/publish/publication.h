/* publish/publication.h - one publishing on its way. For this room only.
 *
 *   find.c     the shared directory and what else of the name stands below the root
 *   parts.c    each rank's part: there, of this save, with its files
 *   claims.c   what several ranks say of one tensor
 *   merge.c    the manifest of all
 *   retire.c   the checkpoint that is replaced
 *   publish.c  the order
 */
#ifndef PUBLISH_PUBLICATION_H
#define PUBLISH_PUBLICATION_H

#include <base/names.h>
#include <format/manifest.h>
#include <io/io.h>
#include <tspool/failure.h>

struct publication {
    struct io *io;
    const char *root_path, *name;
    uint8_t save_id[16];
    uint32_t world_size;
    struct tspool_failure *failure;
    char hidden[HIDDEN_NAME_MAX + 1];
    int root, directory, lock;  /* -1; directory: the shared one, wherever it stands by now; lock: PUBLISH_NAME in it */
    bool locked;
    struct manifest *parts;     /* by rank; NULL: not read yet */
    int old;                    /* the checkpoint that is replaced; -1: there is none */
};

/* Records and returns -error; error > 0. `path` is relative to the root. */
int publish_refuse(const struct publication *publication, int error, const char *operation, const char *path,
                   const char *cause, ...) __attribute__((format(printf, 5, 6)));
/* The same with the usual cause. */
int publish_fail(const struct publication *publication, int error, const char *operation, const char *path);
/* "<hidden>/<name>", malloc'ed or NULL: for records. */
char *publication_path(const struct publication *publication, const char *name);

/* find.c */
int manifest_in(struct io *io, int directory, const char *name, struct manifest *manifest, const char **reason);
/* A part of `rank` under another save id of the same name: "" or its id in hex. */
void other_id_of(const struct publication *publication, uint32_t rank, char hex[DIGEST_HEX_BYTES + 1]);

/* parts.c */
int parts_load(struct publication *publication);
int parts_check_files(const struct publication *publication);
void parts_drop(struct publication *publication);
bool parts_all_replace(const struct publication *publication);

int claims_check(const struct publication *publication);      /* claims.c */

/* merge.c: malloc'ed. */
int merge(const struct publication *publication, char **json, size_t *size);

/* retire.c */
int retire_keep(const struct publication *publication);       /* before: the files of others get a second name in the new one */
void retire_old(const struct publication *publication, const char *hidden); /* afterwards: it stands there now */

#endif
