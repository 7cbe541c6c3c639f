"""A process that answers with a model while another trains it: equal after each step, bit by bit.

    python examples/weight_sync.py

One process fine-tunes a small byte-level GPT in bfloat16, as reinforcement learning does: at a
learning rate so small that a step changes few of the weights. Each step is written to a file that
holds just these (``adamas.save_changes``). The other process has its own copy of the model, puts
each file into it (``adamas.apply_changes``), and uses it, here for the loss on text that is not
trained on. The training also sends a digest of all bits of its weights, and the reader compares.
In the end this tells how many bytes went over, and how many whole models would have been.

Updates are far smaller than the spacing of bfloat16. They are not lost: ``rounding="remainder"``
keeps the lower 16 bits of each weight, so a weight changes once its updates have added up.

The text is the language reference that every Python brings along (pydoc_data.topics). Files go
through a directory, as they would go through a network file system or an object store; what goes
through the pipe is small.
"""

import hashlib
import multiprocessing
import pydoc_data.topics
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import adamas
from adamas.torch import AdamW

WIDTH, HEADS, LAYERS, CONTEXT, EXAMPLES = 128, 4, 3, 64, 8
WARM_UP, STEPS = 60, 100  # before the reader comes, and with it


# ── the model, and what it reads ───────────────────────────────────────────────────────────────


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.joined = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.attention(self.norm_1(x)).chunk(3, -1)
        )
        found = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.joined(found.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """A language model of bytes; the embedding is the head, too."""

    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        nn.init.normal_(self.bytes.weight, std=0.02)
        self.head.weight = self.bytes.weight
        self.bfloat16()

    def loss(self, rows):
        x = self.bytes(rows[:, :-1]) + self.places.weight
        logits = self.head(self.norm(self.blocks(x))).float()
        return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def text():
    topics = pydoc_data.topics.topics
    whole = "\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


def rows_of(data, seed):
    generator = torch.Generator().manual_seed(seed)
    begins = torch.randint(len(data) - CONTEXT, (EXAMPLES, 1), generator=generator)
    return data[begins + torch.arange(CONTEXT + 1)].long()


def digest_of(model):
    """Return a digest of every bit of the parameters."""
    digest = hashlib.blake2b()
    for p in model.parameters():
        digest.update(p.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ── the process that uses the model ────────────────────────────────────────────────────────────


def follow(folder, pipe):
    """Follow a training: answer each file with the step, and the loss on other text."""
    torch.set_num_threads(1)
    data = text()[-50_000:]
    model = GPT()
    model.load_state_dict(torch.load(folder / "base.pt"))
    after = pipe.recv()  # the step that the base is of
    for path, digest in iter(pipe.recv, None):
        step = adamas.apply_changes(model, path, after=after)
        after = None  # it is remembered from now on
        path.unlink()
        assert digest_of(model) == digest, f"step {step}: the models differ"
        with torch.no_grad():
            pipe.send((step, model.loss(rows_of(data, 0)).item()))


# ── the training ───────────────────────────────────────────────────────────────────────────────


def train_once(step, model, optimizer, data):
    optimizer.zero_grad()
    model.loss(rows_of(data, step)).backward()
    optimizer.step()


def main(folder):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = text()[:-50_000]
    model = GPT()
    optimizer = AdamW(
        model.named_parameters(), lr=3e-3, rounding="remainder", track_changes=True, clip_norm=1.0
    )
    for step in range(WARM_UP):
        train_once(step, model, optimizer, data)
    optimizer.param_groups[0]["lr"] = 1e-5

    torch.save(model.state_dict(), folder / "base.pt")
    optimizer.changes().clear()  # those since the base are wanted
    processes = multiprocessing.get_context("spawn")
    pipe, theirs = processes.Pipe()
    reader = processes.Process(target=follow, args=(folder, theirs), daemon=True)
    reader.start()
    theirs.close()  # so that its end is seen here
    pipe.send(WARM_UP)

    whole = sum(p.nbytes for p in model.parameters())
    sent = 0
    for step in range(WARM_UP, WARM_UP + STEPS):
        train_once(step, model, optimizer, data)
        path = folder / f"step-{step + 1:06}.safetensors"
        adamas.save_changes(path, optimizer.changes())
        size = path.stat().st_size
        pipe.send((path, digest_of(model)))
        reached, loss = pipe.recv()
        assert reached == step + 1
        sent += size
        if reached % 20 == 0:
            print(f"step {reached}   {size:7,} bytes   the reader's loss {loss:.4f}", flush=True)
    pipe.send(None)
    reader.join()
    assert reader.exitcode == 0

    print(f"\nThe reader was equal to the training, bit by bit, after each of {STEPS} steps.")
    print(f"{sent:,} bytes went over; whole models would have been {STEPS * whole:,}:")
    print(f"{STEPS * whole / sent:.1f} times as many.")
    assert sent < STEPS * whole / 3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
