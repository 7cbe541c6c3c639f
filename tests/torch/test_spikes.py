"""``skip_above`` in optimizers of tensors: all ways to step judge alike, and the window goes on."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

import adamas
from adamas import spikes

torch = pytest.importorskip("torch")
from tests.support.settings import (  # noqa: E402
    METHODS,
    ROUTES,
    bits,
    everything,
    made,
    params_of,
    take_route,
)

ABOVE = {"skip_above": 3.0, "skip_window": 6}
#: How large gradients are: the window fills, leaps, takes a level up, and rolls over; 0 is none.
SIZES = [1.0, 1.2, 0.9, 1.1, 40.0, 1.0, 0.0, 7.0, 6.0, 6.5, 6.2, 6.1, 6.3, 6.4, 90.0, 6.0]


#: Its interpreter takes its time; the quick tests step so in `test_one_window_…`.
BY_TRITON = pytest.param("device", marks=pytest.mark.slow)


@pytest.fixture(params=[BY_TRITON if name == "device" else name for name in ROUTES])
def route(request, monkeypatch):
    before = np.seterr(all="ignore")  # Triton's interpreter computes with NumPy
    take_route(request.param, monkeypatch)
    yield request.param
    np.seterr(**before)


def sizes_on(route):
    """Fewer where the interpreter of Triton steps."""
    return SIZES[:8] if route == "device" else SIZES


def give(optimizer, step, size):
    generator = torch.Generator().manual_seed(step)
    for p in params_of(optimizer):
        gradient = torch.randn(p.shape, generator=generator) * size
        p.grad = gradient.to(p.device, p.dtype)


def watched(optimizer, sizes=SIZES, first=0):
    """Step along gradients of these sizes; return which steps were left out."""
    left_out = []
    for step, size in enumerate(sizes, first):
        give(optimizer, step, size)
        before = optimizer.skipped.spikes
        optimizer.step()
        left_out.append(optimizer.skipped.spikes > before)
    return left_out


def test_every_route_leaves_out_what_the_definition_does_and_keeps_its_window(route):
    optimizer = made(route=route, **ABOVE)
    window = spikes.created(6)
    found = []
    for step, size in enumerate(sizes_on(route)):
        give(optimizer, step, size)
        before = bits([params_of(optimizer), *optimizer.state.values(), optimizer.copies])
        optimizer.step()
        norm = optimizer.gradient_norm
        found.append(spikes.is_spike(window, norm, 3.0))
        window = spikes.entered(window, norm, is_left_out=found[-1])
        after = bits([params_of(optimizer), *optimizer.state.values(), optimizer.copies])
        assert (before == after) == found[-1] or size == 0, step
        assert optimizer.skipped.spikes == sum(found)
        assert optimizer.state_dict().get("spikes") == spikes.saved(window)["spikes"]
    # A level that stays is taken up: some of its first steps go, the others do not.
    assert found[4]
    assert not any(found[:4])
    assert route == "device" or (found[14] and not any(found[9:14]))
    assert repr(optimizer.skipped) == f"Skipped(nonfinite=0, spikes={sum(found)})"


def test_a_run_with_leaps_is_the_run_in_which_those_steps_were_not_asked_for(route):
    options = {"clip_norm": 2.0} | ({} if "ema" in ROUTES[route][2] else {"ema": 0.9})
    one = made(route=route, **ABOVE, **options)
    other = made(route=route, **options)
    sizes = sizes_on(route)
    left_out = watched(one, sizes)
    for step, size in enumerate(sizes):
        if not left_out[step]:
            give(other, step, size)
            other.step()
    assert bits(params_of(one)) == bits(params_of(other))
    assert bits([*one.state.values()]) == bits([*other.state.values()])
    assert bits(one.copies) == bits(other.copies)
    watched(unguarded := made(route=route, **options), sizes)
    assert bits(params_of(unguarded)) != bits(params_of(other))


def test_a_step_that_is_left_out_marks_nothing(route):
    optimizer = made(route=route, track_changes=True, **ABOVE)
    watched(optimizer, SIZES[:4])
    assert list(optimizer.changes())
    assert watched(optimizer, SIZES[4:5], 4) == [True]
    assert list(optimizer.changes()) == []
    watched(optimizer, SIZES[5:6], 5)
    assert list(optimizer.changes())


@pytest.mark.parametrize("kind", METHODS)
def test_methods_count_no_step_that_is_left_out(kind):
    one, other = made(kind, **ABOVE), made(kind)
    left_out = watched(one)
    assert any(left_out)
    for step, size in enumerate(SIZES):
        if not left_out[step]:
            give(other, step, size)
            other.step()
    assert bits(params_of(one)) == bits(params_of(other))
    assert bits([*one.state.values()]) == bits([*other.state.values()])


@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("name", ["native", "operations", BY_TRITON])
def test_what_is_not_finite_goes_by_its_own_option_and_never_enters(name, policy, monkeypatch):
    take_route(name, monkeypatch)
    with np.errstate(all="ignore"):
        optimizer = made(route=name, on_nonfinite=policy, **ABOVE)
        watched(optimizer, SIZES[:4])
        before = bits(optimizer.state_dict()["spikes"])
        weights = bits(params_of(optimizer))
        give(optimizer, 4, 1.0)
        params_of(optimizer)[1].grad[3] = float("inf")
        if policy == "raise":
            with pytest.raises(FloatingPointError, match="Gradients are NaN or infinite"):
                optimizer.step()
        else:
            optimizer.step()
        assert bits(optimizer.state_dict()["spikes"]) == before
        assert (bits(params_of(optimizer)) == weights) == (policy != "propagate")
        assert repr(optimizer.skipped) == f"Skipped(nonfinite={int(policy == 'skip')}, spikes=0)"
        assert optimizer.skipped == int(policy == "skip")
        if policy != "propagate":  # else weights are no numbers any more, and gradients still are
            assert watched(optimizer, [40.0], 5) == [True]
            assert optimizer.skipped == optimizer.skipped.nonfinite + 1


@pytest.mark.parametrize("name", ["native", BY_TRITON])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_scalers_scale_is_undone_and_its_overflows_are_no_norms(name, clip_norm, monkeypatch):
    """With clip_norm we unscale, without it the scaler does."""
    take_route(name, monkeypatch)
    with np.errstate(all="ignore"):
        one, other = (made(route=name, clip_norm=clip_norm, **ABOVE) for _ in range(2))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        left_out = []
        for step, size in enumerate(SIZES[:7]):
            scale = scaler.get_scale()
            give(one, step, size)
            give(other, step, size)
            for p in params_of(one):
                p.grad *= scale
            scaler.scale(torch.zeros(()))
            if step == 5:
                params_of(one)[0].grad[0, 0] = float("inf")
            before = one.skipped.spikes
            scaler.step(one)
            scaler.update()
            if step != 5:
                other.step()
            left_out.append(one.skipped.spikes > before)
        assert left_out[4]
        assert bits(params_of(one)) == bits(params_of(other))
        assert bits(one.state_dict()["spikes"]) == bits(other.state_dict()["spikes"])
        assert one.skipped.nonfinite == 0


def test_steps_without_a_gradient_judge_nothing():
    optimizer = made(**ABOVE)
    watched(optimizer, SIZES[:4])
    before = bits(optimizer.state_dict()["spikes"])
    for p in params_of(optimizer):
        p.grad = None
    for _ in range(5):
        optimizer.step()
    assert bits(optimizer.state_dict()["spikes"]) == before
    assert watched(optimizer, [40.0], 4) == [True]


def test_one_window_goes_on_through_every_plan(monkeypatch):
    """Native, mixed, on a device and back, with other options of the phase between."""
    judge = made("AdamW", "operations", **ABOVE)
    optimizer = made("AdamW", "native", **ABOVE)
    expected = watched(judge)
    found = watched(optimizer, SIZES[:3])
    optimizer.clip_norm = 1e9
    found += watched(optimizer, SIZES[3:5], 3)
    optimizer.on_nonfinite = "skip"
    optimizer.clip_norm = None
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        take_route("device", patch)
        optimizer.load_state_dict(optimizer.state_dict())  # so that it is planned anew
        found += watched(optimizer, SIZES[5:6], 5)
        assert set(optimizer.routes().values()) == {"triton"}
    optimizer.load_state_dict(optimizer.state_dict())
    found += watched(optimizer, SIZES[6:10], 6)
    params_of(optimizer)[0].data = params_of(optimizer)[0].data.T.contiguous().T
    found += watched(optimizer, SIZES[10:], 10)
    assert found == expected
    assert "torch" in optimizer.routes().values()


def test_skip_above_is_set_between_steps_and_travels():
    optimizer = made(skip_window=6)
    assert watched(optimizer, SIZES[:6]) == [False] * 6
    assert "spikes" not in optimizer.state_dict()
    optimizer.skip_above = 3.0
    assert watched(optimizer, SIZES[:5])[-1]
    assert optimizer.state_dict()["phase"] == {"skip_above": 3.0}
    optimizer.skip_above = None
    assert not any(watched(optimizer, [500.0], 9))
    optimizer.skip_above = 3.0
    assert watched(optimizer, [500.0], 9) == [True]
    with pytest.raises(ValueError, match="skip_above is 0, which would leave out every gradient"):
        optimizer.skip_above = 0
    with pytest.raises(AttributeError, match="skip_window cannot be set in a run"):
        optimizer.skip_window = 12


# ── saving and loading ─────────────────────────────────────────────────────────────────────────


def through_a_file(optimizer, tmp_path):
    other = made(**ABOVE)
    adamas.save(tmp_path / "run.safetensors", optimizer)
    adamas.load(tmp_path / "run.safetensors", other)
    return other


def through_torch_save(optimizer, packed=False):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(packed=packed), file)
    file.seek(0)
    other = made(**ABOVE)
    with torch.no_grad():
        for p, q in zip(params_of(other), params_of(optimizer), strict=True):
            p.copy_(q)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


WAYS = {
    "adamas.save": through_a_file,
    "torch.save": lambda optimizer, _: through_torch_save(optimizer),
    "packed": lambda optimizer, _: through_torch_save(optimizer, packed=True),
    "pickle": lambda optimizer, _: pickle.loads(pickle.dumps(optimizer)),
    "deepcopy": lambda optimizer, _: copy.deepcopy(optimizer),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_with_its_window_and_counts(way, tmp_path):
    unbroken = made(**ABOVE)
    expected = watched(unbroken)
    first = made(**ABOVE)
    found = watched(first, SIZES[:10])
    second = WAYS[way](first, tmp_path)
    found += watched(second, SIZES[10:], 10)
    assert found == expected
    assert everything(second) == everything(unbroken)
    assert repr(second.skipped) == repr(unbroken.skipped)
    assert first.skipped.spikes == sum(expected[:10])  # and has a window of its own


def test_what_was_skipped_is_saved_and_loaded_by_torch_as_other_counts_are():
    file = io.BytesIO()
    torch.save({"skipped": adamas.Skipped(nonfinite=1, spikes=2)}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["skipped"]
    assert repr(loaded) == "Skipped(nonfinite=1, spikes=2)"


def test_torchs_optimizers_load_what_has_a_window_and_the_other_way_round():
    optimizer = made(**ABOVE)
    watched(optimizer)
    saved = optimizer.state_dict()
    theirs = torch.optim.AdamW([p.detach().clone() for p in params_of(optimizer)])
    theirs.load_state_dict(saved)
    count = optimizer.skipped.spikes
    optimizer.load_state_dict(theirs.state_dict())  # of a run that has no window
    assert "spikes" not in optimizer.state_dict()
    assert optimizer.skipped.spikes == count
    assert watched(optimizer, [1.0, 1.1, 900.0]) == [False] * 3  # which begins anew


def test_distributed_checkpoints_leave_the_window_out_unless_it_is_given_back():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    def model_of(optimizer):
        model = torch.nn.Module()
        for i, p in enumerate(params_of(optimizer)):
            model.register_parameter(f"p{i}", p)
        return model

    unbroken, first = made(**ABOVE), made(**ABOVE)
    expected = watched(unbroken)
    found = watched(first, SIZES[:10])
    saved = get_optimizer_state_dict(model_of(first), first)
    weights = [p.detach().clone() for p in params_of(first)]
    for gives_back in (False, True):
        second = made(**ABOVE)
        with torch.no_grad():
            for p, q in zip(params_of(second), weights, strict=True):
                p.copy_(q)
        model = model_of(second)
        set_optimizer_state_dict(model, second, copy.deepcopy(saved))
        assert "spikes" not in second.state_dict()
        if gives_back:
            window = first.state_dict()["spikes"]
            second.load_state_dict({**second.state_dict(), "spikes": window})
            assert found + watched(second, SIZES[10:], 10) == expected
            assert bits(params_of(second)) == bits(params_of(unbroken))
            assert repr(second.skipped) == repr(unbroken.skipped)


def test_a_window_of_another_size_keeps_its_newest_norms():
    optimizer = made(**ABOVE)
    watched(optimizer)
    saved = optimizer.state_dict()
    for size, kept in ((4, 4), (6, 6), (32, 6)):
        other = made(skip_above=3.0, skip_window=size)
        other.load_state_dict(saved)
        found = other.state_dict()["spikes"]
        assert bits(found["norms"]) == bits(saved["spikes"]["norms"][-kept:])
        assert found["skipped"] == saved["spikes"]["skipped"]
        assert watched(other, [500.0], 20) == [kept >= size // 2]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ([], TypeError, "'spikes' to load is a list, but it must be a dict of norms, count, skip"),
        ({"norms": [1.0], "count": 1}, KeyError, "'spikes' to load has no 'skipped'"),
        ({"norm": [1.0]}, TypeError, "'spikes' to load has the unknown option 'norm'. Did you"),
        ({"norms": [0.0], "count": 1, "skipped": 0}, ValueError, "norms has others than finite"),
        ({"norms": 1.0, "count": 1, "skipped": 0}, TypeError, "norms is a float, but it must be"),
        ({"norms": [1.0], "count": 0, "skipped": 0}, ValueError, "count is 0, but it must be a"),
        ({"norms": [1.0], "count": 1, "skipped": 2}, ValueError, "skipped is 2, but it must be"),
    ],
)
def test_a_window_that_no_run_leaves_is_refused_and_nothing_changes(given, error, text):
    optimizer = made(**ABOVE)
    watched(optimizer, SIZES[:6])
    before = everything(optimizer)
    with pytest.raises(error) as told:
        optimizer.load_state_dict({**optimizer.state_dict(), "spikes": given})
    assert text in str(told.value)
    assert everything(optimizer) == before
