"""Cases of `everywhere_program`: how a model is trained, evaluated and served."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import adamas.torch as ours
from tests.support.everywhere_shards import PHASE, mesh_of
from tests.support.twins import Language, Twins, assert_same, here, whole


def fsdp2(net, **options):
    """Shard a model over all four processes, its block apart."""
    mesh = mesh_of(4)
    for part in (net.up, net.down, net):
        fully_shard(part, mesh=mesh, **options)
    return net


def twins(spread, **options):
    return Twins(Language(), spread, share=(dist.get_rank(), 4), **{**PHASE, **options})


def accumulated(pair, step, count=4, syncs=lambda _: nullcontext(), ends=lambda _: None):
    """Add up gradients of ``count`` batches, and make one step."""
    pair.set_weights(step)
    for net in (pair.plain, pair.spread):
        net.zero_grad()
        for part in range(count):
            is_last = part == count - 1
            with syncs(is_last) if net is pair.spread else nullcontext():
                if net is pair.spread:
                    ends(is_last)
                (pair.loss(net, 10 * step + part) / count).backward()
    pair.step()
    pair.compare(step)


def fsdp2_accumulates_without_synchronisation():
    pair = twins(fsdp2(Language()))
    for step in range(3):
        accumulated(pair, step, ends=pair.spread.set_requires_gradient_sync)


def fsdp2_accumulates_sharded_gradients():
    pair = twins(fsdp2(Language()))
    for step in range(3):
        accumulated(pair, step)


def fsdp2_accumulates_with_the_last_backward_pass_named():
    pair = twins(fsdp2(Language()))

    def ends(is_last):
        pair.spread.set_is_last_backward(is_last)
        pair.spread.set_requires_gradient_sync(is_last)
        pair.spread.set_reshard_after_backward(is_last)

    for step in range(3):
        accumulated(pair, step, ends=ends)


def a_step_between_unsynchronised_backward_passes_changes_nothing():
    """Gradients that are not reduced yet are no gradients of the sharded parameters."""
    pair = twins(fsdp2(Language()))
    pair.set_weights(0)
    before = [here(p).clone() for p in pair.spread.parameters()]
    pair.spread.set_requires_gradient_sync(False)
    pair.loss(pair.spread, 0).backward()
    pair.optimizers[1].step()
    pair.spread.reshard()
    for one, other in zip(before, pair.spread.parameters(), strict=True):
        assert torch.equal(one, here(other))
    assert pair.optimizers[1].gradient_norm in (None, 0.0)


def ddp_has_the_bits_of_one_process():
    for options in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        twins(DistributedDataParallel(Language(), **options)).train(3)


def ddp_accumulates_without_synchronisation():
    pair = twins(DistributedDataParallel(Language()))
    for step in range(3):
        accumulated(pair, step, syncs=lambda last: nullcontext() if last else pair.spread.no_sync())


def fsdp2_keeps_parameters_gathered_after_the_forward_pass():
    twins(fsdp2(Language(), reshard_after_forward=False)).train(3)
    twins(fsdp2(Language(), reshard_after_forward=2)).train(3)


def fsdp2_with_activation_checkpointing():
    net = Language()
    net.up = checkpoint_wrapper(net.up)
    plain = Language()
    plain.up = checkpoint_wrapper(plain.up)
    pair = Twins(plain, fsdp2(net), share=(dist.get_rank(), 4), **PHASE)
    pair.train(3)


def fsdp2_in_mixed_precision_steps_in_float32():
    """Weights are computed with in bfloat16, which holds the small whole numbers of this test."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = mesh_of(4)
    spread = fully_shard(nn.Linear(8, 8), mesh=mesh, mp_policy=policy)
    plain = nn.Linear(8, 8)
    pair = Twins(plain, spread, share=(dist.get_rank(), 4), **PHASE)
    for step in range(3):
        pair.set_weights(step)
        for net in (plain, spread):
            net.zero_grad()
            x = torch.randint(-2, 3, (8, 8), generator=torch.Generator().manual_seed(step)).float()
            if net is spread:
                x = x.chunk(4)[dist.get_rank()]
            (net(x).float().sum() / len(x)).backward()
        assert spread.weight.grad.dtype == torch.float32
        pair.step()
        pair.compare(step)


def fsdp2_with_parameters_offloaded_to_the_host():
    pair = twins(fsdp2(Language(), offload_policy=CPUOffloadPolicy(pin_memory=False)))
    pair.train(3)


def compiled(net):
    return torch.compile(net, backend="aot_eager")


def compiled_models_under_ddp_and_fsdp2():
    twins(compiled(DistributedDataParallel(Language()))).train(2)
    twins(DistributedDataParallel(compiled(Language()))).train(2)
    twins(compiled(fsdp2(Language()))).train(2)


def averages_are_what_a_forward_pass_sees():
    """Also where FSDP2 keeps what it gathered: it gathers the averages, and then weights again."""
    for resharded in (None, True, False, 2):
        pair = twins(fsdp2(Language(), reshard_after_forward=resharded))
        for step in range(2):
            pair.set_weights(step)
            pair.backward(step)
            pair.step()
            words, _ = pair.examples(step, shared=False)
            one, other = pair.optimizers
            before = [here(p).clone() for p in pair.spread.parameters()]
            with torch.no_grad():
                assert torch.equal(pair.spread(words), pair.plain(words))
                with one.ema_weights(), other.ema_weights():
                    for a, b in zip(pair.plain.parameters(), pair.spread.parameters(), strict=True):
                        assert_same(a, b, (resharded, step))
                        assert torch.equal(here(b), here(other.state[b]["ema"]))
                    pair.spread.eval()
                    said = pair.spread(words), pair.plain(words)
                    assert torch.equal(*said), (resharded, step)
                    saved = {k: whole(v) for k, v in pair.spread.state_dict().items()}
                    assert all(torch.equal(saved[k], v) for k, v in pair.plain.state_dict().items())
                pair.spread.train()
                for a, b in zip(before, pair.spread.parameters(), strict=True):
                    assert torch.equal(a, here(b))
                assert torch.equal(pair.spread(words), pair.plain(words)), (resharded, step)
            pair.compare((resharded, step))


def averages_between_a_forward_pass_and_its_backward_pass():
    """The backward pass goes by the weights that its forward pass had."""
    for resharded in (None, False):
        pair = twins(fsdp2(Language(), reshard_after_forward=resharded))
        pair.train(1)
        pair.set_weights(1)
        words, _ = pair.examples(5, shared=False)
        losses = [pair.loss(net, 1) for net in (pair.plain, pair.spread)]
        with pair.optimizers[1].ema_weights(), pair.optimizers[0].ema_weights(), torch.no_grad():
            assert torch.equal(pair.spread(words), pair.plain(words))
        for net, loss in zip((pair.plain, pair.spread), losses, strict=True):
            net.zero_grad()
            if net is pair.spread:
                loss.backward()
        pair.plain.zero_grad()
        pair.loss(pair.plain, 1).backward()
        pair.step()
        pair.compare(resharded)


def copies_are_what_a_served_model_computes_with():
    """Copies in bfloat16 are laid out as the parameters, and a second sharded model takes them."""
    pair = twins(fsdp2(Language()))
    served = fsdp2(Language().bfloat16(), reshard_after_forward=True)
    alone = Language().bfloat16()
    for step in range(3):
        pair.set_weights(step)
        pair.backward(step)
        pair.step()
        for net, optimizer in zip((alone, served), pair.optimizers, strict=True):
            with torch.no_grad():
                for p, copy in zip(net.parameters(), optimizer.copies, strict=True):
                    assert copy.dtype == torch.bfloat16
                    assert getattr(copy, "placements", None) == getattr(p, "placements", None)
                    p.copy_(copy)
        words, _ = pair.examples(step, shared=False)
        with torch.no_grad():
            assert torch.equal(served(words), alone(words))
        pair.compare(step)


def parameters_of_a_served_model_are_the_copies():
    """A step writes the parameters of the second model itself, given as ``copy_to``."""
    # Else FSDP2 would keep what it gathered of the root, and look at no copy again.
    served = fsdp2(Language().bfloat16(), reshard_after_forward=True)
    trained = fsdp2(Language())
    alone, alone_served = Language(), Language().bfloat16()
    one = ours.AdamW(alone.parameters(), lr=0.25, copy_to=list(alone_served.parameters()))
    other = ours.AdamW(trained.parameters(), lr=0.25, copy_to=list(served.parameters()))
    pair = Twins(alone, trained, share=(dist.get_rank(), 4))
    pair.optimizers = [one, other]
    for step in range(3):
        pair.set_weights(step)
        pair.backward(step)
        pair.step()
        words, _ = pair.examples(step, shared=False)
        with torch.no_grad():
            assert torch.equal(served(words), alone_served(words)), step


def a_nan_of_one_process_is_skipped_by_all():
    pair = twins(fsdp2(Language()))
    for step in range(3):
        pair.set_weights(step)
        pair.backward(step)
        if step == 1:
            pair.plain.head.weight.grad[-1, -1] = torch.nan
            if dist.get_rank() == 3:
                pair.spread.head.weight.grad.to_local()[-1, -1] = torch.nan
        pair.step()
        if step == 1:
            assert [each.skipped for each in pair.optimizers] == [1, 1]
        else:
            pair.compare(step)


def a_nan_of_one_process_is_raised_by_all():
    pair = twins(fsdp2(Language()), on_nonfinite="raise")
    pair.train(1)
    pair.backward(1)
    before = [here(p).clone() for p in pair.spread.parameters()]
    if dist.get_rank() == 2:
        pair.spread.up.bias.grad.to_local()[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"0\.4"):  # up.bias
        pair.optimizers[1].step()
    for a, b in zip(before, pair.spread.parameters(), strict=True):
        assert torch.equal(a, here(b))


CASES = (
    fsdp2_accumulates_without_synchronisation,
    fsdp2_accumulates_sharded_gradients,
    fsdp2_accumulates_with_the_last_backward_pass_named,
    a_step_between_unsynchronised_backward_passes_changes_nothing,
    ddp_has_the_bits_of_one_process,
    ddp_accumulates_without_synchronisation,
    fsdp2_keeps_parameters_gathered_after_the_forward_pass,
    fsdp2_with_activation_checkpointing,
    fsdp2_in_mixed_precision_steps_in_float32,
    fsdp2_with_parameters_offloaded_to_the_host,
    compiled_models_under_ddp_and_fsdp2,
    averages_are_what_a_forward_pass_sees,
    averages_between_a_forward_pass_and_its_backward_pass,
    copies_are_what_a_served_model_computes_with,
    parameters_of_a_served_model_are_the_copies,
    a_nan_of_one_process_is_skipped_by_all,
    a_nan_of_one_process_is_raised_by_all,
)
