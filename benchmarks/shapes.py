"""Shapes of parameters that rows have in common."""

from __future__ import annotations

Shapes = tuple[tuple[int, ...], ...]

#: A small multilayer perceptron: 5,702 parameters.
MLP: Shapes = ((50, 64), (50,), (40, 50), (40,), (10, 40), (10,))
MANY: Shapes = ((2080,),) * 128
SIXTY: Shapes = ((32,),) * 60


def _transformer() -> Shapes:
    """Return the shapes of a small transformer: 6 layers of width 256, 4.7 M parameters."""
    width = 256
    layer = (
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
        *((width,),) * 4,
    )
    return layer * 6


TRANSFORMER = _transformer()


def gpt2(layers: int) -> Shapes:
    """Return the shapes of GPT-2's parameters, the smallest: Radford et al. 2019, section 2.3.

    That has 12 layers.
    """
    width, vocabulary, positions = 768, 50257, 1024
    norm = ((width,), (width,))
    layer = (
        *norm,
        *((width, 3 * width), (3 * width,)),  # query, key and value
        *((width, width), (width,)),
        *norm,
        *((width, 4 * width), (4 * width,)),
        *((4 * width, width), (width,)),
    )
    return ((vocabulary, width), (positions, width), *layer * layers, *norm)


GPT2 = gpt2(12)
#: 24 arrays of three kinds.
THREE_KINDS: Shapes = ((256, 256), (256,), (256, 1024)) * 8
