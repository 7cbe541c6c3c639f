"""Measure the phase of PyTorch parameters. See README.md."""

from save import measure

measure("torch_phase", ("phase",))
