"""What `meson install` lays down is enough: a program found through pkg-config compiles, links by soname, and saves with the
installed writer, which it finds by itself.

usage: check_install.py BUILD_DIR CC
"""
import glob
import os
import subprocess
import sys
import tempfile

build, cc = sys.argv[1:3]
PROGRAM = r"""
#include <stdio.h>
#include <tspool/tspool.h>

int main(int argc, char **argv)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    float value = 42;
    struct tspool *spool;
    struct tspool_save *save;

    options.root = argv[1];
    options.arena_bytes = 32u << 20;
    tensor.name = "answer";
    tensor.dtype = TSPOOL_F32;
    tensor.data = &value;
    if (tspool_open(&options, &spool, &failure) < 0 || tspool_save_begin(spool, "first", NULL, &save, &failure) < 0 ||
        tspool_save_add(save, &tensor, &failure) < 0 || tspool_save_submit(save, &failure) < 0 ||
        tspool_save_wait(save, TSPOOL_PUBLISHED, UINT64_MAX) < 0)
        return fprintf(stderr, "%s\n", failure.message), 1;
    tspool_save_free(save);
    return tspool_close(spool, UINT64_MAX, NULL) < 0;
}
"""
passed = failed = 0


def check(what, good, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print("ok  " if good else "FAIL", what, "" if good else detail)


def run(command, **options):
    return subprocess.run(command, text=True, capture_output=True, **options)


def one(pattern):
    found = glob.glob(pattern, recursive=True)
    return found[0] if found else ""


with tempfile.TemporaryDirectory(prefix="tspool-install-") as folder:
    stage, root = f"{folder}/stage", f"{folder}/root"
    os.mkdir(root)
    install = run(["meson", "install", "-C", build, "--no-rebuild", "--destdir", stage, "--quiet"])
    check("meson install", install.returncode == 0, install.stderr + install.stdout)
    library = one(f"{stage}/**/libtspool.so")
    soname = run(["sh", "-c", f"objdump -p {library} | awk '/SONAME/ {{print $2}}'"]).stdout.strip()
    check("soname is libtspool.so.0", soname == "libtspool.so.0", soname)
    check("the writer is in libexec", one(f"{stage}/**/libexec/tspool/tspool-writer"))
    check("the tool is in bin", one(f"{stage}/**/bin/tspool"))
    for page in ("man1/tspool.1", "man7/tspool.7", "man8/tspool-writer.8", "man1/tspool-copy.1"):
        check(f"man page {page}", one(f"{stage}/**/{page}*"))
    environment = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(one(f"{stage}/**/tspool.pc")), PKG_CONFIG_SYSROOT_DIR=stage)
    flags = run(["pkg-config", "--cflags", "--libs", "tspool"], env=environment)
    check("pkg-config knows it", flags.returncode == 0, flags.stderr)
    open(f"{folder}/program.c", "w").write(PROGRAM)
    compiled = run([cc, f"{folder}/program.c", "-o", f"{folder}/program", "-Wall", "-Werror", *flags.stdout.split()])
    check("a program compiles and links", compiled.returncode == 0, compiled.stderr)
    saved = run([f"{folder}/program", root], env=dict(os.environ, LD_LIBRARY_PATH=os.path.dirname(library)))
    check("it saves with the installed writer", saved.returncode == 0, saved.stderr)
    check("the checkpoint stands", os.path.exists(f"{root}/first/model.safetensors"))
print(f"{passed} passed, {failed} failed, 0 skipped")
sys.exit(failed != 0)
