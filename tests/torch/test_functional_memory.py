"""Steps as functions: memory that is shared, and what changes wrongly after a plan was made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from adamas.torch import functional, lists

ADAM = {"amsgrad": False, "beta1": 0.9, "beta2": 0.98, "lr": 1e-2}
ADAM |= {"weight_decay": 0.0, "eps": 1e-8, "maximize": False}
NADAM = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.0}
NADAM |= {"beta1": 0.9, "beta2": 0.98, "momentum_decay": 4e-3}
SCALED = {"grad_scale": torch.tensor(8.0), "found_inf": torch.tensor(0.0)}


def zeros(parameters):
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    return means, squares, [], [torch.zeros(()) for _ in parameters]


def bits(tensors):
    return [x.detach().contiguous().view(-1).view(torch.uint8).tolist() for x in tensors]


def stepped(parameters, is_first):
    """Return the state of parameters, which have a plan unless this is the first step."""
    kept = zeros(parameters)
    if not is_first:
        functional.adamw(parameters, [torch.ones_like(p) for p in parameters], *kept, **ADAM)
    return kept


def is_refused(error, text, call, tensors):
    """Whether a call is refused with nothing touched."""
    before = bits(tensors)
    with pytest.raises(error, match=text):
        call()
    return bits(tensors) == before


# ── gradients that are left divided by the scale ───────────────────────────────────────────────


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.full((3, 8), 8.0)[:, ::2],
        lambda: torch.full((3, 4), -8j).conj().imag,
        lambda: torch.full((4, 3), 8.0).t(),
    ],
    ids=["strided", "negated", "transposed"],
)
def test_gradients_of_any_layout_are_left_divided_by_the_scale(make, is_first):
    p, g = torch.ones(3, 4), make()
    functional.adamw([p], [g], *stepped([p], is_first), **ADAM, **SCALED)
    assert torch.equal(g, torch.ones(3, 4))


def test_sparse_and_conjugated_gradients_are_left_divided_by_the_scale():
    sparse = torch.full((4, 2), 8.0).to_sparse()
    options = {"lr": 0.5, "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0}
    p, options = torch.ones(4, 2), options | {"nesterov": False, "maximize": False}
    functional.sgd([p], [sparse], [], **options, **SCALED)
    assert torch.equal(sparse.to_dense(), torch.ones(4, 2))
    lazy = torch.full((3,), 8 + 8j).conj()
    p = torch.ones(3, dtype=lazy.dtype)
    functional.adamw([p], [lazy], *zeros([p]), **ADAM, **SCALED)
    assert lazy.tolist() == [1 - 1j] * 3


@pytest.mark.parametrize("is_first", [True, False])
def test_gradients_that_overlap_are_divided_once(is_first):
    flat, parameters = torch.full((6,), 8.0), [torch.ones(4), torch.ones(4)]
    kept = stepped(parameters, is_first)
    functional.adamw(parameters, [flat[:4], flat[2:]], *kept, **ADAM, **SCALED)
    assert flat.tolist() == [1] * 6
    assert torch.equal(*parameters)


@pytest.mark.parametrize("is_first", [True, False])
def test_gradients_that_cannot_be_left_divided_are_refused(is_first):
    p = torch.ones(4)
    kept = stepped([p], is_first)
    with torch.inference_mode():
        sealed = torch.full((4,), 8.0)
    for g, text in [
        (p[:], r"grads\[0\] shares memory with what is stepped, .* by grad_scale"),
        (kept[0][0], r"grads\[0\] shares memory"),
        (sealed, r"grads\[0\] is an inference tensor, so"),
        (torch.ones(1).expand(4), r"The gradient of params\[0\] is expanded"),
    ]:
        everything = [p, g, *itertools.chain(*kept)]

        def call(g=g):
            functional.adamw([p], [g], *kept, **ADAM, **SCALED)

        assert is_refused(ValueError, text, call, everything)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_scale_or_verdict_that_is_no_number_is_refused(name):
    for wrong, error in [("8", TypeError), (torch.ones(2), ValueError), ([8.0], TypeError)]:
        p = torch.ones(4)
        with pytest.raises(error, match=f"{name} is a .*, but it must be"):
            functional.adamw([p], [torch.ones(4)], *zeros([p]), **ADAM, **{name: wrong})
        assert p.tolist() == [1] * 4


# ── what is wrong once a plan is there ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("product", [-1.0, 2.0, float("nan")])
def test_a_product_of_decay_rates_out_of_range_is_refused_later_too(product, count):
    parameters = [torch.ones(4) for _ in range(count)]
    means, squares, _, steps = zeros(parameters)
    kept = means, squares, [torch.ones(()) for _ in parameters], steps

    def call():
        functional.nadam(parameters, [torch.ones(4)] * count, *kept, **NADAM)

    call()
    for each in kept[2]:
        each.fill_(product)
    everything = [*parameters, *itertools.chain(*kept)]
    assert is_refused(
        ValueError, r"mu_products\[0\] is .*, but it must be from 0", call, everything
    )


@pytest.mark.parametrize("done", [-1.0, -2.0, 0.5, float("nan"), 2.0**24])
def test_a_count_that_no_step_leaves_is_refused_later_too(done):
    parameters = [torch.ones(4), torch.ones(3)]
    kept = stepped(parameters, is_first=False)
    kept[3][1].fill_(done)

    def call():
        functional.adamw(parameters, [torch.ones(4), torch.ones(3)], *kept, **ADAM)

    text = r"state_steps\[1\] is .*, but"
    assert is_refused(ValueError, text, call, [*parameters, *itertools.chain(*kept)])


@pytest.mark.parametrize("change", [lambda x: x.resize_(2), lambda x: x.t_()])
def test_state_whose_shape_changed_in_its_memory_is_refused(change):
    p = torch.ones(2, 3)
    kept = stepped([p], is_first=False)
    change(kept[1][0])
    with pytest.raises(ValueError, match=r"exp_avg_sqs\[0\] has shape .*, but params\[0\] has"):
        functional.adamw([p], [torch.ones(2, 3)], *kept, **ADAM)
    assert kept[3][0].item() == 1


def test_an_option_that_is_an_array_is_refused_later_too():
    p = torch.ones(4)
    kept = stepped([p], is_first=False)
    with pytest.raises(TypeError, match=r"betas\[0\] is array"):
        functional.adamw([p], [torch.ones(4)], *kept, **ADAM | {"beta1": np.array([0.9, 0.8])})


@pytest.mark.parametrize("is_first", [True, False])
def test_a_count_whose_memory_was_freed_is_refused(is_first):
    p = torch.ones(4)
    kept = stepped([p], is_first)
    kept[3][0].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"state_steps\[0\] has shape \(\), but .* was freed"):
        functional.adamw([p], [torch.ones(4)], *kept, **ADAM)


@pytest.mark.parametrize("is_parameter", [True, False])
def test_one_memory_for_two_entries_is_refused(is_parameter):
    p, one = torch.ones(4), torch.zeros(4)
    means = [p if is_parameter else one]
    text = r"\[0\] and (exp_avgs|params)\[0\] are in the same memory"
    with pytest.raises(ValueError, match=text):
        functional.adamw([p], [torch.ones(4)], means, [one], [], [torch.zeros(())], **ADAM)
    assert p.tolist() == [1] * 4


# ── state of another dtype ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept_in", [torch.float32, torch.bfloat16, torch.float16])
def test_state_of_any_dtype_up_to_float32_is_stored_as_it_is(dtype, kept_in):
    p = torch.ones(5, dtype=dtype)
    means, squares = ([torch.zeros(5, dtype=kept_in)] for _ in range(2))
    lists.PREPARED.clear()
    g = torch.linspace(-1, 2, 5).to(dtype)
    steps = [torch.zeros(())]
    for _ in range(2):
        functional.adamw([p], [g], means, squares, [], steps, **ADAM)
        assert torch.equal(p < 1, g > 0)
    first = (0.1 * g.double()).float().to(kept_in)
    assert means[0].dtype == squares[0].dtype == kept_in
    assert torch.allclose(means[0].double(), 1.9 * first.double(), rtol=2**-6)
    is_native = kept_in == torch.float32 or kept_in == dtype == torch.bfloat16
    assert bool(lists.PREPARED) is is_native
