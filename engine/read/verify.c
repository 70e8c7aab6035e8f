/* read/verify.c - every byte against its digest, and the folder against its manifest.
 *
 * Order: what the open already found, headers, other files that the manifest lists, objects, tensors, then what is in the
 * folder and not in the manifest. Findings are handed to the caller as they come; a nonzero answer stops.
 */
#include <base/checked.h>
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <read/reader.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TENSORS_AT_ONCE 65536u

struct verification {
    struct tspool_checkpoint *checkpoint;
    struct io *io;
    tspool_on_damage on_damage;
    tspool_on_progress on_progress;
    void *context;
    uint64_t done, total;
    size_t first;                        /* entry of request 0 of the run at hand */
    struct tspool_verify_report report;
    struct tspool_failure *failure;
    bool recorded;                       /* the first damage is in *failure */
};

/* Findings ----------------------------------------------------------------------------------------------------------- */

static void damage_record(struct verification *verification, const struct tspool_damage *damage)
{
    char *path = path_join(verification->checkpoint->path, damage->file);
    struct failure_at at = { .operation = "verify", .tensor = damage->tensor, .path = path ? path : damage->file,
                             .file_offset = damage->kind == TSPOOL_DAMAGE_MISSING ? TSPOOL_NO_OFFSET : damage->file_offset };

    if (!verification->recorded)
        failure_set(verification->failure, TSPOOL_STAGE_VERIFY, EBADMSG, at, "%s", damage->reason);
    verification->recorded = true;
    free(path);
}

/* Counts and hands over a finding: 0, or the caller's nonzero answer. */
static int find(struct verification *verification, const struct tspool_damage *damage)
{
    struct tspool_verify_report *report = &verification->report;

    report->foreign += damage->kind == TSPOOL_DAMAGE_FOREIGN;
    report->missing += damage->kind == TSPOOL_DAMAGE_MISSING;
    report->damaged += damage->kind == TSPOOL_DAMAGE_TENSOR || damage->kind == TSPOOL_DAMAGE_FILE;
    if (damage->kind != TSPOOL_DAMAGE_FOREIGN)
        damage_record(verification, damage);
    return verification->on_damage ? verification->on_damage(verification->context, damage) : 0;
}

/* What keeps us from looking is no damage: the verification ends with it. */
static int trouble(struct verification *verification, int error, const struct tspool_failure *failure)
{
    if (!verification->recorded)
        *verification->failure = *failure;
    return error;
}

/* A file that could not be read as its description says. */
static int find_file(struct verification *verification, const char *file, uint64_t size, int error,
                     const struct tspool_failure *failure)
{
    uint64_t offset = failure->file_offset == TSPOOL_NO_OFFSET ? 0 : failure->file_offset;
    struct tspool_damage damage = { .kind = error == -ENOENT ? TSPOOL_DAMAGE_MISSING : TSPOOL_DAMAGE_FILE, .file = file,
                                    .file_offset = offset, .bytes = size > offset ? size - offset : 0, .reason = failure->cause };

    return error_is_damage(error) ? find(verification, &damage) : trouble(verification, error, failure);
}

static int find_earlier(struct verification *verification)
{
    const struct tspool_checkpoint *checkpoint = verification->checkpoint;
    int answer = 0;

    for (size_t i = 0; i < checkpoint->finding_count && answer == 0; i++) {
        const struct finding *finding = &checkpoint->findings[i];
        struct tspool_damage damage = { .kind = finding->kind, .file = finding->file, .file_offset = finding->file_offset,
                                        .bytes = finding->bytes, .reason = finding->reason };

        answer = find(verification, &damage);
    }
    return answer;
}

static void progress(void *context, uint64_t bytes)
{
    struct verification *verification = context;

    verification->done += bytes;
    verification->report.bytes += bytes;
    if (verification->on_progress)
        verification->on_progress(verification->context, min_u64(verification->done, verification->total), verification->total);
}

/* Headers and other whole files -------------------------------------------------------------------------------------- */

static int range_check(struct verification *verification, const struct source *source, uint64_t offset, uint64_t size,
                       struct digest digest, const char *what, struct tspool_failure *failure)
{
    struct failure_at at = { .operation = "verify", .path = source->path, .file_offset = offset };
    void *bytes = NULL;
    int error = source_load(verification->io, source, offset, size, &bytes, failure);

    if (error == 0 && !digest_equal(hash_bytes(bytes, size), digest))
        error = failure_set(failure, TSPOOL_STAGE_VERIFY, EBADMSG, at, "%s does not match its digest.", what);
    free(bytes);
    return error;
}

static int headers_verify(struct verification *verification)
{
    struct tspool_checkpoint *checkpoint = verification->checkpoint;
    int answer = 0;

    for (uint32_t i = 0; i < checkpoint->file_count && answer == 0; i++) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        const struct checkpoint_file *file = &checkpoint->files[i];
        int error;

        if (file->broken || !file->listed)
            continue;
        error = range_check(verification, &file->source, 0, file->listed->header_size, file->listed->digest, "The header",
                            &failure);
        progress(verification, file->listed->header_size);
        if (error < 0)
            answer = find_file(verification, file->source.name, file->listed->header_size, error, &failure);
    }
    return answer;
}

/* A listed file that is not a shard: its size, and its bytes where a digest covers the whole of it. */
static int listed_check(struct verification *verification, const char *name, uint64_t size, uint64_t covered,
                        struct digest digest,
                        struct tspool_failure *failure)
{
    struct tspool_checkpoint *checkpoint = verification->checkpoint;
    char *path = path_join(checkpoint->path, name);
    struct source source = { .handle = -1 };
    int error = source_open(verification->io, checkpoint->directory, name, path ? path : name, true, &source, failure);

    if (error == 0)
        error = source_check_size(&source, size, failure);
    if (error == 0 && covered && !MUTANT(LISTED_DIGEST_NOT_COMPARED))
        error = range_check(verification, &source, 0, covered, digest, "The file", failure);
    source_close(verification->io, &source);
    free(path);
    return error;
}

static bool found_earlier(const struct tspool_checkpoint *checkpoint, const char *name)
{
    for (size_t i = 0; i < checkpoint->finding_count; i++)
        if (strcmp(checkpoint->findings[i].file, name) == 0)
            return true;
    return false;
}

static int listed_verify(struct verification *verification)
{
    const struct manifest *manifest = &verification->checkpoint->manifest;
    int answer = 0;

    for (size_t i = 0; i < manifest->file_count + manifest->digests_count && answer == 0; i++) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        const struct manifest_digests *digests = i < manifest->file_count ? NULL : &manifest->digests[i - manifest->file_count];
        const struct manifest_file *file = digests ? NULL : &manifest->files[i];
        const char *name = digests ? digests->name : file->name;
        int error;

        if ((file && file->kind == MANIFEST_SAFETENSORS) || found_earlier(verification->checkpoint, name))
            continue;
        error = digests ? listed_check(verification, name, digests->size, digests->size, digests->digest, &failure)
                        : listed_check(verification, name, file->size, file->header_size, file->digest, &failure);
        progress(verification, digests ? digests->size : file->header_size);
        if (error < 0)
            answer = find_file(verification, name, digests ? digests->size : file->size, error, &failure);
    }
    return answer;
}

static int object_verify(struct verification *verification, const struct manifest_object *object)
{
    struct tspool_checkpoint *checkpoint = verification->checkpoint;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char *path = path_join(checkpoint->path, object->file);
    struct source source = { .handle = -1 };
    int error = source_open(verification->io, checkpoint->directory, object->file, path ? path : object->file, true, &source,
                            &failure);
    bool is_open = error == 0;

    if (is_open)
        error = range_check(verification, &source, object->file_offset, object->size, object->digest, "The object", &failure);
    source_close(verification->io, &source);
    free(path);
    progress(verification, object->size);
    if (error < 0 && !error_is_damage(error))
        return trouble(verification, error, &failure);
    if (error == 0 || !is_open) /* that the file is missing was said when it was looked at */
        return 0;
    return find(verification, &(struct tspool_damage){ .kind = TSPOOL_DAMAGE_FILE, .tensor = NULL, .file = object->file,
                .file_offset = object->file_offset, .bytes = object->size, .reason = failure.cause });
}

static int objects_verify(struct verification *verification)
{
    const struct manifest *manifest = &verification->checkpoint->manifest;
    int answer = 0;

    for (size_t i = 0; i < manifest->object_count && answer == 0; i++)
        answer = object_verify(verification, &manifest->objects[i]);
    return answer;
}

/* Tensors ------------------------------------------------------------------------------------------------------------ */

static int tensor_damage(void *context, const struct run_damage *damage)
{
    struct verification *verification = context;
    const struct tspool_checkpoint *checkpoint = verification->checkpoint;
    size_t index = verification->first + damage->request;
    char reason[128];
    struct tspool_damage found = { .kind = TSPOOL_DAMAGE_TENSOR, .tensor = checkpoint->entries[index].name,
                                   .file = checkpoint->files[checkpoint->entries[index].file].source.name,
                                   .file_offset = entry_file_offset(checkpoint, index) + damage->begin,
                                   .bytes = damage->end - damage->begin, .reason = "The bytes do not match their digest." };

    if (damage->error != -EBADMSG) {
        snprintf(reason, sizeof reason, "The bytes cannot be read: %s.", strerror(-damage->error));
        found.reason = reason;
    }
    return find(verification, &found);
}

static int batch_verify(struct verification *verification, struct tspool_read_request *requests, size_t first, size_t count)
{
    struct tspool_checkpoint *checkpoint = verification->checkpoint;
    struct run run = { .checkpoint = checkpoint, .requests = requests, .count = count, .stride = sizeof *requests,
                       .verified = true,
                       .discard = true, .context = verification, .on_damage = tensor_damage, .on_bytes = progress };

    for (size_t i = 0; i < count; i++) {
        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        requests[i].tensor = first + i;
        if (checkpoint->files[checkpoint->entries[first + i].file].digests) {
            verification->report.tensors++;
            verification->report.leaves += leaf_count_of(entry_bytes(checkpoint, first + i));
        }
    }
    verification->first = first;
    return reader_run(&run, verification->failure);
}

static int tensors_verify(struct verification *verification)
{
    size_t count = verification->checkpoint->stored_count;
    struct tspool_read_request *requests = malloc((min_u64(count, TENSORS_AT_ONCE) + 1) * sizeof *requests);
    int error = 0;

    if (!requests)
        return failure_set(verification->failure, TSPOOL_STAGE_VERIFY, ENOMEM, FAILURE_AT(.operation = "verify"), NULL);
    for (size_t first = 0; first < count && error == 0; first += TENSORS_AT_ONCE)
        error = batch_verify(verification, requests, first, min_u64(count - first, TENSORS_AT_ONCE));
    free(requests);
    return error;
}

/* The folder --------------------------------------------------------------------------------------------------------- */

static int name_compare(const void *left, const void *right) { return strcmp(*(const char *const *)left,
                                                                             *(const char *const *)right); }

/* The manifest's file names, sorted; NULL: no memory. */
static const char **listed_names(const struct manifest *manifest, size_t *count)
{
    const char **names = malloc((manifest->file_count + manifest->digests_count + 1) * sizeof *names);
    size_t next = 0;

    if (!names)
        return NULL;
    for (size_t i = 0; i < manifest->file_count; i++)
        names[next++] = manifest->files[i].name;
    for (size_t i = 0; i < manifest->digests_count; i++)
        names[next++] = manifest->digests[i].name;
    names[next++] = MANIFEST_NAME;
    qsort(names, next, sizeof *names, name_compare);
    *count = next;
    return names;
}

static int foreign_report(struct verification *verification, const struct io_list *list, const char **names, size_t count)
{
    int answer = 0;

    for (size_t i = 0; i < list->count && answer == 0; i++) {
        const char *name = list->names[i];
        struct tspool_damage damage = { .kind = TSPOOL_DAMAGE_FOREIGN, .file = name, .reason = "The manifest does not list it." };

        if (!bsearch(&name, names, count, sizeof *names, name_compare))
            answer = find(verification, &damage);
    }
    return answer;
}

static int foreign_find(struct verification *verification)
{
    struct tspool_checkpoint *checkpoint = verification->checkpoint;
    struct io_list list = { 0 };
    size_t count = 0;
    const char **names;
    int error;

    if (checkpoint->kind != TSPOOL_KIND_TSPOOL)
        return 0;
    error = directory_list(verification->io, checkpoint->directory, &list);
    names = error == 0 ? listed_names(&checkpoint->manifest, &count) : NULL;
    if (names)
        error = foreign_report(verification, &list, names, count);
    else
        error = failure_set(verification->failure, TSPOOL_STAGE_VERIFY, error < 0 ? -error : ENOMEM,
                            FAILURE_AT(.operation = "list", .path = checkpoint->path), NULL);
    free(names);
    io_list_free(&list);
    return error;
}

/* The whole ---------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_total(const struct tspool_checkpoint *checkpoint)
{
    const struct manifest *manifest = &checkpoint->manifest;
    uint64_t total = 0;

    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        if (!checkpoint->files[i].broken)
            total += checkpoint->files[i].header.data_bytes + (checkpoint->files[i].listed
                                                               ? checkpoint->files[i].listed->header_size : 0);
    for (size_t i = 0; i < manifest->file_count; i++)
        total += manifest->files[i].kind == MANIFEST_SAFETENSORS ? 0 : manifest->files[i].header_size;
    for (size_t i = 0; i < manifest->digests_count; i++)
        total += manifest->digests[i].size;
    for (size_t i = 0; i < manifest->object_count; i++)
        total += manifest->objects[i].size;
    return total;
}

static bool has_digests(const struct tspool_checkpoint *checkpoint)
{
    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        if (checkpoint->files[i].digests)
            return true;
    return checkpoint->kind == TSPOOL_KIND_TSPOOL && checkpoint->file_count == 0;
}

static int verification_run(struct verification *verification)
{
    int (*const steps[])(struct verification *) = { find_earlier, headers_verify, listed_verify, objects_verify };
    int answer = 0;

    for (size_t i = 0; i < sizeof steps / sizeof *steps && answer == 0; i++)
        answer = steps[i](verification);
    if (answer == 0 && has_digests(verification->checkpoint))
        answer = tensors_verify(verification);
    return answer == 0 ? foreign_find(verification) : answer;
}

static int verdict(struct verification *verification, int answer)
{
    const struct tspool_verify_report *report = &verification->report;

    if (report->damaged + report->missing > 0)
        return -EBADMSG;
    if (answer < 0)
        return answer;
    if (answer > 0)
        return failure_set(verification->failure, TSPOOL_STAGE_VERIFY, ECANCELED, FAILURE_AT(.operation = "verify",
                           .path = verification->checkpoint->path), "The caller stopped it.");
    if (!has_digests(verification->checkpoint))
        return failure_set(verification->failure, TSPOOL_STAGE_VERIFY, ENODATA, FAILURE_AT(.operation = "verify",
                           .path = verification->checkpoint->path),
                               "No digests were recorded: only headers and sizes could be checked.");
    return 0;
}

int tspool_checkpoint_verify(struct tspool_checkpoint *checkpoint, tspool_on_damage on_damage, tspool_on_progress on_progress,
                             void *context, struct tspool_verify_report *report, struct tspool_failure *failure)
{
    struct tspool_failure own = TSPOOL_FAILURE_INIT;
    struct verification verification = { .checkpoint = checkpoint, .on_damage = on_damage, .on_progress = on_progress,
                                         .context = context, .total = bytes_total(checkpoint), .failure = failure ? failure
                                             : &own,
                                         .report = TSPOOL_VERIFY_REPORT_INIT };
    int error = lane_enter(&checkpoint->lane, verification.failure);

    if (error < 0)
        return error;
    verification.io = checkpoint->lane.io;
    error = verdict(&verification, verification_run(&verification));
    lane_leave(&checkpoint->lane);
    if (report)
        give_sized(report, &verification.report, sizeof verification.report);
    return error;
}
