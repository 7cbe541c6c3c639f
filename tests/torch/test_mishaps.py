"""What optimizers let go of, and what a step that failed or came too soon leaves behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Generator
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

import adamas  # noqa: E402
import adamas.torch as ours  # noqa: E402
from tests.support.torch_routes import standing_in  # noqa: E402

BFLOAT16 = torch.bfloat16


@contextlib.contextmanager
def no_collection() -> Generator[None]:
    """Let nothing go but what nobody holds."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def by(route: str) -> Generator[dict[str, Any]]:
    """Give the options with which parameters are stepped by a route."""
    if route == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("Triton's interpreter, which takes CPU tensors, stands in for a card.")
    stands = "offload late" if route == "offload" else route
    options = {"offload": {"offload": True}, "torch": {"engine": "torch"}}
    with standing_in(stands if route != "torch" else "plain"):
        yield options.get(route, {})


def parameters(count: int = 2, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.arange(1.0, 41.0).to(dtype) / (i + 1)) for i in range(count)]


def give_gradients(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.ones_like(p) / 8


# ── what is let go of ──────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}], ids=str)
@pytest.mark.parametrize("route", ["native", "torch", "offload", "triton"])
def test_gradients_that_are_set_to_none_are_held_by_nobody(route: str, options: dict[str, Any]):
    params = parameters()
    with by(route) as more, no_collection():
        optimizer = ours.AdamW(params, **options, **more)
        for _ in range(3):
            give_gradients(params)
            optimizer.step()
            alive = [weakref.ref(p.grad) for p in params]
            optimizer.zero_grad()
            assert [each() for each in alive] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"copy_to": BFLOAT16}, {"statistics": True, "ema": 0.5}], ids=str
)
@pytest.mark.parametrize("route", ["native", "torch", "offload", "triton"])
def test_an_optimizer_goes_with_its_last_name_and_state_and_parameters_with_it(
    route: str, options: dict[str, Any]
):
    params = parameters()
    with by(route) as more, no_collection():
        optimizer = ours.AdamW(params, **options, **more)
        for _ in range(2):
            give_gradients(params)
            optimizer.step()
        mean = optimizer.state[params[0]]["exp_avg"]
        alive = [weakref.ref(each) for each in (optimizer, params[0], mean)]
        del optimizer, params, mean
        assert [each() for each in alive] == [None] * 3


def test_weights_that_were_not_put_aside_in_the_end_are_held_by_nobody():
    params = parameters()
    optimizer = ours.AdamW(params, ema=0.5, copy_to=[torch.zeros(40) for _ in params])
    give_gradients(params)
    optimizer.step()
    copied: list[weakref.ref[Tensor]] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is Tensor.clone:
                copied.append(weakref.ref(result))
            return result

    params[0].data = torch.ones(3)  # no copy is like it any more
    with no_collection(), Watching():
        with pytest.raises(RuntimeError, match="not like them any more"):
            optimizer.ema_weights().__enter__()
        assert [each() for each in copied] == [None] * len(copied)


# ── copies ─────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_that_no_step_writes_follows_the_remainder_that_is_loaded():
    p, q = parameters(dtype=BFLOAT16)
    copies = [torch.zeros(40) for _ in range(2)]
    optimizer = ours.SGD([p, q], lr=0.01, rounding="remainder", copy_to=copies)
    for _ in range(2):
        give_gradients([p, q])
        optimizer.step()
    q.grad = None
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][1]["remainder"] = saved["state"][1]["remainder"] + 1000
    before = copies[1].clone()
    optimizer.load_state_dict(saved)
    give_gradients([p])
    optimizer.step()
    written = copies[1].clone()
    assert not torch.equal(written, before)
    assert torch.equal(written, optimizer.copies[1])


def test_a_step_that_begins_while_averages_are_put_in_place_is_refused():
    params = parameters()
    averaged: list[Any] = []

    class Slow(ours.AdamW):
        """Lets another thread come between the look at what steps and the step."""

        is_slow = False

        @property
        def param_groups(self) -> list[dict[str, Any]]:
            if self.is_slow:
                self.is_slow = False
                averaged.append(self.ema_weights())
                thread = threading.Thread(target=averaged[0].__enter__)
                thread.start()
                thread.join()
            return self.groups

        @param_groups.setter
        def param_groups(self, groups: list[dict[str, Any]]) -> None:
            self.groups = groups

    optimizer = Slow(params, ema=0.5, copy_to=BFLOAT16)
    for _ in range(2):
        give_gradients(params)
        optimizer.step()
    optimizer.is_slow = True
    with pytest.raises(RuntimeError, match="so no step can be made"):
        optimizer.step()
    averaged[0].__exit__(None, None, None)
    optimizer.step()
    assert {float(each["step"]) for each in optimizer.state.values()} == {3.0}


def test_an_optimizer_that_begins_without_parameters_has_copies_of_those_that_are_added():
    optimizer = ours.AdamW([{"params": []}], copy_to=BFLOAT16)
    optimizer.add_param_group({"params": parameters()})
    assert [each.dtype for each in optimizer.copies] == [BFLOAT16] * 2


# ── steps that fail ────────────────────────────────────────────────────────────────────────────


class Failing(TorchFunctionMode):
    """Raises where a function of torch is called."""

    def __init__(self, function: Any, error: type[BaseException]) -> None:
        super().__init__()
        self.function, self.error = function, error

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is self.function:
            raise self.error
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("route", ["native", "torch", "triton"])
def test_the_first_step_is_the_first_one_where_it_failed_before(
    route: str, error: type[BaseException]
):
    found = []
    for fails in (False, True):
        params = parameters()
        with by(route) as more:
            optimizer = ours.SGD(params, lr=0.5, momentum=0.5, dampening=0.25, ema=0.5, **more)
            give_gradients(params)
            if fails:  # where the average is made, which comes last
                with Failing(Tensor.to, error), pytest.raises(error):
                    optimizer.step()
            for _ in range(2):
                optimizer.step()
        found.append([p.tolist() for p in params])
    assert found[0] == found[1]


def test_a_first_step_that_fails_leaves_the_next_one_to_a_close_look():
    p = nn.Parameter(torch.ones(3))
    optimizer = ours.NAdam([p], lr=0.1, momentum_decay=0.0, betas=(0.5, 0.999))
    p.grad = torch.ones(3)
    with mock.patch("torch.mul", side_effect=ArithmeticError), pytest.raises(ArithmeticError):
        optimizer.step()
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="has no 'lr' any more"):
        optimizer.step()


def test_a_plan_that_is_taken_up_again_ends_where_its_own_counts_do():
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    with by("triton"):
        optimizer = ours.AdamW([a, b], lr=0.01, fused=True)
        for place, turn in enumerate((a, a, b, a, a)):
            turn.grad = torch.ones(3)
            optimizer.step()
            turn.grad = None
            if place == 0:
                optimizer.state[a]["step"] = torch.tensor(2.0**24 - 2)
        assert float(optimizer.state[a]["step"]) == 2.0**24 + 1


# ── groups that somebody has spoilt ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", [{}, {"clip_norm": 1.0}, {"copy_to": BFLOAT16}], ids=repr)
@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (
            lambda optimizer: optimizer.param_groups[0]["params"].append(5),
            TypeError,
            "param_groups[0]['params'][2] is an int, but parameters are tensors. Take it out, or "
            "put the parameter itself there.",
        ),
        (
            lambda optimizer: optimizer.param_groups[0].update(params=torch.ones(2)),
            TypeError,
            "param_groups[0]['params'] is a Tensor, but it must be a list of tensors. Set it to "
            "the parameters of the group.",
        ),
        (
            lambda optimizer: optimizer.param_groups[0].pop("params"),
            KeyError,
            "param_groups[0] has no 'params' any more. Set it to the list of its parameters.",
        ),
        (
            lambda optimizer: optimizer.param_groups.append(None),
            TypeError,
            "param_groups[1] is None, but groups are dicts. Take it out; add_param_group() adds "
            "one.",
        ),
        (
            lambda optimizer: setattr(optimizer, "param_groups", None),
            TypeError,
            "param_groups is None, but it must be the list of the optimizer's groups. Set it to "
            "what it was, or make the optimizer anew.",
        ),
        (
            lambda optimizer: setattr(optimizer, "param_groups", tuple(optimizer.param_groups)),
            TypeError,
            "param_groups is a tuple, but it must be the list of the optimizer's groups. Set it to "
            "what it was, or make the optimizer anew.",
        ),
        (
            lambda o: o.param_groups[0].update(params=tuple(o.param_groups[0]["params"])),
            TypeError,
            "param_groups[0]['params'] is a tuple, but it must be a list of tensors. Set it to the "
            "parameters of the group.",
        ),
    ],
)
def test_what_is_no_group_of_parameters_is_said_before_anything_is_done(
    tmp_path, spoil, error, text, phase
):
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for p in parameters:
        p.grad = torch.ones(3)
    optimizer = ours.AdamW(parameters, **phase)
    optimizer.step()
    before = [p.detach().clone() for p in parameters]
    saved = copy.deepcopy(optimizer.state_dict())
    spoil(optimizer)
    reads = [
        optimizer.step,
        optimizer.routes,
        optimizer.state_dict,
        optimizer.snapshot().__enter__,
        lambda: optimizer.load_state_dict(saved),
        lambda: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        lambda: adamas.save(tmp_path / "run.safetensors", optimizer),
        lambda: pickle.dumps(optimizer),
        lambda: copy.deepcopy(optimizer),
        lambda: repr(optimizer),
    ]
    if "copy_to" in phase:
        reads.append(lambda: optimizer.copies)
    for read in reads:
        with pytest.raises(error) as told:
            read()
        assert told.value.args == (text,)
    assert all(map(torch.equal, parameters, before))
    assert [float(optimizer.state[p]["step"]) for p in parameters] == [1.0, 1.0]


def test_averages_are_swapped_in_for_all_parameters_or_none():
    first, last = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = ours.AdamW([first, last], ema=0.9)
    give_gradients([first, last])
    optimizer.step()
    optimizer.state[last] = None
    before = first.detach().clone()
    with pytest.raises(TypeError) as told:
        optimizer.ema_weights().__enter__()
    assert told.value.args == (
        "The state of a parameter of shape (3,) is None, but it must be a dict of entries. Leave "
        "the parameter out of the state where there is none.",
    )
    assert torch.equal(first, before)


@pytest.mark.parametrize("engine", [None, "torch"])
def test_what_frameworks_keep_in_the_state_stays_where_a_step_fails(engine):
    first, last = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = ours.AdamW([first, last], engine=engine)
    optimizer.state["theirs"] = 1
    give_gradients([first, last])
    with Failing(Tensor.to, MemoryError), contextlib.suppress(MemoryError):
        optimizer.step()
    assert optimizer.state.pop("theirs") == 1
    optimizer.step()


def test_a_group_without_its_options_is_saved_and_copied_but_not_stepped():
    p = nn.Parameter(torch.ones(3))
    for made, option in ((ours.AdamW, "amsgrad"), (ours.RMSprop, "momentum")):
        optimizer = made([p])
        give_gradients([p])
        optimizer.step()
        del optimizer.param_groups[0][option]
        assert option not in optimizer.state_dict()["param_groups"][0]
        copy.deepcopy(optimizer).step()
        with pytest.raises(KeyError, match=rf"^\"param_groups\[0\] has no '{option}' any more\."):
            optimizer.step()


def take_out(optimizer: ours.AdamW) -> None:
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop(0))


def put_in(optimizer: ours.AdamW) -> None:
    added = nn.Parameter(torch.ones(3))
    give_gradients([added])
    optimizer.param_groups[0]["params"].append(added)


@pytest.mark.parametrize(
    ("change", "names"),
    [(put_in, ["0.0", "0.1", "0.2", "last"]), (take_out, ["0.0", "last"])],
    ids=["put in", "taken out"],
)
@pytest.mark.parametrize("engine", [None, "torch"])
def test_a_parameter_that_is_put_in_or_taken_out_beside_its_name_moves_no_other_name(
    change, names, engine
):
    first, second, last = (nn.Parameter(torch.ones(3)) for _ in range(3))
    groups = [
        {"params": [("first", first), ("second", second)]},
        {"params": [("last", last)]},
    ]
    optimizer = ours.AdamW(groups, statistics=True, engine=engine)
    give_gradients([first, second, last])
    optimizer.step()
    assert list(optimizer.routes()) == ["first", "second", "last"]
    change(optimizer)
    optimizer.step()
    assert list(optimizer.routes()) == names
    assert {tag.partition("/")[0] for tag in optimizer.statistics()} == set(names)
    with optimizer.snapshot() as snapshot:
        assert list(snapshot.parameters) == names
        assert snapshot.parameters["last"] is last


@pytest.mark.parametrize("phase", [{"ema": 0.9}, {"ema": 0.9, "clip_norm": 1.0}], ids=repr)
def test_what_is_no_dict_of_states_is_said_before_anything_is_done(phase):
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    give_gradients(parameters)
    optimizer = ours.AdamW(parameters, **phase)
    optimizer.step()
    before, kept = [p.detach().clone() for p in parameters], optimizer.state
    reads = [
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.ema_weights().__enter__(),
        lambda: pickle.dumps(optimizer),
    ]
    for read in reads:
        optimizer.state = None
        with pytest.raises(TypeError) as told:
            read()
        assert told.value.args == (
            "state is None, but it must be the dict of the optimizer's states. Set it to what it "
            "was; optimizer.state.clear() begins anew.",
        )
        assert all(map(torch.equal, parameters, before))
    optimizer.state = kept
    optimizer.step()
    assert not any(map(torch.equal, parameters, before))


def test_what_was_taken_out_of_the_groups_is_said_where_it_is_asked_for():
    kept, lost = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))
    optimizer = ours.AdamW([kept, lost], statistics=True)
    give_gradients([kept, lost])
    optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(KeyError) as told:
        optimizer.state_dict()
    assert told.value.args == (
        "A parameter of shape (2, 2) has a state, but is in no group any more, so there is nothing "
        "to save it under. Put it back into a group, or take out its state: del "
        "optimizer.state[parameter].",
    )
    with pytest.raises(RuntimeError) as told:
        optimizer.statistics()
    assert told.value.args == (
        "Parameters were taken out of param_groups since the last step, so its statistics have no "
        "names. Make a step first.",
    )
    del optimizer.state[lost]
    assert list(optimizer.state_dict()["state"]) == [0]
    optimizer.step()
    assert {tag.partition("/")[0] for tag in optimizer.statistics()} == {"0.0"}


def test_a_state_whose_names_are_of_other_parameters_loads_where_the_names_are_the_same():
    # As where ZeRO puts one flat parameter in place of a group's own.
    flat = [nn.Parameter(torch.ones(6)) for _ in range(2)]
    optimizers = []
    for each in flat:
        named = [(name, nn.Parameter(torch.ones(3))) for name in ("first", "second")]
        optimizers.append(ours.AdamW(named))
        optimizers[-1].param_groups[0]["params"] = [each]
    one, other = optimizers
    give_gradients(flat)
    one.step()
    flat[1].data.copy_(flat[0].data)
    other.load_state_dict(one.state_dict())
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(*flat)
    assert other.param_groups[0]["param_names"] == ["first", "second"]
    alone = ours.AdamW([nn.Parameter(torch.ones(6))])
    with pytest.raises(ValueError, match=r"param_names is \['first', 'second'\], but it must be"):
        alone.load_state_dict(one.state_dict())
