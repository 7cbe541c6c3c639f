"""adamas.torch in place of torch.optim: its results but for rounding, its state and protocols."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import adamas
import adamas.torch as ours
from adamas.torch import operations
from adamas.torch.plan import Plan
from tests.support.copied import left_by_steps
from tests.support.planned import plans_made

F = nn.functional

#: Class name and arguments.
VARIANTS = [
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}),
    (
        "Adam",
        {
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "decoupled_weight_decay": True,
            "weight_decay": 0.1,
        },
    ),
    ("AdamW", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
]
NAMES = ["Adam", "AdamW", "NAdam", "RMSprop", "SGD"]


def model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)


def backward(net, step):
    """Give ``net`` the gradients of a loss that changes with ``step``."""
    generator = torch.Generator().manual_seed(step)
    dtype = next(net.parameters()).dtype
    x = torch.randn(16, 6, generator=generator).to(dtype)
    net.zero_grad()
    F.cross_entropy(net(x), torch.randint(0, 3, (16,), generator=generator)).backward()


def train(net, optimizer, steps=range(10)):
    for step in steps:
        backward(net, step)
        optimizer.step()


def values(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_training_is_torchs_but_for_rounding(name, options, dtype):
    """Ten steps from one start, on gradients that each run takes itself.

    A step of either differs from the exact one by a few units of the last place of the update and
    of the parameter. Ten such steps, fed back through a smooth loss, stay within a hundred of them.
    An update of RMSprop with a fresh square is up to 1/√(1-α) = 10 learning rates.
    """
    mine, theirs = model(dtype=dtype), model(dtype=dtype)
    options = {**options, "lr": options.get("lr", 0.01)}
    train(mine, getattr(ours, name)(mine.parameters(), **options))
    train(theirs, getattr(torch.optim, name)(theirs.parameters(), **options))
    bound = 100 * torch.finfo(dtype).eps * (10 * float(options["lr"]) + 1)
    for a, b in zip(values(mine), values(theirs), strict=True):
        assert (a - b).abs().max() <= bound
    assert not same(values(mine), values(model(dtype=dtype)))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_state_and_groups_are_those_of_torch(name, options):
    mine, theirs = model(), model()
    optimizer = getattr(ours, name)(mine.parameters(), **options)
    other = getattr(torch.optim, name)(theirs.parameters(), **options)
    train(mine, optimizer)
    train(theirs, other)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(optimizer).__name__ == type(other).__name__
    a, b = optimizer.state_dict(), other.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for i, entries in b["state"].items():
        assert a["state"][i].keys() == entries.keys()
        for key, entry in entries.items():
            found = a["state"][i][key]
            assert (found.shape, found.dtype, found.device) == (
                entry.shape, entry.dtype, entry.device,
            )  # fmt: skip


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("direction", ["to ours", "to theirs"])
def test_checkpoints_go_both_ways_and_training_goes_on(name, options, direction):
    first, second = (torch.optim, ours) if direction == "to ours" else (ours, torch.optim)
    net, unbroken = model(), model()
    before = getattr(first, name)(net.parameters(), **options)
    train(net, before, range(5))
    stored = io.BytesIO()
    torch.save(before.state_dict(), stored)
    stored.seek(0)
    after = getattr(second, name)(net.parameters(), **options)
    after.load_state_dict(torch.load(stored, weights_only=True))
    train(net, after, range(5, 10))
    train(unbroken, getattr(torch.optim, name)(unbroken.parameters(), **options))
    for a, b in zip(values(net), values(unbroken), strict=True):
        assert (a - b).abs().max() <= 200 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_resumed_training_gives_the_bits_of_the_unbroken_one(name, options, how):
    phase = {} if options.get("centered") else {"ema": 0.9}
    net = model()
    unbroken = getattr(ours, name)(net.parameters(), **options, **phase)
    train(net, unbroken, range(10))
    expected = values(net)
    net = model()
    first = getattr(ours, name)(net.parameters(), **options, **phase)
    train(net, first, range(5))
    if how == "state_dict":
        second = getattr(ours, name)(net.parameters(), **options, **phase)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    elif how == "pickle":
        net, second = pickle.loads(pickle.dumps((net, first)))
    else:
        net, second = copy.deepcopy((net, first))
    train(net, second, range(5, 10))
    assert same(values(net), expected)


@pytest.mark.parametrize(("name", "options"), VARIANTS[:5])
def test_a_step_has_the_bits_of_the_numpy_front_end(name, options):
    net = model()
    flat = [p.detach().numpy().copy() for p in net.parameters()]
    names = {"decoupled_weight_decay": "decay"}
    translated = {names.get(key, key): value for key, value in options.items()}
    if "decay" in translated:
        translated["decay"] = "decoupled"
    if "lr" in translated:
        translated["lr"] = float(translated["lr"])
    twin = getattr(adamas, name)(flat, **translated)
    optimizer = getattr(ours, name)(net.parameters(), **options)
    for step in range(5):
        backward(net, step)
        gradients = [p.grad.numpy().copy() for p in net.parameters()]
        optimizer.step()
        twin.step(gradients)
    for p, expected in zip(net.parameters(), flat, strict=True):
        assert p.detach().numpy().tobytes() == expected.tobytes()


def through_operations(net):
    """Make the native engine refuse the parameters: other strides, same values."""
    for p in net.parameters():
        wide = torch.zeros(*p.shape, 2, dtype=p.dtype)
        wide[..., 0] = p.detach()
        p.data = wide[..., 0]
    return net


PHASE = {"clip_norm": 0.05, "ema": 0.9, "statistics": True, "copy_to": torch.bfloat16}


@pytest.mark.parametrize("phase", [{}, PHASE])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_operations_give_the_bits_of_the_native_engine(name, phase, dtype):
    nets = [model(dtype=dtype), through_operations(model(dtype=dtype))]
    optimizers = [
        getattr(ours, name)(net.parameters(), lr=0.01, weight_decay=0.01, **phase) for net in nets
    ]
    for step in range(4):
        backward(nets[0], step)
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            q.grad = p.grad.clone()  # the model's own would differ, by the order in its products
        for optimizer in optimizers:
            optimizer.step()
    names = [f"0.{i}" for i in range(4)]
    assert optimizers[0].routes() == dict.fromkeys(names, "native")
    assert optimizers[1].routes() == dict.fromkeys(names, "torch")
    assert same(values(nets[0]), values(nets[1]))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        a, b = (o.state[x] for o, x in zip(optimizers, (p, q), strict=True))
        assert a.keys() == b.keys()
        assert same(a.values(), b.values())
    if phase:
        assert optimizers[0].statistics() == optimizers[1].statistics()
        assert optimizers[0].gradient_norm == optimizers[1].gradient_norm
        assert same(*(left_by_steps(each) for each in optimizers))


def test_the_native_engine_answers_where_it_can(monkeypatch):
    net = model()
    optimizer = ours.Adam(net.parameters())
    with plans_made() as plans:
        train(net, optimizer, range(2))
    assert optimizer.routes() == {f"0.{i}": "native" for i in range(4)}
    assert [plan.native.is_fast for plan in plans] == [True]
    monkeypatch.setattr(Plan, "step", lambda *_: pytest.fail("it went the long way"))
    train(net, optimizer, range(2, 4))


def test_without_the_exchange_api_addresses_come_from_data_ptr(monkeypatch):
    nets = [model(), model()]
    plain = ours.Adam(nets[0].parameters())
    older = ours.Adam(nets[1].parameters())
    with plans_made() as plans:
        train(nets[0], plain, range(3))
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
        train(nets[1], older, range(3))
    assert [plan.native.is_fast for plan in plans] == [True, False]
    assert same(values(nets[0]), values(nets[1]))


# ── what changes between steps ─────────────────────────────────────────────────────────────────


def swap_data(net, optimizer):
    for p in net.parameters():
        p.data = p.data.clone()


def load(net, optimizer):
    net.load_state_dict(copy.deepcopy(net.state_dict()))


def replace_state(net, optimizer):
    for entries in optimizer.state.values():
        for key in entries:
            entries[key] = entries[key].clone()


def replace_entries(net, optimizer):
    for p in list(optimizer.state):
        optimizer.state[p] = dict(optimizer.state[p])


def swap_state_data(net, optimizer):
    for entries in optimizer.state.values():
        entries["exp_avg"].data = entries["exp_avg"].data.clone()


def replace_group(net, optimizer):
    optimizer.param_groups[0] = dict(optimizer.param_groups[0])


def strided_gradients(net, optimizer):
    for p in net.parameters():
        p.grad = torch.stack([p.grad, p.grad], -1)[..., 0]


def reload(net, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


CHANGES = [swap_data, load, replace_state, replace_entries, swap_state_data, replace_group,
           strided_gradients, reload]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_two_steps_is_noticed(change):
    nets = [model(), model()]
    optimizers = [ours.AdamW(net.parameters(), lr=0.01) for net in nets]
    for step in range(6):
        for net in nets:
            backward(net, step)
        change(nets[0], optimizers[0])
        for optimizer in optimizers:
            optimizer.step()
    assert same(values(nets[0]), values(nets[1]))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert same(optimizers[0].state[p].values(), optimizers[1].state[q].values())


@pytest.mark.parametrize("option", ["lr", "betas", "eps", "weight_decay", "maximize"])
def test_options_are_read_from_the_group_at_every_step(option):
    new = {"lr": 0.5, "betas": (0.1, 0.2), "eps": 0.1, "weight_decay": 0.5, "maximize": True}
    mine, theirs = model(), model()
    pairs = [
        (mine, ours.AdamW(mine.parameters())),
        (theirs, torch.optim.AdamW(theirs.parameters())),
    ]
    for net, optimizer in pairs:
        train(net, optimizer, range(2))
        optimizer.param_groups[0][option] = new[option]
        train(net, optimizer, range(2, 4))
    for a, b in zip(values(mine), values(theirs), strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_a_tensor_lr_may_be_filled_in_place():
    nets = [model(), model()]
    lr = torch.tensor(0.1)
    first = ours.Adam(nets[0].parameters(), lr=lr)
    second = ours.Adam(nets[1].parameters(), lr=0.1)
    for step, rate in enumerate((0.1, 0.1, 0.25, 0.5)):
        lr.fill_(rate)
        second.param_groups[0]["lr"] = lr.item()
        for net, optimizer in zip(nets, (first, second), strict=True):
            train(net, optimizer, [step])
    assert same(values(nets[0]), values(nets[1]))


def test_parameters_without_gradient_are_left_alone_and_get_no_state():
    net = model()
    frozen = net[0].weight
    optimizer = ours.Adam(net.parameters())
    for step in range(3):
        backward(net, step)
        frozen.grad = None
        optimizer.step()
    assert torch.equal(frozen, model()[0].weight)
    assert frozen not in optimizer.state
    train(net, optimizer, [3])
    assert optimizer.state[frozen]["step"] == 1
    assert optimizer.state[net[0].bias]["step"] == 4


def test_a_group_may_be_added_on_the_way():
    net = model()
    optimizer = ours.Adam(net[0].parameters(), lr=0.1)
    train(net, optimizer, range(2))
    optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.5})
    before = values(net[2])
    train(net, optimizer, [2])
    moved = (net[2].bias.detach() - before[1]).abs().max()
    assert moved == pytest.approx(0.5, rel=1e-3)


# ── kinds of tensors ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "SGD"])
def test_other_dtypes_train_as_in_torch(name, dtype):
    """In half precision torch rounds after every operation, we once: within a few units of p's."""
    torch.manual_seed(0)
    start = torch.randn(50, dtype=dtype)
    mine, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    options = {"momentum": 0.9} if name == "SGD" else {}
    pairs = [(mine, getattr(ours, name)([mine], lr=0.05, **options)),
             (theirs, getattr(torch.optim, name)([theirs], lr=0.05, **options))]  # fmt: skip
    for step in range(5):
        gradient = torch.randn(50, dtype=dtype, generator=torch.Generator().manual_seed(step))
        for p, optimizer in pairs:
            p.grad = gradient.clone()
            optimizer.step()
    real = torch.view_as_real if dtype.is_complex else (lambda x: x)
    bound = 40 * torch.finfo(dtype).eps
    assert (real(mine.detach()) - real(theirs.detach())).abs().max() <= bound
    assert not torch.equal(mine.detach(), start)


LAYOUTS = {
    "channels_last": lambda x: x.clone().to(memory_format=torch.channels_last),
    "transposed": lambda x: x.clone().transpose(1, 2).contiguous().transpose(1, 2),
    "part of another": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_parameters_and_gradients_are_stepped_with_the_same_bits(layout):
    values_, *gradients = torch.randn(4, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    plain = nn.Parameter(values_.clone())
    strided = nn.Parameter(LAYOUTS[layout](values_))
    assert strided.stride() != plain.stride()
    place = strided.data_ptr()
    optimizers = [ours.AdamW([plain]), ours.AdamW([strided])]
    for gradient in gradients:
        plain.grad = gradient.clone()
        strided.grad = LAYOUTS[layout](gradient)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, strided)
    assert strided.data_ptr() == place


def test_empty_and_0_dim_tensors_are_stepped():
    parameters = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))]
    optimizer = ours.Adam(parameters, lr=0.5)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step()
    assert parameters[0].item() == pytest.approx(0.0, abs=1e-6)
    assert optimizer.state[parameters[1]]["step"] == 2


def test_parameters_that_share_storage_are_stepped_one_after_another():
    whole = torch.zeros(6)
    parameters = [nn.Parameter(whole[:4]), nn.Parameter(whole[2:])]
    for p in parameters:
        p.grad = torch.ones_like(p)
    ours.SGD(parameters, lr=1.0).step()
    assert whole.tolist() == [-1, -1, -2, -2, -1, -1]


def test_sparse_gradients_are_refused_before_anything_changes():
    dense, sparse = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    dense.grad, sparse.grad = torch.ones(3), torch.ones(3).to_sparse()
    optimizer = ours.Adam([dense, sparse])
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients, please"):
        optimizer.step()
    assert dense.tolist() == [1, 1, 1]
    assert not optimizer.state


def test_gradients_are_not_written_and_autograd_learns_of_the_change():
    net = model()
    optimizer = ours.AdamW(net.parameters(), clip_norm=0.01, maximize=True)
    for step in range(2):
        backward(net, step)
        gradients = [p.grad.clone() for p in net.parameters()]
        versions = [p._version for p in net.parameters()]
        addresses = [p.data_ptr() for p in net.parameters()]
        optimizer.step()
        assert same(gradients, [p.grad for p in net.parameters()])
        assert all(p._version > v for p, v in zip(net.parameters(), versions, strict=True))
        assert [p.data_ptr() for p in net.parameters()] == addresses


# ── protocols ──────────────────────────────────────────────────────────────────────────────────


def test_a_closure_is_called_once_with_gradients_enabled_and_its_value_returned():
    net = model()
    optimizer = ours.Adam(net.parameters())
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        backward(net, 0)
        return 7

    with torch.no_grad():
        assert optimizer.step(closure=closure) == 7
        assert optimizer.step(closure) == 7
    assert calls == [True, True]
    assert optimizer.step() is None


def test_hooks_run_around_the_step_and_only_while_registered():
    net = model()
    optimizer = ours.Adam(net.parameters())
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before")),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after")),
    ]
    train(net, optimizer, range(2))
    assert seen == ["before", "after"] * 2
    for handle in handles:
        handle.remove()
    train(net, optimizer, [2])
    assert len(seen) == 4
    assert optimizer.state[net[0].weight]["step"] == 3


def test_the_profiler_sees_the_step():
    net = model()
    optimizer = ours.Adam(net.parameters())
    train(net, optimizer, [0])
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}


SCHEDULERS = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    torch.optim.lr_scheduler.LinearLR,
    torch.optim.lr_scheduler.ConstantLR,
    lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    lambda o: torch.optim.lr_scheduler.CyclicLR(
        o, 0.01, 0.1, step_size_up=3, cycle_momentum=False, mode="exp_range", gamma=0.9
    ),
    lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
    lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5]),
    lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 6),
    lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
    lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [3],
    ),
]


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_schedulers_drive_it_as_they_drive_torchs(schedule):
    nets = [model(), model()]
    kinds = [ours.AdamW, torch.optim.AdamW]
    rates = []
    for net, kind in zip(nets, kinds, strict=True):
        optimizer = kind(net.parameters(), lr=0.05)
        scheduler = schedule(optimizer)
        rates.append([])
        for step in range(8):
            train(net, optimizer, [step])
            scheduler.step()
            rates[-1].append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
    assert rates[0] == rates[1]
    for a, b in zip(values(nets[0]), values(nets[1]), strict=True):
        assert (a - b).abs().max() <= 100 * torch.finfo(torch.float32).eps


def test_a_schedule_that_follows_the_loss_drives_it():
    optimizer = ours.AdamW(model().parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for loss in (1.0, 2.0):
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] == 0.05 * 0.1


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"clip_norm": 1e-3}])
def test_a_grad_scaler_scales_and_skips(options):
    net, plain = model(), model()
    optimizer = ours.Adam(net.parameters(), **options)
    other = ours.Adam(plain.parameters(), **options)
    assert optimizer._step_supports_amp_scaling == bool(options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step in range(3):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        scaler.scale(net(x).square().mean()).backward()
        if step == 1:
            net[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if step != 1:
            plain.zero_grad()
            plain(x).square().mean().backward()
            other.step()
    assert same(values(net), values(plain))  # the scales are powers of two, so exact
    assert optimizer.state[net[0].weight]["step"] == 2
    assert not hasattr(optimizer, "found_inf")


def test_differentiable_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="adamas steps in place outside of autograd"):
        ours.Adam(model().parameters(), differentiable=True)


REFUSED = [
    ("Adam", {"lr": -1.0}),
    ("Adam", {"betas": (1.0, 0.9)}),
    ("Adam", {"betas": (0.9, -0.1)}),
    ("Adam", {"betas": (0.9, torch.tensor(0.9))}),
    ("Adam", {"eps": -1.0}),
    ("Adam", {"weight_decay": -1.0}),
    ("Adam", {"lr": torch.tensor([0.1, 0.1])}),
    ("Adam", {"lr": torch.tensor(0.1), "foreach": True}),
    ("Adam", {"foreach": True, "fused": True}),
    ("NAdam", {"momentum_decay": -1.0}),
    ("RMSprop", {"alpha": -1.0}),
    ("RMSprop", {"momentum": -1.0}),
    ("SGD", {"lr": -1.0}),
    ("SGD", {"nesterov": True}),
]


@pytest.mark.parametrize(("name", "options"), REFUSED)
def test_bad_options_are_refused_with_torchs_error(name, options):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        getattr(torch.optim, name)(model().parameters(), **options)
    with pytest.raises(theirs.type) as mine:
        getattr(ours, name)(model().parameters(), **options)
    assert str(mine.value) == str(theirs.value)


# ── the phase ──────────────────────────────────────────────────────────────────────────────────


def test_the_average_is_that_of_torchs_AveragedModel():
    net, twin = model(), model()
    optimizer = ours.AdamW(net.parameters(), lr=0.05, ema=0.75)
    other = ours.AdamW(twin.parameters(), lr=0.05)
    averaged = torch.optim.swa_utils.AveragedModel(
        twin, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)
    )
    for step in range(6):
        train(net, optimizer, [step])
        train(twin, other, [step])
        averaged.update_parameters(twin)
    last = values(net)
    with optimizer.ema_weights():
        for a, b in zip(values(net), averaged.module.parameters(), strict=True):
            assert (a - b).abs().max() <= 8 * torch.finfo(torch.float32).eps * b.abs().max()
        with pytest.raises(RuntimeError, match="no step can be made"):
            train(net, optimizer, [7])
    assert same(values(net), last)


def test_the_average_goes_with_the_models_own_buffers_as_AveragedModels_does():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = ours.AdamW(net.parameters(), lr=0.05, ema=0.75)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75)
    )
    for step in range(4):
        train(net, optimizer, [step])
        averaged.update_parameters(net)
    with optimizer.ema_weights():
        for mine, theirs in zip(net.buffers(), averaged.module.buffers(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_are_the_parameters_rounded_to_nearest(dtype):
    p = nn.Parameter(torch.zeros(5000))
    values_ = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    optimizer = ours.SGD([p], lr=1.0, copy_to=dtype)
    p.grad = torch.from_numpy(-values_)
    optimizer.step()
    expected = p.detach().to(dtype)
    found = left_by_steps(optimizer)[0]
    is_nan = expected.isnan()
    assert torch.equal(found.isnan(), is_nan)
    assert torch.equal(found[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))


def test_skip_and_raise_touch_nothing():
    for action in ("skip", "raise"):
        net = model()
        optimizer = ours.Adam(net.named_parameters(), on_nonfinite=action)
        train(net, optimizer, [0])
        before = values(net)
        backward(net, 1)
        net[2].bias.grad[1] = float("nan")
        if action == "skip":
            optimizer.step()
            assert optimizer.skipped == 1
        else:
            message = (
                r"^Gradients are not finite: 2\.bias \(1 of 3 elements\)\. Nothing was changed"
            )
            with pytest.raises(FloatingPointError, match=message):
                optimizer.step()
        assert same(values(net), before)
        assert optimizer.state[net[0].weight]["step"] == 1


def test_statistics_are_scalars_named_by_parameter():
    net = model()
    optimizer = ours.Adam(net.named_parameters(), statistics=True)
    train(net, optimizer, [0])
    taken = optimizer.statistics()
    norm = net[0].weight.grad.double().norm().item()
    assert taken["0.weight/gradient_norm"].item() == pytest.approx(norm, rel=1e-12)
    assert len(taken) == 4 * 6
    assert all(value.shape == () for value in taken.values())


def test_param_groups_keep_biases_and_norms_from_decaying():
    net = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "linear": nn.Linear(4, 3),
            "norm": nn.LayerNorm(3),
            "convolution": nn.Conv1d(2, 2, 3),
        }
    )
    net["convolution"].bias.requires_grad_(False)
    decayed, others = ours.param_groups(net, weight_decay=0.1)
    assert [name for name, _ in decayed["params"]] == [
        "embedding.weight", "linear.weight", "convolution.weight",
    ]  # fmt: skip
    assert [name for name, _ in others["params"]] == ["linear.bias", "norm.weight", "norm.bias"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    decayed, _ = ours.param_groups(net, weight_decay=0.1, decay_embeddings=False)
    assert "embedding.weight" not in dict(decayed["params"])
    optimizer = ours.AdamW(ours.param_groups(net, weight_decay=0.1))
    assert optimizer.param_groups[1]["param_names"] == ["linear.bias", "norm.weight", "norm.bias"]


def test_param_groups_keep_named_parameters_in_float32():
    net = nn.Sequential()
    net.add_module("body", nn.Linear(3, 3))
    net.add_module("head", nn.Linear(3, 2))
    groups = ours.param_groups(net, weight_decay=0.1, float32=["head.*"])
    optimizer = ours.AdamW(groups, state="8bit")
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["body.weight"], ["body.bias"], ["head.weight"], ["head.bias"]
    ]  # fmt: skip
    assert [group["state"] for group in optimizer.param_groups] == ["8bit"] * 2 + ["float32"] * 2
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    dtypes = {name: optimizer.state[p]["exp_avg"].dtype for name, p in net.named_parameters()}
    small, wide = torch.int8, torch.float32
    assert list(dtypes.values()) == [small, small, wide, wide]
    with pytest.raises(
        ValueError, match=r"float32 has 'tail\.\*', but no parameter .* body\.weight, "
    ):
        ours.param_groups(net, weight_decay=0.1, float32="tail.*")


def test_norms_of_large_tensors_are_taken_slab_by_slab_with_the_same_bits(monkeypatch):
    x = torch.linspace(-3, 5, 10_000)
    x[7], x[9_999] = torch.inf, torch.nan
    found = []
    for slab in (operations.SLAB, 2048):
        monkeypatch.setattr(operations, "SLAB", slab)
        found.append((operations.tile_sums(x[8:9999]), operations.count_nonfinite(x)))
    assert found[0] == found[1]
    assert found[0][1] == 2
    assert len(found[0][0]) == 10


def test_complex_gradients_that_are_finite_are_not_skipped():
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = ours.SGD([p], lr=0.5, on_nonfinite="skip")
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.skipped == 0
    p.grad[1] = complex(0, torch.inf)
    optimizer.step()
    assert optimizer.skipped == 1
    assert torch.equal(p.detach(), torch.full((3,), 0.5 + 0j))
