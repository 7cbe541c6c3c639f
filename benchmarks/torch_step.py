"""Measure steps: PyTorch parameters. See README.md."""

from save import measure

measure("torch_step", ("torch step",))
