/* support/victim.c - a trainer for tests that kill, starve and freeze one: it saves tensors of known bytes, on command.
 *
 *     victim WRITER ROOT [KEY=VALUE...]
 *
 * Commands come on stdin, one a line; each answer is a line of JSON on stdout. Nobody hangs in here: every wait has an end.
 * Everything of its own is static or mapped, so that an allocation that fails was the library's.
 *
 *     open | save NAME STEP | begin NAME STEP | fill | wait LEVEL MILLISECONDS | finish | run FIRST COUNT | fork | look |
 *     close MILLISECONDS
 *
 * `save` stages now and waits for every level, `begin` leaves that to `fill`, `wait` and `finish`, `run` saves for ever.
 * Word i of tensor t in the checkpoint of step s is s * 1000003 + t * 8191 + i.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <tspool/tspool.h>
#include <unistd.h>

#define PATIENCE_NS ((uint64_t)60 * 1000000000)
#define TENSORS_MAX 256
#define FDS_MAX 1024

static struct tspool_options options = TSPOOL_OPTIONS_INIT;
static struct { uint64_t tensors, bytes, reap, ignore, keep; } settings = { 3, 100008, 0, 0, 0 };
static uint64_t *words[TENSORS_MAX];
static struct tspool *spool;
static struct tspool_save *save;
static char save_name[200];

/* Answers ------------------------------------------------------------------------------------------------------------ */

static char line[16384];
static size_t line_size;

static void put(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void put(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    line_size += (size_t)vsnprintf(line + line_size, sizeof(line) - line_size, format, arguments);
    va_end(arguments);
}

/* Texts of the library carry no control bytes. */
static void put_text(const char *key, const char *text)
{
    put(", \"%s\": \"", key);
    for (; *text; text++)
        put(*text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    put("\"");
}

static void say_begin(const char *event)
{
    line_size = 0;
    put("{\"event\": \"%s\"", event);
}

static void say_end(void)
{
    put("}\n");
    if (write(STDOUT_FILENO, line, line_size) != (ssize_t)line_size)
        _exit(3);
}

static void put_failure(const struct tspool_failure *failure)
{
    put(", \"error\": %d, \"file_offset\": %lld", failure->error, (long long)failure->file_offset);
    put_text("stage", tspool_stage_name(failure->stage));
    put_text("operation", failure->operation);
    put_text("path", failure->path);
    put_text("tensor", failure->tensor);
    put_text("cause", failure->cause);
    put_text("message", failure->message);
}

static void say_failure(const char *event, const struct tspool_failure *failure)
{
    say_begin(event);
    put_text("name", save_name);
    put_failure(failure);
    say_end();
}

static void say_level(enum tspool_level level)
{
    static const char *const names[] = { "planned", "staged", "written", "durable", "published" };
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    tspool_save_result(save, &result);
    say_begin(names[level]);
    put_text("name", save_name);
    put(", \"writer_pid\": %d, \"attempts\": %u, \"direct\": %d", tspool_writer_pid(spool), result.attempts, result.direct);
    put_text("backend", result.backend);
    put_text("io_note", result.io_note);
    say_end();
}

static void say_end_of_save(void)
{
    static const char *const names[] = { "pending", "published", "durable", "failed", "unknown" };
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    tspool_save_result(save, &result);
    say_begin(names[result.outcome]);
    put_text("name", save_name);
    put(", \"level\": %u, \"attempts\": %u, \"writer_pid\": %d", result.level, result.attempts, tspool_writer_pid(spool));
    put_text("retry_cause", result.retry_cause);
    put(", \"removed\": %llu, \"keep_error\": %d", (unsigned long long)result.removed, result.keep_error);
    put_text("keep_left", result.keep_left);
    put_failure(&result.failure);
    say_end();
}

/* Saves -------------------------------------------------------------------------------------------------------------- */

static void words_fill(uint64_t step)
{
    for (uint64_t tensor = 0; tensor < settings.tensors; tensor++)
        for (uint64_t i = 0; i < settings.bytes / sizeof(uint64_t); i++)
            words[tensor][i] = step * 1000003 + tensor * 8191 + i;
}

static int tensors_add(struct tspool_failure *failure)
{
    const uint64_t shape[] = { settings.bytes / sizeof(uint64_t) };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    char name[24];
    int error = 0;

    tensor.name = name;
    tensor.dtype = TSPOOL_U64;
    tensor.rank = 1;
    tensor.shape = shape;
    for (uint64_t i = 0; i < settings.tensors && error == 0; i++) {
        snprintf(name, sizeof(name), "t%llu", (unsigned long long)i);
        tensor.data = words[i];
        error = tspool_save_add(save, &tensor, failure);
    }
    return error;
}

static void save_drop(void)
{
    tspool_save_free(save);
    save = NULL;
}

/* True when it is under way. */
static bool save_start(const char *name, uint64_t step, enum tspool_staging staging)
{
    struct tspool_save_options save_options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char step_text[24];
    int error;

    save_options.staging = staging;
    snprintf(save_name, sizeof(save_name), "%s", name);
    snprintf(step_text, sizeof(step_text), "%llu", (unsigned long long)step);
    words_fill(step);
    error = tspool_save_begin(spool, name, &save_options, &save, &failure);
    if (error == 0)
        error = tspool_save_metadata(save, "step", step_text, &failure);
    if (error == 0)
        error = tensors_add(&failure);
    if (error == 0)
        error = tspool_save_submit(save, &failure);
    if (error == 0)
        return true;
    if (failure.error != -error)
        say_begin("contradiction"), put(", \"returned\": %d", error), put_failure(&failure), say_end();
    else
        say_failure("refused", &failure);
    save_drop();
    return false;
}

/* From the level after `level` on, each as it is reached. */
static void save_finish(enum tspool_level level)
{
    int error = 0;

    for (; error == 0 && level <= TSPOOL_PUBLISHED; level++) {
        error = tspool_save_wait(save, level, PATIENCE_NS);
        if (error == 0 && level < TSPOOL_PUBLISHED)
            say_level(level);
    }
    say_end_of_save();
    save_drop();
}

static bool spans_fill(void)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    int got;

    while ((got = tspool_save_next_span(save, &span, PATIENCE_NS)) == 1) {
        memcpy(span.data, (const char *)words[span.tensor] + span.tensor_offset, span.bytes);
        if (tspool_save_filled(save, &span) < 0)
            return false;
    }
    return got == 0;
}

/* Commands ----------------------------------------------------------------------------------------------------------- */

static void run_open(void)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    save_name[0] = '\0';
    error = tspool_open(&options, &spool, &failure);
    if (error < 0) {
        say_failure("refused", &failure);
        return;
    }
    say_begin("open");
    put(", \"writer_pid\": %d", tspool_writer_pid(spool));
    say_end();
}

static void run_save(const char *name, uint64_t step)
{
    say_begin("asked");
    put_text("name", name);
    say_end();
    if (save_start(name, step, TSPOOL_STAGING_NOW)) {
        say_level(0);
        save_finish(TSPOOL_STAGED);
    }
}

static void run_begin(const char *name, uint64_t step)
{
    if (save_start(name, step, TSPOOL_STAGING_CALLER))
        say_level(0);
}

static void run_fill(void)
{
    if (spans_fill() && tspool_save_wait(save, TSPOOL_STAGED, PATIENCE_NS) == 0) {
        say_level(TSPOOL_STAGED);
        return;
    }
    tspool_save_wait(save, TSPOOL_PUBLISHED, PATIENCE_NS);
    say_end_of_save();
    save_drop();
}

static void run_wait(unsigned level, uint64_t milliseconds)
{
    int error = tspool_save_wait(save, (enum tspool_level)level, milliseconds * 1000000);

    if (error == -ETIMEDOUT) {
        say_begin("timeout");
        say_end();
    } else if (error == 0 && level < TSPOOL_PUBLISHED) {
        say_level((enum tspool_level)level);
    } else {
        say_end_of_save();
        save_drop();
    }
}

static void run_steps(uint64_t first, uint64_t count)
{
    char name[32];

    for (uint64_t step = first; step < first + count; step++) {
        snprintf(name, sizeof(name), "step-%06llu", (unsigned long long)step);
        run_save(name, step);
    }
}

/* As a data loader does: it inherits every descriptor that is not closed on exec, the channel with them. */
static void run_fork(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        alarm(PATIENCE_NS / 1000000000);
        for (;;)
            pause();
    }
    say_begin("forked");
    put(", \"pid\": %d", (int)pid);
    say_end();
}

static void run_look(void)
{
    siginfo_t info = { 0 };
    unsigned fds = 0;

    for (int fd = 0; fd < FDS_MAX; fd++)
        fds += fcntl(fd, F_GETFD) >= 0;
    say_begin("look");
    put(", \"fds\": %u, \"children\": %d", fds, waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0);
    say_end();
}

static void run_close(uint64_t milliseconds)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    int error = tspool_close(spool, milliseconds * 1000000, &report);

    spool = NULL;
    say_begin("closed");
    put(", \"returned\": %d, \"published\": %u, \"failed\": %u, \"left\": %u, \"aborted\": %u, \"writer_pid\": %d", error,
        report.published, report.failed, report.left, report.aborted, report.writer_pid);
    say_end();
}

static void obey(char *command)
{
    char name[200] = "";
    unsigned long long first = 0, second = 0;

    if (strcmp(command, "open") == 0)
        run_open();
    else if (sscanf(command, "save %199s %llu", name, &first) == 2)
        run_save(name, first);
    else if (sscanf(command, "begin %199s %llu", name, &first) == 2)
        run_begin(name, first);
    else if (strcmp(command, "fill") == 0)
        run_fill();
    else if (sscanf(command, "wait %llu %llu", &first, &second) == 2)
        run_wait((unsigned)first, second);
    else if (sscanf(command, "finish %llu", &first) == 1)
        save_finish((enum tspool_level)first);
    else if (sscanf(command, "run %llu %llu", &first, &second) == 2)
        run_steps(first, second);
    else if (strcmp(command, "fork") == 0)
        run_fork();
    else if (strcmp(command, "look") == 0)
        run_look();
    else if (sscanf(command, "close %llu", &first) == 1)
        run_close(first);
    else
        _exit(2);
}

/* False at the end of the commands. */
static bool command_read(char *command, size_t capacity)
{
    size_t size = 0;

    while (size < capacity - 1 && read(STDIN_FILENO, command + size, 1) == 1) {
        if (command[size] == '\n') {
            command[size] = '\0';
            return true;
        }
        size++;
    }
    return false;
}

/* Habits of applications --------------------------------------------------------------------------------------------- */

static void *reap_all(void *ignored)
{
    for (;;)
        if (waitpid(-1, NULL, 0) < 0)
            poll(NULL, 0, 1); /* no child for the moment */
    return ignored;
}

static void habits_take(void)
{
    pthread_t reaper;

    if (settings.ignore)
        signal(SIGCHLD, SIG_IGN);
    if (settings.reap && pthread_create(&reaper, NULL, reap_all, NULL) != 0)
        _exit(2);
}

static void setting_take(const char *text)
{
    static const struct { const char *key; uint64_t *value, unit; } numbers[] = {
        { "tensors", &settings.tensors, 1 }, { "bytes", &settings.bytes, 1 }, { "reap", &settings.reap, 1 },
        { "ignore", &settings.ignore, 1 }, { "arena", &options.arena_bytes, 1 }, { "rate", &options.bytes_per_second, 1 },
        { "deadline_ms", &options.deadline_ns, 1000000 }, { "heartbeat_ms", &options.heartbeat_ns, 1000000 },
        { "start_ms", &options.start_timeout_ns, 1000000 }, { "shard", &options.shard_bytes, 1 },
        { "keep", &settings.keep, 1 },
    };
    const char *value = strchr(text, '=');
    size_t key_size = value ? (size_t)(value - text) : 0;

    for (size_t i = 0; value && i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (strlen(numbers[i].key) == key_size && memcmp(text, numbers[i].key, key_size) == 0) {
            *numbers[i].value = strtoull(value + 1, NULL, 10) * numbers[i].unit;
            return;
        }
    if (strcmp(text, "io=uring") == 0)
        options.io = TSPOOL_IO_URING;
    else if (strcmp(text, "io=threads") == 0)
        options.io = TSPOOL_IO_THREADS;
    else if (strcmp(text, "buffered=1") == 0)
        options.buffered = 1;
    else
        _exit(2);
}

int main(int argc, char **argv)
{
    char command[256];

    if (argc < 3)
        return 2;
    options.writer_path = argv[1];
    options.root = argv[2];
    options.arena_bytes = (uint64_t)32 << 20;
    for (int i = 3; i < argc; i++)
        setting_take(argv[i]);
    options.keep = (uint32_t)settings.keep;
    for (uint64_t i = 0; i < settings.tensors; i++) {
        words[i] = mmap(NULL, settings.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (words[i] == MAP_FAILED)
            return 2;
    }
    habits_take();
    while (command_read(command, sizeof(command)))
        obey(command);
    return 0;
}
