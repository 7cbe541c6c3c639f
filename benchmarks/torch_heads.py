"""Measure steps of PyTorch parameters whose gradients come and go. See README.md."""

from save import measure

measure("torch_heads", ("torch heads",))
