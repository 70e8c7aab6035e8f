/* sim/damage.c - silent damage: whatever happens to the bytes of a checkpoint after it was written, verify says so, and names
 * file, range and tensor; a verified read of what is damaged fails and says where. Nothing is reported that is not damaged.
 *
 * The checkpoint is one that the real writer made on the simulated disk, so that thousands of damages take seconds. What
 * cannot be damaged there (links, pipes, permissions) is in unit/read/test_damage.c.
 */
#include "prepared.h"

#include <base/checked.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <format/digests.h>
#include <inttypes.h>
#include <read/read.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/checkpoint.h>

#define FINDINGS_MAX 64u
#define TENSORS_MAX 16u
#define FILES_MAX 8u
#define BULK (9u << 20) /* three leaves, the last one shorter */

struct whole_file { char name[64]; uint8_t *bytes; uint64_t size, header_size; };
struct whole_tensor { char name[64]; unsigned file; uint64_t begin, bytes; };

/* A checkpoint before anything happened to it. */
struct whole {
    struct sim_state state;
    struct sim_disk *disk;
    struct whole_file files[FILES_MAX];
    unsigned file_count;
    struct whole_tensor tensors[TENSORS_MAX]; /* that are stored */
    unsigned tensor_count;
};

struct finding { enum tspool_damage_kind kind; char tensor[64], file[64]; uint64_t begin, bytes; };
struct findings { int error; struct tspool_failure failure; unsigned count; struct finding items[FINDINGS_MAX]; };

/* A reader of the simulated disk -------------------------------------------------------------------------------------- */

struct reading { struct sim_world *world; struct io *io; };

static struct reading reading_begin(const struct sim_disk *disk)
{
    struct sim_settings settings = { .memory_align = 512, .offset_align = 512 };
    struct reading reading = { .world = sim_world_create(&settings, sim_disk_clone(disk)) };

    reading.io = sim_io_create(reading.world, "reader", 32);
    return reading;
}

static void reading_end(struct reading *reading)
{
    cr_assert_null(sim_world_violation(reading->world), "the reader broke a rule: %s", sim_world_violation(reading->world));
    io_destroy(reading->io);
    cr_assert_eq(sim_handles(reading->io), 0, "the reader left handles open");
    sim_world_destroy(reading->world);
}

static int note(void *context, const struct tspool_damage *damage)
{
    struct findings *findings = context;
    struct finding *finding = &findings->items[findings->count++];

    cr_assert_lt(findings->count, FINDINGS_MAX);
    *finding = (struct finding){ .kind = damage->kind, .begin = damage->file_offset, .bytes = damage->bytes };
    snprintf(finding->file, sizeof(finding->file), "%s", damage->file);
    snprintf(finding->tensor, sizeof(finding->tensor), "%s", damage->tensor ? damage->tensor : "");
    cr_assert(damage->reason && *damage->reason, "a finding without a reason");
    return 0;
}

static void verify(const struct sim_disk *disk, const char *path, struct findings *findings)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    struct reading reading = reading_begin(disk);

    *findings = (struct findings){ .failure = TSPOOL_FAILURE_INIT };
    options.tolerant = 1;
    findings->error = checkpoint_open_on(reading.io, path, &options, &checkpoint, &findings->failure);
    if (findings->error == 0)
        findings->error = tspool_checkpoint_verify(checkpoint, note, NULL, findings, NULL, &findings->failure);
    tspool_checkpoint_close(checkpoint);
    reading_end(&reading);
}

static int tensor_read(struct tspool_checkpoint *checkpoint, size_t number, struct tspool_failure *failure)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    int error = tspool_checkpoint_tensor(checkpoint, number, &info);

    cr_assert_eq(error, 0);
    request.tensor = number;
    request.bytes = info.bytes;
    request.data = malloc(info.bytes + 1);
    error = tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, failure);
    free(request.data);
    return error;
}

static int objects_read(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    const char *name, *kind;
    uint64_t bytes;
    int error = 0;

    for (size_t i = 0; error == 0 && tspool_checkpoint_object(checkpoint, i, &name, &kind, &bytes) == 0; i++) {
        void *memory = NULL;
        size_t size;

        error = tspool_checkpoint_object_read(checkpoint, name, &memory, &size, failure);
        free(memory);
    }
    return error;
}

/* Everything that a program loads: the first failure. */
static int load(const struct sim_disk *disk, const char *path, bool unverified, struct tspool_failure *failure)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    struct reading reading = reading_begin(disk);
    int error;

    *failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    options.unverified = unverified;
    error = checkpoint_open_on(reading.io, path, &options, &checkpoint, failure);
    for (size_t i = 0; error == 0 && i < tspool_checkpoint_count(checkpoint); i++)
        error = tensor_read(checkpoint, i, failure);
    if (error == 0)
        error = objects_read(checkpoint, failure);
    tspool_checkpoint_close(checkpoint);
    reading_end(&reading);
    return error;
}

/* What is there, whole ------------------------------------------------------------------------------------------------- */

static uint32_t inode_of(const struct sim_disk *disk, const char *path, const char *file)
{
    char full[300];
    uint32_t inode;

    snprintf(full, sizeof(full), "%s/%s", path, file);
    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, full, &inode), 0, "%s", full);
    return inode;
}

static void file_take(struct whole *whole, const char *name)
{
    struct whole_file *file = &whole->files[whole->file_count++];
    uint32_t inode = inode_of(whole->disk, PATH, name);
    struct io_stat stat = { 0 };
    uint64_t json_size;

    sim_disk_stat(whole->disk, inode, &stat);
    snprintf(file->name, sizeof(file->name), "%s", name);
    file->size = stat.size;
    file->bytes = malloc(stat.size + 1);
    cr_assert_eq(sim_disk_read(whole->disk, inode, 0, file->bytes, stat.size), (int64_t)stat.size);
    if (strstr(name, ".safetensors") && !strstr(name, ".json")) {
        memcpy(&json_size, file->bytes, 8);
        file->header_size = 8 + json_size;
    }
}

static unsigned file_number(const struct whole *whole, const char *name)
{
    unsigned number = 0;

    while (number < whole->file_count && strcmp(whole->files[number].name, name) != 0)
        number++;
    cr_assert_lt(number, whole->file_count);
    return number;
}

static void tensors_take(struct whole *whole)
{
    struct reading reading = reading_begin(whole->disk);
    struct tspool_checkpoint *checkpoint = NULL;

    cr_assert_eq(checkpoint_open_on(reading.io, PATH, NULL, &checkpoint, NULL), 0);
    for (size_t i = 0; i < tspool_checkpoint_count(checkpoint); i++) {
        struct whole_tensor *tensor = &whole->tensors[whole->tensor_count];
        struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

        cr_assert_eq(tspool_checkpoint_tensor(checkpoint, i, &info), 0);
        if (info.tied_to)
            continue;
        *tensor = (struct whole_tensor){ .file = file_number(whole, info.file), .begin = info.file_offset, .bytes = info.bytes };
        snprintf(tensor->name, sizeof(tensor->name), "%s", info.name);
        whole->tensor_count++;
    }
    tspool_checkpoint_close(checkpoint);
    reading_end(&reading);
}

static void whole_init(struct whole *whole, uint64_t seed, size_t bulk)
{
    struct scene_settings settings = { .world = { .memory_align = 512, .offset_align = 512 }, .item_bytes = bulk ? 1 << 20 : 0 };
    struct io_list list;
    uint32_t directory;

    memset(whole, 0, sizeof(*whole));
    sim_state_init(&whole->state, seed, bulk);
    whole->disk = scene_commit(&settings, NULL, &whole->state, NAME, false);
    cr_assert_not_null(whole->disk);
    cr_assert_eq(sim_disk_walk(whole->disk, SIM_ROOT, PATH, &directory), 0);
    cr_assert_eq(sim_disk_list(whole->disk, directory, &list), 0);
    for (size_t i = 0; i < list.count; i++)
        file_take(whole, list.names[i]);
    io_list_free(&list);
    tensors_take(whole);
    cr_assert_geq(whole->file_count, 6, "shards, objects, index, digests, manifest");
}

static void whole_deinit(struct whole *whole)
{
    for (unsigned i = 0; i < whole->file_count; i++)
        free(whole->files[i].bytes);
    sim_disk_destroy(whole->disk);
    sim_state_deinit(&whole->state);
}

/* Damages ---------------------------------------------------------------------------------------------------------------- */

/* New contents of one file; [begin, end): what differs, in the old file or beyond its end. */
struct damage { unsigned file; uint8_t *bytes; uint64_t size, begin, end; char what[120]; };

static void damage_init(struct damage *damage, const struct whole *whole, unsigned file, uint64_t size)
{
    const struct whole_file *from = &whole->files[file];

    *damage = (struct damage){ .file = file, .size = size, .bytes = calloc(1, size + 1) };
    memcpy(damage->bytes, from->bytes, min_u64(size, from->size));
}

/* False when nothing changed. */
static bool damage_measure(struct damage *damage, const struct whole *whole)
{
    const struct whole_file *from = &whole->files[damage->file];
    uint64_t common = min_u64(damage->size, from->size);

    while (damage->begin < common && damage->bytes[damage->begin] == from->bytes[damage->begin])
        damage->begin++;
    damage->end = damage->size != from->size ? max_u64(damage->size, from->size) : common;
    while (damage->size == from->size && damage->end > damage->begin
           && damage->bytes[damage->end - 1] == from->bytes[damage->end - 1])
        damage->end--;
    return damage->begin < damage->end;
}

static void disk_put(struct sim_disk *disk, const char *path, const char *file, const uint8_t *bytes, uint64_t size)
{
    uint32_t inode = inode_of(disk, path, file);

    cr_assert_eq(sim_disk_resize(disk, inode, size), 0);
    cr_assert_eq(sim_disk_write(disk, inode, 0, bytes, size), (int64_t)size);
    sim_disk_sync_all(disk);
}

/* The byte differs and lies in a tensor: which one. */
static const struct whole_tensor *tensor_of(const struct whole *whole, unsigned file, uint64_t at)
{
    for (unsigned i = 0; i < whole->tensor_count; i++) {
        const struct whole_tensor *tensor = &whole->tensors[i];

        if (tensor->file == file && at >= tensor->begin && at < tensor->begin + tensor->bytes)
            return tensor;
    }
    return NULL;
}

static bool finding_covers(const struct finding *finding, const char *file, uint64_t at, uint64_t size)
{
    if (strcmp(finding->file, file) != 0 || finding->kind == TSPOOL_DAMAGE_FOREIGN)
        return false;
    if (at >= size) /* beyond the end: there is no range, only a place */
        return finding->begin == size;
    return at >= finding->begin && at < finding->begin + finding->bytes;
}

/* Each changed byte is in a finding; in a tensor's, by its name, where its file can be read at all. */
static bool byte_is_found(const struct whole *whole, const struct damage *damage, const struct findings *findings, uint64_t at)
{
    const struct whole_file *file = &whole->files[damage->file];
    bool broken = damage->size != file->size || damage->begin < file->header_size;
    const struct whole_tensor *tensor = broken ? NULL : tensor_of(whole, damage->file, at);

    for (unsigned i = 0; i < findings->count; i++) {
        const struct finding *finding = &findings->items[i];

        if (finding_covers(finding, file->name, at, file->size)
            && (!tensor || (finding->kind == TSPOOL_DAMAGE_TENSOR && strcmp(finding->tensor, tensor->name) == 0
                            && finding->begin >= tensor->begin
                            && finding->begin + finding->bytes <= tensor->begin + tensor->bytes && finding->bytes <= LEAF_BYTES)))
            return true;
    }
    return false;
}

static bool manifest_is_named(const struct tspool_failure *failure) { return strstr(failure->path, MANIFEST_NAME) != NULL; }

static void verify_finds(const struct whole *whole, const struct sim_disk *disk, const struct damage *damage)
{
    const struct whole_file *file = &whole->files[damage->file];
    struct findings findings;

    verify(disk, PATH, &findings);
    if (strcmp(file->name, MANIFEST_NAME) == 0) { /* nothing can be said without it but that */
        cr_assert(findings.error == -EBADMSG || findings.error == -EPROTO, "%s: %d", damage->what, findings.error);
        cr_assert(manifest_is_named(&findings.failure), "%s: %s", damage->what, findings.failure.message);
        return;
    }
    cr_assert_eq(findings.error, -EBADMSG, "%s: %d", damage->what, findings.error);
    for (unsigned i = 0; i < findings.count; i++)
        cr_assert_str_eq(findings.items[i].file, file->name, "%s: %s is accused", damage->what, findings.items[i].file);
    for (uint64_t at = damage->begin; at < damage->end; at++)
        if (at >= min_u64(damage->size, file->size) || damage->bytes[at] != file->bytes[at])
            cr_assert(byte_is_found(whole, damage, &findings, at), "%s: byte %" PRIu64 " is in no finding (%s)", damage->what, at,
                      findings.failure.message);
}

/* The index is for other programs: that it is there is seen to, what is in it no read of ours depends on. */
static bool is_read(const struct whole_file *file, const struct damage *damage)
{
    return strcmp(file->name, INDEX_NAME) != 0 || damage->size != file->size;
}

static void read_fails(const struct whole *whole, const struct sim_disk *disk, const struct damage *damage)
{
    const struct whole_file *file = &whole->files[damage->file];
    bool broken = damage->size != file->size || damage->begin < file->header_size;
    const struct whole_tensor *tensor = broken ? NULL : tensor_of(whole, damage->file, damage->begin);
    struct tspool_failure failure;
    int error = load(disk, PATH, false, &failure);

    if (!is_read(file, damage)) {
        cr_assert_eq(error, 0, "%s: %s", damage->what, failure.message);
        return;
    }
    cr_assert(error == -EBADMSG || (error == -EPROTO && manifest_is_named(&failure)), "%s: %d", damage->what, error);
    cr_assert(strstr(failure.path, file->name), "%s: %s is accused", damage->what, failure.path);
    if (!tensor)
        return;
    cr_assert_str_eq(failure.tensor, tensor->name, "%s: %s", damage->what, failure.message);
    cr_assert(failure.file_offset <= damage->begin && damage->begin - failure.file_offset < LEAF_BYTES, "%s: %s", damage->what,
              failure.message);
}

/* Frees the damage. False when it changed nothing. */
static bool damage_is_found(const struct whole *whole, struct damage *damage)
{
    bool changed = damage_measure(damage, whole);
    struct tspool_failure failure;
    struct sim_disk *disk;

    if (changed) {
        disk = sim_disk_clone(whole->disk);
        disk_put(disk, PATH, whole->files[damage->file].name, damage->bytes, damage->size);
        verify_finds(whole, disk, damage);
        read_fails(whole, disk, damage);
        load(disk, PATH, true, &failure); /* asked not to look: whatever comes of it, it ends */
        sim_disk_destroy(disk);
    }
    free(damage->bytes);
    return changed;
}

static void flipped_is_found(const struct whole *whole, unsigned file, uint64_t at, uint8_t bits)
{
    struct damage damage;

    damage_init(&damage, whole, file, whole->files[file].size);
    damage.bytes[at] ^= bits;
    snprintf(damage.what, sizeof(damage.what), "%s: byte %" PRIu64 " ^ %#x", whole->files[file].name, at, bits);
    cr_assert(damage_is_found(whole, &damage));
}

/* Each byte ---------------------------------------------------------------------------------------------------------------- */

Test(damage, of_nothing_is_not_reported)
{
    for (unsigned bulk = 0; bulk <= BULK; bulk += BULK) {
        struct tspool_failure failure;
        struct findings findings;
        struct whole whole;

        whole_init(&whole, 2, bulk);
        verify(whole.disk, PATH, &findings);
        cr_assert(findings.error == 0 && findings.count == 0, "%s", findings.failure.message);
        cr_assert_eq(load(whole.disk, PATH, false, &failure), 0, "%s", failure.message);
        whole_deinit(&whole);
    }
}

/* The files that describe the others: no byte of them is free. */
Test(damage, of_any_byte_of_a_small_file_is_found)
{
    struct whole whole;

    whole_init(&whole, 2, 0);
    for (unsigned file = 0; file < whole.file_count; file++)
        for (uint64_t at = 0; !whole.files[file].header_size && at < whole.files[file].size; at++)
            flipped_is_found(&whole, file, at, (uint8_t)(1u << (at * 5 % 8)));
    whole_deinit(&whole);
}

/* Every byte of length and JSON, and every place where something begins or ends. */
Test(damage, of_any_header_byte_and_any_edge_of_a_tensor_is_found)
{
    struct whole whole;

    whole_init(&whole, 2, 0);
    for (unsigned file = 0; file < whole.file_count; file++)
        for (uint64_t at = 0; at < whole.files[file].header_size; at += whole.files[file].bytes[at] == ' ' ? 13 : 1)
            flipped_is_found(&whole, file, at, (uint8_t)(1u << (at % 8)));
    for (unsigned i = 0; i < whole.tensor_count; i++) {
        const struct whole_tensor *tensor = &whole.tensors[i];
        const uint64_t edges[] = { 0, 1, tensor->bytes / 2, tensor->bytes - 2, tensor->bytes - 1 };

        for (unsigned edge = 0; tensor->bytes && edge < sizeof(edges) / sizeof(edges[0]); edge++)
            flipped_is_found(&whole, tensor->file, tensor->begin + edges[edge] % tensor->bytes, 0x80);
    }
    whole_deinit(&whole);
}

/* Leaves: the first, a middle one, the last and shorter one, each at its edges. */
Test(damage, of_any_leaf_is_found_and_no_other_leaf_accused)
{
    struct whole whole;

    whole_init(&whole, 3, BULK);
    for (unsigned i = 0; i < whole.tensor_count; i++)
        for (uint64_t leaf = 0; whole.tensors[i].bytes > LEAF_BYTES && leaf < whole.tensors[i].bytes; leaf += LEAF_BYTES) {
            uint64_t begin = whole.tensors[i].begin + leaf;
            uint64_t last = whole.tensors[i].begin + min_u64(leaf + LEAF_BYTES, whole.tensors[i].bytes) - 1;

            flipped_is_found(&whole, whole.tensors[i].file, begin, 1);
            flipped_is_found(&whole, whole.tensors[i].file, (begin + last) / 2, 2);
            flipped_is_found(&whole, whole.tensors[i].file, last, 4);
        }
    whole_deinit(&whole);
}

/* At random ------------------------------------------------------------------------------------------------------------------ */

static uint64_t draw(uint64_t *random, uint64_t bound)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return bound ? (*random >> 33) % bound : 0;
}

enum spoiling { FLIP, SCRAMBLE, ZERO_SECTORS, EXCHANGE_SECTORS, CUT, EXTEND, SHIFT, SPOILINGS };

static void spoil(struct damage *damage, const struct whole *whole, unsigned file, enum spoiling spoiling, uint64_t *random)
{
    static const char *const names[] = { "flipped", "scrambled", "zeroed", "exchanged", "cut", "extended", "shifted" };
    uint64_t size = whole->files[file].size, at = draw(random, size), length = 1 + draw(random, min_u64(size - at, 700));
    uint64_t sector = align_down(at, SIM_SECTOR_BYTES), sector_end = min_u64(sector + SIM_SECTOR_BYTES, size), other;
    uint8_t kept[SIM_SECTOR_BYTES];

    damage_init(damage, whole, file, spoiling == CUT ? at : spoiling == EXTEND ? size + length : size);
    snprintf(damage->what, sizeof(damage->what), "%s: %s at %" PRIu64, whole->files[file].name, names[spoiling], at);
    switch (spoiling) {
    case FLIP:
        damage->bytes[at] ^= (uint8_t)(1u << draw(random, 8));
        return;
    case SCRAMBLE:
        for (uint64_t i = at; i < at + length; i++)
            damage->bytes[i] = (uint8_t)draw(random, 256);
        return;
    case ZERO_SECTORS:
        memset(damage->bytes + sector, 0, sector_end - sector);
        return;
    case EXCHANGE_SECTORS:
        other = align_down(draw(random, size), SIM_SECTOR_BYTES);
        if (max_u64(other, sector) + SIM_SECTOR_BYTES > size)
            return;
        memcpy(kept, damage->bytes + sector, SIM_SECTOR_BYTES);
        memmove(damage->bytes + sector, damage->bytes + other, SIM_SECTOR_BYTES);
        memcpy(damage->bytes + other, kept, SIM_SECTOR_BYTES);
        return;
    case SHIFT: /* everything behind it one byte on, the last one lost */
        memmove(damage->bytes + at + 1, whole->files[file].bytes + at, size - at - 1);
        return;
    default:
        return;
    }
}

static unsigned random_damages_are_found(const struct whole *whole, uint64_t seed, unsigned count)
{
    uint64_t random = seed;
    unsigned changed = 0;

    for (unsigned i = 0; i < count; i++) {
        struct damage damage;

        spoil(&damage, whole, (unsigned)draw(&random, whole->file_count), (enum spoiling)draw(&random, SPOILINGS), &random);
        changed += damage_is_found(whole, &damage);
    }
    return changed;
}

Test(damage, at_random_is_found)
{
    static const uint64_t seeds[] = { 1, 2, 3, 5, 8 };
    unsigned changed = 0;

    for (unsigned i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
        struct whole whole;

        whole_init(&whole, seeds[i], 0);
        changed += random_damages_are_found(&whole, seeds[i], 600);
        whole_deinit(&whole);
    }
    cr_assert_geq(changed, 2500, "%u of 3000 changed anything", changed);
}

Test(damage, at_random_in_a_large_file_is_found)
{
    struct whole whole;

    whole_init(&whole, 13, BULK);
    cr_assert_geq(random_damages_are_found(&whole, 13, 40), 30);
    whole_deinit(&whole);
}

/* Files ---------------------------------------------------------------------------------------------------------------------- */

/* Two checkpoints of one model: each file of the one fits the other in name, size and form. */
Test(damage, by_files_of_another_checkpoint_is_found)
{
    struct whole ours, theirs;

    whole_init(&ours, 21, 0);
    whole_init(&theirs, 22, 0);
    for (unsigned set = 1; set + 1 < 1u << ours.file_count; set++) {
        struct sim_disk *disk = sim_disk_clone(ours.disk);
        unsigned foreign = 0, own = 0;
        struct tspool_failure failure;
        struct findings findings;

        for (unsigned file = 0; file < ours.file_count; file++) {
            const struct whole_file *other = &theirs.files[file_number(&theirs, ours.files[file].name)];
            bool same = other->size == ours.files[file].size && memcmp(other->bytes, ours.files[file].bytes, other->size) == 0;

            foreign += !same && (set >> file & 1);
            own += !same && !(set >> file & 1);
            if (set >> file & 1)
                disk_put(disk, PATH, other->name, other->bytes, other->size);
        }
        verify(disk, PATH, &findings);
        cr_assert_eq(findings.error, foreign && own ? -EBADMSG : 0, "set %#x: %d", set, findings.error);
        cr_assert_eq(findings.count > 0, foreign && own, "set %#x: nothing is named", set);
        cr_assert_eq(load(disk, PATH, false, &failure), foreign && own ? -EBADMSG : 0, "set %#x: %s", set, failure.message);
        sim_disk_destroy(disk);
    }
    whole_deinit(&ours);
    whole_deinit(&theirs);
}

static void file_is_missed(const struct whole *whole, unsigned number, bool directory)
{
    const struct whole_file *file = &whole->files[number];
    struct sim_disk *disk = sim_disk_clone(whole->disk);
    struct tspool_failure failure;
    struct findings findings;
    uint32_t parent, inode;
    int error;

    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, PATH, &parent), 0);
    cr_assert_eq(sim_disk_unlink(disk, parent, file->name, false), 0);
    if (directory)
        cr_assert_eq(sim_disk_make(disk, parent, file->name, true, &inode), 0);
    verify(disk, PATH, &findings);
    error = load(disk, PATH, false, &failure);
    cr_assert_lt(error, 0, "%s is not missed", file->name);
    cr_assert(strstr(failure.path, file->name), "%s", failure.message);
    if (directory && strcmp(file->name, MANIFEST_NAME) == 0) {
        cr_assert_lt(findings.error, 0); /* nothing can be said without it but that */
        cr_assert(manifest_is_named(&findings.failure), "%s", findings.failure.message);
    } else {
        cr_assert_eq(findings.error, -EBADMSG, "%s: %d", file->name, findings.error);
        cr_assert_eq(findings.count, 1);
        cr_assert_str_eq(findings.items[0].file, file->name);
        cr_assert_eq(findings.items[0].kind, directory ? TSPOOL_DAMAGE_FILE : TSPOOL_DAMAGE_MISSING);
    }
    sim_disk_destroy(disk);
}

Test(damage, by_a_missing_file_or_a_directory_in_its_place_is_found)
{
    struct whole whole;

    whole_init(&whole, 2, 0);
    for (unsigned file = 0; file < whole.file_count; file++)
        for (int directory = 0; directory < 2; directory++)
            file_is_missed(&whole, file, directory);
    whole_deinit(&whole);
}

/* A reader of whole folders, as DCP's, would take its tensors for ours. */
Test(damage, by_a_stray_shard_is_mentioned_and_is_none)
{
    struct sim_disk *disk;
    struct findings findings;
    uint32_t parent, inode;
    struct whole whole;

    whole_init(&whole, 2, 0);
    disk = sim_disk_clone(whole.disk);
    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, PATH, &parent), 0);
    cr_assert_eq(sim_disk_make(disk, parent, "model-00004-of-00004.safetensors", false, &inode), 0);
    cr_assert_eq(sim_disk_write(disk, inode, 0, whole.files[0].bytes, whole.files[0].size), (int64_t)whole.files[0].size);
    verify(disk, PATH, &findings);
    cr_assert_eq(findings.error, 0, "%s", findings.failure.message);
    cr_assert_eq(findings.count, 1);
    cr_assert_eq(findings.items[0].kind, TSPOOL_DAMAGE_FOREIGN);
    cr_assert_str_eq(findings.items[0].file, "model-00004-of-00004.safetensors");
    sim_disk_destroy(disk);
    whole_deinit(&whole);
}

/* Meant ---------------------------------------------------------------------------------------------------------------------- */

/* The JSON stays legal and every size right: [16,64] becomes [64,16]. Only the header's digest can tell. */
Test(damage, of_a_shape_that_keeps_its_size_is_found)
{
    struct whole whole;
    unsigned count = 0;

    whole_init(&whole, 2, 0);
    for (unsigned file = 0; file < whole.file_count; file++) {
        struct damage damage;
        char *shape;

        damage_init(&damage, &whole, file, whole.files[file].size);
        shape = whole.files[file].header_size ? strstr((char *)damage.bytes + 8, "[16,64]") : NULL;
        if (!shape) {
            free(damage.bytes);
            continue;
        }
        memcpy(shape, "[64,16]", 7);
        snprintf(damage.what, sizeof(damage.what), "%s: the shape of a tensor", whole.files[file].name);
        cr_assert(damage_is_found(&whole, &damage));
        count++;
    }
    cr_assert_eq(count, 1);
    whole_deinit(&whole);
}

/* "a" tied to "b" becomes "b" tied to "a", or a name of the index another file's: legal, plausible, wrong. */
Test(damage, of_exchanged_names_is_found)
{
    static const struct { const char *file, *from, *to; } changes[] = {
        { MANIFEST_NAME, "\"head.weight\":\"embed.weight\"", "\"embed.weight\":\"head.weight\"" },
        { MANIFEST_NAME, "model-00001-of-00003", "model-00002-of-00003" },
        { INDEX_NAME, "model-00001-of-00003", "model-00003-of-00003" },
    };
    struct whole whole;

    whole_init(&whole, 2, 0);
    for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        unsigned file = file_number(&whole, changes[i].file);
        struct damage damage;
        char *place;

        damage_init(&damage, &whole, file, whole.files[file].size);
        place = strstr((char *)damage.bytes, changes[i].from);
        cr_assert_not_null(place, "%s", (char *)damage.bytes);
        memcpy(place, changes[i].to, strlen(changes[i].to));
        snprintf(damage.what, sizeof(damage.what), "%s: %s", changes[i].file, changes[i].to);
        cr_assert(damage_is_found(&whole, &damage));
    }
    whole_deinit(&whole);
}
