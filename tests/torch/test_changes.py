"""State and groups that others change in a run: stored anew, begun anew, or refused."""

from __future__ import annotations

import copy
import functools

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from adamas.torch import host_memory  # noqa: E402
from adamas.torch.routes import offload  # noqa: E402
from tests.support.queues import Queues  # noqa: E402
from tests.support.torch_bits import trained_bits  # noqa: E402

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
FORMS = ["float32", "bfloat16", "compact", "8bit", ("8bit", "float32"), ("compact", "8bit"), None]


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in [(5, 7), (40,)]]


def stepped(optimizer, steps=1, first=0, scale=1.0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
        optimizer.step()
    return optimizer


def set_form(optimizer, form):
    for group in optimizer.param_groups:
        if form is None:
            group.pop("state", None)
        else:
            group["state"] = form


ENGINES = ["native", "torch"]


# ── how state is stored ────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(30)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("after", FORMS, ids=str)
@pytest.mark.parametrize("before", FORMS, ids=str)
def test_a_form_that_changes_in_a_run_is_that_of_a_loaded_state(before, after, dtype, engine):
    """The state that steps on has the bits of one that is saved and loaded with the new form."""
    optimizer = stepped(ours.Adam(parameters(dtype), lr=0.02, state=before, engine=engine), 10)
    params = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    loaded = ours.Adam(params, lr=0.02, state=after, engine=engine)
    loaded.load_state_dict(optimizer.state_dict(packed=True))
    set_form(optimizer, after)
    assert trained_bits(stepped(optimizer, 3, 10)) == trained_bits(stepped(loaded, 3, 10))
    assert {*optimizer.routes().values(), *loaded.routes().values()} == {engine}


@pytest.mark.parametrize("rounding", ["remainder", "remainder8", "nearest", None])
def test_a_rounding_that_changes_in_a_run_is_that_of_a_loaded_state(rounding):
    optimizer = stepped(ours.Adam(parameters(BFLOAT16), lr=0.02, rounding="remainder"), 5)
    params = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    loaded = ours.Adam(params, lr=0.02, rounding=rounding)
    loaded.load_state_dict(optimizer.state_dict(packed=True))
    for group in optimizer.param_groups:
        group["rounding"] = rounding
    assert trained_bits(stepped(optimizer, 2, 5)) == trained_bits(stepped(loaded, 2, 5))


def test_a_form_that_changes_with_offload_is_that_of_a_loaded_state(monkeypatch):
    monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
    monkeypatch.setattr(offload, "CudaStreams", lambda device: Queues("late"))
    found = []
    for offloads in (True, False):
        optimizer = ours.Adam(parameters(), lr=0.02, state="compact", offload=offloads)
        stepped(optimizer, 5)
        set_form(optimizer, "8bit")
        optimizer.param_groups[0]["betas"] = (0.5, 0.999)
        found.append(trained_bits(stepped(optimizer, 3, 5)))
    assert found[0] == found[1]


def test_what_cannot_be_stored_so_is_refused_and_nothing_is_changed():
    optimizer = stepped(ours.Adam(parameters(torch.float64)), 2)
    before = trained_bits(optimizer)
    set_form(optimizer, "8bit")
    with pytest.raises(TypeError, match=r"dtype torch\.float64: low-bit states are for float32,"):
        stepped(optimizer, 1, 2)
    assert trained_bits(optimizer) == before
    set_form(optimizer, "4bit")
    with pytest.raises(ValueError, match="state is '4bit', but it must be one of"):
        stepped(optimizer, 1, 2)
    assert trained_bits(optimizer) == before
    set_form(optimizer, None)
    stepped(optimizer, 1, 2)


# ── state and groups of another optimizer ──────────────────────────────────────────────────────


def take_state(optimizer, other):
    optimizer.state = other.state


def take_groups(optimizer, other):
    optimizer.param_groups = other.param_groups


def take_both(optimizer, other):
    optimizer.state, optimizer.param_groups = other.state, other.param_groups


def take_as_dict(optimizer, other):
    optimizer.state = {p: dict(entries) for p, entries in other.state.items()}


@pytest.mark.parametrize("take", [take_state, take_groups, take_both, take_as_dict])
@pytest.mark.parametrize("theirs", FORMS, ids=str)
@pytest.mark.parametrize("mine", ["float32", "compact", "8bit", None])
def test_what_is_taken_over_is_never_read_as_something_else(mine, theirs, take):
    """It steps as an optimizer that loads the state does."""
    params = parameters()
    other = stepped(ours.Adam(params, lr=0.02, **({} if theirs is None else {"state": theirs})), 5)
    optimizer = ours.Adam(params, lr=0.02, **({} if mine is None else {"state": mine}))
    if take is take_groups:  # its own state, then in the form of the other's groups
        stepped(optimizer, 5)
    source = optimizer if take is take_groups else other
    form = mine if take in (take_state, take_as_dict) else theirs
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    loaded = ours.Adam(twins, lr=0.02, **({} if form is None else {"state": form}))
    loaded.load_state_dict(source.state_dict(packed=True))
    take(optimizer, other)
    assert trained_bits(stepped(optimizer, 2, 5)) == trained_bits(stepped(loaded, 2, 5))


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "NAdam"])
def test_the_state_of_another_class_is_refused_and_nothing_is_changed(name):
    params = parameters()
    options = {"momentum": 0.9} if name == "SGD" else {}
    other = stepped(getattr(ours, name)(params, **options), 2)
    optimizer = ours.Adam(params)
    optimizer.state = other.state
    before = trained_bits(optimizer)
    with pytest.raises(ValueError, match="which Adam does not keep"):
        stepped(optimizer, 1)
    assert trained_bits(optimizer) == before


WRONG = {
    "another shape": (torch.zeros(41), ValueError, r"The state of 0\.1 has exp_avg of shape"),
    "a number": (1.0, TypeError, "as exp_avg, but it must be a tensor"),
    "codes without a top": (torch.zeros(40, dtype=torch.uint8), ValueError, "and None as top"),
    "whole numbers": (torch.zeros(40, dtype=torch.int32), TypeError, r"of dtype torch\.int32"),
    "another device": (torch.zeros(40, device="meta"), TypeError, "on device meta"),
    "another layout": (torch.zeros(40).to_sparse(), TypeError, "layout torch.sparse_coo"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", WRONG)
def test_an_entry_that_does_not_fit_is_refused_before_any_parameter_moves(case, engine):
    value, error, message = WRONG[case]
    optimizer = stepped(ours.Adam(parameters(), engine=engine), 2)
    p = optimizer.param_groups[0]["params"][1]
    kept = optimizer.state[p]["exp_avg"]
    optimizer.state[p]["exp_avg"] = torch.zeros_like(kept)
    before = trained_bits(optimizer)
    optimizer.state[p]["exp_avg"] = value
    with pytest.raises(error, match=message):
        stepped(optimizer, 1, 2)
    optimizer.state[p]["exp_avg"] = torch.zeros_like(kept)
    assert trained_bits(optimizer) == before
    stepped(optimizer, 1, 2)


COUNTS = {
    "many": torch.ones(40), "none": torch.ones(0), "complex": torch.ones((), dtype=torch.complex64),
    "meta": torch.ones((), device="meta"), "sparse": torch.ones(1).to_sparse(),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", COUNTS)
def test_a_count_that_is_no_number_is_refused_before_any_parameter_moves(case, engine):
    optimizer = stepped(ours.NAdam(parameters(), engine=engine), 2)
    state = optimizer.state[optimizer.param_groups[0]["params"][1]]
    for entry in ("step", "mu_product"):
        kept = state[entry]
        before = trained_bits(optimizer)
        state[entry] = COUNTS[case]
        with pytest.raises(TypeError, match=rf"^The state of 0\.1 has .* as {entry}, but it mu"):
            stepped(optimizer, 1, 2)
        state[entry] = kept
        assert trained_bits(optimizer) == before
    stepped(optimizer, 1, 2)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(("state", "given"), [(None, "None"), ("x", "a str"), ([1], "a list")])
def test_a_state_that_is_no_dict_is_refused_before_any_parameter_moves(state, given, clip_norm):
    optimizer = stepped(ours.Adam(parameters(), clip_norm=clip_norm), 2)
    p = optimizer.param_groups[0]["params"][1]
    kept = optimizer.state[p]
    before = trained_bits(optimizer)
    optimizer.state[p] = state
    with pytest.raises(TypeError, match=rf"^The state of 0\.1 is {given}, but it must be a dict"):
        stepped(optimizer, 1, 2)
    optimizer.state[p] = kept
    assert trained_bits(optimizer) == before


# ── betas ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["compact", "8bit"])
@pytest.mark.parametrize("betas", [(0.5, 0.999), (0.0, 0.999), (0.9, 0.9999)])
def test_betas_that_fall_do_not_cut_m_at_the_range_of_the_first(form, betas):
    """Steps have the bits of a run whose codes reach as far from the beginning."""
    optimizer = stepped(ours.Adam(parameters(), lr=0.02, state=form, betas=(0.95, 0.999)), 5)
    p = optimizer.param_groups[0]["params"][0]
    first = optimizer.state[p]["top"]
    optimizer.param_groups[0]["betas"] = betas
    twin = copy.deepcopy(optimizer)
    stepped(optimizer, 1, 5)
    assert optimizer.state[p]["top"] > first
    for group in twin.param_groups:
        for q in group["params"]:
            q.grad = None
    loaded = ours.Adam(parameters(), lr=0.02, state=form)
    loaded.load_state_dict(twin.state_dict())  # dense: encoded anew, for these betas
    for q, r in zip(loaded.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True):
        q.data.copy_(r)
    assert trained_bits(stepped(loaded, 1, 5)) == trained_bits(optimizer)


@pytest.mark.parametrize("form", ["compact", "8bit"])
def test_a_mean_that_new_betas_do_not_allow_is_kept_until_it_is_small_enough(form):
    """One spike makes m as large beside v as the first betas let it be."""
    routes = []
    for engine in (None, "torch"):  # what is beyond its codes the native engine does not read
        p = nn.Parameter(torch.zeros(64))
        optimizer = ours.Adam([p], lr=0.02, state=form, betas=(0.0, 0.999), engine=engine)
        p.grad = torch.full((64,), 1e-3)
        optimizer.step()
        optimizer.step()
        p.grad = torch.full((64,), 1e3)
        optimizer.step()
        m = optimizer.state_dict()["state"][0]["exp_avg"].clone()
        top = optimizer.state[p]["top"]
        optimizer.param_groups[0]["betas"] = (0.9, 0.9)  # |m| ≤ 1.2 √v, whereas it is 31 √v
        p.grad = torch.zeros(64)
        tops = []
        for _ in range(60):
            optimizer.step()
            if not tops:
                now = optimizer.state_dict()["state"][0]["exp_avg"]
                assert (now - 0.9 * m).abs().max() <= 0.04 * m.abs().max()
            tops.append(optimizer.state[p]["top"])
        assert tops[0] == top
        assert tops[-1] <= tops[0]
        routes.append((tops, trained_bits(optimizer)))
    assert routes[0] == routes[1]


def test_a_cycle_of_betas_is_resumed_with_the_bits_of_the_unbroken_run():
    def schedule(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=20)

    optimizer = ours.Adam(parameters(), lr=0.02, state="compact")
    scheduler = schedule(optimizer)
    tops, saved = [], []
    for step in range(16):
        p = optimizer.param_groups[0]["params"][0]
        stepped(optimizer, 1, step)
        scheduler.step()
        tops.append(optimizer.state[p]["top"])
        saved.append(copy.deepcopy((optimizer.state_dict(), optimizer.param_groups[0]["params"])))
    assert len(set(tops)) > 1
    for begun in (5, 8, 12):
        state, params = saved[begun]
        other = ours.Adam(params, lr=0.02, state="compact")
        scheduler = schedule(other)
        other.load_state_dict(state)
        scheduler.last_epoch = begun + 1
        for step in range(begun + 1, 16):
            stepped(other, 1, step)
            scheduler.step()
        assert trained_bits(other) == trained_bits(optimizer)


# ── entries that are taken out ─────────────────────────────────────────────────────────────────

METHODS = [
    ("Adam", {}), ("AdamW", {"state": "8bit"}), ("Adam", {"amsgrad": True}), ("NAdam", {}),
    ("NAdam", {"state": "compact"}), ("RMSprop", {}), ("RMSprop", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}), ("SGD", {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "rounding": "stochastic"}),
]  # fmt: skip


def clear(optimizer):
    optimizer.state.clear()


def clear_each(optimizer):
    for entries in optimizer.state.values():
        entries.clear()


def replace(optimizer):
    optimizer.state = {}


@pytest.mark.parametrize("phase", [{}, {"clip_norm": 1.0}, {"ema": 0.5}], ids=str)
@pytest.mark.parametrize("change", [clear, clear_each, replace])
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_state_that_is_cleared_begins_anew(name, options, change, phase):
    if options.get("momentum") and name == "RMSprop" and "ema" in phase:
        phase = {}
    options = {**options, **phase}
    optimizer = stepped(getattr(ours, name)(parameters(), lr=0.02, **options), 3)
    params = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    fresh = getattr(ours, name)(params, lr=0.02, **options)
    change(optimizer)
    assert trained_bits(stepped(optimizer, 3, 3)) == trained_bits(stepped(fresh, 3, 3))


@pytest.mark.parametrize(
    ("name", "options", "entry"),
    [
        ("Adam", {}, "step"),
        ("Adam", {}, "exp_avg_sq"),
        ("Adam", {"state": "8bit"}, "exp_avg_sq"),
        ("NAdam", {}, "mu_product"),
        ("NAdam", {}, "step"),
        ("RMSprop", {}, "square_avg"),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, "momentum_buffer"),
        ("SGD", {"momentum": 0.9, "dampening": 0.5, "state": "bfloat16"}, "momentum_buffer"),
    ],
)
@pytest.mark.parametrize("value", ["gone", None])
def test_a_parameter_begins_anew_where_a_vital_entry_is_taken_out(name, options, entry, value):
    optimizer = stepped(getattr(ours, name)(parameters(), lr=0.02, **options), 3)
    p = optimizer.param_groups[0]["params"][1]
    params = [nn.Parameter(each.detach().clone()) for each in optimizer.param_groups[0]["params"]]
    twin = getattr(ours, name)(params, lr=0.02, **options)
    twin.load_state_dict(optimizer.state_dict(packed=True))
    twin.state[params[1]].clear()
    if value is None:
        optimizer.state[p][entry] = None
    else:
        optimizer.state[p].pop(entry)
    assert trained_bits(stepped(optimizer, 2, 3)) == trained_bits(stepped(twin, 2, 3))


UNCOUNTED = [
    (torch.tensor(-5.0), ValueError, r"number of steps of 0\.1 is -5\.0"),
    (torch.tensor(0.5), ValueError, r"number of steps of 0\.1 is 0\.5"),
    (torch.tensor(float("nan")), ValueError, r"number of steps of 0\.1 is nan"),
    (torch.tensor([1.0, 2.0]), TypeError, r"state of 0\.1 has a tensor of shape \(2,\) .* as step"),
    (torch.tensor(1j), TypeError, r"state of 0\.1 has a tensor .* dtype torch.complex64 as step"),
    (-5, ValueError, r"state of 0\.1 has step -5"),
    ("3", TypeError, r"state of 0\.1 has '3' as step"),
]


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RMSprop"])
@pytest.mark.parametrize(("value", "error", "message"), UNCOUNTED)
def test_a_count_that_is_none_is_refused_in_a_run_and_nothing_is_changed(
    name, value, error, message
):
    optimizer = stepped(getattr(ours, name)(parameters()), 2)
    p = optimizer.param_groups[0]["params"][1]
    kept, before = optimizer.state[p]["step"], trained_bits(optimizer)
    optimizer.state[p]["step"] = value
    with pytest.raises(error, match=message):
        stepped(optimizer, 1, 2)
    optimizer.state[p]["step"] = kept
    assert trained_bits(optimizer) == before


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RMSprop"])
def test_a_count_may_be_a_plain_number_in_a_run(name):
    optimizer = stepped(getattr(ours, name)(parameters()), 2)
    twin = stepped(getattr(ours, name)(parameters()), 2)
    optimizer.state[optimizer.param_groups[0]["params"][1]]["step"] = 2
    assert trained_bits(stepped(optimizer, 2, 2)) == trained_bits(stepped(twin, 2, 2))


@pytest.mark.parametrize("change", [{"momentum": 0.9}, {"centered": True}], ids=str)
@pytest.mark.parametrize(
    "options", [{"ema": 0.9}, {"statistics": True}, {"state": "8bit"}], ids=str
)
@pytest.mark.parametrize("route", ["a group that is set", "a state that is loaded"])
def test_rmsprops_own_formulas_are_refused_where_the_rule_is_needed(change, options, route):
    optimizer = stepped(ours.RMSprop(parameters(), **options), 2)
    saved = stepped(ours.RMSprop(parameters(), **change), 1).state_dict()
    groups = copy.deepcopy(optimizer.param_groups[0])
    before = trained_bits(optimizer)
    go_on = functools.partial(optimizer.load_state_dict, saved)
    if route == "a group that is set":
        optimizer.param_groups[0].update(change)
        go_on = functools.partial(stepped, optimizer, 1, 2)
    with pytest.raises(ValueError, match="not possible for RMSprop with momentum"):
        go_on()
    optimizer.param_groups[0].update({name: groups[name] for name in change})
    assert trained_bits(optimizer) == before
    stepped(optimizer, 1, 2)


@pytest.mark.parametrize("state", [{}, {"state": "8bit"}, {"state": "compact"}])
def test_a_mean_of_gradients_that_is_taken_out_begins_at_zero(state):
    optimizer = stepped(ours.Adam(parameters(), lr=0.02, **state), 3)
    twin = copy.deepcopy(optimizer)
    for entries in optimizer.state.values():
        entries.pop("exp_avg")
    for entries in twin.state.values():
        entries["exp_avg"].zero_()
    assert trained_bits(stepped(optimizer, 1, 3)) == trained_bits(stepped(twin, 1, 3))


def test_amsgrad_and_centered_may_be_turned_on_in_a_run():
    for name, option in (("Adam", "amsgrad"), ("RMSprop", "centered")):
        optimizer = stepped(getattr(ours, name)(parameters(), lr=0.02), 3)
        optimizer.param_groups[0][option] = True
        stepped(optimizer, 1, 3)
        assert {float(entries["step"]) for entries in optimizer.state.values()} == {4.0}


# ── on a device ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ("compact", {"state": "8bit"}),
        ("8bit", {"state": "float32"}),
        ("float32", {"state": "compact"}),
        ("compact", {"betas": (0.5, 0.999)}),
        ("8bit", {"betas": (0.0, 0.9999)}),
    ],
)
def test_what_changes_in_a_run_on_a_device_has_the_bits_of_the_native_engine(before, change):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter, which takes CPU tensors, stands in for a card.")
    from adamas.engines.triton import devices

    found = []
    for taken in ((), ("cpu",)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(devices, "DEVICE_TYPES", taken)
            optimizer = ours.Adam(parameters(), lr=0.02, state=before, betas=(0.95, 0.999))
            stepped(optimizer, 3)
            optimizer.param_groups[0].update(change)
            stepped(optimizer, 3, 3)
            assert {*optimizer.routes().values()} == {"triton" if taken else "native"}
            found.append(trained_bits(optimizer))
    assert found[0] == found[1]
