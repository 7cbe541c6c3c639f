"""One call of an optimizer at a time, whichever it is; calls within others are refused."""

from __future__ import annotations

import copy
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import adamas
from adamas.statistics import TILE
from tests.support.meanwhile import Stepping, repeated
from tests.support.runs import everything

SIZES = [3, 200 * TILE]
ENGINES = ["native", "reference"]
WITHIN = (
    "This optimizer is in the midst of another call of this thread: a step that asks a schedule, a "
    "snapshot, or what a signal handler interrupted. Call it when that has ended."
)


def counting(size, **options):
    """A run whose parameters and means are the number of steps, if all is of one moment."""
    p = np.zeros(size, np.float32)
    strided = np.zeros((size, 2), np.float32)[:, 1]
    optimizer = adamas.Momentum({"p": p, "s": strided}, lr=1.0, beta=0.0, **options)
    return {"p": p, "s": strided}, optimizer


def step(params, optimizer):
    """The mean becomes the number of the step; the parameter falls by one, as the rate says."""
    number = np.float32(optimizer.steps + 1)
    optimizer.step({name: np.full(each.shape, number) for name, each in params.items()})


def falling(number):
    """Rates with which gradients that are the number of the step move parameters by one."""
    return 1.0 / number


@contextmanager
def stepping(params, optimizer, after: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Steps of another thread for as long as the context is open."""

    def work():
        step(params, optimizer)
        after()

    with repeated(work):
        yield


def of_one_moment(parameters, state_dict):
    """Whether parameters and means are those after the step that is counted."""
    number = state_dict["step"]
    return all((state["mean"] == number).all() for state in state_dict["state"].values()) and all(
        np.allclose(p, -number, rtol=1e-5) and (p == p.flat[0]).all() for p in parameters.values()
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_read_while_another_thread_steps_is_of_one_moment(size, engine, tmp_path):
    params, optimizer = counting(size, engine=engine)
    optimizer.lr = falling
    with stepping(params, optimizer):
        for _ in range(10):
            stored = optimizer.state_dict()
            assert of_one_moment({}, stored)
            with optimizer.snapshot() as (parameters, state):
                assert of_one_moment(parameters, state)
            twin = copy.deepcopy(optimizer)
            assert of_one_moment(twin.named_parameters(), twin.state_dict())
    assert of_one_moment(params, optimizer.state_dict())


@pytest.mark.parametrize("size", SIZES)
def test_a_file_that_is_saved_while_another_thread_steps_is_of_one_moment(size, tmp_path):
    params, optimizer = counting(size)
    optimizer.lr = falling
    last = -1
    with stepping(params, optimizer):
        for _ in range(10):
            while optimizer.steps == last:
                time.sleep(1e-4)
            adamas.save(tmp_path / "run", optimizer)
            other, resumed = counting(size)
            resumed.lr = falling
            adamas.load(tmp_path / "run", resumed)
            assert of_one_moment(other, resumed.state_dict())
            assert resumed.steps > last
            last = resumed.steps


@pytest.mark.parametrize("call", [step, lambda _, optimizer: setattr(optimizer, "lr", 0.5)])
def test_a_pickle_between_whose_parts_another_thread_makes_a_call_is_refused(call):
    params, optimizer = counting(3)
    optimizer.between = Stepping(lambda: call(params, optimizer))
    message = (
        "This optimizer was stepped or changed in another thread while it was being pickled. "
        "Pickle it between steps, or pickle its state_dict()."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        pickle.dumps(optimizer)
    optimizer.between = None
    twin = pickle.loads(pickle.dumps(optimizer))
    assert everything(twin) == everything(optimizer)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
@pytest.mark.parametrize("name", ["run", "still", "record", "lone"])
def test_an_attribute_of_ones_own_is_in_copies_whatever_its_name(name, copied):
    params, optimizer = counting(3)
    step(params, optimizer)
    setattr(optimizer, name, "mine")
    twin = copied(optimizer)
    assert getattr(twin, name) == "mine"
    assert everything(twin) == everything(optimizer)


def change_rate(optimizer, _):
    optimizer.lr = falling


def change_option(optimizer, _):
    optimizer.set_options(eps=1e-3)


def load(optimizer, stored):
    optimizer.load_state_dict(stored[0], parameters=stored[1])


def use_averages(optimizer, _):
    with optimizer.snapshot():
        pass


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("call", [change_rate, change_option, load, use_averages])
def test_what_another_thread_changes_comes_between_steps(call, size, engine):
    params, optimizer = counting(size, engine=engine)
    optimizer.lr = falling
    for _ in range(2):
        step(params, optimizer)
    stored = optimizer.state_dict(), {name: p.copy() for name, p in params.items()}

    def tolerant_step():
        # The gradient of a step is told from the count before, so a load in between changes it.
        with optimizer.snapshot() as (parameters, _):
            assert all((p == p.flat[0]).all() for p in parameters.values())

    with stepping(params, optimizer, tolerant_step):
        for _ in range(30):
            call(optimizer, stored)
    if call is not load:
        assert of_one_moment(params, optimizer.state_dict())
    assert all((p == p.flat[0]).all() for p in params.values())
    means = [state["mean"] for state in optimizer.state_dict()["state"].values()]
    assert all((mean == mean[0]).all() for mean in means)


def test_steps_of_many_threads_are_all_made_one_after_the_other():
    params, optimizer = counting(200 * TILE)
    gradient = {name: np.full(p.shape, -1, np.float32) for name, p in params.items()}

    def work():
        for _ in range(50):
            optimizer.step(gradient)
            optimizer.lr = 1.0

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.steps == 200
    assert all((p == 200).all() for p in params.values())


# ── calls within calls ─────────────────────────────────────────────────────────────────────────

CALLS: dict[str, Callable[[adamas.Optimizer], object]] = {
    "set_options": lambda optimizer: optimizer.set_options(lr=0.5),
    "lr": lambda optimizer: setattr(optimizer, "lr", 0.5),
    "step": lambda optimizer: optimizer.step(np.ones(3)),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "load_state_dict": lambda optimizer: optimizer.load_state_dict({}),
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
    "ema_weights": lambda optimizer: optimizer.ema_weights().__enter__(),
    "save": lambda optimizer: adamas.save("never", optimizer),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_schedule_that_calls_its_optimizer_is_refused_before_anything_changes(call, engine):
    asked = []

    def schedule(number):
        asked.append(number)
        if len(asked) == 2:
            call(optimizer)
        return 0.1

    optimizer = adamas.Adam(np.ones(3), lr=schedule, ema=0.9, engine=engine)
    optimizer.step(np.ones(3))
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=f"^{re.escape(WITHIN)}$"):
        optimizer.step(np.ones(3))
    assert everything(optimizer) == before
    optimizer.step(np.ones(3))
    assert (asked, optimizer.steps) == ([1, 2, 2], 2)


@pytest.mark.parametrize("call", [c for n, c in CALLS.items() if n != "save"])
def test_calls_within_a_snapshot_are_refused(call):
    optimizer = adamas.Adam(np.ones(3), ema=0.9)
    with optimizer.snapshot(), pytest.raises(RuntimeError, match=f"^{re.escape(WITHIN)}$"):
        call(optimizer)
    optimizer.step(np.ones(3))
    assert optimizer.steps == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
def test_a_signal_handler_in_the_midst_of_a_step_is_refused_the_state():
    heard = []

    def handler(*_):
        try:
            optimizer.state_dict()
        except RuntimeError as error:
            heard.append(str(error))

    def schedule(_):
        signal.raise_signal(signal.SIGUSR1)
        return 0.1

    optimizer = adamas.Adam(np.ones(3), lr=schedule)
    old = signal.signal(signal.SIGUSR1, handler)
    try:
        optimizer.step(np.ones(3))
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert heard == [WITHIN]
    assert optimizer.steps == 1


# ── averaged weights ───────────────────────────────────────────────────────────────────────────

REFUSED = {
    "step": (lambda o, _: o.step(np.ones(3)), "no step can be made"),
    "state_dict": (lambda o, _: o.state_dict(), "a copy made now would hold them twice"),
    "snapshot": (lambda o, _: o.snapshot().__enter__(), "a copy made now would hold them twice"),
    "load_state_dict": (lambda o, stored: o.load_state_dict(stored), "a state that is loaded now"),
    "pickle": (lambda o, _: pickle.dumps(o), "a copy made now would hold them twice"),
    "deepcopy": (lambda o, _: copy.deepcopy(o), "a copy made now would hold them twice"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_nothing_takes_the_averages_for_the_weights_in_training(call, message, engine):
    p = np.ones(3)
    optimizer = adamas.Adam(p, lr=0.1, ema=0.5, engine=engine)
    for _ in range(3):
        optimizer.step(np.ones(3))
    before, stored = everything(optimizer), optimizer.state_dict()
    with optimizer.ema_weights():
        averages = p.copy()
        match = f"^The EMA weights are swapped in, so {message}"
        with pytest.raises(RuntimeError, match=match) as caught:
            call(optimizer, stored)
        assert str(caught.value).endswith("Leave the ema_weights() context first.")
        assert (p == averages).all()
        optimizer.lr = 0.2
        optimizer.lr = 0.1
    assert everything(optimizer) == before


def test_files_are_neither_written_nor_read_while_averages_are_in_place(tmp_path):
    p = np.ones(3)
    optimizer = adamas.Adam(p, lr=0.1, ema=0.5)
    for _ in range(3):
        optimizer.step(np.ones(3))
    adamas.save(tmp_path / "run", optimizer)
    content, before = (tmp_path / "run").read_bytes(), everything(optimizer)
    with optimizer.ema_weights():
        for function in (adamas.save, adamas.load):
            with pytest.raises(
                RuntimeError,
                match=r"^The EMA weights are swapped in, so ",
            ):
                function(tmp_path / "run", optimizer)
    assert (tmp_path / "run").read_bytes() == content
    assert everything(optimizer) == before
