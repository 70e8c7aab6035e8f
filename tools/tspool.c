/* tools/tspool.c - the command line: finds the command, runs it, answers --help and --version.
 *
 * Exit status everywhere: 0 done; 1 it failed, or what was looked at is damaged (one line on stderr names the thing);
 * 2 wrong usage. An interrupted command ends with 130.
 */
#include "commands/command.h"

#include <stdio.h>
#include <string.h>
#include <tspool/tspool.h>

static const struct command *const commands[] = {
    &command_copy, &command_ls, &command_verify, &command_diff, &command_latest, &command_publish, &command_gc,
    &command_doctor, &command_bench, &command_tune,
};
#define COMMAND_COUNT (sizeof commands / sizeof *commands)

static void help(FILE *out)
{
    fprintf(out, "usage: tspool COMMAND [OPTION]... [ARGUMENT]...\n\nCheckpoints that are whole or not there.\n\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-8s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\n'tspool COMMAND --help' tells more, 'man tspool' the rest. 'tspool --version' prints the version.\n");
}

static const struct command *command_find(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int help_command(int argc, char **argv)
{
    const struct command *command = argc > 1 ? command_find(argv[1]) : NULL;

    if (argc > 1 && !command) {
        fprintf(stderr, "tspool: there is no command '%s'; see 'tspool --help'\n", argv[1]);
        return EXIT_USAGE;
    }
    if (command)
        command_help(command, stdout);
    else
        help(stdout);
    return EXIT_DONE;
}

int main(int argc, char **argv)
{
    const struct command *command;

    if (argc < 2) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
        return finish(help_command(argc - 1, argv + 1));
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("tspool %s\n", tspool_version());
        return finish(EXIT_DONE);
    }
    command = command_find(argv[1]);
    if (!command) {
        fprintf(stderr, "tspool: there is no command '%s'; see 'tspool --help'\n", argv[1]);
        return EXIT_USAGE;
    }
    return finish(command_run(command, argc - 1, argv + 1));
}
