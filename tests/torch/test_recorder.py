"""A recorder of optimizers for PyTorch: it writes what steps did, and nobody else notices."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

import adamas
from adamas import records
from adamas.torch import SGD, Adam, AdamW, NAdam, RMSprop
from tests.support.torch_routes import standing_in

FIELDS = ("gradient_norm", "parameter_norm", "update_norm", "largest_update")


def model(dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3, bias=False))
    return made.to(device=device, dtype=dtype)


def backward(net, number, scale=1.0):
    for i, p in enumerate(net.parameters()):
        generator = torch.Generator().manual_seed(100 * number + i)
        drawn = scale * torch.randn(p.shape, generator=generator)
        p.grad = drawn.to(p.device, p.dtype)


def train(net, optimizer, numbers):
    for number in numbers:
        backward(net, number)
        optimizer.step()


def steps(path):
    return [line for opening in records.read(path) for line in opening.steps]


def numbers(path):
    return [line["step"] for line in steps(path)]


# ── what is written ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}])
def test_a_line_has_the_statistics_that_the_step_would_have_told(tmp_path, engine, options):
    net, twin = model(), model()
    optimizer = AdamW(net.named_parameters(), engine=engine, **options)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=3)
    other = AdamW(twin.named_parameters(), engine=engine, statistics=True, **options)
    train(net, optimizer, range(1, 4))
    train(twin, other, range(1, 4))
    line, told = steps(tmp_path / "run.jsonl")[-1], other.statistics()
    assert (line["step"], line["lr"]) == (3, [1e-3])
    assert list(line["tensors"]) == [name for name, _ in net.named_parameters()]
    for name, values in line["tensors"].items():
        assert values.pop("below_eps") == 0.0
        assert values == {key.rpartition("/")[2]: told[f"{name}/{key}"].item() for key in values}
    summary = other.statistics(summary=True)
    assert line["gradient_norm"] == summary["gradient_norm"]
    assert line.get("clip_factor") == summary.get("clip_factor") == other.clip_factor
    assert line.get("clipped") == (2 if options else None)


def test_parameters_without_names_have_places(tmp_path):
    net = model()
    adamas.Recorder(AdamW(net.parameters()), tmp_path / "run.jsonl")
    (opening,) = records.read(tmp_path / "run.jsonl")
    assert list(opening.header["parameters"]) == ["0.0", "0.1", "0.2"]


@pytest.mark.parametrize(
    ("made", "betas"),
    [
        (lambda p: AdamW(p, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5), [0.8, 0.9]),
        (lambda p: NAdam(p, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5), [0.8, 0.9]),
        (lambda p: RMSprop(p, lr=0.1, alpha=0.9, eps=1e-6, weight_decay=0.5), [0, 0.9]),
        (lambda p: SGD(p, lr=0.1, momentum=0.8, weight_decay=0.5), [0.8, None]),
    ],
)
def test_a_header_has_the_options_of_every_method(tmp_path, made, betas):
    net = model()
    optimizer = made(net.named_parameters())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    train(net, optimizer, range(4))
    (opening,) = records.read(tmp_path / "run.jsonl")
    (group,) = opening.header["groups"]
    assert opening.header["method"] == type(optimizer).__name__
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, betas, 0.5)
    assert group["eps"] == (None if betas[1] is None else 1e-6)
    assert [line["step"] for line in opening.steps] == [1, 2, 4]
    has_share = {"below_eps" in each for each in opening.steps[-1]["tensors"].values()}
    assert has_share == {betas[1] is not None}


def squares_of(optimizer):
    """v of every parameter as numbers, the largest one where it is kept."""
    found = optimizer.state_dict()["state"].values()
    names = ("max_exp_avg_sq", "exp_avg_sq", "square_avg")
    return [next(state[name] for name in names if name in state).double() for state in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, *({"state": form} for form in ("bfloat16", "compact", "8bit"))],
    ids=str,
)
def test_the_share_of_eps_is_that_of_the_state_as_it_is_stored(tmp_path, dtype, options):
    check_shares(tmp_path, dtype, options)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=str)
def test_the_share_of_eps_is_that_of_float64_too(tmp_path, options):
    check_shares(tmp_path, torch.float64, options)


def check_shares(tmp_path, dtype, options):
    net = model(dtype)
    optimizer = Adam(net.named_parameters(), betas=(0.5, 0.5), eps=0.25, **options)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    train(net, optimizer, range(2))
    line = steps(tmp_path / "run.jsonl")[-1]
    shares = [each["below_eps"] for each in line["tensors"].values()]
    expected = [(v < 0.25**2 * 0.75).double().mean().item() for v in squares_of(optimizer)]
    assert shares == expected
    assert 0 < shares[0] < 1


def test_states_of_other_strides_are_counted_whole(tmp_path):
    net = nn.Conv2d(3, 8, 3, bias=False).to(memory_format=torch.channels_last)
    optimizer = Adam(net.named_parameters(), betas=(0.5, 0.5), eps=0.25)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    train(net, optimizer, [1])
    (line,) = steps(tmp_path / "run.jsonl")
    (v,) = squares_of(optimizer)
    assert not v.is_contiguous()
    share = (v < 0.25**2 * 0.5).double().mean().item()
    assert line["tensors"]["weight"]["below_eps"] == share > 0


def test_a_complex_parameter_counts_as_two_numbers(tmp_path):
    p = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    optimizer = Adam([p], betas=(0.5, 0.5), eps=0.5)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    p.grad = torch.tensor([1.0 + 0.1j, 2.0 + 0.2j, 1.0 + 2.0j])
    optimizer.step()
    (line,) = steps(tmp_path / "run.jsonl")
    assert line["tensors"]["0.0"]["below_eps"] == 2 / 6


def test_only_parameters_that_were_stepped_stand_in_a_line(tmp_path):
    net = model()
    optimizer = AdamW(net.named_parameters())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=1)
    backward(net, 1)
    net[0].bias.grad = None
    optimizer.step()
    assert list(steps(tmp_path / "run.jsonl")[0]["tensors"]) == ["0.weight", "2.weight"]


def test_a_loss_may_be_noted_as_it_is(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters())
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    loss = net(torch.ones(2, 6)).square().mean()
    loss.backward()
    recorder.note(loss=loss)
    optimizer.step()
    assert steps(tmp_path / "run.jsonl")[0]["notes"] == {"loss": loss.item()}


@pytest.mark.parametrize("unscales", [False, True])
def test_norms_are_those_without_the_loss_scale(tmp_path, unscales):
    net, plain = model(), model()
    optimizer, other = AdamW(net.parameters(), fused=unscales), AdamW(plain.parameters())
    adamas.Recorder(optimizer, tmp_path / "a.jsonl", every=1)
    adamas.Recorder(other, tmp_path / "b.jsonl", every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in (1, 2):
        backward(plain, number)
        other.step()
        backward(net, number, 1024.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    for line, expected in zip(
        steps(tmp_path / "a.jsonl"), steps(tmp_path / "b.jsonl"), strict=True
    ):
        assert line["gradient_norm"] == expected["gradient_norm"]
        assert line["tensors"] == expected["tensors"]


def test_an_overflow_of_the_scaler_costs_no_line(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters(), clip_norm=1.0)
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for scale in (math.inf, 4.0, math.inf, 4.0):
        backward(net, 1, scale)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    assert numbers(tmp_path / "run.jsonl") == [1, 2]


# ── nobody notices ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 0.5, "on_nonfinite": "skip"}, {"engine": "torch"}, {"ema": 0.9}],
    ids=str,
)
def test_a_recorder_changes_nothing_that_is_seen(tmp_path, options):
    net, twin = model(), model()
    recorded, plain = AdamW(net.parameters(), **options), AdamW(twin.parameters(), **options)
    recorder = adamas.Recorder(recorded, tmp_path / "run.jsonl", every=3)
    for number in range(8):
        if number == 7:
            recorder.close()
        train(net, recorded, [number])
        train(twin, plain, [number])
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
        for one, other in zip(recorded.state.values(), plain.state.values(), strict=True):
            assert list(one) == list(other)
            assert all(map(torch.equal, one.values(), other.values()))
        assert repr(recorded) == repr(plain)
        assert recorded.defaults == plain.defaults
        assert recorded.phase == plain.phase
        assert recorded.routes() == plain.routes()
        assert recorded.gradient_norm == plain.gradient_norm
        with pytest.raises(RuntimeError, match="No statistics were taken"):
            recorded.statistics()


def test_the_users_own_statistics_go_on(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters(), statistics=True)
    with adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2):
        for number in range(5):
            train(net, optimizer, [number])
            assert len(optimizer.statistics()) == 18
    train(net, optimizer, [5])
    assert len(optimizer.statistics()) == 18


def test_options_that_are_set_between_steps_count_in_recorded_steps_too(tmp_path):
    net, twin = model(), model()
    recorded, plain = (
        AdamW(net.parameters(), clip_norm=1.0),
        AdamW(twin.parameters(), clip_norm=1.0),
    )
    adamas.Recorder(recorded, tmp_path / "run.jsonl", every=2)
    for number, limit in enumerate((1.0, 0.5, None, 0.25, 2.0, None, 1.0)):
        for each, one in ((net, recorded), (twin, plain)):
            one.clip_norm = limit
            train(each, one, [number])
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
        assert recorded.clip_factor == plain.clip_factor
    assert [line.get("clip_factor") is None for line in steps(tmp_path / "run.jsonl")] == [
        *(False, False, False, True),
    ]


def test_steps_between_recorded_ones_are_native_ones_without_statistics(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=4)
    backward(net, 1)
    is_direct = []
    for _ in range(9):
        optimizer.step()
        is_direct.append(optimizer.routes() != {} and optimizer.gradient_norm is None)
    assert is_direct == [True] * 9
    assert numbers(tmp_path / "run.jsonl") == [1, 4, 8]


def test_several_recorders_do_not_disturb_each_other(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters())
    first = adamas.Recorder(optimizer, tmp_path / "a.jsonl", every=2)
    adamas.Recorder(optimizer, tmp_path / "b.jsonl", every=3)
    train(net, optimizer, range(6))
    first.close()
    train(net, optimizer, range(6))
    assert numbers(tmp_path / "a.jsonl") == [1, 2, 4, 6]
    assert numbers(tmp_path / "b.jsonl") == [1, 3, 6, 9, 12]


def test_an_optimizer_is_not_kept_alive(tmp_path):
    optimizer = AdamW(model().parameters())
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl")
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    recorder.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_are_not_recorded(tmp_path, copied):
    net = model()
    optimizer = AdamW(net.parameters())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=1)
    train(net, optimizer, [1])
    twin = copied(optimizer)
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    assert numbers(tmp_path / "run.jsonl") == [1]
    with pytest.raises(RuntimeError, match="No statistics were taken"):
        twin.statistics()


# ── in a training ──────────────────────────────────────────────────────────────────────────────


def test_a_closure_a_scheduler_and_an_added_group_are_taken_as_they_come(tmp_path):
    net = model()
    last = net[2].weight
    optimizer = AdamW([net[0].weight, net[0].bias], lr=1.0)
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 6)).square().mean()
        loss.backward()
        recorder.note(loss=loss)
        return loss

    for number in range(6):
        if number == 3:
            optimizer.add_param_group({"params": [last], "lr": 0.5})
            schedule.base_lrs.append(0.5)
        assert optimizer.step(closure).item() > 0
        schedule.step()
    openings = records.read(tmp_path / "run.jsonl")
    assert [[line["step"] for line in each.steps] for each in openings] == [[1, 2], [4, 6]]
    assert [len(line["lr"]) for each in openings for line in each.steps] == [1, 1, 2, 2]
    assert openings[1].steps[0]["lr"] == [0.125, 0.5]
    assert list(openings[1].header["parameters"]) == ["0.0", "0.1", "1.0"]
    assert all(line["notes"]["loss"] > 0 for each in openings for line in each.steps)


def test_a_resumed_run_goes_on_with_its_numbers(tmp_path):
    path, net = tmp_path / "run.jsonl", model()
    optimizer = AdamW(net.parameters())
    adamas.Recorder(optimizer, path, every=4)
    train(net, optimizer, range(6))
    other = AdamW(net.parameters())
    adamas.Recorder(other, path, every=4)
    other.load_state_dict(optimizer.state_dict())
    train(net, other, range(6))
    assert [[line["step"] for line in opening.steps] for opening in records.read(path)] == [
        [1, 4],
        [7, 8, 12],
    ]


def test_a_resumed_run_of_sgd_which_counts_no_steps_goes_on_from_the_last_line(tmp_path):
    path, net = tmp_path / "run.jsonl", model()
    optimizer = SGD(net.parameters(), momentum=0.9)
    adamas.Recorder(optimizer, path, every=4)
    train(net, optimizer, range(9))
    for is_loaded, expected in ((True, [9, 12]), (False, [1, 4])):
        other = SGD(net.parameters(), momentum=0.9)
        with adamas.Recorder(other, path, every=4):
            if is_loaded:
                other.load_state_dict(optimizer.state_dict())
            train(net, other, range(5))
        assert [line["step"] for line in records.read(path)[-1].steps] == expected


def test_what_is_loaded_in_the_midst_of_a_run_is_recorded_on(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters())
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    train(net, optimizer, range(3))
    optimizer.load_state_dict(optimizer.state_dict())
    train(net, optimizer, range(3))
    assert numbers(tmp_path / "run.jsonl") == [1, 2, 4, 6]


def test_steps_that_are_left_out_are_told_and_the_next_one_is_recorded(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters(), on_nonfinite="skip")
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=3)
    for number, scale in enumerate((1.0, 1.0, math.nan, math.nan, 1.0, 1.0, 1.0, 1.0)):
        backward(net, number, scale)
        optimizer.step()
    lines = steps(tmp_path / "run.jsonl")
    assert [(each["step"], each["skipped"]["nonfinite"]) for each in lines] == [
        *((1, 0), (2, 1), (3, 2), (6, 2)),
    ]
    assert ["tensors" in each for each in lines] == [True, False, True, True]


def test_averages_that_are_swapped_in_refuse_steps_while_a_recorder_is_closed(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters(), ema=0.5)
    recorder = adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    train(net, optimizer, range(4))
    with optimizer.ema_weights():
        recorder.close()
        with pytest.raises(RuntimeError, match="no step can be made"):
            optimizer.step()
    train(net, optimizer, range(2))
    assert numbers(tmp_path / "run.jsonl") == [1, 2, 4]


def test_a_profiler_may_look_on(tmp_path):
    """torch goes through its hooks then, and none may be put in or taken away meanwhile."""
    net = model()
    optimizer = AdamW(net.parameters())
    adamas.Recorder(optimizer, tmp_path / "a.jsonl", every=2)
    adamas.Recorder(optimizer, tmp_path / "b.jsonl", every=3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        train(net, optimizer, range(6))
    assert numbers(tmp_path / "a.jsonl") == [1, 2, 4, 6]
    assert numbers(tmp_path / "b.jsonl") == [1, 3, 6]


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def test_an_optimizer_of_torch_is_refused_with_the_one_to_take(tmp_path):
    with pytest.raises(TypeError, match=r"got torch\.optim\.SGD, whose .* from adamas\.torch"):
        adamas.Recorder(torch.optim.SGD(model().parameters(), lr=1), tmp_path / "run.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"centered": True}])
def test_a_rule_without_statistics_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="RMSprop with momentum or centered, which"):
        adamas.Recorder(RMSprop(model().parameters(), **options), tmp_path / "run.jsonl")
    assert list(tmp_path.iterdir()) == []


# ── hooks and summaries ────────────────────────────────────────────────────────────────────────


def test_a_hook_is_called_as_torch_calls_it():
    calls = {}
    for made in (AdamW, torch.optim.AdamW):
        net = model()
        optimizer = made(net.parameters())
        seen = calls.setdefault(made, [])
        optimizer.register_step_post_hook(
            lambda one, args, kwargs, seen=seen, net=net: seen.append(
                (type(one).__name__, len(args), kwargs, args[0] is one, net[0].bias[0].item() != 0)
            )
        )
        backward(net, 1)
        optimizer.step()
        optimizer.step(lambda: torch.ones(()))
    assert calls[AdamW] == calls[torch.optim.AdamW]
    assert len(calls[AdamW]) == 2


def test_a_summary_is_a_dozen_plain_numbers():
    net = model()
    optimizer = AdamW(net.named_parameters(), lr=0.5, clip_norm=0.125, statistics=True)
    with pytest.raises(RuntimeError, match="There are no statistics"):
        optimizer.statistics(summary=True)
    train(net, optimizer, [1])
    told, each = optimizer.statistics(summary=True), optimizer.statistics()
    assert len(told) == 12
    assert {type(value) for value in told.values()} == {float}
    assert told["gradient_norm"] == optimizer.gradient_norm
    assert told["clip_factor"] == optimizer.clip_factor == 0.125 / optimizer.gradient_norm
    for field in FIELDS[1:3]:
        values = [value for key, value in each.items() if key.endswith(field)]
        assert told[field] == pytest.approx(torch.stack(values).norm().item(), rel=1e-14)
    assert told["largest_update"] == max(v for k, v in each.items() if k.endswith("largest_update"))
    assert told["lr"] == 0.5


def test_totals_do_not_depend_on_how_tensors_are_cut():
    whole = nn.Parameter(torch.randn(999, generator=torch.Generator().manual_seed(1)))
    parts = [nn.Parameter(each.clone()) for each in whole.detach().split([1, 500, 498])]
    gradient = torch.randn(999, generator=torch.Generator().manual_seed(2))
    told = []
    for parameters in ([whole], parts):
        optimizer = AdamW(parameters, statistics=True)
        for p, g in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.clone()
        optimizer.step()
        told.append(optimizer.statistics(summary=True))
    assert told[0] == told[1]


def test_a_summary_of_a_step_that_was_left_out_has_what_is_known():
    net = model()
    optimizer = AdamW(net.parameters(), on_nonfinite="skip", statistics=True)
    backward(net, 1, math.inf)
    optimizer.step()
    told = optimizer.statistics(summary=True)
    assert (told["skipped"], told["skipped_nonfinite"]) == (1.0, 1.0)
    assert math.isinf(told["gradient_norm"]) or math.isnan(told["gradient_norm"])
    assert "update_norm" not in told
    assert optimizer.clip_factor is None


# ── other routes ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", ["offload late", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.5, "on_nonfinite": "skip"}, {"state": "8bit"}], ids=str
)
def test_other_routes_are_recorded_as_the_native_one(tmp_path, route, options):
    pytest.importorskip("triton")
    told = {}
    for each in ("native", route):
        path = tmp_path / f"{each}.jsonl"
        with standing_in(each) as device:
            net = model(device=device)
            own = {"offload": True} if each.startswith("offload") else {}
            optimizer = AdamW(net.named_parameters(), eps=1e-2, **own, **options)
            recorder = adamas.Recorder(optimizer, path, every=2)
            for number in range(4):
                backward(net, number, math.nan if options.get("clip_norm") and number == 1 else 1.0)
                optimizer.step()
                with pytest.raises(RuntimeError, match="No statistics were taken"):
                    optimizer.statistics()
            assert {*optimizer.routes().values()} == {each.split()[0]}
            recorder.close()
        told[each] = [{k: v for k, v in line.items() if k != "time"} for line in steps(path)]
        for line in told[each]:
            line.pop("clipped", None)  # which is not waited for on a device
    assert told[route] == told["native"]
    assert len(told[route]) == 3


def test_where_an_earlier_state_is_loaded_the_record_goes_on_from_there(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = AdamW([parameter])
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)

    def train(count):
        for _ in range(count):
            optimizer.step()

    train(5)
    kept = copy.deepcopy(optimizer.state_dict())
    train(5)
    optimizer.load_state_dict(kept)
    train(7)
    told = records.read(tmp_path / "run.jsonl")
    assert [[line["step"] for line in each.steps] for each in told] == [
        [1, 2, 4, 6, 8, 10],
        [7, 8, 10, 12],
    ]


def test_tensors_that_are_stepped_late_go_on_from_the_steps_of_the_others(tmp_path):
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = AdamW([first])
    adamas.Recorder(optimizer, tmp_path / "run.jsonl", every=2)
    for number in range(12):
        if number == 6:
            optimizer.add_param_group({"params": [second]})
        first.grad, second.grad = (torch.ones(3), None) if number < 6 else (None, torch.ones(3))
        optimizer.step()
    told = records.read(tmp_path / "run.jsonl")
    assert [line["step"] for each in told for line in each.steps] == [1, 2, 4, 6, 8, 10, 12]
    assert told[-1].steps[-1]["tensors"].keys() == {"1.0"}
