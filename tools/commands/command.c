/* commands/command.c - help, complaints, quantities, progress and interrupts of all commands. See command.h. */
#include "command.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PROGRESS_PAUSE_NS 100000000u

void command_help(const struct command *command, FILE *out)
{
    fprintf(out, "usage: tspool %s %s\n\n%s", command->name, command->arguments, command->description);
}

int command_run(const struct command *command, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            command_help(command, stdout);
            return EXIT_DONE;
        }
    return command->run(argc, argv);
}

int finish(int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    fprintf(stderr, "tspool: cannot write the output: %s\n", strerror(errno));
    return status ? status : EXIT_FAILED;
}

const char *writer_beside(void)
{
    static char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "tspool-writer");
    char *slash;

    if (length <= 0)
        return NULL;
    path[length] = '\0';
    slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, "tspool-writer");
    return access(path, X_OK) == 0 ? path : NULL;
}

static void complain_list(const char *command, const char *format, va_list arguments)
{
    char text[4096];

    vsnprintf(text, sizeof text, format, arguments);
    for (char *at = text; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            *at = '?';
    fprintf(stderr, "tspool %s: %s\n", command, text);
}

void complain(const char *command, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    complain_list(command, format, arguments);
    va_end(arguments);
}

int usage_error(const char *command, const char *format, ...)
{
    va_list arguments;

    if (format) {
        va_start(arguments, format);
        complain_list(command, format, arguments);
        va_end(arguments);
    }
    fprintf(stderr, "Try 'tspool %s --help'.\n", command);
    return EXIT_USAGE;
}

int fail_with(const char *command, const struct tspool_failure *failure)
{
    complain(command, "%s", failure->message);
    return EXIT_FAILED;
}

/* Quantities --------------------------------------------------------------------------------------------------------- */

struct text human_bytes(uint64_t bytes)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    double value = (double)bytes;
    unsigned unit = 0;
    struct text text;

    while (value >= 1023.5 && unit < 6) {
        value /= 1024;
        unit++;
    }
    snprintf(text.bytes, sizeof text.bytes, unit == 0 ? "%.0f %s" : value < 9.995 ? "%.2f %s" : value < 99.95 ? "%.1f %s"
             : "%.0f %s",
             value, units[unit]);
    return text;
}

struct text human_seconds(uint64_t nanoseconds)
{
    double seconds = (double)nanoseconds / 1e9;
    struct text text;

    snprintf(text.bytes, sizeof text.bytes, seconds < 10 ? "%.2f s" : "%.0f s", seconds);
    return text;
}

struct text shape_text(uint32_t rank, const uint64_t *shape)
{
    struct text text = { "scalar" };
    size_t length = 0;

    for (uint32_t d = 0; d < rank && length < sizeof text.bytes - 24; d++)
        length += (size_t)snprintf(text.bytes + length, sizeof text.bytes - length, "%s%" PRIu64, d ? "x" : "", shape[d]);
    return text;
}

struct text hex_text(const uint8_t *bytes, size_t size)
{
    struct text text = { "" };

    for (size_t i = 0; i < size && 2 * i + 2 < sizeof text.bytes; i++)
        snprintf(text.bytes + 2 * i, 3, "%02x", bytes[i]);
    return text;
}

bool size_parse(const char *text, uint64_t *bytes)
{
    static const char letters[] = "KMGT";
    char *end;
    unsigned long long value;
    const char *letter;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || errno) /* strtoull takes " -1" */
        return false;
    letter = *end > ' ' ? strchr(letters, *end & ~0x20) : NULL;
    if (letter) {
        unsigned shift = 10 * (unsigned)(letter - letters + 1);

        if (value > UINT64_MAX >> shift)
            return false;
        value <<= shift;
        end++;
        end += strcmp(end, "iB") == 0 ? 2 : strcmp(end, "B") == 0;
    }
    if (*end)
        return false;
    *bytes = value;
    return true;
}

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Progress ----------------------------------------------------------------------------------------------------------- */

void progress_init(struct progress *progress, bool wanted)
{
    *progress = (struct progress){ .wanted = wanted && isatty(STDERR_FILENO), .started_ns = now_ns() };
}

void progress_show(struct progress *progress, const char *what, uint64_t done, uint64_t total)
{
    uint64_t now = progress->wanted ? now_ns() : 0, elapsed = now - progress->started_ns;

    if (!progress->wanted || now < progress->next_ns)
        return;
    progress->next_ns = now + PROGRESS_PAUSE_NS;
    progress->shown = true;
    fprintf(stderr, "\r%s %3.0f %%  %s of %s  %s/s\033[K", what, total ? 100.0 * (double)done / (double)total : 100.0,
            human_bytes(done).bytes, human_bytes(total).bytes,
            human_bytes(elapsed ? (uint64_t)((double)done * 1e9 / (double)elapsed) : 0).bytes);
}

void progress_clear(struct progress *progress)
{
    if (progress->shown)
        fprintf(stderr, "\r\033[K");
    progress->shown = false;
}

/* Interrupts --------------------------------------------------------------------------------------------------------- */

#define INTERRUPT_APART_NS 500000000u

static volatile sig_atomic_t interrupt_seen;
static volatile uint64_t interrupt_seen_ns;

/* timeout(1) and shells signal a process and then its group: the same wish twice, at once. */
static void interrupt(int signal_number)
{
    if (interrupt_seen && now_ns() - interrupt_seen_ns > INTERRUPT_APART_NS)
        _exit(EXIT_INTERRUPTED);
    if (!interrupt_seen)
        interrupt_seen_ns = now_ns();
    interrupt_seen = signal_number;
}

void interrupts_catch(void)
{
    struct sigaction action = { .sa_handler = interrupt };

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

bool interrupted(void) { return interrupt_seen != 0; }
