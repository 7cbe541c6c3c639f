"""What the optimizers for PyTorch take and refuse: as torch's classes do, with errors that help."""

from __future__ import annotations

import copy
import inspect
import math
from collections import UserList
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import adamas.torch as ours

KINDS = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")
NAN = float("nan")


def tensor(*values):
    return torch.tensor(values)


_AMOUNTS = (
    0, 0.0, -0.0, 0.5, 1, 1.0, 1.5, 7, 1e30, math.inf, -1e-30, -1, -math.inf, True, False,
    np.float32(0.5), np.float64(-1), np.array(0.5), Fraction(1, 2), tensor(0.5), torch.tensor(0.5),
    torch.tensor(-1.0), torch.tensor(NAN), "0.1", "x", None, [], (0.5,), {}, 1j, b"1",
)  # fmt: skip
_FLAGS = (None, True, False, 0, 1)
_BETAS = (
    (0.9, 0.99), [0.9, 0.99], (0.0, 0.0), (0.9, 1.0), (1.0, 0.9), (-0.1, 0.9), (0.9, NAN),
    (0, 0.9), (0.9, 0), (0, 0), (0.9, 1), (True, 0.9), (np.float32(0.9), 0.9),
    (np.float64(0.9), 0.9), np.array([0.9, 0.99]), (torch.tensor(0.9), torch.tensor(0.99)),
    (tensor(0.9), tensor(0.99)), (torch.tensor(0.9), 0.99), (0.9, torch.tensor(0.99)),
    torch.tensor([0.9, 0.99]), (torch.tensor(1.0), torch.tensor(0.9)), ("0.9", 0.99), None, 0.9,
)  # fmt: skip

CASES = [
    *(
        {name: value}
        for name in ("lr", "eps", "weight_decay", "momentum", "alpha", "momentum_decay")
        for value in _AMOUNTS
    ),
    *({"betas": value} for value in _BETAS),
    *(
        {name: value}
        for name in ("amsgrad", "maximize", "centered", "foreach", "capturable", "fused")
        for value in _FLAGS
    ),
    *(
        {"nesterov": nesterov, "momentum": momentum, "dampening": dampening}
        for nesterov in (False, True)
        for momentum in (0, 0.0, 0.9, 1.0, 2.0)
        for dampening in (0, 0.0, 0.5, 1.0, -1.0)
    ),
    *(
        {"lr": lr, "foreach": foreach, "capturable": capturable}
        for lr in (torch.tensor(0.1), tensor(0.1), tensor(0.1, 0.2), 0.1)
        for foreach in _FLAGS
        for capturable in (False, True)
    ),
    *(
        {"betas": betas, "foreach": foreach, "capturable": capturable}
        for betas in ((torch.tensor(0.9), torch.tensor(0.99)), (0.9, 0.99))
        for foreach in _FLAGS
        for capturable in (False, True)
    ),
    *({"fused": True, "foreach": foreach} for foreach in _FLAGS),
    {"fused": True, "differentiable": True},
    {"decoupled_weight_decay": True},
    {"weigth_decay": 0.1},
]  # fmt: skip


def outcome(kind, options):
    return type(error) if (error := error_of(kind, options)) else None


def message(kind, options):
    return str(error_of(kind, options))


def error_of(kind, options):
    try:
        kind([nn.Parameter(torch.ones(2))], **options)
    except Exception as error:
        return error
    return None


def cases_of(kind):
    """Return the cases with one fault at most: of options that a class has, or of one name."""
    taken = inspect.signature(kind).parameters
    return [case for case in CASES if len(case) == 1 or taken.keys() >= case.keys()]


def is_nan(options):
    (value, *_) = options.values()
    return isinstance(value, torch.Tensor) and value.isnan().any()


@pytest.mark.parametrize("name", KINDS)
def test_a_constructor_takes_and_refuses_what_torchs_does_with_the_same_type_of_error(name):
    theirs, own = getattr(torch.optim, name), getattr(ours, name)
    outcomes = [(case, outcome(theirs, case), outcome(own, case)) for case in cases_of(theirs)]
    differing = [each for each in outcomes if each[1] != each[2]]
    # torch's SGD alone lets NaN pass, which would be in every parameter after one step.
    assert [each for each in differing if name != "SGD" or not is_nan(each[0])] == []
    assert {kind for _, kind, _ in outcomes} >= {None, ValueError, TypeError}


@pytest.mark.parametrize("name", KINDS)
def test_torchs_own_words_are_used_where_a_number_is_out_of_range(name):
    theirs, own = getattr(torch.optim, name), getattr(ours, name)
    for case in cases_of(theirs):
        if outcome(theirs, case) is ValueError:
            assert message(own, case) == message(theirs, case)


def weight(dtype=torch.float32):
    return nn.Parameter(torch.ones(2, dtype=dtype))


PAIR = "but it must be a pair of decay rates (β1, β2). Give for example (0.9, 0.999)."
NOT_BOOL = "but it must be True or False."
COPY = "but it must be torch.bfloat16 or torch.float16, or a tensor for each parameter."

#: What a constructor is given, and what it says. torch takes some of them, to fail at the step or
#: to leave them alone; for the others its errors are Python's own.
TEXTS = [
    ("AdamW", {"betas": 0.9}, TypeError, f"betas is 0.9, {PAIR}"),
    ("AdamW", {"betas": (0.9, 0.99, 0.999)}, TypeError, f"betas is (0.9, 0.99, 0.999), {PAIR}"),
    ("NAdam", {"betas": [0.9]}, TypeError, f"betas is [0.9], {PAIR}"),
    ("Adam", {"betas": "ab"}, TypeError, f"betas is 'ab', {PAIR}"),
    ("Adam", {"betas": {0.9, 0.99}}, TypeError, f"betas is { {0.9, 0.99}!r}, {PAIR}"),
    ("Adam", {"betas": ("0.9", 0.99)}, TypeError,
     "betas[0] is '0.9', but it must be a number. It is text: give float('0.9')."),
    ("AdamW", {"lr": "1e-3"}, TypeError,
     "lr is '1e-3', but it must be a number. It is text: give float('1e-3')."),
    ("SGD", {"lr": None}, TypeError, "lr is None, but it must be a number."),
    ("SGD", {"lr": NAN}, ValueError, "Invalid learning rate: nan"),
    ("SGD", {"momentum": NAN}, ValueError, "Invalid momentum value: nan"),
    ("SGD", {"dampening": NAN}, ValueError, "Invalid dampening value: nan"),
    ("SGD", {"dampening": "0"}, TypeError,
     "dampening is '0', but it must be a number. It is text: give float('0')."),
    ("RMSprop", {"alpha": "high"}, TypeError, "alpha is 'high', but it must be a number."),
    ("RMSprop", {"eps": torch.ones(2)}, ValueError, "Tensor eps must be 1-element"),
    ("Adam", {"amsgrad": "false"}, TypeError, f"amsgrad is 'false', {NOT_BOOL}"),
    ("SGD", {"nesterov": "no"}, TypeError, f"nesterov is 'no', {NOT_BOOL}"),
    ("NAdam", {"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    ("AdamW", {"offload": 1}, TypeError, f"offload is 1, {NOT_BOOL}"),
    ("AdamW", {"statistics": "yes"}, TypeError, f"statistics is 'yes', {NOT_BOOL}"),
    ("AdamW", {"track_changes": 1}, TypeError, f"track_changes is 1, {NOT_BOOL}"),
    ("AdamW", {"clip_norm": "1.0"}, TypeError,
     "clip_norm is '1.0', but it must be a number. It is text: give float('1.0')."),
    ("AdamW", {"clip_norm": 0}, ValueError,
     "clip_norm is 0, which would erase every gradient. "
     "Give a positive norm, or None for no clipping."),
    ("AdamW", {"on_nonfinite": "skipp"}, ValueError,
     "on_nonfinite is 'skipp', but it must be one of \"propagate\", \"skip\", \"raise\". "
     "Did you mean 'skip'?"),
    ("AdamW", {"ema": 1}, ValueError,
     "ema is 1.0, but a decay rate must be at least 0 and less than 1."),
    ("AdamW", {"ema": "0.9"}, TypeError,
     "ema is '0.9', but it must be a number. It is text: give float('0.9')."),
    ("AdamW", {"seed": -1}, ValueError, "seed is -1, but it must be a whole number, at least 0"),
    ("AdamW", {"state": "8bits"}, ValueError,
     "state is '8bits', but it must be one of \"float32\", \"bfloat16\", \"compact\", \"8bit\". "
     "Did you mean '8bit'?"),
    ("AdamW", {"state": ["8bit"]}, TypeError,
     "state is ('8bit',), but it must be one of \"float32\", "),
    ("AdamW", {"rounding": "up"}, ValueError,
     "rounding is 'up', but it must be one of "
     "\"nearest\", \"stochastic\", \"remainder\", \"remainder8\"."),
    ("AdamW", {"rounding": "remainder"}, ValueError,
     'rounding is "remainder", which keeps what rounding takes away from parameters in '
     "torch.bfloat16, but they have dtype torch.float32. Leave rounding out, or convert the model "
     "before the optimizer is made."),
    ("AdamW", {"copy_to": "bfloat16"}, TypeError, f"copy_to is 'bfloat16', {COPY}"),
    ("AdamW", {"copy_to": torch.float64}, ValueError, f"copy_to is torch.float64, {COPY}"),
    ("AdamW", {"copy_to": [None]}, TypeError, f"copy_to is [None], {COPY}"),
    ("AdamW", {"weigth_decay": 0.1}, TypeError,
     "AdamW() has the unknown option 'weigth_decay'. Did you mean 'weight_decay'? "
     "Possible are amsgrad, betas, capturable, clip_group, clip_norm, clip_update, copy_to, decay, "
     "differentiable, ema, engine, eps, foreach, fused, lr, lr_max, maximize, offload, "
     "on_nonfinite, params, rounding, seed, skip_above, skip_window, state, statistics, "
     "track_changes, weight_decay."),
    ("AdamW", {"decoupled_weight_decay": True}, TypeError,
     "AdamW() has the unknown option 'decoupled_weight_decay'."),
    ("SGD", {"learning_rate": 0.1}, TypeError,
     "SGD() has the unknown option 'learning_rate'. Did you mean 'lr'?"),
    ("RMSprop", {"clipnorm": 0.1}, TypeError,
     "RMSprop() has the unknown option 'clipnorm'. Did you mean 'clip_norm'?"),
    ("NAdam", {"differentiable": True}, ValueError, "differentiable=True asks for a step that"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "kind", "text"), TEXTS)
def test_an_error_says_what_was_given_and_what_is_possible(name, options, kind, text):
    with pytest.raises(kind) as raised:
        getattr(ours, name)([weight()], **options)
    assert str(raised.value).startswith(text)


def test_an_unknown_option_names_the_class_that_was_called():
    class Mine(ours.AdamW):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    with pytest.raises(TypeError, match=r"^Mine\(\) has the unknown option 'lrr'"):
        Mine([weight()], lrr=1)


def test_a_model_in_the_place_of_its_parameters_is_told_from_them():
    with pytest.raises(TypeError) as raised:
        ours.SGD(nn.Linear(2, 2), lr=0.1)
    assert str(raised.value) == (
        "SGD() got a Linear as params, but it needs its parameters. "
        "Give for example SGD(model.parameters())."
    )


@pytest.mark.parametrize("listed", [list, UserList])
def test_pairs_may_be_lists_as_yaml_and_configurations_give_them(listed):
    p, q = (nn.Parameter(torch.linspace(-1, 1, 64)) for _ in range(2))
    pairs = {"betas": listed([0.8, 0.9]), "state": listed(["8bit", "float32"])}
    one = ours.AdamW([p], **pairs)
    group = {"params": [q], **pairs}
    other = ours.AdamW([group])
    for each in (p, q):
        each.grad = torch.linspace(1, -2, 64)
    one.step()
    other.step()
    assert torch.equal(p, q)
    assert other.param_groups[0]["betas"] == (0.8, 0.9)
    assert one.state[p]["exp_avg"].dtype == torch.int8
    assert one.state[p]["exp_avg_sq"].dtype == torch.float32


MEANT = "A group has the unknown option {!r}. Did you mean {!r}?"


# ── groups ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("weigth_decay", 0.1, MEANT.format("weigth_decay", "weight_decay")),
        ("Weight-Decay", 0.1, MEANT.format("Weight-Decay", "weight_decay")),
        ("weight_decays", 0.1, MEANT.format("weight_decays", "weight_decay")),
        ("beta", 0.1, MEANT.format("beta", "betas")),
        ("amsgrda", True, MEANT.format("amsgrda", "amsgrad")),
        ("maximise", True, MEANT.format("maximise", "maximize")),
        ("clip_norm", 1.0, "A group has clip_norm, which concerns the whole step. "),
        ("lr", "0.1", "param_groups[1]: lr is '0.1', but it must be a number. It is text:"),
        ("lr", torch.ones(2), "param_groups[1]: Tensor lr must be 1-element"),
        ("param", (), MEANT.format("param", "params")),
        ("lr", -1, "param_groups[1]: Invalid learning rate: -1, but it must be at least 0."),
        ("betas", (0.9, 1.0), "param_groups[1]: Invalid beta parameter at index 1: 1.0, but a "
         "decay rate must be at least 0 and less than 1."),
        ("betas", 0.9, f"param_groups[1]: betas is 0.9, {PAIR}"),
        ("state", "4bit", "state is '4bit', but it must be one of"),
        ("rounding", "remainder", 'rounding is "remainder", which keeps what rounding takes away'),
    ],
)  # fmt: skip
def test_a_group_with_a_wrong_option_is_refused_and_not_added(key, value, text):
    optimizer = ours.AdamW([weight()])
    with pytest.raises((TypeError, ValueError)) as raised:
        optimizer.add_param_group({"params": [weight()], key: value})
    assert str(raised.value).startswith(text)
    assert len(optimizer.param_groups) == 1


def test_keys_that_frameworks_keep_in_groups_are_left_alone():
    theirs = {
        "initial_lr": 0.1, "name": "head", "lr_scale": 0.5, "lr_mult": 2, "weight_decay_scale": 0,
        "max_lr": 1, "min_lr": 0, "max_momentum": 0.9, "base_momentum": 0.8, "swa_lr": 0.1,
        "layer_id": 3, "stage": 2, "wd_mult": 1, "rank": 4, "scale": 1.0, "use_muon": False,
        "decay_mult": 1, "is_expert": True, "momentum": 0.9, "fsdp": 1, "tags": (), 3: 4,
    }  # fmt: skip
    for name in KINDS:
        kind = getattr(ours, name)
        optimizer = kind([{"params": [weight()], **theirs}])
        assert theirs.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"statistics": True}])
def test_an_option_set_in_a_run_is_refused_at_the_step_before_anything_is_touched(name, options):
    first, second = weight(), weight()
    optimizer = getattr(ours, name)([{"params": [first]}, {"params": [second]}], **options)
    group = optimizer.param_groups[1]
    wrong = [("lr", "0.1"), ("lr", NAN), ("lr", -1.0), ("lr", None), ("weight_decay", "0"),
             ("weight_decay", NAN), ("eps", "x"), ("eps", -1), ("betas", (0.9, 1.0)),
             ("betas", "ab"), ("momentum", NAN), ("alpha", None)]  # fmt: skip
    for key, value in wrong:
        if key not in group:
            continue
        for p in (first, second):
            p.grad = torch.ones(2)
        optimizer.step()
        before = copy.deepcopy((first, second, optimizer.state_dict()["state"]))
        good = group[key]
        group[key] = value
        with pytest.raises((TypeError, ValueError), match=r"^param_groups\[1\]: "):
            optimizer.step()
        after = copy.deepcopy((first, second, optimizer.state_dict()["state"]))
        assert str(after) == str(before)
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1])
        group[key] = good


@pytest.mark.parametrize("name", KINDS)
def test_the_options_of_other_classes_may_have_any_value_in_a_group(name):
    """Programs that share groups among several classes keep them so."""
    kind = getattr(ours, name)
    others = {"momentum": None, "betas": "none", "alpha": -1.0, "dampening": "x", "nesterov": "no"}
    theirs = {key: value for key, value in others.items() if key not in kind([weight()]).defaults}
    p, twin = weight(), weight()
    optimizer, other = kind([{"params": [p], **theirs}], lr=0.1), kind([twin], lr=0.1)
    for _ in range(2):
        for each in (p, twin):
            each.grad = torch.ones(2)
        optimizer.step()
        other.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(p, twin)
    assert all(optimizer.param_groups[0][key] == value for key, value in theirs.items())


@pytest.mark.parametrize("state", ["", [], {}, 0, False], ids=repr)
def test_what_is_no_form_is_refused_though_it_is_empty(state):
    with pytest.raises((TypeError, ValueError), match=r"^state is "):
        ours.AdamW([weight()], state=state)


@pytest.mark.parametrize("name", KINDS)
def test_an_option_that_was_taken_out_is_missed_before_anything_is_touched(name):
    p = weight()
    optimizer = getattr(ours, name)([p], lr=0.1)
    p.grad = torch.ones(2)
    for key in ("lr", "weight_decay", "maximize"):
        value = optimizer.param_groups[0].pop(key)
        with pytest.raises(KeyError) as raised:
            optimizer.step()
        assert raised.value.args == (
            f"param_groups[0] has no {key!r} any more. "
            f"Set it to what it was, for example {value!r}.",
        )
        assert p.tolist() == [1, 1]
        assert not optimizer.state
        optimizer.param_groups[0][key] = value


@pytest.mark.parametrize("name", KINDS)
def test_a_group_that_cannot_be_stepped_is_refused_when_its_gradients_come(name):
    p, q = weight(), weight()
    optimizer = getattr(ours, name)([{"params": [p]}, {"params": [q]}])
    for _ in range(2):
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
    optimizer.param_groups[1]["differentiable"] = True
    before = q.detach().clone()
    q.grad = None
    optimizer.step()
    q.grad = torch.ones(2)
    with pytest.raises(ValueError, match="differentiable=True asks for a step that"):
        optimizer.step()
    assert torch.equal(q, before)


@pytest.mark.parametrize("name", KINDS)
def test_a_schedule_that_ends_beside_zero_ends_the_run_in_peace(name):
    p = weight()
    optimizer = getattr(ours, name)([p], lr=0.1)
    for rate in (0.1, -1e-18):
        optimizer.param_groups[0]["lr"] = rate
        before = p.detach().clone()
        p.grad = torch.ones(2)
        optimizer.step()
        assert torch.equal(p, before) is (rate < 0)


def test_a_parameter_of_whole_numbers_is_left_alone_until_it_has_a_gradient():
    codes, p = torch.arange(3), weight()
    optimizer = ours.AdamW([p, codes])
    p.grad = torch.ones(2)
    optimizer.step()
    before = p.detach().clone()
    codes.grad = torch.arange(3)
    with pytest.raises(TypeError) as raised:
        optimizer.step()
    assert str(raised.value) == (
        "A parameter has dtype torch.int64, but only floating and complex ones can be stepped. "
        "Convert it, or leave it without a gradient."
    )
    assert torch.equal(p, before)
    assert codes.tolist() == [0, 1, 2]
    assert optimizer.state[p]["step"] == 1


def test_remainders_are_refused_only_where_no_parameter_can_have_one():
    half, whole = weight(torch.bfloat16), weight()
    groups = [{"params": [half]}, {"params": [whole]}]
    optimizer = ours.AdamW(groups, rounding="remainder")
    assert optimizer.param_groups[1]["rounding"] == "remainder"
    with pytest.raises(ValueError, match=r"they have dtype torch\.float32 and torch\.float64\."):
        ours.AdamW([weight(), weight(torch.float64)], rounding="remainder8")


def test_param_groups_says_what_it_needs():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError) as raised:
        ours.param_groups(model.parameters())
    assert str(raised.value) == (
        "param_groups() got a generator, but it needs the model itself, whose layers tell what "
        "does not decay. Give for example param_groups(model, weight_decay=0.1)."
    )
    with pytest.raises(TypeError, match=r"^param_groups\(\) needs weight_decay"):
        ours.param_groups(model)
    with pytest.raises(TypeError, match=r"^weight_decay is '0\.1', but it must be a number\."):
        ours.param_groups(model, "0.1")
    with pytest.raises(ValueError, match=r"^weight_decay is -1\.0, but"):
        ours.param_groups(model, -1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("RMSprop", {"alpha": 1.0}), ("RMSprop", {"alpha": 1.5}), ("RMSprop", {"alpha": 0.0}),
     ("SGD", {"momentum": 1.0}), ("SGD", {"momentum": 2.0, "dampening": 3.0}),
     ("SGD", {"momentum": 1.0, "nesterov": True})],
)  # fmt: skip
def test_rates_of_one_mean_may_be_what_torch_takes(name, options):
    outcomes = []
    for of in (torch.optim, ours):
        p = nn.Parameter(torch.linspace(-2, 2, 33))
        optimizer = getattr(of, name)([p], lr=0.125, **options)
        for step in range(3):
            p.grad = torch.linspace(-1, 1, 33) * (step + 1)
            optimizer.step()
        outcomes.append(p.detach())
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-6, atol=1e-6, equal_nan=True)
