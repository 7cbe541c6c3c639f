"""Steps as functions: torch's signatures, the bits of the classes, what is refused."""

from __future__ import annotations

import gc
import inspect
import itertools
import weakref

import pytest
import torch
from torch.optim import adam, adamw, nadam, radam, rmsprop, sgd

import adamas.torch
from adamas.torch import functional, lists

TORCHS = {
    "adam": adam.adam,
    "adamw": adamw.adamw,
    "nadam": nadam.nadam,
    "radam": radam.radam,
    "rmsprop": rmsprop.rmsprop,
    "sgd": sgd.sgd,
}
CLASSES = {
    "adam": adamas.torch.Adam,
    "adamw": adamas.torch.AdamW,
    "nadam": adamas.torch.NAdam,
    "radam": adamas.torch.RAdam,
    "rmsprop": adamas.torch.RMSprop,
    "sgd": adamas.torch.SGD,
}
#: The lists of a function, after parameters and gradients, by what the classes call the entries.
LISTS = {
    "adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"),
    "nadam": ("exp_avg", "exp_avg_sq", "mu_product", "step"),
    "radam": ("exp_avg", "exp_avg_sq", "step"),
    "rmsprop": ("square_avg", "grad_avg", "momentum_buffer", "step"),
    "sgd": ("momentum_buffer",),
}
#: Options of the function, apart from what differs in the class; the first is the usual one.
ADAM = {
    "amsgrad": False,
    "beta1": 0.9,
    "beta2": 0.98,
    "lr": 1e-2,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "maximize": False,
}
ADAMS = [
    ADAM,
    ADAM | {"weight_decay": 0.1, "maximize": True},
    ADAM | {"amsgrad": True, "eps": 1e-3},
    ADAM | {"lr": torch.tensor(0.02), "beta1": torch.tensor(0.8), "beta2": torch.tensor(0.95)},
]
_SHARED = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.0}
NADAM = _SHARED | {"beta1": 0.9, "beta2": 0.98, "momentum_decay": 4e-3}
RADAM = _SHARED | {"beta1": 0.9, "beta2": 0.98}
RMSPROP = _SHARED | {"alpha": 0.9, "momentum": 0, "centered": False}
SGD = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "dampening": 0.0, "nesterov": False}
SGD["maximize"] = False
OPTIONS = {
    "adam": [*ADAMS, ADAM | {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "adamw": ADAMS,
    "nadam": [
        NADAM,
        NADAM | {"weight_decay": 0.1, "maximize": True},
        NADAM | {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "radam": [RADAM, RADAM | {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "rmsprop": [
        RMSPROP,
        RMSPROP | {"weight_decay": 0.1, "maximize": True},
        RMSPROP | {"momentum": 0.9},
        RMSPROP | {"centered": True, "momentum": 0.5},
    ],
    "sgd": [
        SGD,
        SGD | {"nesterov": True, "weight_decay": 0.1},
        SGD | {"dampening": 0.5, "maximize": True},
        SGD | {"momentum": 0.0, "weight_decay": 0.1},
    ],
}
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
COMPLEX = [torch.complex64, torch.complex128]
CASES = [(name, i) for name in OPTIONS for i in range(len(OPTIONS[name]))]


@pytest.fixture(autouse=True)
def nothing_is_kept_by_others():
    lists.PREPARED.clear()


def drawn(dtype, seed=0, shapes=((7, 5), (33,), (), (0,), (1, 3, 2))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.complex128).to(dtype)
            if dtype.is_complex
            else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in shapes]  # fmt: skip


def optimizer_of(name, parameters, options):
    own = dict(options)
    if "beta1" in own:
        own["betas"] = (own.pop("beta1"), own.pop("beta2"))
    return CLASSES[name](parameters, **own)


def state_like(optimizer, parameters, name):
    """The lists of a function, of zeros, with the dtypes that the class keeps."""
    twin = type(optimizer)([p.detach().clone() for p in parameters])
    twin.param_groups[0].update(
        {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    )
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    twin.step()
    found = []
    for entry in LISTS[name]:
        states = [twin.state[p] for p in twin.param_groups[0]["params"]]
        kept = [state[entry] for state in states if entry in state]
        if name == "sgd":
            found.append([None] * len(parameters) if kept else [])
            continue
        fill = torch.ones_like if entry == "mu_product" else torch.zeros_like
        found.append([fill(each) for each in kept])
    return found


class Pair:
    """A class and a function that step copies of the same parameters."""

    def __init__(self, name, options, dtype):
        self.name, self.options = name, options
        self.by_class = [p.requires_grad_() for p in drawn(dtype)]
        self.parameters = [p.detach().clone() for p in self.by_class]
        self.optimizer = optimizer_of(name, self.by_class, options)
        self.kept = state_like(self.optimizer, self.parameters, name)

    def step(self, gradients, **more):
        for p, g in zip(self.by_class, gradients, strict=True):
            p.grad = g.clone()
        self.optimizer.step()
        called = getattr(functional, self.name)
        given = [g.clone() for g in gradients]
        called(self.parameters, given, *self.kept, **(self.options | more))
        return given

    def same(self):
        pairs = list(zip(self.by_class, self.parameters, strict=True))
        for entry, tensors in zip(LISTS[self.name], self.kept, strict=True):
            states = [self.optimizer.state[p] for p in self.by_class]
            pairs += [(state[entry], x) for state, x in zip(states, tensors, strict=bool(tensors))
                      if tensors]  # fmt: skip
        return all(bits(a) == bits(b) and a.dtype == b.dtype for a, b in pairs)


def bits(tensor):
    real = tensor.detach()
    real = torch.view_as_real(real) if real.is_complex() else real
    return real.contiguous().view(-1).view(torch.uint8).tolist()


def steps_are_alike(name, options, dtype, count):
    pair = Pair(name, options, dtype)
    for seed in range(count):
        pair.step(drawn(dtype, seed + 1))
        assert pair.same()


# ── signatures ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TORCHS)
def test_a_signature_is_torchs(name):
    def parts(function):
        parameters = inspect.signature(function).parameters.values()
        return [(each.name, each.kind, each.default) for each in parameters]

    assert parts(getattr(functional, name)) == parts(TORCHS[name])


def test_the_module_is_an_attribute_and_has_all():
    assert adamas.torch.functional is functional
    assert sorted(functional.__all__) == sorted(TORCHS)


# ── bits of the classes ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "i"), CASES)
def test_a_function_gives_the_bits_of_its_class(name, i):
    steps_are_alike(name, OPTIONS[name][i], torch.float32, 8)


@pytest.mark.parametrize("dtype", FLOATS[1:] + COMPLEX)
def test_every_dtype_has_the_bits_of_the_class(dtype):
    for name in TORCHS:
        steps_are_alike(name, OPTIONS[name][0], dtype, 2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
@pytest.mark.parametrize(("name", "i"), CASES)
def test_many_steps_have_the_bits_of_the_class(name, i, dtype):
    steps_are_alike(name, OPTIONS[name][i], dtype, 40)


@pytest.mark.parametrize("ways", [["foreach"], ["capturable"], ["has_complex"], ["fused"]])
def test_the_ways_of_torch_change_nothing(ways):
    pair = Pair("adamw", ADAM, torch.float32)
    for seed in range(2):
        pair.step(drawn(torch.float32, seed), **dict.fromkeys(ways, True))
    assert pair.same()


def test_options_may_change_from_step_to_step():
    pair = Pair("adamw", ADAM, torch.float32)
    for seed, changes in enumerate(
        [{}, {"lr": 0.5}, {"beta1": 0.5}, {"maximize": True}, {"weight_decay": 1}, {"eps": 0.0}]
    ):
        pair.options = pair.options | changes
        group = pair.optimizer.param_groups[0]
        own = {k: v for k, v in pair.options.items() if k in group}
        group.update(own, betas=(pair.options["beta1"], pair.options["beta2"]))
        pair.step(drawn(torch.float32, seed))
        assert pair.same()


def test_parameters_at_different_steps_have_their_own_numbers():
    for name in ("adam", "nadam"):
        pair = Pair(name, OPTIONS[name][0], torch.float32)
        for seed, chosen in enumerate([(0, 1, 2), (1, 2), (0, 1, 2), (2, 3, 4), (0, 1, 2, 3, 4)]):
            gradients = drawn(torch.float32, seed)
            for i, p in enumerate(pair.by_class):
                p.grad = gradients[i].clone() if i in chosen else None
            pair.optimizer.step()
            pick = [[x[i] for i in chosen] if x else [] for x in (pair.parameters, *pair.kept)]
            called = getattr(functional, name)
            called(pick[0], [gradients[i] for i in chosen], *pick[1:], **pair.options)
        assert pair.same()


def test_a_product_of_momenta_that_was_changed_between_steps_counts():
    def run(forgets):
        pair, gradients = Pair("nadam", NADAM, torch.float32), drawn(torch.float32, 1)
        pair.step(gradients)
        pair.kept[2][1].fill_(0.3)
        for _ in range(2):
            if forgets:
                lists.PREPARED.clear()
            functional.nadam(pair.parameters, gradients, *pair.kept, **NADAM)
        return [*map(bits, pair.parameters)]

    assert run(forgets=False) == run(forgets=True)


def test_parts_of_a_whole_are_stepped_as_the_whole_is():
    whole, gradient = torch.randn(64), torch.randn(64)
    split = whole.clone()
    functional.adamw([whole], [gradient], *zeros([whole]), **ADAM)
    parts = list(split.split([10, 0, 31, 23]))
    functional.adamw(parts, list(gradient.split([10, 0, 31, 23])), *zeros(parts), **ADAM)
    assert torch.equal(whole, split)


def zeros(parameters, dtype=None):
    means, squares = ([torch.zeros_like(p, dtype=dtype) for p in parameters] for _ in range(2))
    return means, squares, [], [torch.zeros(()) for _ in parameters]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_in_the_dtype_of_half_parameters_is_kept_in_place(dtype):
    p, g = torch.ones(40, dtype=dtype), torch.linspace(-2, 2, 40, dtype=dtype)
    kept = zeros([p])
    functional.adamw([p], [g], *kept, **ADAM)
    expected = torch.lerp(torch.zeros(40), g.float(), 0.1)
    assert torch.allclose(kept[0][0].float(), expected, rtol=2**-7)
    assert kept[0][0].dtype == dtype
    assert torch.equal(p < 1, g > 0)


def test_strided_tensors_and_counts_in_integers_are_stepped():
    wide, g = torch.randn(8, 6), torch.randn(4, 6)
    expected = [wide[::2].clone()]
    functional.adamw(expected, [g], *zeros(expected), **ADAM)
    kept = (*zeros([wide[::2]])[:3], [torch.zeros((), dtype=torch.int64)])
    functional.adamw([wide[::2]], [g], *kept, **ADAM)
    assert torch.equal(wide[::2], expected[0])
    assert kept[3][0].item() == 1


def test_sparse_gradients_are_taken_by_sgd():
    p, g = torch.ones(4, 2), torch.zeros(4, 2)
    g[2] = 1.0
    functional.sgd([p], [g.to_sparse()], [], **(SGD | {"momentum": 0.0, "lr": 0.5}))
    assert p.tolist() == [[1, 1], [1, 1], [0.5, 0.5], [1, 1]]


def test_distributed_tensors_are_stepped_as_plain_ones(tmp_path):
    dist = pytest.importorskip("torch.distributed", reason="this torch has no distributed")
    if not dist.is_available():
        pytest.skip("this torch has no distributed")
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain, gradient = torch.randn(6, 4), torch.randn(6, 4)
        p, g = (distribute_tensor(x.clone(), mesh, [Shard(0)]) for x in (plain, gradient))
        kept = zeros([p])
        for _ in range(2):
            functional.adamw([p], [g], *kept, **ADAM)
        local = zeros([plain])
        for _ in range(2):
            functional.adamw([plain], [gradient], *local, **ADAM)
        assert torch.equal(p.to_local(), plain)
        assert torch.equal(kept[0][0].to_local(), local[0][0])
        with pytest.raises(TypeError, match=r"exp_avgs\[0\] is a Tensor, but params\[0\] is a DT"):
            functional.adamw([p], [g], local[0], *kept[1:], **ADAM)
    finally:
        dist.destroy_process_group()


def test_buffers_that_are_none_are_put_into_the_list():
    parameters, buffers = [torch.ones(3), torch.ones(2)], [None, torch.full((2,), 2.0)]
    functional.sgd(parameters, [torch.ones(3), torch.ones(2)], buffers, **SGD)
    assert buffers[0].tolist() == [1, 1, 1]
    assert torch.equal(buffers[1], 0.9 * torch.full((2,), 2.0) + 1)


# ── a scaler's scale and verdict ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_scaled_gradients_are_taken_and_left_as_by_the_fused_class(name):
    pair = Pair(name, OPTIONS[name][0], torch.float32)
    scale = torch.tensor(1024.0)
    for seed in range(3):
        pair.optimizer.grad_scale, pair.optimizer.found_inf = scale, torch.tensor(0.0)
        given = pair.step(
            drawn(torch.float32, seed), grad_scale=scale, found_inf=torch.tensor([0.0]), fused=True
        )
        assert pair.same()
        assert all(torch.equal(p.grad, g) for p, g in zip(pair.by_class, given, strict=True))


@pytest.mark.parametrize("is_first", [True, False])
def test_nothing_changes_where_an_infinity_was_found(is_first):
    parameters, gradients = drawn(torch.float32), drawn(torch.float32, 1)
    kept = zeros(parameters)
    if not is_first:
        functional.adam(parameters, gradients, *kept, **ADAM)
    before = [*map(bits, itertools.chain(parameters, gradients, *kept))]
    scaled = {"grad_scale": torch.tensor(8.0), "found_inf": torch.tensor(1.0)}
    functional.adam(parameters, gradients, *kept, **ADAM, **scaled)
    assert [*map(bits, itertools.chain(parameters, gradients, *kept))] == before


# ── plans that are used again ──────────────────────────────────────────────────────────────────


@pytest.fixture
def looks(monkeypatch):
    """How many plans were made, in a list of one number."""
    counted = [0]

    class Counted(lists.Native):
        def __init__(self, *given):
            counted[0] += 1
            super().__init__(*given)

    monkeypatch.setattr(lists, "Native", Counted)
    return counted


@pytest.mark.parametrize("name", TORCHS)
def test_the_same_tensors_are_looked_at_once(name, looks):
    pair = Pair(name, OPTIONS[name][0], torch.float32)
    for seed in range(5):
        pair.step(drawn(torch.float32, seed))
    # Buffers of SGD begin with the first step.
    assert looks == [2 if name == "sgd" else 1]
    assert pair.same()


def test_views_that_are_made_anew_for_each_call_are_the_same_parameters(looks):
    p = torch.nn.Parameter(torch.ones(5))
    kept = zeros([p])
    for _ in range(3):
        functional.adamw([p.data], [torch.ones(5)], *kept, **ADAM)
    version = p._version
    functional.adamw([p], [torch.ones(5)], *kept, **ADAM)
    assert p._version > version
    assert looks == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda p, kept: setattr(p, "data", torch.full((2, 3), 4.0)),
        lambda p, kept: setattr(p, "data", p.data.t().contiguous().t()),
        lambda p, kept: setattr(kept[0][0], "data", torch.full((2, 3), 0.5)),
        lambda p, kept: setattr(kept[3][0], "data", torch.tensor(7.0)),
        lambda p, kept: kept[1].__setitem__(0, torch.full((2, 3), 0.25)),
        lambda p, kept: kept[3][0].add_(1),
    ],
)
def test_what_was_replaced_since_the_last_call_is_seen(change):
    def run(forgets):
        p, g = torch.arange(6.0).view(2, 3).clone(), torch.arange(6.0).view(2, 3) - 2
        kept = zeros([p])
        for _ in range(2):
            functional.adamw([p], [g], *kept, **ADAM)
        change(p, kept)
        if forgets:
            lists.PREPARED.clear()
        functional.adamw([p], [g], *kept, **ADAM)
        return [*map(bits, (p, *itertools.chain(*kept)))]

    assert run(forgets=False) == run(forgets=True)


def test_a_plan_goes_with_the_state_and_holds_no_gradient():
    p, g = torch.ones(5), torch.ones(5)
    kept = zeros([p])
    for _ in range(2):
        functional.adamw([p], [g], *kept, **ADAM)
    assert len(lists.PREPARED) == 1
    gone = weakref.ref(g)
    del g
    assert gone() is None
    gone = weakref.ref(kept[0][0])
    del kept
    gc.collect()
    assert gone() is None
    assert not lists.PREPARED


def test_parameters_can_be_swapped_after_a_call():
    p, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3))
    kept = zeros([p])
    for _ in range(2):
        functional.adamw([p], [torch.ones(3)], *kept, **ADAM)
    torch.utils.swap_tensors(p, other)
    functional.adamw([p], [torch.ones(3)], *kept, **ADAM)
    assert p.tolist() != [0, 0, 0]


def test_gradients_that_share_memory_are_read_as_they_were():
    for shared in (True, False):
        p = torch.arange(1.0, 5.0)
        kept = zeros([p])
        functional.adamw([p], [torch.ones(4)], *kept, **ADAM)
        functional.adamw([p], [p if shared else p.clone()], *kept, **ADAM)
        if shared:
            expected = p
    assert torch.equal(p, expected)


def test_a_compiled_training_step_calls_it():
    p, kept = torch.ones(4), zeros([torch.ones(4)])

    @torch.compile(backend="eager")
    def train(p, g):
        functional.adamw([p], [g * 2], *kept, **ADAM)
        return p.sum()

    train(p, torch.ones(4))
    expected = torch.ones(4)
    functional.adamw([expected], [torch.full((4,), 2.0)], *zeros([expected]), **ADAM)
    assert torch.equal(p, expected)


def test_it_steps_in_inference_mode_before_or_after_other_steps():
    p = torch.ones(4)
    kept = zeros([p])
    for count, is_inference in enumerate((True, False, True), start=1):
        with torch.inference_mode(is_inference):
            before = p.clone()
            functional.adamw([p], [torch.ones(4)], *kept, **ADAM)
            assert (p < before).all()
            assert kept[3][0].item() == count
    before = p.clone()
    with torch.inference_mode():
        own = torch.empty(0).set_(p)  # has no version
    functional.adamw([own], [torch.ones(4)], *kept, **ADAM)
    assert (p < before).all()
    assert kept[3][0].item() == 4


@pytest.mark.parametrize("view", [torch._neg_view, lambda p: p.view(torch.int32)])
def test_a_view_that_reads_a_parameter_otherwise_is_refused(view):
    p = torch.ones(4)
    kept = zeros([p])
    functional.adamw([p], [torch.ones(4)], *kept, **ADAM)
    with pytest.raises(
        TypeError, match=r"params\[0\] (is a .* negated view|has dtype torch.int32)"
    ):
        functional.adamw([view(p)], [torch.ones(4)], *kept, **ADAM)


def test_a_count_that_two_parameters_share_counts_both():
    shared, apart = ([torch.ones(4), torch.ones(3)] for _ in range(2))
    count = torch.zeros(())
    gradients = [torch.ones(4), torch.ones(3)]
    functional.adamw(shared, gradients, *zeros(shared)[:3], [count] * 2, **ADAM)
    steps = [torch.tensor(0.0), torch.tensor(1.0)]
    functional.adamw(apart, gradients, *zeros(apart)[:3], steps, **ADAM)
    assert [*map(bits, shared)] == [*map(bits, apart)]
    assert count.item() == 2


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def refusal(index, change):
    """Return what changes the arguments of a call: list ``index``, as ``change`` says."""

    def changed(given, options):
        given[index] = change(given[index])

    return changed


def last(tensor):
    return lambda tensors: [*tensors[:-1], tensor]


def option(**changes):
    return lambda given, options: options.update(changes)


PARAMS, GRADS, MEANS, SQUARES, LARGEST, STEPS = range(6)
REFUSED = [
    (refusal(GRADS, lambda x: x[:1]), ValueError, r"grads has 1 tensors, but params has 2"),
    (refusal(STEPS, lambda x: []), ValueError, r"state_steps has 0 tensors, but params has 2"),
    (refusal(MEANS, lambda x: x[0]), TypeError, r"exp_avgs is a Tensor, but it must be a list"),
    (refusal(GRADS, last(None)), TypeError, r"grads\[1\] is None, .* Leave parameters without"),
    (refusal(SQUARES, last(1.0)), TypeError, r"exp_avg_sqs\[1\] is a float, but .* a tensor"),
    (refusal(PARAMS, last(torch.ones(3, dtype=torch.int64))), TypeError, r"params\[1\] has dtype"),
    (refusal(PARAMS, last(torch.ones(1).expand(3))), ValueError, r"params\[1\] is expanded"),
    (refusal(GRADS, last(torch.ones(4))), ValueError, r"of params\[1\] has shape \(4,\)"),
    (refusal(GRADS, last(torch.ones(3).double())), TypeError, "has dtype torch.float64"),
    (refusal(GRADS, last(torch.ones(3).bfloat16())), TypeError, "has dtype torch.bfloat16"),
    (refusal(GRADS, last(torch.ones(3).to_sparse())), RuntimeError, r"sparse.*\[1\]"),
    (refusal(GRADS, last(torch.ones(3, device="meta"))), ValueError, r"params\[1\] is on meta"),
    (refusal(MEANS, last(torch.ones(4))), ValueError, r"exp_avgs\[1\] has shape \(4,\)"),
    (refusal(MEANS, last(torch.ones(3).double())), TypeError, r"exp_avgs\[1\] has dtype .*may be"),
    (refusal(MEANS, last(torch.ones(3, device="meta"))), ValueError, r"exp_avgs\[1\] is on meta"),
    (refusal(MEANS, last(torch.ones(3).to_sparse())), TypeError, r"exp_avgs\[1\] has layout"),
    (refusal(STEPS, last(torch.ones(3))), ValueError, r"state_steps\[1\] has shape \(3,\)"),
    (refusal(STEPS, last(torch.tensor(-1.0))), ValueError, r"state_steps\[1\] is -1.0, but it"),
    (refusal(STEPS, last(torch.tensor(0.5))), ValueError, r"state_steps\[1\] is 0.5, but it"),
    (refusal(STEPS, last(torch.tensor(2.0**24))), ValueError, r"counts no further than 2\*\*24"),
    (refusal(STEPS, last(torch.tensor(0.0).half())), TypeError, r"\[1\] has dtype torch.float16"),
    (option(beta1=1.0), ValueError, "adamw: Invalid beta parameter at index 0: 1.0, but a decay"),
    (option(lr=-1.0), ValueError, "adamw: Invalid learning rate: -1.0, but it must be at least 0"),
    (option(lr=torch.ones(2)), ValueError, r"lr is a tensor of shape \(2,\)"),
    (option(beta2=torch.ones(2)), ValueError, r"beta2 is a tensor of shape \(2,\)"),
    (option(amsgrad=True), ValueError, "max_exp_avg_sqs has 0 tensors, but params has 2"),
    (option(differentiable=True), ValueError, "differentiable=True asks for a step that autograd"),
    (option(maximize="no"), TypeError, "adamw: maximize"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), REFUSED)
def test_what_cannot_be_stepped_is_refused_before_anything_is_touched(change, error, text):
    parameters = [torch.ones(2, 2), torch.ones(3)]
    kept = zeros(parameters)
    given = [parameters, [torch.ones(2, 2), torch.ones(3)], *kept]
    for _ in range(2):  # at first sight, and where a plan is there
        everything = [*itertools.chain(*given)]
        before = [*map(bits, everything)]
        wrong, options = list(given), dict(ADAM)
        change(wrong, options)
        with pytest.raises(error, match=text):
            functional.adamw(*wrong, **options)
        assert [*map(bits, everything)] == before
        functional.adamw(*given, **ADAM)
    assert kept[3][0].item() == 2


def test_none_in_a_tuple_of_buffers_is_refused():
    with pytest.raises(TypeError, match="momentum_buffer_list is a tuple with None in it"):
        functional.sgd([torch.ones(2)], [torch.ones(2)], (None,), **SGD)


def test_decay_of_sparse_gradients_is_refused():
    options = SGD | {"momentum": 0.0, "weight_decay": 0.1}
    with pytest.raises(RuntimeError, match=r"d_p_list\[0\] is sparse, but weight_decay is 0.1"):
        functional.sgd([torch.ones(2)], [torch.ones(2).to_sparse()], [], **options)


def test_no_parameters_are_no_step():
    functional.adamw([], [], [], [], [], [], **ADAM)
    functional.sgd([], [], [], **SGD)
