"""tspool.open: what programs do with file objects, and what is under the name afterwards: the new file, the old one, or none."""

import contextlib
import errno
import gc
import gzip
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
import tspool

OLD = b"what stood there before"
BLOCK = 1 << 20


@pytest.fixture
def path(tmp_path):
    """Of a file, alone in its directory."""
    return tmp_path / "file"


@pytest.fixture
def standing(path):
    path.write_bytes(OLD)
    return path


def hidden(path):
    return [name for name in os.listdir(path.parent) if name != path.name]


def numbered(size):
    """Bytes of which no two blocks are the same."""
    return np.arange(-(-size // 8), dtype=np.uint64).tobytes()[:size]


# Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine", [{}, {"io": "threads"}, {"buffered": True}, {"block_bytes": 65536, "depth": 2}, {"expected_bytes": 9}]
)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 37 * BLOCK + 12345])
def test_file_holds_what_was_written(path, size, engine):
    data = numbered(size)
    with tspool.open(path, **engine) as file:
        assert file.write(data) == size
    assert path.read_bytes() == data
    assert hidden(path) == []


def test_pieces_of_any_size_join(path):
    sizes = [1, 0, 4096, 3, BLOCK, 100_000, 7 * BLOCK + 1, 4095, 2]
    data = numbered(sum(sizes))
    with tspool.open(path) as file:
        at = 0
        for size in sizes:
            assert file.tell() == at
            file.write(memoryview(data)[at : at + size])
            at += size
    assert path.read_bytes() == data


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytearray"), np.arange(7, dtype=np.float64), np.ones((3, 5), np.int16)])
def test_any_contiguous_buffer_is_written(path, data):
    with tspool.open(path) as file:
        assert file.write(data) == memoryview(data).nbytes
    assert path.read_bytes() == memoryview(data).tobytes()


def test_buffer_with_gaps_and_text_are_refused_and_the_stream_goes_on(path):
    with tspool.open(path) as file:
        with pytest.raises(BufferError):
            file.write(memoryview(bytes(10))[::2])
        with pytest.raises(TypeError):
            file.write("text")
        file.write(b"good")
    assert path.read_bytes() == b"good"


def test_memory_may_change_after_write(path):
    data = bytearray(3 * BLOCK)
    with tspool.open(path) as file:
        for number in range(20):
            data[:] = bytes([number]) * len(data)
            file.write(data)
    found = np.fromfile(path, dtype=np.uint8).reshape(20, -1)
    assert (found == np.arange(20, dtype=np.uint8)[:, None]).all()


def test_nothing_goes_to_the_page_cache(path):
    with tspool.open(path) as file:
        file.write(bytes(16 * BLOCK))
        direct, backend, writes, _ = file._handle.report()
    assert backend in ("uring", "threads") and writes <= 17
    if not direct:
        pytest.skip("the file system of the temporary directory refuses O_DIRECT")
    fincore = shutil.which("fincore")
    if not fincore:
        pytest.skip("fincore is not installed")
    resident = subprocess.run([fincore, "-nb", "-o", "RES", path], capture_output=True, text=True, check=True).stdout
    assert int(resident) < BLOCK


# Under its name ---------------------------------------------------------------------------------------------------


def test_old_file_stands_until_the_close(standing):
    with tspool.open(standing) as file:
        file.write(bytes(5 * BLOCK))
        file.sync()
        assert standing.read_bytes() == OLD
        (name,) = hidden(standing)
        assert name.startswith(".file.tspool-") and name.endswith(".partial")
    assert standing.stat().st_size == 5 * BLOCK


def test_exception_inside_with_leaves_the_old_file_and_nothing_else(standing):
    with pytest.raises(ZeroDivisionError), tspool.open(standing) as file:
        file.write(bytes(5 * BLOCK))
        1 / 0  # noqa: B018
    assert standing.read_bytes() == OLD
    assert hidden(standing) == []


def test_abort_leaves_nothing(path):
    file = tspool.open(path)
    file.write(b"x")
    file.abort()
    assert os.listdir(path.parent) == []
    file.abort()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"y")


def test_closing_twice_is_fine_and_what_is_closed_says_so(path):
    file = tspool.open(path)
    file.write(b"abc")
    file.close()
    file.close()
    assert file.closed
    for use in (file.tell, file.sync, file.flush, file.commit, lambda: file.write(b""), lambda: file.seek(0, 1)):
        with pytest.raises(ValueError):
            use()
    assert path.read_bytes() == b"abc"


def test_stream_left_to_the_collector_is_given_up_with_a_warning(standing):
    file = tspool.open(standing)
    file.write(b"half")
    with pytest.warns(ResourceWarning, match="given up"):
        del file
        gc.collect()
    assert standing.read_bytes() == OLD
    assert hidden(standing) == []


def test_buffered_writer_left_to_the_collector_is_given_up_too(standing):
    file = io.BufferedWriter(tspool.open(standing))
    file.write(b"half")
    with pytest.warns(ResourceWarning, match="given up"), contextlib.suppress(ValueError):
        del file
        gc.collect()
    assert standing.read_bytes() == OLD
    assert hidden(standing) == []


def test_wrapper_that_closes_after_an_exception_does_not_commit(standing):
    with pytest.warns(RuntimeWarning, match="given up"), pytest.raises((ZeroDivisionError, ValueError)):
        with tspool.open(standing) as raw, io.BufferedWriter(raw) as file:
            file.write(b"half")
            1 / 0  # noqa: B018
    assert standing.read_bytes() == OLD
    assert hidden(standing) == []


def test_saving_inside_an_except_block_commits(path):
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        file = tspool.open(path)  # an emergency save: the exception is older than the stream
        file.write(b"rescued")
        file.close()
    assert path.read_bytes() == b"rescued"


def test_mode_is_by_the_umask(path):
    before = os.umask(0o027)
    try:
        tspool.open(path).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_link_is_replaced_and_its_target_left_alone(standing, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(standing)
    with tspool.open(link) as file:
        file.write(b"new")
    assert not link.is_symlink() and link.read_bytes() == b"new"
    assert standing.read_bytes() == OLD


def test_directory_may_be_a_link_and_the_current_one_may_change(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    file = tspool.open("../link/file")
    bare = tspool.open("bare")
    monkeypatch.chdir("/")
    file.close()
    bare.close()
    assert sorted(os.listdir(tmp_path / "real")) == ["bare", "file"]


def test_name_of_any_bytes(tmp_path):
    name = os.fsencode(tmp_path) + b"/n\xff\n\xc3\xa9"
    with tspool.open(name) as file:
        file.write(b"x")
    assert os.listdir(os.fsencode(tmp_path)) == [b"n\xff\n\xc3\xa9"]


# Refusals ---------------------------------------------------------------------------------------------------------


def test_existing_file_is_not_replaced_when_that_was_asked(standing):
    for refused in (lambda: tspool.open(standing, "xb"), lambda: tspool.open(standing, replace=False)):
        with pytest.raises(FileExistsError) as caught:
            refused()
        assert isinstance(caught.value, tspool.StreamError) and caught.value.errno == errno.EEXIST
    assert standing.read_bytes() == OLD


def test_file_that_came_meanwhile_is_not_replaced_when_that_was_asked(path):
    file = tspool.open(path, "xb")
    file.write(b"new")
    path.write_bytes(OLD)
    with pytest.raises(FileExistsError, match="while this one was written"):
        file.close()
    assert path.read_bytes() == OLD
    assert hidden(path) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("no/file", FileNotFoundError), ("", IsADirectoryError), (".", IsADirectoryError), ("x" * 223, OSError)]
)
def test_paths_that_cannot_be(tmp_path, name, kind):
    with pytest.raises(kind) as caught:
        tspool.open(f"{tmp_path}/{name}")
    assert isinstance(caught.value, tspool.StreamError)
    assert caught.value.path == f"{tmp_path}/{name}" and caught.value.filename and caught.value.cause
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options", [{"mode": "r"}, {"mode": "w"}, {"mode": "ab"}, {"io": "dma"}, {"block_bytes": 1000}, {"depth": 1}]
)
def test_options_that_cannot_be(path, options):
    with pytest.raises((ValueError, OSError)):
        tspool.open(path, **options)
    assert os.listdir(path.parent) == []


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_directory_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    code = "import tspool, sys\ntry: tspool.open(sys.argv[1])\nexcept PermissionError as error: print(error)"
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Permission denied (EACCES)" in told.stdout, told.stderr


def test_only_forward_and_relative_seeks(path):
    with tspool.open(path) as file:
        assert (file.seekable(), file.readable(), file.writable()) == (False, False, True)
        file.write(b"ab")
        assert file.seek(200_000, os.SEEK_CUR) == 200_002
        file.write(b"c")
        for offset, whence in ((0, os.SEEK_SET), (-1, os.SEEK_CUR), (0, os.SEEK_END)):
            with pytest.raises(io.UnsupportedOperation):
                file.seek(offset, whence)
        for refused in (file.read, file.truncate):
            with pytest.raises(io.UnsupportedOperation):
                refused()
    assert path.read_bytes() == b"ab" + bytes(200_000) + b"c"


def test_descriptor_is_for_syncing_and_looking_and_nobody_else_can_write_to_it(path):
    data = numbered(3 * BLOCK + 777)
    with tspool.open(path) as file:
        for at in range(0, len(data), BLOCK + 5):
            file.write(data[at : at + BLOCK + 5])
            descriptor = file.fileno()
            os.fsync(descriptor)
            assert os.fstat(descriptor).st_size == file.tell()
            assert os.pread(descriptor, len(data), 0) == data[: file.tell()]
        assert file.fileno() == descriptor
        with pytest.raises(OSError) as caught:
            os.write(descriptor, b"x")
        assert caught.value.errno == errno.EBADF
        file.fsync()
    with pytest.raises(OSError):
        os.fstat(descriptor)
    with pytest.raises(ValueError):
        file.fileno()
    assert path.read_bytes() == data


# Those who write files --------------------------------------------------------------------------------------------


def test_pickle(path):
    state = {"step": 7, "blob": numbered(3 * BLOCK), "nested": [(1, "two", None)]}
    with tspool.open(path) as file:
        pickle.dump(state, file, protocol=5)
    assert pickle.loads(path.read_bytes()) == state


def test_numpy_save_and_savez(path):
    arrays = {"a": np.arange(300_000).reshape(3, -1), "b": np.asfortranarray(np.ones((50, 70), np.float32))}
    with tspool.open(path) as file:
        np.save(file, arrays["b"])
    assert (np.load(path) == arrays["b"]).all()
    with tspool.open(path) as file:
        np.savez(file, **arrays)
    with np.load(path) as found:
        assert all((found[name] == array).all() for name, array in arrays.items())


def test_safetensors_bytes(path):
    from safetensors.numpy import load_file, save

    tensors = {"w": np.arange(BLOCK, dtype=np.float32)}
    with tspool.open(path) as file:
        file.write(save(tensors))
    assert (load_file(path)["w"] == tensors["w"]).all()


def test_text_buffered_copied_zipped_and_archived(path, tmp_path):
    with io.TextIOWrapper(tspool.open(path), encoding="utf-8") as file:
        json.dump({"names": ["ä"] * 1000}, file, ensure_ascii=False)
    assert json.loads(path.read_text("utf-8")) == {"names": ["ä"] * 1000}
    data = numbered(5 * BLOCK + 1)
    with io.BufferedWriter(tspool.open(path), 1 << 16) as file:
        for at in range(0, len(data), 999):
            file.write(data[at : at + 999])
    assert path.read_bytes() == data
    with tspool.open(tmp_path / "copy") as file:
        shutil.copyfileobj(io.BytesIO(data), file)
    assert (tmp_path / "copy").read_bytes() == data
    with tspool.open(tmp_path / "gz") as file, gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(data)
    assert gzip.decompress((tmp_path / "gz").read_bytes()) == data
    with tspool.open(tmp_path / "zip") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("member", data)
    assert zipfile.ZipFile(tmp_path / "zip").read("member") == data
    with tspool.open(tmp_path / "tar") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add(path, "member")
    assert tarfile.open(tmp_path / "tar").extractfile("member").read() == data


# Threads and processes --------------------------------------------------------------------------------------------


def test_streams_of_several_threads_are_independent(tmp_path):
    def work(number):
        for turn in range(5):
            with tspool.open(tmp_path / str(number)) as file:
                for _ in range(6):
                    file.write(bytes([number * 8 + turn]) * 700_001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(tmp_path)) == [str(number) for number in range(8)]
    for number in range(8):
        assert (tmp_path / str(number)).read_bytes() == bytes([number * 8 + 4]) * (6 * 700_001)


def test_threads_that_share_a_stream_take_turns(path):
    with tspool.open(path) as file:
        threads = [threading.Thread(target=lambda n=n: [file.write(bytes([n]) * 300_000) for _ in range(10)]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    pieces = np.fromfile(path, dtype=np.uint8).reshape(40, 300_000)
    assert (pieces == pieces[:, :1]).all()
    assert sorted(pieces[:, 0].tolist()) == sorted([0, 1, 2, 3] * 10)


def test_other_threads_run_while_one_writes(path):
    beats, done = 0, threading.Event()

    def write():
        with tspool.open(path) as file:
            for _ in range(20):
                file.write(bytes(16 * BLOCK))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        beats += 1
    thread.join()
    assert beats > 1000


def test_forked_child_cannot_use_a_stream_and_leaves_the_parents_alone(path):
    file = tspool.open(path)
    file.write(b"parent")
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: file.write(b"child"), file.sync, file.commit):
            try:
                use()
            except (OSError, ValueError):
                refused += 1
        os._exit(0 if refused == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    file.write(b" only")
    file.close()
    assert path.read_bytes() == b"parent only"


HALF = """
import os, sys, tspool
file = tspool.open(sys.argv[1])
file.write(bytes(40 << 20))
print("half", flush=True)
"""


def test_killed_in_the_middle_leaves_the_old_file_and_the_next_one_clears_up(script, standing):
    trainer = script(HALF + "sys.stdin.read()", standing)
    assert trainer.line() == "half"
    trainer.process.kill()
    trainer.process.wait(60)
    assert standing.read_bytes() == OLD
    assert len(hidden(standing)) == 1
    tspool.open(standing.with_name("another")).close()  # clears only what is its own
    assert len(hidden(standing)) == 2
    deadline = time.monotonic() + 60
    left = 3
    while left > 2:  # the kernel keeps the lock until the dead one's last write has ended
        assert time.monotonic() < deadline
        with tspool.open(standing) as file:
            left = len(hidden(standing))  # ours is there
            file.write(b"new")
    assert hidden(standing) == ["another"] and standing.read_bytes() == b"new"


def test_living_ones_hidden_file_is_left_alone(script, standing):
    trainer = script(HALF + "sys.stdin.read(); file.close()", standing)
    assert trainer.line() == "half"
    with tspool.open(standing) as file:
        file.write(b"ours")
    assert len(hidden(standing)) == 1
    trainer.end()
    assert standing.stat().st_size == 40 << 20 and hidden(standing) == []


def test_interpreter_that_ends_with_an_open_stream_leaves_the_old_file(script, standing):
    script(HALF, standing).end()
    assert standing.read_bytes() == OLD


def test_unhandled_exception_leaves_the_old_file(script, standing):
    _, err = script(HALF + "with file: raise RuntimeError('boom')", standing).end(1)
    assert "boom" in err
    assert standing.read_bytes() == OLD and hidden(standing) == []


# Each is at work for long, and must be back at once after SIGINT.
@pytest.mark.parametrize("what", ["while True: file.write(data)", "while True: file.write(data); file.sync()"])
def test_ctrl_c_ends_a_write_and_leaves_the_old_file(script, standing, what):
    trainer = script(
        f"""
import os, sys, tspool
data = bytes(64 << 20)
file = tspool.open(sys.argv[1])
file.write(data)
try:
    with file:
        print("ready", flush=True)
        {what}
except KeyboardInterrupt:
    print("interrupted", os.listdir(os.path.dirname(sys.argv[1])), flush=True)
""",
        standing,
    )
    assert trainer.line() == "ready"
    started = time.monotonic()
    trainer.process.send_signal(signal.SIGINT)
    assert trainer.line() == "interrupted ['file']"
    assert time.monotonic() - started < 20
    trainer.end()
    assert standing.read_bytes() == OLD


def test_ctrl_c_at_any_moment_of_a_close_leaves_one_of_the_two_files(script, standing):
    """What was begun goes on by itself; what had not begun is given up."""
    out, _ = script(
        """
import os, signal, sys, time, tspool
path, folder = sys.argv[1], os.path.dirname(sys.argv[1])
outcomes = set()
for turn in range(60):
    before = open(path, "rb").read()
    new = bytes([turn]) * 3000000
    file = tspool.open(path)
    file.write(new)
    interrupted = False
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001 * (turn % 20 + 1))
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        file.close()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    except KeyboardInterrupt:
        interrupted = True
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    del file
    while os.listdir(folder) != ["file"]:
        time.sleep(0.001)
    after = open(path, "rb").read()
    assert after == new or (interrupted and after == before), (turn, interrupted, len(after))
    outcomes.add((interrupted, after == new))
print(sorted(outcomes))
""",
        standing,
    ).end()
    assert "True" in out


def test_memory_does_not_grow_with_the_file(script, path):
    out, _ = script(
        """
import sys, tspool
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
data = bytes(4 << 20)
before = peak()
with tspool.open(sys.argv[1]) as file:
    for _ in range(64):
        file.write(data)
print(peak() - before)
""",
        path,
    ).end()
    assert int(out) < 30 << 10  # KiB: blocks of 16 MiB in all, threads, queues


def test_full_disk_is_told_and_the_old_file_stands(script, tmp_path):
    """A limit on the file's size stands for a full disk: the kernel refuses in the same places."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    out, _ = script(
        """
import resource, signal, sys, tspool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))
try:
    with tspool.open(sys.argv[1]) as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    print("written")
except tspool.StreamError as error:
    print(error.errno, error.stage, error.path, error.file_offset, file.closed)
with tspool.open(sys.argv[1] + "2") as file:
    file.write(bytes(19 << 20))
""",
        path,
    ).end()
    told = out.split()
    assert told[0] == str(errno.EFBIG) and told[1] == "write" and told[2] == str(path) and told[4] == "True"
    assert int(told[3]) <= 20 << 20
    assert path.read_bytes() == OLD and sorted(os.listdir(tmp_path)) == ["file", "file2"]
    assert (tmp_path / "file2").stat().st_size == 19 << 20


def test_nothing_leaks(path):
    def counts():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    tspool.open(path).close()
    before = counts()
    for turn in range(60):
        file = tspool.open(path)
        file.write(bytes(BLOCK))
        file.abort() if turn % 2 else file.close()
        with pytest.raises(FileNotFoundError):
            tspool.open(path.parent / "no" / "file")
    assert counts() == before
