"""What a reader must know of the machine to judge figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import adamas
from adamas.engines import native

__all__ = ["machine"]


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
    for package in sorted(_COMPARED & installed):
        found[package] = importlib.metadata.version(package)
    return found


_COMPARED = {"bitsandbytes", "jax", "numpy", "optax", "scikit-learn", "torch", "torchao"}


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
