"""adamas.torch on devices that Triton serves: the bits of CPU tensors, and nothing that waits.

On a machine with a GPU the parameters are there. Without one CPU tensors stand in for CUDA tensors,
and the kernels run in Triton's interpreter: all but the device itself is the same.
"""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.engines.triton import devices
from adamas.engines.triton.jobs import Inputs, Job
from adamas.engines.triton.launches import Launches
from adamas.engines.triton.live import Live
from adamas.engines.triton.parts import Part
from adamas.torch import plan
from adamas.torch.routes import device as device_route
from adamas.torch.routes import native as native_route
from tests.support.copied import left_by_steps
from tests.support.planned import plans_made
from tests.support.processes import TWO_PROCESSES, run_in_two
from tests.support.triton_plans import DEVICE

SHAPES = ((3, 4), (33,), (), (0,), (1030,))
NO_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: torch finds none"
)


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Let tensors of the device be taken; called with False, those of the CPU go the native way."""

    def set_to(taken):
        monkeypatch.setattr(devices, "DEVICE_TYPES", (DEVICE.type,) if taken else ())

    set_to(True)
    before = np.seterr(all="ignore")  # the interpreter computes with NumPy
    yield set_to
    np.seterr(**before)


@pytest.fixture
def plans():
    """All plans that are made."""
    with plans_made() as made:
        yield made


@pytest.fixture
def stepped_by(monkeypatch):
    """The plans that have made steps, one for each step."""
    found, step = [], plan.Plan.step

    def noted(self, *given):
        made = step(self, *given)
        if made is not NotImplemented:
            found.append(self)
        return made

    monkeypatch.setattr(plan.Plan, "step", noted)
    return found


class Launched(NamedTuple):
    """What a step was launched with."""

    launches: Launches
    inputs: Inputs


@pytest.fixture
def launched(monkeypatch):
    """All steps that are launched."""
    found, step = [], Launches.step

    def noted(self, inputs, skipped):
        found.append(Launched(self, inputs))
        return step(self, inputs, skipped)

    monkeypatch.setattr(Launches, "step", noted)
    return found


class Training:
    """Parameters with an optimizer, and gradients that are the same for all trainings."""

    def __init__(self, kind="Adam", device=DEVICE, dtype=torch.float32, shapes=SHAPES, **options):
        self.random = torch.Generator().manual_seed(0)
        self.dtype, self.device = dtype, device
        self.params = [nn.Parameter(self.drawn(shape)) for shape in shapes]
        self.optimizer = getattr(ours, kind)(self.params, **{"lr": 0.1, **options})

    def drawn(self, shape):
        return torch.randn(shape, generator=self.random).to(self.device, self.dtype)

    def gradients(self):
        for p in self.params:
            p.grad = self.drawn(p.shape)

    def step(self, count=1):
        for _ in range(count):
            self.gradients()
            self.optimizer.step()
        return self

    def values(self) -> dict[str, Any]:
        """Parameters, state, copies and averages, on the CPU."""
        found: dict[str, Any] = {}
        for i, p in enumerate(self.params):
            found[f"{i}"] = p.detach().cpu()
            for name, entry in self.optimizer.state.get(p, {}).items():
                found[f"{i}.{name}"] = entry.cpu() if isinstance(entry, torch.Tensor) else entry
        for i, each in enumerate(left_by_steps(self.optimizer)):
            found[f"copy {i}"] = each.cpu()
        return found


def routes_of(optimizer):
    """How its parameters were stepped, each way once."""
    return {*optimizer.routes().values()}


def differences(one, other):
    a, b = one.values(), other.values()
    found = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        x, y = a[name], b[name]
        same = torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y
        if not same:
            found.append(name)
    return found


def on_the_cpu(on_device, steps=3, **case):
    """The same training on CPU tensors, by the native engine."""
    on_device(False)
    training = Training(**{**case, "device": torch.device("cpu")}).step(steps)
    on_device(True)
    return training


# ── bits ───────────────────────────────────────────────────────────────────────────────────────

METHODS: dict[str, dict[str, Any]] = {
    "Adam": {"weight_decay": 0.1},
    "AdamW": {"fused": True},
    "Adam with AMSGrad": {"amsgrad": True, "maximize": True},
    "RMSprop": {},
    "NAdam": {},
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}


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


PHASE = {
    "clip_norm": 0.5,
    "on_nonfinite": "skip",
    "ema": 0.9,
    "copy_to": torch.bfloat16,
    "statistics": True,
}


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


# ── plans ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fused", [True, False])
def test_a_plan_is_made_once_and_then_used(fused, plans, launched):
    training = Training(fused=fused).step(4)
    assert len(plans) == 1
    assert [each.launches for each in launched] == [launched[0].launches] * 4
    assert training.optimizer.state[training.params[0]]["step"] == 4


def test_one_launch_steps_all_tensors_that_are_stored_alike(monkeypatch):
    launched = []
    launch = Part.launch

    def counted(part, which, kernel, *arguments, **constants):
        launched.append(kernel.__name__)
        launch(part, which, kernel, *arguments, **constants)

    monkeypatch.setattr(Part, "launch", counted)
    shapes = [(size,) for size in range(1, 40)] + [(8193,)]
    training = Training(shapes=shapes, fused=True).step(2)
    assert launched == ["number", "sweep"] * 2
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16, device=DEVICE))
    training.params.append(half)
    training.optimizer.add_param_group({"params": [half]})
    launched.clear()
    for p in training.params:
        p.grad = torch.ones_like(p)
    training.optimizer.step()
    assert launched == ["number", "sweep", "sweep"]


def test_what_has_not_changed_is_not_sent_again(monkeypatch):
    training = Training(fused=True).step(2)
    sent, send = [], Live.send
    monkeypatch.setattr(
        Live, "send", lambda live, **how: sent.append(send(live, **how)) or sent[-1]
    )
    training.optimizer.step()
    training.gradients()
    training.optimizer.step()
    assert sent == [False, True]


CHANGES = {
    "an option": lambda t: t.optimizer.param_groups[0].update(eps=0.1),
    "betas": lambda t: t.optimizer.param_groups[0].update(betas=(0.5, 0.9)),
    "a rate": lambda t: t.optimizer.param_groups[0].update(lr=0.5),
    "the data of a parameter": lambda t: setattr(t.params[0], "data", t.params[0].data + 1),
    "an entry": lambda t: t.optimizer.state[t.params[1]].update(
        exp_avg=t.optimizer.state[t.params[1]]["exp_avg"] * 2
    ),
    "the number of a step": lambda t: t.optimizer.state[t.params[1]]["step"].fill_(7),
    "a loaded state": lambda t: t.optimizer.load_state_dict(
        copy.deepcopy(t.optimizer.state_dict())
    ),
    "another group": lambda t: t.optimizer.add_param_group(
        {"params": [t.params.append(nn.Parameter(t.drawn((5,)))) or t.params[-1]]}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_is_seen(change, on_device):
    training = Training(fused=True).step(2)
    on_device(False)
    judge = Training(fused=True, device="cpu").step(2)
    CHANGES[change](judge)
    judge.step(2)
    on_device(True)
    CHANGES[change](training)
    assert differences(training.step(2), judge) == []


def test_a_parameter_without_a_gradient_waits_until_it_has_one(on_device):
    def made(device):
        training = Training(device=device)
        for step in range(4):
            training.gradients()
            if step < 2:
                training.params[1].grad = None
            training.optimizer.step()
        return training

    training = made(DEVICE)
    on_device(False)
    judge = made("cpu")
    assert training.optimizer.state[training.params[1]]["step"] == 2
    assert differences(training, judge) == []


def test_a_step_raises_the_version_of_its_parameters():
    training = Training().step()
    before = training.params[0]._version
    training.step()
    assert training.params[0]._version > before


def test_gradients_are_left_as_they_are():
    training = Training(clip_norm=0.1)
    training.gradients()
    before = [p.grad.clone() for p in training.params]
    training.optimizer.step()
    assert all(map(torch.equal, before, (p.grad for p in training.params)))


# ── the device decides ─────────────────────────────────────────────────────────────────────────


def test_nothing_waits_for_the_device(monkeypatch):
    training = Training(kind="AdamW", fused=True, **PHASE).step()
    training.gradients()
    training.optimizer.found_inf = torch.zeros((), device=DEVICE)
    training.optimizer.grad_scale = torch.full((), 8.0, device=DEVICE)

    def refuse(*_):
        raise AssertionError("this waits for the device")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    training.optimizer.step()
    monkeypatch.undo()
    assert training.optimizer.state[training.params[0]]["step"] == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped_by_the_device(bad):
    training = Training(fused=True, **PHASE).step(2)
    kept = copy.deepcopy(training.values())
    training.gradients()
    training.params[4].grad[1029] = bad
    training.optimizer.step()
    assert training.optimizer.skipped == 1
    now = training.values()
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    with pytest.raises(RuntimeError, match="the last step was left out"):
        training.optimizer.statistics()
    training.step()
    assert training.optimizer.skipped == 1
    assert training.optimizer.state[training.params[0]]["step"] == 3


def test_a_step_that_raises_changes_nothing():
    training = Training(on_nonfinite="raise").step()
    kept = copy.deepcopy(training.values())
    training.gradients()
    training.params[0].grad[0, :2] = float("nan")
    training.params[4].grad[3] = float("inf")
    with pytest.raises(FloatingPointError) as raised:
        training.optimizer.step()
    assert str(raised.value) == (
        "Gradients are not finite: 0.0 (2 of 12 elements), 0.4 (1 of 1030 elements). Nothing was "
        "changed. Look for a division or overflow in the loss, or leave such steps out with "
        'on_nonfinite="skip".'
    )
    assert training.optimizer.skipped == 0
    now = training.values()
    assert all(torch.equal(kept[name], now[name]) for name in kept)


@pytest.mark.parametrize(
    "options", [{"fused": True}, {"clip_norm": 0.5}, {"on_nonfinite": "raise"}]
)
def test_a_scalers_word_is_taken_on_the_device(options, on_device):
    def made(device):
        training = Training(device=device, **options)
        for step, found in enumerate((0.0, 0.0, 1.0, 0.0)):
            training.gradients()
            training.optimizer.found_inf = torch.full((), found, device=device)
            training.optimizer.grad_scale = torch.full((), 4.0 + step, device=device)
            training.optimizer.step()
        del training.optimizer.found_inf, training.optimizer.grad_scale
        return training

    training = made(DEVICE)
    on_device(False)
    judge = made("cpu")
    assert training.optimizer.state[training.params[0]]["step"] == 3
    assert training.optimizer.gradient_norm == judge.optimizer.gradient_norm
    assert differences(training, judge) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_on_the_device_is_read_at_each_step(dtype, on_device, monkeypatch):
    rates = [0.1, 0.25, 0.5]
    training = Training(capturable=True, lr=torch.tensor(0.0, dtype=dtype, device=DEVICE))
    on_device(False)
    judge = Training(device="cpu", capturable=True)
    for step, rate in enumerate(rates):
        judge.optimizer.param_groups[0]["lr"] = float(torch.tensor(rate, dtype=dtype))
        judge.step()
        on_device(True)
        training.optimizer.param_groups[0]["lr"].fill_(rate)
        training.step()
        on_device(False)
        if step == 0:
            monkeypatch.setattr(Launches, "__init__", None)  # the first are used again
    assert differences(training, judge) == []


def test_another_rate_in_place_of_that_on_the_device_is_seen(on_device):
    training = Training(lr=torch.tensor(0.1, device=DEVICE)).step()
    training.optimizer.param_groups[0]["lr"] = torch.tensor(0.5, device=DEVICE)
    training.step()
    training.optimizer.param_groups[0]["lr"] = 0.25
    training.step()
    on_device(False)
    judge = Training(device="cpu", lr=float(torch.tensor(0.1))).step()
    for rate in (0.5, 0.25):
        judge.optimizer.param_groups[0]["lr"] = rate
        judge.step()
    assert differences(training, judge) == []


@pytest.mark.parametrize("options", [{}, {"on_nonfinite": "skip"}])
@pytest.mark.parametrize("kind", ["Adam", "NAdam"])
def test_steps_may_be_counted_on_the_host(kind, options, on_device, monkeypatch, launched):
    judge = on_the_cpu(on_device, 4, kind=kind, **options)
    monkeypatch.setattr(devices, "is_beside", lambda *_: False)
    training = Training(kind=kind, **options).step(2)
    if options:
        training.gradients()
        training.params[0].grad[0, 0] = float("nan")
        kept = training.random.get_state()
        training.optimizer.step()
        assert training.optimizer.skipped == 1
        on_device(False)
        judge = Training(kind=kind, device="cpu", **options).step(2)
        judge.gradients()
        judge.random.set_state(kept)
        judge.step(2)
        on_device(True)
    training.step(2)
    assert launched[-1].inputs.steps.tolist() == [4] * len(SHAPES)
    assert differences(training, judge) == []


# ── memory ─────────────────────────────────────────────────────────────────────────────────────

LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "broadcast gradient": lambda x: x,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state": "8bit"},
        {"state": "compact", "clip_norm": 1.0},
        {"clip_norm": 1.0},
        {"clip_norm": 1.0, "ema": 0.9, "statistics": True, "copy_to": torch.float16},
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
    counters = device_route.Devices.counters
    monkeypatch.setattr(device_route.Devices, "counters", lambda shared, _: counters(shared, names))
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


# ── what users do with optimizers ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "NAdam"])
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


@pytest.mark.skipif(DEVICE.type != "cpu", reason="needs a process group of CPU tensors")
def test_two_processes_step_their_parts_with_the_bits_of_one(tmp_path):
    code = TWO_PROCESSES.replace("dist.barrier()\n", STAND_IN_END)
    code = code.replace('("bfloat16", "compact", "8bit")', '("compact", "8bit")')  # takes long
    assert run_in_two(STAND_IN + code, tmp_path) == [0, 0]


# ── CUDA graphs ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "options", "steps", "message"),
    [
        (
            "Adam",
            {},
            1,
            "A CUDA graph is being recorded, but the numbers of the steps are counted on the host, "
            "so that each replay would make the same step. Create the optimizer with "
            "capturable=True.",
        ),
        (
            "SGD",
            {"momentum": 0.9},
            0,
            "A CUDA graph is being recorded, but this would be the first step, which differs from "
            "all others. Make one before recording.",
        ),
        (
            "NAdam",
            {"capturable": True},
            1,
            "A CUDA graph is being recorded, but this method takes the numbers of its steps on the "
            "host, so that each replay would make the same step. Use Adam, AdamW or RMSprop, or "
            "make the step outside of the graph.",
        ),
        (
            "SGD",
            {"lr": torch.tensor(0.1)},
            1,
            "A CUDA graph is being recorded, but this method takes the numbers of its steps on the "
            "host, so that each replay would make the same step. Use Adam, AdamW or RMSprop, or "
            "make the step outside of the graph.",
        ),
        (
            "Adam",
            {"capturable": True, "on_nonfinite": "raise"},
            1,
            'A CUDA graph is being recorded, but on_nonfinite="raise" waits for the device at each '
            'step. Use on_nonfinite="skip".',
        ),
    ],
)
def test_what_a_graph_cannot_repeat_is_refused(kind, options, steps, message, monkeypatch):
    if kind == "Adam" and not options:
        monkeypatch.setattr(devices, "is_beside", lambda *_: False)
    if "lr" in options:
        options = {**options, "lr": options["lr"].to(DEVICE)}
    training = Training(kind=kind, **options).step(steps)
    kept = copy.deepcopy(training.values())
    training.gradients()
    monkeypatch.setattr(devices, "is_capturing", lambda _: True)
    with pytest.raises(RuntimeError) as raised:
        training.optimizer.step()
    assert str(raised.value) == message
    now = training.values()
    assert all(torch.equal(kept[name], now[name]) for name in kept)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_what_a_graph_has_recorded_outlives_the_plan_and_nothing_else_does(
    is_recorded, monkeypatch, launched
):
    training = Training(capturable=True).step(2)
    monkeypatch.setattr(devices, "is_capturing", lambda _: is_recorded)
    training.step()
    launches = launched[-1].launches
    live = launches.parts[0].live
    if is_recorded:
        (sent,) = live.recorded
        assert np.array_equal(sent.numpy(), np.concatenate(list(live.host.values())))
        del sent
    monkeypatch.setattr(devices, "is_capturing", lambda _: False)
    known = weakref.ref(launches)
    launched.clear()
    del launches, live
    training.optimizer.load_state_dict(training.optimizer.state_dict())
    training.step()
    launched.clear()
    gc.collect()
    assert (known() is not None) == is_recorded


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("options", [{}, PHASE, {"state": "8bit"}], ids=["plain", "phase", "8bit"])
def test_a_replayed_graph_has_the_bits_of_eager_steps(options):
    eager = Training(kind="AdamW", capturable=True, lr=torch.tensor(0.1, device=DEVICE), **options)
    graphed = Training(
        kind="AdamW", capturable=True, lr=torch.tensor(0.1, device=DEVICE), **options
    )
    for training in (eager, graphed):
        training.step(2)
    static = [p.grad for p in graphed.params]
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    kept = copy.deepcopy(graphed.values())
    with torch.cuda.graph(graph, stream=stream):
        graphed.optimizer.step()
    torch.cuda.synchronize()
    assert all(torch.equal(kept[name], value) for name, value in graphed.values().items())
    for step in range(4):
        rate = 0.1 / (step + 1)
        for training in (eager, graphed):
            training.optimizer.param_groups[0]["lr"].fill_(rate)
        eager.step()
        for gradient, p in zip(static, eager.params, strict=True):
            gradient.copy_(p.grad)
        graph.replay()
    assert differences(eager, graphed) == []


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


@pytest.mark.parametrize(
    ("rate", "error"), [(None, TypeError), ([0.1], TypeError), (-1.0, ValueError), (..., KeyError)]
)
def test_a_rate_that_is_none_is_refused_before_anything_is_touched(rate, error):
    training = Training("AdamW", lr=0.1).step(2)
    before = training.values()
    group = training.optimizer.param_groups[0]
    group["lr"] = rate
    if rate is ...:
        del group["lr"]
    with pytest.raises(error, match=r"^.?param_groups\[0\]"):
        training.step()
    group["lr"] = 0.1
    assert str(training.values()) == str(before)
    training.step()


# ── gradients that come and go, and what they share ────────────────────────────────────────────

TURNS = ((0, 1, 3), (0, 2, 4), (0, 1, 3), (0, 2, 4), (4,), (0, 1, 3), (0, 1, 2, 3, 4), (0, 2, 4))


@pytest.mark.parametrize("method", ["AdamW", "NAdam", "SGD"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "statistics": True}])
def test_gradients_that_come_and_go_give_the_same_bits(method, options, on_device, stepped_by):
    def trained(device):
        training = Training(method, device=device, **options)
        for turn in TURNS:
            training.gradients()
            for i, p in enumerate(training.params):
                p.grad = p.grad if i in turn else None
            training.optimizer.step()
        return training

    one = trained(DEVICE)
    plans = stepped_by[:]
    assert len(plans) == len(TURNS)
    on_device(False)
    other = trained(torch.device("cpu"))
    assert differences(one, other) == []
    assert one.optimizer.gradient_norm == other.optimizer.gradient_norm
    assert plans[2] is plans[0] or method == "SGD"  # whose first step is another
    assert plans[7] is plans[3]


@pytest.mark.parametrize("turn", [TURNS[0], TURNS[1]])
def test_with_averages_in_place_no_plan_makes_a_step(turn):
    """Neither the last plan nor one of before: the averages would be trained, and lost."""
    training = Training("AdamW", ema=0.5)

    def step(turn):
        training.gradients()
        for i, p in enumerate(training.params):
            p.grad = p.grad if i in turn else None
        training.optimizer.step()

    for each in TURNS[:4]:
        step(each)
    before = training.values()
    with training.optimizer.ema_weights():
        averages = [p.detach().clone() for p in training.params]
        with pytest.raises(RuntimeError, match="no step can be made"):
            step(turn)
        assert all(map(torch.equal, training.params, averages))
    after = training.values()
    assert after.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name]))
               for name in before)  # fmt: skip


def test_no_plan_is_kept_for_a_state_that_was_replaced(plans):
    training = Training("AdamW")
    for turn in TURNS[:4]:
        training.gradients()
        for i, p in enumerate(training.params):
            p.grad = p.grad if i in turn else None
        training.optimizer.step()
    before = [weakref.ref(each) for each in plans]
    plans.clear()
    gc.collect()
    assert [each() is not None for each in before] == [True, True]
    state = training.optimizer.state[training.params[0]]
    state["exp_avg"] = state["exp_avg"].clone()
    training.optimizer.step()
    assert len(plans) == 1
    gc.collect()
    assert [each() for each in before] == [None, None]


def test_a_gradient_may_be_its_parameter_and_ends_unscaled():
    one, other = (Training("AdamW", fused=True).step() for _ in range(2))
    for p, q in zip(one.params, other.params, strict=True):
        p.grad, q.grad = p.detach(), q.detach() / 4.0
    wanted = [q.grad.clone() for q in other.params]
    one.optimizer.grad_scale = torch.tensor(4.0, device=DEVICE)
    one.optimizer.found_inf = torch.tensor(0.0, device=DEVICE)
    one.optimizer.step()
    other.optimizer.step()
    assert differences(one, other) == []
    assert all(torch.equal(p.grad, x) for p, x in zip(one.params, wanted, strict=True))


def test_gradients_of_a_step_that_is_left_out_stay_scaled():
    training = Training("AdamW", fused=True)
    training.gradients()
    before = [p.grad.clone() for p in training.params]
    training.optimizer.grad_scale = torch.tensor(4.0, device=DEVICE)
    training.optimizer.found_inf = torch.tensor(1.0, device=DEVICE)
    training.optimizer.step()
    assert all(torch.equal(p.grad, x) for p, x in zip(training.params, before, strict=True))


def test_no_use_count_is_left_on_a_device():
    training = Training("AdamW").step(2)
    assert [p._use_count() for p in training.params] == [1] * len(training.params)
