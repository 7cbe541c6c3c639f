"""Replacing a file at once: whatever happens meanwhile, there is the old one or the new one.

The new file is written under a name of its own in the same directory, the partial file, and renamed
once it is safely stored. Its writer holds a lock on it (flock), which the system takes away from a
process that ends, however it ends; so a partial file that nobody holds was left by a save that was
killed, and the next save in the directory removes it. A process id in the name would say less: ids
are given to others, and mean nothing in another container.

Where the directory is shared by machines, a lock may not be seen by all of them. So the name tells
the machine, and what another one left is removed only if nobody has written to it for a day.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import secrets
import stat
import sys
import time
import zlib
from collections.abc import Generator
from io import FileIO
from typing import NoReturn

from adamas.checks import kind

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

__all__ = ["AnyPath", "naming", "opened", "replacing", "text_of", "this_machine"]

_PREFIX = ".adamas-partial-"
_DAY = 86400.0

#: What systems answer that cannot store a directory, or not to this user.
_CANNOT_STORE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM}

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def text_of(path: AnyPath, place: str = "before the optimizer") -> str:
    """Return a path as text; TypeError where it is none, OSError where no file can have it.

    ``place`` is where it stands among the arguments.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"path is {kind(path)}, but it must be the name of a file: a str, bytes or "
            f"pathlib.Path. It stands {place}."
        ) from None
    if "\0" in text:
        raise OSError(errno.EINVAL, "No file has a null character in its name", text)
    return text


@contextlib.contextmanager
def naming(path: str) -> Generator[None]:
    """Let every OSError name ``path``, whichever file it was about."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == path:
            raise
        raise OSError(error.errno, error.strerror, path) from None


def opened(path: str) -> FileIO:
    """Open a regular file for reading."""
    _check_regular(os.stat(path), path)  # noqa: PTH116
    return FileIO(path, "rb")


@contextlib.contextmanager
def replacing(path: str) -> Generator[FileIO]:
    """Give a file to write to; in the end it takes the place of what ``path`` leads to, at once.

    Links are followed: the file at their end is replaced, and they stay. A file that is replaced
    hands its permissions on. Raises OSError, naming ``path``, and leaves nothing behind.
    """
    with naming(path):
        target, mode = _target(path)
        directory = os.path.dirname(target) or os.curdir  # noqa: PTH120
        _remove_left(directory)  # first, since the disk may be full of it
        file, name = _created(directory)
        try:
            _permit(file, mode)  # before there is anything to read
            yield file
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no file that is open
            os.replace(name, target)  # noqa: PTH105
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise
        file.close()  # only now does it lose its lock
        _store(directory)


def _target(path: str) -> tuple[str, int | None]:
    """Return the file that is to be replaced, and its permissions if there is one."""
    target = os.path.realpath(path)
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        directory = os.path.dirname(target)  # noqa: PTH120
        if not os.path.isdir(directory):  # noqa: PTH112
            raise FileNotFoundError(
                errno.ENOENT, f"There is no directory {directory}. Create it first", path
            ) from None
        if path.endswith(tuple(filter(None, (os.sep, os.altsep)))):
            _refuse_directory(path)
        return target, None
    _check_regular(found, path)
    return target, found.st_mode & 0o777


def _permit(file: FileIO, mode: int | None) -> None:
    """Give a file the permissions of the one it will replace; None: those a new one gets."""
    own = os.fstat(file.fileno()).st_mode & 0o777
    if mode not in (None, own) and hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), mode)


def _check_regular(found: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        _refuse_directory(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "This is a device or pipe, no regular file", path)


def _refuse_directory(path: str) -> NoReturn:
    raise IsADirectoryError(errno.EISDIR, "This is a directory. Name a file in it", path)


# ── partial files ──────────────────────────────────────────────────────────────────────────────


def _created(directory: str) -> tuple[FileIO, str]:
    """Return a new partial file, locked where there are locks, and its name.

    The system gives it the permissions that the umask leaves. Asking for the umask would change it
    for a moment, and for the files of other threads.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        name = os.path.join(directory, f"{_PREFIX}{this_machine()}-{secrets.token_hex(8)}")  # noqa: PTH118
        file = FileIO(os.open(name, flags | getattr(os, "O_CLOEXEC", 0), 0o666), "rb+")
        # Another save may take it for one that was left, before it is locked.
        if _lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return file, name
        file.close()


def _remove_left(directory: str) -> None:
    """Remove what killed saves left, as far as that can be known and done."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry)


def _remove_if_left(entry: os.DirEntry[str]) -> None:
    found = entry.stat(follow_symlinks=False)
    is_ours = entry.name.startswith(f"{_PREFIX}{this_machine()}-")
    if not stat.S_ISREG(found.st_mode) or not (is_ours or time.time() - found.st_mtime > _DAY):
        return
    if fcntl is None:
        os.unlink(entry.path)  # noqa: PTH108 (refused by Windows where it is open)
        return
    descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if _lock(descriptor):
            os.unlink(entry.path)  # noqa: PTH108
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock a file; False where another holds it, None where there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def this_machine() -> str:
    """Return 8 digits that tell this machine from others, in any directory they share."""
    return f"{zlib.crc32(platform.node().encode(errors='surrogateescape')):08x}"


def _store(directory: str) -> None:
    """Make the new name last through a loss of power, where the system lets a directory sync."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_STORE:
            raise
