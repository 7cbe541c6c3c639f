"""Plans of the Triton engine over tensors of all kinds, and its interpreter at more speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter

from adamas.engines import Group
from adamas.engines.triton import Plan
from adamas.engines.triton.jobs import Job
from adamas.engines.triton.launches import Launches
from adamas.options import Phase

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

if DEVICE.type == "cpu":
    # The interpreter puts its language in place again in every function that a kernel calls, which
    # takes most of its time; once in each kernel is enough.
    _patch = interpreter._patch_lang

    def _patch_once(fn: Any) -> Any:
        languages = [each for each in fn.__globals__.values() if each is tl or each is tl.core]
        names = {each.static_assert.__name__ for each in languages}
        return interpreter._LangPatchScope() if names == {"_new_static_assert"} else _patch(fn)

    interpreter._patch_lang = _patch_once


def plan_with(
    groups: Sequence[Group], phase: Phase, change: Callable[[Job], Job], **more: Any
) -> Plan:
    """A plan whose jobs are changed before they are launched; ``more`` is for the launches."""
    plan = Plan(groups, phase)
    plan.jobs = list(map(change, plan.jobs))
    options = [group.options for group in groups]
    # Options say nothing of steps whose numbers are given.
    plan.launches = Launches(
        plan.jobs, [None if plan.jobs[0].is_given else each for each in options], phase, **more
    )
    return plan


def step_with(plan: Plan, *arguments: Any, **inputs: Any) -> Any:
    """Make a step of a plan that is given more than arrays: see ``Inputs``."""
    step = plan.launches.step
    plan.launches.step = lambda given, skipped: step(given._replace(**inputs), skipped)
    try:
        return plan.step(*arguments)
    finally:
        plan.launches.step = step


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """Room for the same elements, at an address that is no multiple of 16."""
    return tensor.new_zeros(tensor.numel() + 1)[1:]


def with_copy(dtype: str | None) -> Any:
    """The engine, with a copy of each parameter in another dtype: ``plan.jobs[…].copy``."""

    def copied(job: Job) -> Job:
        if dtype is None:
            return job
        return job._replace(copy=torch.full_like(job.parameter, -3.0, dtype=getattr(torch, dtype)))

    return SimpleNamespace(Plan=partial(plan_with, change=copied))
