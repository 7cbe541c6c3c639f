"""Step each parameter within the backward pass, so that its gradient is freed at once.

Counts the bytes of all tensors that are alive, with and without, and compares the parameters.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adamas.torch import AdamW

LAYERS, WIDTH = 16, 256


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is open, at most at one time."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        if storage not in self.known:
            self.known.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.free, storage.nbytes())

    def free(self, nbytes):
        self.alive -= nbytes


def train(release):
    """Return the trained parameters, and the bytes that training took at most."""
    torch.manual_seed(0)
    images = torch.randn(8, WIDTH)
    with Memory() as memory:
        layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
        model = torch.nn.Sequential(*layers)
        optimizer = AdamW(model.parameters(), lr=1e-3, state="8bit")

        def step_and_free(parameter):
            optimizer.step()  # the only parameter that has a gradient now
            parameter.grad = None

        if release:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(step_and_free)
        for _ in range(3):
            model(images).square().mean().backward()
            if not release:
                optimizer.step()
                optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], memory.peak


expected, before = train(release=False)
trained, after = train(release=True)
size = sum(p.numel() for p in trained)
for name, peak in {"step after backward": before, "gradient release": after}.items():
    print(f"{name:20} {peak / size:5.2f} bytes for each parameter at the peak")

assert all(map(torch.equal, trained, expected)), "the same bits"
# All gradients but one layer's are never there.
assert before - after > 0.9 * 4 * size * (LAYERS - 1) / LAYERS
