"""File systems of our own on loop devices, and what can be done to one: filled, frozen, shut down, remounted.

They are mounted in a mount namespace of the test process: whatever becomes of it, the kernel unmounts them and frees the
loop devices with the last process that sees them.
"""
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time

import pytest

KINDS = ("ext4", "xfs", "btrfs")
MIB = 1 << 20
MAKE_OPTIONS = {"ext4": ("-m", "0")}   # else root could write where a full disk stops everybody else
FREEZE, THAW, SHUT_DOWN = 0xC0045877, 0xC0045878, 0x8004587D
WITHOUT_LOG = 2   # a shutdown that drops what is not on the device yet, as a power cut does
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def namespace_enter():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) < 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) < 0:
        raise OSError(ctypes.get_errno(), "no mount namespace of our own")


def needs(*programs):
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(errno.EIO, f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def workplace():
    """A folder for images: in memory that goes with the namespace, because thousands of fsyncs are on the way."""
    path = tempfile.mkdtemp(prefix="tspool-faults-", dir=os.environ.get("TSPOOL_TEST_DIR"))
    in_memory = "TSPOOL_TEST_DIR" not in os.environ
    os.chmod(path, 0o755)
    if in_memory:
        run("mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "none", path)
    try:
        yield path
    finally:
        if in_memory:
            run("umount", "-l", path)
        shutil.rmtree(path, ignore_errors=True)


class Filesystem:
    def __init__(self, folder, kind, mib=320, options=(), make_options=(), image=None):
        needs(f"mkfs.{kind}", "mount", "umount", "losetup")
        self.kind, self.options = kind, options
        self.path = tempfile.mkdtemp(prefix=f"{kind}-", dir=folder)
        self.image = image or f"{self.path}.img"
        with open(self.image, "wb") as file:
            file.truncate(mib * MIB)
        self.mounted = False
        run(f"mkfs.{kind}", "-q", *MAKE_OPTIONS.get(kind, ()), *make_options, self.image)
        try:
            self.mount()
        except OSError as error:
            self.destroy()
            pytest.skip(f"this kernel's {kind} has no {','.join(options)}" if options
                        else f"no loop device with {kind} can be mounted: {error.strerror.splitlines()[-1]}")
        self.root = f"{self.path}/runs"
        os.mkdir(self.root)
        os.chmod(self.root, 0o777)

    def mount(self):
        run("mount", "-t", self.kind, "-o", ",".join(("loop", *self.options)), self.image, self.path)
        self.mounted = True

    def umount(self):
        """Waits for the writers that still have it; a file system that is shut down lets go of them as well."""
        deadline = time.monotonic() + 20
        while True:
            try:
                run("umount", self.path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    run("umount", "-l", self.path)
                    self.mounted = False
                    raise
                time.sleep(0.05)
        self.mounted = False

    def remount(self, option):
        """A writer that has reported may still be closing files, which keep a file system from going read-only."""
        deadline = time.monotonic() + 20
        while True:
            try:
                run("mount", "-o", f"remount,{option}", self.path)
                return
            except OSError as error:
                if "busy" not in error.strerror or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def again(self):
        """Unmounted and mounted: the log is replayed, and only what the device holds is left."""
        self.umount()
        self.mount()

    def destroy(self):
        if self.mounted:
            with contextlib.suppress(OSError):
                self._ioctl(THAW, 0)
            self.umount()
        for remove, path in ((os.unlink, self.image), (os.rmdir, self.path)):
            with contextlib.suppress(FileNotFoundError):
                remove(path)

    def _ioctl(self, request, argument):
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, request, struct.pack("I", argument))
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def frozen(self):
        self._ioctl(FREEZE, 0)
        try:
            yield
        finally:
            self._ioctl(THAW, 0)

    def shut_down(self):
        self._ioctl(SHUT_DOWN, WITHOUT_LOG)

    def free(self):
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def eat(self, leave=0):
        """Takes all space but `leave`."""
        with open(f"{self.path}/eaten", "wb") as file:
            size, piece = 0, 64 * MIB
            while piece >= 4096:
                os.sync()   # btrfs counts free bytes anew with each transaction
                piece = min(piece, max(0, self.free() - leave) // 4096 * 4096)
                if piece == 0:
                    return
                try:
                    os.posix_fallocate(file.fileno(), size, piece)
                    size += piece
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2

    def free_again(self):
        os.unlink(f"{self.path}/eaten")
        os.sync()
