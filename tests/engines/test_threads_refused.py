"""Threads that the system does not grant to the native engine, and processes that fork."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.cases import ROOT, python
from tests.support.threads import linux

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


# ── threads that cannot be started ─────────────────────────────────────────────────────────────

#: Defines large(), whose steps are for eight threads, and what this thread blocks.
GRANTED = """
import ctypes, os, signal, sys, time
import adamas
from tests.support.cases import differences
from tests.support.threads import large_run

system = ctypes.CDLL(sys.argv[1]) if len(sys.argv) > 1 else None


def grant(count):
    ctypes.c_int.in_dll(system, "granted").value = count


def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def count_threads():
    return len(os.listdir("/proc/self/task"))


adamas.set_num_threads(1)
wanted = large_run()
adamas.set_num_threads(8)
at_first = count_threads()


def large():
    return differences(wanted, large_run()) == [], count_threads() - at_first, blocked()
"""


@pytest.fixture(scope="module")
def granted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled tests/support/granted.c."""
    library = tmp_path_factory.mktemp("granted") / "granted.so"
    source = ROOT / "tests" / "support" / "granted.c"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", source, "-o", library, "-ldl"], check=True)
    return str(library)


@linux
@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_threads_than_asked_for_give_the_same_bits_and_block_no_signal(granted, count):
    code = f"""
grant({count})
print(large(), large())
"""
    done = python(GRANTED + code, granted, LD_PRELOAD=granted, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.strip() == f"{(True, count, set())} {(True, count, set())}", done.stderr


@linux
def test_signals_that_a_thread_blocks_itself_stay_blocked_and_no_others(granted):
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
grant(1)
print(large() == (True, 1, {signal.SIGUSR1}))
"""
    done = python(GRANTED + code, granted, LD_PRELOAD=granted, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["True"], done.stderr


@linux
def test_threads_that_were_refused_are_asked_for_again(granted):
    code = """
grant(2)
print(large()[:2])
grant(10)
time.sleep(1.1)
print(large()[:2])
"""
    done = python(GRANTED + code, granted, LD_PRELOAD=granted, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.splitlines() == ["(True, 2)", "(True, 7)"], done.stderr


@linux
def test_a_child_of_fork_that_gets_no_threads_has_the_same_bits_and_blocks_no_signal(granted):
    code = """
print(large(), flush=True)  # what is in a buffer would be the child's, too
child = os.fork()
if child == 0:
    signal.alarm(30)
    grant(0)
    at_first = count_threads()
    print(large(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(large())
"""
    done = python(GRANTED + code, granted, LD_PRELOAD=granted, OPENBLAS_NUM_THREADS="1")
    wanted = [str((True, count, set())) for count in (7, 0, 7)]
    assert done.stdout.splitlines() == wanted, done.stderr


@linux
def test_under_a_limit_of_the_user_a_step_is_made_and_ctrl_c_is_heard():
    code = """
import resource

if os.geteuid() == 0:  # who is not limited
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
print(large())
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("heard")
"""
    done = python(GRANTED + code, OPENBLAS_NUM_THREADS="1")
    assert done.stdout.splitlines() == [str((True, 0, set())), "heard"], done.stderr


# ── fork ───────────────────────────────────────────────────────────────────────────────────────

FORK = """
import os, signal, sys, threading
import adamas
from tests.support.cases import differences
from tests.support.threads import large_run

adamas.set_num_threads(3)
wanted = large_run()  # which starts the pool


def same():
    return differences(wanted, large_run()) == []


def in_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for a thread it does not have
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

"""


@forks
def test_a_child_of_fork_gets_the_same_bits_and_its_parent_goes_on():
    code = """
print(in_child(same), same())
print(in_child(lambda: same() and in_child(same) == 0), same())
"""
    done = python(FORK + code)
    assert done.stdout.split() == ["0", "True"] * 2, done.stderr


@forks
@linux
def test_a_child_of_fork_has_a_pool_of_its_own():
    code = """
def threads():
    return len(os.listdir("/proc/self/task"))


print(in_child(lambda: threads() == 1 and same() and threads() == 3))
"""
    done = python(FORK + code)
    assert done.stdout.split() == ["0"], done.stderr


@forks
def test_a_process_may_fork_while_another_of_its_threads_steps():
    code = """
stop = threading.Event()


def go_on():
    while not stop.is_set():
        large_run(steps=1)


other = threading.Thread(target=go_on)
other.start()
statuses = [in_child(same) for _ in range(10)]
stop.set()
other.join()
print(*statuses, same())
"""
    done = python(FORK + code)
    assert done.stdout.split() == ["0"] * 10 + ["True"], done.stderr


@forks
def test_workers_of_multiprocessing_that_were_forked_get_the_same_bits():
    code = """
import multiprocessing


def check(i):
    return same()


with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(check, range(4)), same())
"""
    done = python(FORK + code)
    assert done.stdout.split() == ["True"] * 5, done.stderr
