"""What is loaded into a NumPy optimizer is checked to the last code, and then loaded whole."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

import adamas
from tests.support.runs import everything

FORMS = ["float32", "bfloat16", "compact", "8bit"]


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trained(form="float32", steps=3, **options):
    params = {"a": drawn(70), "b": drawn((3, 4)).T}
    optimizer = adamas.Adam(params, lr=0.1, state=form, **options)
    for seed in range(steps):
        optimizer.step({name: drawn(p.shape, seed) for name, p in params.items()})
    return params, optimizer


def put(entry, value, name="a"):
    """A change of a state_dict: one entry of one parameter."""

    def change(stored):
        stored["state"][name][entry] = value

    return change


def element(entry, value, name="a", place=2):
    """A change of a state_dict: one element of one entry."""

    def change(stored):
        stored["state"][name][entry].flat[place] = value

    return change


def option(**changes):
    return lambda stored: stored["groups"][0].update(changes)


def top_of(stored, value):
    stored["state"]["a"]["top"] = np.array(value)


WRONG = [
    ("the counts", lambda s: s.update(step=2**53 + 1), ValueError,
     "step is 9007199254740993, but it must be a whole number, at least 0 and at most 2^53."),
    ("the counts", lambda s: s.update(skipped=-1), ValueError, "skipped is -1, but it must be"),
    ("the counts", lambda s: s.update(step="3"), ValueError, "step is '3', but it must be"),
    ("a group", lambda s: s.update(groups=5), TypeError,
     "groups of the state_dict is an int, but it must be a list."),
    ("a group", lambda s: s.update(groups=[5]), TypeError,
     "groups[0] is an int, but it must be a dict."),
    ("a group", option(params=7), ValueError, "groups[0] of the state_dict has the parameters 7"),
    ("an option", option(betas=(2, 2)), ValueError, "betas[0] is 2.0, but a decay rate must be"),
    ("an option", option(betas=None), TypeError, "betas is None, but it must be a pair"),
    ("an option", option(betas=0.9), TypeError, "betas is 0.9, but it must be a pair"),
    ("an option", option(lr=float("nan")), ValueError, "lr is nan, but it must be finite"),
    ("an option", option(lr="0.1"), TypeError, "lr is '0.1', but it must be a number."),
    ("an option", option(eps=-1), ValueError, "eps is -1.0, but it must be finite"),
    ("an option", option(decay=[1]), ValueError, "decay is [1], but it must be one of"),
    ("an option", option(amsgrad=0), TypeError, "amsgrad is 0, but it must be True or False."),
    ("a state", lambda s: s["state"].update(a=None), TypeError,
     "The state of a is None, but it must be a dict of arrays."),
    ("a state", lambda s: s.update(state=[1]), TypeError, "The state is a list, but it must be"),
    ("an entry", put("mean", "text"), ValueError, "The state of a has mean of shape ()"),
    ("an entry", put("mean", None), ValueError, "The state of a has mean of shape ()"),
    ("an entry", put("mean", [[1], [2, 3]]), TypeError,
     "The state of a has mean as a list, but it must be an array."),
    ("an entry", put("square", drawn(70).astype(np.float64) ** 2), ValueError,
     "The state of a has square of shape (70,) and dtype float64"),
    ("an entry", lambda s: s["state"]["b"].pop("mean"), KeyError,
     "The state of b has the entries square, but this optimizer keeps mean, square."),
    ("an entry", element("square", -1.0), ValueError,
     "The state of a has square with an element -1.0, but a second moment is at least"),
    ("an entry", element("square", -np.inf, "b"), ValueError,
     "The state of b has square with an element -inf, but a second moment"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("_", "change", "error", "message"), WRONG)
def test_a_dense_state_that_is_wrong_anywhere_changes_nothing(form, _, change, error, message):
    _, source = trained(form, 5)
    stored = source.state_dict()
    change(stored)
    _, optimizer = trained(form, 2)
    before = everything(optimizer)
    with pytest.raises(error, match=re.escape(message)):
        optimizer.load_state_dict(stored)
    assert everything(optimizer) == before


LEAST = {"compact": 2, "8bit": 2, "bfloat16": 0}
WRONG_CODES = [
    *((form, put("top", np.array(top)), f"The state of a has top array({top}), but codes of m are "
       f"counted from a whole number from {LEAST[form]} to 12.")
      for form in LEAST for top in (2**40, 10**6, 13, -1)),
    ("compact", put("top", np.array(0)), "counted from a whole number from 2 to 12."),
    ("8bit", put("top", np.array(4.0)), "counted from a whole number"),
    ("8bit", put("top", np.array([4])), "counted from a whole number"),
    ("8bit", put("top", "4"), "counted from a whole number"),
    ("8bit", element("header", 0xFFFF), "The state of a has header with bits that stand for no "
     "number. Load a state that is whole."),
    ("8bit", element("header", 0x03FF), "The state of a has header with bits that stand for no"),
    ("compact", element("square", 0x8001), "The state of a has square with bits that stand for no"),
    ("compact", element("square", 0x7F80), "The state of a has square with bits that stand for no"),
    ("compact", element("square", 0x7FC0), "The state of a has square with bits that stand for no"),
    ("bfloat16", element("square", 0xBF80), "The state of a has square with an element -1.0, but"),
    ("8bit", put("header", np.zeros(4, np.uint16)), "The state of a has header of shape (4,)"),
    ("compact", put("mean", np.zeros(70, np.int8)),
     "The state of a has mean of shape (70,) and dtype int8, but it must have shape (70,) and "
     "dtype uint8. Load it into an optimizer over the same parameters."),
]  # fmt: skip


@pytest.mark.parametrize(("form", "change", "message"), WRONG_CODES)
def test_a_packed_state_with_a_code_that_cannot_be_changes_nothing(form, change, message):
    _, source = trained(form, 5)
    stored = source.state_dict(packed=True)
    change(stored)
    _, optimizer = trained(form, 2)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(stored)
    assert everything(optimizer) == before


def test_headers_have_no_bits_of_a_mean_that_is_not_stored_in_blocks():
    for forms, meant in ((("8bit", "float32"), 0xF000), (("float32", "8bit"), 0x0FFF)):
        _, source = trained(forms, 5)
        stored = source.state_dict(packed=True)
        assert not (stored["state"]["a"]["header"] & ~np.uint16(meant)).any()
        stored["state"]["a"]["header"][1] ^= ~np.uint16(meant)
        _, optimizer = trained(forms, 2)
        with pytest.raises(ValueError, match="has header with bits that stand for no number"):
            optimizer.load_state_dict(stored)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_state_that_a_run_can_have_is_loaded_again_poisoned_ones_too(form, packed):
    for poison in (np.nan, np.inf, -np.inf, 3e38, 1e-45, 0.0):
        params, source = trained(form, 2, ema=0.9)
        gradients = {name: drawn(p.shape, 9) for name, p in params.items()}
        gradients["a"][5:8] = poison
        source.step(gradients)
        stored = source.state_dict(packed=packed)
        _, optimizer = trained(form, 0, ema=0.9)
        optimizer.load_state_dict(stored, parameters=source.named_parameters())
        assert everything(optimizer) == everything(source)
        twin = optimizer.state_dict(packed=packed)
        for name, entries in stored["state"].items():
            for entry, array in entries.items():
                assert twin["state"][name][entry].tobytes() == array.tobytes()


@pytest.mark.parametrize("form", ["compact", "8bit"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_state_of_other_betas_is_counted_from_the_top_of_its_own(form, packed):
    _, source = trained(form, 5, betas=(0.5, 0.999))
    params, optimizer = trained(form, 2, betas=(0.95, 0.999))
    optimizer.load_state_dict(
        source.state_dict(packed=packed), parameters=source.named_parameters()
    )
    assert int(optimizer.state_dict(packed=True)["state"]["a"]["top"]) == 6
    gradients = {name: drawn(p.shape, 9) for name, p in params.items()}
    source.step(gradients)
    optimizer.step(gradients)
    assert everything(optimizer) == everything(source)


def test_arrays_of_the_optimizer_itself_may_be_given_in_another_order():
    params = {"a": drawn(5), "b": drawn(5, 1)}
    optimizer = adamas.Adam(params, lr=0.1)
    optimizer.step({"a": drawn(5, 2), "b": drawn(5, 3)})
    stored = optimizer.state_dict(copy=False)
    kept = copy.deepcopy(stored["state"])
    values = {name: p.copy() for name, p in params.items()}
    stored["state"] = {"a": stored["state"]["b"], "b": stored["state"]["a"]}
    optimizer.load_state_dict(stored, parameters={"a": params["b"], "b": params["a"]})
    for name, other in (("a", "b"), ("b", "a")):
        assert params[name].tobytes() == values[other].tobytes()
        for entry, array in optimizer.state_dict()["state"][name].items():
            assert array.tobytes() == kept[other][entry].tobytes()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p.pop("b"), KeyError, "parameters lacks 'b'"),
        (lambda p: p.update(a=drawn(71)), ValueError, "parameters has a of shape (71,) and dtype"),
        (lambda p: p.update(a=np.ones(70)), ValueError, "of shape (70,) and dtype float64, but"),
        (
            lambda p: p.update(a=np.ma.array(p["a"], mask=p["a"] > 0)),
            TypeError,
            "The value of a in parameters is a MaskedArray, whose arithmetic is not that of plain",
        ),
    ],
)
def test_parameters_that_do_not_fit_change_nothing(change, error, message):
    _, source = trained(steps=5)
    values = source.named_parameters()
    change(values)
    _, optimizer = trained()
    before = everything(optimizer)
    with pytest.raises(error, match=re.escape(message)):
        optimizer.load_state_dict(source.state_dict(), parameters=values)
    assert everything(optimizer) == before


def test_an_average_that_is_not_kept_is_left_out_and_one_that_is_missing_starts_anew():
    params, first = trained(ema=0.5)
    with_average = first.state_dict()
    _, second = trained(steps=0)
    second.load_state_dict(with_average, parameters=params)
    assert "ema" not in second.state_dict()["state"]["a"]
    moved, third = second.named_parameters(), None
    second.step({name: drawn(p.shape, 7) for name, p in moved.items()})
    _, third = trained(ema=0.5)
    third.load_state_dict(second.state_dict(), parameters=moved)
    for name, entries in third.state_dict()["state"].items():
        assert entries["ema"].tobytes() == moved[name].tobytes()
    before = {name: p.copy() for name, p in moved.items()}
    third.step({name: drawn(p.shape, 8) for name, p in moved.items()})
    for name, p in third.named_parameters().items():
        expected = np.float32(0.5) * before[name] + np.float32(0.5) * p
        assert third.state_dict()["state"][name]["ema"].tobytes() == expected.tobytes()


def test_what_a_state_dict_lacks_or_has_besides_is_said():
    optimizer = adamas.Adam(np.ones(2, np.float32))
    state = optimizer.state_dict()
    del state["step"]
    with pytest.raises(KeyError, match=r"The state_dict lacks 'step', but it must have exactly"):
        optimizer.load_state_dict(state)
    state["steps"] = 0
    with pytest.raises(KeyError, match=r"lacks 'step' and has the unknown 'steps', but it must"):
        optimizer.load_state_dict(state)
