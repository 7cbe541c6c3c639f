"""What the tests need that is not there for every Python or machine: JAX, from 3.11 on; a GPU.

Without one, Triton's kernels run in its interpreter. Which of the two it is, is settled when Triton
is first imported, so before any test is.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

collect_ignore_glob = [] if find_spec("jax") else ["test_jax*.py"]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
