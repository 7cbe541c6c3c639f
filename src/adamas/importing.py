"""What a name stands for: ``"package.module:name"`` or ``"path/to/file.py:name"``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from adamas.checks import near

__all__ = ["called", "module_of", "offer"]

#: How many names an error offers.
_OFFERED = 8
#: What is a file, and not a module with an attribute.
_FILES = (".py", ".ipynb")


def called(name: str, what: str, likely: str = "") -> Callable[..., Any]:
    """Return the class or function that ``name`` stands for.

    ``what`` is "Class" or "function", as it stands in errors; where something is offered, names
    that match the pattern ``likely`` are offered rather than others. Raises ValueError, which says
    what is there.
    """
    place, _, attribute = name.rpartition(":")
    if name.endswith(_FILES):
        offered = offer(_from_file(name, what), name, likely)
        raise ValueError(f"{name!r} is a file, but it does not say what in it. {offered}")
    if not place:
        raise ValueError(f"{name!r} is neither {_ways(what)}.{_with_a_colon(name)}")
    found = module = module_of(place, what)
    for part in attribute.split("."):
        owner, found = found, getattr(found, part, None)
        if found is None:
            meant = near(part, _callables(owner))
            raise ValueError(f"{place} has no {attribute!r}.{meant} {offer(module, place, likely)}")
    if not callable(found):
        raise ValueError(
            f"{name} is {found!r:.80}, but it must be a class or a function. "
            f"{offer(module, place, likely)}"
        )
    return found


def module_of(place: str, what: str) -> Any:
    """Return the module that ``place``, a module's name or the path of a .py file, stands for.

    Raises ValueError as ``called`` does.
    """
    if place.endswith(_FILES):
        return _from_file(place, what)
    if place[:1] in ("", ".") or {"/", os.sep} & {*place}:
        raise ValueError(f"{place!r} is neither {_ways(what)}.{_with_a_colon(place)}")
    return _imported(place, what)


def _ways(what: str) -> str:
    return f"module:{what} nor path/to/file.py:{what}"


def _with_a_colon(name: str) -> str:
    if Path(f"{name}.py").is_file():
        return f" Did you mean '{name}.py'?"
    module, _, attribute = name.rpartition(".")
    return f" Did you mean '{module}:{attribute}'?" if module and attribute else ""


def _imported(name: str, what: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"The module {name!r} cannot be imported ({_told(error)})."
            f"{_near_module(name, error)} Give module:{what}, with the module in the "
            f"current directory or installed, or path/to/file.py:{what}."
        ) from error


def _near_module(name: str, error: BaseException) -> str:
    """Return an offer where a part of ``name`` is not there but another is nearly called so."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if not missing or not f"{name}.".startswith(f"{missing}."):
        return ""
    parent, _, last = missing.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", None)
    if parent and folders is None:
        return ""
    return near(last, (each.name for each in pkgutil.iter_modules(folders) if each.name[0] != "_"))


def _from_file(place: str, what: str) -> Any:
    path = Path(place)
    if path.suffix == ".ipynb":
        raise ValueError(
            f"{place} is a notebook, but what is run must be Python source. Write it as such with: "
            f"jupyter nbconvert --to script {place}"
        )
    if not path.is_file():
        there = sorted(each.name for each in path.parent.glob("*.py") if each.is_file())
        raise ValueError(
            f"There is no file {place}.{near(path.name, there)} Give path/to/file.py:{what}, from "
            "the current directory."
        )
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Under a name that hides no package, whatever the file is called.
    own = f"adamas_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(own, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python source. Give path/to/file.py:{what}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{path} cannot be run ({_told(error)}). It must be importable on its own."
        ) from error
    return module


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _callables(owner: Any) -> Iterable[str]:
    return (name for name in dir(owner) if name[0] != "_" and callable(getattr(owner, name, None)))


def offer(module: Any, place: str, likely: str = "") -> str:
    """Return a sentence with what in a module can be called, first what matches ``likely``."""
    home = f"{module.__name__}."
    names = [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        # What it imports from elsewhere is not meant.
        and f"{getattr(value, '__module__', None)}.".startswith(home)
    ]
    names = [name for name in names if re.search(likely, name, re.IGNORECASE)] or names
    if not names:
        return f"Nothing in {place} can be called."
    more = f" and {len(names) - _OFFERED} more" if len(names) > _OFFERED else ""
    return f"Possible are {', '.join(f'{place}:{each}' for each in names[:_OFFERED])}{more}."
