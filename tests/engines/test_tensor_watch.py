"""Whether the tensors of a torch.optim.Optimizer are those that a plan was made for."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from adamas.engines.native import TensorWatch

NAMES = ("exp_avg", "exp_avg_sq", "step")


class Watched:
    """Parameters of many layouts and dtypes with their state, and one without a gradient."""

    def __init__(self) -> None:
        values = [
            torch.randn(3, 4),
            torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            torch.randn(5, dtype=torch.float64),
            torch.randn(2, 3, dtype=torch.bfloat16),
            torch.randn(0, 3),
            torch.randn(()),
        ]
        self.parameters = [nn.Parameter(value) for value in values]
        for p in self.parameters:
            p.grad = torch.randn_like(p)
        self.idle = nn.Parameter(torch.randn(2))
        self.groups: list[dict[str, Any]] = [
            {"params": self.parameters[:2], "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8},
            {"params": [*self.parameters[2:], self.idle], "lr": 0.2, "betas": (0.9, 0.99)},
        ]
        self.state: dict[Any, dict[str, Any]] = {
            p: {
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
                "step": torch.tensor(0.0),
                "top": 3,
            }
            for p in self.parameters
        }
        self.copies = [torch.zeros_like(p, dtype=torch.float16) for p in self.parameters]
        self.addresses = np.zeros(len(self.parameters), np.int64)
        self.watch = self.made()

    def made(self) -> TensorWatch:
        members = [
            (p, self.state[p], [copy]) for p, copy in zip(self.parameters, self.copies, strict=True)
        ]
        return TensorWatch(torch.Tensor, nn.Parameter, self.groups, members, [self.idle])

    def is_as_it_was(self) -> bool:
        return self.watch.gradients(self.groups, self.state, self.addresses)


@pytest.fixture(params=["exchange API", "data_ptr"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    fast = request.param == "exchange API"
    if not fast:
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    watched = Watched()
    assert watched.watch.is_fast == fast
    assert watched.is_as_it_was()
    return watched


def test_the_addresses_are_those_of_the_gradients(watched):
    for _ in range(3):
        watched.addresses[:] = -1
        for p in watched.parameters:
            p.grad = torch.randn_like(p)
        assert watched.is_as_it_was()
        assert watched.addresses.tolist() == [p.grad.data_ptr() for p in watched.parameters]


def test_a_gradient_that_no_python_object_stands_for_has_its_address(watched):
    for _ in range(3):
        for p in watched.parameters:
            p.grad = None
        torch.autograd.backward([p * p for p in watched.parameters], [*watched.parameters])
        assert watched.is_as_it_was()
        assert watched.addresses.tolist() == [p.grad.data_ptr() for p in watched.parameters]


def test_a_gradient_of_a_subclass_is_one_where_nobody_else_holds_its_object(watched):
    watched.parameters[0].grad = torch.zeros(3, 4).as_subclass(Subclass)
    gc.collect()
    assert not watched.is_as_it_was()
    assert type(watched.parameters[0].grad) is Subclass


def test_the_gradient_of_a_parameter_whose_class_has_its_own_is_asked_for(watched):
    class Other(nn.Parameter):
        @property
        def grad(self):
            return None

    assert watched.is_as_it_was()
    watched.idle.grad = torch.zeros(2)
    assert not watched.is_as_it_was()
    watched.idle.__class__ = Other
    assert watched.is_as_it_was()


@pytest.mark.parametrize("given", [None, 12345, torch.zeros(3, 4)])
def test_a_mode_may_give_anything_for_torch_functions_while_a_watch_is_made(watched, given):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return given if func is torch.Tensor.detach else func(*args, **(kwargs or {}))

    with Mode():
        watched.watch = watched.made()
        assert watched.is_as_it_was()
    assert watched.addresses.tolist() == [p.grad.data_ptr() for p in watched.parameters]


def test_a_gradient_that_is_a_view_has_its_own_address(watched):
    p = watched.parameters[0]
    p.grad = torch.randn(2, *p.shape)[1]
    assert watched.is_as_it_was()
    assert watched.addresses[0] == p.grad.data_ptr()


# ── what changes ───────────────────────────────────────────────────────────────────────────────


def change_an_option(w):
    w.groups[0]["eps"] = 1e-6


def give_an_equal_option_that_is_another_object(w):
    w.groups[1]["betas"] = (*w.groups[1]["betas"],)


def add_an_option(w):
    w.groups[0]["weight_decay"] = 0.1


def remove_an_option(w):
    del w.groups[0]["eps"]


def remove_the_learning_rate(w):
    del w.groups[0]["lr"]


def add_a_group(w):
    w.groups.append({"params": []})


def copy_a_group(w):
    w.groups[0] = dict(w.groups[0])


def swap_groups(w):
    w.groups.reverse()


def give_a_tuple_of_groups(w):
    w.groups = tuple(w.groups)


def replace_a_parameter(w):
    p = w.groups[0]["params"][0]
    w.groups[0]["params"][0] = nn.Parameter(p.detach())


def add_a_parameter(w):
    w.groups[0]["params"].append(nn.Parameter(torch.zeros(1)))


def remove_a_parameter(w):
    w.groups[1]["params"].pop()


def swap_the_data_of_a_parameter(w):
    w.parameters[0].data = w.parameters[0].data.clone()


def swap_the_data_of_a_channels_last_parameter(w):
    w.parameters[1].data = w.parameters[1].data.clone()


def cut_a_parameter_in_place(w):
    p = w.parameters[2]
    p.data = p.data[:4]
    p.grad = torch.zeros_like(p)


def transpose_a_parameter_in_place(w):
    p = w.parameters[0]
    p.data = p.data.T
    p.grad = torch.zeros_like(p)


def read_a_parameter_as_another_dtype(w):
    p = w.parameters[3]
    p.data = p.data.view(torch.float16)
    p.grad = torch.zeros_like(p)


def replace_the_state(w):
    w.state = [*w.state.items()]


def empty_the_state(w):
    w.state.clear()


def copy_the_state_of_a_parameter(w):
    w.state[w.parameters[1]] = dict(w.state[w.parameters[1]])


def remove_the_state_of_the_last_parameter(w):
    del w.state[w.parameters[-1]]


def replace_an_entry(w):
    entries = w.state[w.parameters[0]]
    entries["exp_avg"] = entries["exp_avg"].clone()


def add_an_entry(w):
    w.state[w.parameters[0]]["ema"] = torch.zeros(())


def remove_an_entry(w):
    del w.state[w.parameters[0]]["exp_avg_sq"]


def replace_an_entry_that_is_no_tensor(w):
    w.state[w.parameters[0]]["top"] = 4


def swap_the_data_of_an_entry(w):
    entry = w.state[w.parameters[3]]["exp_avg_sq"]
    entry.data = entry.data.clone()


def swap_the_data_of_a_step(w):
    entry = w.state[w.parameters[-1]]["step"]
    entry.data = entry.data.clone()


def swap_the_data_of_a_further_tensor(w):
    w.copies[0].data = w.copies[0].data.clone()


def take_a_gradient_away(w):
    w.parameters[2].grad = None


def give_an_idle_parameter_a_gradient(w):
    w.idle.grad = torch.zeros(2)


def give_a_gradient_of_another_dtype(w):
    w.parameters[0].grad.data = torch.zeros(3, 4, dtype=torch.float64)


def give_a_gradient_of_another_dtype_of_the_same_size(w):
    w.parameters[3].grad.data = torch.zeros(2, 3, dtype=torch.float16)


def give_a_gradient_of_another_shape(w):
    w.parameters[0].grad.data = torch.zeros(3, 5)


def give_a_gradient_of_another_shape_with_as_many_elements(w):
    w.parameters[0].grad.data = torch.zeros(4, 3)


def give_a_parameter_that_is_not_contiguous_another_shape(w):
    w.parameters[1].data = w.parameters[1].data.permute(1, 0, 2, 3)


def give_a_gradient_that_meets_an_entry_of_another_parameter(w):
    w.parameters[0].grad = w.state[w.parameters[1]]["exp_avg"].as_strided((3, 4), (4, 1), 108)


def give_a_gradient_that_meets_a_further_tensor(w):
    w.parameters[3].grad.data = w.copies[0].view(torch.bfloat16).view(-1)[:6].view(2, 3)


def swap_a_parameter(w):
    torch.utils.swap_tensors(w.parameters[0], nn.Parameter(torch.zeros(3, 4)))


def swap_an_entry(w):
    entry = w.state[w.parameters[0]]["exp_avg"]
    entry.requires_grad_()  # or torch swaps none
    torch.utils.swap_tensors(entry, torch.zeros(3, 4).requires_grad_())


def give_a_strided_gradient(w):
    w.parameters[0].grad = torch.zeros(3, 4, 2)[..., 0]


def give_a_transposed_gradient(w):
    w.parameters[0].grad = torch.zeros(4, 3).T


def give_a_contiguous_gradient_to_a_channels_last_parameter(w):
    w.parameters[1].grad = torch.zeros(2, 3, 4, 5)


def give_a_gradient_of_other_strides_to_a_channels_last_parameter(w):
    w.parameters[1].grad = torch.zeros(5, 4, 3, 2).permute(3, 2, 1, 0)


def give_a_sparse_gradient(w):
    w.parameters[0].grad = torch.zeros(3, 4).to_sparse()


def give_a_parameter_as_its_own_gradient(w):
    w.parameters[0].grad = w.parameters[0].detach()


class Subclass(torch.Tensor):
    """A tensor that may do anything."""


def give_a_gradient_of_a_subclass(w):
    w.parameters[0].grad = torch.zeros(3, 4).as_subclass(Subclass)


CHANGES = [
    *(change_an_option, give_an_equal_option_that_is_another_object, add_an_option),
    *(remove_an_option, remove_the_learning_rate, add_a_group, copy_a_group, swap_groups),
    *(give_a_tuple_of_groups, replace_a_parameter, add_a_parameter, remove_a_parameter),
    *(swap_the_data_of_a_parameter, swap_the_data_of_a_channels_last_parameter),
    *(cut_a_parameter_in_place, transpose_a_parameter_in_place),
    *(read_a_parameter_as_another_dtype, replace_the_state, empty_the_state),
    *(copy_the_state_of_a_parameter, remove_the_state_of_the_last_parameter, replace_an_entry),
    *(add_an_entry, remove_an_entry, replace_an_entry_that_is_no_tensor),
    *(swap_the_data_of_an_entry, swap_the_data_of_a_step, swap_the_data_of_a_further_tensor),
    *(take_a_gradient_away, give_an_idle_parameter_a_gradient, give_a_gradient_of_another_dtype),
    *(give_a_gradient_of_another_dtype_of_the_same_size, give_a_gradient_of_another_shape),
    give_a_gradient_of_another_shape_with_as_many_elements,
    give_a_parameter_that_is_not_contiguous_another_shape,
    give_a_gradient_that_meets_an_entry_of_another_parameter,
    *(give_a_gradient_that_meets_a_further_tensor, swap_a_parameter, swap_an_entry),
    *(give_a_strided_gradient, give_a_transposed_gradient),
    give_a_contiguous_gradient_to_a_channels_last_parameter,
    give_a_gradient_of_other_strides_to_a_channels_last_parameter,
    *(give_a_sparse_gradient, give_a_parameter_as_its_own_gradient, give_a_gradient_of_a_subclass),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_is_seen_at_once_and_each_time(watched, change):
    change(watched)
    assert watched.is_as_it_was() is False
    assert watched.is_as_it_was() is False


# ── what may change ────────────────────────────────────────────────────────────────────────────


class Unreadable:
    """A learning rate that nobody may look at."""

    def __float__(self) -> float:
        raise AssertionError("The learning rate was read.")

    __eq__ = __hash__ = __index__ = __bool__ = __float__  # type: ignore[assignment]


@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3), Unreadable()], ids=["float", "tensor", "-"])
def test_learning_rates_are_free_and_never_read(watched, lr):
    watched.groups[1]["lr"] = lr
    assert watched.is_as_it_was()


def test_an_option_that_is_as_it_was_again_is_the_same(watched):
    group, betas = watched.groups[0], watched.groups[0]["betas"]
    for _ in range(2):
        group["lr"], group["betas"] = 0.3, (0.5, 0.5)
        assert not watched.is_as_it_was()
        group["betas"] = betas
        assert watched.is_as_it_was()


def test_values_and_the_states_of_other_parameters_are_free(watched):
    with torch.no_grad():
        watched.parameters[0].add_(1)
        watched.state[watched.parameters[0]]["step"].add_(1)
    watched.state = {watched.idle: {}, **watched.state, nn.Parameter(torch.zeros(1)): {}}
    assert watched.is_as_it_was()


def test_a_gradient_may_be_a_parameter(watched):
    watched.parameters[0].grad = nn.Parameter(torch.zeros(3, 4))
    assert watched.is_as_it_was()
    assert watched.addresses[0] == watched.parameters[0].grad.data_ptr()


def test_strides_of_sizes_of_one_and_of_empty_tensors_do_not_matter(watched):
    p = nn.Parameter(torch.randn(4, 1, 3).as_strided((4, 1, 3), (3, 77, 1)))
    wide = nn.Parameter(torch.randn(8, 1, 3)[::2])
    empty = nn.Parameter(torch.randn(0, 3).as_strided((0, 3), (1, 50)))
    p.grad = torch.randn(4, 1, 3)
    wide.grad = torch.randn(8, 3)[::2].as_strided((4, 1, 3), (6, 5, 1))
    empty.grad = torch.randn(0, 3)
    members = [(each, {}, []) for each in (p, wide, empty)]
    groups = [{"params": [p, wide, empty]}]
    watch = TensorWatch(torch.Tensor, nn.Parameter, groups, members, [])
    addresses = np.zeros(3, np.int64)
    assert watch.gradients(groups, {}, addresses)
    assert addresses.tolist() == [p.grad.data_ptr(), wide.grad.data_ptr(), empty.grad.data_ptr()]


def test_a_state_entry_that_has_no_address_is_watched_as_an_object(watched):
    entries = watched.state[watched.parameters[0]]
    entries["mask"] = torch.zeros(3).to_sparse()
    watched.watch = watched.made()
    assert watched.is_as_it_was()
    entries["mask"] = torch.zeros(3).to_sparse()
    assert not watched.is_as_it_was()


def test_a_gradient_may_touch_what_is_written(watched):
    room = torch.zeros(36)
    watched.parameters[0].data = room[12:24].view(3, 4)
    watched.watch = watched.made()
    for first in (0, 24):
        watched.parameters[0].grad = room[first : first + 12].view(3, 4)
        assert watched.is_as_it_was()
    for first in (1, 11, 12, 13, 23):
        watched.parameters[0].grad = room[first : first + 12].view(3, 4)
        assert not watched.is_as_it_was()
    watched.parameters[0].grad = room[24:].view(3, 4)
    assert watched.is_as_it_was()


# ── references ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fits", [True, False])
def test_gradients_are_not_kept_alive(watched, fits):
    if not fits:
        give_a_transposed_gradient(watched)
    assert watched.is_as_it_was() is fits
    gradients = [weakref.ref(p.grad) for p in watched.parameters]
    for p in watched.parameters:
        p.grad = None
    assert [gradient() for gradient in gradients] == [None] * len(gradients)


def test_a_watch_lets_go_of_all_it_watched(watched):
    tensors = [
        *watched.parameters,
        *watched.copies,
        watched.idle,
        *(entries[name] for entries in watched.state.values() for name in NAMES),
    ]
    ends = [weakref.ref(tensor) for tensor in tensors]
    watch = watched.watch
    watched.__dict__.clear()
    del tensors
    gc.collect()
    assert all(end() is not None for end in ends)
    del watch
    gc.collect()
    assert [end for end in ends if end() is not None] == []


# ── errors ─────────────────────────────────────────────────────────────────────────────────────


def read_only(count: int) -> NDArray[np.int64]:
    array = np.zeros(count, np.int64)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "addresses",
    [
        *(np.zeros(5, np.int64), np.zeros(7, np.int64), np.zeros(6), np.zeros(6, np.uint64)),
        *(np.zeros(12, np.int64)[::2], read_only(6), [0] * 6),
    ],
    ids=["short", "long", "float64", "uint64", "strided", "read-only", "list"],
)
def test_addresses_that_cannot_be_written_are_refused(watched, addresses):
    message = (
        "The addresses need a writable, C-contiguous int64 array of 6 elements, "
        "one for each member."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        watched.watch.gradients(watched.groups, watched.state, addresses)
    assert watched.is_as_it_was()


@pytest.mark.parametrize("what", [None, 1.0, torch.zeros(2).to_sparse()])
def test_a_watch_of_what_is_no_plain_tensor_is_refused(watched, what):
    p = watched.parameters[0]
    for member in ((what, {}, []), (p, {}, [what])):
        with pytest.raises(ValueError, match=r"^A plan needs plain tensors\.$"):
            TensorWatch(torch.Tensor, nn.Parameter, [], [member], [])
