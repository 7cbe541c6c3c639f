"""Rows and how they are measured: contenders take turns, and the ratio is that of each round."""

from __future__ import annotations

import gc
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adamas.bench.hardware import machine

__all__ = ["Figure", "Pair", "Report", "Row", "run"]


@dataclass(frozen=True)
class Pair:
    """Two ways to do one piece of work, and how their results are compared."""

    ours: Callable[[], object]
    other: Callable[[], object]
    #: Raises WrongResultError where the results differ by more than a stated bound.
    check: Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    against: str
    #: Ratio of the other's time to ours that is to be reached; None where a row only informs.
    goal: float | None
    #: Makes the contenders; ``quick`` asks for a small size.
    make: Callable[[bool], Pair]
    #: Modules that must be installed.
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """What was measured for a row. Times are medians, in seconds."""

    work: str
    against: str
    goal: float | None
    ours: float | None = None
    other: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    rounds: int = 0
    #: Names of modules that are missing; then nothing was measured.
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All figures of one run, with the machine."""

    machine: dict[str, str]
    quick: bool
    figures: tuple[Figure, ...]


def run(
    rows: Iterable[Row], *, quick: bool = False, tell: Callable[[str], object] = lambda _: None
) -> Report:
    """Measure ``rows`` one after another; ``tell`` hears the name of each before it begins."""
    figures: list[Figure] = []
    for row in rows:
        tell(f"{row.work} · {row.against}")
        figures.append(_measured(row, quick))
    return Report(machine(), quick, tuple(figures))


def _measured(row: Row, quick: bool) -> Figure:
    missing = tuple(name for name in row.needs if importlib.util.find_spec(name) is None)
    if missing:
        return Figure(row.work, row.against, row.goal, missing=missing)
    pair = row.make(quick)
    pair.check()
    times = _taken_in_turn(pair, rounds=3 if quick else 11, least=0.002 if quick else 0.1)
    ratios = [other / ours for ours, other in times]
    return Figure(
        row.work,
        row.against,
        row.goal,
        ours=statistics.median(ours for ours, _ in times),
        other=statistics.median(other for _, other in times),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        rounds=len(times),
    )


def _taken_in_turn(pair: Pair, *, rounds: int, least: float) -> list[tuple[float, float]]:
    """Return the time of one call of each contender in each round, in seconds.

    A contender that takes less than ``least`` seconds is called as often as fills them.
    """
    calls = [_calls_that_take(least, work) for work in (pair.ours, pair.other)]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return [(_timed(pair.ours, calls[0]), _timed(pair.other, calls[1])) for _ in range(rounds)]
    finally:
        if collecting:
            gc.enable()


def _calls_that_take(least: float, work: Callable[[], object]) -> int:
    work()  # what is done once only (plans, buffers, threads) is not timed
    calls = 1
    while (taken := _timed(work, calls) * calls) < least and calls < 1_000_000:
        calls = max(calls * 2, math.ceil(calls * least / max(taken, 1e-9)))
    return calls


def _timed(work: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls
