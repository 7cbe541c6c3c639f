"""Each finding is shown by a training that has it planted, and by no healthy one."""

from __future__ import annotations

import re

import pytest

from adamas.report import findings as found_in
from adamas.report import read
from adamas.report.findings import FEWEST, FINDERS
from tests.support import planted_runs
from tests.support.cases import ROOT
from tests.support.made_records import header, line, run, write


def kinds(of):
    return {each.kind for each in found_in(of)}


# ── trainings ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of a training, by its function; each is made once."""
    folder = tmp_path_factory.mktemp("trainings")
    runs = {}

    def run_of(training):
        if training not in runs:
            path = folder / f"{training.__name__}.jsonl"
            training(path)
            runs[training] = read(path)
        return runs[training]

    return run_of


@pytest.mark.parametrize("training", planted_runs.PLANTED, ids=lambda each: each.__name__)
def test_what_is_planted_in_a_training_is_found_and_nothing_else(trained, training):
    assert kinds(trained(training)) == {training.__name__}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("training", planted_runs.HEALTHY, ids=lambda each: each.__name__)
def test_nothing_is_found_in_a_healthy_training(trained, training):
    assert found_in(trained(training)) == ()


def test_every_finding_has_a_training():
    assert {find.__name__ for find in FINDERS} == {f.__name__ for f in planted_runs.PLANTED}


def test_layers_that_were_planted_are_named_and_others_are_not(trained):
    for training, names in (
        (planted_runs.uneven_layers, {"4.weight"}),
        (planted_runs.grow_without_end, {"score.weight"}),
    ):
        (finding,) = found_in(trained(training))
        assert {layer.name for layer in finding.layers} == names
        assert next(iter(names)) in finding.sentence
    (finding,) = found_in(trained(planted_runs.dead_tensors))
    assert {"4.weight", "4.bias", "2.weight"} <= {layer.name for layer in finding.layers}
    assert "8.bias" not in {layer.name for layer in finding.layers}


def test_steps_left_out_are_counted(trained):
    (finding,) = found_in(trained(planted_runs.nonfinite_gradients))
    # The last line is that of step 390.
    assert finding.sentence.startswith("2 steps of 392 (0.51 %) were left out")
    (finding,) = found_in(trained(planted_runs.spikes))
    assert finding.sentence.startswith("3 steps of 393 (0.76 %) were left out")


def test_the_rate_counts_from_the_first_step_that_was_made(tmp_path):
    lines = [
        line(0, (), skipped={"nonfinite": 1, "spikes": 0}),
        *(line(max(1, 10 * i)) for i in range(8)),
    ]
    found = found_in(read(write(tmp_path / "run.jsonl", header(), lines)))
    (finding,) = (each for each in found if each.kind == "short_warmup")
    assert "from the first line on (0.001 at step 1)" in finding.sentence


def test_each_finding_has_numbers_a_threshold_a_source_and_a_section_of_the_guide(trained):
    guide = (ROOT / "docs" / "guides" / "watching.md").read_text("utf-8")
    headings = re.findall(r"^### .*?\{#([\w-]+)\}$", guide, re.MULTILINE)
    for training in planted_runs.PLANTED:
        (finding,) = found_in(trained(training))
        assert re.search(r"\d", finding.sentence)
        assert finding.sentence.endswith(".")
        assert finding.advice
        assert finding.source.url.startswith("https://")
        page, _, anchor = finding.page.partition("#")
        assert page.endswith("/guides/watching/")
        assert anchor in headings
        section = guide.partition(f"{{#{anchor}}}")[2].partition("\n##")[0]
        assert finding.source.url in section
        # The guide tells the thresholds that hold.
        for number in re.findall(r"\d+ %|\d+ times|\d/\(1 − β2\)", finding.threshold):
            assert number in " ".join(section.split()), finding.threshold


# ── thresholds ─────────────────────────────────────────────────────────────────────────────────

HALF = {"below_eps": 0.5, "largest_update": 0.1}
STILL = {"unmoved": 0.5}


@pytest.mark.parametrize(
    ("of", "head", "more", "expected"),
    [
        ({}, {}, {}, set()),
        (HALF, {}, {}, {"epsilon_above_root"}),
        (HALF | {"below_eps": 0.49}, {}, {}, set()),
        # Elements without a gradient are below ε and stay, and the others go on.
        ({"below_eps": 0.9, "unmoved": 0.9}, {}, {}, set()),
        (STILL, {"dtype": "bfloat16"}, {}, {"stand_still"}),
        (STILL | {"unmoved": 0.49}, {"dtype": "bfloat16"}, {}, set()),
        (STILL, {"dtype": "bfloat16", "rounding": "nearest"}, {}, {"stand_still"}),
        (STILL, {"dtype": "bfloat16", "rounding": "remainder"}, {}, set()),
        (STILL, {"dtype": "bfloat16", "rounding": "stochastic"}, {}, set()),
        (STILL, {"dtype": "float32"}, {}, set()),
        (STILL | {"update_norm": 0.1}, {"dtype": "bfloat16"}, {}, set()),
        (STILL | {"below_eps": 0.5}, {"dtype": "bfloat16"}, {}, set()),
        ({"c": {"update_norm": 0.04}}, {}, {}, {"uneven_layers"}),
        ({"c": {"update_norm": 0.039}}, {}, {}, set()),
        ({"c": {"update_norm": 0.04, "parameter_norm": 4.01}}, {}, {}, set()),
        # Layers that are kept as they are tell nothing of how far others may go.
        ({n: {"update_norm": 0.0} for n in "abd"} | {"c": {"update_norm": 0.1}}, {}, {}, set()),
        ({"c": {"gradient_norm": 0.0}}, {}, {}, {"dead_tensors"}),
        ({"c": {"gradient_norm": 1e-300}}, {}, {}, set()),
        ({}, {"phase": {"clip_norm": 0.5}}, {"clip_factor": 0.5}, {"clipped_always"}),
        ({}, {"phase": {"clip_norm": 0.5}}, {"clip_factor": 0.5, "clipped": 9},
         {"clipped_always"}),
        ({}, {"phase": {"clip_norm": 0.5}}, {"clip_factor": 0.5, "clipped": 8}, set()),
        ({}, {"phase": {"clip_norm": 2.0}}, {"clip_factor": 1.0}, set()),
        ({}, {"betas": [0.9, 0.99]}, {}, {"short_warmup"}),  # 100 of 200 steps
        ({}, {"betas": [0.9, 0.996]}, {}, {"short_warmup", "old_square"}),
        ({}, {"betas": [0.9, 0.995]}, {}, {"short_warmup"}),
        ({}, {"betas": [None, 0.99]}, {}, set()),
        ({}, {"betas": None}, {}, set()),
        ({"c": {"nonfinite": 1}}, {}, {}, {"nonfinite_gradients"}),
        ({}, {}, {"skipped": {"nonfinite": 1}}, {"nonfinite_gradients"}),
        ({}, {}, {"skipped": {"spikes": 1}}, {"spikes"}),
    ],
)  # fmt: skip
def test_a_finding_is_told_from_its_threshold_on(tmp_path, of, head, more, expected):
    assert kinds(run(tmp_path / "run.jsonl", of=of, head=header(**head), **more)) == expected


@pytest.mark.parametrize(("power", "grows"), [(0.5, False), (0.67, False), (0.69, True)])
def test_norms_that_grow_as_a_root_of_time_are_usual_and_steady_growth_is_not(
    tmp_path, power, grows
):
    lines = [
        line(10 * i, of={"parameter_norm": float(i) ** power}, lr=min(1.0, i / 10))
        for i in range(1, 41)
    ]
    for shape, expected in (((8, 8), grows), ((64,), False)):
        path = tmp_path / f"{len(shape)}.jsonl"
        told = kinds(read(write(path, header(shape=shape), lines)))
        assert ("grow_without_end" in told) == expected


@pytest.mark.parametrize(
    ("skipped", "level"), [(1, "hint"), (2, "hint"), (3, "problem"), (50, "problem")]
)
def test_steps_left_out_are_a_problem_from_one_in_a_hundred_on(tmp_path, skipped, level):
    of = run(tmp_path / "run.jsonl", skipped={"spikes": skipped})
    assert [each.level for each in found_in(of)] == [level]


@pytest.mark.parametrize("count", range(1, FEWEST + 1))
def test_few_lines_tell_nothing_of_layers(tmp_path, count):
    lines = [line(100 * (i + 1), of={"gradient_norm": 0.0}, lr=1e-4 * i) for i in range(count)]
    told = kinds(read(write(tmp_path / "run.jsonl", header(), lines)))
    assert told == ({"dead_tensors"} if count == FEWEST else set())


def test_the_beginning_of_a_run_does_not_decide(tmp_path):
    lines = [
        line(10 * i, of={"gradient_norm": 0.0} if i <= 10 else {}, lr=min(1.0, i / 10))
        for i in range(1, 21)
    ]
    assert kinds(read(write(tmp_path / "run.jsonl", header(), lines))) == set()


def test_a_warmup_that_goes_on_or_that_was_before_the_record_is_not_judged(tmp_path):
    slow = header(betas=[0.9, 0.99])
    rising = [line(100 * i, lr=i / 20) for i in range(1, 21)]
    late = [line(5000 + 100 * i, lr=1.0) for i in range(1, 21)]
    for name, lines in (("rising", rising), ("late", late)):
        assert kinds(read(write(tmp_path / name, slow, lines))) == set()


def test_problems_stand_before_hints(tmp_path):
    of = run(
        tmp_path / "run.jsonl", of={"c": {"gradient_norm": 0.0}},
        head=header(betas=[0.9, 0.999]), skipped={"spikes": 1},
    )  # fmt: skip
    levels = [each.level for each in found_in(of)]
    assert levels == sorted(levels, key=lambda level: level != "problem")
    assert len(levels) > 3


@pytest.mark.parametrize("made", [0, 12])
def test_of_a_run_whose_steps_are_all_left_out_only_that_is_told(tmp_path, made):
    lines = [line(10 * i, lr=min(1.0, i / 10)) for i in range(1, made + 1)]
    for i in range(1, 9):
        lines.append(line(10 * made, (), lr=1.0, skipped={"nonfinite": i, "spikes": 0}))
        del lines[-1]["tensors"]
    of = read(write(tmp_path / "run.jsonl", header(), lines))
    assert kinds(of) == {"nonfinite_gradients"}


@pytest.mark.parametrize("tensors", [(), ("a",), ("a", "b")])
def test_records_of_few_tensors_or_none_are_looked_at(tmp_path, tensors):
    lines = [line(10 * i, tensors, lr=min(1.0, i / 10)) for i in range(1, 21)]
    assert kinds(read(write(tmp_path / "run.jsonl", header(tensors), lines))) == set()
