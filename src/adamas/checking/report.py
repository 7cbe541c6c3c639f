"""What a check found, and how it is told."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

from adamas.checking.cost import Cost
from adamas.checking.distances import Distance
from adamas.checking.edges import Edge

__all__ = ["Line", "Miss", "Report"]


class Line(NamedTuple):
    """A line of the formula that differs from the rule's; empty where there is none."""

    here: str
    rule: str


class Miss(NamedTuple):
    """By how much an update misses the rule's at most, of the largest one; and at which step."""

    share: float
    step: int


@dataclass(frozen=True)
class Report:
    """What an implementation of Adam computes. ``str(report)`` is the whole of it as text."""

    #: The subject by name, and how it was called.
    subject: str
    convention: str
    #: What it computes, in one sentence.
    sentence: str
    #: Whether that is Adam as published, in one of the forms of docs/guides/check.md.
    faithful: bool
    #: What differs from any faithful form, in words; empty where nothing does.
    deviations: tuple[str, ...] = ()
    #: What is worth knowing besides: rounding, what cannot be set, what could not be tried.
    remarks: tuple[str, ...] = ()
    #: Other forms that the probes cannot tell from this one, each by what it differs in.
    rivals: tuple[str, ...] = ()
    #: The lines of the formula that differ, with the rule's.
    formula: tuple[Line, ...] = ()
    #: Distance from exact arithmetic, of the form that it has.
    distances: tuple[Distance, ...] = ()
    #: By how much it misses the rule; None where it does not.
    miss: Miss | None = None
    cost: Cost | None = None
    edges: tuple[Edge, ...] = ()

    def __str__(self) -> str:
        """Return the report as text, the sentence first."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of the report, without the end of line."""
        parts = [
            *_wrapped(self.sentence, "", ""),
            "",
            *_entry("subject", self.subject),
            *_entry("called as", self.convention),
        ]
        for line in self.formula:
            parts += _entry("formula", line.here or "–")
            parts += _entry("the rule", line.rule or "–")
        if self.miss is not None:
            share = f"{self.miss.share:.2g} of an update, at step {self.miss.step}"
            parts += _entry("misses", f"the rule by up to {share}")
        for each in self.distances:
            what = "updates" if each.run == "usual" else "parameters of size 1"
            parts += _entry(
                "distance",
                f"{each.worst:.3g} ulp at worst, {each.median:.2g} in the middle "
                f"({each.dtype}, {what}, {each.steps} steps)",
            )
        if self.cost is not None:
            small, large = self.cost.small * 1e6, self.cost.per_element * 1e9
            told = f"{small:.3g} µs for 128 parameters, {large:.3g} ns for each of "
            parts += _entry("cost", told + f"{self.cost.elements:,}")
        for rival in self.rivals:
            parts += _entry("or else", rival)
        for remark in self.remarks:
            parts += _entry("note", remark)
        width = max((len(edge.name) for edge in self.edges), default=0)
        for edge in self.edges:
            mark = " " if edge.harmless else "!"
            parts += _entry("edge", f"{mark} {edge.name:{width}}  {edge.happens}")
        return parts

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return dataclasses.asdict(self)


def _entry(name: str, text: str) -> list[str]:
    return _wrapped(text, f"{name:<11}", " " * 11)


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=100,
        initial_indent=first,
        subsequent_indent=then,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
