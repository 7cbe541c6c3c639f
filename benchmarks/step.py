"""Measure steps: NumPy, bandwidth and import. See README.md."""

from save import measure

measure("step", ("NumPy", "step", "import"))
