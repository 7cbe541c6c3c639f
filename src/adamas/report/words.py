"""Numbers as people read them."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

__all__ = ["counted", "date", "percent", "short", "was"]


def short(number: float) -> str:
    """Return a number with three digits: 0.0123, 1.2e-5, 12,300."""
    if isnan(number):
        return "NaN"
    if not isfinite(number):
        return "∞" if number > 0 else "−∞"
    if number and not 1e-3 <= abs(number) < 1e6:
        mantissa, _, exponent = f"{number:.2e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    return f"{float(f'{number:.3g}'):,.6g}"


def percent(fraction: float) -> str:
    """Return a fraction in percent with two digits; what is not all or nothing is never told so."""
    hundred = 100 * fraction
    if isnan(hundred) or not isfinite(hundred):
        return short(hundred)
    text = f"{hundred:.2g}" if hundred < 10 else f"{hundred:.0f}"
    if 0 < hundred < 0.01:
        text = short(hundred)
    if text == "100" and hundred < 100:
        text = "> 99"
    return f"{float(text):g} %" if "e" in text and hundred >= 0.01 else f"{text} %"


def counted(count: int, thing: str) -> str:
    """Return a count with what it is of: 1 step, 1,200 steps."""
    return f"{count:,} {thing}" + "s" * (count != 1)


def was(count: int) -> str:
    """Return the verb that goes with a count."""
    return "was" if count == 1 else "were"


def date(seconds: Any) -> str:
    """Return when that was, in UTC; nothing where it is no time."""
    from datetime import datetime, timezone

    try:
        return f"{datetime.fromtimestamp(float(seconds), timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
