"""What users of torch.optim do with optimizers: changes in a run, hooks, schedules, scalers."""

from __future__ import annotations

import copy

import pytest
import torch

import adamas.torch as ours
from tests.support.small_model import backward, model, same, train, values

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
