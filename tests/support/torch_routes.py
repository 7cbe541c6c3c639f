"""What has to stand in for a device, so that a step takes a route that this machine has not.

The one place that knows the inside of adamas.torch on behalf of ``torch_digests``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from tests.support.queues import ORDERS, Queues

__all__ = ["ROUTES", "standing_in"]

#: "native" and "plain" need nothing: the layout of parameters decides between them.
ROUTES = ("native", "plain", "triton", *(f"offload {order}" for order in ORDERS), "processes")


@contextmanager
def standing_in(route: str) -> Generator[torch.device]:
    """Give the device on which parameters have to be for a route, as long as the context is open.

    Where there is no GPU, the processor's tensors are taken for those of one: Triton's kernels then
    run in its interpreter, and what is offloaded is copied by queues at the worst moments.
    """
    if route == "triton":
        with _triton() as device:
            yield device
    elif route.startswith("offload "):
        with _offload(route.removeprefix("offload ")):
            yield torch.device("cpu")
    else:
        yield torch.device("cpu")


@contextmanager
def _triton() -> Generator[torch.device]:
    from adamas.engines.triton import devices
    from tests.support.triton_plans import DEVICE

    with mock.patch.object(devices, "DEVICE_TYPES", (DEVICE.type,)), np.errstate(all="ignore"):
        yield DEVICE


@contextmanager
def _offload(order: str) -> Generator[None]:
    from adamas.torch import host_memory
    from adamas.torch.routes import chunks, offload

    def takes(parameter: torch.Tensor) -> bool:
        return True

    def streams(device: torch.device) -> Queues:
        return Queues(order)

    with (
        mock.patch.object(host_memory, "is_offloaded", takes),
        mock.patch.object(offload, "CudaStreams", streams),
        mock.patch.object(chunks, "CHUNK", 1024),
    ):
        yield
