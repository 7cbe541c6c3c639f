"""The phase of an optimizer is seen at it, and clip_norm and on_nonfinite are set between steps."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest

import adamas

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from tests.support.settings import (  # noqa: E402
    METHODS,
    NEW,
    ROUTES,
    arrays,
    bits,
    every_front_end,
    everything,
    made,
    numpy_everything,
    numpy_train,
    parameters,
    params_of,
    take_route,
    train,
)

#: What is wrong, and the text of it; the constructor says the same.
WRONG = [
    ("clip_norm", 0, ValueError, "clip_norm is 0, which would erase every gradient."),
    (
        "clip_norm",
        -1.0,
        ValueError,
        "clip_norm is -1.0, but it must be finite and above 0, or None for no clipping.",
    ),
    ("clip_norm", float("inf"), ValueError, "clip_norm is inf, but it must be finite"),
    ("clip_norm", "1", TypeError, "clip_norm is '1', but it must be a number. It is text: give"),
    ("clip_norm", True, TypeError, "clip_norm is True, but it must be a number."),
    (
        "clip_update",
        0,
        ValueError,
        "clip_update is 0, which would let no parameter move. Give how ",
    ),
    (
        "clip_update",
        -1,
        ValueError,
        "clip_update is -1.0, but it must be finite and above 0, such",
    ),
    ("clip_update", "1", TypeError, "clip_update is '1', but it must be a number. It is text: "),
    (
        "on_nonfinite",
        "ignore",
        ValueError,
        'on_nonfinite is \'ignore\', but it must be one of "propagate", "skip", "raise".',
    ),
    ("on_nonfinite", None, ValueError, "on_nonfinite is None, but it must be one of"),
]
NOT_SET = ("ema", "seed", "track_changes")


def names(pairs):
    return [f"{name}={value!r}" for name, value, *_ in pairs]


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    before = np.seterr(all="ignore")  # Triton's interpreter computes with NumPy
    take_route(request.param, monkeypatch)
    yield request.param
    np.seterr(**before)


# ── a setting is that of the next step ─────────────────────────────────────────────────────────


@pytest.mark.quick_cases(10)
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


@pytest.mark.quick_cases(4)
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
    ("name", "value"),
    [("ema", 0.9), ("seed", 1), ("statistics", True), ("track_changes", True), ("skip_window", 64)],
)
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


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("clip_norm", "Set it to None, as it is where none is given."),
        ("on_nonfinite", "Set it to 'propagate', as it is where none is given."),
        ("ema", "Create another optimizer with ema= and load the state_dict() of this one."),
        (
            "statistics",
            "Create another optimizer with statistics= and load the state_dict() of this one.",
        ),
        (
            "phase",
            "Set its options one by one (clip_norm, clip_update, on_nonfinite and skip_above), or "
            "create another optimizer.",
        ),
    ],
)
def test_no_option_can_be_deleted(name, way_out):
    for optimizer in every_front_end():
        before = repr(optimizer)
        with pytest.raises(AttributeError) as told:
            delattr(optimizer, name)
        assert str(told.value) == f"{name} cannot be deleted in a run. {way_out}"
        assert repr(optimizer) == before


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
            "phase cannot be set in a run. Set its options one by one (clip_norm, clip_update, "
            "on_nonfinite and skip_above), or create another optimizer."
        )


def test_nothing_is_set_while_a_snapshot_is_open():
    for optimizer in every_front_end():
        with (
            optimizer.snapshot(),
            pytest.raises(RuntimeError, match="in the midst of another call"),
        ):
            optimizer.clip_norm = 0.5
        assert optimizer.clip_norm is None


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
        before = weights[0].item()
        step()
        moved.append(before - weights[0].item())
    assert not failed
    assert set(moved) <= {1.0, 2.0}
    assert optimizer.clip_norm == 1.0


@pytest.mark.slow
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
    shown = {"clip_norm", "on_nonfinite", "ema", "seed", "track_changes", "phase", "engine"}
    for kind, names_ in ((adamas.Adam, shown), (ours.Adam, shown | {"copy_to", "offload"})):
        said = {name: getattr(kind, name).__doc__ for name in names_}
        assert said["clip_norm"].startswith("Largest global norm of the gradients")
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
        f"set_options has {name}, which concerns the whole step. clip_norm, clip_update, "
        "on_nonfinite and skip_above are set at the optimizer: optimizer.clip_norm = 1.0."
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
