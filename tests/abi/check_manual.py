"""The manual, the completions and the tool tell the same: options, functions, members; and the manual's example runs.

usage: check_manual.py SOURCE_DIR TSPOOL WRITER LIBTSPOOL CC

What --help lists is the truth that pages and completions are held against; the headers are the truth for tspool(7).
"""
import glob
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

source, tool, writer, library, cc = sys.argv[1:6]
man, bash_file, zsh_file = f"{source}/docs/man", f"{source}/tools/completion/tspool.bash", f"{source}/tools/completion/_tspool"
include = f"{source}/include"
counts = {"ok": 0, "FAIL": 0, "skip": 0}


def tell(verdict, what, detail=""):
    counts[verdict] += 1
    print(f"{verdict:4} {what}" + (f": {detail}" if detail and verdict != "ok" else ""))


def check(what, good, detail=""):
    tell("ok" if good else "FAIL", what, detail)


def same(what, left, right, left_name, right_name):
    left, right = set(left), set(right)
    check(what, left == right, "; ".join(f"only in {name}: {' '.join(sorted(rest))}" for name, rest in
                                         ((left_name, left - right), (right_name, right - left)) if rest))


def run(command, **options):
    return subprocess.run(command, text=True, capture_output=True, timeout=120, **options)


def page_text(name):
    """The page's source, without mdoc's escapes and comments."""
    try:
        text = open(f"{man}/{name}").read()
    except OSError:
        return ""
    text = re.sub(r'^\.\\".*\n', "", text, flags=re.M)
    return text.replace(r"\&", "").replace(r"\-", "-").replace(r"\(dq", '"').replace(r"\e", "\\")


def help_text(*command):
    return run([tool, *command, "--help"]).stdout


# Options -------------------------------------------------------------------------------------------------------------

def help_options(text):
    """Options that begin a line of the help: "  -q, --quiet  ..." gives -q and --quiet."""
    lines = re.findall(r"^  (-[^ ,]+(?:, -[^ ,]+)*)", text, flags=re.M)
    return {option for line in lines for option in line.split(", ")}


def page_options(text):
    """Options of the page's lists: ".It Fl q , -quiet" gives -q and --quiet."""
    found = set()
    for line in re.findall(r"^\.It Fl (.*)$", text, flags=re.M):
        words = re.sub(r"\b(Ar|Cm|Ns)\b.*", "", line).split()
        found |= {"-" + word for word in words if word not in (",", "Fl")}
    return found


def usage_options(text):
    """Options named in the first line of the help, which may leave them to the list below it."""
    return set(re.findall(r"--[\w-]+", text.split("\n\n")[0]))


def synopsis_options(text, help_page):
    """Options of the synopsis; one that has a letter counts under both names."""
    part = text.split(".Sh SYNOPSIS")[-1].split(".Sh ")[0]
    long_names = dict(re.findall(r"^  (-\w), (--[\w-]+)", help_page, flags=re.M))
    found = {"-" + word for word in re.findall(r"\bFl (\S+)", part)}
    return found | {long_names[option] for option in found if option in long_names}


commands = re.findall(r"^  (\w+) +\S", help_text(), flags=re.M)
options = {command: help_options(help_text(command)) for command in commands}
check("tspool --help lists commands", len(commands) > 0)
common = page_options(page_text("tspool.1"))
for command in commands:
    page = page_text(f"tspool-{command}.1")
    synopsis = synopsis_options(page, help_text(command))
    check(f"tspool-{command}.1 exists", page)
    same(f"tspool-{command}.1 has the options of --help", options[command], page_options(page) | (common & options[command]),
         "--help", "the page")
    check(f"tspool-{command}.1: the synopsis has real options", synopsis <= options[command],
          " ".join(sorted(synopsis - options[command])))
    check(f"tspool-{command}.1: the synopsis has what the usage line has",
          usage_options(help_text(command)) <= synopsis, " ".join(sorted(usage_options(help_text(command)) - synopsis)))
    check(f"tspool-{command}.1 has an exit status", ".Sh EXIT STATUS" in page)
    check(f"tspool.1 refers to tspool-{command}", f"Xr tspool-{command} 1" in page_text("tspool.1"))
same("tspool.1 speaks of no other command", re.findall(r"Xr tspool-(\w+) 1", page_text("tspool.1")), commands,
     "the page", "--help")

# References and lint -------------------------------------------------------------------------------------------------

pages = sorted(os.path.basename(path) for path in glob.glob(f"{man}/*.[0-9]"))
for page in pages:
    for name, section in re.findall(r"\bXr (tspool\S*) (\d)", page_text(page)):
        if f"{name}.{section}" not in pages:
            tell("FAIL", f"{page} refers to {name}({section})", "there is no such page")
    if not shutil.which("mandoc"):
        tell("skip", f"{page} is clean for mandoc", "mandoc is not installed")
        continue
    lint = run(["mandoc", "-T", "lint", "-W", "warning", f"{man}/{page}"])
    check(f"{page} is clean for mandoc", lint.returncode == 0, lint.stdout + lint.stderr)

# JSON ----------------------------------------------------------------------------------------------------------------

SPECIMENS = {}


def safetensors_write(path, names):
    header = {name: {"dtype": "F32", "shape": [4], "data_offsets": [16 * i, 16 * i + 16]} for i, name in enumerate(names)}
    text = json.dumps({"__metadata__": {"step": "1"}, **header}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(16 * len(names)))


def json_lines(*arguments):
    output = run([tool, *arguments]).stdout
    return [json.loads(line) for line in output.splitlines()]


def specimens_make(folder):
    """Every kind of line that can be had quickly: what goes well, what is refused, what is damaged."""
    root, first, second = f"{folder}/root", f"{folder}/a.safetensors", f"{folder}/b.safetensors"
    os.mkdir(root)
    safetensors_write(first, ["x", "y"])
    safetensors_write(second, ["y", "z"])
    SPECIMENS["copy"] = json_lines("copy", "--json", first, f"{root}/one") + json_lines("copy", "--json", first, f"{root}/one")
    json_lines("copy", "--json", second, f"{root}/two")
    SPECIMENS["ls"] = json_lines("ls", "--json", f"{root}/one")
    SPECIMENS["diff"] = json_lines("diff", "--json", f"{root}/one", f"{root}/two")
    SPECIMENS["latest"] = json_lines("latest", "--json", root)
    SPECIMENS["doctor"] = json_lines("doctor", "--json", root)
    save_id = SPECIMENS["latest"][0]["save_id"]
    SPECIMENS["publish"] = json_lines("publish", "--json", "--save-id", save_id, f"{root}/" + os.path.basename(
        SPECIMENS["latest"][0]["path"]))
    SPECIMENS["publish"] += json_lines("publish", "--json", "--save-id", save_id, "--world-size", "2", f"{root}/three")
    SPECIMENS["tune"] = json_lines("tune", "--json", "--size", "4m", "--rounds", "1", "--writer", writer, "-o",
                                   f"{folder}/settings.json", folder)
    report = run([tool, "bench", "--json", "--shape=1x4k", "--writer", writer, "--directory", folder]).stdout
    SPECIMENS["bench"] = [json.loads(report)] # one object of many lines
    SPECIMENS["verify"] = json_lines("verify", "--json", f"{root}/one")
    SPECIMENS["gc"] = json_lines("gc", "--json", "--keep", "1", "--dry-run", root)
    with open(f"{root}/two/model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    SPECIMENS["verify"] += json_lines("verify", "--json", f"{root}/two")


def page_examples(text):
    """Lines of JSON that the page shows; a line may go on after a backslash at its end."""
    lines = re.sub(r"\\\n", "", text).splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"')]


with tempfile.TemporaryDirectory(prefix="tspool-manual-") as folder:
    specimens_make(folder)
for command in commands:
    text, lines = page_text(f"tspool-{command}.1"), SPECIMENS.get(command, [])
    check(f"tspool {command} --json prints objects", lines)
    for example in page_examples(text):
        check(f"tspool-{command}.1 shows a line as the tool prints it", list(example) in [list(line) for line in lines],
              json.dumps(example))
    values = {line[key] for line in lines for key in ("event", "type", "verdict") if isinstance(line.get(key), str)}
    missing = {value for value in values if not re.search(rf"\b{value}\b", text)}
    check(f"tspool-{command}.1 knows the events that were printed", not missing, " ".join(sorted(missing)))

# Completion ----------------------------------------------------------------------------------------------------------

def bash_complete(*words, cwd=None):
    """What bash offers for the last word, as it would call the function."""
    script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
              'COMP_TYPE=9 COMP_KEY=9; set -- $(complete -p tspool); while [ "$1" != -F ]; do shift; done\n'
              '"$2" tspool "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; printf "%s\\n" "${COMPREPLY[@]}"')
    result = run(["bash", "--norc", "-c", script, "bash", bash_file, "tspool", *words], cwd=cwd)
    return {line.rstrip(" /") for line in result.stdout.splitlines() if line.strip()}


def bash_check():
    check("bash: every command completes", set(commands) <= bash_complete(""))
    for command in commands:
        check(f"bash: {command[:-1]}<Tab> gives {command}", command in bash_complete(command[:-1]))
        same(f"bash: tspool {command} -<Tab> gives its options", {o for o in options[command] if o.startswith("--")},
             bash_complete(command, "--"), "--help", "bash")
    same("bash: --io has its kinds", {"auto", "uring", "threads"}, bash_complete("copy", "--io", ""), "the tool", "bash")
    with tempfile.TemporaryDirectory(prefix="tspool-manual-") as folder:
        os.mkdir(f"{folder}/a run")
        for name in ("a.safetensors", "a.txt"):
            open(f"{folder}/{name}", "w").close()
        checkpoints, directories = {"a run", "a.safetensors"}, {"a run"}
        for command in commands:
            wanted = (directories if command in ("latest", "publish", "gc", "doctor", "tune") else
                      checkpoints | {"a.txt"} if command == "bench" else checkpoints)
            same(f"bash: tspool {command} takes what it reads", wanted, bash_complete(command, "a", cwd=folder),
                 "the folder", "bash")


ZSH_STUB = """
compdef() { : }; _describe() { print -rl -- ${(P)2} ${(P)2%%:*}; }; _directories() { : }; _files() { : }; _alternative() { : }
_arguments() { print -rl -- "$@"; if [[ $1 == -C ]]; then
    if (( CURRENT == 2 )); then state=command; else state=argument; shift words; (( CURRENT-- )); fi; fi; }
words=(tspool "$2"); CURRENT=$3; (( CURRENT > 2 )) && words+=("")
source "$1"
"""


def zsh_check():
    """The file's grammar, and what it would hand to zsh's own _arguments."""
    if not shutil.which("zsh"):
        tell("skip", "zsh: syntax and options", "zsh is not installed")
        return
    syntax = run(["zsh", "-n", zsh_file])
    check("zsh: the syntax", syntax.returncode == 0, syntax.stderr)
    offered = run(["zsh", "-f", "-c", ZSH_STUB, "zsh", zsh_file, "", "2"]).stdout.splitlines()
    check("zsh: every command completes", set(commands) <= set(offered), " ".join(set(commands) - set(offered)))
    top = set(run(["zsh", "-f", "-c", ZSH_STUB, "zsh", zsh_file, "", "2"]).stdout.splitlines())
    for command in commands:
        lines = run(["zsh", "-f", "-c", ZSH_STUB, "zsh", zsh_file, command, "3"]).stdout.splitlines()
        found = {re.sub(r"^\([^)]*\)", "", line).split("[")[0].rstrip("=+") for line in lines if line not in top}
        same(f"zsh: tspool {command} has its options", options[command], {word for word in found if word.startswith("-")},
             "--help", "zsh")


bash_check()
zsh_check()

# tspool(7) -----------------------------------------------------------------------------------------------------------

def headers():
    return "".join(re.sub(r"/\*.*?\*/", "", open(path).read(), flags=re.S) for path in sorted(glob.glob(f"{include}/tspool/*.h")))


def members(text, name):
    """The members of a struct of options, without its size."""
    body = re.search(rf"struct {name} {{(.*?)}};", text, flags=re.S).group(1)
    return {re.search(r"(\w+)$", declarator.strip()).group(1) for line in body.split(";") if line.strip()
            for declarator in line.split(",")} - {"size"}


def overview_check(text, declared):
    functions = set(re.findall(r"\b(tspool_\w+)\s*\(", re.sub(r"typedef[^;]*;", "", declared)))
    same("tspool.7 speaks of every function, and of no other", functions, re.findall(r"\bFn (tspool_\w+)", text),
         "the headers", "the page")
    for name in ("tspool_options", "tspool_save_options", "tspool_checkpoint_options", "tspool_stream_options"):
        part = text.split(f".Ss struct {name}\n")[-1].split(".Ss ")[0].split(".Sh ")[0]
        listed = {word for line in re.findall(r"^\.It Va (.*)$", part, flags=re.M) for word in line.split() if word != ","}
        same(f"tspool.7 lists the members of struct {name}", members(declared, name), listed, "the header", "the page")
    constants = set(re.findall(r"\b(TSPOOL_[A-Z0-9_]+)\b", text)) - {"TSPOOL_OPTIONS_INIT"}
    check("tspool.7 names real constants", all(re.search(rf"\b{name}\b", declared) for name in constants),
          " ".join(name for name in constants if not re.search(rf"\b{name}\b", declared)))


def example_take(text):
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", text, flags=re.S | re.M)
    return next((block for block in blocks if "int main(" in block), "")


def example_check(text):
    """The example compiles, saves, and resumes where it left off: with the built library and writer laid out as installed."""
    program = example_take(text)
    check("tspool.7 has an example program", program)
    if re.search(r"__[at]san_init", run(["nm", "-D", library]).stdout):
        tell("skip", "tspool.7: the example runs", "the library was built with a sanitizer, the example would be without")
        return
    with tempfile.TemporaryDirectory(prefix="tspool-manual-") as folder:
        lib, libexec, root = f"{folder}/lib", f"{folder}/libexec/tspool", f"{folder}/root"
        for directory in (lib, libexec, root):
            os.makedirs(directory)
        shutil.copy(writer, libexec)
        shutil.copy(library, f"{lib}/libtspool.so.0")
        open(f"{folder}/trainer.c", "w").write(program)
        compiled = run([cc, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", include, f"{folder}/trainer.c",
                        "-o", f"{folder}/trainer", f"{lib}/libtspool.so.0"])
        check("tspool.7: the example compiles", compiled.returncode == 0, compiled.stderr)
        if compiled.returncode:
            return
        environment = dict(os.environ, LD_LIBRARY_PATH=lib)
        first, second = (run([f"{folder}/trainer", root], env=environment) for _ in range(2))
        check("tspool.7: the example saves", first.returncode == 0 and len(os.listdir(root)) > 0, first.stderr)
        check("tspool.7: the example resumes", second.returncode == 0 and "from step 30" in second.stdout,
              second.stdout + second.stderr)
        verified = run([tool, "verify", *sorted(glob.glob(f"{root}/*"))])
        check("tspool.7: the example's checkpoints are whole", verified.returncode == 0, verified.stderr)


overview_check(page_text("tspool.7"), headers())
example_check(page_text("tspool.7"))
print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
sys.exit(counts["FAIL"] != 0)
