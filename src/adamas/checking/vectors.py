"""Probes with exact results, as JSON: test vectors for an implementation in any language.

``docs/guides/check.md`` documents the schema. Every number is a string that holds a hexadecimal
float, which C's ``strtod``, Python's ``float.fromhex`` and their kin read without an error. Inputs
are exact: gradients and first parameters are float32 numbers, settings float64 ones. Results come
from 200-bit arithmetic and are rounded once, to float64.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adamas.checking import probes
from adamas.checking.arithmetic import exact
from adamas.checking.prediction import Prediction, Settings, parts
from adamas.checking.probes import Probe
from adamas.checking.variants import Variant
from adamas.checking.wording import sheet
from adamas.numpy import Adam, Optimizer, RAdam

__all__ = ["SCHEMA", "VECTORS", "Vector", "write"]

Array = NDArray[Any]

#: The name of the schema and its version; a change that breaks readers raises the number.
SCHEMA = "adamas-vectors/1"

_DEFAULT = Settings(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
_LARGE = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05)
_DECAYING = Settings(lr=0.125, beta1=0.625, beta2=0.75, eps=0.05, weight_decay=0.25)
#: With a v that gradients outgrow, so that updates are clipped at half of the steps.
_OUTGROWN = Settings(lr=0.125, beta1=0.625, beta2=0.96875, eps=0.002, weight_decay=0.25)


@dataclass(frozen=True)
class Vector:
    """One file: a variant of Adam and the settings and probe that it is shown with."""

    name: str
    variant: Variant
    settings: Settings
    #: The options of ``method`` that make the same; None where there are none.
    options: dict[str, Any] | None = field(default_factory=dict[str, Any])
    run: Literal["shown", "long", "scheduled"] = "shown"
    method: type[Optimizer] = Adam

    @property
    def probe(self) -> Probe:
        """The run: one array."""
        if self.run == "long":
            return probes.long(1, self.settings)
        rates = tuple(self.settings.lr / 2.0 ** (t // 8) for t in range(probes.USUAL_STEPS))
        return probes.shown(self.settings, rates if self.run == "scheduled" else None)


_UNCORRECTED = Variant(correction1="none", correction2="none")
_FIRST_STEP = Variant(correction1="first-step", correction2="first-step")
_DECOUPLED = Variant(decay="decoupled"), _DECAYING, {"decay": "decoupled"}
_FULLY = {"decay": "fully-decoupled", "lr_max": _DECAYING.lr}
_CORRECTED = {"decay": "corrected", "lr_max": _DECAYING.lr}

VECTORS: tuple[Vector, ...] = (
    Vector("adam", Variant(), _DEFAULT),
    Vector("adam-long", Variant(), _DEFAULT, run="long"),
    Vector("adam-short-memory", Variant(), _LARGE),
    Vector("adam-l2", Variant(), _DECAYING),
    Vector("adam-schedule", Variant(), _LARGE, run="scheduled"),
    Vector("adamw", *_DECOUPLED),
    Vector("adamw-schedule", *_DECOUPLED, run="scheduled"),
    Vector("adamw-fully-decoupled", Variant(decay="fully"), _DECAYING, _FULLY, "scheduled"),
    Vector("adamw-cautious", Variant(decay="cautious"), _DECAYING, {"decay": "cautious"}),
    Vector("adamw-corrected", Variant(decay="corrected"), _DECAYING, _CORRECTED, "scheduled"),
    Vector(
        "adamw-clip-update",
        Variant(decay="decoupled", clipped="above 1"),
        _OUTGROWN,
        {"decay": "decoupled", "clip_update": 1.0},
    ),
    Vector(
        "adam-efficient",
        Variant(epsilon="outside before"),
        _LARGE,
        {"eps_place": "uncorrected"},
    ),
    Vector("amsgrad", Variant(largest="then corrected"), _LARGE, {"amsgrad": True}),
    Vector("amsgrad-corrected-first", Variant(largest="corrected first"), _LARGE, None),
    Vector("nadam", Variant(nesterov="dozat"), _LARGE, {"nesterov": True}),
    # ρ_t is above 5 from the 8th step on.
    Vector("radam", Variant(rectified="5"), _LARGE, method=RAdam),
    Vector("maximize", Variant(direction="ascent"), _LARGE, {"maximize": True}),
    Vector("first-step", _FIRST_STEP, _LARGE, {"bias_correction": "first-step"}),
    Vector("no-correction", _UNCORRECTED, _LARGE, {"bias_correction": "none"}),
)


def write(folder: Path) -> list[Path]:
    """Write every vector to ``folder``, which is made where it is not there; return the paths.

    The same bytes come out everywhere. Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for vector in VECTORS:
        path = folder / f"{vector.name}.json"
        text = json.dumps(_content(vector), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
        written.append(path)
    return written


def _content(vector: Vector) -> dict[str, Any]:
    probe, settings = vector.probe, vector.settings
    steps, _, elements = probe.gradients.shape
    parameters, m, v = _results(vector)
    rates = np.full(steps, settings.lr) if probe.rates is None else probe.rates
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "name": vector.name,
        "formula": list(sheet(vector.variant).values()),
        # What a program may look at to see whether it makes this variant.
        "choices": {
            "bias_correction": vector.variant.correction1,
            "epsilon": vector.variant.epsilon,
            "decay": vector.variant.decay,
            "amsgrad": vector.variant.largest,
            "nesterov": vector.variant.nesterov,
            "rectified": vector.variant.rectified,
            "clipped": vector.variant.clipped,
            "direction": vector.variant.direction,
        },
        "steps": steps,
        "elements": elements,
        "sequences": list(probe.names),
        **{
            name: getattr(settings, name).hex()
            for name in ("lr", "beta1", "beta2", "eps", "weight_decay")
        },
        "rates": _hexadecimal(rates),
        "start": _hexadecimal(probe.start[0]),
        "gradients": _hexadecimal(probe.gradients[:, 0]),
        "parameters": _hexadecimal(parameters),
        "m": _hexadecimal(m),
        "v": _hexadecimal(v),
    }
    if vector.options is not None:
        content["ulp_of_adamas"] = {
            kind: round(_distance_of_adamas(vector, kind, parameters), 3)
            for kind in ("float32", "float64")
        }
    return content


def _results(vector: Vector) -> tuple[Array, Array, Array]:
    """Return parameters, m and v after each step, shape (steps, elements), rounded once."""
    arithmetic = exact()
    probe, settings = vector.probe, vector.settings
    gradients = arithmetic.array(probe.gradients)
    p = arithmetic.array(probe.start)
    steps = len(gradients)
    before = np.empty_like(gradients)
    before[:] = p
    if settings.weight_decay == 0.0:
        known = Prediction(settings, gradients, before, probe.rates, arithmetic)
        for t, change in enumerate(known.change(vector.variant)):
            before[t] = p
            p = p - change
    else:
        # Each step needs the parameters before it, and those the step before.
        for t in range(steps):
            before[t] = p
            rates = None if probe.rates is None else probe.rates[: t + 1]
            part = gradients[: t + 1], before[: t + 1], rates
            p = p - Prediction(settings, *part, arithmetic).change(vector.variant)[t]
    after = np.concatenate([before[1:], p[None]])
    known = Prediction(settings, gradients, before, probe.rates, arithmetic)
    made_of = parts(vector.variant, settings)
    found = (after, known.of(made_of.mean), known.of(made_of.square))
    parameters, m, v = (each[:, 0].astype(np.float64) for each in found)
    return parameters, m, v


def _distance_of_adamas(vector: Vector, kind: str, parameters: Array) -> float:
    """Return the largest distance from ``parameters``, in units in the last place of ``kind``.

    The unit is the distance of neighbouring floats at the largest size that the exact parameter
    has had so far.
    """
    settings, probe = vector.settings, vector.probe
    start = probe.start[0]
    p = start.astype(kind)
    made: Any = vector.method
    optimizer = made(
        p,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        **(vector.options or {}),
    )
    found = np.empty_like(parameters)
    for t, gradient in enumerate(probe.gradients[:, 0].astype(kind)):
        if probe.rates is not None:
            optimizer.lr = float(probe.rates[t])
        optimizer.step(gradient)
        found[t] = p
    sizes = np.maximum.accumulate(np.abs(np.concatenate([start[None], parameters])), axis=0)[1:]
    return float((np.abs(found - parameters) / np.spacing(sizes.astype(kind))).max())


def _hexadecimal(values: Array) -> Any:
    if values.ndim > 1:
        return [_hexadecimal(each) for each in values]
    return [float(each).hex() for each in values]
