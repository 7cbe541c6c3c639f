"""What is seen of an optimizer's phase; what was set in a run is saved, loaded and copied."""

from __future__ import annotations

import copy
import io
import json
import pickle

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


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    before = np.seterr(all="ignore")  # Triton's interpreter computes with NumPy
    take_route(request.param, monkeypatch)
    yield request.param
    np.seterr(**before)


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
    ([], TypeError, "'phase' to load is a list, but it must be a dict of clip_norm, cl"),
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
