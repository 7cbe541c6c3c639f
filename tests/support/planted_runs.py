"""Small trainings whose records show one finding each, and healthy ones that show none.

Each is a real training of a small network, a second or less. What is planted is what the name of
the function says; all else is as in `healthy`.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch

import adamas
from adamas.torch import SGD, AdamW

STEPS, EVERY = 400, 10
#: v averages over 20 steps, and the warm-up is longer than twice that.
BETAS, WARMUP = (0.9, 0.95), 60


def network(activation=torch.nn.Tanh):
    torch.manual_seed(0)
    layers = []
    for _ in range(4):
        layers += [torch.nn.Linear(16, 16), activation()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(16, 4))


def rate(step):
    """Rises over `WARMUP` steps, and falls along a cosine to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.55 + 0.45 * math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))


@contextmanager
def one_thread():
    """torch's threads wait by spinning, and what they share here is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def warm(step, steps=WARMUP):
    """Rises over so many steps, and stays."""
    return min(1.0, (step + 1) / steps)


def train(path, model, optimizer, *, schedule=rate, spoil=None, steps=STEPS, loss_of=None):
    """Learn which quarter of a plane points lie in, and record it."""
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(16, 4, generator=generator)
    dtype = next(model.parameters()).dtype
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    with one_thread(), adamas.Recorder(optimizer, path, every=EVERY) as recorder:
        for step in range(steps):
            inputs = torch.randn(64, 16, generator=generator)
            targets = (inputs @ teacher + torch.randn(64, 4, generator=generator)).argmax(1)
            scores = model(inputs.to(dtype)).float()
            if loss_of is None:
                loss = torch.nn.functional.cross_entropy(scores, targets)
            else:
                loss = loss_of(scores)
            optimizer.zero_grad()
            loss.backward()
            if spoil is not None:
                spoil(step, model)
            recorder.note(loss=loss.item())
            optimizer.step()
            scheduler.step()
    return model


def trained(path, model=None, *, steps=STEPS, schedule=rate, spoil=None, loss_of=None, **options):
    model = network() if model is None else model
    given = {"lr": 3e-3, "betas": BETAS, "weight_decay": 0.01} | options
    optimizer = AdamW(model.named_parameters(), **given)
    return train(
        path, model, optimizer, steps=steps, schedule=schedule, spoil=spoil, loss_of=loss_of
    )


def healthy(path):
    trained(path, clip_norm=10.0, on_nonfinite="skip")


def healthy_bfloat16(path):
    """Moves by what rounding to nearest would lose, which the remainder keeps."""
    trained(path, network().bfloat16(), lr=3e-4, rounding="remainder")


def healthy_embedding(path):
    """Most rows are in no batch: their elements have no gradient, and stay."""
    torch.manual_seed(0)

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(400, 16)
            self.rest = network()

        def forward(self, inputs):
            return self.rest(inputs + self.words(torch.arange(64)))

    trained(path, Words(), weight_decay=0.0)


def healthy_sgd(path):
    model = network()
    train(path, model, SGD(model.named_parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4))


def stand_still(path):
    trained(path, network().bfloat16(), lr=3e-5)


def epsilon_above_root(path):
    trained(path, eps=0.3)


def dead_tensors(path):
    model = network(torch.nn.ReLU)
    with torch.no_grad():
        model[4].bias.fill_(-100.0)
    trained(path, model)


def uneven_layers(path):
    model = network()
    groups = [
        {"params": [(n, p) for n, p in model.named_parameters() if n != "4.weight"]},
        {"params": [("4.weight", model[4].weight)], "lr": 3.0, "weight_decay": 0.1},
    ]
    train(path, model, AdamW(groups, lr=3e-3, betas=BETAS))


def clipped_always(path):
    trained(path, clip_norm=1e-2)


def old_square(path):
    # The rate rises to the end, so nothing can be said of a warm-up.
    trained(path, betas=(0.9, 0.999), schedule=lambda step: warm(step, STEPS))


def short_warmup(path):
    trained(path, schedule=lambda step: warm(step, 10))


def grow_without_end(path):
    """A critic that tells points from moved ones, by a score that nothing bounds."""

    class Critic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.score = torch.nn.Linear(16, 1, bias=False)

        def forward(self, inputs):
            return self.score(inputs) - self.score(inputs.flip(0) + 0.5)

    trained(path, Critic(), weight_decay=0.0, schedule=warm, loss_of=torch.mean)


def nonfinite_gradients(path):
    def spoil(step, model):
        if step in (100, 200):
            model[2].weight.grad[3, 5] = math.inf

    trained(path, spoil=spoil, on_nonfinite="skip")


def spikes(path):
    def spoil(step, model):
        if step in (150, 250, 251):
            for parameter in model.parameters():
                parameter.grad.mul_(100.0)

    trained(path, spoil=spoil, skip_above=6.0)


HEALTHY = (healthy, healthy_bfloat16, healthy_embedding, healthy_sgd)
PLANTED = (
    stand_still,
    epsilon_above_root,
    dead_tensors,
    uneven_layers,
    clipped_always,
    old_square,
    short_warmup,
    grow_without_end,
    nonfinite_gradients,
    spikes,
)
