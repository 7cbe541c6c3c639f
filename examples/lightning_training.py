"""Train digits with Lightning: clipping and averaged weights belong to the optimizer."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from adamas.torch import AdamW, param_groups


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def training_step(self, batch, _):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.layers(images), labels)

    def configure_optimizers(self):
        groups = param_groups(self, weight_decay=0.01)
        return AdamW(groups, lr=3e-3, clip_norm=1.0, ema=0.98)


lightning.seed_everything(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
held_out = slice(1500, None)

model = Digits()
trainer = lightning.Trainer(
    max_epochs=20,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
rows = TensorDataset(images[:1500], labels[:1500])
trainer.fit(model, DataLoader(rows, batch_size=50, shuffle=True))

model.eval()
with torch.no_grad(), model.optimizers().ema_weights():
    right = (model.layers(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
print(f"{right:.1%} of the held-out digits, with the averaged weights")
assert right > 0.85
