"""How many threads a process should use at most, where nobody says so.

A process may run on fewer processors than there are, may have a quota of their time, and may be one
of several that train on them together. More threads than that wait for one another.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["allowed", "quota", "usable"]


def usable(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Return how many processors are this process's to use, at least 1.

    These are the processors that it may run on, no more than its cgroup has time for, and no more
    than ``OMP_NUM_THREADS``. Of processors that ``LOCAL_WORLD_SIZE`` processes share, each has its
    share. torchrun and accelerate set that; where nobody has set ``OMP_NUM_THREADS``, they also set
    it to 1, which says nothing about the machine. So beside other processes 1 stands for the share.
    """
    own = allowed()
    limit = quota(root)
    stated = _count(environment.get("OMP_NUM_THREADS", "").partition(",")[0])
    ranks = _count(environment.get("LOCAL_WORLD_SIZE", "")) or 1
    if ranks > 1 and stated in (None, 1):
        # Each process may be bound to processors of its own. What starts them has those of all.
        of_all = max(own, allowed(os.getppid())) if hasattr(os, "getppid") else own
        own = min(own, min(of_all, limit or of_all) // ranks)
    elif stated is not None:
        own = min(own, stated)
    return max(1, own if limit is None else min(own, limit))


def _count(text: str) -> int | None:
    """Return a whole number from 1 on, or None for any other text."""
    text = text.strip()
    return int(text) or None if text.isascii() and text.isdigit() and len(text) < 10 else None


def allowed(process: int = 0) -> int:
    """Return how many processors a process may run on: by default this one."""
    try:
        return len(os.sched_getaffinity(process))  # type: ignore[attr-defined]
    except (AttributeError, OSError):  # not on this system; no such process, or not ours to ask
        return os.cpu_count() or 1


def quota(root: Path = Path("/")) -> int | None:
    """Return for how many processors the cgroups of this process grant time, rounded up.

    None where they set no limit, or there are none. ``root`` has the ``proc`` and ``sys`` of Linux.
    """
    found = [math.ceil(each) for each in _quotas(root)]
    return max(1, min(found)) if found else None


def _quotas(root: Path) -> Iterator[float]:
    mounts = root / "sys" / "fs" / "cgroup"
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:  # version 2
            for folder in _upwards(mounts, path):
                for text in _lines(folder / "cpu.max"):
                    yield from _ratio(*[*text.split(), "", ""][:2])
        elif "cpu" in controllers.split(","):
            for folder in _upwards(mounts / "cpu", path):
                times = (_lines(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                yield from _ratio(*(next(iter(each), "") for each in times))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a cgroup and of those that it is in.

    Seen from a container, its own cgroup may be the mount itself, whatever the path says.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _ratio(granted: str, period: str) -> Iterable[float]:
    """Return the ratio of two times; nothing where there is no limit ("max", or -1)."""
    times = _count(granted), _count(period)
    return () if None in times else (times[0] / times[1],)  # type: ignore[operator]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").splitlines()
    except OSError:
        return []
