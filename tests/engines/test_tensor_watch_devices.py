"""A watch of tensors on other devices, and of some that raise or wait: stand-ins for torch's."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adamas.engines.native import TensorWatch

# ── other devices ──────────────────────────────────────────────────────────────────────────────


class Fake:
    """What is read of a tensor, without a tensor; on any device."""

    def __init__(self, address: int, device: str = "cuda:0", **others: Any) -> None:
        self.address = address
        self.device = torch.device(device)
        self.dtype = others.get("dtype", torch.float32)
        self.shape = others.get("shape", (2, 3))
        self.strides = others.get("strides", (3, 1))
        self.grad: Fake | None = None

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def data_ptr(self) -> int:
        return self.address


class _DLTensor(ctypes.Structure):
    """dlpack.h: DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_DLTensor))
_Refer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))


class _ExchangeApi(ctypes.Structure):
    """dlpack.h: DLPackExchangeAPI."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from", _Refer),
        ("managed_to", ctypes.c_void_p),
        ("describe", _Describe),
        ("stream", ctypes.c_void_p),
    )


_CODES = {torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16)}
_TYPES = {"cpu": 1, "cuda": 2, "xpu": 14}


@_Describe
def _describe(tensor: Fake, out: Any) -> int:
    found = out.contents
    rank = len(tensor.shape)
    tensor.sizes_kept = (ctypes.c_int64 * rank)(*tensor.shape)
    tensor.strides_kept = (ctypes.c_int64 * rank)(*tensor.strides)
    found.data, found.byte_offset = tensor.address - 8, 8
    found.device_type = _TYPES[tensor.device.type]
    found.device_id = tensor.device.index or 0
    found.ndim, found.lanes = rank, 1
    found.code, found.bits = _CODES[tensor.dtype]
    found.shape = ctypes.cast(tensor.sizes_kept, ctypes.POINTER(ctypes.c_int64))
    found.strides = ctypes.cast(tensor.strides_kept, ctypes.POINTER(ctypes.c_int64))
    return 0


@_Refer
def _refer(tensor: Fake, out: Any) -> int:
    out[0] = None
    return 0


_API = _ExchangeApi(1, 3, None, None, _refer, None, _describe, None)
_API_NAME = b"dlpack_exchange_api"  # a capsule keeps neither alive
_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class FastFake(Fake):
    """The same, through an exchange API."""

    __dlpack_c_exchange_api__ = _new(ctypes.addressof(_API), _API_NAME, None)


@pytest.fixture(params=[FastFake, Fake])
def fake(request: pytest.FixtureRequest) -> type[Fake]:
    return request.param


def watch_of(p: Fake, gradient: Fake | None) -> tuple[bool, int]:
    """Watch one parameter with a gradient as it should be, then look at ``gradient``."""
    groups = [{"params": [p]}]
    watch = TensorWatch(type(p), type(p), groups, [(p, {}, [])], [])
    assert watch.is_fast == isinstance(p, FastFake)
    addresses = np.zeros(1, np.int64)
    p.grad = gradient
    found = watch.gradients(groups, {}, addresses)
    return found, int(addresses[0])


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:1", "xpu:0"])
def test_tensors_of_all_devices_are_watched(fake, device):
    high = 0x7FFF_1234_5678
    assert watch_of(fake(0x1000, device), fake(high, device)) == (True, high)
    assert watch_of(fake(0x1000, device), fake(0x1000, device))[0] is False


@pytest.mark.parametrize(
    ("one", "other"),
    [("cuda:0", "cuda:1"), ("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "xpu:0")],
)
def test_a_gradient_on_another_device_is_seen(fake, one, other):
    assert watch_of(fake(0x1000, one), fake(0x2000, other))[0] is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_two_half_precisions_are_told_apart(fake, dtype):
    for other in (torch.float16, torch.bfloat16):
        found, _ = watch_of(fake(0x1000, dtype=dtype), fake(0x2000, dtype=other))
        assert found == (dtype == other)


def test_dtypes_of_one_size_are_told_apart_without_the_exchange_api():
    dtypes = [
        *(torch.int64, torch.uint64, torch.float64, torch.complex64, torch.bool, torch.uint8),
        *(torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16, torch.float16),
    ]
    for dtype in dtypes:
        for other in dtypes:
            found, _ = watch_of(Fake(0x1000, dtype=dtype), Fake(0x2000, dtype=other))
            assert found == (dtype == other), (dtype, other)


def test_a_parameter_that_moves_to_another_device_under_its_address_is_seen(fake):
    p = fake(0x1000, "cuda:0")
    p.grad = fake(0x2000, "cuda:0")
    groups = [{"params": [p]}]
    watch = TensorWatch(fake, fake, groups, [(p, {}, [])], [])
    assert watch.gradients(groups, {}, np.zeros(1, np.int64))
    p.device = p.grad.device = torch.device("cuda:1")
    assert watch.gradients(groups, {}, np.zeros(1, np.int64)) is False


@pytest.mark.parametrize("idle", [True, False])
def test_an_error_of_a_parameter_is_passed_on(idle):
    class Broken(Fake):
        @property
        def grad(self) -> Any:
            raise KeyError("no gradient today")

        @grad.setter
        def grad(self, value: Any) -> None:
            pass

    p = Broken(0x1000)
    watch = TensorWatch(Fake, Broken, [], [] if idle else [(p, {}, [])], [p] if idle else [])
    for _ in range(2):
        with pytest.raises(KeyError, match="no gradient today"):
            watch.gradients([], {}, np.zeros(0 if idle else 1, np.int64))


def test_two_threads_in_one_watch_are_refused():
    inside, leave = threading.Event(), threading.Event()

    class Slow(Fake):
        def data_ptr(self) -> int:
            if threading.current_thread() is other:
                inside.set()
                assert leave.wait(60)
            return super().data_ptr()

    p = Slow(0x1000)
    p.grad = Fake(0x2000)
    groups = [{"params": [p]}]
    addresses = np.zeros(1, np.int64)
    seen = SimpleNamespace(found=None)

    def look() -> None:
        seen.found = watch.gradients(groups, {}, addresses)

    other = threading.Thread(target=look)
    watch = TensorWatch(Fake, Slow, groups, [(p, {}, [])], [])
    other.start()
    try:
        assert inside.wait(60)
        with pytest.raises(
            RuntimeError, match=r"^This optimizer is making a step in another thread\.$"
        ):
            watch.gradients(groups, {}, np.zeros(1, np.int64))
    finally:
        leave.set()
        other.join()
    assert seen.found is True
    assert addresses[0] == 0x2000
    assert watch.gradients(groups, {}, np.zeros(1, np.int64))
