"""Threads of the native engine that wake late or never, and steps on the heels of each other."""

from __future__ import annotations

import os
import subprocess
import threading

import numpy as np
import pytest

import adamas
from adamas.statistics import TILE
from tests.support.cases import ROOT, differences, python
from tests.support.threads import large_run, linux

#: Sizes around those of the parts that threads take, and from which they share the work.
SIZES = (16 * TILE, 64 * TILE, 64 * TILE + 1, 129 * TILE - 1, 400 * TILE + 33)


@pytest.fixture(autouse=True)
def _threads_are_put_back():
    before = adamas.get_num_threads()
    yield
    adamas.set_num_threads(before)


def stepped(steps: int, size: int, counts: tuple[int, ...], **options: float) -> bytes:
    """Return parameters and state after so many steps, with so many threads in turn."""
    random = np.random.default_rng(size)
    parameters = random.standard_normal(size, np.float32)
    gradients = random.standard_normal(size, np.float32)
    optimizer = adamas.Adam(parameters, lr=0.1, **options)
    for i in range(steps):
        adamas.set_num_threads(counts[i % len(counts)])
        optimizer.step(gradients)
    (state,) = optimizer.state_dict()["state"].values()
    return b"".join(each.tobytes() for each in (parameters, *state.values()))


# ── on the heels of each other ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0, "ema": 0.9}])
def test_thousands_of_steps_with_many_threads_have_the_bits_of_one_thread(options):
    alone = stepped(2000, 80 * TILE, (1,), **options)
    assert stepped(2000, 80 * TILE, (4,), **options) == alone
    assert stepped(2000, 80 * TILE, (3, 1, 2, 7), **options) == alone


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("phase", ["plain", "all"])
def test_a_forced_number_of_threads_has_the_bits_of_one_thread(size, phase):
    adamas.set_num_threads(1)
    alone = large_run(size=size, phase=phase)
    for count in (2, 3, 5, 16):
        adamas.set_num_threads(count)
        assert differences(alone, large_run(size=size, phase=phase)) == []


def test_optimizers_that_step_at_once_and_without_a_break_have_the_bits_they_have_alone():
    alone = [stepped(300, size, (3,)) for size in SIZES]
    together: dict[int, bytes] = {}

    def work(i: int) -> None:
        together[i] = stepped(300, SIZES[i], (2, 3))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(SIZES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] == each for i, each in enumerate(alone)] == [True] * len(SIZES)


# ── late, or never ─────────────────────────────────────────────────────────────────────────────

LATE = """
import ctypes, os, signal, sys, time
import adamas
from tests.support.cases import differences
from tests.support.threads import large_run

system = ctypes.CDLL(sys.argv[1])
late, delayed = (ctypes.c_int.in_dll(system, name) for name in ("late", "delayed"))
adamas.set_num_threads(1)
wanted = large_run()
adamas.set_num_threads(4)


def same():
    return differences(wanted, large_run()) == []


"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled tests/support/late.c."""
    library = tmp_path_factory.mktemp("late") / "late.so"
    source = ROOT / "tests" / "support" / "late.c"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", source, "-o", library], check=True)
    return str(library)


@linux
def test_no_step_waits_for_threads_that_never_wake(system):
    code = """
print(same())
late.value = -1
print(*[same() for _ in range(5)], delayed.value > 0)
"""
    done = python(LATE + code, system, LD_PRELOAD=system, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["True"] * 7, done.stderr


@linux
def test_what_waking_costs_can_be_measured_of_threads_that_never_wake(system):
    code = """
late.value = -1
print(*[same() for _ in range(5)], delayed.value > 0)
"""
    done = python(LATE + code, system, LD_PRELOAD=system, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["True"] * 6, done.stderr


@linux
def test_threads_that_wake_late_change_no_bit(system):
    code = """
for by in (1, 200, 3000) * 3:
    late.value = by
    time.sleep(0.003)  # so that they park
    if not same():
        print("other bits")
print(delayed.value > 0)
"""
    done = python(LATE + code, system, LD_PRELOAD=system, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["True"], done.stderr


@linux
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_of_fork_steps_whatever_the_threads_of_its_parent_wait_for(system):
    code = """
def in_child():
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for a thread it does not have
        os._exit(0 if same() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


print(same(), in_child())  # while threads ask for more work
late.value = 2000
print(same(), in_child())
"""
    done = python(LATE + code, system, LD_PRELOAD=system, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["True", "0"] * 2, done.stderr


@linux
def test_threads_of_the_pool_run_wherever_the_process_may_but_beside_the_caller():
    code = """
import os
import numpy as np
import adamas

before = set(os.listdir("/proc/self/task"))
adamas.set_num_threads(3)
parameters = np.ones(1 << 20, np.float32)
optimizer = adamas.Adam(parameters)
for _ in range(20):
    optimizer.step(parameters.copy())
allowed = os.sched_getaffinity(0)
for task in set(os.listdir("/proc/self/task")) - before:
    own = os.sched_getaffinity(int(task))
    print(own <= allowed and len(own) >= max(1, len(allowed) - 1))
"""
    done = python(code)
    assert done.stdout.split() == ["True"] * 2, done.stderr


@linux
def test_threads_of_the_pool_stay_where_the_process_may_run_when_that_changes():
    code = """
import os, time
import numpy as np
import adamas

before = set(os.listdir("/proc/self/task"))
adamas.set_num_threads(3)
parameters = np.ones(1 << 20, np.float32)
optimizer = adamas.Adam(parameters)


def step_after_parking():
    time.sleep(0.001)
    optimizer.step(parameters)


def workers():
    return [int(task) for task in set(os.listdir("/proc/self/task")) - before]


allowed = os.sched_getaffinity(0)
for _ in range(200):
    step_after_parking()
    own = min(map(os.sched_getaffinity, workers()), key=len)
    if len(own) < len(allowed):  # it has been beside the caller
        break
for task in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(task), own)
for _ in range(50):
    step_after_parking()
print(*[os.sched_getaffinity(task) <= own for task in workers()])
"""
    done = python(code)
    assert done.stdout.split() == ["True"] * 2, done.stderr
