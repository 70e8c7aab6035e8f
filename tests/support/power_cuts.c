/* support/power_cuts.c - see power_cuts.h. */
#include "power_cuts.h"

#include <stdlib.h>
#include <string.h>

struct walk {
    const struct sim_disk *disk;
    power_cut_visit *visit;
    void *context;
    size_t effect_count, varied_count;
    size_t *varied;              /* effects that are varied */
    bool *kept, *chosen;         /* kept: by effect; chosen: by position in `varied` */
    bool *filler;                /* by effect: for those that are not varied */
    uint64_t random, visits;
    bool stopped;
};

static uint64_t draw(struct walk *walk)
{
    walk->random = walk->random * 6364136223846793005u + 1442695040888963407u;
    return walk->random >> 33;
}

/* A choice that the ordering does not allow as it is stands for another one, which has its own turn. */
static bool choice_apply(struct walk *walk)
{
    memcpy(walk->kept, walk->filler, walk->effect_count * sizeof(bool));
    for (size_t i = 0; i < walk->varied_count; i++)
        walk->kept[walk->varied[i]] = walk->chosen[i];
    sim_disk_complete(walk->disk, walk->kept);
    for (size_t i = 0; i < walk->varied_count; i++)
        if (walk->kept[walk->varied[i]] != walk->chosen[i])
            return false;
    return true;
}

static void choice_visit(struct walk *walk)
{
    if (walk->stopped || !choice_apply(walk))
        return;
    walk->visits++;
    walk->stopped = !walk->visit(walk->disk, walk->kept, walk->context);
}

static void visit_every(struct walk *walk)
{
    for (uint64_t bits = 0; bits < (uint64_t)1 << walk->varied_count; bits++) {
        for (size_t i = 0; i < walk->varied_count; i++)
            walk->chosen[i] = bits >> i & 1;
        choice_visit(walk);
    }
}

static void visit_telling(struct walk *walk)
{
    size_t count = walk->varied_count;

    for (size_t only = 0; only < count; only++) {
        for (int but = 0; but < 2; but++) {
            memset(walk->chosen, but, count * sizeof(bool));
            walk->chosen[only] = !but;
            choice_visit(walk);
        }
    }
    for (size_t length = 0; length <= count; length++) {
        for (size_t i = 0; i < count; i++)
            walk->chosen[i] = i < length;
        choice_visit(walk);
    }
}

/* Few lost, half lost, few kept: each density finds what the others miss. */
static void visit_samples(struct walk *walk, unsigned samples)
{
    static const unsigned per_16[] = { 8, 1, 15, 4, 12 };

    for (unsigned n = 0; n < samples; n++) {
        for (size_t i = 0; i < walk->varied_count; i++)
            walk->chosen[i] = draw(walk) % 16 < per_16[n % 5];
        choice_visit(walk);
    }
}

static void varied_find(struct walk *walk, const struct power_cuts *cuts)
{
    if (cuts->name)
        sim_disk_relevant(walk->disk, cuts->directory, cuts->name, walk->kept);
    else
        memset(walk->kept, true, walk->effect_count * sizeof(bool));
    for (size_t i = 0; i < walk->effect_count; i++) {
        if (walk->kept[i])
            walk->varied[walk->varied_count++] = i;
        else
            walk->filler[i] = draw(walk) & 1;
    }
}

uint64_t power_cuts_each(const struct sim_disk *disk, const struct power_cuts *cuts, power_cut_visit *visit, void *context)
{
    size_t count = sim_disk_pending(disk);
    struct walk walk = { .disk = disk, .visit = visit, .context = context, .effect_count = count, .random = cuts->seed };

    walk.varied = calloc(count + 1, sizeof(size_t));
    walk.kept = calloc(count + 1, sizeof(bool));
    walk.chosen = calloc(count + 1, sizeof(bool));
    walk.filler = calloc(count + 1, sizeof(bool));
    if (!walk.varied || !walk.kept || !walk.chosen || !walk.filler)
        abort();
    varied_find(&walk, cuts);
    if (walk.varied_count <= cuts->exhaustive) {
        visit_every(&walk);
    } else {
        visit_telling(&walk);
        visit_samples(&walk, cuts->samples);
    }
    free(walk.varied);
    free(walk.kept);
    free(walk.chosen);
    free(walk.filler);
    return walk.visits;
}
