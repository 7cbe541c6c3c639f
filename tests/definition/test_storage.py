"""What is stored how is said once: what follows from it, and what is refused, in all front-ends."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import adamas
from adamas import state as states
from adamas import storage as storages
from adamas.codecs import BLOCK, Codes
from adamas.coefficients import StepNumbers, at_step
from adamas.engines import Group, Runs, Slot, native
from adamas.options import Options, Phase
from adamas.state import Entries
from adamas.storage import STORED_AS, Storage, bits_of
from tests.support.cases import ROOT

torch = pytest.importorskip("torch")
import adamas.torch as in_torch  # noqa: E402
from adamas.torch import small as small_in_torch  # noqa: E402

FORMS = get_args(storages.StateForm)
PAIRS = list(itertools.product(FORMS, FORMS))
METHODS = {"Adam": (0.9, 0.999), "Momentum": (0.9, None), "RMSProp": (None, 0.999)}
ELEMENTS = 4096


def stored(pair: tuple[str, str], method: str) -> tuple[Storage, dict[str, bool]]:
    """A storage, and which means the method keeps; skips what does not go together."""
    beta1, beta2 = METHODS[method]
    kept = {"has_mean": beta1 is not None, "has_square": beta2 is not None}
    try:
        return Storage.checked(pair, None, **kept, amsgrad=False), kept
    except ValueError:
        assert pair[0] in ("compact", "8bit")
        assert method == "Momentum"
        pytest.skip("codes of m are relative to √v")


#: What an element of m and of v takes in each form.
BYTES = {"float32": (4, 4), "bfloat16": (2, 2), "compact": (1, 2), "8bit": (1, 1)}


def bytes_of(pair, has_mean, has_square):
    """Of m, v and the 16 bits that a block of 32 elements has in common in the form 8bit."""
    kept = [i for i, is_kept in enumerate((has_mean, has_square)) if is_kept]
    element = sum(BYTES[pair[i]][i] for i in kept)
    return ELEMENTS * element + (ELEMENTS // 16 if "8bit" in [pair[i] for i in kept] else 0)


# ── what follows ───────────────────────────────────────────────────────────────────────────────


def test_every_form_is_in_the_table_and_stands_for_numbers_alone_where_it_is_not():
    assert set(FORMS) == {"float32", *STORED_AS}
    assert Storage().codes == Codes(None, None, None)
    assert not Storage().is_small


def test_the_compiled_engine_has_the_rows_of_the_definition():
    text = (ROOT / "native" / "storage.h").read_text("utf-8")
    rows = {name: row.split(", ") for name, row in re.findall(r'\{"(\w+)", (.*)\},', text)}

    def named(dtype: str | None) -> str:
        return f"elements::{dtype or 'none'}"

    numbers = Codes(None, None)
    for form in FORMS:
        mean, square, header = STORED_AS.get(form, numbers)
        has_header = "false" if header is None else "true"
        assert rows.pop(form) == [named(mean), named(square), has_header]
    for rounding in get_args(storages.Rounding):
        storage = Storage(rounding=rounding)
        draws = "true" if storage.parameters_by_chance else "false"
        assert rows.pop(rounding) == [named(storage.remainder), draws]
    assert rows == {}
    assert f"block_size = {BLOCK};" in text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_state_of_numpy_has_the_bytes_and_dtypes_of_its_storage(pair, method):
    storage, kept = stored(pair, method)
    options = Options(betas=METHODS[method], state=pair)
    state = states.create(np.zeros(ELEMENTS, np.float32), options)
    assert options.storage == storage
    assert state.nbytes == bytes_of(pair, **kept)
    assert (state.header is not None) == storage.has_header(**kept)
    for role in ("mean", "square", "header"):
        array = getattr(state, role)
        if array is not None:
            assert array.dtype == bits_of(getattr(storage.codes, role) or "float32")


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_state_of_torch_has_the_bytes_and_dtypes_of_its_storage(pair):
    storage, kept = stored(pair, "Adam")
    p = torch.nn.Parameter(torch.zeros(ELEMENTS))
    p.grad = torch.ones(ELEMENTS)
    optimizer = in_torch.Adam([p], state=pair)
    optimizer.step()
    state = optimizer.state[p]
    entries = [each for name, each in state.items() if name not in ("step", "top")]
    assert sum(each.nbytes for each in entries) == bytes_of(pair, **kept)
    assert ("header" in state) == storage.has_header(**kept)
    assert ("top" in state) == storage.is_relative
    for name, code in zip(("exp_avg", "exp_avg_sq"), storage.codes[:2], strict=True):
        assert state[name].dtype == getattr(torch, code or "float32")
    found = small_in_torch.forms_in(state, Entries("exp_avg", "exp_avg_sq"))
    alike = {"compact": "bfloat16"} if pair[0] != "compact" else {"bfloat16": "compact"}
    assert found == (pair[0], alike.get(pair[1], pair[1]))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_state_of_jax_has_the_bytes_and_dtypes_of_its_storage(pair):
    pytest.importorskip("jax")
    from adamas.jax import small

    storage, kept = stored(pair, "Adam")
    state = small.zeros(storage, np.zeros(ELEMENTS, np.float32), mean=True, square=True, top=None)
    arrays = [each for each in (state.mu, state.nu, state.header) if not isinstance(each, tuple)]
    assert sum(each.nbytes for each in arrays) == bytes_of(pair, **kept)
    assert (len(arrays) == 3) == storage.has_header(**kept)


def test_rounding_says_who_draws_and_who_keeps_a_remainder():
    said = {
        rounding: (
            Storage("8bit", "8bit", rounding).means_by_chance,
            Storage("8bit", "8bit", rounding).parameters_by_chance,
            Storage("8bit", "8bit", rounding).remainder,
        )
        for rounding in (None, *get_args(storages.Rounding))
    }
    assert said == {
        None: (True, False, None),
        "nearest": (False, False, None),
        "stochastic": (True, True, None),
        "remainder": (True, False, "int16"),
        "remainder8": (True, True, "int8"),
    }
    assert not Storage(rounding="stochastic").means_by_chance


def test_roles_are_the_fields_of_a_state_in_their_order():
    fields = [field.name for field in dataclasses.fields(states.State)]
    assert tuple(fields[: len(Entries._fields)]) == Entries._fields == states.ENTRIES
    p = np.ones(40, np.float32)
    state = states.create(p, Options(state="8bit"), ema=True)
    assert dict(state.entries.items()) == state.arrays()
    sizes = state.entries.map(lambda array: array.size)
    assert sizes == Entries(mean=40, square=40, ema=40, header=2)


def test_a_plan_refuses_a_state_of_other_forms_than_its_options_have():
    p = np.ones(40, np.float32)
    slot = Slot(p, states.create(p, Options(state="8bit")))
    with pytest.raises(ValueError, match=r"^A plan needs the state that its options speak of\.$"):
        native.Plan([Group(Options(state=("8bit", "float32")), (slot,))], Phase())


def tensor_plan(slot: dict[str, Any], cohort: dict[str, Any], phase: Phase) -> Any:
    """A plan over one tensor in half precision, which keeps two means in bytes."""
    p = torch.nn.Parameter(torch.ones(40, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    state = {
        "step": torch.zeros(()),
        "m": torch.zeros(40, dtype=torch.int8),
        "v": torch.zeros(40, dtype=torch.uint8),
        "header": torch.zeros(2, dtype=torch.int16),
        "remainder": torch.zeros(40, dtype=torch.int16),
        "ema": torch.ones(40),
    }
    given = {
        "parameter": p,
        "state": state,
        "step": "step",
        "names": Entries("m", "v", header="header", remainder="remainder", ema="ema"),
        "storage": Storage("8bit", "8bit", "remainder"),
        "top": 2,
        "number": 0,
        "copy": None,
        "cohort": 0,
    }
    kinds, groups = (torch.Tensor, torch.nn.Parameter), [{"params": [p], "lr": 0.1}]
    slots = [native.TensorSlot(**{**given, **slot})]
    cohorts = [native.Cohort(**{"group": 0, "options": Options(), **cohort})]
    changed = torch.autograd.graph.increment_version
    plan = native.TensorPlan(*kinds, groups, slots, cohorts, [], phase, changed)
    return plan, lambda *more: plan.step(groups, {p: state}, 1.0, 1.0, *more), p


@pytest.mark.parametrize(
    ("slot", "cohort", "text"),
    [
        ({"names": Entries("m", "v", remainder="remainder")}, {}, "A plan needs the state that"),
        ({"names": Entries("m", "v", header="header")}, {}, "A plan needs the state that"),
        ({"names": Entries("m", "m", header="header")}, {}, "A plan needs state that fits"),
        ({"storage": Storage("8bit", "8bit", "remainder8")}, {}, "A plan needs state that fits"),
        ({"top": 13}, {}, "top is 13, but it must be from 0 to 12."),
        ({"number": -1}, {}, "number is -1, but it must be from 0 to 9223372036854775807."),
        ({"cohort": 1}, {}, "cohort is 1, but it must be from 0 to 0."),
        ({"cohort": -1}, {}, "cohort is -1, but it must be from 0 to 0."),
        ({"runs": [Runs(1, 0, 4, 8)]}, {}, "first is 1, but it must be from 0 to 0."),
        ({"runs": [Runs(0, 0, 0, 8)]}, {}, f"length is 0, but it must be from 1 to {2**63 - 1}."),
        ({"runs": [Runs(0, 0, 4, 8)] * 2}, {}, "first is 0, but it must be from 1 to 39."),
        ({}, {"group": 1}, "group is 1, but it must be from 0 to 0."),
        ({}, {"group": 2**70}, f"group is {2**70}, but it must be from 0 to 0."),
    ],
)
def test_a_plan_over_tensors_refuses_slots_that_lack_something_or_point_nowhere(slot, cohort, text):
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        tensor_plan(slot, cohort, Phase())


def test_a_plan_over_tensors_goes_on_with_another_phase_but_for_the_averages_it_keeps():
    plan, step, p = tensor_plan({}, {}, Phase(ema=0.5))
    for other in (Phase(), Phase(clip_norm=1.0)):
        with pytest.raises(ValueError, match=r"^A plan goes on with the averages that it was made"):
            plan.set_phase(other)
    assert step() is None
    plan.set_phase(Phase(ema=0.25, on_nonfinite="skip"))
    p.grad.fill_(torch.nan)
    assert step()[0] is False


def test_numbers_that_no_cohort_takes_are_refused():
    _, step, p = tensor_plan({}, {}, Phase())
    before = p.detach().clone()
    own = StepNumbers.averaging(at_step(Options(), 1, 0.1), None, 1)
    with pytest.raises(ValueError, match=r"^A step needs the numbers of each cohort without"):
        step([own])
    assert (p == before).all()


def test_a_step_over_tensors_refuses_what_are_no_numbers_of_it_before_it_begins():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    groups, state = [{"params": [p], "lr": 0.1}], {}
    slot = native.TensorSlot(p, state, None, Entries(), Storage(), 0, 0, None, 0)
    changed = torch.autograd.graph.increment_version
    kinds, cohorts = (torch.Tensor, torch.nn.Parameter), [native.Cohort(0, None)]
    plan = native.TensorPlan(*kinds, groups, [slot], cohorts, [], Phase(), changed)
    own = StepNumbers.averaging(at_step(Options(betas=(None, None)), 1, 0.1), None, 1)
    for none in (None, [], [own, own]):
        with pytest.raises(ValueError, match=r"^A step needs the numbers of each cohort without"):
            plan.step(groups, {p: state}, 1.0, 1.0, none)
    for wrong in (tuple(own), own.rule, [0.1] * 16):
        with pytest.raises(TypeError) as caught:
            plan.step(groups, {p: state}, 1.0, 1.0, [wrong])
        assert str(caught.value) == (
            f"The numbers of a step are {wrong!r}, but they must be an "
            "adamas.coefficients.StepNumbers."
        )
    assert (p == 1).all()
    assert plan.step(groups, {p: state}, 1.0, 1.0, [own]) is None
    assert (p < 1).all()


# ── what is refused ────────────────────────────────────────────────────────────────────────────

RELATIVE = (
    'state is "8bit", which stores the first moment relative to the root of the second, but this '
    'method keeps no second moment. Use "float32" or "bfloat16".'
)
LARGEST = (
    'amsgrad keeps the largest square so far, which the rounding of "compact" would drive up. '
    'Use state=("bfloat16", "float32"), or leave amsgrad out.'
)
NARROW = "state is ('8bit', '8bit'), but {} dtype {}: low-bit states are for float32, "
NARROW += 'bfloat16 and float16. Convert the parameter, or {} state="float32", which keeps its '
NARROW += "dtype."
OWN_GROUP = "give it a group of its own with"
HALF = (
    'rounding is "remainder", but a parameter has dtype {0}float16: remainders are for '
    '{0}bfloat16. Use rounding="stochastic", or convert the parameter.'
)
ALONE = (
    'rounding is "remainder8", which keeps what rounding takes away from parameters in '
    "{0}bfloat16, but they have dtype {0}float32 and {0}float64. Leave rounding out, or {1}."
)


def numpy_adam(*dtypes: str, **options: Any) -> Any:
    """An optimizer of NumPy over parameters of these dtypes."""
    return adamas.Adam([np.ones(3, dtype) for dtype in dtypes], **options)


def numpy_state(dtype: str, **options: Any) -> Any:
    """The state of one array, beside which others may be in bfloat16."""
    return states.create(np.ones(3, dtype), Options(**options))


def torch_adam(*dtypes: str, **options: Any) -> Any:
    """One of torch, which refuses some parameters at their first step."""
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=getattr(torch, d))) for d in dtypes]
    for p in parameters:
        p.grad = torch.ones_like(p)
    in_torch.Adam(parameters, **options).step()


def jax_adam(*dtypes: str, **options: Any) -> Any:
    """The state of one of JAX."""
    jax = pytest.importorskip("jax")
    import adamas.jax as in_jax

    with jax.enable_x64(True):
        in_jax.adam(0.1, **options).init([np.ones(3, dtype) for dtype in dtypes])


REFUSED = [
    ("amsgrad", numpy_adam, ["float32"], {"amsgrad": True, "state": ("bfloat16", "compact")},
     ValueError, LARGEST),
    ("amsgrad", torch_adam, ["float32"], {"amsgrad": True, "state": ("bfloat16", "compact")},
     ValueError, LARGEST),
    ("too wide", numpy_adam, ["float64"], {"state": "8bit"},
     ValueError, NARROW.format("a parameter has", "float64", "use")),
    ("too wide", torch_adam, ["float64"], {"state": "8bit"},
     TypeError, NARROW.format("a parameter has", "torch.float64", OWN_GROUP)),
    ("too wide", jax_adam, ["float64"], {"state": "8bit"},
     ValueError, NARROW.format("the parameter at [0] has", "float64", "use")),
    ("float16", numpy_state, ["float16"], {"rounding": "remainder"},
     ValueError, HALF.format("")),
    ("float16", torch_adam, ["float16"], {"rounding": "remainder"},
     TypeError, HALF.format("torch.")),
    ("none in bfloat16", numpy_adam, ["float64", "float32"], {"rounding": "remainder8"},
     ValueError, ALONE.format("", "convert the parameters to ml_dtypes' bfloat16")),
    ("none in bfloat16", torch_adam, ["float64", "float32"], {"rounding": "remainder8"},
     ValueError, ALONE.format("torch.", "convert the model before the optimizer is made")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("made", "dtypes", "options", "error", "text"),
    [each[1:] for each in REFUSED],
    ids=[f"{each[0]}-{each[1].__name__}" for each in REFUSED],
)
def test_what_cannot_be_stored_is_refused_in_the_same_words(made, dtypes, options, error, text):
    with pytest.raises(error) as caught:
        made(*dtypes, **options)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (("9bit", None), ValueError, "state is '9bit', but it must be one of "),
        ((3, None), TypeError, 'state is 3, but it must be one of "float32", "bfloat16", '),
        (("float32", "up"), ValueError, "rounding is 'up', but it must be one of "),
    ],
)
def test_what_is_no_form_or_rounding_is_refused_where_it_is_given(given, error, text):
    kept = {"has_mean": True, "has_square": True, "amsgrad": False}
    with pytest.raises(error, match="^" + re.escape(text)):
        Storage.checked(*given, **kept)
    with pytest.raises(error, match="^" + re.escape(text)):
        Options(state=given[0], rounding=given[1])


def test_what_a_method_cannot_have_is_refused_in_the_words_of_options():
    none = {"has_mean": True, "has_square": False}
    with pytest.raises(ValueError, match="^" + re.escape(RELATIVE)):
        Storage.checked("8bit", None, **none, amsgrad=False)
    with pytest.raises(ValueError, match=r"^amsgrad is True, but this method keeps no second"):
        Storage.checked("float32", None, **none, amsgrad=True)


# ── texts ──────────────────────────────────────────────────────────────────────────────────────


def texts_of(path: Path) -> set[str]:
    """The sentences in a file, with {} for what is put in, but for docstrings.

    A name may begin in several parts, which tell where it stands.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside: set[ast.AST] = set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            inside.update(node.values)
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            found.add(re.sub(r"^(\{\})+", "{}", "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            found.add(node.value)
    return {text for text in found if len(text) > 30 and text.endswith((".", "training"))}


def test_no_text_of_an_error_stands_in_two_files():
    inside = Path(adamas.__file__).parent
    places: dict[str, list[str]] = {}
    for path in sorted(inside.rglob("*.py")):
        for text in texts_of(path):
            places.setdefault(text, []).append(str(path.relative_to(inside)))
    assert {text: files for text, files in places.items() if len(files) > 1} == {}
