/* save/test_torn.c - a tensor that changes while it is copied: the checkpoint would be of no step that ever was. The test is
 * the only copying thread, so that the change falls exactly between two chunks.
 */
#include "scripted.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

static struct scripted scripted;

static void setup(void)
{
    scripted_init_larger(&scripted, TSPOOL_STAGING_BACKGROUND);
    scripted_begin(&scripted);
}

static void teardown(void) { scripted_deinit(&scripted); }

TestSuite(torn, .init = setup, .fini = teardown, .timeout = 30);

static void copy_one(void)
{
    pthread_mutex_lock(&scripted.roster.lock);
    cr_assert(stager_work(&scripted.stager));
    pthread_mutex_unlock(&scripted.roster.lock);
    scripted_turn(&scripted);
}

static void pass_one(uint32_t chunk)
{
    copy_one();
    cr_assert_eq(scripted_told(&scripted, MESSAGE_STAGED).staged.chunk, chunk);
    scripted_released(&scripted, chunk, scripted.save->slots[chunk]);
}

static void assert_given_up(const char *cause)
{
    scripted_told(&scripted, MESSAGE_ABANDON); /* the writer never hears of the chunk */
    scripted_say_kind(&scripted, MESSAGE_ABANDONED);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.save->result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(scripted.save->result.failure.error, EBUSY);
    cr_assert_eq(scripted.save->result.failure.stage, TSPOOL_STAGE_STAGE);
    cr_assert_str_eq(scripted.save->result.failure.tensor, "t");
    cr_assert(strstr(scripted.save->result.failure.message, cause), "%s", scripted.save->result.failure.message);
}

Test(torn, byte_that_changed_before_its_chunk_was_copied_fails_the_save)
{
    cr_assert_eq(torn_record(scripted.save), 0);
    pass_one(0);
    scripted_tensor[20 << 20] ^= 1; /* in the second chunk */
    copy_one();
    assert_given_up("bytes 16");
}

Test(torn, last_byte_counts_too)
{
    cr_assert_eq(torn_record(scripted.save), 0);
    pass_one(0);
    pass_one(1);
    scripted_tensor[sizeof(scripted_tensor) - 1] ^= 1;
    copy_one();
    assert_given_up("to 34603008 of the tensor");
}

Test(torn, tensor_that_stays_passes_and_may_change_behind_the_copying)
{
    cr_assert_eq(torn_record(scripted.save), 0);
    pass_one(0);
    scripted_tensor[0] ^= 1; /* copied already: what was published is what was submitted */
    pass_one(1);
    pass_one(2);
    scripted_publish(&scripted);
    cr_assert_eq(scripted.save->result.outcome, TSPOOL_OUTCOME_PUBLISHED);
}

/* A second copying compares with the same digests: what the caller changed between two writers does not slip in. */
Test(torn, change_between_two_attempts_is_seen)
{
    cr_assert_eq(torn_record(scripted.save), 0);
    pass_one(0);
    scripted_die(&scripted);
    scripted_turn(&scripted);
    scripted_begin(&scripted);
    scripted_tensor[0] ^= 1;
    copy_one();
    assert_given_up("bytes 0 to");
}

Test(torn, version_counter_that_rose_fails_the_save)
{
    pass_one(0);
    pass_one(1);
    __atomic_add_fetch(&scripted.version, 1, __ATOMIC_RELEASE);
    copy_one();
    assert_given_up("version counter");
}

Test(torn, without_the_option_nothing_is_compared)
{
    pass_one(0);
    scripted_tensor[20 << 20] ^= 1;
    pass_one(1);
    pass_one(2);
    cr_assert_eq(scripted.save->result.level, TSPOOL_STAGED);
}
