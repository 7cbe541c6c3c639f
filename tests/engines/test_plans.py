"""What every engine promises of its Plan, whatever it computes with: ``adamas.engines``."""

from __future__ import annotations

import dataclasses
import re
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import pytest

import adamas
from adamas import state as states
from adamas.engines import STEPS, Group, Slot, native, reference, triton
from adamas.engines.native import outcome_of
from adamas.options import Options, Phase
from tests.support.cases import PATIENCE, python, unreadable

NEEDS_TRITON = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
if find_spec("triton"):
    import tests.support.triton_plans  # noqa: F401  its interpreter is faster

ENGINES = [native, reference, pytest.param(triton, marks=NEEDS_TRITON)]
OPTIONS = Options(lr=0.1, state="8bit")


class Case:
    """Two parameters that an engine steps, with everything that a step may touch."""

    def __init__(self, engine, phase, ema=False):
        random = np.random.default_rng(1)
        self.arrays = [random.standard_normal(n).astype(np.float32) for n in (70, 6)]
        self.slots = tuple(Slot(p, states.create(p, OPTIONS, ema=ema)) for p in self.arrays)
        self.plan = engine.Plan([Group(OPTIONS, self.slots)], phase)
        self.record = [0, 0, None]
        self.gradients = [random.standard_normal(n).astype(np.float32) for n in (70, 6)]

    def step(self, gradients=None):
        gradients = self.gradients if gradients is None else gradients
        return self.plan.step(gradients, self.record[0] + 1, [0.1], self.record)

    def values(self):
        """The bytes of all arrays, and the record."""
        found = {f"{i}": p.tobytes() for i, p in enumerate(self.arrays)}
        for i, slot in enumerate(self.slots):
            found |= {f"{i}.{k}": x.tobytes() for k, x in slot.state.arrays().items()}
        steps, skipped, outcome = self.record
        return found, steps, skipped, repr(outcome_of(outcome))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_declines_gradients_that_it_cannot_read_and_touches_nothing(engine):
    p, q = np.ones(6, np.float32), np.ones(6, np.float32)
    options = Options()
    slots = tuple(Slot(x, states.create(x, options)) for x in (p, q))
    plan = engine.Plan([Group(options, slots)], Phase())
    record = [3, 1, None]
    for name, gradients in unreadable(p, q).items():
        assert plan.step(gradients, 4, [0.1], record) is NotImplemented, name
    assert (p == 1).all()
    assert (q == 1).all()
    assert not slots[0].state.mean.any()  # type: ignore[union-attr]
    assert record == [3, 1, None]
    assert plan.step([np.ones_like(p), np.ones_like(q)], 4, [0.1], record) is None
    assert record == [4, 1, None]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_step_that_is_left_out_touches_nothing_but_what_counts_it(policy, engine):
    case = Case(engine, Phase(on_nonfinite=policy, ema=0.9, clip_norm=1.0), ema=True)
    assert case.step().applied
    before, *_ = case.values()
    bad = [each.copy() for each in case.gradients]
    bad[0][69] = np.inf
    outcome = case.step(bad)
    found, steps, skipped, noted = case.values()
    assert found == before
    assert (outcome.applied, outcome.norm, outcome.nonfinite) == (False, np.inf, (1, 0))
    assert (steps, skipped) == (1, int(policy == "skip"))
    assert noted == repr(outcome)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("phase", [Phase(), Phase(on_nonfinite="skip", ema=0.5)])
def test_the_record_of_a_run_is_that_of_the_reference(phase, engine):
    case, judge = (Case(each, phase, ema=phase.ema is not None) for each in (engine, reference))
    for step in range(3):
        gradients = [each * (step + 1) for each in case.gradients]
        if step == 1:
            gradients[1][3] = np.nan
        for each in (case, judge):
            each.step(gradients)
        assert case.values() == judge.values(), step


@pytest.mark.parametrize("engine", ENGINES)
def test_an_average_that_the_phase_does_not_ask_for_stays_as_it_is(engine):
    case = Case(engine, Phase(), ema=True)
    averages = [slot.state.ema.copy() for slot in case.slots]
    case.step()
    for slot, average in zip(case.slots, averages, strict=True):
        np.testing.assert_array_equal(slot.state.ema, average)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_changed_between_steps_is_what_the_next_one_starts_from(engine):
    runs = []
    for each in (engine, reference):
        case = Case(each, Phase(ema=0.9), ema=True)
        case.step()
        case.arrays[0][:] *= 0.5
        case.slots[1].state.ema[...] = 3.0
        case.step()
        runs.append(case.values())
    assert runs[0] == runs[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_that_may_only_be_read_are_read(engine):
    case, judge = Case(engine, Phase()), Case(engine, Phase())
    for each in case.gradients:
        each.flags.writeable = False
    case.step()
    judge.step()
    assert case.values() == judge.values()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plan_needs_a_rate_for_each_group(engine):
    case = Case(engine, Phase())
    before = case.values()
    for wrong in ([], [0.1, 0.1]):
        with pytest.raises(ValueError, match=r"^A step needs one learning rate for each group\.$"):
            case.plan.step(case.gradients, 1, wrong, case.record)
    assert case.values() == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [0, -1, 2**53 + 1, 2**70, 1.5, "1", None, True])
def test_a_plan_refuses_what_is_no_number_of_a_step(engine, number):
    case = Case(engine, Phase())
    before = case.values()
    message = (
        f"The number of the step is {number!r}, but it must be a whole number, at least 1 and at "
        "most 2^53."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        case.plan.step(case.gradients, number, [0.1], case.record)
    assert case.values() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_whole_number_of_any_type_is_that_of_a_step(engine):
    values = []
    for number in (3, np.int32(3), 3.0):
        case = Case(engine, Phase())
        case.plan.step(case.gradients, number, [0.1], case.record)
        values.append(case.values())
        assert (type(case.record[STEPS]), case.record[STEPS]) == (int, 3)
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("engine", [native, ENGINES[2]])
def test_a_plan_declines_where_a_parameter_has_another_shape_by_now(engine):
    case = Case(engine, Phase())
    case.step()
    case.arrays[1].shape = (2, 3)
    before = case.values()
    gradients = [case.gradients[0], case.gradients[1].reshape(2, 3)]
    assert case.step(gradients) is NotImplemented
    assert case.values() == before


# ── Triton, which computes elsewhere ───────────────────────────────────────────────────────────


@NEEDS_TRITON
def test_gradients_in_memory_that_a_step_writes_are_those_of_before_it():
    runs = []
    for apart in (False, True):
        case = Case(triton, Phase(clip_norm=1.0))
        case.step([each.copy() if apart else each for each in case.arrays])
        runs.append(case.values())
    assert runs[0] == runs[1]


@NEEDS_TRITON
def test_an_interrupt_among_the_kernels_leaves_nothing_of_the_step(monkeypatch):
    from adamas.engines.triton.launches import Launches

    case, judge = (Case(triton, Phase(ema=0.9), ema=True) for _ in range(2))
    for each in (case, judge):
        each.step()
    before = case.values()
    launch = Launches.step

    def interrupted(*arguments):
        launch(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Launches, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            case.step()
    assert case.values() == before
    for each in (case, judge):
        each.step()
    assert case.values() == judge.values()


TREES = {
    "an array": lambda: np.linspace(-1, 1, 40, dtype=np.float32),
    "strides": lambda: np.linspace(-1, 1, 40, dtype=np.float32)[::2].reshape(4, 5).T,
    "groups": lambda: [
        {"params": {"w": np.ones((3, 2)), "b": np.float32([1, 2])}, "lr": 0.5},
        {"params": np.array(1.0), "weight_decay": 0.1},
    ],
    "half precision": lambda: [
        np.ones(9, ml_dtypes.bfloat16),
        np.ones((2, 3), np.float16),
    ],
}


def leaves(tree):
    if isinstance(tree, dict):
        return [x for key in tree if key not in ("lr", "weight_decay") for x in leaves(tree[key])]
    return [x for each in tree for x in leaves(each)] if isinstance(tree, list) else [tree]


def gradients_like(tree):
    if isinstance(tree, dict):
        if "params" in tree:
            return gradients_like(tree["params"])
        return {key: gradients_like(each) for key, each in tree.items()}
    if isinstance(tree, list):
        return [gradients_like(each) for each in tree]
    return np.cos(np.arange(tree.size)).reshape(tree.shape).astype(tree.dtype)


@pytest.mark.quick_cases(1)
@NEEDS_TRITON
@pytest.mark.parametrize("tree", TREES)
def test_an_optimizer_steps_its_arrays_by_triton_with_the_bits_of_the_native_engine(tree):
    found = []
    for engine in ("native", "triton"):
        params = TREES[tree]()
        optimizer = adamas.Adam(
            params, lambda step: 0.1 / step, clip_norm=1.0, ema=0.9, statistics=True, engine=engine
        )
        gradients = gradients_like(params)
        optimizer.step(gradients)
        optimizer.set_options(betas=(0.5, 0.9))
        optimizer.step(gradients)
        state = optimizer.state_dict()
        found.append(
            (
                [p.tobytes() for p in leaves(params)],
                {n: {k: x.tobytes() for k, x in e.items()} for n, e in state["state"].items()},
                optimizer.steps,
                optimizer.gradient_norm,
                {name: dataclasses.astuple(x) for name, x in optimizer.statistics().items()},
            )
        )
    assert found[0] == found[1]


@NEEDS_TRITON
def test_without_a_gpu_and_without_the_interpreter_it_is_said_what_is_missing():
    code = """
import numpy as np, adamas
try:
    adamas.Adam(np.ones(3), engine="triton")
except RuntimeError as error:
    print(error)
"""
    done = python(code, timeout=PATIENCE, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert done.stdout == (
        "The Triton engine needs a GPU, but torch.cuda.is_available() is False. To run its kernels "
        "in Triton's interpreter, set TRITON_INTERPRET=1 in the environment before Python starts.\n"
    ), done.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "torch",
            'The Triton engine needs PyTorch. Install it with: pip install "adamas[torch]"\n',
        ),
        pytest.param(
            "triton",
            "The Triton engine needs Triton. It comes with PyTorch for CUDA on Linux; elsewhere "
            "try: pip install triton\n",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_without_what_triton_needs_it_is_said_where_it_is(missing, message):
    if missing == "triton":
        pytest.importorskip("torch")
    code = f"""
import sys
if {missing!r} == "triton":
    import torch
sys.modules[{missing!r}] = None
import numpy as np, adamas
try:
    adamas.Adam(np.ones(3), engine="triton")
except ModuleNotFoundError as error:
    print(error)
"""
    done = python(code, timeout=PATIENCE)
    assert done.stdout == message, done.stderr
