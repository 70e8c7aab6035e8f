/* mutants/run.c - is the suite any good? Each bug of base/mutant.h is planted, and the suite's own tests are run until one
 * notices. A bug that none notices fails this test, by name. Without a bug all of them must pass, which is tried first.
 *
 * Every test runs in a process of its own, so that one that crashes or hangs has noticed, too. Two mutants are tried at a
 * time; for each the tests of the suite that it names come first. What a test leaves in /tmp and what it started go with it.
 *
 * usage: mutants [MUTANT...]
 */
#include <base/mutant.h>
#include <criterion/criterion.h>

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 2
#define TESTS_MAX 512
#define SCRATCH_MAX 8
#define PATIENCE_S 60u        /* for a test that is expected to pass */
#define HUNG_LEAST_MS 10000u  /* with a bug: that, or ten times what it takes without */

enum mutant mutant_planted;
unsigned long checks_passed;

static const struct { const char *suite, *name, *sentence; } mutants[MUTANT_END] = {
#define MUTANT_TOLD(suite_, name_, sentence_) [MUTANT_##name_] = { #suite_, #name_, sentence_ },
    MUTANTS(MUTANT_TOLD)
};

/* What a process says of itself; in memory that all share. */
struct saying {
    char message[600];
    unsigned long checks;
    char scratch[SCRATCH_MAX][64];
    unsigned scratch_count;
};
struct verdict {
    bool skipped;
    const struct listed_test *killer;
    unsigned tests;             /* that were run, the killer included */
    unsigned long checks;       /* that passed before */
    char message[600];
};
static struct shared {
    unsigned next;
    uint64_t took_ms[TESTS_MAX]; /* by test, without a bug */
    struct verdict verdicts[MUTANT_END];
    struct saying sayings[WORKERS];
} *shared;
static struct saying *saying;   /* this process's */

/* The list ------------------------------------------------------------------------------------------------------------ */

static struct listed_suite *suites;
static struct listed_test *tests[TESTS_MAX];
static unsigned test_count;

void listed_suite_add(struct listed_suite *suite)
{
    suite->next = suites;
    suites = suite;
}

void listed_test_add(struct listed_test *test)
{
    if (test_count == TESTS_MAX)
        abort();
    tests[test_count++] = test;
}

static void suites_apply(void)
{
    for (const struct listed_suite *suite = suites; suite; suite = suite->next)
        for (unsigned i = 0; i < test_count; i++)
            if (strcmp(tests[i]->suite, suite->suite) == 0) {
                tests[i]->init = tests[i]->init ? tests[i]->init : suite->init;
                tests[i]->fini = tests[i]->fini ? tests[i]->fini : suite->fini;
            }
}

/* In a test's process --------------------------------------------------------------------------------------------------- */

void check_failed(const char *file, int line, const char *condition, const char *message, ...)
{
    size_t used = strlen(saying->message);
    va_list arguments;

    if (used == 0) {
        va_start(arguments, message);
        used = (size_t)vsnprintf(saying->message, sizeof(saying->message), message, arguments);
        va_end(arguments);
        if (used == 0)
            snprintf(saying->message, sizeof(saying->message), "%s:%d: %s", strrchr(file, '/') + 1, line, condition);
    }
    saying->checks = checks_passed;
    _exit(EXIT_FAILURE);
}

void test_skip(void) { _exit(EXIT_SUCCESS); }

char *__real_mkdtemp(char *template);
char *__wrap_mkdtemp(char *template);
char *__wrap_mkdtemp(char *template)
{
    char *made = __real_mkdtemp(template);

    if (made && saying->scratch_count < SCRATCH_MAX)
        snprintf(saying->scratch[saying->scratch_count++], sizeof(saying->scratch[0]), "%s", made);
    return made;
}

static void test_main(const struct listed_test *test, unsigned patience_ms)
{
    const struct itimerspec limit = { .it_value = { patience_ms / 1000, patience_ms % 1000 * 1000000 } };
    timer_t timer;

    setpgid(0, 0);
    if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
        _exit(EXIT_FAILURE);
    if (timer_create(CLOCK_MONOTONIC, NULL, &timer) < 0 || timer_settime(timer, 0, &limit, NULL) < 0) /* ends in SIGALRM */
        _exit(EXIT_FAILURE);
    if (test->init)
        test->init();
    test->run();
    if (test->fini)
        test->fini();
    saying->checks = checks_passed;
    _exit(EXIT_SUCCESS);
}

/* In a worker ------------------------------------------------------------------------------------------------------------ */

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *ftw) { return remove(path); }

static void status_describe(int status)
{
    if (saying->message[0])
        return;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        snprintf(saying->message, sizeof(saying->message), "it hangs");
    else if (WIFSIGNALED(status))
        snprintf(saying->message, sizeof(saying->message), "it dies of signal %d", WTERMSIG(status));
    else
        snprintf(saying->message, sizeof(saying->message), "it exits with %d", WEXITSTATUS(status));
}

/* True when it passes; else `saying` holds why not. */
static bool test_passes(const struct listed_test *test, unsigned patience_ms)
{
    int status = 0;
    pid_t child;

    memset(saying, 0, sizeof(*saying));
    child = fork();
    if (child < 0)
        abort();
    if (child == 0)
        test_main(test, patience_ms);
    setpgid(child, child); /* whoever comes first */
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    kill(-child, SIGKILL); /* what it started */
    for (unsigned i = 0; i < saying->scratch_count; i++)
        nftw(saying->scratch[i], remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS)
        return true;
    status_describe(status);
    return false;
}

static unsigned patience_of(unsigned test)
{
    return shared->took_ms[test] * 10 > HUNG_LEAST_MS ? (unsigned)shared->took_ms[test] * 10 : HUNG_LEAST_MS;
}

static bool mutant_dies(struct verdict *verdict, unsigned test)
{
    bool passed = test_passes(tests[test], patience_of(test));

    verdict->tests++;
    verdict->checks += saying->checks;
    if (passed)
        return false;
    verdict->killer = tests[test];
    memcpy(verdict->message, saying->message, sizeof(verdict->message));
    return true;
}

static void mutant_try(unsigned mutant)
{
    struct verdict *verdict = &shared->verdicts[mutant];

    mutant_planted = (enum mutant)mutant;
    for (int own = 1; own >= 0; own--)
        for (unsigned i = 0; i < test_count; i++)
            if ((strcmp(tests[i]->suite, mutants[mutant].suite) == 0) == own && mutant_dies(verdict, i))
                return;
}

static void worker_main(unsigned number)
{
    saying = &shared->sayings[number];
    for (unsigned mutant; (mutant = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED)) < MUTANT_END;) {
        if (!shared->verdicts[mutant].skipped)
            mutant_try(mutant);
    }
    _exit(EXIT_SUCCESS);
}

/* The whole ---------------------------------------------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void tests_try_alone(unsigned number)
{
    saying = &shared->sayings[number];
    for (unsigned i = number; i < test_count; i += WORKERS) {
        uint64_t began_ms = now_ms();

        if (!test_passes(tests[i], PATIENCE_S * 1000)) {
            printf("not ok - without any bug %s.%s fails: %s\n", tests[i]->suite, tests[i]->name, saying->message);
            fflush(stdout);
            _exit(EXIT_FAILURE);
        }
        shared->took_ms[i] = now_ms() - began_ms;
    }
    _exit(EXIT_SUCCESS);
}

/* Both workers; false when one of them failed. */
static bool workers_run(void (*work)(unsigned number))
{
    bool well = true;
    int status;

    fflush(stdout);
    for (unsigned i = 0; i < WORKERS; i++)
        if (fork() == 0)
            work(i);
    while (wait(&status) > 0)
        well &= WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
    return well;
}

static bool verdict_print(unsigned mutant)
{
    const struct verdict *verdict = &shared->verdicts[mutant];
    bool killed = verdict->killer != NULL;

    printf("%s %u - %s: %s\n", killed ? "ok" : "not ok", mutant + 1, mutants[mutant].name, mutants[mutant].sentence);
    if (killed)
        printf("#   killed by %s.%s (test %u, after %lu checks): %.*s\n", verdict->killer->suite, verdict->killer->name,
               verdict->tests, verdict->checks, (int)strcspn(verdict->message, "\n"), verdict->message);
    else
        printf("#   SURVIVES all %u tests\n", verdict->tests);
    return killed;
}

static void mutants_choose(int count, char **names)
{
    shared->next = MUTANT_NONE + 1;
    for (unsigned i = MUTANT_NONE + 1; i < MUTANT_END; i++) {
        shared->verdicts[i].skipped = count > 0;
        for (int n = 0; n < count; n++)
            if (strcmp(names[n], mutants[i].name) == 0)
                shared->verdicts[i].skipped = false;
    }
}

int main(int argc, char **argv)
{
    uint64_t began_ms = now_ms();
    bool well;

    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return EXIT_FAILURE;
    suites_apply();
    mutants_choose(argc - 1, argv + 1);
    printf("TAP version 13\n");
    well = workers_run(tests_try_alone);
    printf("%s 1 - without any bug all %u tests pass\n", well ? "ok" : "not ok", test_count);
    if (!well)
        return EXIT_FAILURE; /* nothing that fails now would say anything */
    if (!workers_run(worker_main))
        well = false;
    for (unsigned i = MUTANT_NONE + 1; i < MUTANT_END; i++)
        if (!shared->verdicts[i].skipped)
            well &= verdict_print(i);
    printf("1..%d\n# %d bugs, %.1f s\n", MUTANT_END, MUTANT_END - 1, (double)(now_ms() - began_ms) / 1000);
    return well ? EXIT_SUCCESS : EXIT_FAILURE;
}
