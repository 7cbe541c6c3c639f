"""What in a module or file could be an Adam: told by names and signatures, before it is run."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from adamas.checking.conventions import METHODS
from adamas.checking.roles import roles_of_function, roles_of_loop
from adamas.checking.subjects import (
    CannotCheckError,
    Subject,
    arguments_of,
    find,
    signature_of,
)
from adamas.importing import module_of, offer

__all__ = ["candidates", "the_one"]


def candidates(place: str) -> tuple[Subject, ...] | None:
    """Return what in a module or file could be an Adam, in its own order; None for ``place:name``.

    Raises CannotCheckError where there is no such place, or nothing like an Adam in it.
    """
    if ":" in place and not place.endswith(".py"):
        return None
    module = _module(place)
    found = tuple(
        Subject(f"{place}:{name}", make, {})
        for name, make in _callables(module)
        if _could_be_an_adam(name, make)
    )
    if not found:
        hint = f"Name what is meant: adamas check {place}:name"
        if place.endswith(".py"):
            hint = offer(module, place)
        raise CannotCheckError(
            f"Nothing in {place} looks like an Adam: no class with one of the methods "
            f"{', '.join(METHODS[:4])} …, and no function that takes lr, betas or ε and makes an "
            f"optimizer or a step. {hint}"
        )
    return found


def the_one(place: str) -> Subject | None:
    """Return the only candidate in a module or file; None for ``place:name``.

    Raises CannotCheckError where there are several, and names them all.
    """
    found = candidates(place)
    if found is None or len(found) == 1:
        return None if found is None else found[0]
    names = ", ".join(each.name for each in found)
    raise CannotCheckError(
        f"{place!r} is a place, but it does not say what in it. Possible are {names}."
    )


def _module(place: str) -> Any:
    try:
        return module_of(place, "Class")
    except ValueError as error:
        cause = error.__cause__
        parent, _, last = place.rpartition(".")
        is_name = not parent or hasattr(sys.modules.get(parent), last)
        is_missing = isinstance(cause, ModuleNotFoundError) and f"{place}.".startswith(
            f"{cause.name}."
        )
        if not (is_name and is_missing):
            raise CannotCheckError(str(error)) from cause
    # A name without its colon: what says so raises.
    return find(place, {})


def _callables(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions and classes that are of a module, or exported by it."""
    exported = list(getattr(module, "__all__", ()))
    # Under which a package keeps what it exports; a file stands alone.
    home = module.__name__.partition(".")[0]
    seen: list[Any] = []
    for name in dict.fromkeys([*exported, *vars(module)]):
        value: Any = None
        # What is loaded when it is asked for may need what is missing.
        with suppress(Exception, SystemExit):
            value = getattr(module, name, None)
        if not callable(value) or name.startswith("_") or any(value is each for each in seen):
            continue
        where = str(getattr(value, "__module__", None)).partition(".")[0]
        if name in exported or where == home:
            seen.append(value)
            yield name, value


def _could_be_an_adam(name: str, make: Callable[..., Any]) -> bool:
    is_named_so = re.search("adam", name, re.IGNORECASE) is not None
    is_class = isinstance(make, type)
    if is_class:
        if issubclass(make, BaseException) or not _steps(make):
            return False
        if inspect.isabstract(make):
            return False
    signature = signature_of(make)
    if signature is None:
        return is_named_so
    names = arguments_of(signature, {}).names
    # A lone alpha or decay is an argument of many things.
    is_set = {"betas", "beta1", "beta2"} & set(names) or names.get("lr") not in (None, "alpha", "α")
    if is_set or is_named_so:
        return True
    if is_class:
        return False
    roles = roles_of_function(signature)
    is_step = roles is not None and re.search(r"step|update|optimi[sz]e$", name, re.IGNORECASE)
    return bool(is_step) or roles_of_loop(signature) is not None


def _steps(kind: type) -> bool:
    """Return whether objects of a class have a method that makes a step."""
    methods = {name for each in kind.__mro__[:-1] for name in vars(each)}
    return bool(methods & {*METHODS})
