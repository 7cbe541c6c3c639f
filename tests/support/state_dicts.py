"""What torch.distributed.checkpoint offers beside saving and loading, asked of sharded runs."""

from __future__ import annotations

import copy
import threading
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import adamas.torch as ours

__all__ = ["check_all"]


def check_all(program, mesh, folder):
    """Run all checks; ``program`` is resharding_program, whose functions they share."""
    twin = program.uninterrupted(3)
    own = program.made(mesh)
    program.run(*own, range(3))
    program.assert_same(twin, own, "three steps")
    for form in ("dense", "packed"):
        check_before_steps(program, mesh, form)
        check_full(program, mesh, own, twin, form)
        check_flattened(program, mesh, own, twin, form, folder / f"flattened {form}")
        check_partial(program, mesh, own, twin, form)
        check_both_at_once(program, mesh, own, twin, form)
        check_async(program, mesh, form, folder / f"async {form}")
    check_that_codes_are_no_numbers(program, mesh, own, folder / "codes")


def check_before_steps(program, mesh, form):
    """A state that is asked for before the first step is there, and nothing else has happened."""
    model = program.made_model(mesh)
    rates = {"lr": torch.tensor(0.01, dtype=torch.float64)} if form == "dense" else {}
    options = {"on_nonfinite": "skip", "statistics": True, **rates}
    optimizer = program.made_optimizer(model, **options)
    before = copy.deepcopy([program.here(p) for p in model.parameters()])
    found = get_optimizer_state_dict(model, program.view(optimizer, form))
    assert len(found["state"]) == len(before)
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(program.here(p), value)
        state = optimizer.state[p]
        assert state["step"].item() == 0
        assert torch.equal(program.here(state["ema"]), value.to(state["ema"].dtype))
        assert not program.here(state["exp_avg"]).any()
        assert not program.here(state["exp_avg_sq"]).any()
        assert p.grad is None
    assert (optimizer.skipped, optimizer.gradient_norm, optimizer.routes()) == (0, None, {})
    if rates:
        assert all(group["lr"].item() == rates["lr"].item() for group in optimizer.param_groups)
    program.run(model, optimizer, range(3))
    program.assert_same(program.uninterrupted(3), (model, optimizer), (form, "asked before steps"))


def loaded(program, mesh, own, form, state, **options):
    """Return a new run with the weights of ``own`` and a state that is loaded."""
    model, optimizer = program.made(mesh)
    set_model_state_dict(model, copy.deepcopy(program.state_of(*own, form)["model"]))
    set_optimizer_state_dict(
        model,
        program.view(optimizer, form),
        optim_state_dict=state,
        options=StateDictOptions(**options),
    )
    return model, optimizer


def check_full(program, mesh, own, twin, form):
    """Whole states, on one process or on all, are of the step at which they were taken."""
    for is_offloaded in (True, False):
        model, optimizer = copied = copied_run(program, mesh, own)
        options = StateDictOptions(full_state_dict=True, cpu_offload=is_offloaded)
        state = get_optimizer_state_dict(model, program.view(optimizer, form), options=options)
        assert bool(state) == (dist.get_rank() == 0 or not is_offloaded)
        program.run(*copied, range(3, 5))
        for entries in state["state"].values() if state else ():
            [*folds] = [entries] if form == "dense" else entries.values()
            assert [each["step"].item() for each in folds] == [3]
        names = ("full_state_dict", *(("broadcast_from_rank0",) if is_offloaded else ()))
        other = loaded(program, mesh, own, form, state, **dict.fromkeys(names, True))
        program.assert_same(twin, other, (form, "full", is_offloaded))


def copied_run(program, mesh, own):
    state = get_optimizer_state_dict(*own)
    return loaded(program, mesh, own, "dense", copy.deepcopy(state))


def check_flattened(program, mesh, own, twin, form, folder):
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    dcp.save(program.state_of(*own, form, options), checkpoint_id=folder)
    model, optimizer = program.made(mesh)
    found = program.state_of(model, optimizer, form, options)
    assert all(key.startswith(("state.", "param_groups.")) for key in found["optimizer"])
    dcp.load(found, checkpoint_id=folder)
    set_model_state_dict(model, found["model"])
    view = program.view(optimizer, form)
    state = found["optimizer"]
    set_optimizer_state_dict(model, view, optim_state_dict=state, options=options)
    program.assert_same(twin, (model, optimizer), (form, "flattened"))


def check_partial(program, mesh, own, twin, form):
    """Where the state of some parameters is missing, those begin anew, and the others go on."""
    state = get_optimizer_state_dict(own[0], program.view(own[1], form))
    state = copy.deepcopy(state)
    gone = {name for name in state["state"] if name.startswith("up.") or name.endswith(".p1")}
    for name in gone:
        del state["state"][name]
    with pytest.raises(RuntimeError, match="Missing optimizer state for parameter"):
        loaded(program, mesh, own, form, state)
    model, optimizer = loaded(program, mesh, own, form, state, strict=False)
    assert gone
    assert all(not optimizer.state.get(p) for name, p in model.named_parameters() if name in gone)
    program.assert_same(twin, (model, optimizer), (form, "partial"), without=gone)
    program.step(model, optimizer, 3)
    steps = {name: optimizer.state[p]["step"].item() for name, p in model.named_parameters()}
    assert steps == {name: 1 if name in gone else 4 for name in steps}


def check_both_at_once(program, mesh, own, twin, form):
    weights, state = copy.deepcopy(get_state_dict(own[0], program.view(own[1], form)))
    model, optimizer = program.made(mesh)
    view = program.view(optimizer, form)
    set_state_dict(model, view, model_state_dict=weights, optim_state_dict=state)
    program.assert_same(twin, (model, optimizer), (form, "get_state_dict"))


def check_async(program, mesh, form, folder):
    """A file that is written while the run goes on has the state at the call."""
    own = program.made(mesh)
    program.run(*own, range(3))
    others = dist.new_group(backend="gloo", timeout=program.LIMIT)  # for the thread that writes
    stepped = threading.Event()
    write = dcp.FileSystemWriter.write_data

    def late(*arguments):
        assert stepped.wait(program.LIMIT.total_seconds())
        return write(*arguments)

    for name in ("by its own", "by the writer"):
        start = int(own[1].state[next(own[0].parameters())]["step"].item())
        twin = program.uninterrupted(start)
        where = folder / name
        writer = {} if name == "by its own" else {"storage_writer": dcp.FileSystemWriter(where)}
        stepped.clear()
        with mock.patch.object(dcp.FileSystemWriter, "write_data", late):
            state = program.state_of(*own, form)
            if writer:  # which leaves weights without dimensions to torch as they are
                state["model"] = copy.deepcopy(state["model"])
            future = dcp.async_save(state, checkpoint_id=where, process_group=others, **writer)
            program.run(*own, range(start, start + 2))
            stepped.set()
            future.result()
        model, optimizer = program.made(mesh)
        found = program.state_of(model, optimizer, form)
        dcp.load(found, checkpoint_id=where)
        set_model_state_dict(model, found["model"])
        set_optimizer_state_dict(
            model, program.view(optimizer, form), optim_state_dict=found["optimizer"]
        )
        program.assert_same(twin, (model, optimizer), (form, "async", name))


def check_that_codes_are_no_numbers(program, mesh, own, folder):
    """What is packed is not found where numbers are looked for, nor the other way round."""
    for saved, wanted in (("packed", "dense"), ("dense", "packed")):
        program.save(*own, folder, saved)
        found = program.state_of(*program.made(mesh), wanted)
        with pytest.raises(dcp.api.CheckpointException, match="Missing key in checkpoint"):
            dcp.load(found, checkpoint_id=folder / saved)
    model, optimizer = own
    state = get_optimizer_state_dict(model, ours.Packed(optimizer))
    names = {name for entries in state["state"].values() for name in entries}
    assert names >= {"packed_state_float32", "packed_state_compact", "packed_state_8bit_remainder8"}
    assert all(name.startswith("packed_state_") for name in names)
