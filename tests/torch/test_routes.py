"""Which parameter of a torch optimizer is stepped how, and what ``engine=`` leaves to choose."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import re
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import adamas.torch as ours
from adamas.engines.triton import devices
from adamas.torch import host_memory
from adamas.torch.routes import offload
from tests.support.copied import left_by_steps
from tests.support.queues import Queues
from tests.support.torch_bits import bits, trained_bits

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
ENGINES = ["native", "torch", "triton"]

interpreted = pytest.mark.skipif(
    not find_spec("triton") or torch.cuda.is_available(),
    reason="Triton's interpreter, which takes CPU tensors, stands in for a card.",
)


@contextlib.contextmanager
def on_triton():
    """Let Triton's interpreter serve the processor."""
    with mock.patch.object(devices, "DEVICE_TYPES", ("cpu",)), np.errstate(all="ignore"):
        yield


@contextlib.contextmanager
def offloading():
    """Take parameters of the processor for those of a card."""
    with (
        mock.patch.object(host_memory, "is_offloaded", return_value=True),
        mock.patch.object(offload, "CudaStreams", return_value=Queues("late")),
    ):
        yield


def drawn(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(dtype=torch.float32):
    return [nn.Parameter(drawn(shape, i, dtype)) for i, shape in enumerate([(5, 7), (40,), ()])]


def give_gradients(optimizer, step):
    place = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = drawn(p.shape, 100 * (step + 1) + place, p.dtype)
            place += 1


def stepped(optimizer, steps=1, first=0):
    for step in range(first, first + steps):
        give_gradients(optimizer, step)
        optimizer.step()
    return optimizer


# ── which parameter takes which route ──────────────────────────────────────────────────────────


def strided():
    return drawn((6, 2), 0)[:, 0]


#: What a parameter is, the class, its options, and the route.
KINDS = {
    "plain": (lambda: drawn((5, 7), 0), "AdamW", {}, "native"),
    "one number": (lambda: drawn((), 0), "AdamW", {}, "native"),
    "empty": (lambda: drawn((0,), 0), "AdamW", {}, "native"),
    "float64": (lambda: drawn((5,), 0, torch.float64), "AdamW", {}, "native"),
    "bfloat16": (lambda: drawn((5,), 0, BFLOAT16), "AdamW", {}, "native"),
    "float16": (lambda: drawn((5,), 0, FLOAT16), "AdamW", {}, "native"),
    "half, of small form": (
        lambda: drawn((40,), 0, BFLOAT16),
        "AdamW",
        {"state": "8bit", "rounding": "remainder"},
        "native",
    ),
    "NAdam": (lambda: drawn((5,), 0), "NAdam", {}, "native"),
    "RMSprop": (lambda: drawn((5,), 0), "RMSprop", {}, "native"),
    "RMSprop with momentum": (lambda: drawn((5,), 0), "RMSprop", {"momentum": 0.9}, "torch"),
    "RMSprop, centered": (lambda: drawn((5,), 0), "RMSprop", {"centered": True}, "torch"),
    "SGD": (lambda: drawn((5,), 0), "SGD", {}, "native"),
    "SGD with momentum": (lambda: drawn((5,), 0), "SGD", {"momentum": 0.9}, "native"),
    "strided": (strided, "AdamW", {}, "torch"),
    "strided, of small form": (strided, "AdamW", {"state": "8bit"}, "torch"),
    "complex": (lambda: torch.complex(drawn((5,), 0), drawn((5,), 1)), "AdamW", {}, "torch"),
    "clipped": (lambda: drawn((5, 7), 0), "AdamW", {"clip_norm": 1.0, "ema": 0.9}, "native"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_takes_the_route_of_its_kind_from_the_first_step_on(kind):
    value, name, options, route = KINDS[kind]
    p = nn.Parameter(value())
    optimizer = getattr(ours, name)([p], lr=0.01, **options)
    assert optimizer.routes() == {}
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.routes() == {"0.0": route}


@interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_device_triton_takes_all_real_numbers_that_follow_the_rule(kind):
    value, name, options, _ = KINDS[kind]
    p = nn.Parameter(value())
    special = kind in ("RMSprop with momentum", "RMSprop, centered", "complex")
    with on_triton():
        optimizer = getattr(ours, name)([p], lr=0.01, **options)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.routes() == {"0.0": "torch" if special else "triton"}


def test_an_offloaded_parameter_is_said_to_be_so():
    with offloading():
        optimizer = stepped(ours.AdamW(parameters(), offload=True), 2)
    assert optimizer.routes() == dict.fromkeys(("0.0", "0.1", "0.2"), "offload")


def test_a_gradient_alone_may_send_its_parameter_another_way_and_back():
    p, q = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p, q], lr=0.1)
    gradients = {
        "native": torch.ones(4, 4),
        "torch": torch.ones(4, 4).to_sparse(),
    }
    for route in ("native", "torch", "native"):
        p.grad, q.grad = gradients[route], torch.ones(3)
        optimizer.step()
        assert optimizer.routes() == {"0.0": route, "0.1": "native"}
    p.grad = torch.ones(4, 8)[:, ::2]
    optimizer.step()
    assert optimizer.routes() == {"0.0": "torch", "0.1": "native"}


def test_of_parameters_that_share_memory_the_first_alone_is_native():
    memory = torch.ones(6)
    a, b, c = nn.Parameter(memory[:4]), nn.Parameter(memory[2:]), nn.Parameter(torch.ones(2))
    optimizer = stepped(ours.AdamW([a, b, c]))
    assert optimizer.routes() == {"0.0": "native", "0.1": "torch", "0.2": "native"}


def test_a_distributed_tensor_is_stepped_natively_beside_a_plain_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))

        def cut(value):
            return distribute_tensor(value, mesh, [Shard(0)])

        for engine in (None, "native"):
            p, q = nn.Parameter(cut(torch.ones(4, 3))), nn.Parameter(torch.ones(3))
            optimizer = ours.AdamW([p, q], engine=engine)
            p.grad, q.grad = cut(torch.ones(4, 3)), torch.ones(3)
            optimizer.step()
            assert optimizer.routes() == {"0.0": "native", "0.1": "native"}
    finally:
        dist.destroy_process_group()


def test_routes_have_the_names_of_named_parameters_and_of_all_groups():
    net = nn.Linear(3, 2)
    optimizer = stepped(ours.AdamW(net.named_parameters()))
    assert optimizer.routes() == {"weight": "native", "bias": "native"}
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(strided())
    optimizer = stepped(ours.AdamW([{"params": [first]}, {"params": [second], "lr": 0.1}]))
    assert optimizer.routes() == {"0.0": "native", "1.0": "torch"}


@pytest.mark.parametrize("is_strided", [False, True])
def test_parameters_without_a_gradient_are_not_among_them(is_strided):
    params = [nn.Parameter(strided() if is_strided else torch.ones(3)) for _ in range(3)]
    optimizer = ours.AdamW(params)
    route = "torch" if is_strided else "native"
    for turn in [(0, 2), (1,), (), (0, 1, 2), (2,)]:
        for i, p in enumerate(params):
            p.grad = torch.ones_like(p) if i in turn else None
        optimizer.step()
        assert optimizer.routes() == {f"0.{i}": route for i in turn}


@pytest.mark.parametrize("is_strided", [False, True])
def test_routes_are_those_of_the_last_step_whatever_becomes_of_the_gradients(is_strided):
    params = [nn.Parameter(strided() if is_strided else torch.ones(3)) for _ in range(2)]
    optimizer = ours.AdamW(params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    found = {"0.0": "torch" if is_strided else "native"}
    assert optimizer.routes() == found
    params[1].grad = torch.ones_like(params[1])
    assert optimizer.routes() == found
    optimizer.zero_grad()
    assert optimizer.routes() == found


# ── engine= ────────────────────────────────────────────────────────────────────────────────────

#: What can be asked of every engine.
RUNS = {
    "AdamW": ("AdamW", torch.float32, {}),
    "float64": ("AdamW", torch.float64, {"weight_decay": 0.1}),
    "amsgrad": ("Adam", torch.float32, {"amsgrad": True, "ema": 0.9}),
    "the phase": (
        "AdamW",
        torch.float32,
        {"clip_norm": 0.5, "ema": 0.9, "statistics": True, "copy_to": BFLOAT16},
    ),
    "8bit": ("AdamW", torch.float32, {"state": "8bit", "seed": 3}),
    "compact, to nearest": ("AdamW", torch.float32, {"state": "compact", "rounding": "nearest"}),
    "bfloat16": ("AdamW", BFLOAT16, {}),
    "remainders": ("AdamW", BFLOAT16, {"state": "8bit", "rounding": "remainder8"}),
    "float16": ("AdamW", FLOAT16, {"rounding": "stochastic", "state": "compact"}),
    "NAdam": ("NAdam", torch.float32, {}),
    "RMSprop": ("RMSprop", torch.float32, {}),
    "SGD": ("SGD", torch.float32, {"momentum": 0.9, "dampening": 0.5}),
    "SGD, bare": ("SGD", torch.float32, {}),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize(
    "engine",
    [*(each for each in ENGINES if each != "triton"), pytest.param("triton", marks=interpreted)],
)
@pytest.mark.parametrize("run", RUNS)
def test_every_engine_gives_the_bits_of_the_others_and_steps_all_by_itself(run, engine):
    name, dtype, options = RUNS[run]
    judge = stepped(getattr(ours, name)(parameters(dtype), lr=0.01, engine="torch", **options), 4)
    with on_triton() if engine == "triton" else contextlib.nullcontext():
        optimizer = getattr(ours, name)(parameters(dtype), lr=0.01, engine=engine, **options)
        stepped(optimizer, 4)
        assert {*optimizer.routes().values()} == {engine}
        assert trained_bits(optimizer) == trained_bits(judge)
        assert bits(left_by_steps(optimizer)) == bits(left_by_steps(judge))
        assert optimizer.gradient_norm == judge.gradient_norm
        if options.get("statistics"):
            assert optimizer.statistics() == judge.statistics()
    assert {*judge.routes().values()} == {"torch"}


@interpreted
@pytest.mark.parametrize("engine", [None, *ENGINES])
def test_where_several_engines_could_step_a_parameter_the_one_that_is_named_does(engine):
    with on_triton():
        optimizer = stepped(ours.AdamW(parameters(), engine=engine), 2)
        assert {*optimizer.routes().values()} == {engine or "triton"}


def test_offload_goes_with_the_native_engine():
    found = []
    for engine in ("native", None):
        with offloading():
            optimizer = stepped(ours.AdamW(parameters(), offload=True, engine=engine), 2)
        assert {*optimizer.routes().values()} == {"offload"}
        found.append(trained_bits(optimizer))
    assert found[0] == found[1]


@pytest.mark.parametrize("engine", ["torch", "triton"])
def test_offload_is_refused_with_another_engine(engine):
    message = (
        f"offload is True, but engine is '{engine}': state in host memory is stepped by the native "
        'engine. Leave out the one or the other, or use engine="native".'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ours.AdamW(parameters(), offload=True, engine=engine)


@pytest.mark.parametrize(
    ("engine", "offered"),
    [
        ("Native", " Did you mean 'native'?"),
        ("tritn", " Did you mean 'triton'?"),
        ("Torch", " Did you mean 'torch'?"),
        ("cuda", ""),
        ("", ""),
        (True, ""),
        (3, ""),
    ],
)
def test_an_engine_that_there_is_not_is_refused_and_the_near_one_offered(engine, offered):
    message = f'engine is {engine!r}, but it must be one of "native", "triton", "torch".{offered}'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ours.AdamW(parameters(), engine=engine)


ADDING = {
    "new": lambda optimizer, group: ours.AdamW([group]),
    "new, of another": lambda optimizer, group: ours.AdamW([group], engine="native"),
    "added": ours.AdamW.add_param_group,
}


@pytest.mark.parametrize("add", ADDING.values(), ids=ADDING)
def test_an_engine_in_a_group_is_refused(add):
    message = "A group has engine, which concerns the whole step. Give it to the optimizer, not to"
    group = {"params": parameters(), "engine": "torch"}
    optimizer = ours.AdamW(parameters())
    with pytest.raises(TypeError, match=f"^{message} a group\\.$"):
        add(optimizer, group)
    assert len(optimizer.param_groups) == 1


#: What the native engine cannot step: parameters, class, options, and which of them it is.
NOT_NATIVE = {
    "strided": (lambda: [torch.ones(3), strided()], "AdamW", {}, 1),
    "strided, clipped": (lambda: [torch.ones(3), strided()], "AdamW", {"clip_norm": 1.0}, 1),
    "complex": (lambda: [torch.ones(3), torch.ones(3, dtype=torch.complex64)], "AdamW", {}, 1),
    "shared": (lambda: [*torch.ones(6).as_strided((2, 4), (2, 1))], "AdamW", {}, 1),
    "RMSprop with momentum": (lambda: [torch.ones(3)], "RMSprop", {"momentum": 0.9}, 0),
    "NAdam, strided": (lambda: [torch.ones(3), strided()], "NAdam", {"ema": 0.9}, 1),
    "small": (lambda: [torch.ones(3), strided()], "AdamW", {"state": "8bit"}, 1),
}


TAKEN = {
    "native": ("real, contiguous tensors on the CPU, as their gradients, state and copies"),
    "triton": "real tensors on CUDA devices, beside their gradients and copies, by Triton",
}


def refused_by(engine, name, p):
    return (
        f'engine is "{engine}", but {name} has dtype {p.dtype}, strides {p.stride()} and device '
        f"cpu, and that engine steps {TAKEN[engine]}, if they share no memory; and not RMSprop "
        "with momentum or centered. Leave engine out, so that each parameter is stepped by the "
        "fastest that can; routes() says which that is."
    )


@pytest.mark.parametrize("case", NOT_NATIVE)
def test_what_the_native_engine_cannot_step_is_refused_and_nothing_is_changed(case):
    values, name, options, place = NOT_NATIVE[case]
    params = [nn.Parameter(each) for each in values()]
    optimizer = getattr(ours, name)(params, lr=0.01, engine="native", **options)
    for p in params:
        p.grad = torch.ones_like(p)
    before = trained_bits(optimizer)
    for _ in range(2):
        message = re.escape(refused_by("native", f"0.{place}", params[place]))
        with pytest.raises(ValueError, match=f"^{message}$"):
            optimizer.step()
        assert trained_bits(optimizer) == before
        assert len(optimizer.state) == 0
        assert optimizer.routes() == {}


def test_what_triton_cannot_step_is_refused_and_nothing_is_changed():
    params = parameters()
    optimizer = ours.AdamW(params, engine="triton", state="compact")
    give_gradients(optimizer, 0)
    before = trained_bits(optimizer)
    with mock.patch.object(devices, "DEVICE_TYPES", ("cuda",)):
        message = re.escape(refused_by("triton", "0.0", params[0]))
        with pytest.raises(ValueError, match=f"^{message}$"):
            optimizer.step()
    assert trained_bits(optimizer) == before
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("change", ["gradient", "form", "parameter that is new"])
def test_what_it_cannot_step_any_more_is_refused_and_it_goes_on_where_that_is_undone(change):
    params = parameters()
    optimizer = stepped(ours.AdamW(params, engine="native", state="8bit"), 2)
    twin = stepped(ours.AdamW(parameters(), state="8bit"), 2)
    give_gradients(optimizer, 2)
    gradient = params[1].grad
    params[1].grad = torch.ones(80)[::2]
    if change == "form":
        optimizer.param_groups[0]["state"] = "compact"
    elif change == "parameter that is new":
        added = nn.Parameter(torch.ones(2))
        added.grad = torch.ones(2)
        optimizer.add_param_group({"params": [added]})
    before = trained_bits(optimizer)
    with pytest.raises(ValueError, match=f"^{re.escape(refused_by('native', '0.1', params[1]))}$"):
        optimizer.step()
    assert trained_bits(optimizer) == before
    params[1].grad = gradient
    if change == "form":
        optimizer.param_groups[0]["state"] = "8bit"
    elif change == "parameter that is new":
        del optimizer.param_groups[1]
    optimizer.step()
    assert trained_bits(optimizer) == trained_bits(stepped(twin, 1, 2))
    assert {*optimizer.routes().values()} == {"native"}


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
        lambda optimizer: copy.deepcopy(pickle.loads(pickle.dumps(optimizer))),
    ],
    ids=["copy", "deepcopy", "pickle", "both"],
)
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_an_engine_is_kept_by_copies_and_pickles(engine, copied):
    optimizer = stepped(ours.AdamW(parameters(), engine=engine))
    other = copied(optimizer)
    assert other.routes() == {}
    stepped(other, 1, 1)
    assert {*other.routes().values()} == {engine}
    other.add_param_group({"params": [nn.Parameter(strided())]})
    if engine == "native":
        with pytest.raises(ValueError, match=r'^engine is "native", but 1\.0 has'):
            stepped(other, 1, 2)
    else:
        stepped(other, 1, 2)
        assert {*other.routes().values()} == {"torch"}


def test_an_engine_is_no_part_of_a_state_dict_and_stays_when_one_is_loaded():
    optimizer = stepped(ours.AdamW(parameters(), engine="torch"))
    saved = optimizer.state_dict()
    assert all("engine" not in group for group in saved["param_groups"])
    other = ours.AdamW(parameters(), engine="native")
    other.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    for each, engine in ((optimizer, "torch"), (other, "native")):
        assert {*stepped(each, 1, 1).routes().values()} == {engine}


def test_a_wrong_option_of_one_route_is_refused_before_another_route_moves_anything():
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(strided())]
    optimizer = ours.AdamW([{"params": [p]} for p in params])
    stepped(optimizer)
    assert {*optimizer.routes().values()} == {"native", "torch"}
    before = trained_bits(optimizer)
    optimizer.param_groups[1]["weight_decay"] = math.inf
    give_gradients(optimizer, 1)
    with pytest.raises(ValueError, match="weight_decay is inf"):
        optimizer.step()
    assert trained_bits(optimizer) == before
