/* Any text as a job file: parsing never crashes or over-reads, what is wrong is said, and jobs that pass hold what the table
 * of options allows. */
#include "../../tools/bench/job.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void assert_sane(const struct job *job)
{
    assert(job->numjobs >= 1 && job->numjobs <= NUMJOBS_MAX && job->loops >= 1 && job->scale > 0);
    assert(!job_is_plain(job) || (job->bs && job->size >= job->bs && job->iodepth));
    assert(!job->is_direct || job->bs % 4096 == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct complaint complaint = { "" };
    char *text = malloc(size + 1);
    struct jobs jobs;

    if (!text || jobs_init(&jobs) < 0)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    if (jobfile_parse(&jobs, text, "fuzz", &complaint) == 0 && jobs_finish(&jobs, &complaint) == 0)
        for (size_t i = 0; i < jobs.count; i++)
            assert_sane(&jobs.jobs[i]);
    else
        assert(complaint.text[0]);
    jobs_deinit(&jobs);
    free(text);
    return 0;
}
