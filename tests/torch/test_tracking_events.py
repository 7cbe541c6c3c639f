"""What has changed where something else than a step comes between."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import threading

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import adamas  # noqa: E402
import adamas.torch as ours  # noqa: E402
from adamas.torch import functional  # noqa: E402
from tests.support.tracked import Run, bits_of, changed  # noqa: E402

BFLOAT16 = torch.bfloat16


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)


def optimizer_of(net, **options):
    options = {"lr": 1e-2, "track_changes": True, **options}
    return ours.AdamW(net.named_parameters(), **options)


def give_gradients(optimizer, value=1.0):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, value) if p.requires_grad else None


def stepped(optimizer, steps=1):
    give_gradients(optimizer)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def told(optimizer, *, clear=True):
    """Names, and how many elements have changed."""
    return {c.name: len(c.indices) for c in optimizer.changes(clear=clear)}


def everything(net):
    return {name: p.numel() for name, p in net.named_parameters()}


def cleared(optimizer):
    told(optimizer)
    assert told(optimizer) == {}
    return optimizer


# ── what else writes ───────────────────────────────────────────────────────────────────────────


def loads(net):
    net.load_state_dict(network(seed=1).state_dict())


def writes_in_place(net):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)


def gives_other_memory(net):
    for p in net.parameters():
        p.data = p.data * 3


def converts(net):
    net.to(torch.float64)


def swaps(net):
    for p in net.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 3))


def converts_by_swapping(net):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def initialises(net):
    for p in net.parameters():
        nn.init.normal_(p)


WRITES = [
    loads, writes_in_place, gives_other_memory, converts, swaps, converts_by_swapping, initialises,
]  # fmt: skip


@pytest.mark.parametrize("is_stepped", [False, True])
@pytest.mark.parametrize("copy_to", [None, BFLOAT16])
@pytest.mark.parametrize("write", WRITES)
def test_all_has_changed_of_what_something_else_wrote_to(write, copy_to, is_stepped):
    """Before the next step as after it: a step by a plan of before does not hide it."""
    net = network()
    optimizer = cleared(stepped(optimizer_of(net, copy_to=copy_to), 3))
    for p in net.parameters():
        p.grad = None
    write(net)
    if is_stepped:
        stepped(optimizer)
    changes = optimizer.changes()
    assert changes.is_whole
    values = {c.name: c.values for c in changes}
    weights = optimizer.copies or [*net.parameters()]
    for (name, _), weight in zip(net.named_parameters(), weights, strict=True):
        assert torch.equal(values[name], weight.detach().reshape(-1))


def test_of_one_parameter_that_was_written_to_all_has_changed_and_of_others_nothing():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    with torch.no_grad():
        net[1].bias[0] = 5.0
    assert told(optimizer) == {"1.bias": 3}


def test_what_is_written_through_data_is_not_seen():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    net[1].bias.data.add_(1)
    assert told(optimizer) == {}


@pytest.mark.parametrize("write", [loads, writes_in_place, initialises])
def test_all_has_changed_of_what_was_written_to_before_the_first_step(write):
    net = network()
    optimizer = optimizer_of(net)
    write(net)
    assert told(stepped(optimizer)) == everything(net)


def test_before_the_first_step_nothing_has_changed():
    net = network()
    changes = optimizer_of(net).changes()
    assert (changes.first_step, changes.last_step, changes.is_whole) == (1, 0, False)
    assert [*changes] == []


def test_a_copy_that_something_else_wrote_to_has_changed():
    """The step writes it anew, but whoever follows has not seen what stood there."""
    net = network()
    given = [p.detach().to(BFLOAT16) for p in net.parameters()]
    optimizer = cleared(stepped(optimizer_of(net, copy_to=given, lr=0.0, weight_decay=0.0)))
    given[0].add_(1)
    stepped(optimizer)
    assert told(optimizer) == {"0.weight": 35}


def test_what_reading_copies_changes_in_them_is_told():
    """The parameters were written to through ``.data``, which nobody sees before."""
    net = network()
    optimizer = cleared(stepped(optimizer_of(net, copy_to=BFLOAT16)))
    net[1].bias.data[1] += 1
    assert told(optimizer) == {}
    assert len(optimizer.copies) == 4
    assert [(c.name, c.indices.tolist()) for c in optimizer.changes()] == [("1.bias", [1])]


def test_assigned_parameters_have_changed_once_they_are_in_the_groups():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    net.load_state_dict(network(seed=1).state_dict(), assign=True)
    assert told(optimizer) == {}  # those of before have not
    optimizer.param_groups[0]["params"][:] = [*net.parameters()]
    assert told(optimizer) == everything(net)


# ── groups ─────────────────────────────────────────────────────────────────────────────────────


def test_marks_stay_with_their_parameters_where_groups_are_cut():
    net = network()
    optimizer = ours.AdamW(net.parameters(), lr=1e-2, track_changes=True)
    cleared(stepped(optimizer))
    net[1].weight.grad = torch.ones_like(net[1].weight)
    for p in (net[0].weight, net[0].bias, net[1].bias):
        p.grad = None
    optimizer.step()
    del optimizer.param_groups[0]["params"][0]
    assert told(optimizer, clear=False) == {"0.1": 21}
    stepped(optimizer)
    assert told(optimizer) == {"0.0": 7, "0.1": 21, "0.2": 3}


def test_a_parameter_that_comes_back_into_a_group_has_changed():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    taken = optimizer.param_groups[0]["params"].pop()
    assert told(optimizer) == {}
    optimizer.param_groups[0]["params"].append(taken)
    assert told(optimizer) == {"1.bias": 3}
    assert told(cleared(stepped(optimizer))) == {}


def test_all_has_changed_of_an_added_group():
    net, more = network(), nn.Parameter(torch.ones(4))
    optimizer = cleared(stepped(optimizer_of(net)))
    optimizer.add_param_group({"params": [("more", more)]})
    assert told(optimizer) == {"more": 4}
    stepped(optimizer)
    assert told(optimizer) == {**everything(net), "more": 4}


def test_a_group_that_is_refused_changes_nothing():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "lr": -1.0})
    assert told(optimizer) == {}
    assert told(stepped(optimizer)) == everything(net)


# ── steps that are none ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_an_overflowed_step_marks_nothing_and_has_no_number(dtype, clip_norm):
    net = network(dtype=dtype)
    optimizer = cleared(stepped(optimizer_of(net, clip_norm=clip_norm)))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value, is_made in ((float("inf"), False), (1.0, True)):
        give_gradients(optimizer, value)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        changes = optimizer.changes()
        assert bool([*changes]) is is_made
        assert (changes.first_step, changes.last_step) == (2, 2 if is_made else 1)


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_a_step_that_is_left_out_marks_nothing_and_has_no_number(on_nonfinite):
    net = network()
    optimizer = cleared(stepped(optimizer_of(net, on_nonfinite=on_nonfinite)))
    give_gradients(optimizer, float("nan"))
    if on_nonfinite == "raise":
        with pytest.raises(FloatingPointError):
            optimizer.step()
    else:
        optimizer.step()
    changes = optimizer.changes()
    assert (changes.first_step, changes.last_step) == (2, 1)
    assert [*changes] == []


def test_parameters_that_get_no_gradient_have_not_changed():
    net = network()
    net[0].requires_grad_(False)
    optimizer = optimizer_of(net)
    assert told(stepped(optimizer)) == {"1.weight": 21, "1.bias": 3}


def test_a_step_that_moves_nothing_marks_nothing():
    net = network()
    assert told(stepped(optimizer_of(net, lr=0.0))) == {}


def test_the_averages_change_nothing_in_the_end_and_are_not_told():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net, ema=0.5), 2))
    stepped(optimizer)
    held = optimizer.changes(clear=False)
    before = [(c.name, c.indices.tolist()) for c in held]
    with optimizer.ema_weights():
        with pytest.raises(RuntimeError, match="EMA weights are swapped in"):
            optimizer.changes()
        with pytest.raises(RuntimeError, match="EMA weights are swapped in"):
            next(iter(held))
        with torch.no_grad():
            net[0].bias.add_(1)  # and gets the weights in training back
    assert [(c.name, c.indices.tolist()) for c in optimizer.changes()] == before
    assert told(optimizer) == {}


# ── the telling ────────────────────────────────────────────────────────────────────────────────


def test_steps_are_numbered_from_1_and_from_the_last_changes_on():
    optimizer = optimizer_of(network())
    stepped(optimizer, 3)
    looked = optimizer.changes(clear=False)
    assert (looked.first_step, looked.last_step) == (1, 3)
    taken = optimizer.changes()
    assert (taken.first_step, taken.last_step) == (1, 3)
    assert (looked.follows, looked.place) == (taken.follows, looked.follows)
    assert len([*taken]) == 4
    stepped(optimizer)
    later = optimizer.changes()
    assert (later.first_step, later.last_step) == (4, 4)
    assert later.follows == taken.place


def test_who_stops_half_way_loses_nothing():
    net = network()
    optimizer = stepped(optimizer_of(net))
    for _ in optimizer.changes():
        break
    assert told(optimizer) == everything(net)


def loads_state(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def adds_a_group(optimizer):
    optimizer.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))]})


@pytest.mark.parametrize("event", [stepped, loads_state, adds_a_group])
@pytest.mark.parametrize("read", [0, 1, 4])
def test_a_step_a_load_or_a_group_between_ends_the_telling_and_loses_nothing(event, read):
    net = network()
    optimizer = stepped(optimizer_of(net))
    changes = iter(optimizer.changes())
    for _ in range(read):
        next(changes)
    event(optimizer)
    with pytest.raises(RuntimeError, match="Nothing is lost"):
        next(changes)
    more = {"more": 2} if event is adds_a_group else {}
    assert told(optimizer) == {**everything(net), **more}


def test_what_is_written_while_changes_are_told_is_told_by_the_next_ones():
    net = network()
    optimizer = stepped(optimizer_of(net))
    for i, _ in enumerate(optimizer.changes()):
        if i == 0:
            with torch.no_grad():
                net[0].weight.zero_()
    assert told(optimizer) == {"0.weight": 35}


def test_without_tracking_changes_are_refused():
    optimizer = stepped(ours.AdamW(network().parameters()))
    with pytest.raises(RuntimeError, match="track_changes=True"):
        optimizer.changes()


def test_clear_must_be_a_flag():
    with pytest.raises(TypeError, match="clear is 'no', but it must be True or False"):
        optimizer_of(network()).changes(clear="no")


def test_functions_track_no_changes():
    with pytest.raises(TypeError, match="track_changes"):
        functional.sgd([torch.zeros(2)], [torch.zeros(2)], [None], track_changes=True)


# ── loads and copies ───────────────────────────────────────────────────────────────────────────


def test_after_a_load_everything_has_changed_and_steps_go_on_from_its_number():
    net = network()
    saved = copy.deepcopy(stepped(optimizer_of(network()), 5).state_dict())
    optimizer = cleared(stepped(optimizer_of(net)))
    optimizer.load_state_dict(saved)
    changes = optimizer.changes()
    assert (changes.first_step, changes.last_step, changes.is_whole) == (6, 5, True)
    assert {c.name: len(c.indices) for c in changes} == everything(net)
    later = stepped(optimizer).changes()
    assert (later.first_step, later.last_step) == (6, 6)


def test_a_file_that_is_saved_changes_nothing_and_one_that_is_loaded_everything(tmp_path):
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    adamas.save(tmp_path / "run.safetensors", optimizer)
    assert told(optimizer) == {}
    adamas.load(tmp_path / "run.safetensors", optimizer)
    assert optimizer.changes(clear=False).is_whole
    assert told(optimizer) == everything(net)


def test_a_load_that_fails_changes_nothing_even_in_a_hook():
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))

    def fails(_):
        raise OSError("no room")

    optimizer.register_load_state_dict_post_hook(fails)
    with pytest.raises(OSError, match="no room"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert told(optimizer) == {}
    assert told(stepped(optimizer)) == everything(net)


def test_state_dicts_have_no_marks_and_are_loaded_by_torch():
    net = network()
    saved = stepped(optimizer_of(net)).state_dict()
    assert {*saved} == {"state", "param_groups"}
    theirs = torch.optim.AdamW(network().parameters())
    theirs.load_state_dict(saved)
    own = optimizer_of(network())
    own.load_state_dict(theirs.state_dict())
    assert told(own) == everything(net)


def by_pickle(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def by_torch(optimizer):
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("twin_of", [by_pickle, by_torch, copy.deepcopy, copy.copy])
def test_a_copy_keeps_marks_of_its_own(twin_of):
    net = network()
    optimizer = cleared(stepped(optimizer_of(net)))
    net[0].bias.grad = None
    optimizer.step()
    with torch.no_grad():
        net[0].bias[0] = 3.0
    twin = twin_of(optimizer)
    assert told(twin, clear=False) == everything(net)
    told(optimizer)
    assert told(twin, clear=False) == everything(net)
    ahead = optimizer.changes().follows
    assert told(twin) == everything(net)
    assert told(twin) == {}
    assert optimizer.changes().follows == ahead


# ── parameters of all kinds ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("counts_alone", [False, True])
def test_of_parameters_that_share_memory_each_tells_what_has_changed_there(counts_alone):
    """Whether PyTorch counts the writes to both together or to each alone."""
    memory = torch.ones(10)
    view = memory[4:8].data if counts_alone else memory[4:8]
    whole, part, apart = (nn.Parameter(each) for each in (memory, view, torch.ones(3)))
    part.requires_grad_(False)
    run = Run(ours.SGD([whole, part, apart], lr=0.1, track_changes=True))
    for place in (2, 5, 7):
        whole.grad = torch.zeros(10)
        whole.grad[place] = 1.0
        apart.grad = torch.ones(3)
        run.step()
        run.check(clear=False)
    run.check(clear=True)
    part.requires_grad_(True)
    part.grad = torch.tensor([0.0, 0.0, 1.0, 0.0])
    for _ in range(2):
        run.step()
        run.check(clear=True)
    with torch.no_grad():
        whole[4] = 7.0
    run.all_changed(0, 1)
    run.step()
    run.check(clear=True)


def test_a_tied_weight_is_told_once():
    net = network()
    net[1].weight = nn.Parameter(torch.ones(7, 7))
    twin = nn.ModuleList([net, nn.Linear(7, 7)])
    twin[1].weight = net[1].weight
    optimizer = ours.AdamW(twin.named_parameters(), track_changes=True)
    assert [*told(stepped(optimizer))].count("0.1.weight") == 1
    assert "1.weight" not in told(stepped(optimizer))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_element_has_changed_where_either_part_has(dtype):
    p = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = ours.AdamW([p], lr=0.1, weight_decay=0.0, track_changes=True)
    p.grad = torch.tensor([0, 1, 1j, 0], dtype=dtype)
    optimizer.step()
    (change,) = optimizer.changes()
    assert change.indices.tolist() == [1, 2]
    assert torch.equal(change.values, p.detach()[1:3])


def test_bits_are_compared_and_not_values():
    """-0.0 in place of 0.0 is a change; the same NaN is none."""
    p = nn.Parameter(torch.tensor([-0.0, float("nan"), 1.0]))
    optimizer = ours.SGD([p], lr=1.0, track_changes=True)
    p.grad = torch.tensor([-0.0, 0.0, 0.0])
    optimizer.step()
    assert torch.equal(p.detach()[:1].view(torch.int32), torch.zeros(1, dtype=torch.int32))
    (change,) = optimizer.changes()
    assert change.indices.tolist() == [0]


def test_indices_are_of_the_flattened_tensor_however_it_is_laid_out():
    p = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    optimizer = ours.SGD([p], lr=1.0, track_changes=True)
    p.grad = torch.zeros_like(p)
    p.grad[0, 1, 2, 3] = 1.0
    before = bits_of(p)
    optimizer.step()
    (change,) = optimizer.changes()
    assert change.indices.tolist() == [16 + 11]
    assert torch.equal(changed(before, bits_of(p)).nonzero().view(-1), change.indices.long())


def test_a_lazy_parameter_has_changed_once_it_is_there():
    net = nn.LazyLinear(3)
    optimizer = ours.AdamW(net.parameters(), track_changes=True)
    assert told(optimizer) == {}
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert told(optimizer) == {"0.0": 12, "0.1": 3}


def test_parameters_without_memory_have_not_changed():
    net = nn.Linear(4, 3, device="meta")
    assert told(ours.AdamW(net.parameters(), track_changes=True)) == {}


def test_rows_that_a_sparse_gradient_has_have_changed():
    net = nn.Embedding(10, 4, sparse=True)
    optimizer = ours.SGD(net.parameters(), lr=0.1, track_changes=True)
    net(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    (change,) = optimizer.changes()
    assert change.indices.tolist() == [*range(4, 8), *range(12, 16)]


def test_gradient_release_tells_of_each_parameter_by_its_optimizer():
    net = network()
    optimizers = {p: ours.AdamW([(name, p)], track_changes=True)
                  for name, p in net.named_parameters()}  # fmt: skip
    for p in net.parameters():

        def release(p):
            optimizers[p].step()
            optimizers[p].zero_grad()

        p.register_post_accumulate_grad_hook(release)
    net(torch.ones(2, 5)).sum().backward()
    found = {}
    for optimizer in optimizers.values():
        found |= told(optimizer)
    assert {*found} <= {*everything(net)}
    assert found["1.bias"] == 3


def test_who_follows_while_another_thread_steps_ends_with_its_weights():
    """Each telling ends where a step comes between; what was told until then is right."""
    net = network(dtype=BFLOAT16)
    optimizer = optimizer_of(net)
    reader = {name: p.detach().clone() for name, p in net.named_parameters()}
    give_gradients(optimizer)
    ends = threading.Event()

    def train():
        for _ in range(300):
            optimizer.step()
        ends.set()

    def follow():
        for change in optimizer.changes():
            reader[change.name].view(-1)[change.indices.long()] = change.values

    thread = threading.Thread(target=train)
    thread.start()
    while not ends.is_set():
        with contextlib.suppress(RuntimeError):
            follow()
    thread.join()
    follow()
    for name, p in net.named_parameters():
        assert torch.equal(bits_of(reader[name]), bits_of(p))
