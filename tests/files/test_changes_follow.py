"""Changes that do not follow on what a model has are refused, and leave it as it is."""

from __future__ import annotations

import copy
import re
import weakref

import numpy as np
import pytest
import torch

import adamas
from tests.files.test_changes import copied, made, tensors
from tests.support.told import Told, all_bits, bits_of


def saved(told, path, steps=1, **options):
    """Make steps and save what they have changed."""
    told.advance(steps)
    adamas.save_changes(path, told.changes(**options))
    return path


def refused(target, path, message, error=ValueError, **options):
    """Check that changes are refused, by their file, and that nothing has changed."""
    before = all_bits(target)
    with pytest.raises(error, match=message) as caught:
        adamas.apply_changes(target, path, **options)
    assert any(str(each) in str(caught.value) for each in (path if type(path) is list else [path]))
    assert all_bits(target) == before


@pytest.fixture(params=["numpy", "torch"])
def told(request):
    return made(request.param)


def test_what_is_not_known_to_stand_anywhere_has_to_be_told(told, tmp_path):
    target = copied(told.tensors)
    one, two = (saved(told, tmp_path / name) for name in ("1", "2"))
    refused(target, one, r"not known which step wide/weight\.0 stands at.*Give after=0 if it has")
    refused(target, two, r"Give after=1 if it has the values of that step, or a file with every")
    assert adamas.apply_changes(target, one, after=0) == 1
    assert adamas.apply_changes(target, two) == 2
    assert all_bits(target) == all_bits(told.tensors)


def test_changes_that_were_put_in_already_are_refused(told, tmp_path):
    target = copied(told.tensors)
    one, two = (saved(told, tmp_path / name, 2) for name in ("1", "2"))
    adamas.apply_changes(target, one, after=0)
    refused(target, one, "the steps 1 to 2, and the model has them already. Go on with the next")
    adamas.apply_changes(target, two)
    refused(target, two, "the model has them already")
    refused(target, one, "the steps 1 to 2, but the model stands at step 4 already")
    refused(target, one, "but the model stands at step 2 already", after=2)


def test_a_gap_is_refused_with_the_steps_that_are_missing(told, tmp_path):
    target = copied(told.tensors)
    one, two, three = (saved(told, tmp_path / name, 2) for name in ("1", "2", "3"))
    refused(target, two, "lacks the changes of the steps 1 to 2", after=0)
    adamas.apply_changes(target, one, after=0)
    refused(target, three, "stands at step 2, and lacks the changes of the steps 3 to 4. Apply the")
    adamas.apply_changes(target, two)
    adamas.apply_changes(target, three)
    assert all_bits(target) == all_bits(told.tensors)


def test_changes_that_were_told_elsewhere_leave_a_gap(told, tmp_path):
    target = copied(told.tensors)
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    told.advance()
    list(told.changes())  # the marks are cleared
    refused(target, saved(told, tmp_path / "3"), "lacks the changes of step 2")


def test_changes_of_another_training_are_refused_though_the_steps_fit(tmp_path):
    one, other = Told(tensors(), seed=1), Told(tensors(), seed=2)
    target = copied(one.tensors)
    adamas.apply_changes(target, saved(one, tmp_path / "1"), after=0)
    saved(other, tmp_path / "other 1")
    refused(target, saved(other, tmp_path / "other 2"), "which the model's step fits, but not what")


def test_after_a_training_went_back_only_a_file_with_everything_fits(told, tmp_path):
    early, reader, other = (copied(told.tensors) for _ in range(3))
    for number in (1, 2, 3):
        path = saved(told, tmp_path / str(number))
        for target in (reader, other, *([early] if number == 1 else [])):
            after = 0 if number == 1 else None
            adamas.apply_changes(target, path, after=after)
    told.go_back_to(1, early)
    base = saved(told, tmp_path / "base")  # of step 2
    assert adamas.apply_changes(reader, base) == 2
    next_one = saved(told, tmp_path / "next")
    missed = saved(told, tmp_path / "missed")
    assert adamas.apply_changes(reader, next_one) == 3
    refused(other, missed, "another training, or of this one after it went back")  # it is at 3
    assert adamas.apply_changes(reader, missed) == 4
    assert all_bits(reader) == all_bits(told.tensors)
    assert adamas.apply_changes(other, base) == 2


def test_who_looks_at_changes_may_have_all_since_a_base_at_any_time(told, tmp_path):
    """Changes that were not cleared add up: each set has what those before it had."""
    target = copied(told.tensors)
    one = saved(told, tmp_path / "1", clear=False)
    adamas.apply_changes(target, one, after=0)
    refused(target, one, "the model has them already")
    two, three = (saved(told, tmp_path / name, clear=False) for name in ("2", "3"))
    assert adamas.apply_changes(target, three) == 3  # of the steps 1 to 3
    refused(target, two, "the steps 1 to 2, but the model stands at step 3 already")
    assert all_bits(target) == all_bits(told.tensors)
    late = copied(made("numpy" if isinstance(target["bias.0"], np.ndarray) else "torch").tensors)
    assert adamas.apply_changes(late, three, after=0) == 3
    four = saved(told, tmp_path / "4")
    for each in (target, late):
        assert adamas.apply_changes(each, four) == 4
        assert all_bits(each) == all_bits(told.tensors)
    told.advance(1, 0)
    five = saved(told, tmp_path / "5", 0)
    assert adamas.apply_changes(target, five) == 5


def test_changes_without_a_step_or_without_an_element_lead_on(told, tmp_path):
    target = copied(told.tensors)
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    nothing = saved(told, tmp_path / "nothing", 0)
    assert adamas.apply_changes(target, nothing) == 1
    refused(target, nothing, "has changes after step 1, without a step, and the model has them")
    told.step += 2  # steps that have changed nothing
    adamas.apply_changes(target, saved(told, tmp_path / "still", 0))
    assert adamas.apply_changes(target, saved(told, tmp_path / "4")) == 4
    fresh = copied(told.tensors)
    refused(fresh, saved(told, tmp_path / "empty", 0), "not known which step")
    assert adamas.apply_changes(fresh, tmp_path / "empty", after=4) == 4


def test_what_something_else_has_written_to_is_not_known_any_more(tmp_path):
    told = Told(tensors())
    target = copied(told.tensors)
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    two = saved(told, tmp_path / "2")
    value = target["wide/weight.1"].clone()
    target["wide/weight.1"].fill_(3)
    refused(
        target,
        two,
        r"not known which step wide/weight\.1 stands at: .* or something else has writte",
    )
    target["wide/weight.1"].copy_(value)
    assert adamas.apply_changes(target, two, after=1) == 2
    assert all_bits(target) == all_bits(told.tensors)
    target["wide/weight.1"].data = target["wide/weight.1"].clone()  # another memory
    refused(target, saved(told, tmp_path / "3"), r"not known which step wide/weight\.1 stands at")


def test_another_parameter_of_the_same_memory_is_not_known_to_stand_anywhere(tmp_path):
    """It counts writes anew, so one more of them could not be told from none."""
    told = Told({"w": torch.zeros(50)})
    target = {"w": torch.nn.Parameter(torch.zeros(50))}
    with torch.no_grad():
        target["w"].zero_()
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    target["w"] = torch.nn.Parameter(target["w"].data)
    with torch.no_grad():
        target["w"].fill_(3)
    assert target["w"]._version == 1
    refused(target, saved(told, tmp_path / "2"), "not known which step w stands at")


def test_tensors_that_stand_at_different_steps_are_refused(told, tmp_path):
    target = copied(told.tensors)
    one, two = saved(told, tmp_path / "1"), saved(told, tmp_path / "2")
    adamas.apply_changes(target, one, after=0)
    some = {"wide/weight.1": target["wide/weight.1"]}
    adamas.apply_changes(some, two, strict=False)
    three = saved(told, tmp_path / "3")
    refused(target, three, r"stands at step \d of what it follows and .* at step \d\. Give")


def test_a_tensor_that_is_new_to_the_training_need_not_stand_anywhere(told, tmp_path):
    """As of an added group: all of it is told, whatever a reader has there."""
    target = copied(told.tensors)
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    for each in (told.tensors, target):
        each["new"] = copied(each["wide/weight.1"])
    told.before["new"] = ~bits_of(told.tensors["new"])
    assert adamas.apply_changes(target, saved(told, tmp_path / "2")) == 2
    assert all_bits(target) == all_bits(told.tensors)
    assert adamas.apply_changes(target, saved(told, tmp_path / "3")) == 3  # it stands there, too
    assert all_bits(target) == all_bits(told.tensors)


def test_all_of_one_tensor_does_not_fit_a_model_that_stands_elsewhere(tmp_path):
    told = Told({"a": torch.zeros(50), "b": torch.zeros(50)})
    target = copied(told.tensors)
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    saved(told, tmp_path / "2")
    told.step += 1
    told.before["a"] = ~bits_of(told.tensors["a"])
    adamas.save_changes(tmp_path / "3", told.changes())
    refused(target, tmp_path / "3", "lacks the changes of step 2")
    refused(copied(target), tmp_path / "3", "not known which step")
    adamas.apply_changes(target, tmp_path / "2")
    assert adamas.apply_changes(target, tmp_path / "3") == 3
    assert all_bits(target) == all_bits(told.tensors)


def test_where_a_tensor_stands_does_not_keep_it(tmp_path):
    for kind in ("numpy", "torch"):
        told = made(kind)
        target = copied(told.tensors)
        adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
        each = target["bias.0"]
        owner = weakref.ref(each if kind == "numpy" else each.untyped_storage())
        assert owner() is not None
        del each, target
        assert owner() is None


def test_a_copy_of_a_model_has_to_be_told_where_it_stands(tmp_path):
    told = Told(tensors())
    target = copied(told.tensors)
    adamas.apply_changes(target, saved(told, tmp_path / "1"), after=0)
    twin = copy.deepcopy(target)
    two = saved(told, tmp_path / "2")
    refused(twin, two, "not known which step")
    assert adamas.apply_changes(twin, two, after=1) == 2


# ── files of several processes ─────────────────────────────────────────────────────────────────


def parts_of(whole, count, parts=None):
    """Return what tells the rows of a matrix that each of some processes has."""
    rows = np.array_split(whole["w"], count)
    starts = np.cumsum([0, *(each.size for each in rows)])
    return [
        Told(
            {"w": rows[rank]},
            seed=rank,
            part=rank,
            parts=parts or tuple(range(count)),
            start=int(starts[rank]),
            shape=whole["w"].shape,
        )
        for rank in range(count)
    ]


def saved_parts(made, folder, name):
    return [saved(told, folder / f"{name}.{i}") for i, told in enumerate(made)]


def test_files_of_several_processes_go_together_in_any_order(tmp_path):
    whole = {"w": np.zeros((7, 5), np.float32)}
    made, target = parts_of(whole, 3), copied(whole)
    for step in (1, 2, 3):
        paths = saved_parts(made, tmp_path, step)
        after = 0 if step == 1 else None
        assert adamas.apply_changes(target, paths[::-1], after=after) == step
        assert all_bits(target) == all_bits(whole)


def test_a_part_that_is_missing_twice_or_of_another_step_is_named(tmp_path):
    whole = {"w": np.zeros((7, 5), np.float32)}
    made, target = parts_of(whole, 3), copied(whole)
    one, two = (saved_parts(made, tmp_path, name) for name in ("one", "two"))
    refused(target, one[:2], "a part of changes that 3 processes wrote, but .* rank 2", after=0)
    refused(target, [one[0], one[1], one[1]], "are of one process, that of rank 1", after=0)
    refused(target, [*one[:2], two[2]], "of step 1, but .* of step 2. Give", after=0)
    with pytest.raises(ValueError, match="path names no file"):
        adamas.apply_changes(target, [], after=0)
    adamas.apply_changes(target, one, after=0)
    adamas.apply_changes(target, two)
    assert all_bits(target) == all_bits(whole)


def test_parts_of_which_all_has_changed_go_together_with_others(tmp_path):
    whole = {"w": np.zeros((7, 5), np.float32)}
    made, target = parts_of(whole, 3), copied(whole)
    adamas.apply_changes(target, saved_parts(made, tmp_path, "1"), after=0)
    made[1].is_whole = True
    paths = saved_parts(made, tmp_path, "2")
    refused(copied(whole), paths, "not known which step")
    assert adamas.apply_changes(target, paths) == 2
    for told in made:
        told.is_whole = True
    fresh = copied(whole)
    fresh["w"][...] = 3
    assert adamas.apply_changes(fresh, saved_parts(made, tmp_path, "3")) == 3
    assert all_bits(fresh) == all_bits(whole)


def test_a_part_of_another_training_is_refused(tmp_path):
    whole = {"w": np.zeros((7, 5), np.float32)}
    made, others, target = parts_of(whole, 2), parts_of(copied(whole), 2), copied(whole)
    adamas.apply_changes(target, saved_parts(made, tmp_path, "1"), after=0)
    saved_parts(others, tmp_path, "other")
    mixed = [saved_parts(made, tmp_path, "2")[0], saved_parts(others, tmp_path, "other")[1]]
    before = all_bits(target)
    with pytest.raises(ValueError, match=re.escape("other.1 has the changes of step 2")):
        adamas.apply_changes(target, mixed)
    assert all_bits(target) == before


def test_replicas_may_be_told_twice_and_have_to_agree(tmp_path):
    whole = {"w": np.zeros((7, 5), np.float32)}
    twins = [parts_of(copied(whole), 1, parts=(0, 1))[0] for _ in range(2)]
    twins[1].part = 1
    target = copied(whole)
    paths = saved_parts(twins, tmp_path, "1")
    assert adamas.apply_changes(target, paths, after=0) == 1
    assert all_bits(target) == all_bits(twins[0].tensors)
    twins[1].random = np.random.default_rng(5)  # they come apart
    paths = saved_parts(twins, tmp_path, "2")
    refused(target, paths, "differ in what they have of w, so they are not of one training")
    for twin in twins:  # all of it
        twin.go_back_to(2, twin.tensors)
    paths = saved_parts(twins, tmp_path, "3")
    refused(target, paths, "differ in what they have of w")


# ── what does not fit ──────────────────────────────────────────────────────────────────────────


def test_other_names_shapes_and_dtypes_are_refused(tmp_path):
    told = Told({"w": np.zeros((4, 5), np.float32)})
    path = saved(told, tmp_path / "1")
    other = np.zeros((4, 5), np.float32)
    cases = [
        ({"v": other}, KeyError, "changes w, which the model lacks: it has v"),
        ({"w": other.T}, ValueError, r"of shape \(4, 5\), but here it has shape \(5, 4\)"),
        ({"w": np.zeros((4, 5))}, ValueError, r"here it has dtype float64.*after each change\.$"),
        ({"w": torch.zeros(4, 5).half()}, ValueError, r"of w in float32, .*copy_to=torch\.float16"),
        ({"module.w": other}, KeyError, r" module\.w may be w, in a model that is wrapped"),
        (torch.nn.Linear(3, 2), KeyError, "which the model lacks: it has weight, bias"),
    ]
    for target, error, message in cases:
        if isinstance(target, dict):
            refused(target, path, message, error, after=0)
        else:
            with pytest.raises(error, match=message):
                adamas.apply_changes(target, path, after=0)


def test_a_model_whose_names_all_differ_is_no_part_of_the_one_that_was_trained(tmp_path):
    told = Told(tensors())
    path = saved(told, tmp_path / "1")
    wrapped = {f"module.{name}": each for name, each in tensors().items()}
    for target, message in (
        (wrapped, r"module\.wide.* may be wide"),
        ({}, "lacks: it has nothing"),
    ):
        refused(target, path, message, KeyError, after=0, strict=False)
    other = {"elsewhere.bias.0": torch.zeros(3)}  # as where its layers have not changed
    assert adamas.apply_changes(other, path, after=0, strict=False) == 1


def test_what_cannot_be_written_to_is_refused_before_anything_is(tmp_path):
    told = Told({"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)})
    told.advance(1, 1.0)
    path = tmp_path / "1"
    adamas.save_changes(path, told.changes())
    read_only = np.zeros(4, np.float32)
    read_only.flags.writeable = False
    swapped = np.zeros(4, np.dtype(np.float32).newbyteorder())
    cases = [
        (read_only, ValueError, "b is read-only, but changes are written in place"),
        (swapped, ValueError, "b has the byte order of another machine"),
        (torch.zeros(1).expand(4), ValueError, "Elements of b share memory"),
        (torch.zeros(4, device="meta"), TypeError, "b is a Tensor on meta"),
        (torch.zeros(4).to_sparse(), TypeError, "layout torch.sparse_coo, but changes are"),
        (np.ma.zeros(4, np.float32), TypeError, "whose arithmetic is not that of plain arrays"),
        (torch.zeros(4, dtype=torch.complex64).conj().imag, TypeError, "b is a view that gives co"),
    ]
    for target, error, message in cases:
        other = np.zeros(4, np.float32)
        with pytest.raises(error, match=message):
            adamas.apply_changes({"a": other, "b": target}, path, after=0)
        assert (other == 0).all()


def test_arguments_of_other_kinds_are_refused(tmp_path):
    told = made("torch")
    path = saved(told, tmp_path / "1")
    optimizer = adamas.Adam(np.zeros(2))
    for target, message in [
        (str(path), "The path is the second one"),
        (optimizer, "Give the model whose parameters the optimizer has"),
        (5, "is an int, but changes are put into a torch.nn.Module, or a dict"),
    ]:
        with pytest.raises(TypeError, match=message):
            adamas.apply_changes(target, path)
    with pytest.raises(TypeError, match=r"path is an int, but it must be .* after the model"):
        adamas.apply_changes({}, 5)
    with pytest.raises(ValueError, match="after is -1, but it must be a whole number, at least 0"):
        adamas.apply_changes({}, path, after=-1)
    with pytest.raises(TypeError, match="strict is 1, but"):
        adamas.apply_changes({}, path, after=0, strict=1)
    with pytest.raises(TypeError, match=r"but it must be what optimizer.changes.. returned"):
        adamas.save_changes(path, list(told.changes(clear=False)))
    with pytest.raises(TypeError, match="It stands before the changes"):
        adamas.save_changes(told.changes(), path)
    with pytest.raises(OSError, match="No such file"):
        adamas.apply_changes(told.tensors, tmp_path / "missing")


def test_a_lazy_model_has_to_see_a_batch_first(tmp_path):
    path = saved(made("torch"), tmp_path / "1")
    with pytest.raises(TypeError, match=r"weight has no shape yet. Run a batch through the model"):
        adamas.apply_changes(torch.nn.LazyLinear(3), path)


def test_a_dtype_that_safetensors_lacks_is_refused_and_nothing_is_lost(tmp_path):
    for values in (torch.zeros(3, dtype=torch.complex128), np.zeros(3, np.complex128)):
        change = adamas.Change("w", np.arange(3, dtype=np.int32), values, (3,))
        told = adamas.Changes(lambda c=change: iter([c]), pytest.fail, 1, 1, False)
        with pytest.raises(TypeError, match=r"values/w has dtype .*complex128, which safetensors"):
            adamas.save_changes(tmp_path / "1", told)
        assert list(tmp_path.iterdir()) == []


def test_two_parameters_of_one_name_are_refused(tmp_path):
    change = adamas.Change("w", np.arange(3, dtype=np.int32), np.zeros(3), (4,))
    told = adamas.Changes(lambda: iter([change, change]), None, 1, 1, False)
    with pytest.raises(ValueError, match="Two parameters have the name w"):
        adamas.save_changes(tmp_path / "1", told)
