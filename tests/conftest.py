"""What the tests need that is not there for every Python or machine: JAX, from 3.11 on; Triton,
which is made for Linux; a GPU.

Without one, Triton's kernels run in its interpreter. Which of the two it is, is settled when Triton
is first imported, so before any test is.
"""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import torch

collect_ignore_glob = [] if find_spec("jax") else ["jax/*"]
if not find_spec("triton"):
    collect_ignore_glob += [
        "engines/test_triton*.py",
        "torch/test_cuda.py",
        "benchmarks/test_cuda.py",
    ]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Shells let what they start in the background ignore Ctrl-C, and so would the processes of tests,
# which send it to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
