"""A file is replaced at once or not at all, wherever it is and however a save ends."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import adamas
from adamas.files import atomic
from tests.support.cases import PATIENCE
from tests.support.runs import advance, made

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX's files, locks and limits")


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def run(program, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **options,
    )


# ── what cannot be written ─────────────────────────────────────────────────────────────────────


def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    weights, optimizer = made()
    adamas.save(tmp_path / "run", optimizer)
    old = (tmp_path / "run").read_bytes()
    advance(weights, optimizer, 0, 1)
    for error in (OSError("no"), KeyboardInterrupt(), MemoryError(), ValueError("no")):
        monkeypatch.setattr(os, "fsync", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            adamas.save(tmp_path / "run", optimizer)
        assert (tmp_path / "run").read_bytes() == old
        assert names(tmp_path) == ["run"]


LIMITED = """
import resource, sys
import numpy as np, adamas
optimizer = adamas.Adam(np.zeros(100_000, np.float32))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    adamas.save(sys.argv[1], optimizer)
except OSError as error:
    print(type(error).__name__, error.errno, error.filename)
"""


@posix
def test_a_file_that_may_not_be_so_long_is_an_os_error_that_names_it(tmp_path):
    done = run(LIMITED, tmp_path / "run")
    assert done.stdout.split() == ["OSError", str(errno.EFBIG), str(tmp_path / "run")], done.stderr
    assert names(tmp_path) == []


FULL = """
import ctypes, os, sys
import numpy as np, adamas
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC_PRIVATE = 0x00020000, 0x4000 | 0x40000
path = sys.argv[1].encode()
if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC_PRIVATE, None):
    sys.exit(77)
if libc.mount(b"tmpfs", path, b"tmpfs", 0, b"size=1m"):
    sys.exit(77)
optimizer = adamas.Adam(np.zeros(100_000, np.float32))
try:
    adamas.save(os.path.join(sys.argv[1], "run"), optimizer)
except OSError as error:
    print(type(error).__name__, error.errno, error.filename, os.listdir(sys.argv[1]))
"""


@posix
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path):
    done = run(FULL, tmp_path)
    if done.returncode == 77:
        pytest.skip("only root may mount a file system of its own")
    expected = ["OSError", str(errno.ENOSPC), str(tmp_path / "run"), "[]"]
    assert done.stdout.split() == expected, done.stderr


READ_ONLY = """
import os, sys
import numpy as np, adamas
optimizer, save = adamas.Adam(np.zeros(3)), adamas.save
os.chmod(sys.argv[1], 0o555)
if os.getuid() == 0:
    os.setegid(65534), os.seteuid(65534)
try:
    save(os.path.join(sys.argv[1], "run"), optimizer)
except OSError as error:
    print(type(error).__name__, error.filename)
"""


@posix
def test_a_directory_that_may_not_be_written_is_a_permission_error_that_names_the_file(tmp_path):
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    done = run(READ_ONLY, tmp_path)
    assert done.stdout.split() == ["PermissionError", str(tmp_path / "run")], done.stderr


def directory(path):
    path.mkdir()
    return path, IsADirectoryError, "This is a directory. Name a file in it"


def closed_by_a_slash(path):
    return f"{path}{os.sep}", IsADirectoryError, "This is a directory. Name a file in it"


def no_parent(path):
    return path / "run", FileNotFoundError, f"There is no directory {path}. Create it first"


def parent_is_a_file(path):
    path.write_bytes(b"")
    return path / "run", NotADirectoryError, "Not a directory"


def too_long(path):
    return path.with_name("n" * 300), OSError, "File name too long"


def circle(path):
    path.symlink_to(path)
    return path, OSError, "Too many levels of symbolic links"


def pipe(path):
    os.mkfifo(path)
    return path, OSError, "This is a device or pipe, no regular file"


@posix
@pytest.mark.parametrize(
    "spoil",
    [directory, closed_by_a_slash, no_parent, parent_is_a_file, too_long, circle, pipe],
)
def test_a_path_that_leads_to_no_file_is_an_os_error_that_names_it(tmp_path, spoil):
    _, optimizer = made()
    path, error, message = spoil(tmp_path / "there")
    before = names(tmp_path)
    with pytest.raises(error, match=re.escape(message)) as caught:
        adamas.save(path, optimizer)
    assert caught.value.filename == str(path)
    assert names(tmp_path) == before


@posix
def test_a_device_is_not_replaced():
    _, optimizer = made()
    with pytest.raises(OSError, match="This is a device or pipe"):
        adamas.save("/dev/null", optimizer)
    assert not Path("/dev/null").is_file()


def test_loading_what_is_no_file_is_an_os_error_that_names_it(tmp_path):
    _, optimizer = made()
    for path, error in ((tmp_path / "none", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error) as caught:
            adamas.load(path, optimizer)
        assert caught.value.filename == str(path)


@posix
def test_loading_from_a_pipe_does_not_wait(tmp_path):
    _, optimizer = made()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="This is a device or pipe"):
        adamas.load(tmp_path / "pipe", optimizer)


def test_a_path_is_text_or_bytes_or_a_path(tmp_path):
    _, optimizer = made()
    for path in (tmp_path / "1", str(tmp_path / "2"), os.fsencode(tmp_path / "3")):
        adamas.save(path, optimizer)
        adamas.load(path, optimizer)
    assert names(tmp_path) == ["1", "2", "3"]
    for function in (adamas.save, adamas.load):
        with pytest.raises(TypeError, match="path is an int, but it must be the name of a file"):
            function(5, optimizer)


# ── what is replaced ───────────────────────────────────────────────────────────────────────────


@posix
def test_a_link_is_followed_and_stays(tmp_path):
    weights, optimizer = made()
    (tmp_path / "store").mkdir()
    (tmp_path / "latest").symlink_to(Path("store") / "run")
    (tmp_path / "again").symlink_to("latest")
    for link in ("latest", "again"):  # first they lead to nothing
        advance(weights, optimizer, 0, 1)
        adamas.save(tmp_path / link, optimizer)
        assert (tmp_path / "latest").readlink() == Path("store") / "run"
        assert (tmp_path / "again").readlink() == Path("latest")
        assert names(tmp_path) == ["again", "latest", "store"]
        assert names(tmp_path / "store") == ["run"]
        other = made()[1]
        adamas.load(tmp_path / "store" / "run", other)
        assert other.steps == optimizer.steps


def test_the_longest_name_that_a_file_may_have_is_taken(tmp_path):
    _, optimizer = made()
    adamas.save(tmp_path / ("n" * 255), optimizer)
    adamas.load(tmp_path / ("n" * 255), optimizer)
    assert names(tmp_path) == ["n" * 255]


def test_a_relative_path_is_taken(tmp_path, monkeypatch):
    _, optimizer = made()
    monkeypatch.chdir(tmp_path)
    adamas.save("run", optimizer)
    adamas.load("run", optimizer)
    assert names(tmp_path) == ["run"]


@posix
def test_a_file_keeps_its_permissions(tmp_path):
    _, optimizer = made()
    adamas.save(tmp_path / "run", optimizer)
    for mode in (0o640, 0o600, 0o666):
        (tmp_path / "run").chmod(mode)
        adamas.save(tmp_path / "run", optimizer)
        assert (tmp_path / "run").stat().st_mode & 0o777 == mode


@posix
def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, monkeypatch):
    _, optimizer = made()
    before = os.umask(0o027)
    try:  # nobody asks for it on the way, since asking is setting: other threads would see that
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", None)
            adamas.save(tmp_path / "run", optimizer)
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o640


@posix
def test_nobody_can_read_half_of_a_file_that_is_not_for_all(tmp_path, monkeypatch):
    _, optimizer = made()
    adamas.save(tmp_path / "run", optimizer)
    (tmp_path / "run").chmod(0o600)
    seen = []

    def look(_, __, ___):
        seen.extend(p.stat().st_mode & 0o777 for p in tmp_path.glob(".adamas-partial-*"))

    monkeypatch.setattr("adamas.files.write", look)
    adamas.save(tmp_path / "run", optimizer)
    assert seen == [0o600]


# ── saves that are killed ──────────────────────────────────────────────────────────────────────

SAVE_FOR_EVER = """
import sys
import numpy as np, adamas
weights = np.zeros(200_000, np.float32)
optimizer = adamas.Adam(weights, lr=1.0)
adamas.save(sys.argv[1], optimizer)
print("ready", flush=True)
while True:
    optimizer.step(np.ones_like(weights))
    weights[...] = optimizer.steps
    adamas.save(sys.argv[1], optimizer)
"""

#: Stands still in the midst of a save.
SAVE_AND_WAIT = """
import os, sys, time
import numpy as np, adamas
os.fsync = lambda _: (print("ready", flush=True), time.sleep(600))
adamas.save(sys.argv[1], adamas.Adam(np.zeros(3)))
"""


def started(program, path):
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def kill(child):
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    path = tmp_path / "run"
    moments = random.Random(5)
    seen = 0
    for _ in range(8):
        child = started(SAVE_FOR_EVER, path)
        time.sleep(moments.uniform(0, 0.05))  # somewhere in a save, most of the time
        kill(child)
        weights = np.full(200_000, -1, np.float32)
        optimizer = adamas.Adam(weights, lr=1.0)
        adamas.load(path, optimizer)
        assert (weights == optimizer.steps).all()
        assert len(names(tmp_path)) <= 2, "what the one before left should be gone"
        seen += len(names(tmp_path)) == 2
    assert seen, "no kill hit a save under way, so nothing was shown"


@posix
def test_what_killed_saves_left_is_removed_by_the_next_save_in_the_directory(tmp_path):
    _, optimizer = made()
    for _ in range(3):
        kill(started(SAVE_AND_WAIT, tmp_path / "other"))
    assert len(names(tmp_path)) == 1  # each removed what the one before it left
    adamas.save(tmp_path / "run", optimizer)
    assert names(tmp_path) == ["run"]


@posix
def test_the_partial_file_of_a_save_under_way_is_left_alone(tmp_path):
    _, optimizer = made()
    child = started(SAVE_AND_WAIT, tmp_path / "other")
    try:
        os.kill(child.pid, signal.SIGSTOP)
        (partial,) = names(tmp_path)
        adamas.save(tmp_path / "run", optimizer)
        assert names(tmp_path) == [partial, "run"]
    finally:
        kill(child)
    adamas.save(tmp_path / "run", optimizer)
    assert names(tmp_path) == ["run"]


def left(directory, machine, age):
    path = directory / f".adamas-partial-{machine}-{'0' * 16}"
    path.write_bytes(b"half a file")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_what_another_machine_may_still_write_is_left_for_a_day(tmp_path):
    _, optimizer = made()
    young, old = left(tmp_path, "0000aaaa", 3600), left(tmp_path, "0000bbbb", 90000)
    own = left(tmp_path, atomic.this_machine(), 0)
    adamas.save(tmp_path / "run", optimizer)
    assert young.exists()
    assert not old.exists()
    assert not own.exists()


@posix
def test_nothing_is_removed_where_files_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    _, optimizer = made()
    own = left(tmp_path, atomic.this_machine(), 90000)
    monkeypatch.setattr("fcntl.flock", refuse)
    adamas.save(tmp_path / "run", optimizer)
    assert names(tmp_path) == [own.name, "run"]


@posix
def test_only_files_are_taken_for_what_was_left(tmp_path):
    _, optimizer = made()
    (tmp_path / "mine").write_bytes(b"mine")
    prefix = f".adamas-partial-{atomic.this_machine()}"
    (tmp_path / f"{prefix}-1").symlink_to("mine")
    (tmp_path / f"{prefix}-2").mkdir()
    os.mkfifo(tmp_path / f"{prefix}-3")
    before = names(tmp_path)
    adamas.save(tmp_path / "run", optimizer)
    assert names(tmp_path) == [*before, "run"]


def test_saves_of_many_threads_into_one_directory_disturb_none(tmp_path):
    def save(i):
        try:
            optimizer = adamas.Adam(np.full(1000, float(i)))
            for _ in range(40):
                adamas.save(tmp_path / str(i % 2), optimizer)
        except BaseException as error:
            failures.append(error)

    failures = []
    threads = [threading.Thread(target=save, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["0", "1"]
    for name in ("0", "1"):
        p = np.zeros(1000)
        adamas.load(tmp_path / name, adamas.Adam(p))
        assert len(set(p)) == 1


@pytest.mark.parametrize("function", [adamas.save, adamas.load])
def test_a_path_that_no_file_can_have_is_an_error_that_names_it(function):
    with pytest.raises(OSError, match="No file has a null character in its name") as caught:
        function("a\0b", adamas.Adam(np.zeros(1)))
    assert caught.value.filename == "a\0b"


@pytest.mark.parametrize("function", [adamas.save, adamas.load])
def test_arguments_in_the_wrong_order_are_told_by_what_they_are(function):
    message = "path is an Adam, but it must be the name of a file: .* It stands before the optimi"
    with pytest.raises(TypeError, match=message):
        function(adamas.Adam(np.zeros(1)), "run")
