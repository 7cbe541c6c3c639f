"""Train a small character GPT, made on the spot, with Hugging Face's Trainer on Python's source."""

import inspect
import random
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from adamas.torch import AdamW, param_groups

text = inspect.getsource(random)
letters = sorted(set(text))
codes = torch.tensor([letters.index(letter) for letter in text])
length = 64
pieces = codes[: len(codes) // length * length].view(-1, length)
rows = [{"input_ids": piece, "labels": piece} for piece in pieces]

set_seed(0)
shape = GPT2Config(
    vocab_size=len(letters), n_positions=length, n_embd=48, n_layer=2, n_head=2,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip
model = GPT2LMHeadModel(shape)
optimizer = AdamW(param_groups(model, weight_decay=0.1), lr=3e-3, clip_norm=1.0)

with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=folder,
            max_steps=120,
            per_device_train_batch_size=16,
            max_grad_norm=0.0,  # the optimizer clips
            lr_scheduler_type="cosine",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=20,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        optimizers=(optimizer, None),
    )
    trainer.train()

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f} nats per character")
assert losses[-1] < 0.8 * losses[0]
