/* write/seal.c - the last two files: the digests of every leaf, and the manifest that vouches for them.
 *
 * The trainer composed the manifest before a byte was hashed. Here the digests file's digest is put into a private copy of
 * it, and then the manifest's own: 32 hex digits each at places that were checked. The writer parses no JSON.
 */
#include <write/machine.h>

#include <errno.h>
#include <format/digests.h>
#include <format/manifest.h>
#include <stdlib.h>
#include <string.h>

static int64_t digests_compose(struct job *job)
{
    const struct sheet *sheet = &job->input.sheet;
    uint64_t count = sheet->front->tensor_count, *sizes = calloc(count + 1, sizeof(*sizes));

    job->seal.digests = malloc(job->input.appendix.front->digests_size);
    if (!sizes || !job->seal.digests) {
        free(sizes);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++)
        sizes[i] = sheet->tensors[i].size;
    digests_emit(sizes, count, job->leaves, sheet->front->leaf_count, job->seal.digests);
    free(sizes);
    return 0;
}

static int64_t compose(void *argument)
{
    struct job *job = argument;
    const struct appendix_front *front = job->input.appendix.front;
    const struct appendix_text *text = &front->texts[front->text_count - 1];
    char hex[DIGEST_HEX_BYTES + 1];

    if (digests_compose(job) < 0 || !(job->seal.manifest = malloc(text->size)))
        return -ENOMEM;
    digest_to_hex(hash_bytes(job->seal.digests, front->digests_size), hex);
    memcpy(job->seal.manifest, job->input.appendix.bytes + text->offset, text->size);
    memcpy(job->seal.manifest + front->digests_patch, hex, DIGEST_HEX_BYTES);
    manifest_seal(job->seal.manifest, front->self_patch);
    return 0;
}

static void composed(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result < 0)
        job_fail_task(job, task, (int)-result);
    job->files[job->file_count - 2].text = job->seal.digests;
    job->files[job->file_count - 1].text = (const uint8_t *)job->seal.manifest;
    job_task_end(task);
}

void seal_compose(struct job *job)
{
    job_submit(job, job->file_count - 1, composed, &(struct op){ .kind = OP_COMPUTE, .compute = compose, .argument = job });
}
