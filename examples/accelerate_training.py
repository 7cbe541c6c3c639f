"""Train with accelerate in bfloat16 autocast; stop, save, load and go on with the same bits."""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits

from adamas.torch import AdamW

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)

accelerator = Accelerator(cpu=True, mixed_precision="bf16")


def prepared():
    set_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = AdamW(model.parameters(), lr=3e-3, clip_norm=1.0)
    return accelerator.prepare(model, optimizer)


def train(model, optimizer, steps):
    for step in steps:
        rows = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        with accelerator.autocast():
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
        accelerator.backward(loss)
        optimizer.step()


model, optimizer = prepared()
with tempfile.TemporaryDirectory() as folder:
    train(model, optimizer, range(150))
    accelerator.save_state(folder)
    train(model, optimizer, range(150, 300))
    unbroken = [p.detach().clone() for p in model.parameters()]
    accelerator.load_state(folder)
    train(model, optimizer, range(150, 300))

with torch.no_grad():
    right = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
print(f"{right:.1%} of the held-out digits; a resumed training gives the same bits")
assert right > 0.85
assert all(map(torch.equal, model.parameters(), unbroken))
