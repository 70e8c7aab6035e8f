/* save/test_scarce.c - memory that the supervisor asks for and does not get. test_texts.c has what a save's begin needs. */
#include "../../support/scarce.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <save/recovery.h>

/* Nothing was looked at then: whoever wanted to know says so, and no operation will ever come back. */
Test(scarce, recovery_without_memory_starts_nothing)
{
    const uint8_t id[16] = { 1 };
    struct recovery recovery = { .in_flight = false };

    scarce_begin(1);
    cr_expect_eq(recovery_start(&recovery, NULL, RECOVERY_SWEEPS, -1, "step", id, 0, 1, "{", 1), -ENOMEM);
    cr_expect(scarce_end());
    cr_expect_not(recovery.in_flight);
    recovery_stop(&recovery, NULL);
    recovery_deinit(&recovery);
}
