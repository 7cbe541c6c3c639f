"""A recorder writes down what every 50th step of an optimizer did, as a run goes on.

    import adamas

    adamas.Recorder(optimizer, "run.jsonl")

That is all: it is called after each step, and has statistics taken in the steps alone that it
records. ``adamas.records`` tells the file, and reads it.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from adamas import epsilon, observing, records
from adamas.checks import check_number, kind, whole_number
from adamas.coefficients import at_step
from adamas.groups import ParameterGroup
from adamas.numpy import Optimizer
from adamas.observing import Called, Observed, Taken
from adamas.runs import Run
from adamas.settings import stepping
from adamas.state import State
from adamas.statistics import OfPart, values_of
from adamas.summary import by_reason, norms_of

__all__ = ["Recorder"]


class Recorder:
    """Writes norms, clip factor and statistics of every tensor to a file, every so many steps.

    It records the first step after it was made, and then each whose number is a multiple of
    ``every``. The optimizer may be one of NumPy arrays or of ``adamas.torch``, wrapped by
    Lightning or accelerate or not; it keeps the recorder alive. Its own ``statistics=`` stays as
    it is, and so do its bits. A file that is there goes on, with another header.

    Where tensors are sharded over processes every process makes a recorder, since all take part in
    the statistics; the one of ``rank`` writes. Where they are not, the others need none.

    What cannot be written is warned of, and the training goes on. A process that was forked
    records nothing.
    """

    def __init__(
        self,
        optimizer: Any,
        path: str | os.PathLike[str],
        every: int = 50,
        *,
        rank: int = 0,
    ) -> None:
        """Open the file. Raises OSError where it cannot be written.

        Raises TypeError for what is no optimizer of adamas, and ValueError where ``every`` is below
        1, where a group follows a rule that has no statistics, or where the file is no record.
        """
        self._every = _checked(every)
        self._path = _absolute(path)
        self._file = records.Writer(self._path)
        self._observed = _observed(optimizer, rank)
        self._process = os.getpid()
        self._header, self._frame = self._described(), self._observed.frame()
        #: How many steps there were, and which of them is the next that is recorded.
        self._count, self._due = 0, 1
        #: Steps of the runs that the file is of, where an optimizer that goes on counts none.
        self._before = 0
        #: Steps since the last line that clipped; None where one of them does not tell.
        self._clipped: int | None = 0
        self._notes: dict[str, Any] = {}
        #: Steps that were left out since the last one that was made and recorded.
        self._left_out = 0
        #: The last one that was made and recorded, the count then, and the state it was made of.
        self._last, self._last_count, self._origin = 0, 0, self._observed.origin()
        self._goes_back = False
        self._fails = self._is_over = self._is_closed = False
        if self._observed.is_writer:
            self._file.append(lambda: _stamped(self._header), is_new=True)
        self._is_step_clipped = self._observed.is_clipped
        self._leave = self._observed.follow(self._begin, self._stepped)

    @property
    def path(self) -> str:
        """Where the file is."""
        return self._path

    @property
    def every(self) -> int:
        """How many steps it is from one line to the next."""
        return self._every

    def note(self, **numbers: Any) -> None:
        """Add numbers of your own to the next line: ``recorder.note(loss=loss)``.

        Of several under one name the last counts. Tensors of one element are read when the line is
        written, so noting them in every step waits for no device. Raises TypeError for what is no
        number, ValueError for a DTensor that is not replicated, RuntimeError where the recorder was
        closed.
        """
        if self._is_closed:
            raise RuntimeError("This recorder was closed, and writes no line any more.")
        self._notes |= {name: _number(name, value) for name, value in numbers.items()}

    def close(self) -> None:
        """Record no further step. Where tensors are sharded all processes close theirs."""
        self._is_closed = True
        self._leave()
        self._end()
        self._file.close()

    def _end(self) -> None:
        """Record no further step. Hooks stay: torch may be iterating over them now."""
        if not self._is_over:
            self._is_over = True
            self._observed.observe(wanted=False)

    def __enter__(self) -> Recorder:
        """Return the recorder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> Any:
        """Raise TypeError: a copy would write the same lines."""
        raise TypeError(
            "A Recorder can be neither pickled nor copied: it belongs to one optimizer in one "
            "process. Make one for the copy of the optimizer, with another path."
        )

    def __repr__(self) -> str:
        """Name the file."""
        closed = ", closed" if self._is_closed else ""
        return f"<adamas.Recorder: {self._path}, every {self._every} steps{closed}>"

    # -- in the midst of a training ------------------------------------------------------------

    def _begin(self) -> None:
        """Before the first step: have it observed, or see that there is nothing to do."""
        if self._observed.is_writer and self._observed.goes_on_uncounted():
            with suppress(OSError, ValueError):
                self._before = records.last_step(self._path)
        self._ask()

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        """After each step."""
        self._count = count = self._count + 1
        if self._clipped is not None and (clipped := self._is_step_clipped(optimizer)) is not False:
            self._clipped = None if clipped is None else self._clipped + clipped
        if count + 1 < self._due:  # as nearly always
            return
        if self._count == 1:
            self._observed.begun()
        if self._is_over or os.getpid() != self._process:
            self._end()
        elif self._count < self._due:
            self._ask()
        else:
            self._record()

    def _ask(self) -> None:
        """Have the next step observed."""
        if self._observed.begin(self._every):
            self._observed.observe(wanted=True)
        else:
            self._end()

    def _record(self) -> None:
        """Write down the last step, and see which is the next."""
        self._due = self._count + 1
        try:
            taken = self._observed.taken()
            if taken is None:  # nothing was asked of it
                self._ask()
            else:
                self._take(taken)
        except Exception as error:
            self._warn(error)
        if self._count + 1 < self._due:
            self._observed.observe(wanted=False)

    def _take(self, taken: Taken) -> None:
        number = self._count if taken.step is None else taken.step
        if taken.step is not None and taken.tensors is not None:
            number = self._follows(number)
        # Where steps are left out the next one is recorded, and a line of every 50th of them.
        is_due = taken.tensors is not None or self._left_out % self._every == 0
        if taken.tensors is None:
            self._left_out += 1
        else:
            self._left_out = 0
            left = self._every - number % self._every
            if 2 * left < self._every and self._count > 1:
                left += self._every  # no two lines close together
            self._due = self._count + left
        if not is_due:
            return
        if self._observed.is_writer:
            told = number if taken.step is not None else self._before + number
            self._write(_line(told, taken, self._clipped, self._notes))
        self._clipped, self._notes = 0, {}  # what could not be written stays for the next line

    def _follows(self, number: int) -> int:
        """Return the number of a step that was made, after those of before."""
        origin = self._observed.origin()
        if number <= self._last:
            if origin == self._origin:  # of tensors that were first stepped late
                number = self._last + self._count - self._last_count
            else:  # an earlier state was loaded
                self._goes_back = True
        self._last, self._last_count, self._origin = number, self._count, origin
        return number

    def _write(self, line: dict[str, Any]) -> None:
        frame, header, is_new = self._observed.frame(), self._header, self._goes_back
        if frame != self._frame or is_new:
            described = self._described()
            is_new = is_new or _lasting(described) != _lasting(header)
            header = described if is_new else header
        self._file.append(lambda: _stamped(header), line, is_new=is_new)
        self._header, self._frame, self._fails = header, frame, False
        self._goes_back = False

    def _warn(self, error: Exception) -> None:
        if not self._fails:
            warnings.warn(
                f"A step could not be recorded in {self._path}: {error!r}. The training goes on, "
                "and so does the record as soon as it can; nothing more is said until then.",
                RuntimeWarning,
                stacklevel=4,
            )
        self._fails = True

    def _described(self) -> dict[str, Any]:
        return {"every": self._every, **self._observed.description()}


def _stamped(header: Mapping[str, Any]) -> dict[str, Any]:
    from adamas import __version__

    return {"version": __version__, "time": time.time(), **header}


def _line(
    number: int, taken: Taken, clipped: int | None, notes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the line of a step."""
    line: dict[str, Any] = {"step": number, "time": time.time(), "lr": taken.lr}
    if taken.gradient_norm is not None:
        line["gradient_norm"] = taken.gradient_norm
    if taken.clip_factor is not None:
        line["clip_factor"] = taken.clip_factor
    line["skipped"] = taken.skipped
    if taken.is_clipping and clipped is not None:
        line["clipped"] = clipped
    if taken.tensors is not None:
        line["tensors"] = taken.tensors
    if notes:
        line["notes"] = {name: float(_item(value)) for name, value in notes.items()}
    return line


def _lasting(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a header is not changed by schedules of any kind."""
    scheduled = ("lr", "betas", "weight_decay")
    groups = [
        {key: value for key, value in group.items() if key not in scheduled}
        for group in header["groups"]
    ]
    phase = {
        key: value is not None if key in ("clip_norm", "clip_update", "skip_above") else value
        for key, value in header["phase"].items()
    }
    return {**header, "groups": groups, "phase": phase}


class _Arrays(Observed):
    """An optimizer of NumPy arrays."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer: Callable[[], Any] = weakref.ref(optimizer)

    @property
    def _run(self) -> Run:
        return self._optimizer()._run

    def description(self) -> dict[str, Any]:
        optimizer = self._optimizer()
        named = self._run.parameters.named
        return {
            "method": type(optimizer).__name__,
            "phase": observing.shown(vars(optimizer.phase)),
            "groups": [_plain(group) for group in optimizer.groups],
            "parameters": {
                name: {"shape": list(p.shape), "dtype": str(p.dtype)} for name, p in named
            },
        }

    def frame(self) -> Any:
        run = self._run
        return run.phase, [(group.options, group.names) for group in run.parameters.groups]

    def origin(self) -> Any:
        return id(self._run.parameters)

    def follow(self, before_first: Called, after: Called) -> Callable[[], None]:
        handle = self._optimizer().register_step_post_hook(after)
        before_first()
        return handle.remove

    def begin(self, every: int) -> bool:  # noqa: ARG002
        return True

    def observe(self, *, wanted: bool) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._observe(self, wanted)

    def is_clipped(self, optimizer: Any) -> bool | None:
        return optimizer._run.is_clipped()

    def taken(self) -> Taken | None:
        run = self._run
        outcome = run.outcome
        parts: Any = None if outcome is None else outcome.statistics
        if outcome is None or (outcome.applied and parts is None):
            return None
        norm = outcome.norm
        if norm is None and parts is not None:
            norm = norms_of(parts, gradients_only=True)[0]
        return Taken(
            step=run.steps,
            lr=[*run.rates],
            gradient_norm=norm,
            is_clipping=run.phase.clip_norm is not None,
            clip_factor=run.clip_factor_of(outcome),
            skipped=by_reason(run.skipped),
            tensors=None if parts is None else _tensors(run, parts),
        )


def _tensors(run: Run, parts: Sequence[OfPart]) -> dict[str, dict[str, float]]:
    """Return the statistics of each array by name, with ε's share."""
    names: list[str] = []
    states: list[State] = []
    bounds: list[float] = []
    for group in run.parameters.groups:
        bound = epsilon.v_bound(at_step(group.options, run.steps, 0.0))
        names += group.names
        states += group.states
        bounds += [bound] * len(group.names)
    found = dict(zip(names, values_of(parts), strict=True))
    shares = epsilon.shares_below(states, bounds)
    for values, share in zip(found.values(), shares, strict=True):
        if share is not None:
            values["below_eps"] = share
    return found


def _plain(group: ParameterGroup) -> dict[str, Any]:
    given = group.plain()
    numbers = ("lr", "betas", "eps", "weight_decay")
    own = {name: given[name] for name in (*numbers, *observing.CHOICES, "state", "rounding")}
    return {**own, "parameters": given["params"]}


def _observed(optimizer: Any, rank: int) -> Observed:
    """Return an optimizer as a recorder sees it."""
    stands = stepping(optimizer)
    if isinstance(stands, Optimizer):
        return _Arrays(stands)
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(stands, torch.optim.Optimizer):
        from adamas.torch import Optimizer as OfTensors
        from adamas.torch.recording import Tensors

        if isinstance(stands, OfTensors):
            return Tensors(stands, rank)
        name = type(stands).__name__
        raise TypeError(
            f"Recorder() got torch.optim.{name}, whose steps take no statistics. Make an optimizer "
            "of adamas.torch, which takes the same arguments: "
            "from adamas.torch import AdamW, for example."
        )
    raise TypeError(
        f"Recorder() got {kind(optimizer)}, but it takes an optimizer of adamas (of NumPy arrays) "
        "or of adamas.torch."
    )


def _absolute(path: Any) -> str:
    try:
        return str(Path(os.fsdecode(path)).absolute())
    except TypeError:
        raise TypeError(
            f"path is {kind(path)}, but it must be the name of a file: a str, bytes or "
            "pathlib.Path. It stands behind the optimizer."
        ) from None


def _checked(every: Any) -> int:
    number = whole_number(every)
    if number is None:
        raise TypeError(f"every is {every!r}, but it must be a whole number of steps.")
    if number < 1:
        raise ValueError(f"every is {number}, but it must be at least 1.")
    return number


def _number(name: str, value: Any) -> Any:
    """Return a number, or what will be one when it is read."""
    if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        value = value.item()  # now: an array may be written to before the next line
    if isinstance(value, Real):
        return float(value) if isinstance(value, bool) else check_number(name, value)
    shape = getattr(value, "shape", None)
    if not hasattr(value, "item") or shape is None or math.prod(shape) != 1 or _is_complex(value):
        raise TypeError(
            f"{name} is {kind(value)}, but what is noted must be a number, or an array or tensor "
            "of one real element."
        )
    placements = getattr(value, "placements", ())  # of a DTensor
    if not all(placement.is_replicate() for placement in placements):
        raise ValueError(
            f"{name} is a DTensor of which no process has the value (its placements are "
            f"{placements}). Note {name}.full_tensor(), which all processes call."
        )
    detach = getattr(value, "detach", None)
    return value if detach is None else detach()


def _is_complex(value: Any) -> bool:
    return value.is_complex() if hasattr(value, "is_complex") else np.iscomplexobj(value)


def _item(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
