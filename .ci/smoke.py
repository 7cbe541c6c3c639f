"""One step of an installed adamas, told from a formula anybody can do in the head.

At step 1 the bias-corrected mean is g and the root of the corrected square is |g|, so Adam moves
every parameter by the learning rate against the sign of its gradient.
"""

import numpy

import adamas

lr = 0.125
start = numpy.array([1.0, -2.0, 3.0, 0.5], dtype=numpy.float32)
gradient = numpy.array([0.25, -4.0, 1e-3, 0.0], dtype=numpy.float32)

parameter = start.copy()
adamas.Adam(parameter, lr=lr).step(gradient)

expected = start - lr * numpy.sign(gradient)
# eps = 1e-8 against |g| >= 1e-3 moves the quotient by 1e-5 at most, and lr is below 1.
if not numpy.allclose(parameter, expected, rtol=0.0, atol=1e-5):
    raise SystemExit(f"a step from {start} gave {parameter} instead of {expected}")

print(f"adamas {adamas.__version__} at {adamas.__file__}: one step is right")
