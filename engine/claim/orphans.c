/* claim/orphans.c - see orphans.h. Looks again and again: no file system tells when a lock falls. */
#include <base/array.h>
#include <base/checked.h>
#include <claim/claim.h>
#include <claim/orphans.h>
#include <errno.h>
#include <io/calls.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_NS 20000000u
#define BARE_NS 2000000000

struct orphan {
    char hidden[HIDDEN_NAME_MAX + 1];
    bool at_work;                       /* at the last look */
};
struct orphans { struct orphan *items; size_t count, capacity; };

static struct orphan *orphan_find(const struct orphans *orphans, const char *hidden)
{
    for (size_t i = 0; i < orphans->count; i++)
        if (strcmp(orphans->items[i].hidden, hidden) == 0)
            return &orphans->items[i];
    return NULL;
}

static int orphan_add(struct orphans *orphans, const char *hidden)
{
    if (array_reserve((void **)&orphans->items, &orphans->capacity, orphans->count + 1, sizeof *orphans->items) < 0)
        return -ENOMEM;
    strcpy(orphans->items[orphans->count].hidden, hidden);
    orphans->items[orphans->count++].at_work = true;
    return 0;
}

/* 1 when this one is waited for; 0 when it is not; -ENOMEM. An orphan that drops its record to publish stays one. */
static int attempt_note(struct orphans *orphans, const char *hidden, enum claim claim)
{
    struct orphan *known = orphan_find(orphans, hidden);

    if (claim != CLAIM_ORPHAN && claim != CLAIM_UNCLEAR)
        return 0;
    if (known)
        known->at_work = true;
    else if (claim == CLAIM_ORPHAN && orphan_add(orphans, hidden) < 0)
        return -ENOMEM;
    return 1;
}

/* 1 when there is somebody to wait for; 0; -ENOMEM. */
static int orphans_look(struct io *io, int root, struct orphans *orphans)
{
    char name[CHECKPOINT_NAME_MAX + 1];
    struct io_list list = { 0 };
    uint8_t save_id[16];
    int waits = 0;

    for (size_t i = 0; i < orphans->count; i++)
        orphans->items[i].at_work = false;
    if (directory_list(io, root, &list) < 0)
        return 0;
    for (size_t i = 0; i < list.count && waits >= 0; i++)
        if (hidden_name_parse(list.names[i], name, save_id)) {
            int noted = attempt_note(orphans, list.names[i], claim_look(io, root, list.names[i], BARE_NS));

            waits = noted < 0 ? noted : waits | noted;
        }
    io_list_free(&list);
    return waits;
}

static void report_make(const struct orphans *orphans, uint64_t waited_ns, struct orphan_report *report)
{
    uint8_t save_id[16];

    *report = (struct orphan_report){ .waited_ns = waited_ns, .seen = (uint32_t)orphans->count };
    for (size_t i = 0; i < orphans->count; i++)
        if (orphans->items[i].at_work && report->left++ == 0)
            (void)hidden_name_parse(orphans->items[i].hidden, report->left_name, save_id);
    report->finished = report->seen - report->left;
}

int orphans_wait(struct io *io, int root, uint64_t timeout_ns, struct orphan_report *report)
{
    uint64_t begun_ns = io_now(io), deadline_ns = UINT64_MAX;
    struct orphans orphans = { 0 };
    bool waited = false;
    int waits;

    (void)checked_add(begun_ns, timeout_ns, &deadline_ns);
    while ((waits = orphans_look(io, root, &orphans)) == 1) {
        waited = true;
        if (io_now(io) >= deadline_ns)
            break;
        pause_for(io, min_u64(LOOK_NS, deadline_ns - io_now(io)));
    }
    report_make(&orphans, waited ? io_now(io) - begun_ns : 0, report);
    free(orphans.items);
    return waits < 0 ? waits : 0;
}
