"""What a reader must know of the machine to judge figures."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

import adamas
from adamas.engines import native

#: What adamas is compared with, or compared by.
COMPARED = {
    *("bitsandbytes", "jax", "keras", "numpy", "optax", "safetensors"),
    *("scikit-learn", "torch", "torchao"),
}


def machine() -> dict[str, str]:
    """Return what a reader must know of the machine to judge the figures."""
    found = {
        "processor": _processor(),
        "cores": str(native.processor_count()),
        "memory": _memory(),
        "system": platform.system(),
        "Python": platform.python_version(),
        "adamas": f"{adamas.__version__} ({native.target()}, {native.get_num_threads()} threads)",
    }
    installed = {each.name for each in importlib.metadata.distributions()}
    for package in sorted(COMPARED & installed):
        found[package] = importlib.metadata.version(package)
    if "torch" in sys.modules and why_no_cuda() is None:
        found["CUDA device"] = _cuda_device()
    return found


def why_no_cuda() -> str | None:
    """Return what is missing for work on a CUDA device, as half a sentence; None: nothing."""
    if importlib.util.find_spec("torch") is None:
        return "needs a CUDA device, and PyTorch to use it: torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "needs a CUDA device: torch.cuda.is_available() is False"
    return None


def free_cuda_memory() -> int:
    """Return the free bytes of the CUDA device, after all that nobody holds was given back."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _cuda_device() -> str:
    import torch

    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{about.name} ({about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda})"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"
