"""``adamas report``: one page of what records of runs tell.

``reading`` makes a `Run` of a record, ``findings`` says what stands out in it, each by a number and
a threshold, ``charts`` has what is drawn, and ``page`` puts it into one file that needs no network.
"""

from __future__ import annotations

from adamas.report.findings import Finding, Layer, Source, findings
from adamas.report.page import page
from adamas.report.reading import Group, Run, Tensor, read

__all__ = [
    "Finding",
    "Group",
    "Layer",
    "Run",
    "Source",
    "Tensor",
    "findings",
    "page",
    "read",
]
