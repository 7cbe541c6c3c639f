"""adamas.torch on devices that Triton serves: the bits of CPU tensors, whatever is stepped.

On a machine with a GPU the parameters are there. Without one CPU tensors stand in for CUDA tensors,
and the kernels run in Triton's interpreter: all but the device itself is the same. Plans are in
``test_cuda_plans``, what is not waited for and CUDA graphs in ``test_cuda_graphs``.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.engines.triton import devices
from adamas.engines.triton.jobs import Job
from adamas.torch.routes import device as device_route
from adamas.torch.routes import native as native_route
from tests.support.copied import left_by_steps
from tests.support.device_trainings import (
    NO_GPU,
    PHASE,
    SHAPES,
    Training,
    device_switch,
    differences,
    on_the_cpu,
    routes_of,
    steps_launched,
)
from tests.support.planned import plans_made
from tests.support.processes import TWO_PROCESSES, run_in_two
from tests.support.triton_plans import DEVICE


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Let tensors of the device be taken; called with False, those of the CPU go the native way."""
    before = np.seterr(all="ignore")  # the interpreter computes with NumPy
    yield device_switch(monkeypatch)
    np.seterr(**before)


@pytest.fixture
def plans():
    """All plans that are made."""
    with plans_made() as made:
        yield made


@pytest.fixture
def launched(monkeypatch):
    """All steps that are launched."""
    return steps_launched(monkeypatch)


# ── bits ───────────────────────────────────────────────────────────────────────────────────────

METHODS: dict[str, dict[str, Any]] = {
    "Adam": {"weight_decay": 0.1},
    "AdamW": {"fused": True},
    "Adam with AMSGrad": {"amsgrad": True, "maximize": True},
    "RMSprop": {},
    "NAdam": {},
    "RAdam": {"betas": (0.9, 0.99)},
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_bits_of_the_native_engine(method, dtype, on_device):
    case = {"kind": method.split()[0], "dtype": dtype, **METHODS[method]}
    if "amsgrad" in case and dtype == torch.bfloat16:
        case["state"] = "float32"  # torch's own state would be bfloat16, which others step
    training = Training(**case).step(3)
    judge = on_the_cpu(on_device, **case)
    assert routes_of(training.optimizer) == {"triton"}
    assert routes_of(judge.optimizer) == {"native"}
    assert differences(training, judge) == []


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("state", ["bfloat16", "compact", "8bit", ("compact", "8bit")])
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.float32, None),
        (torch.float32, "nearest"),
        (torch.bfloat16, "stochastic"),
        (torch.bfloat16, "remainder"),
        (torch.bfloat16, "remainder8"),
        (torch.float16, "stochastic"),
    ],
)
def test_a_small_state_has_the_bits_of_the_native_engine(state, dtype, rounding, on_device):
    case = {"kind": "AdamW", "dtype": dtype, "rounding": rounding, "state": state, "seed": 5}
    training = Training(**case).step(3)
    assert routes_of(training.optimizer) == {"triton"}
    assert differences(training, on_the_cpu(on_device, **case)) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_phase_has_the_bits_of_the_native_engine(dtype, on_device, plans):
    case = {"kind": "AdamW", "dtype": dtype, "fused": True, **PHASE}
    training = Training(**case).step(2)
    assert plans[-1].is_on_device
    judge = on_the_cpu(on_device, 2, **case)
    assert routes_of(training.optimizer) == {"triton"}
    assert differences(training, judge) == []
    assert training.optimizer.gradient_norm == judge.optimizer.gradient_norm
    assert training.optimizer.statistics() == judge.optimizer.statistics()


def test_groups_have_their_own_options_and_rates(on_device):
    def made(device):
        training = Training(device=device)
        first, *rest = training.params
        groups = [{"params": [first], "lr": 0.5}, {"params": rest, "betas": (0.5, 0.8)}]
        training.optimizer = ours.AdamW(groups, lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.5)
        for _ in range(3):
            training.step()
            schedule.step()
        return training

    training = made(DEVICE)
    on_device(False)
    assert differences(training, made("cpu")) == []


# ── memory ─────────────────────────────────────────────────────────────────────────────────────

LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "broadcast gradient": lambda x: x,
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state": "8bit"},
        {"state": "compact", "clip_norm": 1.0, "clip_update": 0.5},
        {"clip_norm": 1.0},
        {"ema": 0.9, "statistics": True, "copy_to": torch.float16, "clip_update": 0.5},
    ],
    ids=["plain", "8bit", "compact", "clip", "phase"],
)
def test_any_layout_has_the_bits_of_a_contiguous_one(layout, options, plans):
    trainings = []
    for arranged in (LAYOUTS[layout], torch.clone):
        random = torch.Generator().manual_seed(1)
        value = torch.randn((2, 3, 4, 5), generator=random).to(DEVICE)
        p = nn.Parameter(arranged(value.clone()))
        optimizer = ours.AdamW([p], lr=0.1, **options)
        for _ in range(3):
            gradient = torch.randn((2, 3, 4, 5), generator=random).to(DEVICE)
            if layout == "broadcast gradient":
                gradient = gradient[:1].expand(2, 3, 4, 5)
                p.grad = gradient if arranged is not torch.clone else gradient.contiguous()
            else:
                p.grad = arranged(gradient)
            optimizer.step()
        assert all(each.is_on_device for each in plans)
        assert routes_of(optimizer) == {"triton"}
        trainings.append((p, optimizer))
    (p, one), (q, two) = trainings
    assert torch.equal(p, q)
    states = [each.state_dict()["state"][0] for each in (one, two)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    pairs = zip(left_by_steps(one), left_by_steps(two), strict=True)
    assert [torch.equal(a, b) for a, b in pairs] in ([], [True])
    if options.get("statistics"):
        assert one.statistics() == two.statistics()


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}])
def test_a_channels_last_model_keeps_its_plan(options, plans):
    p = nn.Parameter(torch.randn(2, 3, 4, 5).to(DEVICE, memory_format=torch.channels_last))
    optimizer = ours.Adam([p], **options)
    for _ in range(3):
        p.grad = torch.randn(2, 3, 4, 5).to(DEVICE, memory_format=torch.channels_last)
        optimizer.step()
    assert len(plans) == 1
    assert p.is_contiguous(memory_format=torch.channels_last)


def test_parameters_that_share_memory_are_stepped_one_after_another(on_device):
    def made(device):
        whole = torch.ones(6, device=device)
        params = [nn.Parameter(whole[:4]), nn.Parameter(whole[2:])]
        optimizer = ours.SGD(params, lr=0.5)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        return whole.cpu()

    found = made(DEVICE)
    assert torch.equal(found, torch.tensor([0.5, 0.5, 0.0, 0.0, 0.5, 0.5]))


def test_strided_parameters_that_share_an_element_are_stepped_one_after_another():
    whole = torch.ones(7, device=DEVICE)
    params = [nn.Parameter(whole[::3]), nn.Parameter(whole[6:])]
    optimizer = ours.SGD(params, lr=0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(whole.cpu(), torch.tensor([0.5, 1.0, 1.0, 0.5, 1.0, 1.0, 0.0]))


def test_addresses_need_not_be_multiples_of_16(on_device):
    def made(device):
        whole = torch.linspace(-1, 1, 70, device=device)
        params = [nn.Parameter(whole[1:34]), nn.Parameter(whole[35:])]
        gradients = torch.linspace(1, -2, 70, device=device)
        optimizer = ours.Adam(params, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            params[0].grad, params[1].grad = gradients[3:36], gradients[35:]
            optimizer.step()
        return whole.cpu()

    found = made(DEVICE)
    on_device(False)
    assert torch.equal(found, made("cpu"))


# ── what others step ───────────────────────────────────────────────────────────────────────────


def leave_to_others(monkeypatch, route, places):
    """Let a route take no parameters at these places."""
    takes = route.takes
    monkeypatch.setattr(route, "takes", lambda member: member.place not in places and takes(member))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("options", [{}, PHASE])
def test_kinds_of_tensors_mix_with_one_norm_and_one_guard(options, on_device, monkeypatch):
    judge = on_the_cpu(on_device, **options)
    leave_to_others(monkeypatch, device_route, (1, 2, 3))
    leave_to_others(monkeypatch, native_route, (1,))
    training = Training(**options).step(3)
    host = "native" if DEVICE.type == "cpu" else "torch"
    assert training.optimizer.routes() == {
        "0.0": "triton", "0.1": "torch", "0.2": host, "0.3": host, "0.4": "triton"
    }  # fmt: skip
    assert differences(training, judge) == []
    assert training.optimizer.gradient_norm == judge.optimizer.gradient_norm
    if options:
        assert training.optimizer.statistics() == judge.optimizer.statistics()


def test_the_seed_counts_where_kinds_of_tensors_mix(on_device, monkeypatch):
    case = {"state": "compact", "clip_norm": 1.0, "seed": 7}
    judge = on_the_cpu(on_device, **case)
    leave_to_others(monkeypatch, device_route, range(1, len(SHAPES)))
    training = Training(**case).step(3)
    assert len(routes_of(training.optimizer)) == 2
    assert differences(training, judge) == []


def test_complex_parameters_take_the_plain_operations():
    p = nn.Parameter(torch.randn(3, dtype=torch.complex64, device=DEVICE))
    optimizer = ours.Adam([p])
    p.grad = torch.randn(3, dtype=torch.complex64, device=DEVICE)
    optimizer.step()
    assert optimizer.routes() == {"0.0": "torch"}


def test_sparse_gradients_are_refused():
    p = nn.Parameter(torch.ones(3, device=DEVICE))
    p.grad = torch.ones(3, device=DEVICE).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        ours.Adam([p]).step()


def test_without_triton_plain_operations_step_and_that_is_said_once(on_device, monkeypatch):
    judge = on_the_cpu(on_device)
    monkeypatch.setattr(devices, "has_triton", lambda: False)
    training = Training()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        training.step(3)
    assert [str(each.message) for each in caught] == [
        "CUDA parameters are stepped by plain torch operations, with the same bits but slower, "
        "since Triton is not installed. It comes with PyTorch for CUDA on Linux; elsewhere try: "
        "pip install triton"
    ]
    assert routes_of(training.optimizer) == {"native" if DEVICE.type == "cpu" else "torch"}
    assert differences(training, judge) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_several_devices_have_one_norm(count, monkeypatch, launched):
    """Devices that are the same, but for their names."""
    if torch.cuda.device_count() > 1:
        names = [torch.device("cuda", i % torch.cuda.device_count()) for i in range(count)]
    else:
        names = [DEVICE, *(torch.device(DEVICE.type, 0) for _ in range(1))][:count]
    judge = Training(fused=True, **PHASE)
    for step in range(4):
        judge.gradients()
        if step == 2:
            judge.params[0].grad[0, 0] = float("nan")
        judge.optimizer.step()
    on = [names[i % len(names)] for i in range(len(SHAPES))]
    monkeypatch.setattr(Job, "device", property(lambda job: on[job.place]))
    counters = device_route.Lasting.counters
    monkeypatch.setattr(device_route.Lasting, "counters", lambda shared, _: counters(shared, names))
    training = Training(fused=True, **PHASE)
    for step in range(4):
        training.gradients()
        if step == 2:
            training.params[0].grad[0, 0] = float("nan")
        training.optimizer.step()
    assert len(launched[-1].launches.parts) == len(set(on))
    assert differences(training, judge) == []
    assert training.optimizer.statistics() == judge.optimizer.statistics()
    assert training.optimizer.gradient_norm == judge.optimizer.gradient_norm
    assert training.optimizer.skipped == judge.optimizer.skipped == 1


@pytest.mark.gpu
@NO_GPU
def test_tensors_of_more_than_2_to_the_31_elements_are_stepped_to_the_end():
    count = 2**31 + 1000
    if torch.cuda.get_device_properties(DEVICE).total_memory < 24 * 2**30:
        pytest.skip("needs a GPU with 24 GiB of memory")
    p = nn.Parameter(torch.zeros(count, dtype=torch.bfloat16, device=DEVICE))
    p.grad = torch.ones_like(p)
    ours.Adam([p], lr=0.5, state="8bit").step()
    for start in range(0, count, 2**28):
        assert bool((p[start : start + 2**28] == -0.5).all())


# ── what users do with optimizers ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RAdam", "RMSprop", "NAdam"])
def test_states_go_to_torchs_optimizers_and_come_back(kind):
    training = Training(kind=kind, shapes=((3, 4), (33,))).step(2)
    theirs = getattr(torch.optim, kind)(training.params, lr=0.1)
    theirs.load_state_dict(training.optimizer.state_dict())
    training.gradients()
    theirs.step()
    other = getattr(ours, kind)(training.params, lr=0.1)
    other.load_state_dict(theirs.state_dict())
    assert other.state[training.params[0]]["step"] == 3
    other.step()
    assert routes_of(other) == {"triton"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deepcopy", "saved"])
def test_a_resumed_training_gives_the_bits_of_the_unbroken_one(how):
    options = {"fused": True, "state": "8bit", "clip_norm": 0.5, "ema": 0.9}
    training = Training(**options).step(2)
    if how == "deepcopy":
        twins, other = copy.deepcopy((training.params, training.optimizer))
    else:
        twins = [nn.Parameter(p.detach().clone()) for p in training.params]
        other = ours.Adam(twins, lr=0.1, **options)
        stored = io.BytesIO()
        torch.save(training.optimizer.state_dict(), stored)
        stored.seek(0)
        other.load_state_dict(torch.load(stored, weights_only=True))
    for _ in range(2):
        training.gradients()
        for p, twin in zip(training.params, twins, strict=True):
            twin.grad = p.grad.clone()
        training.optimizer.step()
        other.step()
    assert all(map(torch.equal, training.params, twins))


def test_averaged_weights_come_in_and_go():
    training = Training(ema=0.5).step(3)
    before = [p.detach().clone() for p in training.params]
    with training.optimizer.ema_weights():
        for p in training.params:
            assert torch.equal(p, training.optimizer.state[p]["ema"])
    assert all(map(torch.equal, before, training.params))
    training.step()


def test_hooks_and_closures_are_called():
    training = Training()
    seen = []
    training.optimizer.register_step_post_hook(lambda *_: seen.append("hook"))

    def closure():
        training.gradients()
        return 3.0

    assert training.optimizer.step(closure) == 3.0
    assert seen == ["hook"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_compiled_training_step_has_the_bits_of_an_eager_one():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).to(DEVICE)
        optimizer = ours.AdamW(net.parameters(), lr=0.1, fused=True)

        def train(x, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        run = torch.compile(train, backend="aot_eager") if compiled else train
        for step in range(3):
            run(torch.linspace(-1, 1 + step, 20, device=DEVICE).view(4, 5))
        results.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *results))


STAND_IN = """
from tests.support import triton_plans
from adamas.engines.triton import devices
from adamas.engines.triton.launches import Launches
devices.DEVICE_TYPES = ("cpu",)
launched = []
launch = Launches.step
Launches.step = lambda *given: launched.append(1) or launch(*given)
"""
STAND_IN_END = """
from torch.distributed.tensor import DTensor
assert isinstance(parts, DTensor)
assert optimizers[1].routes() == {"0.0": "triton"}
assert len(launched) > 40
dist.barrier()
"""


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type != "cpu", reason="needs a process group of CPU tensors")
def test_two_processes_step_their_parts_with_the_bits_of_one(tmp_path):
    code = TWO_PROCESSES.replace("dist.barrier()\n", STAND_IN_END)
    code = code.replace('("bfloat16", "compact", "8bit")', '("compact", "8bit")')  # takes long
    assert run_in_two(STAND_IN + code, tmp_path) == [0, 0]
