"""The demo: what it trains, what it compares, and what it says of who is ahead."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import adamas
from adamas import demo, methods
from adamas.cli import main
from adamas.palette import COLOURS


def run(*arguments):
    return CliRunner().invoke(main, ["demo", *(str(each) for each in arguments)])


def outcome(method, losses, accuracies):
    """Return an outcome as of trainings that ended with these."""
    return demo.Outcome(
        tuple(
            demo.Run(method, 0.1, np.array([2.0, 1.0]), loss, accuracy, 2.0, 0.5)
            for loss, accuracy in zip(losses, accuracies, strict=True)
        )
    )


# ── the trainings ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_adam_reads_at_least_97_percent_of_held_out_digits(seed):
    assert demo.train(demo.load_digits(seed), "Adam", seed=seed).accuracy >= 0.97


def test_the_held_out_digits_are_not_among_those_to_learn_from():
    digits = demo.load_digits(3)
    assert len(digits.labels) + len(digits.test_labels) == 1797
    assert len(digits.test_labels) == 359
    learnt = {image.tobytes() for image in digits.images}
    twins = sum(image.tobytes() in learnt for image in digits.test_images)
    assert twins == 0


def test_the_networks_gradient_is_that_of_its_loss():
    """Central differences in float64: their error is about the cube root of eps squared."""
    random = np.random.default_rng(1)
    weights = {key: w.astype(np.float64) for key, w in demo.initial_weights(random).items()}
    images, labels = random.random((7, 64)), random.integers(0, 10, 7)
    _, gradients = demo.loss_and_gradients(weights, images, labels)
    for name, w in weights.items():
        for i in random.integers(0, w.size, 5):
            width = 1e-6
            losses = []
            for sign in (1, -1):
                w.flat[i] += sign * width
                losses.append(demo.loss_and_gradients(weights, images, labels)[0])
                w.flat[i] -= sign * width
            slope = (losses[0] - losses[1]) / (2 * width)
            assert gradients[name].flat[i] == pytest.approx(slope, abs=1e-8)


def test_the_same_seed_trains_to_the_same_weights():
    digits = demo.load_digits()
    losses = [demo.train(digits, "Adam", epochs=2, seed=7).losses for _ in range(2)]
    assert losses[0].tobytes() == losses[1].tobytes()


def threads_of_blas():
    from threadpoolctl import threadpool_info

    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def test_one_thread_multiplies_while_the_demo_trains_and_as_many_as_before_afterwards():
    from threadpoolctl import threadpool_limits

    digits = demo.load_digits()
    if not threads_of_blas():
        pytest.skip("NumPy multiplies by a BLAS here that threadpoolctl does not know")
    seen = []
    with threadpool_limits(limits=2, user_api="blas"):
        demo.train(digits, "Adam", epochs=1, progress=lambda: seen.append(threads_of_blas()))
        assert set(threads_of_blas()) == {2}
    assert len(seen) == demo.steps_of(digits, 1)
    assert all(set(each) == {1} for each in seen)


def test_threads_are_given_back_where_a_training_is_interrupted():
    from threadpoolctl import threadpool_limits

    def interrupted():
        raise KeyboardInterrupt

    digits = demo.load_digits()
    with threadpool_limits(limits=2, user_api="blas"):
        before = threads_of_blas()
        with pytest.raises(KeyboardInterrupt):
            demo.train(digits, "Adam", epochs=1, progress=interrupted)
        assert threads_of_blas() == before


def test_the_rate_falls_linearly_to_zero(monkeypatch):
    given = []

    def noted(weights, lr):
        given.append(lr)
        return adamas.Adam(weights, lr=lr)

    monkeypatch.setitem(demo.METHODS, "Adam", noted)
    digits = demo.load_digits()
    found = demo.train(digits, "Adam", epochs=2, lr=0.5)
    (lr,) = given
    steps = demo.steps_of(digits, 2)
    assert found.lr == lr(1) == 0.5
    assert lr(steps // 2 + 1) == 0.25
    assert lr(steps + 1) == 0.0


# ── who is ahead ───────────────────────────────────────────────────────────────────────────────


def test_a_difference_is_more_than_the_spread_where_it_exceeds_both_deviations():
    # Standard deviations of 1 each; the means are 0, 1.5 and 3 apart.
    a = outcome("Adam", [1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    b = outcome("RMSProp", [2.5, 3.5, 4.5], [0.5, 0.5, 0.5])
    c = outcome("Momentum", [4.0, 5.0, 6.0], [0.25, 0.25, 0.25])
    assert demo.spread(a.final_losses) == 1.0
    assert demo.verdicts([c, b, a]) == [
        "Final loss: Adam is ahead of Momentum by more than the spread, but not of RMSProp.",
        "Held-out images: RMSProp is ahead of Momentum by more than the spread, but not of Adam.",
        "By more than the spread: by more than both standard deviations together.",
    ]
    assert demo.verdicts([c, a])[0] == (
        "Final loss: Adam is ahead of Momentum by more than the spread."
    )
    assert demo.verdicts([b, a])[0] == (
        "Final loss: Adam and RMSProp differ by less than the spread; who is ahead may be luck."
    )


def test_one_seed_or_one_method_says_nothing_of_who_is_ahead():
    a, b = outcome("Adam", [1.0], [0.5]), outcome("RMSProp", [9.0], [0.1])
    (told,) = demo.verdicts([a, b])
    assert told == "One seed shows no spread: who is ahead may be luck. Give --seeds 2 or more."
    assert demo.verdicts([outcome("Adam", [1.0, 2.0], [0.5, 0.5])]) == []


def test_the_table_has_rates_means_and_deviations(tmp_path):
    done = run(
        "--epochs", 1, "--seeds", 2, "--methods", "adam,note", "--output", tmp_path / "a.png"
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[1].split()[:2] == ["method", "rate"]
    assert [line.split()[0] for line in lines[2:4]] == ["Adam", "note"]
    losses = [demo.train(demo.load_digits(s), "Adam", epochs=1, seed=s).final_loss for s in (0, 1)]
    mean, deviation = np.mean(losses), abs(losses[0] - losses[1]) / np.sqrt(2)
    assert f" {demo.RATES['Adam']:g} " in lines[2]
    assert f" {mean:.5f} ± {deviation:.5f} " in lines[2]
    assert max(map(len, map(str.rstrip, lines[:4]))) <= 80
    assert "2 seeds, mean ± standard deviation." in lines
    assert any(line.startswith("note: Adam without the exponent t") for line in lines)


def test_a_seed_gives_all_methods_the_same_images_start_and_batches(monkeypatch):
    seen = {}

    def noted(method):
        def train(digits, name, **options):
            seen.setdefault(method, []).append((digits.images.tobytes(), options["seed"]))
            return demo.Run(name, 0.1, np.ones(3), 1.0, 0.5, 1.0, 0.1)

        return train

    for method in ("Adam", "note"):
        monkeypatch.setattr(demo, "train", noted(method))
        demo.compared(method, seeds=(3, 4), epochs=1)
    assert seen["Adam"] == seen["note"]
    assert seen["Adam"][0] != seen["Adam"][1]


# ── options ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "momentum,adan",
            "There is no method 'adan'. Did you mean 'adam'? Possible are momentum, rmsprop, adam, "
            "note.",
        ),
        ("", "The name of a method is empty. Possible are momentum, rmsprop, adam, note."),
        ("adam,,note", "The name of a method is empty."),
        ("adam,Adam", "The method adam is given twice. Leave one out."),
    ],
)
def test_methods_that_are_none_are_refused_before_any_work(given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_digits", lambda seed: pytest.fail("work was done"))
    done = run("--methods", given, "--output", tmp_path / "a.png")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_methods_are_named_in_any_case_and_order_with_spaces_or_without():
    assert methods.named(["NOTE", " Adam ", "rmsprop"]) == ("note", "Adam", "RMSProp")


def test_every_method_has_a_colour_and_a_rate_everywhere():
    assert set(methods.METHODS) == set(COLOURS) == set(demo.RATES)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_picture_has_a_curve_and_a_band_of_each_method(tmp_path):
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    demo.plot(axes, [outcome("Adam", [1.0, 2.0], [0.5, 0.75]), outcome("note", [1.0], [0.5])])
    lines, bands = axes.get_lines(), axes.collections
    assert [to_hex(line.get_color()).upper() for line in lines] == ["#0072B2", "#CC79A7"]
    assert len(bands) == 2
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["Adam: 62.5 ± 17.7 %", "note: 50.0 %"]
    demo.draw([outcome("Adam", [1.0, 2.0], [0.5, 0.75])], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
