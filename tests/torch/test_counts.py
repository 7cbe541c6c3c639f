"""The count of steps where float32 ends, at 2^24: it goes on in float64 on all routes."""

from __future__ import annotations

import contextlib
import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas.torch as ours  # noqa: E402
from adamas.engines.triton import devices  # noqa: E402
from adamas.torch import host_memory  # noqa: E402
from adamas.torch.counting import DeviceCounts  # noqa: E402
from adamas.torch.routes import offload  # noqa: E402
from tests.support.queues import Queues  # noqa: E402

LAST = 2**24


def stepped(optimizer, steps=1):
    for step in range(steps):
        for group in optimizer.param_groups:
            for i, p in enumerate(group["params"]):
                generator = torch.Generator().manual_seed(10 * step + i)
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return optimizer


def made(name="Adam", shape=(40,), **options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(3))]
    return getattr(ours, name)(params, lr=0.01, **options)


def counted(optimizer):
    return [(float(each["step"]), each["step"].dtype) for each in optimizer.state.values()]


def bits(optimizer):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    entries = [v for p in params for k, v in sorted(optimizer.state[p].items()) if k != "top"]
    return [each.detach().double().flatten().tolist() for each in (*params, *entries)]


@contextlib.contextmanager
def natively():
    yield


@contextlib.contextmanager
def offloaded():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(host_memory, "is_offloaded", lambda parameter: True)
        patched.setattr(offload, "CudaStreams", lambda device: Queues("late"))
        yield


@contextlib.contextmanager
def by_triton():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter, which takes CPU tensors, stands in for a card.")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(devices, "DEVICE_TYPES", ("cpu",))
        yield


ROUTES = {
    "native": (natively, {}),
    "torch": (natively, {"engine": "torch"}),
    "offload": (offloaded, {"offload": True}),
    "triton": (by_triton, {}),
    "fused": (natively, {"fused": True}),
    "clipped": (natively, {"clip_norm": 1.0}),
}


@pytest.mark.parametrize("options", [{}, {"state": "compact", "seed": 3}], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_counts_go_on_with_the_bits_of_one_in_float64(route, options):
    around, given = ROUTES[route]
    found = []
    for dtype in (torch.float32, torch.float64):
        with around():
            optimizer = stepped(made(**options, **given))
            for each in optimizer.state.values():
                each["step"] = torch.tensor(LAST - 2.0, dtype=dtype)
            stepped(optimizer, 6)
            assert counted(optimizer) == [(LAST + 4.0, torch.float64)] * 2
            taken = route if route in ("torch", "offload", "triton") else "native"
            assert {*optimizer.routes().values()} == {taken}
            found.append(bits(optimizer))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["NAdam", "RMSprop", "SGD"])
def test_so_do_those_of_other_methods(name):
    optimizer = stepped(made(name, state="float32"))
    for each in optimizer.state.values():
        each["step"].fill_(LAST - 1.0)
    stepped(optimizer, 3)
    assert [number for number, _ in counted(optimizer)] == [LAST + 2.0] * 2


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_a_count_beyond_float32_is_saved_and_loaded(options):
    optimizer = stepped(made(**options))
    saved = copy.deepcopy(optimizer.state_dict())
    for each in saved["state"].values():
        each["step"] = torch.tensor(LAST + 5.0, dtype=torch.float64)
    optimizer.load_state_dict(saved)
    stepped(optimizer, 2)
    assert [number for number, _ in counted(optimizer)] == [LAST + 7.0] * 2
    theirs = torch.optim.Adam([nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(3))])
    theirs.load_state_dict(optimizer.state_dict())
    if not options:  # else torch rounds it to float32
        assert [number for number, _ in counted(theirs)] == [LAST + 7.0] * 2


def test_random_bits_differ_from_step_to_step_beyond_float32():
    p = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    optimizer = ours.SGD([p], lr=2.0**-10, rounding="stochastic")
    moved = []
    for step in range(4):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        if step == 0:
            optimizer.state[p]["step"].fill_(LAST)
        else:
            moved.append(tuple((p != before).tolist()))
        with torch.no_grad():
            p.fill_(1)
    assert len(set(moved)) == 3


def test_a_count_on_a_device_is_read_when_it_is_first_seen_and_when_it_may_have_come_so_far():
    class Read(torch.Tensor):
        times = 0

        def item(self):
            Read.times += 1
            return super().item()

    counts = DeviceCounts()
    step = torch.tensor(LAST - 3.0).as_subclass(Read)
    for _ in range(2):
        assert counts.counting(step) is step
        last = counts.planned([step])
    assert Read.times == 1
    going = []
    for _ in range(4):
        going.append(counts.go_on(last))
        counts.step()
    assert going == [True, True, True, False]
    assert counts.counting(step) is step  # fewer steps were made than could have been
    assert Read.times == 2
    begun = torch.zeros(()).as_subclass(Read)
    counts.created(begun)
    assert counts.counting(begun) is begun
    assert Read.times == 2


@pytest.mark.parametrize("done", [-1.0, -2.0])
def test_a_count_that_was_made_negative_between_steps_is_refused(done):
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.AdamW([p])
    p.grad = torch.ones(4)
    optimizer.step()
    before = p.detach().clone()
    optimizer.state[p]["step"].fill_(done)
    with pytest.raises(ValueError, match="step"):
        optimizer.step()
    assert torch.equal(p.detach(), before)
