"""Threads of the native engine, and threads of those who call it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import adamas
from adamas import processors
from adamas import state as states
from adamas.engines import Group, Slot, native
from adamas.options import Options, Phase
from adamas.statistics import TILE
from tests.support.cases import LARGE, PATIENCE, PHASES, Run, differences, python
from tests.support.threads import large_run, linux


@pytest.fixture(autouse=True)
def _threads_are_put_back():
    before = adamas.get_num_threads()
    yield
    adamas.set_num_threads(before)


def at_once(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with 0 … count - 1, each in a thread of its own, all begun together."""
    begin = threading.Barrier(count)
    errors: list[BaseException] = []

    def call(i: int) -> None:
        begin.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ── how many ───────────────────────────────────────────────────────────────────────────────────


def test_the_number_of_threads_is_the_one_that_was_set():
    for count in (1, 2, 7, 1024, 4.0, np.int32(5)):
        adamas.set_num_threads(count)
        assert adamas.get_num_threads() == count


@pytest.mark.parametrize("count", [0, -1, 1025, 10**30])
def test_a_number_of_threads_that_makes_no_sense_is_refused(count):
    adamas.set_num_threads(3)
    message = f"The number of threads is {count}, but it must be from 1 to 1024."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        adamas.set_num_threads(count)
    assert adamas.get_num_threads() == 3


@pytest.mark.parametrize("count", [True, 2.5, "2", None])
def test_what_is_no_number_of_threads_is_refused(count):
    adamas.set_num_threads(3)
    message = f"The number of threads is {count!r}, but it must be a whole number."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        adamas.set_num_threads(count)
    assert adamas.get_num_threads() == 3


def test_ADAMAS_NUM_THREADS_sets_the_number_of_threads():
    done = python("import adamas; print(adamas.get_num_threads())", ADAMAS_NUM_THREADS="3")
    assert done.stdout.split() == ["3"], done.stderr


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("value", ["two", "-1", "1.5", "0x2", " ", "²"])
def test_an_ADAMAS_NUM_THREADS_that_is_no_number_is_refused_at_import(value):
    done = python("import adamas", ADAMAS_NUM_THREADS=value)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ValueError: ADAMAS_NUM_THREADS is {value!r}, "
        "but it must be a whole number from 1 to 1024."
    )


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("value", ["0", "1025", "99999999999999999999"])
def test_an_ADAMAS_NUM_THREADS_out_of_range_is_refused_at_import(value):
    done = python("import adamas", ADAMAS_NUM_THREADS=value)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ValueError: ADAMAS_NUM_THREADS is {value}, but it must be from 1 to 1024."
    )


def test_at_first_there_is_a_thread_for_each_processor_that_the_process_may_use():
    unset = dict.fromkeys(("ADAMAS_NUM_THREADS", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"), "")
    done = python("import adamas; print(adamas.get_num_threads())", **unset)
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    assert allowed is not None
    limit = processors.quota()
    expected = allowed if limit is None else min(allowed, limit)
    assert done.stdout.split() == [str(expected)], done.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "1000000"}, 1),
        ({"OMP_NUM_THREADS": "1", "ADAMAS_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "8"}, 3),
    ],
)
def test_the_environment_bounds_the_threads_and_adamas_own_variable_sets_them(
    environment, expected
):
    unset = dict.fromkeys(("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"), "")
    done = python("import adamas; print(adamas.get_num_threads())", **{**unset, **environment})
    assert done.stdout.split() == [str(expected)], done.stderr


@linux
def test_a_process_that_may_use_one_processor_gets_one_thread():
    code = """
import os

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import adamas

print(adamas.get_num_threads())
"""
    done = python(code)
    assert done.stdout.split() == ["1"], done.stderr


# ── the pool ───────────────────────────────────────────────────────────────────────────────────

#: Defines started(): how many threads there are besides those that importing everything made.
COUNT_THREADS = f"""
import os, time
import numpy as np
import adamas


def step(size, times=3):
    parameters = np.ones(size, np.float32)
    optimizer = adamas.Adam(parameters)
    for _ in range(times):
        optimizer.step(parameters.copy())


def tasks():
    return set(os.listdir("/proc/self/task"))


def started():
    return len(tasks() - before)


LARGE = {LARGE}
before = tasks()
"""


@linux
def test_small_work_stays_on_the_calling_thread():
    code = """
adamas.set_num_threads(8)
for size in (0, 1, 5_000, 50_000):
    step(size)
print(started())
"""
    done = python(COUNT_THREADS + code)
    assert done.stdout.split() == ["0"], done.stderr


@linux
def test_large_work_starts_the_threads_it_was_allowed_once():
    code = """
adamas.set_num_threads(1)
step(LARGE)
print(started())
for count in (3, 3, 2, 4, 1):
    adamas.set_num_threads(count)
    step(LARGE)
    print(started())
"""
    done = python(COUNT_THREADS + code)
    assert done.stdout.split() == ["0", "2", "2", "2", "3", "3"], done.stderr


def test_an_idle_pool_parks():
    # A thread that waited by asking again and again would use all the time there is: two of them
    # at least the time slept on an idle machine, and still half of it where three others compete.
    # Parked, they use none, so the bound tells the two apart without timing how fast anything is.
    code = """
adamas.set_num_threads(3)
step(LARGE)
time.sleep(0.1)
used, passed = time.process_time(), time.monotonic()
time.sleep(0.5)
print((time.process_time() - used) / (time.monotonic() - passed))
"""
    preamble = COUNT_THREADS.replace("before = tasks()", "")
    done = python(preamble + code)
    assert float(done.stdout) < 0.5, done.stderr


@linux
def test_the_threads_of_the_pool_leave_signals_to_those_of_python():
    code = """
import signal

adamas.set_num_threads(3)
step(LARGE)
for task in tasks() - before:
    with open(f"/proc/self/task/{task}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    blocked = int(status["SigBlk"], 16)
    print(bool(blocked >> signal.SIGINT - 1 & 1) and bool(blocked >> signal.SIGTERM - 1 & 1))
"""
    done = python(COUNT_THREADS + code)
    assert done.stdout.split() == ["True"] * 2, done.stderr


@linux
def test_the_threads_of_the_pool_leave_faults_to_faulthandler():
    code = """
import signal

adamas.set_num_threads(3)
step(LARGE)
faults = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
for task in tasks() - before:
    with open(f"/proc/self/task/{task}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    blocked = int(status["SigBlk"], 16)
    print(any(blocked >> fault - 1 & 1 for fault in faults))
"""
    done = python(COUNT_THREADS + code)
    assert done.stdout.split() == ["False"] * 2, done.stderr


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("size", [LARGE, 150 * TILE])
def test_a_process_ends_while_its_pool_is_parked_and_while_it_works(size):
    code = f"""
import threading

adamas.set_num_threads(3)
step(LARGE)
threading.Thread(target=lambda: step({size}, 10**9), daemon=True).start()
time.sleep(0.05)
print("end")
"""
    preamble = COUNT_THREADS.replace("before = tasks()", "")
    for _ in range(8):  # the end meets the other thread at another place each time
        done = python(preamble + code, timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


# ── many Python threads ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", ["plain", "all"])
def test_optimizers_of_many_threads_at_once_get_the_bits_they_get_alone(phase):
    adamas.set_num_threads(3)
    sizes = [LARGE, 5, LARGE // 2, 200 * TILE, 3 * TILE, LARGE, 1, 120 * TILE + 1]
    alone = [large_run(i, size, phase=phase) for i, size in enumerate(sizes)]
    together: dict[int, Run] = {}

    def work(i: int) -> None:
        together[i] = large_run(i, sizes[i], phase=phase)

    for _ in range(3):
        at_once(work, len(sizes))
        assert [differences(alone[i], together[i]) for i in range(len(sizes))] == [[]] * len(sizes)


def test_threads_may_change_the_number_of_threads_while_others_step():
    alone = large_run()
    together: dict[int, Run] = {}

    def work(i: int) -> None:
        for count in (1, 4, 2, 3):
            adamas.set_num_threads(count)
            together[i] = large_run()

    at_once(work, 4)
    assert [differences(alone, together[i]) for i in range(4)] == [[]] * 4


def plan_over(parameter: np.ndarray[Any, Any]) -> tuple[native.Plan, states.State]:
    options = Options(lr=0.1)
    state = states.create(parameter, options)
    return native.Plan([Group(options, (Slot(parameter, state),))], Phase()), state


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_second_step_of_one_plan_at_the_same_time_is_refused_and_does_no_harm(size):
    gradients = [np.full(size, 2, np.float32)]
    one, another = np.ones(size, np.float32), np.ones(size, np.float32)
    plan, state = plan_over(one)
    undisturbed, its_state = plan_over(another)
    refusals: list[str] = []

    def try_to_step() -> None:
        with pytest.raises(RuntimeError) as caught:
            plan.step(gradients, 1, [0.1])
        refusals.append(str(caught.value))

    def rates() -> Iterator[float]:  # read when the step has begun
        thread = threading.Thread(target=try_to_step)
        thread.start()
        thread.join()
        yield 0.1

    for number in (1, 2):
        plan.step(gradients, number, rates())  # type: ignore[arg-type]
        undisturbed.step(gradients, number, [0.1])
    assert refusals == ["This optimizer is making a step in another thread."] * 2
    assert one.tobytes() == another.tobytes()
    for name, entry in state.arrays().items():
        assert entry.tobytes() == its_state.arrays()[name].tobytes()


def test_a_step_that_fails_lets_the_next_one_go_ahead():
    parameter = np.ones(3, np.float32)
    plan, _ = plan_over(parameter)

    def rates() -> Iterator[float]:
        raise KeyError("no rate")
        yield

    with pytest.raises(KeyError, match="no rate"):
        plan.step([np.ones(3, np.float32)], 1, rates())  # type: ignore[arg-type]
    assert (parameter == 1).all()
    plan.step([np.ones(3, np.float32)], 1, [0.1])
    assert (parameter < 1).all()


@pytest.mark.parametrize("size", [3, 200 * TILE])
def test_steps_of_one_optimizer_from_many_threads_are_counted_made_in_turn_or_refused(size):
    gradients = np.full(size, 2, np.float32)
    shared, alone = np.ones(size, np.float32), np.ones(size, np.float32)
    optimizer, judge = adamas.Adam(shared, lr=0.1), adamas.Adam(alone, lr=0.1)
    made: list[int] = []

    def stepped() -> bool:
        try:
            optimizer.step(gradients)
        except RuntimeError as error:
            if str(error) != "This optimizer is making a step in another thread.":
                raise
            return False
        return True

    def work(i: int) -> None:
        made.extend(i for _ in range(200) if stepped())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        at_once(work, 4)
    finally:
        sys.setswitchinterval(interval)
    for _ in made:
        judge.step(gradients)
    assert optimizer.steps == len(made) > 0
    assert shared.tobytes() == alone.tobytes()


# ── Python's lock ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("phase", ["plain", "statistics"])
def test_other_python_threads_run_while_a_step_is_under_way(threads, phase):
    # Another thread looks for a moment at which the first parameter has been stepped and the last
    # has not. While a step holds Python's lock there is no such moment to be seen from Python.
    adamas.set_num_threads(threads)
    parameter = np.zeros(6_000_000, np.float32)
    gradient = np.ones_like(parameter)
    options = Options(lr=1.0)
    slot = Slot(parameter, states.create(parameter, options))
    plan = native.Plan([Group(options, (slot,))], PHASES[phase])
    first, last = (ctypes.c_float.from_buffer(parameter, at) for at in (0, parameter.nbytes - 4))
    amid, over = threading.Event(), threading.Event()

    def look() -> None:
        while not over.is_set():
            # In this order: where the last moves between the two readings, they are equal.
            after, before = last.value, first.value
            if before != after and first.value == before and last.value == after:
                amid.set()
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(1, 500):
        plan.step([gradient], number, [1.0])
        if amid.is_set():
            break
    over.set()
    watcher.join()
    assert amid.is_set()
