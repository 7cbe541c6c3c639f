"""What the tests need that is not there for every Python or machine, and which of them are slow.

JAX is there from Python 3.11 on, Triton on Linux. Without a GPU Triton's kernels run in its
interpreter. Which of the two it is, is settled when Triton is first imported, so before any test
is.

A test with many cases that are alike names how many of them are quick:
``@pytest.mark.quick_cases(3)``. Those are spread evenly over its cases, the first and the last
among them; all others are marked as slow.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("jax") else ["jax/*"]
if not find_spec("triton"):
    collect_ignore_glob += [
        "engines/test_triton*.py",
        "torch/test_cuda*.py",
        "benchmarks/test_cuda.py",
    ]

if not torch.cuda.is_available():
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
            (quick,) = marker.args
            last = len(cases) - 1
            kept = {round(i * last / max(1, quick - 1)) for i in range(quick)}
            for i, case in enumerate(cases):
                if i not in kept:
                    case.add_marker(pytest.mark.slow)
