"""Loading into the optimizers for PyTorch: all of it, or nothing and an error that says why."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from adamas.torch import host_memory, storage  # noqa: E402
from adamas.torch.keeping import Keeping  # noqa: E402
from adamas.torch.routes import offload  # noqa: E402
from tests.support.planned import plans_made  # noqa: E402
from tests.support.queues import Queues  # noqa: E402
from tests.support.torch_bits import bits, everything  # noqa: E402

SHAPES = [(5, 7), (40,), ()]


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def trained(optimizer, steps=3, first=0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return optimizer


def made(name="AdamW", dtype=torch.float32, **options):
    return getattr(ours, name)(parameters(dtype), lr=0.01, **options)


# ── what is refused, with nothing changed ──────────────────────────────────────────────────────


def without(entry):
    def change(saved):
        del saved["state"][1][entry]

    return change


def with_entry(entry, value):
    def change(saved):
        state = saved.get("state") or saved["packed_state"]
        state[1][entry] = value(state[1]) if callable(value) else value

    return change


def with_option(name, value):
    def change(saved):
        saved["param_groups"][0][name] = value

    return change


def with_state(value):
    def change(saved):
        saved["state"][1] = value

    return change


def of_class(name, **options):
    def change(saved):
        params = parameters()
        other = trained(getattr(torch.optim, name)(params, **options))
        saved.clear()
        saved.update(other.state_dict())

    return change


def with_one_parameter_less(saved):
    saved["param_groups"][0]["params"].pop()


def with_twice_the_number(saved):
    saved["param_groups"][0]["params"] = [0, 0, 2]


REFUSED = {
    "state of SGD": (of_class("SGD", momentum=0.9), "dampening, momentum, nesterov and no betas"),
    "state of RMSprop": (of_class("RMSprop"), "alpha, centered, momentum and no betas"),
    "state of NAdam": (of_class("NAdam"), "has mu_product, which AdamW does not keep"),
    "state of Adamax": (of_class("Adamax"), "has exp_inf, which AdamW does not keep"),
    "another shape": (
        with_entry("exp_avg", torch.zeros(41)),
        r"The state of 0\.1 has exp_avg of shape \(41,\), but the parameter has shape \(40,\)",
    ),
    "one element": (with_entry("exp_avg", torch.zeros(())), r"exp_avg of shape \(\)"),
    "the same number of elements": (with_entry("exp_avg", torch.zeros(5, 8)), r"shape \(5, 8\)"),
    "no exp_avg": (without("exp_avg"), r"The state of 0\.1 has no exp_avg, which AdamW needs"),
    "no step": (without("step"), r"has no step, which AdamW needs"),
    "text for a tensor": (with_entry("exp_avg", "zeros"), "has 'zeros' as exp_avg, but it must"),
    "None for a tensor": (with_entry("exp_avg", None), "has None as exp_avg, but it must be a te"),
    "a list for a tensor": (with_entry("exp_avg", [0.0] * 40), "has a list as exp_avg"),
    "None for a state": (with_state(None), r"The state of 0\.1 is None, but it must be a dict"),
    "a tensor for a state": (with_state(torch.zeros(3)), "is a Tensor, but it must be a dict"),
    "names of another library": (with_state({"state1": torch.zeros(40)}), "does not keep"),
    "names of nobody": (with_state({"foo": torch.zeros(40)}), "has no step, exp_avg, exp_avg_sq"),
    "whole numbers for m": (
        with_entry("exp_avg", torch.zeros(40, dtype=torch.int64)),
        r"exp_avg of dtype torch\.int64",
    ),
    "complex numbers": (
        with_entry("exp_avg", torch.zeros(40, dtype=torch.complex64)),
        r"exp_avg of dtype torch\.complex64",
    ),
    "a sparse m": (with_entry("exp_avg", torch.zeros(40).to_sparse()), "must be a dense one"),
    "an m without values": (with_entry("exp_avg", torch.zeros(40, device="meta")), "device meta"),
    "codes that nothing belongs to": (
        with_entry("exp_avg", torch.zeros(40, dtype=torch.uint8)),
        "codes as exp_avg and None as top",
    ),
    "a negative square": (
        with_entry("exp_avg_sq", torch.full((40,), -1e-9)),
        "has exp_avg_sq with negative elements",
    ),
    "a step below 0": (with_entry("step", torch.tensor(-5.0)), r"has step -5\.0, but it must be"),
    "half a step": (with_entry("step", torch.tensor(2.5)), r"has step 2\.5"),
    "a step that is none": (with_entry("step", torch.tensor(float("nan"))), "has step nan"),
    "a step beyond all": (with_entry("step", 2.0**54), r"has step 1\.80\d*e\+16, but"),
    "steps": (with_entry("step", torch.zeros(2)), r"tensor of shape \(2,\).* as step"),
    "text for a step": (with_entry("step", "three"), "has 'three' as step, but it must be a num"),
    "an average of another shape": (with_entry("ema", torch.zeros(3)), r"has ema of shape \(3,\)"),
    "betas of 2": (with_option("betas", (2, 2)), r"betas\[0\] is 2\.0, but a decay rate must be"),
    "one beta": (with_option("betas", 0.9), r"betas is 0\.9, but it must be a pair"),
    "lr NaN": (with_option("lr", float("nan")), r"In param_groups\[0\] to load: lr is nan, but"),
    "lr below 0": (with_option("lr", -1.0), r"lr is -1\.0, but it must be finite and at least 0"),
    "lr without end": (with_option("lr", float("inf")), "lr is inf, but it must be finite"),
    "a tensor lr below 0": (with_option("lr", torch.tensor(-1.0)), r"lr is -1\.0"),
    "text for lr": (with_option("lr", "0.1"), r"lr is '0\.1', but it must be a number"),
    "eps below 0": (with_option("eps", -1e-8), "eps is -1e-08"),
    "weight_decay NaN": (with_option("weight_decay", float("nan")), "weight_decay is nan"),
    "amsgrad that is no flag": (with_option("amsgrad", "yes"), "amsgrad is 'yes', but it must be"),
    "amsgrad without its entry": (with_option("amsgrad", True), "has no max_exp_avg_sq"),
    "differentiable": (with_option("differentiable", True), "differentiable is True, which asks"),
    "names for some": (with_option("param_names", ["a"]), r"param_names is \['a'\], but"),
    "one parameter less": (with_one_parameter_less, r"has 2 parameters, but here it has 3"),
    "one number for two": (with_twice_the_number, "Two parameters .* have the number 0"),
    "no groups": (lambda saved: saved.pop("param_groups"), "has no 'param_groups'"),
    "no state": (lambda saved: saved.pop("state"), "has no 'state'"),
    "a list of states": (lambda saved: saved.update(state=[1]), "'state' is a list, but it must"),
    "groups that are none": (lambda saved: saved.update(param_groups=[3]), r"\[0\] to load is no"),
    "groups that are no list": (lambda saved: saved.update(param_groups=3), "is an int, but it"),
    "a group more": (
        lambda saved: saved["param_groups"].append({"params": []}),
        "different number of parameter groups: 2, but this optimizer has 1",
    ),
}  # fmt: skip

ROUTES = {
    "native": {},
    "small": {"state": "8bit"},
    "remainders": {"dtype": torch.bfloat16, "state": "compact", "rounding": "remainder"},
    "offload": {"offload": True},
    "fused": {"fused": True},
}


def assert_refused(optimizer, saved, message):
    before, routes = everything(optimizer), optimizer.routes()
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        optimizer.load_state_dict(saved)
    assert everything(optimizer) == before
    assert optimizer.routes() == routes
    with plans_made() as plans:
        trained(optimizer, 1, first=9)
    assert len(plans) == (0 if routes else 1)  # the plan of before goes on


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("route", ROUTES)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(route, case, monkeypatch):
    options = dict(ROUTES[route])
    if "offload" in options:
        monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
        monkeypatch.setattr(offload, "CudaStreams", lambda device: Queues("late"))
    change, message = REFUSED[case]
    saved = trained(made(**{**options, "offload": False})).state_dict()
    wrong = copy.deepcopy(saved)
    change(wrong)
    optimizer = made(**options)
    optimizer.load_state_dict(saved)
    trained(optimizer, 1, first=3)
    before, routes = everything(optimizer), optimizer.routes()
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        optimizer.load_state_dict(wrong)
    assert everything(optimizer) == before
    assert optimizer.routes() == routes != {}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("NAdam", of_class("Adam"), "no momentum_decay|has no mu_product"),
        ("NAdam", with_entry("mu_product", torch.tensor(2.0)), r"mu_product 2\.0, but it must be"),
        ("RMSprop", of_class("Adam"), "betas and no alpha"),
        ("RMSprop", of_class("Adadelta"), "rho and no alpha"),
        ("RMSprop", with_option("centered", True), "has no grad_avg, which RMSprop needs"),
        ("RMSprop", with_option("alpha", -0.1), r"alpha is -0\.1"),
        ("SGD", of_class("Adam"), "betas and no momentum"),
        ("SGD", with_state({"exp_avg": torch.zeros(40)}), "has exp_avg, which SGD does not keep"),
        ("SGD", with_state({"foo": torch.zeros(40)}), "nothing that SGD keeps"),
        ("SGD", with_entry("momentum_buffer", torch.zeros(4)), r"momentum_buffer of shape \(4,\)"),
        ("SGD", with_option("momentum", -1), r"momentum is -1\.0"),
        ("SGD", with_option("dampening", float("nan")), "dampening is nan, but it must be finite"),
        ("Adam", of_class("SGD"), "and no betas"),
    ],
)
def test_other_methods_refuse_what_is_not_theirs(name, change, message):
    options = {"momentum": 0.9} if name == "SGD" else {}
    saved = copy.deepcopy(trained(made(name, **options)).state_dict())
    change(saved)
    assert_refused(trained(made(name, **options)), saved, message)


def test_a_group_of_another_class_is_refused_where_it_has_no_state_yet():
    optimizer = made()
    with pytest.raises(ValueError, match="it is of another class than AdamW"):
        optimizer.load_state_dict(torch.optim.SGD(parameters(), lr=5.0).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("top", 2**40, "must be a whole number from 2 to 12"),
        ("top", -1, "from 2 to 12"),
        ("top", 10**6, "from 2 to 12"),
        ("top", 4.0, r"and 4\.0 as top"),
        ("top", None, "None as top"),
        ("header", None, "has no header"),
        ("header", torch.zeros(1, dtype=torch.int16), r"shape \(1,\) .*as header, but it must"),
        ("header", torch.zeros(2), r"must have one of shape \(2,\) and dtype torch\.int16: a"),
        ("header", torch.full((2,), -1, dtype=torch.int16), "a header that no step leaves"),
        ("exp_avg", torch.zeros(39, dtype=torch.int8), r"exp_avg of shape \(39,\)"),
        ("exp_avg_sq", torch.zeros(40, dtype=torch.int8), r"exp_avg_sq of dtype torch\.int8"),
    ],
)  # fmt: skip
def test_packed_states_are_looked_at_as_closely(entry, value, message):
    saved = copy.deepcopy(trained(made(state="8bit")).state_dict(packed=True))
    with_entry(entry, value)(saved)
    assert_refused(trained(made(state="8bit"), 2), saved, message)


def test_errors_call_parameters_by_their_names():
    net = nn.Linear(3, 2)
    optimizer = ours.Adam(net.named_parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["exp_avg"] = torch.zeros(5)
    with pytest.raises(ValueError, match="The state of bias has exp_avg of shape"):
        optimizer.load_state_dict(saved)


def test_the_tensors_of_another_library_are_refused():
    class Quantized(torch.Tensor):
        __tensor_flatten__ = None

    saved = copy.deepcopy(trained(made()).state_dict())
    saved["state"][1]["exp_avg"] = torch.zeros(40).as_subclass(Quantized)
    assert_refused(trained(made()), saved, "has a Quantized as exp_avg, a tensor of its own kind")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("where", ["pre-hook", "conversion", "groups", "post-hook"])
@pytest.mark.parametrize("state", [None, "8bit"])
def test_an_interrupt_while_loading_leaves_all_as_it_was(where, error, state, monkeypatch):
    saved = trained(made(state=state), 5).state_dict()
    optimizer = trained(made(state=state), 2)

    def stop(*_, **__):
        raise error

    with monkeypatch.context() as patched:
        if where == "pre-hook":
            handle = optimizer.register_load_state_dict_pre_hook(stop)
        elif where == "post-hook":
            handle = optimizer.register_load_state_dict_post_hook(stop)
        elif where == "conversion":
            counted = []
            fitted = storage.fitted

            def stopped(*args, **options):
                counted.append(1)
                return stop() if len(counted) == 2 else fitted(*args, **options)

            patched.setattr(storage, "fitted", stopped)
        else:
            patched.setattr(Keeping, "settle", stop)
        before = everything(optimizer)
        with pytest.raises(error):
            optimizer.load_state_dict(saved)
        if where.endswith("hook"):
            handle.remove()
    assert everything(optimizer) == before
    twin = trained(made(state=state), 2)
    assert everything(trained(optimizer, 2, first=5)) == everything(trained(twin, 2, first=5))


# ── hooks ──────────────────────────────────────────────────────────────────────────────────────


def replace_mean(optimizer):
    for entries in optimizer.state.values():
        entries["exp_avg"] = torch.full_like(entries["exp_avg"], 0.5)


def clear(optimizer):
    optimizer.state.clear()


def edit_groups(optimizer):
    optimizer.param_groups[0]["lr"] = 0.5


@pytest.mark.parametrize("state", [None, "compact"])
@pytest.mark.parametrize("change", [replace_mean, clear, edit_groups])
def test_what_a_post_hook_changes_stands(change, state):
    saved = trained(made(state=state)).state_dict()
    hooked, twin = made(state=state), made(state=state)
    hooked.register_load_state_dict_post_hook(change)
    hooked.load_state_dict(saved)
    twin.load_state_dict(saved)
    change(twin)
    assert everything(hooked) == everything(twin)
    assert everything(trained(hooked)) == everything(trained(twin))


def test_what_a_pre_hook_returns_is_loaded_and_checked():
    saved = trained(made()).state_dict()
    optimizer = made()

    def hook(_, given):
        state = {i: {**entries, "step": torch.tensor(7.0)} for i, entries in given["state"].items()}
        return {**given, "state": state}

    handle = optimizer.register_load_state_dict_pre_hook(hook)
    optimizer.load_state_dict(saved)
    assert {float(entries["step"]) for entries in optimizer.state.values()} == {7.0}
    handle.remove()
    optimizer.register_load_state_dict_pre_hook(lambda _, given: {**given, "state": {1: None}})
    assert_refused(optimizer, saved, r"The state of 0\.1 is None")


def test_the_dict_that_is_loaded_stays_as_it_is():
    saved = trained(made()).state_dict()
    before = bits(saved)
    optimizer = made()
    optimizer.load_state_dict(saved)
    trained(optimizer)
    assert bits(saved) == before


# ── what loads ─────────────────────────────────────────────────────────────────────────────────


def test_old_checkpoints_load_whose_groups_lack_newer_options():
    saved = copy.deepcopy(trained(made("Adam")).state_dict())
    for name in ("maximize", "foreach", "capturable", "differentiable", "fused", "amsgrad",
                 "decoupled_weight_decay"):  # fmt: skip
        del saved["param_groups"][0][name]
    for entries in saved["state"].values():
        entries["step"] = int(entries["step"])  # as before torch 1.12
    optimizer = made("Adam")
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["amsgrad"] is False
    assert all(each["step"].dtype == torch.float32 for each in optimizer.state.values())
    assert everything(trained(optimizer, 1)) == everything(
        trained(copied(trained(made("Adam"))), 1)
    )


def copied(optimizer):
    """An optimizer over fresh parameters with the state of another."""
    other = type(optimizer)(parameters())
    other.load_state_dict(optimizer.state_dict())
    return other


def test_parameters_without_state_and_buffers_that_are_none_load():
    params = parameters()
    theirs = torch.optim.SGD(params, lr=0.1, momentum=0.5)
    params[0].grad = torch.ones_like(params[0])
    theirs.step()
    saved = theirs.state_dict()
    saved["state"][1] = {"momentum_buffer": None}
    saved["state"][2] = {}
    optimizer = ours.SGD(parameters(), lr=0.1, momentum=0.5)
    optimizer.load_state_dict(saved)
    own = optimizer.param_groups[0]["params"]
    assert torch.equal(optimizer.state[own[0]]["momentum_buffer"], torch.ones(5, 7))
    for p in own:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(optimizer.state[own[0]]["momentum_buffer"], torch.full((5, 7), 1.5))
    assert torch.equal(optimizer.state[own[1]]["momentum_buffer"], torch.ones(40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_means_of_another_dtype_become_those_of_the_parameter(dtype):
    saved = copy.deepcopy(trained(made()).state_dict())
    for entries in saved["state"].values():
        entries["exp_avg"] = entries["exp_avg"].to(dtype)
    optimizer = made()
    optimizer.load_state_dict(saved)
    for entries in optimizer.state.values():
        assert entries["exp_avg"].dtype == torch.float32
    trained(optimizer, 1)
    assert {*optimizer.routes().values()} == {"native"}


def test_entries_of_ones_own_and_state_of_no_parameter_load():
    saved = copy.deepcopy(trained(made()).state_dict())
    saved["state"][0]["hits"] = {"count": 3, "where": torch.arange(4)}
    saved["state"]["more"] = 5
    optimizer = made()
    optimizer.load_state_dict(saved)
    own = optimizer.state[optimizer.param_groups[0]["params"][0]]["hits"]
    assert own["count"] == 3
    assert torch.equal(own["where"], torch.arange(4))
    assert own["where"] is not saved["state"][0]["hits"]["where"]
    assert optimizer.state["more"] == 5


@pytest.mark.parametrize("name", ["AdamW", "RMSprop"])
@pytest.mark.parametrize("state", [None, "compact", "bfloat16"])
def test_what_belongs_to_codes_is_left_out_where_there_are_none(name, state):
    saved = copy.deepcopy(trained(made(name, state=state)).state_dict(packed=True))
    saved["packed_state"][1]["header"] = float("inf")
    if "top" not in saved["packed_state"][1]:
        saved["packed_state"][1]["top"] = "none"
    optimizer, twin = made(name, state=state), made(name, state=state)
    optimizer.load_state_dict(saved)
    twin.load_state_dict(trained(made(name, state=state)).state_dict(packed=True))
    assert bits(optimizer.state_dict()) == bits(twin.state_dict())
    assert everything(trained(optimizer, 1)) == everything(trained(twin, 1))


# ── packed states ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [None, "compact", "8bit"])
def test_torchs_classes_refuse_a_packed_state(state):
    packed = trained(made(state=state)).state_dict(packed=True)
    theirs = torch.optim.AdamW(parameters(), lr=0.3)
    with pytest.raises(KeyError, match="state"):
        theirs.load_state_dict(packed)
    assert not theirs.state
    assert theirs.param_groups[0]["lr"] == 0.3


def test_a_packed_state_is_loaded_with_weights_only():
    optimizer = trained(made(state="8bit"))
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(packed=True), stored)
    stored.seek(0)
    other = made(state="8bit")
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert everything(other)[1] == everything(optimizer)[1]


def test_packed_states_of_old_load_under_the_old_name():
    optimizer = trained(made(state="8bit"))
    packed = optimizer.state_dict(packed=True)
    old = {"state": packed["packed_state"], "param_groups": packed["param_groups"]}
    other = made(state="8bit")
    other.load_state_dict(old)
    assert everything(other)[1] == everything(optimizer)[1]


@pytest.mark.parametrize("version", [2, "1", None, torch.zeros(2)], ids=str)
def test_a_packed_state_of_a_format_to_come_is_refused(version):
    packed = trained(made(state="8bit")).state_dict(packed=True)
    given = {**packed, "format": version}
    assert_refused(made(state="8bit"), given, "but this version of adamas reads 1")


@pytest.mark.parametrize("rate", [-1e-18, torch.tensor(-1e-18)])
def test_a_run_whose_schedule_ended_beside_zero_is_loaded(rate):
    """What a step takes is saved, and what is saved can be loaded."""
    p = nn.Parameter(torch.ones(4))
    optimizer = ours.AdamW([p])
    optimizer.param_groups[0]["lr"] = rate
    p.grad = torch.ones(4)
    optimizer.step()
    other = ours.AdamW([nn.Parameter(torch.ones(4))])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == rate


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_betas_that_a_step_takes_are_loaded(form):
    p = nn.Parameter(torch.ones(4))
    optimizer = ours.AdamW([p])
    optimizer.param_groups[0]["betas"] = form([0.5, 0.25])
    p.grad = torch.ones(4)
    optimizer.step()
    other = ours.AdamW([nn.Parameter(torch.ones(4))])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["betas"] == (0.5, 0.25)
