"""One call of a torch optimizer at a time, whichever thread makes it, on every route."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import threading
import time
import weakref
from contextlib import contextmanager

import pytest
import torch

import adamas
import adamas.torch as ours
from adamas.engines.native import TensorPlan
from adamas.statistics import TILE
from adamas.torch import host_memory, operations
from adamas.torch.plan import Plan
from adamas.torch.routes import offload
from adamas.torch.turns import Turn
from tests.support.meanwhile import Stepping, repeated
from tests.support.planned import plans_made
from tests.support.queues import Queues

WITHIN = (
    "This optimizer is in the midst of another call of this thread: a snapshot, or a step that a "
    "signal handler interrupted. Call it when that has ended."
)
IN_PLACE = "The EMA weights are swapped in"

#: Size, dtype, whether strided, options. "native" is the call that asks for no turn.
ROUTES = {
    "native": (100 * TILE, torch.float32, False, {}),
    "native, of few elements": (5, torch.float32, False, {}),
    "native, clipped": (30 * TILE, torch.float32, False, {"clip_norm": 1.0}),
    "native, small": (30 * TILE, torch.float32, False, {"state": "8bit"}),
    "bfloat16": (30 * TILE, torch.bfloat16, False, {}),
    "operations": (30 * TILE, torch.float64, True, {}),
    "offload": (4 * TILE, torch.float32, False, {"offload": True}),
}


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    if request.param == "offload":
        monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
        monkeypatch.setattr(offload, "CudaStreams", lambda device: Queues("late"))
    return request.param


def made(route, **more):
    """An optimizer of two parameters, which have gradients that stay."""
    size, dtype, is_strided, options = ROUTES[route]
    shape = (size, 2) if is_strided else (size,)
    parameters = [torch.linspace(-1, 1, size * (1 + is_strided)).to(dtype) for _ in range(2)]
    parameters = [p.view(shape)[:, 0] if is_strided else p for p in parameters]
    for p, rate in zip(parameters, (0.01, 2.0), strict=True):
        p.grad = torch.full_like(p, rate)
    return ours.AdamW(parameters, lr=0.01, **options, **more)


def values(optimizer):
    """Copies of parameters and state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [dict(optimizer.state[p]) for p in parameters]
    return [p.detach().clone() for p in parameters], [
        {name: each.clone() if isinstance(each, torch.Tensor) else each for name, each in s.items()}
        for s in states
    ]


def same(one, other):
    (p, s), (q, t) = one, other
    return all(map(torch.equal, p, q)) and all(
        a.keys() == b.keys()
        and all(
            bool((a[name] == b[name]).all())
            if isinstance(a[name], torch.Tensor)
            else a[name] == b[name]
            for name in a
        )
        for a, b in zip(s, t, strict=True)
    )


def step_of(found):
    return int(found[1][0]["step"])


def of_moments(founds, route, **more):
    """Whether each of them is what that many steps alone give."""
    judge = made(route, **more)
    for found in sorted(founds, key=step_of):
        while int(
            judge.state.get(judge.param_groups[0]["params"][0], {"step": 0})["step"]
        ) < step_of(found):
            judge.step()
        if not same(found, values(judge)):
            return False
    return True


@contextmanager
def stepping(optimizer, refused=()):
    """Steps of another thread for as long as the context is open."""

    def work():
        try:
            optimizer.step()
        except RuntimeError as error:
            if not any(map(str(error).startswith, refused)):
                raise
        time.sleep(1e-5)

    with repeated(work):
        yield


def saved(optimizer, route, path):
    adamas.save(path / "run", optimizer)
    twin = made(route)
    adamas.load(path / "run", twin)
    return values(twin)


def seen(optimizer, route, path):
    with optimizer.snapshot(packed=True) as (parameters, state_dict):
        states = state_dict["packed_state"]
        found = {name: dict(states[i]) for i, name in enumerate(parameters)}
        return [p.clone() for p in parameters.values()], [
            {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in each.items()}
            for each in found.values()
        ]


def twin(optimizer, route, path):
    return values(copy.deepcopy(optimizer))


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("read", [saved, seen, twin])
def test_what_is_read_while_another_thread_steps_is_of_one_moment(route, read, tmp_path):
    optimizer = made(route)
    founds, last = [], 0
    with stepping(optimizer):
        for _ in range(15):
            while last == int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]):
                time.sleep(1e-4)
            founds.append(read(optimizer, route, tmp_path))
            last = step_of(founds[-1])
    assert of_moments([*founds, values(optimizer)], route)


def test_steps_of_several_threads_are_all_made_one_after_the_other(route):
    optimizer = made(route)
    errors = []

    def work():
        try:
            for _ in range(20):
                optimizer.step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = values(optimizer)
    assert errors == []
    assert step_of(found) == 60
    assert of_moments([found], route)


def test_a_state_that_is_loaded_while_another_thread_steps_is_taken_over_between_steps(
    route, monkeypatch
):
    other = made(route)
    for _ in range(2):
        other.step()
    start = copy.deepcopy(other.state_dict(packed=True))
    optimizer = made(route)
    with stepping(optimizer), monkeypatch.context() as patched:
        # Who waits for the turn would go ahead if there were a new one.
        patched.setattr(Turn, "__init__", lambda _: pytest.fail("there is a new turn"))
        for _ in range(15):
            optimizer.load_state_dict(start)
    # Gradients stay the same, so running means are told by the number of steps.
    _, found = values(optimizer)
    judge = made(route)
    while (
        not judge.state
        or int(judge.state[judge.param_groups[0]["params"][0]]["step"]) < found[0]["step"]
    ):
        judge.step()
    assert same(([], found), ([], values(judge)[1]))


def test_averages_that_are_shown_while_another_thread_steps_are_of_one_moment(route):
    optimizer = made(route, ema=0.5)
    parameters = optimizer.param_groups[0]["params"]
    with stepping(optimizer, [IN_PLACE]):
        for _ in range(15):
            with optimizer.ema_weights():
                shown = values(optimizer)
                time.sleep(1e-4)
                assert same(shown, values(optimizer))
                for p, state in zip(*shown, strict=True):
                    assert torch.equal(p, state["ema"].to(p.dtype))
    assert len(parameters) == 2
    assert of_moments([values(optimizer)], route, ema=0.5)


def test_a_group_that_is_added_while_another_thread_steps_is_whole(route):
    optimizer = made(route)
    with stepping(optimizer):
        for _ in range(5):
            p = torch.ones(3)
            p.grad = torch.ones(3)
            optimizer.add_param_group({"params": [p]})
    optimizer.step()
    assert all(p in optimizer.state for group in optimizer.param_groups for p in group["params"])
    states = values(optimizer)[1]
    assert states[0]["step"] == states[1]["step"] > states[-1]["step"] >= 1


def test_a_run_is_held_still_while_a_snapshot_is_open(route):
    optimizer = made(route)
    optimizer.step()
    thread = threading.Thread(target=optimizer.step)
    with optimizer.snapshot() as (parameters, state_dict):
        before = values(optimizer)
        thread.start()
        time.sleep(0.05)
        assert same(before, values(optimizer))
        assert [*parameters] == ["0.0", "0.1"]
        assert all(map(torch.equal, parameters.values(), before[0]))
        assert int(state_dict["state"][0]["step"]) == 1
    thread.join()
    assert step_of(values(optimizer)) == 2


CALLS = {
    "step": lambda optimizer: optimizer.step(),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "load_state_dict": lambda optimizer: optimizer.load_state_dict({}),
    "add_param_group": lambda optimizer: optimizer.add_param_group({"params": [torch.ones(2)]}),
    "ema_weights": lambda optimizer: optimizer.ema_weights().__enter__(),
    "snapshot": lambda optimizer: optimizer.snapshot().__enter__(),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "save": lambda optimizer: adamas.save("nowhere", optimizer),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_within_a_snapshot_are_refused(call):
    optimizer = made("native", ema=0.5)
    optimizer.step()
    before = values(optimizer)
    with (
        optimizer.snapshot(),
        pytest.raises(RuntimeError, match=f"^{re.escape(WITHIN)}$"),
    ):
        call(optimizer)
    assert same(before, values(optimizer))
    optimizer.step()
    assert step_of(values(optimizer)) == 2


def test_what_is_not_kept_is_told_within_a_snapshot_as_outside():
    optimizer = made("native")
    with optimizer.snapshot():
        assert optimizer.copies == []
        with pytest.raises(RuntimeError, match=r"^No EMA of the weights is kept\."):
            optimizer.ema_weights().__enter__()
    optimizer.step()
    assert step_of(values(optimizer)) == 1


def interrupted(monkeypatch, route, handle, **more):
    """An optimizer in whose every step `handle` is called, as a signal handler may be."""
    if route == "operations":
        inner = operations.step_tensor

        def step_tensor(*given, **named):
            handle()
            return inner(*given, **named)

        monkeypatch.setattr(operations, "step_tensor", step_tensor)
    else:
        count = torch.autograd.graph.increment_version

        def increment_version(tensors):
            handle()
            count(tensors)

        monkeypatch.setattr(torch.autograd.graph, "increment_version", increment_version)
        # As with an older PyTorch, in whose steps the engine calls this function.
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    return made(route, **more)


INTERRUPTED = ["native", "native, clipped", "operations"]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("route", INTERRUPTED)
def test_calls_in_the_midst_of_a_step_are_refused(route, call, monkeypatch):
    refusals = []

    def handle():
        with pytest.raises(RuntimeError) as caught:
            call(optimizer)
        refusals.append(str(caught.value))

    optimizer = interrupted(monkeypatch, route, handle, ema=0.5)
    for number in range(1, 4):
        optimizer.step()
        assert step_of(values(optimizer)) == number
    assert {*refusals} == {WITHIN}
    monkeypatch.undo()
    assert of_moments([values(optimizer)], route, ema=0.5)


@pytest.mark.parametrize("route", INTERRUPTED)
def test_a_call_in_the_midst_of_a_step_for_which_another_thread_waits_is_refused(
    route, monkeypatch
):
    refusals, threads, states = [], [], []

    def handle():
        if len(threads) < 3:
            asked = threading.Event()
            thread = threading.Thread(
                target=lambda: (asked.set(), states.append(optimizer.state_dict()))
            )
            threads.append(thread)
            thread.start()
            asked.wait()
            time.sleep(0.01)  # it waits for this step
        with pytest.raises(RuntimeError) as caught:
            optimizer.state_dict()
        refusals.append(str(caught.value))

    optimizer = interrupted(monkeypatch, route, handle)
    for _ in range(3):
        optimizer.step()
    for thread in threads:
        thread.join()
    assert {*refusals} == {WITHIN}
    assert len(states) == 3


def test_hooks_may_do_all_that_torch_lets_them(route):
    optimizer = made(route)
    heard = []

    def look(*_):
        heard.append(optimizer.state_dict())
        optimizer.load_state_dict(optimizer.state_dict(packed=True))

    hooks = [optimizer.register_step_pre_hook(look), optimizer.register_step_post_hook(look)]
    for _ in range(2):
        optimizer.step()
    for hook in hooks:
        hook.remove()
    assert len(heard) == 4

    def step(*_):
        hook.remove()
        optimizer.state_dict()
        optimizer.step()
        optimizer.step()

    for register in (
        optimizer.register_load_state_dict_post_hook,
        optimizer.register_load_state_dict_pre_hook,
        optimizer.register_state_dict_pre_hook,
        optimizer.register_state_dict_post_hook,
    ):
        before = step_of(values(optimizer))
        hook = register(step)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict(packed=True)))
        after = step_of(values(optimizer))
        assert after in (before, before + 2)
        optimizer.step()
        assert step_of(values(optimizer)) == after + 1


def test_a_closure_may_do_anything(route):
    optimizer = made(route)

    def closure():
        optimizer.load_state_dict(optimizer.state_dict(packed=True))
        optimizer.step()
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join()
        return 7

    assert optimizer.step(closure) == 7
    assert step_of(values(optimizer)) == 3


def test_a_step_that_fails_gives_its_turn_back(route):
    optimizer = made(route)
    optimizer.step()
    p = optimizer.param_groups[0]["params"][0]
    gradient, p.grad = p.grad, torch.ones_like(p.contiguous()).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    p.grad = gradient
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    thread.join()
    optimizer.step()
    assert step_of(values(optimizer)) == 3
    assert of_moments([values(optimizer)], route)


@pytest.mark.parametrize("more", [{}, {"clip_norm": 1.0, "on_nonfinite": "skip"}])
@pytest.mark.parametrize("change", ["none", "state_dict", "load", "ema"])
def test_the_short_way_is_open_again_after_every_call(change, more, monkeypatch):
    optimizer = made("native", ema=0.5, **more)
    optimizer.step()
    optimizer.step()
    if change == "state_dict":
        optimizer.state_dict()
    elif change == "load":
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        with pytest.raises(KeyError):
            optimizer.load_state_dict({"state": {}})
    elif change == "ema":
        with optimizer.ema_weights():
            pass
    monkeypatch.setattr(Plan, "step", lambda *_: pytest.fail("it went the long way"))
    optimizer.step()


def test_the_short_way_tells_the_norm_of_each_step_and_what_was_left_out(monkeypatch):
    optimizer = made("native, of few elements", clip_norm=1.0, on_nonfinite="skip")
    p, q = optimizer.param_groups[0]["params"]
    optimizer.step()
    monkeypatch.setattr(Plan, "step", lambda *_: pytest.fail("it went the long way"))
    for scale in (3.0, 0.25, 40.0):
        p.grad, q.grad = torch.zeros_like(p), torch.full_like(q, scale)
        p.grad[1] = 2 * scale
        optimizer.step()
        assert optimizer.gradient_norm == 3 * scale  # the root of 4 and 5 times 1
        assert optimizer.clip_factor == adamas.coefficients.clip_factor(1.0, 3 * scale)
    assert optimizer.skipped == 0
    before = values(optimizer)
    q.grad[2] = torch.inf
    optimizer.step()
    assert optimizer.skipped == 1
    assert optimizer.gradient_norm == torch.inf
    assert optimizer.clip_factor is None
    assert same(values(optimizer), before)
    optimizer.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r"\(1 of 5 elements\)"):
        optimizer.step()
    assert optimizer.skipped == 1
    assert same(values(optimizer), before)


def test_a_pickle_between_whose_parts_another_thread_makes_a_step_is_refused(route):
    optimizer = made(route)
    optimizer.step()
    optimizer.param_groups[0]["between"] = Stepping(optimizer.step)
    message = (
        "This optimizer was stepped or changed in another thread while it was being pickled. "
        "Pickle it between steps, or pickle what snapshot() gives."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        pickle.dumps(optimizer)
    optimizer.param_groups[0]["between"] = None
    other = pickle.loads(pickle.dumps(optimizer))
    assert same(values(other), values(optimizer))
    assert "still" not in other.__dict__


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
def test_copies_have_a_turn_of_their_own(copied):
    optimizer = made("native")
    optimizer.step()
    other = copied(optimizer)
    before = step_of(values(other))
    for p in other.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    with optimizer.snapshot():
        other.step()  # would be refused in the turn of the first
    assert step_of(values(other)) == before + 1


def test_copies_in_low_precision_that_are_read_while_another_thread_steps_are_whole():
    optimizer = made("native", copy_to=torch.bfloat16)
    with stepping(optimizer):
        for _ in range(15):
            assert [x.dtype for x in optimizer.copies] == [torch.bfloat16] * 2
    for x, p in zip(optimizer.copies, optimizer.param_groups[0]["params"], strict=True):
        assert torch.equal(x, p.to(torch.bfloat16))


def test_statistics_that_are_read_while_another_thread_steps_are_of_one_step():
    optimizer = made("native", statistics=True)
    optimizer.step()
    names = {*optimizer.statistics()}
    with stepping(optimizer):
        for _ in range(15):
            assert {*optimizer.statistics()} == names


@pytest.mark.quick_cases(3)
def test_an_optimizer_is_freed_with_its_last_name(route):
    made("native").step()  # the first of a process leaves frames where torch loads what it needs
    gc.collect()
    gc.disable()
    try:
        optimizer = made(route)
        optimizer.step()
        optimizer.state_dict()
        optimizer.step()
        left = weakref.ref(optimizer)
        del optimizer
        assert left() is None
    finally:
        gc.enable()


def test_a_plan_is_called_nowhere_after_a_step():
    optimizer = made("native")
    with plans_made() as plans:
        optimizer.step()
        optimizer.state_dict()
        optimizer.step()
    assert [type(plan.native) for plan in plans] == [TensorPlan]
    assert not plans[0].native.is_called_here
