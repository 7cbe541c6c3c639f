"""Measure clipping, step, averaging and copy together: CUDA tensors. See README.md."""

from save import measure

measure("cuda_phase", ("cuda phase",), on_cuda=True)
