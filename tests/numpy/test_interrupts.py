"""Whatever interrupts a call of a NumPy optimizer leaves all of its work, or nothing."""

from __future__ import annotations

import copy
import functools
import sys

import numpy as np
import pytest

import adamas
from tests.support.cases import python
from tests.support.interrupts import interrupted_at, whole_or_nothing
from tests.support.runs import everything

#: The reference has so many places where it can be interrupted that it is slow.
ENGINES = ["native", pytest.param("reference", marks=pytest.mark.slow)]
INTERRUPTS = [KeyboardInterrupt, MemoryError]


def drawn(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def params():
    """Arrays of every kind: contiguous, with strides, transposed, float64, without dimensions."""
    return {
        "plain": drawn(40),
        "every second": drawn((6, 10))[:, ::2],
        "turned": [drawn((3, 4), 1, np.float64).T, np.array(1.0)],
    }


def like(tree, seed=5):
    if isinstance(tree, dict):
        return {key: like(branch, seed) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [like(branch, seed) for branch in tree]
    return drawn(tree.shape, seed, tree.dtype)


def made(**options):
    options = {"lr": 0.1, "ema": 0.9, "clip_norm": 1.0, "statistics": True, **options}
    options = {"clip_update": 0.5, **options}
    tree = params()
    optimizer = adamas.Adam(tree, **options)
    optimizer.step(like(tree, 3))
    return tree, optimizer


def all_of(optimizer):
    """Everything that a call may change, the report of the last step too."""
    return everything(optimizer), optimizer.gradient_norm, repr(optimizer.statistics())


@pytest.mark.parametrize("lr", [0.1, lambda step: 0.1 / step], ids=["fixed", "scheduled"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_step_is_made_and_counted_or_neither(engine, lr):
    def make():
        tree, optimizer = made(engine=engine, lr=lr)
        gradients = like(tree)
        return lambda: optimizer.step(gradients), lambda: all_of(optimizer)

    assert whole_or_nothing(make) == {"nothing", "whole"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_norm_enters_with_its_step_or_with_the_count_of_one_that_is_left_out(engine, size):
    def make():
        tree, optimizer = made(engine=engine, skip_above=3.0, skip_window=4)
        optimizer.step(like(tree, 3))
        optimizer.step(like(tree, 4))
        gradients = like(tree)
        gradients["plain"] *= np.float32(size)

        def now():
            return everything(optimizer), repr(optimizer.gradient_norm), repr(optimizer.skipped)

        return lambda: optimizer.step(gradients), now

    assert whole_or_nothing(make) == {"nothing", "whole"}
    step, now = make()
    step()
    assert ("spikes=1" in now()[-1]) == (size > 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_is_left_out_is_counted_as_such_or_not_at_all(engine):
    def make():
        tree, optimizer = made(engine=engine, on_nonfinite="skip", statistics=False)
        gradients = like(tree)
        gradients["plain"][3] = np.nan
        return (
            lambda: optimizer.step(gradients),
            lambda: (everything(optimizer), repr(optimizer.gradient_norm)),
        )

    assert whole_or_nothing(make) == {"nothing", "whole"}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("form", ["float32", "compact", "8bit"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_interrupt_while_loading_leaves_the_old_state_or_the_new(form, packed, interrupt):
    def small(**options):
        tree = {"a": drawn(70), "b": drawn((6, 10))[:, ::2]}
        return tree, adamas.Adam(tree, state=form, ema=0.9, **options)

    tree, source = small(lr=0.5)
    for seed in range(3):
        source.step(like(tree, seed))
    stored = source.state_dict(packed=packed)
    values = {name: p.copy() for name, p in source.named_parameters().items()}

    def make():
        tree, optimizer = small(lr=0.1)
        optimizer.step(like(tree))
        return (
            lambda: optimizer.load_state_dict(stored, parameters=values),
            lambda: everything(optimizer),
        )

    assert whole_or_nothing(make, interrupt, most=150) == {"nothing", "whole"}


CHANGES = {
    "lr": {"lr": 0.5},
    "betas": {"betas": (0.5, 0.9)},
    "state": {"state": "bfloat16"},
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_an_interrupt_in_set_options_leaves_the_old_options_or_the_new(changes, interrupt):
    def make():
        tree = [drawn(70), drawn((6, 10))[:, ::2]]
        optimizer = adamas.Adam([{"params": tree[0]}, {"params": tree[1]}], lr=0.1, state="compact")
        optimizer.step(like(tree))

        def then():
            """The state, and what the next step makes of it."""
            optimizer.step(like(tree, 9))
            return everything(optimizer)

        return lambda: optimizer.set_options(**changes), then

    # Looking makes a step, so the run is made anew for each look.
    work, before = make()
    nothing = before()
    work, after = make()
    work()
    whole = after()
    seen = set()
    place = 0
    while True:
        work, look = make()
        if not interrupted_at(place, work, interrupt):
            break
        left = look()
        seen.add("nothing" if left == nothing else "whole" if left == whole else "half")
        place += 1
    assert seen == {"nothing", "whole"}


@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_an_interrupt_around_averaged_weights_leaves_those_in_training(interrupt):
    def make():
        _, optimizer = made()

        def work():
            with optimizer.ema_weights():
                optimizer.named_parameters()

        return work, lambda: all_of(optimizer)

    assert whole_or_nothing(make, interrupt, most=10**6) == {"nothing"}


def test_interrupted_calls_leave_the_optimizer_usable_though_the_traceback_is_kept():
    tree, optimizer = made()
    state = optimizer.state_dict()
    calls = [
        lambda: optimizer.step(like(tree)),
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(state),
        lambda: optimizer.set_options(lr=0.1),
        lambda: copy.deepcopy(optimizer),
        optimizer.statistics,
    ]
    kept = []  # as a notebook does, and with it all frames

    def kept_call(call):
        try:
            call()
        except KeyboardInterrupt as error:
            kept.append(error)
            raise

    for call in calls:
        place = 0
        while interrupted_at(place, functools.partial(kept_call, call), KeyboardInterrupt):
            place += 1
            steps = optimizer.steps
            optimizer.step(like(tree))
            assert optimizer.steps == steps + 1
            kept.clear()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a thread")
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_during_a_step_leaves_parameters_that_the_count_fits(engine, strided):
    # With beta 0, lr 1 and gradients of -1 parameters are the number of steps.
    code = f"""
import os, signal, threading, time
import numpy as np, adamas

p = np.zeros((2000, 1000), np.float32){"[:, ::2]" if strided else ""}
gradient = np.full(p.shape, -1, np.float32)
optimizer = adamas.Momentum(p, lr=1.0, beta=0.0, ema=0.5, engine={engine!r})
optimizer.step(gradient)
begin = time.perf_counter()
optimizer.step(gradient)
length = time.perf_counter() - begin
caught = 0
for i in range(10):
    wait = length * (i + 0.5) / 10
    killer = threading.Thread(
        target=lambda: (time.sleep(wait), os.kill(os.getpid(), signal.SIGINT)))
    try:
        killer.start()
        while True:
            optimizer.step(gradient)
    except KeyboardInterrupt:
        caught += 1
    killer.join()
    assert (p == optimizer.steps).all(), (i, p.min(), p.max(), optimizer.steps)
print(caught)
"""
    done = python(code)
    assert done.stdout.split() == ["10"], done.stderr
