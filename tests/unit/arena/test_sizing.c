/* Limits: too much read means the OOM killer, too little means a refusal without cause. */
#include <arena/sizing.h>

#include <criterion/criterion.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1ull << 20)

static char tree[] = "/tmp/tspool-sizing-XXXXXX";
static char meminfo[64], own_cgroups[64];
static const struct memory_places places = { meminfo, own_cgroups, tree };

static void file_make(const char *path, const char *text)
{
    char full[PATH_MAX];
    FILE *file;

    snprintf(full, sizeof full, "%s/%s", tree, path);
    for (char *slash = strchr(full + strlen(tree) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0777);
        *slash = '/';
    }
    file = fopen(full, "w");
    cr_assert(file);
    fputs(text, file);
    fclose(file);
}

static void tree_make(void)
{
    cr_assert(mkdtemp(tree));
    snprintf(meminfo, sizeof meminfo, "%s/meminfo", tree);
    snprintf(own_cgroups, sizeof own_cgroups, "%s/cgroup", tree);
    file_make("meminfo", "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n");
}

static int entry_remove(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    return remove(path);
}

static void tree_remove(void) { nftw(tree, entry_remove, 8, FTW_DEPTH | FTW_PHYS); }

static struct memory_room room_now(void)
{
    struct memory_room room;

    memory_room_read(&places, &room);
    return room;
}

TestSuite(sizing, .init = tree_make, .fini = tree_remove);

Test(sizing, without_a_cgroup_the_machine_decides)
{
    struct memory_room room = room_now();

    cr_expect_eq(room.bytes, 8192 * MIB);
    cr_expect_str_eq(room.limit, "MemAvailable");
}

Test(sizing, reclaimable_page_cache_of_the_cgroup_is_room)
{
    struct memory_room room;

    file_make("cgroup", "0::/job\n");
    file_make("job/memory.max", "1073741824\n");
    file_make("job/memory.current", "943718400\n");
    file_make("job/memory.stat", "anon 100\ninactive_file 734003200\nactive_file 5\n");
    room = room_now();
    cr_expect_eq(room.bytes, (1024 - 900 + 700) * MIB);
    cr_expect(strstr(room.limit, "job/memory.max"), "%s", room.limit);
}

Test(sizing, tightest_of_all_cgroups_above_decides)
{
    struct memory_room room;

    file_make("cgroup", "0::/slice/pod/container\n");
    file_make("slice/memory.max", "max\n");
    file_make("slice/pod/memory.max", "536870912\n");
    file_make("slice/pod/memory.current", "104857600\n");
    file_make("slice/pod/container/memory.max", "1073741824\n");
    file_make("slice/pod/container/memory.current", "104857600\n");
    room = room_now();
    cr_expect_eq(room.bytes, 412 * MIB);
    cr_expect(strstr(room.limit, "slice/pod/memory.max"), "%s", room.limit);
}

Test(sizing, throttling_limit_counts_too)
{
    file_make("cgroup", "0::/job\n");
    file_make("job/memory.max", "max\n");
    file_make("job/memory.high", "314572800\n");
    file_make("job/memory.current", "104857600\n");
    cr_expect_eq(room_now().bytes, 200 * MIB);
}

Test(sizing, version_one_hierarchy_is_read)
{
    struct memory_room room;

    file_make("cgroup", "9:name=systemd:/\n4:memory:/box\n0::/\n");
    file_make("memory/memory.limit_in_bytes", "9223372036854771712\n");
    file_make("memory/box/memory.limit_in_bytes", "1073741824\n");
    file_make("memory/box/memory.usage_in_bytes", "524288000\n");
    file_make("memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 104857600\n");
    room = room_now();
    cr_expect_eq(room.bytes, (1024 - 500 + 100) * MIB);
    cr_expect(strstr(room.limit, "memory.limit_in_bytes"), "%s", room.limit);
}

Test(sizing, path_as_the_host_sees_it_ends_at_the_containers_own)
{
    file_make("cgroup", "4:memory:/docker/0123456789abcdef\n");
    file_make("memory/memory.limit_in_bytes", "268435456\n");
    file_make("memory/memory.usage_in_bytes", "67108864\n");
    cr_expect_eq(room_now().bytes, 192 * MIB);
}

Test(sizing, usage_over_the_limit_leaves_nothing)
{
    file_make("cgroup", "0::/job\n");
    file_make("job/memory.max", "104857600\n");
    file_make("job/memory.current", "209715200\n");
    cr_expect_eq(room_now().bytes, 0);
}

Test(sizing, odd_files_set_no_limit)
{
    file_make("cgroup", "nonsense\n0:\n0::/job\n\n");
    file_make("job/memory.max", "lots\n");
    cr_expect_eq(room_now().bytes, 8192 * MIB);
}

Test(sizing, a_margin_is_left)
{
    struct memory_room small = { .bytes = 1600 * MIB }, large = { .bytes = 160000 * MIB };

    cr_expect_eq(memory_room_usable(&small), 1500 * MIB);
    cr_expect_eq(memory_room_usable(&large), (160000 - 512) * MIB);
}

Test(sizing, this_machine_tells_something)
{
    struct memory_room room;

    memory_room_read(NULL, &room);
    cr_expect_gt(room.bytes, 0);
    cr_expect_lt(room.bytes, UINT64_MAX);
}
