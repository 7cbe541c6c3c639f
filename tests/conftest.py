"""What the tests need that is not there for every Python or machine, and which of them are slow.

JAX is there from Python 3.11 on, Triton on Linux. Without a GPU Triton's kernels run in its
interpreter. Which of the two it is, is settled when Triton is first imported, so before any test
is. Where wheels are built there is no framework at all: the tests of NumPy arrays do without.

A test with many cases that are alike names how many of them are quick:
``@pytest.mark.quick_cases(3)``. Those show as many values of its parameters as three cases can
(``support/quick_cases.py``); all others are marked as slow.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from importlib.util import find_spec

import pytest

from tests.support.quick_cases import quick_cases

collect_ignore_glob = [] if find_spec("jax") else ["jax/*"]
if not find_spec("triton"):
    collect_ignore_glob += [
        "engines/test_triton*.py",
        "torch/test_cuda*.py",
        "benchmarks/test_cuda.py",
    ]

if not find_spec("torch"):
    collect_ignore_glob += [
        "definition/test_settings*.py",
        "engines/test_tensor_watch*.py",
        "engines/test_triton*.py",
    ]
if not find_spec("pandas"):
    collect_ignore_glob += ["definition/test_smoothing.py"]


def has_cuda():
    """Whether torch can use a GPU."""
    import torch

    return torch.cuda.is_available()


if not (find_spec("torch") and has_cuda()):
    os.environ["TRITON_INTERPRET"] = "1"

# Shells let what they start in the background ignore Ctrl-C, and so would the processes of tests,
# which send it to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        marker = cases[0].get_closest_marker("quick_cases")
        if marker is not None:
            (count,) = marker.args
            quick = quick_cases([values_of(case) for case in cases], count)
            for i, case in enumerate(cases):
                if i not in quick:
                    case.add_marker(pytest.mark.slow)


def values_of(case):
    """The values of a test's parameters and fixtures in one case, each with its name."""
    return frozenset((name, repr(value)) for name, value in case.callspec.params.items())
