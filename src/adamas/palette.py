"""One colour for each method: in the pictures that the commands draw, and in the docs."""

from __future__ import annotations

__all__ = ["COLOURS"]

#: Colours that people with any colour vision can tell apart (Okabe & Ito 2008), on light and on
#: dark. "note" is Adam as a note has it that leaves the exponent t out of the bias correction.
COLOURS = {
    "Momentum": "#D55E00",
    "RMSProp": "#009E73",
    "Adam": "#0072B2",
    "note": "#CC79A7",
}
