"""A training that changes its number of processes, and ends with the bits of one that did not.

    python examples/elastic_training.py

trains a small GPT under FSDP2 (``fully_shard``) on 4 processes, kills all of them while they write
a checkpoint, goes on with 3 from the last one that is complete, stops, and ends on 1. Then the same
training runs without a break on 1 process. Parameters, averaged weights and the optimizer's state
are compared byte by byte. The text is the language reference that every Python brings along
(pydoc_data.topics, 460 KB). For a training alone, started or resumed:

    torchrun --standalone --nproc-per-node 4 examples/elastic_training.py --folder run

What the bits must not depend on, and what sees to it:

- The step: adamas steps each part as it would step the whole tensor. Norms for clipping are exact
  sums, and random bits of rounding belong to an element's place in the whole tensor.
- Which examples are in a batch: they follow from the number of the step (``batch_of``).
- How a batch is cut: into a fixed number of *virtual shards*, whatever the number of processes.
  Each process takes every n-th of them, one at a time, so matrix products have the same shapes.
- In which order gradients are added: a reduce-scatter adds in an order that depends on the number
  of processes. ``InOrder`` replaces it: gradients are exchanged, not added, and each process adds
  those of its part in the order of the virtual shards, in float32. That sends as many bytes.
- 8-bit state: a block of 32 elements must belong to one process. Here rows have whole blocks. What
  has one dimension (the scales of norms) is cut anywhere, so its state stays in float32.
- Matrix products: one thread in each process, on machines of one kind.
- Checkpoints: torch.distributed.checkpoint gives each process its part of what others have saved;
  ``Packed`` saves low-bit state as it is stored. A checkpoint gets its name when it is complete, so
  a kill never leaves a broken one as the last.

A training of yours needs the first two and the last in any case. Without the others (NCCL's own
reductions depend on the number of processes, too) gradients differ in their last bits when that
number changes: ``--sums fsdp`` shows it. Such a run, resumed on as many processes as before, still
has the bits of one that was not interrupted. Resumed on others, it starts from the same bits and
goes its own way.
"""

import argparse
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from adamas.torch import AdamW, Packed, param_groups

#: Longer than anything here takes: processes that wait for one another in vain fail.
LIMIT = timedelta(minutes=10)
WIDTH, HEADS, CONTEXT = 96, 3, 64  # rows of 96 numbers: three blocks of 8-bit state
EXAMPLES = 2  # in a virtual shard


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
    """A language model of bytes."""

    def __init__(self, layers):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, x):
        x = self.bytes(x) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def text():
    topics = pydoc_data.topics.topics
    whole = "\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


def batch_of(step, data, shards):
    """Return the inputs and targets of a step, a row for each virtual shard."""
    generator = torch.Generator().manual_seed(step)
    begins = torch.randint(len(data) - CONTEXT, (shards, EXAMPLES, 1), generator=generator)
    rows = data[begins + torch.arange(CONTEXT + 1)].long()
    return rows[..., :-1], rows[..., 1:]


def rate(step, steps):
    """Return the learning rate: it rises in the first tenth of the steps, then falls to 0."""
    return 3e-3 * min(1.0, 10 * step / steps) * (1 - step / steps)


# ── gradients that do not depend on the number of processes ────────────────────────────────────


class InOrder:
    """The sum of gradients of all backward passes of a step, in the order of virtual shards.

    FSDP2 calls an object of this class in place of a reduce-scatter. What it gets are gradients of
    whole parameters, cut for the processes; it gives the sum for the part of this process.
    """

    def __init__(self, module):
        self.total, self.pieces = None, ()
        module.set_custom_reduce_scatter(self)
        module.set_all_reduce_hook(self.add)

    def begin(self):
        """Begin a step."""
        self.total = None

    def allocate(self, size, *, dtype, device):
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(self, input_tensor, group, **_):
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        self.pieces = received.chunk(group.size())  # of one virtual shard each, in their order

    def add(self, output):
        """Add up what has come; on one process FSDP2 sends nothing, and ``output`` is it."""
        for piece in self.pieces or (output,):
            self.total = piece.clone() if self.total is None else self.total.add_(piece)
        output.copy_(self.total)
        self.pieces = ()


def step_once(step, model, optimizer, data, options):
    """Make one step; return the loss of the batch, the same number in all processes."""
    rank, count = dist.get_rank(), dist.get_world_size()
    inputs, targets = batch_of(step, data, options.shards)
    for module in model.modules():
        if hasattr(module, "sums"):
            module.sums.begin()
    losses = []
    for shard in range(rank, options.shards, count):
        if not losses or options.sums == "in-order":  # what came before is in the sums
            optimizer.zero_grad()
        logits = model(inputs[shard]).float()
        loss = cross_entropy(logits.flatten(0, 1), targets[shard].flatten()) / options.shards
        loss.backward()
        losses.append(loss.detach())
    for group in optimizer.param_groups:
        group["lr"] = rate(step, options.steps)
    optimizer.step()
    own = torch.stack(losses)
    everyone = [torch.empty_like(own) for _ in range(count)]
    dist.all_gather(everyone, own)
    return sum(torch.stack(everyone, 1).flatten().tolist())  # in the order of virtual shards


# ── checkpoints ────────────────────────────────────────────────────────────────────────────────


def checkpoints(folder):
    """Return all complete checkpoints, the last one last."""
    return sorted(folder.glob("step-*"))


def save(folder, losses, model, optimizer, keep):
    """Write a checkpoint, which gets its name when it is complete; keep the last ``keep``."""
    step = len(losses)
    partial = folder / f"partial-{step:06}"
    if dist.get_rank() == 0:
        for left in folder.glob("partial-*"):  # by a process that was killed
            shutil.rmtree(left)
    dist.barrier()
    parameters, state = get_state_dict(model, Packed(optimizer))
    dcp.save(
        {"losses": losses, "model": parameters, "optimizer": state}, checkpoint_id=partial
    )  # comes back in all processes when all have written
    if dist.get_rank() == 0:
        partial.rename(folder / f"step-{step:06}")
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old.rename(folder / f"partial-{old.name}"))


def load(path, model, optimizer):
    """Take over a checkpoint of any number of processes; return the losses of its steps."""
    parameters, state = get_state_dict(
        model, Packed(optimizer)
    )  # of the right shapes, to be filled
    found = {"losses": [], "model": parameters, "optimizer": state}
    dcp.load(found, checkpoint_id=path)
    set_state_dict(
        model,
        Packed(optimizer),
        model_state_dict=found["model"],
        optim_state_dict=found["optimizer"],
    )
    return found["losses"]


def contents(path):
    """Return all that is in a checkpoint, by name: whole tensors, and what else there is."""
    reader = dcp.FileSystemReader(path)
    stored = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        if isinstance(each, TensorStorageMetadata)
        else None
        for name, each in stored.items()
    }
    with warnings.catch_warnings():  # that no other process takes part, which is meant
        warnings.simplefilter("ignore")
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found


# ── one process of a training, started by torchrun ─────────────────────────────────────────────


def train(options):
    (options.folder / f"process-{os.getpid()}").touch()  # for who kills it
    torch.set_num_threads(1)  # several threads may cut matrix products in other ways
    dist.init_process_group("gloo", timeout=LIMIT)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = GPT(options.layers)  # whole, and the same in all processes
    if options.rounding != "none":
        model.bfloat16()
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        # FSDP2 would divide by the number of processes; the loss is a share of the batch's already.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if options.sums == "in-order":
            module.sums = InOrder(module)
    groups = param_groups(model, weight_decay=0.1, float32=["*norm*"])
    optimizer = AdamW(
        groups,
        lr=0.0,
        state=options.state,
        rounding=None if options.rounding == "none" else options.rounding,
        clip_norm=options.clip_norm,
        ema=0.99,
    )
    found = checkpoints(options.folder)
    losses = load(found[-1], model, optimizer) if found else []
    data = text()
    end = options.until or options.steps
    for step in range(len(losses), end):
        losses.append(step_once(step, model, optimizer, data, options))
        if len(losses) % options.every == 0 or len(losses) == end:
            if dist.get_rank() == 0:
                print(f"  step {len(losses):4}   loss {losses[-1]:.6f}", flush=True)
            save(options.folder, losses, model, optimizer, options.keep)
    dist.barrier()
    dist.destroy_process_group()


# ── the proof: what starts trainings, kills one, and compares ──────────────────────────────────


def started(folder, count, options, until):
    """Return torchrun with a training on ``count`` processes."""
    for left in folder.glob("process-*"):
        left.unlink()
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    chosen = {**vars(options), "folder": folder, "until": until}
    for name in ("processes", "unbroken"):  # of the proof alone
        del chosen[name]
    given = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, __file__, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(folder, count, options, until):
    """Train up to a step."""
    print(f"{count} process{'es' * (count > 1)}, up to step {until}:", flush=True)
    training = started(folder, count, options, until)
    try:
        code = training.wait(LIMIT.total_seconds())
    except BaseException:
        kill(folder, training)
        raise
    if code:
        sys.exit(f"The training on {count} processes ended with exit code {code}.")


def run_and_kill(folder, count, options, step):
    """Train until the checkpoint of a step is being written, and kill all processes then."""
    print(f"{count} processes, killed while they save step {step}:", flush=True)
    training = started(folder, count, options, options.steps)
    end = time.monotonic() + LIMIT.total_seconds()
    try:
        while not any((folder / f"{name}-{step:06}").exists() for name in ("partial", "step")):
            if training.poll() is not None or time.monotonic() > end:
                sys.exit(f"The training on {count} processes did not come to step {step}.")
            time.sleep(0.002)
    finally:
        kill(folder, training)
    print(f"  killed; the last complete checkpoint is {checkpoints(folder)[-1].name}", flush=True)


def kill(folder, training):
    """End torchrun and its processes at once: SIGKILL cannot be caught, nothing is put in order."""
    training.kill()
    for each in folder.glob("process-*"):
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(int(each.name.split("-")[1]), SIGKILL)
    training.wait()


def difference(one, other):
    """Return what differs first between two checkpoints, in words; None if nothing does."""
    tensors_first = sorted(one, key=lambda name: (not isinstance(one[name], torch.Tensor), name))
    for name in dict.fromkeys((*tensors_first, *other)):
        if name not in one or name not in other:
            return f"{name} is in one of them only"
        a, b = one[name], other[name]
        if not isinstance(a, torch.Tensor):
            if a != b:
                return f"{name} is {a!r} in one and {b!r} in the other"
            continue
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            forms = [f"{each.dtype} of shape {tuple(each.shape)}" for each in (a, b)]
            return f"{name} is {forms[0]} in one and {forms[1]} in the other"
        differing = (bytes_of(a) != bytes_of(b)).nonzero()
        if len(differing):
            first = int(differing[0])
            values = [each.flatten()[first // each.element_size()].item() for each in (a, b)]
            return f"{name} differs first in byte {first}: {values[0]!r} and {values[1]!r}"
    return None


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def prove(options, folder):
    """Run both trainings; return the exit code."""
    begun = time.monotonic()
    broken, unbroken = folder / "broken", folder / "unbroken"
    broken.mkdir()
    unbroken.mkdir()
    first, *others = options.processes
    parts = len(options.processes)
    ends = [options.steps * i // parts // options.every * options.every for i in range(1, parts)]
    run_and_kill(broken, first, options, ends[0])
    for count, end in zip(others, [*ends[1:], options.steps], strict=True):
        run(broken, count, options, end)
    print("without a break, on", end=" ")
    run(unbroken, options.unbroken, options, options.steps)

    one, other = (contents(checkpoints(each)[-1]) for each in (broken, unbroken))
    losses = one["losses"]
    assert len(losses) == options.steps, "all steps were made, none twice"
    assert losses[-1] < losses[0], "the model has learned"
    different = difference(one, other)
    processes = ", ".join(map(str, options.processes))
    if different:
        print(f"NOT EQUAL: {different}")
        return 1
    tensors = [each for each in one.values() if isinstance(each, torch.Tensor)]
    size = sum(each.nbytes for each in tensors)
    print(
        f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {options.steps} steps, "
        f"{time.monotonic() - begun:.0f} s in all\n"
        f"equal: {len(tensors)} tensors of parameters, averages and state, {size:,} bytes, and "
        f"{options.steps} losses, trained on {processes} processes with a kill, and on "
        f"{options.unbroken} without"
    )
    return 0


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def counts(text):
    return [count(each) for each in text.split(",")]


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--steps", type=count, default=30)
    add("--every", type=count, default=5, help="steps between checkpoints")
    add("--keep", type=count, default=2, help="how many checkpoints are kept")
    add("--shards", type=count, default=12, help="virtual shards of a batch")
    add("--layers", type=count, default=2)
    add("--state", default="8bit", choices=("float32", "bfloat16", "compact", "8bit"))
    roundings = ("none", "nearest", "stochastic", "remainder", "remainder8")
    add("--rounding", default="remainder", choices=roundings, help="none: float32 parameters")
    add("--clip-norm", type=float, default=1.0)
    add(
        "--sums",
        default="in-order",
        choices=("in-order", "fsdp"),
        help="fsdp: its own reduce-scatter, to see that the bits differ",
    )
    proof = parser.add_argument_group("the proof")
    proof.add_argument("--processes", type=counts, default=[4, 3, 1], help="one after the other")
    proof.add_argument("--unbroken", type=count, default=1, help="processes of the other training")
    training = parser.add_argument_group("a training alone, under torchrun")
    training.add_argument("--folder", type=Path, help="where its checkpoints are")
    training.add_argument("--until", type=count, help="the step to stop at")
    options = parser.parse_args()
    check(parser, options)
    return options


def check(parser, options):
    """End with an error for what cannot be."""
    if "RANK" in os.environ:
        if options.folder is None:
            parser.error("--folder is missing: say where checkpoints are to be.")
        used = [int(os.environ["WORLD_SIZE"])]
    else:
        used = [*options.processes, options.unbroken]
        if len(options.processes) < 2:
            parser.error("--processes needs at least two numbers, such as 4,3,1.")
        if options.steps // len(options.processes) < 2 * options.every:
            parser.error(
                f"--steps {options.steps} leaves no complete checkpoint before the kill: give at "
                f"least {2 * options.every * len(options.processes)}, or a lower --every."
            )
    for processes in used:
        if options.shards % processes:
            parser.error(
                f"--shards {options.shards} cannot be shared by {processes} processes alike: give "
                "a multiple of each number of processes."
            )


if __name__ == "__main__":
    given = parsed()
    if "RANK" in os.environ:  # set by torchrun
        given.folder.mkdir(parents=True, exist_ok=True)
        train(given)
    else:
        with tempfile.TemporaryDirectory() as directory:
            sys.exit(prove(given, Path(directory)))
