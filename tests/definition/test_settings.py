"""The phase of an optimizer is seen at it, and clip_norm and on_nonfinite are set between steps."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading

import numpy as np
import pytest

import adamas

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from adamas.engines.triton import devices  # noqa: E402
from adamas.torch import host_memory  # noqa: E402
from adamas.torch.routes import offload  # noqa: E402
from tests.support.queues import Queues  # noqa: E402

SHAPES = [(5, 7), (40,), ()]
#: Dtype, which are strided, options; how parameters are stepped.
ROUTES = {
    "native, alone": (torch.float32, (), {}),
    "native": (torch.float32, (), {"statistics": True}),
    "native, in turn": (torch.float64, (), {"copy_to": torch.bfloat16, "ema": 0.9}),
    "native, small": (torch.bfloat16, (), {"state": "8bit", "rounding": "remainder"}),
    "operations": (torch.float32, (0, 1, 2), {"ema": 0.9}),
    "native beside operations": (torch.float32, (1,), {"ema": 0.9}),
    "device": (torch.float32, (), {}),
    "offload": (torch.float32, (), {"offload": True}),
}
METHODS = ["Adam", "AdamW", "NAdam", "RMSprop", "SGD"]
NEW = {"clip_norm": 0.5, "on_nonfinite": "skip"}
#: What is wrong, and the text of it; the constructor says the same.
WRONG = [
    ("clip_norm", 0, ValueError, "clip_norm is 0, which would erase every gradient."),
    ("clip_norm", -1.0, ValueError, "clip_norm is -1.0, but it must be finite and at least 0."),
    ("clip_norm", float("inf"), ValueError, "clip_norm is inf, but it must be finite"),
    ("clip_norm", "1", TypeError, "clip_norm is '1', but it must be a number. It is text: give"),
    ("clip_norm", True, TypeError, "clip_norm is True, but it must be a number."),
    (
        "on_nonfinite",
        "ignore",
        ValueError,
        'on_nonfinite is \'ignore\', but it must be one of "propagate", "skip", "raise".',
    ),
    ("on_nonfinite", None, ValueError, "on_nonfinite is None, but it must be one of"),
]
NOT_SET = ("ema", "seed")


def names(pairs):
    return [f"{name}={value!r}" for name, value, *_ in pairs]


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    before = np.seterr(all="ignore")  # Triton's interpreter computes with NumPy
    if request.param == "device" and not torch.cuda.is_available():
        pytest.importorskip("triton", reason="the interpreter is Triton's")
        monkeypatch.setattr(devices, "DEVICE_TYPES", ("cpu",))
    if request.param == "offload":
        monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
        monkeypatch.setattr(offload, "CudaStreams", lambda device: Queues("late"))
    yield request.param
    np.seterr(**before)


def parameters(dtype=torch.float32, strided=(), device="cpu"):
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, shape in enumerate(SHAPES):
        values = torch.randn((*shape, 2), generator=generator).to(device, dtype)[..., 0]
        made.append(nn.Parameter(values if i in strided else values.contiguous()))
    return made


def made(kind="AdamW", route="native", **more):
    dtype, strided, options = ROUTES[route]
    if kind == "SGD":
        options = {"momentum": 0.9, **options}
        if options.get("state") == "8bit":
            options["state"] = "bfloat16"
    device = "cuda" if route == "device" and torch.cuda.is_available() else "cpu"
    values = parameters(dtype, strided, device)
    return getattr(ours, kind)(values, lr=0.05, **options, **more)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer, first, last, bad=()):
    """Make the steps from ``first`` on, up to ``last``; those in ``bad`` with a NaN."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for i, p in enumerate(params_of(optimizer)):
            gradient = torch.randn(p.shape, generator=generator)
            if step in bad and i == 1:
                gradient[3] = float("nan")
            p.grad = gradient.to(p.device, p.dtype)
        optimizer.step()
    return optimizer


def bits(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        return value.dtype, tuple(value.shape), bytes(value.reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    return [bits(each) for each in value] if isinstance(value, (list, tuple)) else value


def everything(optimizer):
    """Parameters, state, groups, copies, what was left out, and the last norm."""
    saved = optimizer.state_dict()
    saved.pop("phase", None)
    seen = [params_of(optimizer), saved, optimizer.copies, optimizer.skipped]
    return copy.deepcopy(bits([*seen, repr(optimizer.gradient_norm)]))


def arrays():
    random = np.random.default_rng(0)
    return {"w": random.normal(size=(5, 7)).astype(np.float32), "b": random.normal(size=40)}


def numpy_train(optimizer, first, last, bad=()):
    for step in range(first, last):
        random = np.random.default_rng(100 + step)
        gradients = {
            name: random.normal(size=p.shape).astype(p.dtype)
            for name, p in optimizer.named_parameters().items()
        }
        if step in bad:
            gradients["b"][3] = np.nan
        optimizer.step(gradients)
    return optimizer


def numpy_everything(optimizer):
    saved = optimizer.state_dict()
    saved.pop("phase", None)
    return copy.deepcopy(
        [bits(optimizer.named_parameters()), bits(saved), repr(optimizer.gradient_norm)]
    )


# ── a setting is that of the next step ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("route", "kind"),
    [
        (route, kind)
        for route in ROUTES
        for kind in METHODS
        if route != "device" or kind in ("AdamW", "NAdam")  # the interpreter takes its time
    ],
    indirect=["route"],
)
def test_what_is_set_counts_from_the_next_step_on_as_if_made_with_it(route, kind):
    changed = train(made(kind, route), 0, 2)
    saved = copy.deepcopy(changed.state_dict(packed=True))
    judge = made(kind, route, **NEW)
    with torch.no_grad():
        for p, value in zip(params_of(judge), params_of(changed), strict=True):
            p.copy_(value)
    judge.load_state_dict(saved)
    for name, value in NEW.items():
        setattr(changed, name, value)
    train(changed, 2, 5, bad={3})
    train(judge, 2, 5, bad={3})
    assert changed.skipped == judge.skipped == 1
    assert everything(changed) == everything(judge)


def stepped_with(clip_norms, route):
    """A run in which each step has a new optimizer, made with its own norm."""
    judge = made(route=route, clip_norm=clip_norms[0])
    for step, clip_norm in enumerate(clip_norms):
        saved, values = copy.deepcopy((judge.state_dict(packed=True), params_of(judge)))
        judge = made(route=route, clip_norm=clip_norm)
        with torch.no_grad():
            for p, value in zip(params_of(judge), values, strict=True):
                p.copy_(value)
        if step:
            judge.load_state_dict(saved)
        train(judge, step, step + 1)
    return judge


def test_what_is_taken_back_leaves_the_steps_of_before(route):
    clip_norms = [0.5, 0.5, None, 0.25, None]
    changed = made(route=route, clip_norm=clip_norms[0])
    for step, clip_norm in enumerate(clip_norms):
        changed.clip_norm = clip_norm
        train(changed, step, step + 1)
    assert changed.gradient_norm is None
    assert everything(changed) == everything(stepped_with(clip_norms, route))


@pytest.mark.parametrize("route", [each for each in ROUTES if each != "device"], indirect=True)
def test_a_run_may_adapt_the_norm_at_each_step(route):
    clip_norms = [0.5, 0.25, 2.0, 0.125, 1e6]
    changed = made(route=route, clip_norm=1.0)
    for step, clip_norm in enumerate(clip_norms):
        changed.clip_norm = clip_norm
        train(changed, step, step + 1)
    assert everything(changed) == everything(stepped_with(clip_norms, route))


def test_an_error_where_gradients_are_not_finite_may_be_set(route):
    optimizer = train(made(route=route), 0, 2)
    optimizer.on_nonfinite = "raise"
    before = copy.deepcopy(bits(params_of(optimizer)))
    with pytest.raises(FloatingPointError, match=r"0\.1 \(1 of 40 elements\)"):
        train(optimizer, 2, 3, bad={2})
    assert bits(params_of(optimizer)) == before
    optimizer.on_nonfinite = "propagate"
    train(optimizer, 2, 3, bad={2})
    assert any(bool(p.isnan().any()) for p in params_of(optimizer))


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "Momentum", "RMSProp"])
def test_arrays_are_stepped_with_what_is_set(kind, engine):
    def begun(**more):
        return getattr(adamas, kind)(arrays(), lr=0.05, engine=engine, **more)

    changed = numpy_train(begun(), 0, 2)
    judge = begun(**NEW)
    judge.load_state_dict(changed.state_dict(), parameters=changed.named_parameters())
    for name, value in NEW.items():
        setattr(changed, name, value)
    numpy_train(changed, 2, 6, bad={4})
    numpy_train(judge, 2, 6, bad={4})
    assert changed.skipped == judge.skipped == 1
    assert numpy_everything(changed) == numpy_everything(judge)
    changed.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r"b \(1 of 40 elements\)"):
        numpy_train(changed, 6, 7, bad={6})


def test_a_hook_sets_it_for_the_step_that_it_stands_before():
    optimizer = train(made(), 0, 2)

    def clip(changed, *_):
        changed.clip_norm = 0.5

    optimizer.register_step_pre_hook(clip)
    assert train(optimizer, 2, 3).gradient_norm is not None


def test_a_closure_sets_it_for_the_step_that_calls_it():
    optimizer = train(made(), 0, 2)

    def closure():
        optimizer.clip_norm = 0.5
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert optimizer.gradient_norm is not None


def test_a_scaler_leaves_unscaling_to_a_step_that_clips_by_now():
    optimizer = made()
    assert not optimizer._step_supports_amp_scaling
    optimizer.clip_norm = 0.5
    assert optimizer._step_supports_amp_scaling
    optimizer.clip_norm = None
    assert not optimizer._step_supports_amp_scaling


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def every_front_end():
    return [train(made(), 0, 2), numpy_train(adamas.AdamW(arrays(), lr=0.05), 0, 2)]


@pytest.mark.parametrize(("name", "value", "error", "text"), WRONG, ids=names(WRONG))
def test_a_wrong_value_is_refused_as_at_creation_and_changes_nothing(name, value, error, text):
    for optimizer in every_front_end():
        optimizer.clip_norm = 0.75
        with pytest.raises(error) as told:
            setattr(optimizer, name, value)
        assert str(told.value).startswith(text)
        with pytest.raises(error) as at_creation:
            type(optimizer)([torch.zeros(2)] if hasattr(optimizer, "defaults") else np.zeros(2),
                            **{name: value})  # fmt: skip
        assert str(at_creation.value) == str(told.value)
        assert (optimizer.clip_norm, optimizer.on_nonfinite) == (0.75, "propagate")
        assert optimizer.state_dict()["phase"] == {"clip_norm": 0.75}


@pytest.mark.parametrize(
    ("name", "value"), [("ema", 0.9), ("seed", 1), ("statistics", True)]
)  # fmt: skip
def test_what_a_run_cannot_change_is_refused_with_a_way_out(name, value):
    for optimizer in every_front_end():
        before = repr(optimizer)
        with pytest.raises(AttributeError) as told:
            setattr(optimizer, name, value)
        assert str(told.value) == (
            f"{name} cannot be set in a run. Create another optimizer with {name}= and load the "
            "state_dict() of this one."
        )
        assert repr(optimizer) == before


@pytest.mark.parametrize(("name", "value"), [("copy_to", torch.bfloat16), ("offload", True)])
def test_what_a_run_of_tensors_cannot_change_is_refused_with_a_way_out(name, value):
    optimizer = made()
    with pytest.raises(AttributeError, match=f"^{name} cannot be set in a run. Create another"):
        setattr(optimizer, name, value)


def test_the_way_out_of_what_cannot_be_set_is_one():
    optimizer = train(made(), 0, 2)
    with torch.no_grad():
        other = ours.AdamW([p.clone() for p in params_of(optimizer)], ema=0.9, seed=3)
    other.load_state_dict(optimizer.state_dict())
    train(other, 2, 4)
    assert bits(params_of(other)) == bits(params_of(train(optimizer, 2, 4)))
    with other.ema_weights():
        assert bits(params_of(other)) != bits(params_of(optimizer))


def test_the_phase_as_a_whole_cannot_be_set():
    for optimizer in every_front_end():
        with pytest.raises(AttributeError) as told:
            optimizer.phase = adamas.Phase(clip_norm=1.0)
        assert str(told.value) == (
            "phase cannot be set in a run. Set its options one by one (clip_norm and "
            "on_nonfinite), or create another optimizer."
        )


def test_nothing_is_set_while_a_snapshot_is_open():
    for optimizer in every_front_end():
        with (
            optimizer.snapshot(),
            pytest.raises(RuntimeError, match="in the midst of another call"),
        ):
            optimizer.clip_norm = 0.5
        assert optimizer.clip_norm is None


# ── what is seen ───────────────────────────────────────────────────────────────────────────────


def test_an_optimizer_shows_what_it_was_given():
    given = {"clip_norm": 1, "on_nonfinite": "raise", "ema": 0.5, "seed": 7, "statistics": True}
    for optimizer in (made(route="native, alone", **given), adamas.RMSProp(arrays(), **given)):
        found = {name: getattr(optimizer, name) for name in given if name != "statistics"}
        assert found == {"clip_norm": 1.0, "on_nonfinite": "raise", "ema": 0.5, "seed": 7}
        assert optimizer.phase == adamas.Phase(**given)
        optimizer.clip_norm = 2
        assert optimizer.phase == adamas.Phase(**{**given, "clip_norm": 2})
    copies = [torch.zeros(3, dtype=torch.bfloat16)]
    assert ours.SGD([torch.zeros(3)], copy_to=torch.float16).copy_to == torch.float16
    assert bits(ours.SGD([torch.zeros(3)], copy_to=copies).copy_to) == bits(copies)
    assert (made().copy_to, made().offload) == (None, False)


def test_the_text_of_an_optimizer_of_tensors_is_torchs_and_what_was_chosen_of_the_phase():
    weights = [nn.Parameter(torch.zeros(2))]
    theirs = repr(torch.optim.Adam(weights, lr=0.5))
    assert repr(ours.Adam(weights, lr=0.5)) == theirs
    chosen = ours.Adam(weights, lr=0.5, ema=0.999, copy_to=torch.bfloat16, statistics=True)
    chosen.clip_norm = 1
    assert repr(chosen) == theirs.removesuffix(")") + (
        "Phase\n"
        "    clip_norm: 1.0\n"
        "    copy_to: torch.bfloat16\n"
        "    ema: 0.999\n"
        "    statistics: True\n"
        ")"
    )
    given = ours.Adam(weights, lr=0.5, copy_to=[torch.zeros(2, dtype=torch.float16)])
    assert repr(given).endswith("Phase\n    copy_to: 1 tensors\n)")


def test_the_text_of_an_optimizer_of_arrays_has_what_was_chosen_of_the_phase():
    optimizer = adamas.Adam(np.zeros(3), lr=0.5, ema=0.9)
    optimizer.on_nonfinite = "skip"
    assert repr(optimizer) == (
        "<adamas.Adam: 3 parameters in 1 arrays, lr=0.5, on_nonfinite='skip', ema=0.9, 0 steps>"
    )


@pytest.mark.parametrize("kind", METHODS)
def test_defaults_show_the_phase_and_groups_stay_those_of_torch(kind):
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    theirs = getattr(torch.optim, kind)(weights[:1], lr=0.5)
    assert getattr(ours, kind)(weights[:1], lr=0.5).defaults == theirs.defaults
    optimizer = getattr(ours, kind)(
        weights[:1], lr=0.5, clip_norm=1.0, ema=0.9, copy_to=torch.bfloat16, engine="native"
    )
    optimizer.on_nonfinite = "skip"
    phase = {"clip_norm": 1.0, "ema": 0.9, "on_nonfinite": "skip"}
    whole = {**phase, "copy_to": torch.bfloat16, "engine": "native"}
    assert optimizer.defaults == {**theirs.defaults, **whole}
    for each in (optimizer, theirs):
        each.add_param_group({"params": weights[1:]})
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step()
    other = getattr(ours, kind)(weights[:1], lr=0.5)
    other.add_param_group({"params": weights[1:]})
    other.load_state_dict(optimizer.state_dict())
    assert other.defaults == {**theirs.defaults, "on_nonfinite": "skip"}
    optimizer.on_nonfinite = "propagate"
    del whole["on_nonfinite"]
    for each in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert each.defaults == {**theirs.defaults, **whole}
        assert [g.keys() for g in each.param_groups] == [g.keys() for g in theirs.param_groups]
    with pytest.raises(TypeError, match="A group has clip_norm, which concerns the whole step"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "clip_norm": 2.0})
    assert optimizer.defaults == {**theirs.defaults, **whole}


def test_the_text_of_statistics_is_that_of_the_method():
    for each in (ours.Optimizer, adamas.Optimizer):
        assert each.statistics.__doc__.startswith("Return what the last step did")


# ── saving and loading ─────────────────────────────────────────────────────────────────────────


def through_torch_save(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_what_was_given_is_not_saved_and_what_was_set_is():
    for optimizer in (made(clip_norm=1.0, on_nonfinite="skip"), adamas.Adam(arrays(), **NEW)):
        assert "phase" not in optimizer.state_dict()
        optimizer.clip_norm = 0.25
        assert optimizer.state_dict()["phase"] == {"clip_norm": 0.25}
        assert optimizer.state_dict(packed=True)["phase"] == {"clip_norm": 0.25}
        optimizer.on_nonfinite = "propagate"
        found = optimizer.state_dict()["phase"]
        assert found == {"clip_norm": 0.25, "on_nonfinite": "propagate"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_run_goes_on_with_what_was_set_in_it(packed):
    optimizer = train(made(on_nonfinite="raise"), 0, 2)
    optimizer.clip_norm = 0.5
    train(optimizer, 2, 3)
    resumed = made(on_nonfinite="skip", clip_norm=3.0)
    with torch.no_grad():
        for p, value in zip(params_of(resumed), params_of(optimizer), strict=True):
            p.copy_(value)
    resumed.load_state_dict(through_torch_save(optimizer.state_dict(packed=packed)))
    assert (resumed.clip_norm, resumed.on_nonfinite) == (0.5, "skip")
    assert everything(train(resumed, 3, 5)) == everything(train(optimizer, 3, 5))
    assert resumed.state_dict()["phase"] == {"clip_norm": 0.5}


def test_a_run_of_arrays_goes_on_with_what_was_set_in_it():
    optimizer = numpy_train(adamas.Adam(arrays()), 0, 2)
    optimizer.clip_norm = 0.5
    resumed = adamas.Adam(arrays(), on_nonfinite="skip", clip_norm=3.0)
    saved = json.loads(json.dumps({"phase": optimizer.state_dict()["phase"]}))
    resumed.load_state_dict(
        {**optimizer.state_dict(), **saved}, parameters=optimizer.named_parameters()
    )
    assert (resumed.clip_norm, resumed.on_nonfinite) == (0.5, "skip")
    numpy_train(resumed, 2, 4), numpy_train(optimizer, 2, 4)
    assert numpy_everything(resumed) == numpy_everything(optimizer)


def test_what_says_nothing_of_settings_leaves_them():
    optimizer = train(made(), 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.clip_norm = 0.5
    optimizer.load_state_dict(saved)
    assert optimizer.clip_norm == 0.5
    theirs = torch.optim.AdamW(parameters())
    optimizer.load_state_dict(train(theirs, 0, 1).state_dict())
    assert optimizer.clip_norm == 0.5
    assert optimizer.state_dict()["phase"] == {"clip_norm": 0.5}


def test_torchs_classes_load_a_state_with_settings():
    optimizer = train(made(), 0, 2)
    optimizer.clip_norm = 0.5
    theirs = torch.optim.AdamW(parameters())
    theirs.load_state_dict(optimizer.state_dict())
    own = theirs.state_dict()
    assert bits(own) == bits({name: optimizer.state_dict()[name] for name in own})


WRONG_STATES = [
    ([], TypeError, "'phase' to load is a list, but it must be a dict of clip_norm and"),
    (None, TypeError, "'phase' to load is None, but it must be a dict"),
    ({"clip_nrom": 1.0}, TypeError, "'phase' to load has the unknown option 'clip_nrom'. Did you"),
    ({"ema": 0.9}, TypeError, "'phase' to load has the unknown option 'ema'."),
    ({"clip_norm": 0}, ValueError, "In 'phase' to load: clip_norm is 0, which would erase every"),
    ({"clip_norm": "x"}, TypeError, "In 'phase' to load: clip_norm is 'x', but it must be a"),
    ({"on_nonfinite": "ignore"}, ValueError, "In 'phase' to load: on_nonfinite is 'ignore', but"),
]


@pytest.mark.parametrize(("phase", "error", "text"), WRONG_STATES)
def test_a_wrong_setting_in_a_state_is_refused_and_nothing_is_loaded(phase, error, text):
    for optimizer, seen in zip(every_front_end(), (everything, numpy_everything), strict=True):
        saved = copy.deepcopy(optimizer.state_dict())
        (train if seen is everything else numpy_train)(optimizer, 2, 3)
        optimizer.on_nonfinite = "skip"
        before = seen(optimizer), optimizer.phase
        with pytest.raises(error) as told:
            optimizer.load_state_dict({**saved, "phase": phase})
        assert str(told.value).startswith(text)
        assert (seen(optimizer), optimizer.phase) == before
        assert optimizer.state_dict()["phase"] == {"on_nonfinite": "skip"}


def test_a_hook_that_raises_after_loading_leaves_the_settings_of_before():
    optimizer = train(made(), 0, 2)
    saved = {**copy.deepcopy(optimizer.state_dict()), "phase": NEW}

    def fail(*_):
        assert optimizer.clip_norm == 0.5
        raise OSError

    optimizer.register_load_state_dict_post_hook(fail)
    with pytest.raises(OSError):  # noqa: PT011
        optimizer.load_state_dict(saved)
    assert (optimizer.clip_norm, optimizer.on_nonfinite) == (None, "propagate")
    assert "phase" not in optimizer.state_dict()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_have_what_was_given_and_what_was_set(copied):
    for optimizer, go_on, seen in zip(
        every_front_end(), (train, numpy_train), (everything, numpy_everything), strict=True
    ):
        optimizer.clip_norm = 0.5
        twin = copied(optimizer)
        assert twin.phase == optimizer.phase
        assert twin.state_dict()["phase"] == {"clip_norm": 0.5}
        if go_on is train:
            assert seen(go_on(twin, 2, 4)) == seen(go_on(optimizer, 2, 4))
        optimizer.clip_norm = 0.25
        assert twin.clip_norm == 0.5


@pytest.mark.parametrize("front_end", ["torch", "numpy"])
def test_a_file_has_what_was_set(tmp_path, front_end):
    path = tmp_path / "run.adamas"
    if front_end == "torch":
        optimizer, other = train(made(), 0, 2), made()
    else:
        optimizer, other = numpy_train(adamas.Adam(arrays()), 0, 2), adamas.Adam(arrays())
    adamas.save(path, optimizer)
    assert b"phase" not in path.read_bytes()
    adamas.load(path, other)
    assert (other.clip_norm, other.on_nonfinite) == (None, "propagate")
    for name, value in NEW.items():
        setattr(optimizer, name, value)
    adamas.save(path, optimizer)
    adamas.load(path, other)
    assert (other.clip_norm, other.on_nonfinite) == (0.5, "skip")
    assert other.state_dict()["phase"] == NEW


# ── in company ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("front_end", ["torch", "numpy"])
def test_settings_of_other_threads_wait_for_steps_and_none_is_lost(front_end):
    """Each step is with one setting or the other; both leave a weight that tells which."""
    if front_end == "torch":
        weights = nn.Parameter(torch.zeros(1))
        weights.grad = torch.full((1,), 4.0)
        optimizer = ours.SGD([weights], lr=1.0, clip_norm=1.0)
        step = optimizer.step
    else:
        weights = np.zeros(1)
        optimizer = adamas.Momentum(weights, lr=1.0, beta=0.0, clip_norm=1.0)
        step = lambda: optimizer.step(np.full(1, 4.0))  # noqa: E731
    failed = []

    def set_often():
        try:
            for i in range(200):
                optimizer.clip_norm = 1.0 if i % 2 else 2.0
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=set_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    moved = []
    while any(thread.is_alive() for thread in threads):
        before = float(weights[0])
        step()
        moved.append(before - float(weights[0]))
    assert not failed
    assert set(moved) <= {1.0, 2.0}
    assert optimizer.clip_norm == 1.0


def test_lightnings_wrapper_sets_what_steps():
    pytest.importorskip("lightning")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's own imports
        from lightning.pytorch.core.optimizer import LightningOptimizer
    optimizer = made()
    wrapped = LightningOptimizer(optimizer)
    assert isinstance(wrapped, ours.AdamW)
    wrapped.clip_norm = 0.5
    assert (optimizer.clip_norm, wrapped.clip_norm) == (0.5, 0.5)
    assert train(optimizer, 0, 1).gradient_norm is not None


class Wrapper:
    """Is of the class that it wraps, has copies of its attributes, and passes steps on."""

    def __init__(self, optimizer):
        own = {name: each for name, each in vars(optimizer).items() if name != "step"}
        self.__dict__.update(own)
        self.__class__ = type("Wrapped", (Wrapper, type(optimizer)), {})
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


@pytest.mark.parametrize("set_at", ["wrapper", "wrapped"])
def test_a_wrapper_of_the_same_class_shows_and_saves_what_its_optimizer_steps_with(set_at):
    optimizer = train(made(clip_norm=1.0), 0, 1)
    wrapped = Wrapper(optimizer)
    assert isinstance(wrapped, ours.AdamW)
    (wrapped if set_at == "wrapper" else optimizer).clip_norm = 0.5
    for each in (optimizer, wrapped, copy.deepcopy(wrapped)):
        assert each.clip_norm == 0.5
        assert each.phase.clip_norm == 0.5
        assert "clip_norm: 0.5" in repr(each)
        assert each.state_dict()["phase"] == {"clip_norm": 0.5}


def test_an_attribute_named_optimizer_is_no_wrapper():
    class Named(ours.AdamW):
        optimizer = "adamw"

    optimizer = train(Named(parameters(), lr=0.05), 0, 1)
    optimizer.clip_norm = 0.5
    assert (optimizer.clip_norm, optimizer.phase.clip_norm) == (0.5, 0.5)


def test_a_setting_before_the_optimizer_is_made_is_refused_with_a_way_out():
    class Early(ours.AdamW):
        def __init__(self, params, clip_norm):
            self.clip_norm = clip_norm
            super().__init__(params)

    with pytest.raises(AttributeError) as told:
        Early(parameters(), 1.0)
    assert str(told.value) == (
        "clip_norm is set before the optimizer is made. Call super().__init__() first, and give it "
        "clip_norm=."
    )


def test_help_says_what_each_attribute_of_the_phase_is():
    shown = {"clip_norm", "on_nonfinite", "ema", "seed", "phase", "engine"}
    for kind, names_ in ((adamas.Adam, shown), (ours.Adam, shown | {"copy_to", "offload"})):
        said = {name: getattr(kind, name).__doc__ for name in names_}
        assert said["clip_norm"].startswith("Most that the norm of all gradients may be")
        assert len({*said.values()}) == len(said)
        assert said.keys() == {name for name, text in said.items() if text.endswith(".")}


def test_an_optimizer_of_arrays_shows_its_engine_and_keeps_it():
    optimizer = adamas.AdamW(arrays(), engine="reference")
    assert optimizer.engine == copy.deepcopy(optimizer).engine == "reference"
    assert "engine='reference'" in repr(optimizer)
    assert "engine" not in repr(adamas.AdamW(arrays()))
    with pytest.raises(AttributeError, match=r"^engine cannot be set in a run\. Create"):
        optimizer.engine = "native"


@pytest.mark.parametrize("option", [{"clip_norm": 1.0}, {"ema": 0.9}, {"engine": "native"}])
def test_what_concerns_the_whole_step_is_no_option_of_a_group_of_arrays(option):
    (name,) = option
    optimizer = adamas.AdamW(arrays())
    with pytest.raises(TypeError) as told:
        optimizer.set_options(**option)
    assert str(told.value) == (
        f"set_options has {name}, which concerns the whole step. clip_norm and on_nonfinite are "
        "set at the optimizer: optimizer.clip_norm = 1.0."
    )
    with pytest.raises(TypeError) as told:
        adamas.AdamW([{"params": arrays(), **option}])
    assert str(told.value) == (
        f"params[0] has {name}, which concerns the whole step. Give it to the optimizer, not to a "
        "group."
    )


def test_what_is_put_into_a_group_in_a_run_is_no_setting():
    optimizer, plain = (train(made(clip_norm=1.0), 0, 2) for _ in range(2))
    optimizer.param_groups[0]["clip_norm"] = 0.5
    train(optimizer, 2, 4)
    assert optimizer.clip_norm == 1.0
    assert bits(params_of(optimizer)) == bits(params_of(train(plain, 2, 4)))
