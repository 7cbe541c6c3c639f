"""Ratios: contenders are checked, then take turns, and the ratio is that of each round."""

from __future__ import annotations

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.bars import Bar, ratio_bars
from benchmarks.pictures import draw
from benchmarks.tables import Row, Run, Stored, Table, machine_note, markdown, short, why_not

HEADER = ("work", "against", "adamas", "other", "ratio", "from … to", "goal")


@dataclass(frozen=True)
class Pair:
    """Two ways to do one piece of work, and how their results are compared."""

    ours: Callable[[], object]
    other: Callable[[], object]
    #: Raises WrongResultError where the results differ by more than a stated bound.
    check: Callable[[], None]
    #: Returns when all that was begun is done, for work that goes on after its call has returned.
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Ratios(Table):
    """Rows that make a ``Pair``. A goal is a ratio: the other's time over ours."""

    def figure(self, row: Row, run: Run) -> Stored:
        pair = row.make(run.quick)
        pair.check()
        times = self.times(pair, run)
        ratios = [other / ours for ours, other in times]
        return {
            "ours": statistics.median(ours for ours, _ in times),
            "other": statistics.median(other for _, other in times),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "rounds": len(times),
        }

    def times(self, pair: Pair, run: Run) -> list[tuple[float, float]]:
        """Return what both take in each round, in seconds."""
        rounds, least = (3, 0.002) if run.quick else (11, 0.1)
        return taken_in_turn(pair, rounds=rounds, least=least)

    def draw(self, stored: Stored) -> None:
        goals = self._goals()
        bars = [
            Bar(
                f"{each['work']} · {each['against']}",
                each["ratio"],
                each["lowest"],
                each["highest"],
                goals.get((each["work"], each["against"])),
            )
            for each in stored["figures"]
            if not why_not(each)
        ]
        if bars:
            draw(f"benchmarks-{self.name}", functools.partial(ratio_bars, bars))

    def markdown(self, stored: Stored) -> str:
        return markdown(HEADER, self.cells(stored), words=2) + "\n" + machine_note(stored)

    def cells(self, stored: Stored) -> Iterator[tuple[str, ...]]:
        """Yield the cells of each line of the table, under ``HEADER``; goals are those of today."""
        goals = self._goals()
        for each in stored["figures"]:
            name = each["work"], each["against"]
            goal = goals.get(name)
            aim = "" if goal is None else f"{goal:g}×"
            if why := why_not(each):
                yield (*name, "", "", why, "", aim)
                continue
            spread = f"{short(each['lowest'])} … {short(each['highest'])}"
            times = time_in_words(each["ours"]), time_in_words(each["other"])
            yield (*name, *times, f"{short(each['ratio'])}×", spread, aim)

    def _goals(self) -> dict[tuple[str, str], float | None]:
        return {(row.work, row.against): row.goal for row in self.rows}


def taken_in_turn(pair: Pair, *, rounds: int, least: float) -> list[tuple[float, float]]:
    """Return the time of one call of each contender in each round, in seconds.

    A contender that takes less than ``least`` seconds is called as often as fills them.
    """
    works, wait = (pair.ours, pair.other), pair.wait
    calls = [_calls_that_take(least, work, wait) for work in works]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return [
            (_timed(pair.ours, calls[0], wait), _timed(pair.other, calls[1], wait))
            for _ in range(rounds)
        ]
    finally:
        if collecting:
            gc.enable()


def _calls_that_take(least: float, work: Callable[[], object], wait: Callable[[], object]) -> int:
    work()  # what is done once only (plans, buffers, threads) is not timed
    calls = 1
    while (taken := _timed(work, calls, wait) * calls) < least and calls < 1_000_000:
        calls = more_calls(calls, taken, least)
    return calls


def more_calls(calls: int, taken: float, least: float) -> int:
    """Return how many calls may take ``least`` seconds, where so many have ``taken`` less."""
    return max(2 * calls, math.ceil(calls * least / max(taken, 1e-9)))


def _timed(work: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    wait()
    return (time.perf_counter() - begin) / calls


def time_in_words(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
