"""What adamas.torch refuses, and with which words: bad input of every kind.

Each is tried on an optimizer that has made two steps; ``refusals`` gives the text of the error,
and what has changed of parameters, state and groups, which is to be nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import adamas.torch as ours
from tests.support.torch_trainings import as_text, said, tensor_of

__all__ = ["KINDS", "refusals"]


def made(method: str = "AdamW", **options: Any) -> Any:
    """Return an optimizer that has made two steps."""
    dtype = options.pop("dtype", torch.float32)
    params = [
        nn.Parameter(tensor_of(shape, dtype, "refused", i))
        for i, shape in enumerate(((4, 3), (40,), ()))
    ]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
    optimizer = getattr(ours, method)(groups, **{"lr": 0.125, **options})
    for step in range(2):
        for i, p in enumerate(params):
            p.grad = tensor_of(p.shape, dtype, "refused", i, step)
        optimizer.step()
    return optimizer


def params_of(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def everything(optimizer: Any) -> dict[str, str]:
    """Return all that is not to change, as text."""
    params = params_of(optimizer)
    return {
        "parameters": as_text(params),
        "gradients": as_text([p.grad for p in params if is_dense(p.grad)]),
        "state": as_text([dict(optimizer.state.get(p, {})) for p in params]),
        "groups": as_text(
            [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        ),
        "sizes": as_text([len(group["params"]) for group in optimizer.param_groups]),
        "skipped": as_text(int(optimizer.skipped)),
        "copies": as_text(list(optimizer.copies)),
    }


def is_dense(tensor: Any) -> bool:
    return tensor is not None and tensor.layout == torch.strided


# ── constructors ───────────────────────────────────────────────────────────────────────────────

#: Arguments that no optimizer, or none of a method, can be made with.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "AdamW": [
        *({"lr": each} for each in (-1.0, math.nan, "0.1", None, torch.ones(2), 1j)),
        *({"betas": each} for each in ((1.0, 0.9), (0.9, -0.5), 0.9, (0.9,), "ab", (0.9, None))),
        *({"betas": each} for each in ((0, 0.9), (0.9, torch.tensor(0.9)), (0.9, 0.99, 0.999))),
        *({"eps": each} for each in (-1e-8, math.nan, "small", None)),
        *({"weight_decay": each} for each in (-1, math.nan, "much")),
        {"lr": torch.tensor(0.1), "foreach": True},
        {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True},
        {"fused": True, "foreach": True},
        {"fused": True, "differentiable": True},
        *({name: "yes"} for name in ("amsgrad", "maximize", "foreach", "capturable", "fused")),
        {"differentiable": True},
        {"decoupled_weight_decay": False},
        *({"clip_norm": each} for each in (-1.0, 0.0, math.nan, "1", True, [1.0])),
        *({"on_nonfinite": each} for each in ("ignore", None, 1, "Skip")),
        *({"ema": each} for each in (1.0, -0.5, math.nan, "0.9", True)),
        *({"copy_to": each} for each in (torch.float32, "bfloat16", 3, [torch.zeros(2), 1])),
        *({"copy_to": each} for each in ([torch.zeros(2)], torch.zeros(4, 3))),
        *({"statistics": each} for each in ("yes", 1, None)),
        *({"state": each} for each in ("9bit", "float16", 8, ("8bit",), ("8bit", "4bit"))),
        *({"rounding": each} for each in ("up", 1, ("nearest", "nearest"))),
        *({"rounding": each} for each in ("remainder", "remainder8")),
        *({"seed": each} for each in (-1, 0.5, "1", 2**64, True)),
        *({"offload": each} for each in ("yes", 1, None)),
        *({each: 1} for each in ("clip_nrom", "beta1", "momentum", "learning_rate", "weight_deca")),
        {"amsgrad": True, "state": "8bit"},
        {"amsgrad": True, "state": ("float32", "compact")},
        {"state": ("8bit", "float32"), "amsgrad": True},
    ],
    "Adam": [
        {"lr": -0.5},
        {"betas": (0.5, 1.5)},
        {"decoupled_weight_decay": "yes"},
        {"nesterov": True},
        {"ema": 2.0},
    ],
    "NAdam": [
        {"momentum_decay": -1.0},
        {"momentum_decay": "x"},
        {"amsgrad": True},
        {"betas": (0.9, 1.0)},
        {"lr": torch.ones(2)},
        {"decoupled_weight_decay": "no"},
        {"state": "4bit"},
    ],
    "RMSprop": [
        {"alpha": -1.0},
        {"alpha": "x"},
        {"momentum": -1.0},
        {"momentum": None},
        {"centered": "yes"},
        {"betas": (0.9, 0.9)},
        {"state": ("8bit", "8bit")},
        {"centered": True, "ema": 0.5},
        {"momentum": 0.5, "statistics": True},
        {"momentum": 0.5, "state": "8bit"},
        {"centered": True, "rounding": "stochastic"},
    ],
    "SGD": [
        {"momentum": -1.0},
        {"momentum": math.nan},
        {"dampening": math.nan},
        {"dampening": "x"},
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        {"eps": 1e-8},
        {"amsgrad": True},
        {"state": "8bit"},
        {"momentum": 0.9, "state": "compact"},
        {"momentum": 0.9, "state": "8bit"},
        {"fused": True, "foreach": True},
        {"capturable": True},
    ],
}
#: What cannot be stepped, or stored as asked, whatever the options.
PARAMETERS: dict[str, Callable[[], Any]] = {
    "a model": lambda: ours.AdamW(nn.Linear(2, 2)),
    "no parameters": lambda: ours.AdamW([]),
    "a tensor": lambda: ours.AdamW(torch.zeros(2, requires_grad=True)),
    "numbers": lambda: ours.AdamW([1.0, 2.0]),
    "no leaf": lambda: ours.AdamW([torch.zeros(2, requires_grad=True) * 2]),
    "whole numbers": lambda: stepped([torch.zeros(2, dtype=torch.int32)]),
    "a conjugated view": lambda: stepped([torch.zeros(2, dtype=torch.complex64).conj()]),
    "float64 in 8 bits": lambda: stepped([torch.zeros(2, dtype=torch.float64)], state="8bit"),
    "complex numbers in 8 bits": lambda: stepped(
        [torch.zeros(2, dtype=torch.complex64)], state="8bit"
    ),
    "float16 with a remainder": lambda: stepped(
        [torch.zeros(2, dtype=torch.float16)], rounding="remainder"
    ),
    "copies of complex numbers": lambda: ours.AdamW(
        [nn.Parameter(torch.zeros(2, dtype=torch.complex64))], copy_to=torch.bfloat16
    ),
    "a copy too few": lambda: ours.AdamW(
        [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))], copy_to=[torch.zeros(2)]
    ),
    "the parameter as its copy": lambda: copied_to_itself(torch.zeros(2, dtype=torch.bfloat16)),
    "offload without a card": lambda: ours.RMSprop(
        [nn.Parameter(torch.zeros(2))], offload=True, centered=True, ema=0.5
    ),
    "groups of no model": lambda: ours.param_groups([nn.Parameter(torch.zeros(2))], 0.1),
    "groups without decay": lambda: ours.param_groups(nn.Linear(2, 2)),
    "groups of a frozen model": lambda: ours.param_groups(
        nn.Linear(2, 2).requires_grad_(False), weight_decay=0.1
    ),
    "groups with an unknown name": lambda: ours.param_groups(
        nn.Linear(2, 2), weight_decay=0.1, float32=["head.*"]
    ),
    "groups with a negative decay": lambda: ours.param_groups(nn.Linear(2, 2), weight_decay=-1),
    "the base": lambda: ours.Optimizer([nn.Parameter(torch.zeros(2))], {"lr": 0.1}),
}


def stepped(tensors: list[torch.Tensor], **options: Any) -> None:
    params = [nn.Parameter(each, requires_grad=each.is_floating_point()) for each in tensors]
    optimizer = ours.AdamW(params, **options)
    for p in params:
        p.requires_grad_(p.is_floating_point() or p.is_complex())
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()


def copied_to_itself(values: torch.Tensor) -> None:
    ours.AdamW([nn.Parameter(values)], copy_to=[values])


# ── groups, steps, loading, averages ───────────────────────────────────────────────────────────


def added(**group: Any) -> Callable[[Any], Any]:
    return lambda optimizer: optimizer.add_param_group(
        {"params": [nn.Parameter(torch.zeros(2))], **group}
    )


def set_in_group(**options: Any) -> Callable[[Any], Any]:
    """Step with options that somebody has set; they are put back as they were."""

    def spoil(optimizer: Any) -> None:
        group = optimizer.param_groups[1]
        before = dict(group)
        try:
            for name, value in options.items():
                if value is ...:
                    del group[name]
                else:
                    group[name] = value
            optimizer.step()
        finally:
            group.clear()
            group.update(before)

    return spoil


def with_gradient(gradient: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Step with another gradient of the second parameter, whatever torch says of it."""

    def spoil(optimizer: Any) -> None:
        parameter = params_of(optimizer)[1]
        before = parameter.grad
        try:
            given = gradient(parameter)
            if given.shape == parameter.shape and given.dtype == parameter.dtype:
                parameter.grad = given
            else:
                parameter.grad = before.clone()
                parameter.grad.data = given
            optimizer.step()
        finally:
            parameter.grad = before

    return spoil


def with_entry(name: str, value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Step with another entry in the state of the second parameter; it is put back afterwards."""

    def spoil(optimizer: Any) -> None:
        state = optimizer.state[params_of(optimizer)[1]]
        before = dict(state)
        try:
            given = value(state.get(name))
            if given is ...:
                del state[name]
            else:
                state[name] = given
            optimizer.step()
        finally:
            state.clear()
            state.update(before)

    return spoil


def loaded(change: Callable[[Any], Any], *, packed: bool = False) -> Callable[[Any], Any]:
    """Load a state_dict that was changed, or whatever ``change`` returns in its place."""

    def spoil(optimizer: Any) -> None:
        saved = copy.deepcopy(optimizer.state_dict(packed=packed))
        other = change(saved)
        optimizer.load_state_dict(saved if other is None else other)

    return spoil


def entry(name: str, value: Any) -> Callable[[Any], None]:
    def change(saved: Any) -> None:
        state = saved["packed_state" if "packed_state" in saved else "state"][1]
        given = value(state.get(name)) if callable(value) else value
        state.update({name: given})
        if given is ...:
            del state[name]

    return change


def option(name: str, value: Any) -> Callable[[Any], None]:
    def change(saved: Any) -> None:
        saved["param_groups"][1][name] = value
        if value is ...:
            del saved["param_groups"][1][name]

    return change


def within(do: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def spoil(optimizer: Any) -> None:
        with optimizer.ema_weights():
            do(optimizer)

    return spoil


def held(do: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def spoil(optimizer: Any) -> None:
        with optimizer.snapshot():
            do(optimizer)

    return spoil


def raises(*_: Any) -> None:
    raise KeyError("of the closure")


def hooked(optimizer: Any) -> None:
    handle = optimizer.register_load_state_dict_post_hook(raises)
    try:
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        handle.remove()


#: Of an AdamW in float32.
CALLS: dict[str, Callable[[Any], Any]] = {
    "group: lr of -1": added(lr=-1.0),
    "group: lr of text": added(lr="0.1"),
    "group: betas of 1": added(betas=(0.9, 1.0)),
    "group: one beta": added(betas=[0.9]),
    "group: eps of nan": added(eps=math.nan),
    "group: amsgrad of text": added(amsgrad="yes"),
    "group: clip_norm": added(clip_norm=1.0),
    "group: seed": added(seed=1),
    "group: weight_deacy": added(weight_deacy=1.0),
    "group: Lr": added(Lr=1.0),
    "group: unknown state": added(state="9bit"),
    "group: unknown rounding": added(rounding="up"),
    "group: remainder of float32": added(rounding="remainder"),
    "group: amsgrad in 8 bits": added(amsgrad=True, state="8bit"),
    "group: no dict": lambda o: o.add_param_group([nn.Parameter(torch.zeros(2))]),
    "group: no params": lambda o: o.add_param_group({"lr": 0.1}),
    "group: a set": added(params={nn.Parameter(torch.zeros(2))}),
    "group: a parameter again": lambda o: o.add_param_group({"params": params_of(o)[:1]}),
    "group: numbers": added(params=[1.0]),
    "set: lr of -1": set_in_group(lr=-1.0),
    "set: lr of nan": set_in_group(lr=math.nan),
    "set: lr of text": set_in_group(lr="0.1"),
    "set: lr of two": set_in_group(lr=torch.ones(2)),
    "set: lr of none": set_in_group(lr=None),
    "set: no lr": set_in_group(lr=...),
    "set: betas of 1": set_in_group(betas=(1.0, 0.9)),
    "set: one beta": set_in_group(betas=0.9),
    "set: no betas": set_in_group(betas=...),
    "set: eps of -1": set_in_group(eps=-1.0),
    "set: no eps": set_in_group(eps=...),
    "set: weight_decay of nan": set_in_group(weight_decay=math.nan),
    "set: maximize of text": set_in_group(maximize="no"),
    "set: no amsgrad": set_in_group(amsgrad=...),
    "set: unknown state": set_in_group(state="9bit"),
    "set: unknown rounding": set_in_group(rounding="up"),
    "set: differentiable": set_in_group(differentiable=True),
    "gradient: other shape": with_gradient(lambda p: torch.zeros(3)),
    "gradient: other dtype": with_gradient(lambda p: p.grad.double()),
    "gradient: whole numbers": with_gradient(lambda p: p.grad.int()),
    "gradient: complex": with_gradient(lambda p: p.grad.to(torch.complex64)),
    "gradient: sparse": with_gradient(lambda p: p.grad.to_sparse()),
    "gradient: on meta": with_gradient(lambda p: p.grad.to("meta")),
    "state: no exp_avg": with_entry("exp_avg", lambda each: ...),
    "state: no step": with_entry("step", lambda each: ...),
    "state: step of nan": with_entry("step", lambda each: torch.tensor(math.nan)),
    "state: step of -1": with_entry("step", lambda each: torch.tensor(-1.0)),
    "state: step of 1.5": with_entry("step", lambda each: torch.tensor(1.5)),
    "state: step of text": with_entry("step", lambda each: "2"),
    "state: step of two": with_entry("step", lambda each: torch.ones(2)),
    "state: exp_avg of other shape": with_entry("exp_avg", lambda each: each[:3]),
    "state: exp_avg of other dtype": with_entry("exp_avg", lambda each: each.int()),
    "state: exp_avg of text": with_entry("exp_avg", lambda each: "none"),
    "state: exp_avg_sq on meta": with_entry("exp_avg_sq", lambda each: each.to("meta")),
    "state: exp_avg_sq sparse": with_entry("exp_avg_sq", lambda each: each.to_sparse()),
    "state: exp_avg twice": with_entry("exp_avg_sq", lambda each: each[:1].expand(40)),
    "closure: raises": lambda o: o.step(raises),
    "closure: steps": lambda o: o.step(lambda: o.step() and raises()),
    "load: nothing": loaded(lambda saved: {}),
    "load: none": lambda o: o.load_state_dict(None),
    "load: a list": loaded(lambda saved: [saved]),
    "load: no state": loaded(lambda saved: saved.pop("state") and None),
    "load: no groups": loaded(lambda saved: saved.pop("param_groups") and None),
    "load: state of a list": loaded(lambda saved: saved.update(state=[])),
    "load: groups of a dict": loaded(lambda saved: saved.update(param_groups={})),
    "load: a group too few": loaded(lambda saved: saved["param_groups"].pop() and None),
    "load: a parameter too few": loaded(
        lambda saved: saved["param_groups"][0]["params"].pop() and None
    ),
    "load: a stranger": loaded(lambda saved: saved["state"].update({7: {}})),
    "load: a group of text": loaded(lambda saved: saved["param_groups"].__setitem__(0, "x")),
    "load: no exp_avg": loaded(entry("exp_avg", ...)),
    "load: no step": loaded(entry("step", ...)),
    "load: foreign entry": loaded(entry("mu_product", torch.ones(()))),
    "load: other shape": loaded(entry("exp_avg", lambda each: each[:3])),
    "load: other dtype": loaded(entry("exp_avg", lambda each: each.int())),
    "load: negative squares": loaded(entry("exp_avg_sq", lambda each: each - 10)),
    "load: no tensor": loaded(entry("exp_avg", 3)),
    "load: sparse": loaded(entry("exp_avg", lambda each: each.to_sparse())),
    "load: on meta": loaded(entry("exp_avg", lambda each: each.to("meta"))),
    "load: step of nan": loaded(entry("step", torch.tensor(math.nan))),
    "load: step of -1": loaded(entry("step", -1)),
    "load: step of 2.5": loaded(entry("step", torch.tensor(2.5))),
    "load: step of text": loaded(entry("step", "2")),
    "load: step of 2**60": loaded(entry("step", 2**60)),
    "load: an average that is not kept": loaded(entry("ema", torch.zeros(40))),
    "load: a remainder": loaded(entry("remainder", torch.zeros(40, dtype=torch.int16))),
    "load: lr of -1": loaded(option("lr", -1.0)),
    "load: lr of infinity": loaded(option("lr", math.inf)),
    "load: lr of text": loaded(option("lr", "0.1")),
    "load: no lr": loaded(option("lr", ...)),
    "load: betas of 1": loaded(option("betas", (0.9, 1.0))),
    "load: one beta": loaded(option("betas", 0.9)),
    "load: eps of nan": loaded(option("eps", math.nan)),
    "load: amsgrad of text": loaded(option("amsgrad", "yes")),
    "load: maximize of 2": loaded(option("maximize", 2)),
    "load: differentiable": loaded(option("differentiable", True)),
    "load: no amsgrad": loaded(option("amsgrad", ...)),
    "load: packed without format": loaded(lambda s: s.pop("format") and None, packed=True),
    "load: packed of another format": loaded(lambda s: s.update(format=99), packed=True),
    "load: hook raises": hooked,
    "averages: none kept": within(lambda o: None),
    "statistics: none taken": lambda o: o.statistics(),
    "snapshot: step": held(lambda o: o.step()),
    "snapshot: load": held(lambda o: o.load_state_dict({})),
    "snapshot: again": held(held(lambda o: None)),
}
#: Of one with averages, a guard and copies.
CALLS_WITH_PHASE: dict[str, Callable[[Any], Any]] = {
    "averages: step": within(lambda o: o.step()),
    "averages: again": within(within(lambda o: None)),
    "averages: state_dict": within(lambda o: o.state_dict()),
    "averages: load": within(lambda o: o.load_state_dict({})),
    "averages: deepcopy": within(copy.deepcopy),
    "averages: snapshot": within(held(lambda o: None)),
    "averages: group": within(added()),
    "averages: an error inside": within(raises),
    "group: ema": added(ema=0.25),
    "group: copy_to of text": added(copy_to="x"),
    "group: copies of other shape": added(copy_to=[torch.zeros(3)]),
    "gradient: nan": with_gradient(lambda p: p.grad * math.nan),
    "gradient: infinity": with_gradient(lambda p: p.grad / 0.0),
    "load: no average": loaded(entry("ema", ...)),
    "load: average of other shape": loaded(entry("ema", lambda each: each[:2])),
    "load: average of other dtype": loaded(entry("ema", lambda each: each.to(torch.int16))),
    "state: average of other shape": with_entry("ema", lambda each: each[:2]),
    "state: average of text": with_entry("ema", lambda each: "x"),
    "statistics: parameters that share": lambda o: o.add_param_group({"params": 3}),
}
#: Of one in 8 bits with remainders.
CALLS_IN_8_BITS: dict[str, Callable[[Any], Any]] = {
    "load: no header": loaded(entry("header", ...), packed=True),
    "load: header of other shape": loaded(entry("header", lambda h: h[:1]), packed=True),
    "load: header of no step": loaded(entry("header", lambda h: h | 1023), packed=True),
    "load: header of other dtype": loaded(entry("header", lambda h: h.long()), packed=True),
    "load: no exp_avg_sq": loaded(entry("exp_avg_sq", ...), packed=True),
    "load: codes of other dtype": loaded(entry("exp_avg", lambda m: m.int()), packed=True),
    "load: top of text": loaded(entry("top", "x"), packed=True),
    "load: top of 1000": loaded(entry("top", 1000), packed=True),
    "load: no remainder": loaded(entry("remainder", ...), packed=True),
    "load: remainder of other shape": loaded(entry("remainder", lambda r: r[:1]), packed=True),
    "load: remainder of other dtype": loaded(entry("remainder", lambda r: r.float()), packed=True),
    "load: dense codes": loaded(
        lambda s: {"state": s["packed_state"], "param_groups": s["param_groups"]}, packed=True
    ),
    "state: no header": with_entry("header", lambda each: ...),
    "state: header of other shape": with_entry("header", lambda each: each[:1]),
    "state: header of other dtype": with_entry("header", lambda each: each.int()),
    "state: codes of other shape": with_entry("exp_avg", lambda each: each[:1]),
    "state: remainder of other dtype": with_entry("remainder", lambda each: each.int()),
    "state: no remainder": with_entry("remainder", lambda each: ...),
    "set: other state": set_in_group(state="4bit"),
    "set: amsgrad": set_in_group(amsgrad=True),
    "torch: loads it packed": lambda o: torch.optim.AdamW(params_of(o)).load_state_dict(
        o.state_dict(packed=True)
    ),
}
#: Of the other methods, by name.
CALLS_OF_OTHERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "NAdam": {
        "load: no mu_product": loaded(entry("mu_product", ...)),
        "load: mu_product of 2": loaded(entry("mu_product", torch.tensor(2.0))),
        "load: mu_product of text": loaded(entry("mu_product", "x")),
        "state: no mu_product": with_entry("mu_product", lambda each: ...),
        "state: mu_product of nan": with_entry("mu_product", lambda each: torch.tensor(math.nan)),
        "set: momentum_decay of -1": set_in_group(momentum_decay=-1.0),
        "set: no momentum_decay": set_in_group(momentum_decay=...),
        "gradient: sparse": with_gradient(lambda p: p.grad.to_sparse()),
    },
    "RMSprop": {
        "load: another class's": loaded(lambda s: made("AdamW").state_dict()),
        "load: centered without its mean": loaded(option("centered", True)),
        "load: momentum without its buffer": loaded(option("momentum", 0.5)),
        "set: alpha of -1": set_in_group(alpha=-1.0),
        "set: centered of text": set_in_group(centered="x"),
        "set: no momentum": set_in_group(momentum=...),
        "gradient: sparse": with_gradient(lambda p: p.grad.to_sparse()),
    },
    "SGD": {
        "load: another class's": loaded(lambda s: made("AdamW").state_dict()),
        "load: buffer of other shape": loaded(entry("momentum_buffer", torch.zeros(2))),
        "load: buffer of text": loaded(entry("momentum_buffer", "x")),
        "load: dampening of infinity": loaded(option("dampening", math.inf)),
        "set: momentum of -1": set_in_group(momentum=-1.0),
        "set: dampening of nan": set_in_group(dampening=math.nan),
        "set: no nesterov": set_in_group(nesterov=...),
        "set: weight_decay of text": set_in_group(weight_decay="x"),
        "gradient: csr": with_gradient(lambda p: torch.eye(40).to_sparse_csr()),
    },
}
PHASE = {"ema": 0.5, "on_nonfinite": "raise", "copy_to": torch.bfloat16, "clip_norm": 1.0}


def tried(do: Callable[[], Any]) -> str:
    try:
        do()
    except Exception as error:
        return said(error)
    return "is not refused"


IN_8_BITS = {"dtype": torch.bfloat16, "state": "8bit", "rounding": "remainder"}
#: Kinds of bad input to calls, with the options of the optimizer that is called.
_OF_CALLS: dict[str, tuple[dict[str, Any], dict[str, Callable[[Any], Any]]]] = {
    "AdamW": ({}, CALLS),
    "AdamW with a phase": (PHASE, CALLS_WITH_PHASE),
    "AdamW in 8 bits": (IN_8_BITS, CALLS_IN_8_BITS),
    "NAdam": ({}, CALLS_OF_OTHERS["NAdam"]),
    "RMSprop": ({}, CALLS_OF_OTHERS["RMSprop"]),
    "SGD": ({"momentum": 0.5}, CALLS_OF_OTHERS["SGD"]),
}
KINDS = ("parameters", *(f"{method}()" for method in ARGUMENTS), *_OF_CALLS)


def refusals(kind: str) -> dict[str, list[str]]:
    """Return, for each bad input of a kind, the text of the error and what it has changed."""
    if kind == "parameters":
        return {name: [tried(do)] for name, do in PARAMETERS.items()}
    method = kind.split(maxsplit=1)[0].removesuffix("()")
    if kind.endswith("()"):
        return {
            ", ".join(f"{name}={value!r}" for name, value in given.items()): [
                tried(lambda given=given: built(method, given))
            ]
            for given in ARGUMENTS[method]
        }
    options, calls = _OF_CALLS[kind]
    return {name: called(method, options, do) for name, do in calls.items()}


def built(method: str, arguments: dict[str, Any]) -> None:
    """Make an optimizer and step it, since some things are refused where they matter first."""
    params = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(2))]
    optimizer = getattr(ours, method)(params, **copy.deepcopy(arguments))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


def called(method: str, options: dict[str, Any], do: Callable[[Any], Any]) -> list[str]:
    optimizer = made(method, **options)
    before = everything(optimizer)
    text = tried(lambda: do(optimizer))
    after = everything(optimizer)
    return [text, *(f"{name} changed" for name in before if before[name] != after[name])]
