"""Measure steps: JAX arrays. See README.md."""

from save import measure

measure("jax_step", ("JAX step",))
