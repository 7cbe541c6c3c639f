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
    #: Whether that is Adam as published, in one of the variants of docs/guides/check.md.
    faithful: bool
    #: What differs from any faithful variant, in words; empty where nothing does.
    deviations: tuple[str, ...] = ()
    #: What is worth knowing besides: rounding, what cannot be set, what could not be tried.
    remarks: tuple[str, ...] = ()
    #: Other variants that the probes cannot tell from this one, each by what it differs in.
    rivals: tuple[str, ...] = ()
    #: The lines of the formula that differ, with the rule's.
    formula: tuple[Line, ...] = ()
    #: Distance from exact arithmetic, of the variant that it is.
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
        entries = [("subject", self.subject), ("called as", self.convention)]
        for line in self.formula:
            entries += [("formula", line.here or "–"), ("the rule", line.rule or "–")]
        if self.miss is not None:
            share = f"{self.miss.share:.2g} of an update, at step {self.miss.step}"
            entries.append(("misses", f"the rule by up to {share}"))
        for each in self.distances:
            what = "updates" if each.run == "usual" else "parameters of size 1"
            told = f"{each.worst:.3g} ulp at worst, {each.median:.2g} in the middle "
            entries.append(("distance", f"{told}({each.dtype}, {what}, {each.steps} steps)"))
        if self.cost is not None:
            small, large = self.cost.small * 1e6, self.cost.per_element * 1e9
            told = f"{small:.3g} µs for 128 parameters, {large:.3g} ns for each of "
            entries.append(("cost", told + f"{self.cost.elements:,}"))
        entries += [("or else", rival) for rival in self.rivals]
        entries += [("note", remark) for remark in self.remarks]
        width = max((len(edge.name) for edge in self.edges), default=0)
        for edge in self.edges:
            mark = " " if edge.harmless else "!"
            entries.append(("edge", f"{mark} {edge.name:{width}}  {edge.happens}"))
        wrapped = [line for entry in entries for line in _wrapped(*entry)]
        return [*_wrapped("", self.sentence), "", *wrapped]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return dataclasses.asdict(self)


def _wrapped(name: str, text: str) -> list[str]:
    indent = 11 if name else 0
    return textwrap.wrap(
        text,
        width=80,
        initial_indent=name.ljust(indent),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
