"""adamas.torch in place of torch.optim: its results but for rounding, its state, its tensors."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import adamas
import adamas.torch as ours
from adamas.torch.plan import Plan
from tests.support.copied import left_by_steps
from tests.support.planned import plans_made
from tests.support.small_model import NAMES, VARIANTS, backward, model, same, train, values


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_training_is_torchs_but_for_rounding(name, options, dtype):
    """Ten steps from one start, on gradients that each run takes itself.

    A step of either differs from the exact one by a few units of the last place of the update and
    of the parameter. Ten such steps, fed back through a smooth loss, stay within a hundred of them.
    An update of RMSprop with a fresh square is up to 1/√(1-α) = 10 learning rates.
    """
    mine, theirs = model(dtype=dtype), model(dtype=dtype)
    options = {**options, "lr": options.get("lr", 0.01)}
    train(mine, getattr(ours, name)(mine.parameters(), **options))
    train(theirs, getattr(torch.optim, name)(theirs.parameters(), **options))
    bound = 100 * torch.finfo(dtype).eps * (10 * float(options["lr"]) + 1)
    for a, b in zip(values(mine), values(theirs), strict=True):
        assert (a - b).abs().max() <= bound
    assert not same(values(mine), values(model(dtype=dtype)))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_state_and_groups_are_those_of_torch(name, options):
    mine, theirs = model(), model()
    optimizer = getattr(ours, name)(mine.parameters(), **options)
    other = getattr(torch.optim, name)(theirs.parameters(), **options)
    train(mine, optimizer)
    train(theirs, other)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(optimizer).__name__ == type(other).__name__
    a, b = optimizer.state_dict(), other.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for i, entries in b["state"].items():
        assert a["state"][i].keys() == entries.keys()
        for key, entry in entries.items():
            found = a["state"][i][key]
            assert (found.shape, found.dtype, found.device) == (
                entry.shape, entry.dtype, entry.device,
            )  # fmt: skip


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("direction", ["to ours", "to theirs"])
def test_checkpoints_go_both_ways_and_training_goes_on(name, options, direction):
    first, second = (torch.optim, ours) if direction == "to ours" else (ours, torch.optim)
    net, unbroken = model(), model()
    before = getattr(first, name)(net.parameters(), **options)
    train(net, before, range(5))
    stored = io.BytesIO()
    torch.save(before.state_dict(), stored)
    stored.seek(0)
    after = getattr(second, name)(net.parameters(), **options)
    after.load_state_dict(torch.load(stored, weights_only=True))
    train(net, after, range(5, 10))
    train(unbroken, getattr(torch.optim, name)(unbroken.parameters(), **options))
    for a, b in zip(values(net), values(unbroken), strict=True):
        assert (a - b).abs().max() <= 200 * torch.finfo(torch.float32).eps


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_resumed_training_gives_the_bits_of_the_unbroken_one(name, options, how):
    phase = {} if options.get("centered") else {"ema": 0.9}
    net = model()
    unbroken = getattr(ours, name)(net.parameters(), **options, **phase)
    train(net, unbroken, range(10))
    expected = values(net)
    net = model()
    first = getattr(ours, name)(net.parameters(), **options, **phase)
    train(net, first, range(5))
    if how == "state_dict":
        second = getattr(ours, name)(net.parameters(), **options, **phase)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    elif how == "pickle":
        net, second = pickle.loads(pickle.dumps((net, first)))
    else:
        net, second = copy.deepcopy((net, first))
    train(net, second, range(5, 10))
    assert same(values(net), expected)


@pytest.mark.parametrize(("name", "options"), VARIANTS[:5])
def test_a_step_has_the_bits_of_the_numpy_front_end(name, options):
    net = model()
    flat = [p.detach().numpy().copy() for p in net.parameters()]
    names = {"decoupled_weight_decay": "decay"}
    translated = {names.get(key, key): value for key, value in options.items()}
    if "decay" in translated:
        translated["decay"] = "decoupled"
    if "lr" in translated:
        translated["lr"] = float(translated["lr"])
    twin = getattr(adamas, name)(flat, **translated)
    optimizer = getattr(ours, name)(net.parameters(), **options)
    for step in range(5):
        backward(net, step)
        gradients = [p.grad.numpy().copy() for p in net.parameters()]
        optimizer.step()
        twin.step(gradients)
    for p, expected in zip(net.parameters(), flat, strict=True):
        assert p.detach().numpy().tobytes() == expected.tobytes()


def through_operations(net):
    """Make the native engine refuse the parameters: other strides, same values."""
    for p in net.parameters():
        wide = torch.zeros(*p.shape, 2, dtype=p.dtype)
        wide[..., 0] = p.detach()
        p.data = wide[..., 0]
    return net


PHASE = {"clip_norm": 0.05, "ema": 0.9, "statistics": True, "copy_to": torch.bfloat16}


@pytest.mark.parametrize("phase", [{}, PHASE])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_operations_give_the_bits_of_the_native_engine(name, phase, dtype):
    nets = [model(dtype=dtype), through_operations(model(dtype=dtype))]
    optimizers = [
        getattr(ours, name)(net.parameters(), lr=0.01, weight_decay=0.01, **phase) for net in nets
    ]
    for step in range(4):
        backward(nets[0], step)
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            q.grad = p.grad.clone()  # the model's own would differ, by the order in its products
        for optimizer in optimizers:
            optimizer.step()
    names = [f"0.{i}" for i in range(4)]
    assert optimizers[0].routes() == dict.fromkeys(names, "native")
    assert optimizers[1].routes() == dict.fromkeys(names, "torch")
    assert same(values(nets[0]), values(nets[1]))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        a, b = (o.state[x] for o, x in zip(optimizers, (p, q), strict=True))
        assert a.keys() == b.keys()
        assert same(a.values(), b.values())
    if phase:
        assert optimizers[0].statistics() == optimizers[1].statistics()
        assert optimizers[0].gradient_norm == optimizers[1].gradient_norm
        assert same(*(left_by_steps(each) for each in optimizers))


def test_the_native_engine_answers_where_it_can(monkeypatch):
    net = model()
    optimizer = ours.Adam(net.parameters())
    with plans_made() as plans:
        train(net, optimizer, range(2))
    assert optimizer.routes() == {f"0.{i}": "native" for i in range(4)}
    assert [plan.native.is_fast for plan in plans] == [True]
    monkeypatch.setattr(Plan, "step", lambda *_: pytest.fail("it went the long way"))
    train(net, optimizer, range(2, 4))


def test_without_the_exchange_api_addresses_come_from_data_ptr(monkeypatch):
    nets = [model(), model()]
    plain = ours.Adam(nets[0].parameters())
    older = ours.Adam(nets[1].parameters())
    with plans_made() as plans:
        train(nets[0], plain, range(3))
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
        train(nets[1], older, range(3))
    assert [plan.native.is_fast for plan in plans] == [True, False]
    assert same(values(nets[0]), values(nets[1]))


# ── kinds of tensors ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "SGD"])
def test_other_dtypes_train_as_in_torch(name, dtype):
    """In half precision torch rounds after every operation, we once: within a few units of p's."""
    torch.manual_seed(0)
    start = torch.randn(50, dtype=dtype)
    mine, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    options = {"momentum": 0.9} if name == "SGD" else {}
    pairs = [(mine, getattr(ours, name)([mine], lr=0.05, **options)),
             (theirs, getattr(torch.optim, name)([theirs], lr=0.05, **options))]  # fmt: skip
    for step in range(5):
        gradient = torch.randn(50, dtype=dtype, generator=torch.Generator().manual_seed(step))
        for p, optimizer in pairs:
            p.grad = gradient.clone()
            optimizer.step()
    real = torch.view_as_real if dtype.is_complex else (lambda x: x)
    bound = 40 * torch.finfo(dtype).eps
    assert (real(mine.detach()) - real(theirs.detach())).abs().max() <= bound
    assert not torch.equal(mine.detach(), start)


LAYOUTS = {
    "channels_last": lambda x: x.clone().to(memory_format=torch.channels_last),
    "transposed": lambda x: x.clone().transpose(1, 2).contiguous().transpose(1, 2),
    "part of another": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_parameters_and_gradients_are_stepped_with_the_same_bits(layout):
    values_, *gradients = torch.randn(4, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    plain = nn.Parameter(values_.clone())
    strided = nn.Parameter(LAYOUTS[layout](values_))
    assert strided.stride() != plain.stride()
    place = strided.data_ptr()
    optimizers = [ours.AdamW([plain]), ours.AdamW([strided])]
    for gradient in gradients:
        plain.grad = gradient.clone()
        strided.grad = LAYOUTS[layout](gradient)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, strided)
    assert strided.data_ptr() == place


def test_empty_and_0_dim_tensors_are_stepped():
    parameters = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))]
    optimizer = ours.Adam(parameters, lr=0.5)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step()
    assert parameters[0].item() == pytest.approx(0.0, abs=1e-6)
    assert optimizer.state[parameters[1]]["step"] == 2


def test_parameters_that_share_storage_are_stepped_one_after_another():
    whole = torch.zeros(6)
    parameters = [nn.Parameter(whole[:4]), nn.Parameter(whole[2:])]
    for p in parameters:
        p.grad = torch.ones_like(p)
    ours.SGD(parameters, lr=1.0).step()
    assert whole.tolist() == [-1, -1, -2, -2, -1, -1]


def test_sparse_gradients_are_refused_before_anything_changes():
    dense, sparse = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    dense.grad, sparse.grad = torch.ones(3), torch.ones(3).to_sparse()
    optimizer = ours.Adam([dense, sparse])
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients, please"):
        optimizer.step()
    assert dense.tolist() == [1, 1, 1]
    assert not optimizer.state


def test_gradients_are_not_written_and_autograd_learns_of_the_change():
    net = model()
    optimizer = ours.AdamW(net.parameters(), clip_norm=0.01, maximize=True)
    for step in range(2):
        backward(net, step)
        gradients = [p.grad.clone() for p in net.parameters()]
        versions = [p._version for p in net.parameters()]
        addresses = [p.data_ptr() for p in net.parameters()]
        optimizer.step()
        assert same(gradients, [p.grad for p in net.parameters()])
        assert all(p._version > v for p, v in zip(net.parameters(), versions, strict=True))
        assert [p.data_ptr() for p in net.parameters()] == addresses


@pytest.mark.parametrize("way", ["of C++", "of Python"])
def test_a_native_step_raises_the_version_of_each_parameter_by_one(way, monkeypatch):
    if way == "of Python":  # as with an older PyTorch
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    net = model()
    optimizer = ours.AdamW(net.parameters())
    for step in range(3):
        backward(net, step)
        versions = [p._version + 1 for p in net.parameters()]
        optimizer.step()
        assert [p._version for p in net.parameters()] == versions
    assert {*optimizer.routes().values()} == {"native"}


def test_a_step_of_parameters_made_in_inference_mode_counts_the_changes_of_the_others():
    with torch.inference_mode():
        frozen = nn.Parameter(torch.ones(3))
    trained = nn.Parameter(torch.ones(3))
    optimizer = ours.AdamW([trained, frozen])
    for _ in range(3):
        for p in (trained, frozen):
            p.grad = torch.ones(3)
        version = trained._version
        optimizer.step()
        assert trained._version > version
        assert same([trained], [frozen])
