"""Bad input is refused in words, before anything is touched."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import adamas
from tests.support.cases import PATIENCE


def read_only():
    p = np.ones(3)
    p.flags.writeable = False
    return p


def unaligned():
    return np.frombuffer(bytearray(33), dtype=np.uint8)[1:].view(np.float64)


def masked(size, dtype=np.float64):
    return np.ma.array(np.ones(size, dtype), mask=np.arange(size) == 0)


class InMetres(np.ndarray):
    """An array that computes with units."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        raise TypeError("metres")


def in_metres(size, dtype=np.float64):
    return np.ones(size, dtype).view(InMetres)


def overlapping():
    whole = np.zeros(10)
    return {"first": whole[:6], "second": whole[5:]}


def interleaved():
    whole = np.zeros(10)
    return [whole[::2], whole[1::2]]


PARAMETERS = [
    (
        lambda: np.ones(3, np.int64),
        TypeError,
        "Parameter x has dtype int64, but it must be float32, float64, float16 or ml_dtypes' "
        "bfloat16, in native byte order. "
        "Convert it first, for example with .astype(numpy.float32).",
    ),
    (lambda: np.ones(3, ">f4"), TypeError, "Parameter x has dtype >f4, but it must be float32"),
    (lambda: np.ones(3, np.uint16), TypeError, "Parameter x has dtype uint16, but it must be"),
    (
        lambda: {"a": [1.0, 2.0]},
        TypeError,
        "Parameter a.0 is a float, but it must be a NumPy array, so that it can be changed in "
        "place.",
    ),
    (lambda: None, TypeError, "Parameter x is None, but it must be a NumPy array"),
    (
        lambda: {"a": masked(3)},
        TypeError,
        "Parameter a is a MaskedArray, whose arithmetic is not that of plain arrays. Give "
        "numpy.asarray() of it, or .filled(0.0) where a mask counts.",
    ),
    (lambda: in_metres(3), TypeError, "Parameter x is an InMetres, whose arithmetic is not that"),
    (
        lambda: np.ones((2, 2)).view(np.matrix),
        TypeError,
        "Parameter x is a matrix, whose arithmetic is not that of plain arrays.",
    ),
    (read_only, ValueError, "Parameter x is read-only. Give a writeable array, or a copy."),
    (unaligned, ValueError, "Parameter x is not aligned in memory. Give a copy of it."),
    (
        overlapping,
        ValueError,
        "Parameters first and second share memory, so a step would change the shared elements "
        "twice. Give each array once.",
    ),
    (lambda: [np.ones(2)] * 2, ValueError, "Parameters 0 and 1 share memory"),
    (
        lambda: np.lib.stride_tricks.as_strided(np.ones(3), (3, 3), (0, 8)),
        ValueError,
        "Parameter x has elements that share memory (a broadcast or sliding view). "
        "Give a copy of it.",
    ),
    (
        lambda: np.lib.stride_tricks.as_strided(np.ones(4), (3, 2), (8, 8)),
        ValueError,
        "Parameter x has elements that share memory",
    ),
    (list, ValueError, "params holds no array. Give at least one array to optimize."),
    (
        lambda: {"a.b": np.ones(1), "a": {"b": np.ones(1)}},
        ValueError,
        "Two parameters have the name a.b.",
    ),
    (
        lambda: [{"params": np.ones(1), "learning_rate": 1.0}],
        TypeError,
        "params[0] has the unknown option 'learning_rate'. Did you mean 'lr'? Possible are",
    ),
    (
        lambda: [{"params": np.ones(1), "betas": (None, 0.9)}],
        ValueError,
        "betas is (None, 0.9), but every group of one optimizer keeps the same moments",
    ),
]


@pytest.mark.parametrize(("made", "error", "message"), PARAMETERS)
def test_parameters_that_cannot_be_stepped_are_refused(made, error, message):
    with pytest.raises(error, match=re.escape(message)):
        adamas.Adam(made())


def test_parameters_that_interleave_without_meeting_are_taken():
    params = interleaved()
    adamas.Adam(params, lr=1.0).step([np.ones(5), -np.ones(5)])
    assert params[0].tolist() == pytest.approx([-1.0] * 5)
    assert params[1].tolist() == pytest.approx([1.0] * 5)


def in_a_dict():
    return {"a": np.ones(3, np.float32), "b": np.ones((2, 2))}


def in_a_list():
    return [np.ones(3, np.float32), np.ones((2, 2))]


def nested():
    return {"layer": [np.ones(2), {"w": np.ones(2)}]}


GOOD = {"a": np.ones(3, np.float32), "b": np.ones((2, 2))}

GRADIENTS = [
    (in_a_dict, None, ValueError, "gradients is None, but the parameters are a dict there."),
    (
        lambda: np.ones(3),
        None,
        TypeError,
        "The gradient of x is None, but it must be a NumPy array of shape (3,) and dtype float64.",
    ),
    (
        in_a_dict,
        {"a": GOOD["a"]},
        ValueError,
        "gradients lacks 'b'. Give one gradient for each parameter, by its name.",
    ),
    (in_a_dict, {**GOOD, "c": 1}, ValueError, "gradients has the unknown 'c'. Give one gradient"),
    (
        in_a_dict,
        {"a": GOOD["a"], "c": 1},
        ValueError,
        "gradients lacks 'b' and has the unknown 'c'.",
    ),
    (
        in_a_dict,
        [GOOD["a"], GOOD["b"]],
        ValueError,
        "gradients is a list, but the parameters are a dict there.",
    ),
    (
        in_a_dict,
        {**GOOD, "a": None},
        TypeError,
        "The gradient of a is None, but it must be a NumPy array of shape (3,) and dtype float32.",
    ),
    (
        in_a_dict,
        {**GOOD, "a": [1.0, 2.0, 3.0]},
        ValueError,
        "gradients at a is a list, but the parameters are one array there.",
    ),
    (in_a_dict, {**GOOD, "a": 1.0}, TypeError, "The gradient of a is a float, but it must be"),
    (
        in_a_dict,
        {**GOOD, "a": masked(3, np.float32)},
        TypeError,
        "The gradient of a is a MaskedArray, whose arithmetic is not that of plain arrays. Give "
        "numpy.asarray() of it, or .filled(0.0) where a mask counts.",
    ),
    (in_a_dict, {**GOOD, "a": in_metres(3, np.float32)}, TypeError, "The gradient of a is an InM"),
    (
        in_a_dict,
        {**GOOD, "b": GOOD["b"].view(np.matrix)},
        TypeError,
        "The gradient of b is a matrix,",
    ),
    (
        in_a_dict,
        {**GOOD, "a": np.ones(4, np.float32)},
        ValueError,
        "The gradient of a has shape (4,), but the parameter has shape (3,). "
        "Give a gradient of the parameter's shape.",
    ),
    (
        in_a_dict,
        {**GOOD, "b": np.ones(4)},
        ValueError,
        "The gradient of b has shape (4,), but the parameter has shape (2, 2).",
    ),
    (
        in_a_dict,
        {**GOOD, "a": np.ones(3)},
        TypeError,
        "The gradient of a has dtype float64, but the parameter has dtype float32. "
        "Convert it with .astype('float32').",
    ),
    (in_a_dict, {**GOOD, "a": np.ones(3, ">f4")}, TypeError, "The gradient of a has dtype >f4"),
    (in_a_dict, {**GOOD, "a": np.ones(3, int)}, TypeError, "The gradient of a has dtype int64"),
    (
        in_a_list,
        [GOOD["a"]],
        ValueError,
        "gradients has 1 entries, but the parameters have 2. "
        "Give one gradient for each parameter, in the same order.",
    ),
    (in_a_list, [GOOD["a"], GOOD["b"], GOOD["b"]], ValueError, "gradients has 3 entries"),
    (in_a_list, GOOD["a"], ValueError, "gradients is a ndarray, but the parameters are a list"),
    (in_a_list, iter([GOOD["a"], GOOD["b"]]), ValueError, "gradients is a list_iterator"),
    (
        lambda: np.ones(3),
        [np.ones(3)],
        ValueError,
        "gradients is a list, but the parameters are one array there.",
    ),
    (
        nested,
        {"layer": [np.ones(2), {"v": np.ones(2)}]},
        ValueError,
        "gradients at layer.1 lacks 'w' and has the unknown 'v'.",
    ),
    (nested, {"layer": [np.ones(2)]}, ValueError, "gradients at layer has 1 entries"),
    (
        nested,
        {"layer": [np.ones(2), {"w": np.ones(3)}]},
        ValueError,
        "The gradient of layer.1.w has shape (3,)",
    ),
]


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(("made", "gradients", "error", "message"), GRADIENTS)
def test_gradients_that_do_not_fit_change_nothing(made, gradients, error, message, engine):
    params = made()
    optimizer = adamas.Adam(params, ema=0.9, engine=engine)
    before = snapshot(optimizer)
    with pytest.raises(error, match=re.escape(message)):
        optimizer.step(gradients)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_arrays_of_files_are_gradients_as_plain_arrays_are(engine, tmp_path):
    bits = []
    for name in ("plain", "file"):
        gradient = np.arange(3.0)
        if name == "file":
            gradient = np.memmap(tmp_path / name, gradient.dtype, "w+", shape=3)
            gradient[...] = np.arange(3.0)
        p = np.ones(3)
        adamas.Adam(p, lr=0.1, engine=engine).step(gradient)
        bits.append(p.tobytes())
    assert bits[0] == bits[1]


def snapshot(optimizer):
    stored = optimizer.state_dict()
    state = {
        (name, entry): array.tobytes()
        for name, entries in stored.pop("state").items()
        for entry, array in entries.items()
    }
    parameters = {name: p.tobytes() for name, p in optimizer.named_parameters().items()}
    return stored, state, parameters


def with_state(change):
    stored = adamas.Adam(in_a_dict(), lr=0.5).state_dict()
    change(stored)
    return stored


def shaped(stored):
    stored["state"]["a"]["mean"] = np.ones(4, np.float32)


def typed(stored):
    stored["state"]["a"]["mean"] = np.ones(3)


STATES = [
    (lambda s: s.pop("step"), KeyError, "The state_dict lacks 'step'"),
    (lambda s: s.update(step=-1), ValueError, "step is -1, but it must be a whole number"),
    (lambda s: s["state"].pop("a"), KeyError, "The state lacks 'a'"),
    (
        lambda s: s["state"]["a"].pop("mean"),
        KeyError,
        "The state of a has the entries square, but this optimizer keeps mean, square.",
    ),
    (
        shaped,
        ValueError,
        "The state of a has mean of shape (4,) and dtype float32, but it must have",
    ),
    (
        typed,
        ValueError,
        "The state of a has mean of shape (3,) and dtype float64, but it must have",
    ),
    (
        lambda s: s["state"]["a"].update(mean=masked(3, np.float32)),
        TypeError,
        "mean in the state of a is a MaskedArray, whose arithmetic is not that of plain arrays.",
    ),
    (lambda s: s["groups"].append({}), ValueError, "The state_dict has 2 groups, but"),
    (lambda s: s["groups"][0].update(lr=-1.0), ValueError, "lr is -1.0, but it must be finite"),
    (
        lambda s: s["groups"][0].update(params=["b", "a"]),
        ValueError,
        "has the parameters ['b', 'a'], but this optimizer has ['a', 'b'] there.",
    ),
    (
        lambda s: s["groups"][0].update(amsgrad=True),
        ValueError,
        "amsgrad is True, but this optimizer was created with False",
    ),
    (
        lambda s: s["groups"][0].update(lr=None),
        ValueError,
        "was saved with a schedule for lr, which cannot be stored",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), STATES)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, error, message):
    optimizer = adamas.Adam(in_a_dict())
    before = snapshot(optimizer)
    with pytest.raises(error, match=re.escape(message)):
        optimizer.load_state_dict(with_state(change))
    assert snapshot(optimizer) == before


def test_what_decides_the_state_cannot_change_on_the_way():
    optimizer = adamas.Adam(np.ones(3))
    with pytest.raises(ValueError, match="Create another optimizer"):
        optimizer.set_options(amsgrad=True)
    with pytest.raises(ValueError, match="Use one optimizer for each method"):
        optimizer.set_options(betas=(0.9, None))
    with pytest.raises(TypeError, match="set_options has the unknown option 'alpha'"):
        optimizer.set_options(alpha=1)
    with pytest.raises(ValueError, match=re.escape("lr is -1.0, but it must be finite")):
        optimizer.lr = -1.0
    assert optimizer.lr == 1e-3


def test_a_schedule_that_gives_no_rate_changes_nothing():
    optimizer = adamas.Adam(np.ones(3), lr=lambda step: -step)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=re.escape("lr(1) is -1.0, but it must be finite")):
        optimizer.step(np.ones(3))
    assert snapshot(optimizer) == before


def test_methods_say_which_means_they_need():
    with pytest.raises(ValueError, match="but Adam keeps both moments"):
        adamas.Adam(np.ones(3), betas=(0.9, None))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^beta is None, but it must be a number\.$"):
        adamas.Momentum(np.ones(3), beta=None)  # type: ignore[arg-type]
    expected = 'engine is \'fast\', but it must be "native", "reference" or "triton".'
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        adamas.Adam(np.ones(3), engine="fast")  # type: ignore[arg-type]


MISTAKES = [
    (lambda p: adamas.AdamW(p, weigth_decay=0.1), TypeError,  # type: ignore[call-arg]
     "AdamW() has the unknown option 'weigth_decay'. Did you mean 'weight_decay'? Possible are "),
    (lambda p: adamas.Adam(p, learning_rate=0.1), TypeError,  # type: ignore[call-arg]
     "Adam() has the unknown option 'learning_rate'. Did you mean 'lr'? Possible are amsgrad,"),
    (lambda p: adamas.Momentum(p, beta=1.0), ValueError,
     "beta is 1.0, but a decay rate must be at least 0 and less than 1."),
    (lambda p: adamas.RMSProp(p, beta=(0.9,)), TypeError,  # type: ignore[arg-type]
     "beta is (0.9,), but it must be a number."),
    (lambda p: adamas.RMSProp(p, alpha=0.9), TypeError,  # type: ignore[call-arg]
     "RMSProp() has the unknown option 'alpha'. Did you mean 'beta'? Possible are amsgrad,"),
    (lambda p: adamas.Momentum(p, betas=0.9), TypeError,  # type: ignore[call-arg]
     "Momentum() has the unknown option 'betas'. Did you mean 'beta'? Possible are beta,"),
    (lambda p: adamas.RMSProp(p, clip_nrom=1.0), TypeError,  # type: ignore[call-arg]
     "RMSProp() has the unknown option 'clip_nrom'. Did you mean 'clip_norm'?"),
    (lambda p: adamas.Adam([{"params": p, "weigth_decay": 0.1}]), TypeError,
     "params[0] has the unknown option 'weigth_decay'. Did you mean 'weight_decay'? Possible are"),
    (lambda p: adamas.Adam(p).set_options(wieght_decay=1), TypeError,
     "set_options has the unknown option 'wieght_decay'. Did you mean 'weight_decay'?"),
    (lambda p: adamas.Adam(p, betas=0.9), TypeError,  # type: ignore[arg-type]
     "betas is 0.9, but it must be a pair of decay rates (β1, β2). Give for example (0.9, 0.999)."),
    (lambda p: adamas.Adam(p, lr="1e-3"), TypeError,  # type: ignore[arg-type]
     "lr is '1e-3', but it must be a number. It is text: give float('1e-3')."),
    (lambda p: adamas.Adam(p, state="8-bit"), ValueError,  # type: ignore[arg-type]
     "state is '8-bit', but it must be one of \"float32\", \"bfloat16\", \"compact\", \"8bit\". "
     "Did you mean '8bit'?"),
    (lambda p: adamas.Adam(p, state=8), TypeError,  # type: ignore[arg-type]
     "state is 8, but it must be one of \"float32\","),
    (lambda p: adamas.Adam(p, rounding="remainder"), ValueError,
     'rounding is "remainder", which keeps what rounding takes away from parameters in bfloat16, '
     "but they have dtype float32. Leave rounding out, or convert the parameters to ml_dtypes' "
     "bfloat16."),
    (lambda p: adamas.Adam(p).set_options(group=1, lr=0.1), IndexError,
     "group is 1, but it must be the index of a group, from 0 to 0, or None for all."),
    (lambda p: adamas.Adam(p).set_options(group="0", lr=0.1), IndexError,  # type: ignore[arg-type]
     "group is '0', but it must be the index of a group"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES)
def test_a_mistake_is_told_with_a_way_out(mistake, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        mistake(np.ones(3, np.float32))


def test_a_pair_of_forms_may_be_a_list_as_files_have_it():
    optimizer = adamas.Adam(np.ones(32, np.float32), state=["8bit", "float32"])  # type: ignore[arg-type]
    assert optimizer.groups[0].options.storage.forms == ("8bit", "float32")


def test_a_remainder_may_be_asked_for_where_some_parameters_can_have_one():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    params = [np.ones(3, ml_dtypes.bfloat16), np.ones(3, np.float32)]
    optimizer = adamas.Adam(params, rounding="remainder")
    assert [sorted(state.arrays()) for state in optimizer.groups[0].states] == [
        ["mean", "remainder", "square"],
        ["mean", "square"],
    ]


#: Of each option of a constructor one that nothing else gives.
GIVEN = {
    "lr": 0.5, "betas": (0.5, 0.25), "beta": 0.5, "eps": 0.5, "weight_decay": 0.5,
    "decay": "fully-decoupled", "lr_max": 2.0, "amsgrad": True, "nesterov": True, "maximize": True,
    "eps_place": "inside", "eps_root": 0.5, "bias_correction": "first-step", "clip_norm": 0.5,
    "clip_update": 0.5, "on_nonfinite": "skip", "ema": 0.5, "statistics": True,
    "state": ("bfloat16", "float32"),
    "rounding": "nearest", "seed": 5, "track_changes": True, "skip_above": 5.0,
    "skip_window": 64, "engine": "reference",
}  # fmt: skip


@pytest.mark.parametrize(
    "method", [adamas.Adam, adamas.AdamW, adamas.Momentum, adamas.RAdam, adamas.RMSProp]
)
def test_no_option_of_a_constructor_is_accepted_and_ignored(method):
    names = inspect.signature(method).parameters.keys() - {"params", "dialect"}
    given = {name: GIVEN[name] for name in names}
    optimizer = method(np.ones(3, np.float32), **given)
    options = optimizer.groups[0].options
    found = {**vars(options), **vars(optimizer.phase), "engine": optimizer.engine}
    found["beta"] = next(beta for beta in options.betas if beta is not None)
    assert {name: found[name] for name in names} == given


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_front_end_that_is_not_imported_is_offered(name):
    program = f"import adamas; assert not hasattr(adamas, {name!r}); adamas.{name}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    last = done.stderr.splitlines()[-1]
    assert last.endswith(f"no attribute '{name}' yet. Import it first: import adamas.{name}")


@pytest.mark.parametrize("decay", ["fully-decoupled", "corrected"])
def test_a_learning_rate_above_the_greatest_is_refused_before_anything_is_touched(decay):
    p = np.ones(2)
    text = f'but lr_max is 0.5, which decay="{decay}" takes for the greatest learning rate of the'
    with pytest.raises(ValueError, match=f"^lr is 0.75, {text}"):
        adamas.AdamW(p, 0.75, decay=decay, lr_max=0.5)
    optimizer = adamas.AdamW(p, 0.5, decay=decay)
    with pytest.raises(ValueError, match=f"^lr is 0.75, {text}"):
        optimizer.lr = 0.75
    assert optimizer.lr == 0.5
    optimizer.set_options(lr=0.75, lr_max=0.75)
    rates = {1: 0.5, 2: 0.5 * (1 + 1e-9), 3: 0.75}  # the second is off by what schedules round
    optimizer = adamas.AdamW(p, rates.get, decay=decay, lr_max=0.5)
    for _ in range(2):
        optimizer.step(np.ones(2))
    before = p.copy()
    with pytest.raises(ValueError, match=rf"^lr\(3\) is 0.75, {text}"):
        optimizer.step(np.ones(2))
    assert optimizer.steps == 2
    assert (p == before).all()
