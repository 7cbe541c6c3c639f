"""Steps of NumPy arrays, beside the formula in NumPy and scikit-learn; memory; the import."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import adamas
from benchmarks.bandwidth import read_modify_write
from benchmarks.checks import LR, ROUNDINGS, Array, require_close
from benchmarks.ratios import Pair
from benchmarks.tables import C_COMPILER, Row


def rows() -> list[Row]:
    """Return the rows of NumPy."""
    return [
        Row("NumPy step, 16 M", "the formula in NumPy", 12, against(_formula)),
        Row("NumPy step, 16 M", "the formula with out=", None, against(_formula_in_place)),
        Row("NumPy step, 16 M", "scikit-learn", 15, against(_sklearn), ("sklearn",)),
        Row("step, 64 M", "reading and writing the arrays", 0.95, _bandwidth, (C_COMPILER,)),
        Row("NumPy step of 100 elements", "3 µs", 1, _hundred),
        Row("import adamas", "import numpy + 50 ms", 1, _imports),
    ]


def drawn(count: int) -> tuple[Array, Array]:
    """Return a parameter and a gradient, away from 0: there dialects of ε differ, not roundings."""
    random = np.random.default_rng(0)
    p, g = (random.standard_normal(count, np.float32) for _ in range(2))
    return p, g + np.copysign(np.float32(0.1), g)


Stepper = Callable[[Array, Array], Callable[[], object]]


def against(other: Stepper) -> Callable[[bool], Pair]:
    """Return a pair of steps over 16 M elements: ours and what ``other`` makes of its arrays."""

    def make(quick: bool) -> Pair:
        ours, gradient = drawn(1 << 12 if quick else 1 << 24)
        theirs = ours.copy()
        optimizer = adamas.Adam(ours, lr=LR)
        step = other(theirs, gradient)

        def check() -> None:
            for _ in range(3):
                optimizer.step(gradient)
                step()
            bound = 3 * LR * ROUNDINGS + 4 * np.finfo(np.float32).eps * np.abs(ours).max()
            require_close(ours, theirs, float(bound), "three steps of Adam")

        return Pair(lambda: optimizer.step(gradient), step, check)

    return make


def _formula(p: Array, g: Array) -> Callable[[], object]:
    """Return a step as one writes it from the paper."""
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0

    def step() -> None:
        nonlocal m, v, t
        t += 1
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat = m / (1 - 0.9**t)
        v_hat = v / (1 - 0.999**t)
        p[...] -= LR * m_hat / (np.sqrt(v_hat) + 1e-8)

    return step


def _formula_in_place(p: Array, g: Array) -> Callable[[], object]:
    """Return a step that allocates nothing, as one writes it who has measured."""
    m, v, t = np.zeros_like(p), np.zeros_like(p), 0
    scratch, other = np.empty_like(p), np.empty_like(p)

    def step() -> None:
        nonlocal t
        t += 1
        np.multiply(m, 0.9, out=m)
        np.multiply(g, 0.1, out=scratch)
        np.add(m, scratch, out=m)
        np.multiply(v, 0.999, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 0.001, out=scratch)
        np.add(v, scratch, out=v)
        np.multiply(v, 1 / (1 - 0.999**t), out=scratch)
        np.sqrt(scratch, out=scratch)
        np.add(scratch, 1e-8, out=scratch)
        np.multiply(m, LR / (1 - 0.9**t), out=other)
        np.divide(other, scratch, out=other)
        np.subtract(p, other, out=p)

    return step


def _sklearn(p: Array, g: Array) -> Callable[[], object]:
    from sklearn.neural_network._stochastic_optimizers import (  # pyright: ignore
        AdamOptimizer,  # pyright: ignore
    )

    optimizer: Any = AdamOptimizer([p], learning_rate_init=LR)
    return lambda: optimizer.update_params([p], [g])


def _bandwidth(quick: bool) -> Pair:
    p, g = drawn(1 << 12 if quick else 1 << 26)
    optimizer = adamas.Adam(p, lr=LR)
    state = optimizer.groups[0].states[0]
    arrays: list[Any] = [p, g, state.mean, state.square]

    def check() -> None:
        twin = p[:4096].copy()
        judge = adamas.Adam(twin, lr=LR, engine="reference")
        optimizer.step(g)
        judge.step(g[:4096].copy())
        require_close(p[:4096], twin, 0.0, "a step and the reference engine's")

    return Pair(lambda: optimizer.step(g), lambda: read_modify_write(arrays), check)


def _hundred(quick: bool) -> Pair:  # noqa: ARG001
    p, g = drawn(100)
    optimizer = adamas.Adam(p, lr=LR)

    def budget() -> None:
        until = time.perf_counter() + 3e-6
        while time.perf_counter() < until:
            pass

    def check() -> None:
        twin = p.copy()
        judge = adamas.Adam(twin, lr=LR, engine="reference")
        optimizer.step(g)
        judge.step(g)
        require_close(p, twin, 0.0, "a step and the reference engine's")

    return Pair(lambda: optimizer.step(g), budget, check)


def _imports(quick: bool) -> Pair:  # noqa: ARG001
    def imported(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    def other() -> None:
        imported("numpy")
        time.sleep(0.05)

    return Pair(lambda: imported("adamas"), other, lambda: None)
