"""How many threads a process should use at most where nobody says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adamas import processors


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return what says which processors this process and the one that started it may run on."""

    def with_processors(own: int, starter: int | None = None, quota: str | None = None) -> Path:
        counts = {0: own, os.getppid(): own if starter is None else starter}
        monkeypatch.setattr(processors, "allowed", lambda process=0: counts[process])
        if quota is not None:
            write(tmp_path, "proc/self/cgroup", "0::/\n")
            write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
        return tmp_path

    return with_processors


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 16),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": " 4 ,2"}, 4),  # of the first level, as OpenMP has it
        ({"OMP_NUM_THREADS": "64"}, 16),
        ({"LOCAL_WORLD_SIZE": "1"}, 16),
        ({"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"LOCAL_WORLD_SIZE": "3"}, 5),
        ({"LOCAL_WORLD_SIZE": "17"}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, 4),  # torchrun's, where nobody sets it
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "8"}, 8),
    ],
)
def test_threads_are_those_of_the_share_and_of_what_the_environment_says(
    machine, environment, expected
):
    assert processors.usable(environment, machine(16)) == expected


@pytest.mark.parametrize("text", ["", " ", "0", "-1", "1.5", "many", "²", "9" * 5000])
def test_what_is_no_number_of_threads_or_processes_says_nothing(machine, text):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        assert processors.usable({name: text}, machine(16)) == 16


@pytest.mark.parametrize(
    ("own", "of_all", "expected"),
    [
        (16, 16, 2),  # a container's, which all eight share
        (16, 128, 16),  # each is bound to processors of its own
        (64, 128, 16),  # four and four are bound to the same
        (2, 1, 1),  # what started them is bound, and they are not
    ],
)
def test_processes_that_are_bound_to_processors_of_their_own_have_these(
    machine, own, of_all, expected
):
    root = machine(own, of_all)
    assert processors.usable({"LOCAL_WORLD_SIZE": "8"}, root) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 6),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "8"}, 6),
        ({"LOCAL_WORLD_SIZE": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "8"}, 6),
    ],
)
def test_a_quota_of_time_bounds_the_threads_of_all_processes(machine, environment, expected):
    root = machine(16, quota="550000 100000\n")
    assert processors.usable(environment, root) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "\n"}, None),
        ({"proc/self/cgroup": "no line of a cgroup\n"}, None),
        (  # those that it is in bound it, too
            {
                "proc/self/cgroup": "0::/pod/task\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pod/task/cpu.max": "max 100000\n",
            },
            3,
        ),
        (  # a container sees its own as the mount, and may be told the host's path
            {
                "proc/self/cgroup": "0::/../../docker/0123\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
            },
            4,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "3:memory:/a\n2:cpu,cpuacct:/b\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/b/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/b/cpu.cfs_period_us": "50000\n",
            },
            5,
        ),
    ],
)
def test_the_quota_is_the_least_of_all_cgroups_of_the_process(tmp_path, files, expected):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert processors.quota(tmp_path) == expected


def test_processors_of_a_process_that_is_no_more_are_those_of_the_machine():
    assert processors.allowed(2**31 - 1) == os.cpu_count()
