"""The plans that torch optimizers make while somebody looks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from adamas.torch.plan import Plan, Planner

__all__ = ["plans_made"]


@contextmanager
def plans_made() -> Generator[list[Plan]]:
    """Give a list, to which every plan is added that is made as long as the context is open."""
    made: list[Plan] = []
    planned = Planner.planned

    def noted(*given: Any, **named: Any) -> Plan:
        made.append(planned(*given, **named))
        return made[-1]

    with mock.patch.object(Planner, "planned", noted):
        yield made
