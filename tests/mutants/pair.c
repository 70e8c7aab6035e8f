/* mutants/pair.c - both machines in one simulated world (sim/simulate.c), as tests that can be run against a planted bug. */
#include "sim_pair.h"

#include <criterion/criterion.h>
#include <inttypes.h>

#define SEEDS 500u

static void every_story_keeps_the_rules(uint64_t first)
{
    for (uint64_t seed = first; seed < first + SEEDS; seed++) {
        const char *broken = sim_pair_run(seed, NULL);

        cr_assert_null(broken, "seed %" PRIu64 ": %s", seed, broken);
    }
}

Test(pair, every_story_keeps_the_rules) { every_story_keeps_the_rules(0); }
Test(pair, more_stories_keep_the_rules) { every_story_keeps_the_rules(SEEDS); }
