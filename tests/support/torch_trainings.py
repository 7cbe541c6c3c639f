"""Trainings of the cases of ``torch_cases``, and the digests of all that they leave."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import pickle
import re
import tempfile
import traceback
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import adamas
import adamas.torch as ours
from tests.support.torch_cases import (
    DTYPES,
    OPTIONS,
    PHASES,
    ROUNDINGS,
    SHAPES,
    STATES,
    Case,
    words,
)

__all__ = ["ASPECTS", "Training", "as_text", "said", "tensor_of"]

INSIDE = Path(adamas.__file__).parent

#: What is digested of each case, in the order in which it stands in the file.
ASPECTS = (
    "parameters",
    "state",
    "copies",
    "averages",
    "norms",
    "statistics",
    "skipped",
    "keys",
    "groups",
    "errors",
)
RESUMED_BEFORE = 3

# ── numbers ────────────────────────────────────────────────────────────────────────────────────


def numbers(shape: Iterable[int], *about: Any) -> np.ndarray:
    """Return numbers of many sizes in float64, from raw bits by exact arithmetic alone."""
    seed = int.from_bytes(hashlib.blake2b(repr(about).encode(), digest_size=8).digest(), "big")
    shape = tuple(shape)
    bits = np.random.PCG64(seed).random_raw(math.prod(shape)).astype(np.uint64)
    significands = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return (significands * 2.0 ** -(bits & np.uint64(7)).astype(np.float64)).reshape(shape)


def tensor_of(shape: Iterable[int], dtype: torch.dtype, *about: Any) -> Tensor:
    values = torch.from_numpy(numbers(shape, "real", *about))
    if dtype.is_complex:
        values = torch.complex(values, torch.from_numpy(numbers(shape, "imaginary", *about)))
    return values.to(dtype)


def laid_out(values: Tensor, layout: str, i: int) -> Tensor:
    """Return a tensor with these values, laid out in memory as asked."""
    if layout == "each otherwise":
        layout = ("turned", "contiguous", "sliced", "offset", "channels last")[i % 5]
    if layout == "turned" and values.ndim > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout in ("sliced", "turned", "channels last"):
        wide = torch.zeros((*values.shape, 3), dtype=values.dtype)
        wide[..., 1] = values
        return wide[..., 1]
    if layout == "offset":
        long = torch.zeros(values.numel() + 3, dtype=values.dtype)
        part = long[3:].view(values.shape)
        return part.copy_(values)
    return values.clone()


# ── digests ────────────────────────────────────────────────────────────────────────────────────


def here(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is in this process."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def bits_of(tensor: Tensor) -> bytes:
    """Return the bits of a tensor; NaNs are all one, since processors differ in their signs."""
    flat = here(tensor.detach()).cpu()
    flat = torch.view_as_real(flat) if flat.is_complex() else flat
    flat = flat.contiguous().as_strided((flat.numel(),), (1,))
    if flat.is_floating_point() and bool(flat.isnan().any()):
        flat = torch.where(flat.isnan(), torch.full((), math.nan, dtype=flat.dtype), flat)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def as_text(value: Any) -> str:
    """Return a value as text that says its type, and of tensors dtype, shape and bits."""
    if isinstance(value, Tensor):
        digest = hashlib.blake2b(bits_of(value), digest_size=8).hexdigest()
        return f"{value.dtype} {tuple(value.shape)} {tuple(here(value).shape)} {digest}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {as_text(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(as_text, value))})"
    return f"{type(value).__name__} {value!r}"


def form_of(value: Any) -> str:
    """Return how a value is stored, without the value."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {here(value).stride()}"
    return type(value).__name__


def said(error: BaseException) -> str:
    """Return type and text of an error; of those that others raise the type alone."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).is_relative_to(INSIDE):
        return type(error).__name__
    return f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', str(error))}"  # no folders


class Digests:
    """A digest for each aspect, of all that was put into it in turn."""

    def __init__(self) -> None:
        self.hashes = {aspect: hashlib.blake2b(digest_size=6) for aspect in ASPECTS}

    def put(self, aspect: str, *values: Any) -> None:
        for value in values:
            self.hashes[aspect].update(as_text(value).encode() + b"\0")

    def texts(self) -> list[str]:
        return [urlsafe_b64encode(self.hashes[each].digest()).decode() for each in ASPECTS]


# ── a training ─────────────────────────────────────────────────────────────────────────────────


def no_hook(*_: Any) -> None:
    """Change nothing, as a hook."""


class Training:
    """One case, step by step, with all that it leaves put into digests."""

    def __init__(self, route: str, method: str, case: Case, device: torch.device, mesh: Any = None):
        self.method, self.case, self.device, self.mesh = method, case, device, mesh
        self.kind = method.partition(",")[0]
        self.about = (route, method, words(route, case))
        self.steps = 4 if route == "triton" else 5
        if method == "RAdam":  # whose steps are not rectified before the sixth
            self.steps += 2
        self.offloads = route.startswith("offload")
        self.digests = Digests()
        self.params = self.made()
        self.copies = self.given_copies() if case["phase"] == "tensor copies" else []
        self.calls: list[str] = []
        self.schedule: Any = None
        self.scaler: Any = None
        self.optimizer: Any = None

    # -- what it begins with -------------------------------------------------------------------

    def made(self) -> list[nn.Parameter]:
        dtypes = DTYPES[self.case["dtype"]]
        params: list[nn.Parameter] = []
        for i, shape in enumerate(SHAPES[self.case["shapes"]]):
            values = tensor_of(shape, dtypes[i % len(dtypes)], *self.about, "parameter", i)
            values = laid_out(values, self.case["layout"], i).to(self.device)
            params.append(nn.Parameter(self.cut(values, i)))
        if self.case["layout"] == "shared":  # the second one is the middle of the last
            of, last = params[1].numel(), params[-1]
            if last.dtype == params[1].dtype and last.numel() > of + 2:
                part = last.detach().view(-1)[2 : 2 + of]
                params[1] = nn.Parameter(part.view(params[1].shape))
        if self.case["gradients"] == "frozen":
            params[0].requires_grad_(False)
        return params

    def cut(self, values: Tensor, i: int, *, whole: bool = False) -> Tensor:
        """Return the tensor, distributed over the processes where there are several."""
        if self.mesh is None:
            return values
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        layout = self.case["layout"]
        if layout == "each its own cut":
            layout = ("rows", "columns", "replicas")[i % 3]
        placement: Any = Replicate()
        if layout == "rows" and values.ndim > 0 and not whole:
            placement = Shard(0)
        if layout == "columns" and values.ndim > 1 and not whole:
            placement = Shard(1)
        return distribute_tensor(values, self.mesh, [placement], src_data_rank=None)

    def given_copies(self) -> list[Tensor]:
        return [torch.zeros_like(p.detach(), dtype=torch.bfloat16) for p in self.params]

    def options(self) -> dict[str, Any]:
        case = self.case
        options = copy.deepcopy(OPTIONS[self.method][case["options"]] | PHASES[case["phase"]])
        options["lr"] = {"lr of 0": 0.0, "tensor lr": torch.tensor(0.0625)}.get(case["lr"], 0.0625)
        state, rounding = STATES[case["state"]], ROUNDINGS[case["rounding"]]
        options |= {} if state is None else {"state": state}
        options |= {} if rounding is None else {"rounding": rounding}
        options |= {} if case["seed"] == "seed 0" else {"seed": 77}
        options |= {"offload": True} if self.offloads else {}
        return options

    def grouped(self, params: list[nn.Parameter]) -> Any:
        """Return what the constructor is given for parameters."""
        first, rest, kind = params[:2], params[2:], self.case["groups"]
        if kind == "two groups":
            return [{"params": first}, {"params": rest, "lr": 0.25, "weight_decay": 0.125}]
        if kind == "named":
            return [(f"layer.{i}", p) for i, p in enumerate(params)]
        if kind == "added":
            return first
        if kind == "stored apart":
            half = {"state": "float32", "rounding": "nearest"}
            return [{"params": first, **half}, {"params": rest}]
        if kind == "own keys":
            return [{"params": params, "note": "a", "stage": 2}]
        return iter(params)

    def built(self, kind_of: Any, params: list[nn.Parameter], copies: list[Tensor]) -> Any:
        options = self.options()
        if self.case["phase"] == "tensor copies":
            options["copy_to"] = copies[:2] if self.case["groups"] == "added" else copies
        return kind_of(self.grouped(params), **options)

    def add_group(self, optimizer: Any) -> None:
        group: dict[str, Any] = {"params": self.params[2:], "weight_decay": 0.5}
        if self.case["phase"] == "tensor copies":
            group["copy_to"] = self.copies[2:]
        optimizer.add_param_group(group)

    # -- its way -------------------------------------------------------------------------------

    def run(self) -> list[str]:
        try:
            self.optimizer = self.built(getattr(ours, self.kind), self.params, self.copies)
        except Exception as error:
            self.digests.put("errors", "made", said(error))
            return self.digests.texts()
        self.begin()
        for step in range(self.steps):
            self.attempt(f"before {step}", lambda step=step: self.before(step))
            self.give_gradients(step)
            self.attempt(f"step {step}", self.step)
            self.look(step)
        self.end()
        return self.digests.texts()

    def attempt(self, what: str, do: Callable[[], Any]) -> None:
        try:
            do()
        except Exception as error:
            self.digests.put("errors", what, said(error))

    def begin(self) -> None:
        case = self.case
        self.watch_copies()
        if case["lr"] == "ExponentialLR":
            self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        if case["phase"].startswith("scaler"):
            self.scaler = torch.amp.GradScaler(
                self.device.type, init_scale=1024.0, growth_interval=2
            )
            self.scaler.scale(torch.zeros((), device=self.device))
        if case["extra"] == "hooks":
            self.hook()

    def watch_copies(self) -> None:
        if self.case["phase"] != "tensor copies":  # reading writes them, so it is done once
            self.copies = list(self.optimizer.copies)

    def hook(self) -> None:
        optimizer, calls = self.optimizer, self.calls
        optimizer.register_step_pre_hook(lambda *_: calls.append("before a step"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after a step"))
        optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
        optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))

    def before(self, step: int) -> None:
        case, optimizer = self.case, self.optimizer
        if case["lr"] == "schedule":
            optimizer.param_groups[0]["lr"] = 0.125 / (step + 1)
        if case["lr"] == "tensor lr" and step == 2:
            optimizer.param_groups[0]["lr"].fill_(0.03125)
        if case["groups"] == "added" and step == 2:
            self.add_group(optimizer)
            self.watch_copies()
        if case["extra"] == "options set" and step == 2:
            self.set_options(optimizer.param_groups[-1])
        if case["extra"] == "averages between" and step in (1, 4) and "ema" in self.options():
            with optimizer.ema_weights():
                self.digests.put("averages", self.params, self.copies)
        if case["extra"] == "copies read" and step % 2:
            with torch.no_grad():
                self.params[0].mul_(0.5)
            self.digests.put("copies", list(optimizer.copies))
        if case["extra"] == "snapshot" and step in (1, 4):
            with optimizer.snapshot(packed=step == 1) as taken:
                self.digests.put("keys", [f"{name}: {form_of(p)}" for name, p in names(taken)])
        if step == RESUMED_BEFORE:
            self.resume()

    def set_options(self, group: dict[str, Any]) -> None:
        group["weight_decay"] = 0.25
        group["maximize"] = not group["maximize"]
        if "amsgrad" in group and self.case["state"] == "own state":
            group["amsgrad"] = not group["amsgrad"]
        if "momentum" in group and self.method == "SGD":
            group["momentum"] = 0.25

    def give_gradients(self, step: int) -> None:
        case = self.case
        scale = self.scaler.get_scale() if self.scaler is not None else 1.0
        for i, p in enumerate(self.params):
            whole = tuple(p.shape)
            gradient = tensor_of(whole, p.dtype, *self.about, "gradient", i, step)
            if case["strides"] == "transposed gradient":
                gradient = laid_out(gradient, "turned", i)
            if case["strides"] == "expanded gradient" and i % 2 and gradient.ndim:
                gradient = gradient[:1].expand(whole)
            gradient = gradient * scale if scale != 1.0 else gradient
            gradient = self.spoiled(gradient, i, step)
            self.give(p, i, step, self.cut(gradient.to(self.device), i, whole=self.replicates()))

    def replicates(self) -> bool:
        return self.case["strides"] == "replicated gradient"

    def spoiled(self, gradient: Tensor, i: int, step: int) -> Tensor:
        arrivals = self.case["arrivals"]
        if arrivals == "huge ones" and step >= 2:
            return gradient * 2.0**14
        if i == 1 and gradient.numel() and (arrivals, step) in (("a NaN", 2), ("an infinity", 4)):
            gradient = gradient.clone()
            gradient[(-1,) * gradient.ndim] = math.nan if arrivals == "a NaN" else -math.inf
        return gradient

    def give(self, p: nn.Parameter, i: int, step: int, gradient: Tensor) -> None:
        way = self.case["gradients"]
        is_missing = (
            (way == "come and go" and (i + step) % 3 == 0)
            or (way == "late" and step < 2 and i % 2 == 1)
            or (way == "none at one step" and step == 1)
            or not p.requires_grad
        )
        if is_missing:
            p.grad = None
        elif way == "kept in place" and p.grad is not None:
            p.grad.copy_(gradient)
        elif way == "kept in place":
            p.grad = gradient.clone(memory_format=torch.contiguous_format)
        elif way == "zeros" and step % 2:
            p.grad = torch.zeros_like(p)
        elif way == "sparse" and p.ndim == 2 and p.numel():
            rows = torch.tensor([0, p.shape[0] - 1, 0])
            p.grad = torch.sparse_coo_tensor(rows[None], gradient[rows], tuple(p.shape))
        else:
            p.grad = gradient

    def step(self) -> None:
        if self.scaler is not None:
            try:
                self.scaler.step(self.optimizer)
            finally:
                with suppress(AssertionError):  # of torch, where no parameter has a gradient
                    self.scaler.update()
        elif self.case["extra"] == "closure":
            self.digests.put("errors", self.optimizer.step(self.loss))
        else:
            self.digests.put("errors", self.optimizer.step())
        if self.schedule is not None:
            self.schedule.step()

    def loss(self) -> float:
        self.calls.append(f"loss, gradients {torch.is_grad_enabled()}")
        return 0.5

    # -- what is seen of it --------------------------------------------------------------------

    def look(self, step: int) -> None:
        optimizer, put = self.optimizer, self.digests.put
        put("parameters", step, self.params)
        if step in (1, RESUMED_BEFORE, self.steps - 1):
            put("state", step, [dict(optimizer.state.get(p, {})) for p in self.params])
        put("copies", step, self.copies)
        put("norms", optimizer.gradient_norm)
        put("skipped", int(optimizer.skipped))
        if self.options().get("statistics"):
            try:
                put("statistics", optimizer.statistics())
            except RuntimeError as error:
                put("statistics", said(error))

    def end(self) -> None:
        optimizer, put = self.optimizer, self.digests.put
        if self.scaler is not None:
            put("norms", self.scaler.get_scale())
        for packed in (False, True):
            try:
                saved = optimizer.state_dict(packed=packed)
            except ValueError as error:  # of blocks that are cut
                put("keys", said(error))
                continue
            put("keys", list(saved), saved.get("format"))
            for i, entries in saved["packed_state" if packed else "state"].items():
                put("keys", i, [f"{name}: {form_of(each)}" for name, each in entries.items()])
                put("state", i, entries)
            put("groups", saved["param_groups"])
        put("errors", self.calls)
        put("copies", list(optimizer.copies))
        put("averages", "ema" in self.options())
        if "ema" in self.options():
            with optimizer.ema_weights():
                put("averages", self.params)
            put("averages", self.params)

    # -- resuming ------------------------------------------------------------------------------

    def resume(self) -> None:
        way = self.case["resume"]
        if way == "no resume":
            return
        self.schedule = None
        old = (self.params, self.optimizer, self.copies)
        if way == "pickle":
            self.params, self.optimizer, self.copies = pickle.loads(pickle.dumps(old))
        elif way == "deepcopy":
            self.params, self.optimizer, self.copies = copy.deepcopy(old)
        else:
            self.load(way)
        self.watch_copies()
        if self.case["extra"] == "hooks":
            self.hook()

    def load(self, way: str) -> None:
        """Make everything anew, and load what there was."""
        before, past = self.optimizer, self.params
        self.params = [nn.Parameter(p.detach().clone(), p.requires_grad) for p in past]
        if self.case["phase"] == "tensor copies":
            self.copies = [each.clone() for each in self.copies]
        self.optimizer = self.built(type(before), self.params, self.copies)
        if self.case["groups"] == "added":
            self.add_group(self.optimizer)
        if way == "file":
            with tempfile.TemporaryDirectory() as folder:
                adamas.save(Path(folder) / "run.safetensors", before)
                adamas.load(Path(folder) / "run.safetensors", self.optimizer)
        elif way == "torch and back":
            saved = before.state_dict()
            theirs = self.torchs(saved)
            theirs.load_state_dict(saved)
            self.optimizer.load_state_dict(theirs.state_dict())
        else:
            self.optimizer.load_state_dict(before.state_dict(packed=way == "packed"))

    def torchs(self, saved: dict[str, Any]) -> torch.optim.Optimizer:
        """Return torch's own optimizer, in groups of the same sizes."""
        params = iter(self.params)
        groups = [
            {"params": list(itertools.islice(params, len(group["params"])))}
            for group in saved["param_groups"]
        ]
        for group, own in zip(groups, saved["param_groups"], strict=True):
            if "param_names" in own:
                group["params"] = list(zip(own["param_names"], group["params"], strict=True))
        return getattr(torch.optim, self.kind)(groups)


def names(taken: Any) -> list[tuple[str, Tensor]]:
    return list(taken.parameters.items())
