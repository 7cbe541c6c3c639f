"""Train a network with PyTorch: clipping, averaged weights and statistics within the step."""

import torch

from adamas.torch import AdamW, param_groups

torch.manual_seed(0)
inputs = torch.randn(512, 10)
targets = (inputs[:, :1] * inputs[:, 1:2]).sin()

model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
optimizer = AdamW(
    param_groups(model, weight_decay=0.01),
    lr=1e-2,
    clip_norm=1.0,
    ema=0.99,
    statistics=True,
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600)


def loss_of(rows):
    return torch.nn.functional.mse_loss(model(inputs[rows]), targets[rows])


first = loss_of(slice(None)).item()
for _ in range(600):
    optimizer.zero_grad()
    loss_of(torch.randint(0, 512, (64,))).backward()
    optimizer.step()
    scheduler.step()

with optimizer.ema_weights():
    averaged = loss_of(slice(None)).item()
print(f"loss {first:.4f} → {averaged:.4f} (averaged weights)")
for tag, value in optimizer.statistics().items():
    if tag.endswith("largest_update"):
        print(f"{tag}: {value:.2f}")
assert averaged < 0.2 * first
