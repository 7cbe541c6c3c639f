"""Measure steps: CUDA tensors. See README.md."""

from save import measure

measure("cuda_step", ("cuda step",), on_cuda=True)
