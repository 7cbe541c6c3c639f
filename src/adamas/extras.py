"""Optional packages: imported where they are needed, with a way out where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["MissingExtraError", "require"]


class MissingExtraError(ModuleNotFoundError):
    """A package that a part of adamas needs is not installed."""


def require(module: str, who: str, extra: str, package: str) -> Any:
    """Return ``module``, or raise MissingExtraError saying that ``who`` needs ``package``."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'{who} needs {package}. Install it with: pip install "adamas[{extra}]"'
        ) from error
