"""Floats whose powers are products, for functions that JavaScript repeats without powers."""

from __future__ import annotations


class Multiplied(float):
    """A float whose powers are products, as the page has them; libraries' powers round twice."""

    def __add__(self, other):
        return Multiplied(float(self) + float(other))

    def __sub__(self, other):
        return Multiplied(float(self) - float(other))

    def __rsub__(self, other):
        return Multiplied(float(other) - float(self))

    def __mul__(self, other):
        return Multiplied(float(self) * float(other))

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, count):
        product = Multiplied(1.0)
        for _ in range(count):
            product = product * self
        return product
