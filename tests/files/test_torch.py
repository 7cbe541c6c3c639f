"""Checkpoints of torch's tensors: every class, every form of state, to the bit or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import adamas
from adamas import torch as ours
from tests.files.test_damage import OTHERS, header_of, places_in, put_header, with_other

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16


def parameters(dtypes=(FLOAT,)):
    """Return named parameters of several shapes; one is never given a gradient."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"wide/weight": (5, 33), "empty": (0,), "scalar": (), "never": (3,)}
    return [
        (f"{name}.{i}", torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
        for i, dtype in enumerate(dtypes)
        for name, shape in shapes.items()
    ]


def advance(named, optimizer, first, last, *, skips=False):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for name, p in named:
            gradient = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if name.startswith("never") else gradient
        if step == 2 and skips:
            named[0][1].grad[0, 0] = float("nan")
        optimizer.step()


def bits(tensor):
    host = tensor.detach().cpu().contiguous().reshape(-1)
    data = host.view(torch.uint8).numpy().tobytes() if host.numel() else b""
    return str(tensor.dtype), tuple(tensor.shape), data


def plain(value):
    if isinstance(value, torch.Tensor):
        return bits(value)
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def everything(optimizer):
    """All that a run consists of, as values that can be compared."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return plain(
        {
            "parameters": own,
            "state": [dict(optimizer.state.get(p, {})) for p in own],
            "groups": groups,
            "skipped": getattr(optimizer, "skipped", None),
            "copies": list(getattr(optimizer, "copies", ())),
        }
    )


CASES = {
    "Adam": (ours.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "Adam, amsgrad": (ours.Adam, {"amsgrad": True, "maximize": True}),
    "Adam, tensor lr": (ours.Adam, {"lr": torch.tensor(0.01), "betas": (0.8, 0.99)}),
    "AdamW": (ours.AdamW, {"lr": 0.1 + 0.2, "clip_norm": 1.0, "on_nonfinite": "skip"}),
    "AdamW, ema": (ours.AdamW, {"ema": 0.9, "on_nonfinite": "skip"}),
    "AdamW, copies": (ours.AdamW, {"copy_to": BF16}),
    "NAdam": (ours.NAdam, {"momentum_decay": 0.01}),
    "NAdam, ema": (ours.NAdam, {"ema": 0.9, "state": "8bit"}),
    "RAdam": (ours.RAdam, {"decoupled_weight_decay": True, "ema": 0.9}),
    "RMSprop": (ours.RMSprop, {"alpha": 0.9}),
    "RMSprop, momentum": (ours.RMSprop, {"momentum": 0.9, "centered": True}),
    "SGD": (ours.SGD, {"lr": 0.1}),
    "SGD, momentum": (ours.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "ema": 0.5}),
    "SGD, small": (ours.SGD, {"lr": 0.1, "momentum": 0.9, "state": "bfloat16", "seed": 5}),
    "compact": (ours.AdamW, {"state": "compact", "seed": 7, "ema": 0.9}),
    "8bit": (ours.AdamW, {"state": "8bit", "seed": 7}),
    "bfloat16": (ours.Adam, {"state": "bfloat16"}),
    "pair": (ours.Adam, {"state": ("8bit", "float32"), "amsgrad": True}),
    "RMSprop, small": (ours.RMSprop, {"state": "8bit"}),
    **{
        f"torch, {name}": (getattr(torch.optim, name), options)
        for name, options in {
            "Adam": {"amsgrad": True},
            "AdamW": {},
            "NAdam": {},
            "RMSprop": {"momentum": 0.9, "centered": True},
            "SGD": {"momentum": 0.9, "lr": 0.1},
            "Adagrad": {},
            "RAdam": {},
        }.items()
    },
}
HALVES = {
    "nearest": (ours.AdamW, {"rounding": "nearest"}),
    "stochastic": (ours.AdamW, {"rounding": "stochastic", "state": "compact", "seed": 3}),
    "remainder": (ours.AdamW, {"rounding": "remainder", "state": "8bit", "ema": 0.9}),
    "remainder8": (ours.Adam, {"rounding": "remainder8", "state": "bfloat16"}),
    "SGD": (ours.SGD, {"rounding": "remainder", "momentum": 0.9, "lr": 0.1}),
    "RMSprop": (ours.RMSprop, {"rounding": "remainder"}),
}
RUNS = [
    *((name, method, options, (FLOAT,)) for name, (method, options) in CASES.items()),
    *((f"{name}, half", method, options, (BF16,)) for name, (method, options) in HALVES.items()),
    ("mixed", ours.AdamW, {"ema": 0.9}, (FLOAT, BF16, HALF, torch.float64)),
]


@pytest.mark.parametrize(
    ("method", "options", "dtypes"), [each[1:] for each in RUNS], ids=[each[0] for each in RUNS]
)
def test_a_run_resumed_from_a_file_gives_the_bits_of_the_unbroken_run(
    tmp_path, method, options, dtypes
):
    skips = options.get("on_nonfinite") == "skip"
    named = parameters(dtypes)
    unbroken = method(named, **options)
    advance(named, unbroken, 0, 8, skips=skips)
    assert getattr(unbroken, "skipped", 0) == skips
    named = parameters(dtypes)
    first = method(named, **options)
    advance(named, first, 0, 4, skips=skips)
    adamas.save(tmp_path / "run", first)
    named = parameters(dtypes)
    second = method(named, **options)
    with torch.no_grad():
        for _, p in named:
            p.fill_(7)
    adamas.load(tmp_path / "run", second)
    assert everything(second) == everything(first)
    advance(named, second, 4, 8)
    assert everything(second) == everything(unbroken)


def saved(tmp_path, method=ours.AdamW, dtypes=(FLOAT,), **options):
    named = parameters(dtypes)
    optimizer = method(named, **options)
    advance(named, optimizer, 0, 2)
    adamas.save(tmp_path / "run", optimizer)
    return tmp_path / "run", optimizer


def test_other_programs_can_read_the_tensors_under_their_names(tmp_path):
    path, optimizer = saved(tmp_path, dtypes=(BF16,))
    tensors = load_file(path)
    p = optimizer.param_groups[0]["params"][0]
    assert bits(tensors["parameters/wide/weight.0"]) == bits(p)
    assert bits(tensors["state/wide/weight.0/exp_avg"]) == bits(optimizer.state[p]["exp_avg"])
    assert bits(tensors["state/wide/weight.0/step"]) == bits(optimizer.state[p]["step"])


def test_small_states_are_as_small_in_the_file(tmp_path):
    p = torch.nn.Parameter(torch.ones(100_000))
    optimizer = ours.AdamW([p], state="8bit")
    p.grad = torch.ones_like(p)
    optimizer.step()
    adamas.save(tmp_path / "run", optimizer)
    assert (tmp_path / "run").stat().st_size < 6.1 * p.numel()


def test_parameters_without_names_have_those_of_their_places(tmp_path):
    groups = [{"params": [torch.ones(2)], "lr": 0.5}, {"params": [torch.ones(3), torch.ones(4)]}]
    optimizer = ours.SGD(groups, lr=0.1)
    adamas.save(tmp_path / "run", optimizer)
    names = {name for name in load_file(tmp_path / "run") if name.startswith("parameters/")}
    assert names == {"parameters/0.0", "parameters/1.0", "parameters/1.1"}


def test_options_come_back_as_they_were(tmp_path):
    def made():
        groups = [
            {"params": [torch.ones(2)], "lr": torch.tensor(0.25, dtype=torch.float64)},
            {"params": [torch.ones(3)], "tag": "norm", "more": {"a": [1, (2.5, None)]}},
        ]
        return ours.Adam(groups, betas=(torch.tensor(0.5), torch.tensor(0.75)), capturable=True)

    optimizer = made()
    optimizer.param_groups[0]["pair"] = (torch.tensor(3, dtype=torch.int32), 1)
    optimizer.param_groups[1]["lr"] = np.float32(0.1)
    optimizer.param_groups[1]["initial_lr"] = 0.3
    adamas.save(tmp_path / "run", optimizer)
    other = made()
    other.param_groups[1]["more"] = None
    adamas.load(tmp_path / "run", other)
    first, second = other.param_groups
    assert bits(first["lr"]) == bits(torch.tensor(0.25, dtype=torch.float64))
    assert isinstance(first["betas"], tuple)
    assert bits(first["pair"][0]) == bits(torch.tensor(3, dtype=torch.int32))
    assert second["lr"] == float(np.float32(0.1))
    assert (second["initial_lr"], second["tag"]) == (0.3, "norm")
    assert second["more"] == {"a": [1, (2.5, None)]}


def test_a_strided_parameter_is_saved_by_its_values(tmp_path):
    def made():
        values = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
        p = torch.nn.Parameter(values.to(memory_format=torch.channels_last))
        return p, ours.AdamW([p], lr=0.1)

    p, optimizer = made()
    p.grad = torch.ones_like(p)
    optimizer.step()
    adamas.save(tmp_path / "run", optimizer)
    again, other = made()
    adamas.load(tmp_path / "run", other)
    assert other.state[again]["exp_avg"].stride() == again.stride() == p.stride()
    for each, o in ((p, optimizer), (again, other)):
        each.grad = each.detach().clone()
        o.step()
    assert bits(again) == bits(p)


def test_copies_are_of_the_loaded_parameters_also_where_they_are_frozen(tmp_path):
    path, _ = saved(tmp_path)
    named = parameters()
    for _, p in named:
        torch.nn.init.zeros_(p)
    named[0][1].requires_grad_(False)
    optimizer = ours.AdamW(named, copy_to=BF16)
    adamas.load(path, optimizer)
    for copy, (_, p) in zip(optimizer.copies, named, strict=True):
        assert bits(copy) == bits(p.to(BF16))


# ── between classes ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "second"),
    [(ours.AdamW, torch.optim.AdamW), (torch.optim.AdamW, ours.AdamW)],
)
def test_adamas_and_torch_read_files_of_the_class_of_the_same_name(tmp_path, first, second):
    path, optimizer = saved(tmp_path, first)
    named = parameters()
    other = second(named)
    adamas.load(path, other)
    one, two = everything(optimizer), everything(other)
    assert one["parameters"] == two["parameters"]
    assert one["state"] == two["state"]


@pytest.mark.parametrize("options", [{"state": "8bit"}, {"ema": 0.9}, {"rounding": "remainder"}])
def test_state_that_only_adamas_keeps_is_not_given_to_torch(tmp_path, options):
    path, _ = saved(tmp_path, dtypes=(BF16,), **options)
    refused(
        path, torch.optim.AdamW(parameters((BF16,))), ValueError, "that only adamas.torch keeps"
    )


def test_how_state_is_stored_stays_that_of_the_optimizer_that_loads(tmp_path):
    path, optimizer = saved(tmp_path, state="8bit")
    other = ours.AdamW(parameters())
    adamas.load(path, other)
    mine, theirs = (o.state_dict()["state"] for o in (optimizer, other))
    assert plain(mine) == plain(theirs)
    assert other.state[other.param_groups[0]["params"][0]]["exp_avg"].dtype == FLOAT


class Around(torch.optim.Optimizer):
    """What frameworks put around an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_what_frameworks_put_around_an_optimizer_is_looked_through(tmp_path):
    path, optimizer = saved(tmp_path, state="8bit", ema=0.9)
    content = path.read_bytes()
    adamas.save(path, Around(Around(optimizer)))
    assert path.read_bytes() == content
    other = ours.AdamW(parameters(), state="8bit", ema=0.9)
    adamas.load(path, Around(other))
    assert everything(other) == everything(optimizer)


# ── what does not fit ──────────────────────────────────────────────────────────────────────────


def refused(path, optimizer, error, message):
    before = everything(optimizer)
    with pytest.raises(error, match=message) as caught:
        adamas.load(path, optimizer)
    assert str(path) in str(caught.value)
    assert everything(optimizer) == before


def test_another_class_is_refused(tmp_path):
    path, _ = saved(tmp_path)
    for other in (ours.Adam(parameters()), ours.SGD(parameters())):
        refused(path, other, ValueError, "holds the state of AdamW of torch's tensors, but")


def test_files_of_numpy_and_of_torch_are_not_taken_for_each_other(tmp_path):
    path, optimizer = saved(tmp_path)
    arrays = adamas.AdamW([np.ones(3)])
    with pytest.raises(ValueError, match=r"AdamW of torch's tensors, but .* is AdamW of Nu"):
        adamas.load(path, arrays)
    adamas.save(path, arrays)
    refused(path, optimizer, ValueError, "AdamW of NumPy's arrays, but the optimizer is AdamW of t")


def test_parameters_of_other_names_shapes_and_dtypes_are_refused(tmp_path):
    path, _ = saved(tmp_path)
    named = parameters()
    refused(path, ours.AdamW([p for _, p in named]), KeyError, r"Names are those of named_param")
    refused(path, ours.AdamW(named[:2]), KeyError, "the optimizer has wide/weight.0, empty.0")
    swapped = [named[1], named[0], *named[2:]]
    refused(path, ours.AdamW(swapped), ValueError, "the same groups in the same order")
    groups = [{"params": named[:2]}, {"params": named[2:]}]
    refused(path, ours.AdamW(groups), ValueError, "has 1 groups, but the optimizer has 2")
    other = [(name, torch.nn.Parameter(p.detach()[..., None])) for name, p in named]
    refused(path, ours.AdamW(other), ValueError, r"wide/weight.0 of shape \(5, 33\) and dtype")
    other = [(name, torch.nn.Parameter(p.detach().double())) for name, p in named]
    refused(path, ours.AdamW(other), ValueError, "the parameter has shape .* torch.float64")


def half_put(targets, interrupt):
    """Return a ``copy_`` that is interrupted once, at the second of ``targets``."""
    copy_, found = torch.Tensor.copy_, []

    def wrapped(target, *arguments):
        if any(target is each for each in targets):
            found.append(target)
            if len(found) == 2:
                raise interrupt.pop()
        return copy_(target, *arguments)

    return wrapped


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("where", ["parameters", "hooks"])
def test_an_interrupt_while_loading_leaves_all_as_it_was(tmp_path, monkeypatch, interrupt, where):
    path, _ = saved(tmp_path)
    optimizer = ours.AdamW(parameters(), lr=0.5, copy_to=HALF)
    advance(list(zip("abcd", optimizer.param_groups[0]["params"], strict=True)), optimizer, 3, 4)
    before, left = everything(optimizer), [interrupt]
    if where == "hooks":
        optimizer.register_load_state_dict_post_hook(lambda _: (_ for _ in ()).throw(left.pop()))
    else:
        monkeypatch.setattr(
            torch.Tensor, "copy_", half_put(optimizer.param_groups[0]["params"], left)
        )
    with pytest.raises(interrupt):
        adamas.load(path, optimizer)
    monkeypatch.undo()
    assert everything(optimizer) == before
    assert not left


def test_a_change_of_any_byte_of_an_array_is_refused_by_name(tmp_path):
    path, optimizer = saved(tmp_path, dtypes=(BF16,), state="8bit", rounding="remainder")
    content = path.read_bytes()
    header, data = header_of(path)
    start = len(content) - len(data)
    del header["__metadata__"]
    before = everything(optimizer)
    for name, described in header.items():
        for place in range(*described["data_offsets"]):
            spoiled = bytearray(content)
            spoiled[start + place] ^= 1 << place % 8
            path.write_bytes(spoiled)
            with pytest.raises(ValueError, match="has the checksum") as caught:
                adamas.load(path, optimizer)
            assert f"damaged: {name} has" in str(caught.value)
    assert everything(optimizer) == before


def test_values_of_other_types_anywhere_are_refused_with_the_name_of_the_file(tmp_path):
    path, optimizer = saved(tmp_path, lr=torch.tensor(0.5), state="8bit")
    before, content = everything(optimizer), path.read_bytes()
    whole, data = header_of(path)
    about = json.loads(whole["__metadata__"]["adamas"])
    del whole["__metadata__"]["checksum"]
    deep = json.loads("[" * 400 + "]" * 400)
    for way in places_in(about):
        for other in (*OTHERS, {"tensor": "no/such"}, {"tuple": [0.5, "x"]}, {"list": deep}):
            if not way or "checksums" in way:
                continue
            changed = with_other(about, way, other)
            if json.dumps(changed) == json.dumps(about):
                continue
            whole["__metadata__"] = {"adamas": json.dumps(changed)}
            put_header(path, whole, data)
            try:
                adamas.load(path, optimizer)
            except (KeyError, ValueError) as error:
                told = str(error)
            else:  # another option, which a file may have
                told = str(path)
                taken = ("groups", "skipped", "on_device", "others", "packed_state")
                assert way[0] in taken, (way, other)
                path.write_bytes(content)
                adamas.load(path, optimizer)
            assert str(path) in told, (way, other)
            assert everything(optimizer) == before, (way, other)


# ── what cannot be saved ───────────────────────────────────────────────────────────────────────


def test_what_a_file_cannot_hold_is_refused_before_a_file_is_there(tmp_path):
    def with_option(**options):
        optimizer = ours.SGD([torch.ones(2)], lr=0.1)
        optimizer.param_groups[0].update(options)
        return optimizer

    stray = ours.SGD([torch.ones(2)], lr=0.1)
    stray.state["notes"] = {"a": 1}
    twins = ours.SGD([{"params": [("a", torch.ones(2))]}, {"params": [("a", torch.ones(2))]}], lr=1)
    sparse = with_option(mask=torch.ones(2, 2).to_sparse())
    wide = with_option(x=torch.ones(1, dtype=torch.complex128))
    for optimizer, error, message in (
        (with_option(schedule=len), TypeError, "groups/0/schedule is a builtin_fun"),
        (wide, TypeError, "which safetensors lacks"),
        (with_option(x=torch.ones(1, device="meta")), TypeError, "Tensor on meta"),
        (sparse, TypeError, "with layout torch.sparse_coo, but a checkpoint holds plain tensors"),
        (stray, TypeError, "The state has 'notes', which belongs to no parameter"),
        (twins, ValueError, "Two parameters have the name a"),
    ):
        with pytest.raises(error, match=message):
            adamas.save(tmp_path / "run", optimizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [adamas.save, adamas.load])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.nn.Linear(1, 1), "optimizer is a Linear, .* Give the optimizer of the model"),
        (
            {"state": {}, "param_groups": []},
            "optimizer is a dict, .* Give the optimizer itself, not",
        ),
        (({"count": 1}, None), r"optimizer is a tuple, .* pytree: save it with its parameters by"),
        (
            None,
            "optimizer is None, but a checkpoint is of an optimizer: one of",
        ),
    ],
)
def test_what_is_no_optimizer_is_refused_with_what_is_possible(tmp_path, function, given, message):
    with pytest.raises(TypeError, match=message):
        function(tmp_path / "run", given)
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_jax_is_refused_with_what_is_possible(tmp_path):
    jax = pytest.importorskip("jax", reason="JAX is not there for every Python")

    @jax.tree_util.register_pytree_node_class
    class TrainState:
        def tree_flatten(self):
            return (jax.numpy.ones(2),), None

        @classmethod
        def tree_unflatten(cls, *_):
            return cls()

    with pytest.raises(TypeError, match=r"is a TrainState, .* is a pytree: save it with its par"):
        adamas.save(tmp_path / "run", TrainState())


def test_tensors_that_are_spread_over_processes_are_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    path, _ = saved(tmp_path)
    content = path.read_bytes()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        spread = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        optimizer = ours.AdamW([("a", spread)])
        for function in (adamas.save, adamas.load):
            with pytest.raises(TypeError, match=r"sharded over processes \(DTensor\), but .* Use"):
                function(path, optimizer)
    finally:
        dist.destroy_process_group()
    assert path.read_bytes() == content


def test_averaged_weights_are_neither_saved_nor_loaded_over(tmp_path):
    path, optimizer = saved(tmp_path, ema=0.5)
    content, before = path.read_bytes(), everything(optimizer)
    with optimizer.ema_weights():
        with pytest.raises(RuntimeError, match="so a checkpoint would hold them twice and lose"):
            adamas.save(path, optimizer)
        with pytest.raises(RuntimeError, match="swapped in, so what is loaded would be undone"):
            adamas.load(path, optimizer)
    assert everything(optimizer) == before
    assert path.read_bytes() == content


def test_saving_arrays_imports_no_torch(tmp_path):
    program = """
import sys, numpy, adamas
optimizer = adamas.Adam(numpy.ones(3))
adamas.save(sys.argv[1], optimizer)
adamas.load(sys.argv[1], optimizer)
assert "torch" not in sys.modules and "adamas.torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, tmp_path / "run"], check=True, env=environment)


def test_one_element_with_wide_strides_is_saved(tmp_path):
    """Though torch calls it contiguous, it refuses to view it as bytes."""
    parameter = torch.nn.Parameter(torch.arange(6.0)[1:2].as_strided((1,), (3,), 4))
    optimizer = ours.AdamW([parameter])
    parameter.grad = torch.ones(1)
    optimizer.step()
    before = parameter.item()
    adamas.save(tmp_path / "run.safetensors", optimizer)
    with torch.no_grad():
        parameter.zero_()
    adamas.load(tmp_path / "run.safetensors", optimizer)
    assert parameter.item() == before != 0


def test_an_empty_parameter_that_was_saved_can_be_given_room(tmp_path):
    p = torch.nn.Parameter(torch.ones(2, 0))
    optimizer = ours.Adam([p])
    adamas.save(tmp_path / "run.safetensors", optimizer)
    assert p.untyped_storage().resizable()
