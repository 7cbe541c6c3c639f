"""The page: one file, small, without anything from elsewhere, whatever names tensors have."""

from __future__ import annotations

import json
import re

import pytest

from adamas.report import findings, page, read
from adamas.report.charts import drawn_lines
from tests.support.made_records import header, large, line, run, write

vl_convert = pytest.importorskip("vl_convert")
#: A page opens on a phone, too. What of it is not Vega-Lite:
LIMIT, OWN = 2_000_000, 1_000_000
bundle = vl_convert.javascript_bundle


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """What stands in for Vega-Lite, which takes seconds to be put together."""
    text = "/* Vega-Lite */"
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda _: text)
    return text


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def test_the_page_asks_for_nothing(tmp_path, library):
    text = page([run(tmp_path / "run.jsonl")], "1.2.3")
    assert text.count(library) == 1
    own = text.replace(library, "")
    # What is fetched without a click: there is nothing but an empty icon.
    assert re.findall(r'<link rel="icon" href="([^"]*)">', own) == ["data:,"]
    assert not re.findall(
        r"(?:src|srcset|action|poster)=|@import|url\(|<(?:iframe|img|object)", own
    )
    assert "default-src 'none'" in own
    assert "adamas 1.2.3" in own


EVIL = '</script><img src=x onerror="alert(1)">&amp;\u2028{{data}}'


def test_names_are_text_whatever_they_are(tmp_path, library):
    head = header([EVIL, "b"]) | {"method": EVIL, "version": EVIL}
    lines = [
        line(10 * i, (EVIL, "b"), of={EVIL: {"gradient_norm": 0.0}}, notes={EVIL: 1.0})
        for i in range(1, 5)
    ]
    of = read(write(tmp_path / "run.jsonl", head, lines), EVIL)
    assert findings(of)
    text = page([of, of], EVIL).replace(library, "")
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert data_of(text)["runs"] == [EVIL, EVIL]
    assert data_of(text)["heats"][0]["layers"][0] == EVIL
    assert "&lt;/script&gt;&lt;img src=x" in text


@pytest.mark.parametrize(("layers", "lines"), [(3000, 40), (300, 400), (3, 5000), (700, 1)])
def test_the_page_of_a_large_run_is_small_and_says_what_it_leaves_out(layers, lines):
    of = large(layers, lines)
    text = page([of], "0.1.0")
    assert len(text.encode()) < OWN
    heat = data_of(text)["heats"][0]
    rows = text.count('<tr><th scope="row">')
    told = " ".join(re.findall(r"<footer>.*?</footer>", text, re.DOTALL))
    mapped, times, points = len(heat["layers"]), len(heat["edges"]) - 1, len(drawn_lines(of))
    for shown, there, what in (
        (mapped, layers, f"the heat map leaves {layers - mapped:,} layers"),
        (times, lines, f"the heat map shows {times:,} of {lines:,} lines"),
        (rows, layers, f"the table leaves {layers - rows:,} layers"),
        (points, lines, f"curves show {points:,} of {lines:,} lines"),
    ):
        assert (what in told) == (shown < there), what
    assert len(heat["layers"]) >= min(layers, 100)
    assert rows >= min(layers, 1000)


def test_several_large_runs_are_small_together():
    runs = [large(700, 60, f"run-{i}.jsonl") for i in range(6)]
    assert len(page(runs, "0.1.0").encode()) < OWN


@pytest.mark.slow
def test_vega_lite_leaves_room_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    text = page([run(tmp_path / "run.jsonl")], "0.1.0")
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    assert script.startswith(bundle("window.vegaEmbed = vegaEmbed;"))
    assert len(script.encode()) < LIMIT - OWN


def test_of_a_stretch_the_line_with_the_largest_gradient_is_drawn(tmp_path):
    of = large(2, 5000)
    of.gradient_norm[3333] = 1e6
    chosen = drawn_lines(of)
    assert {0, 3333, 4999} <= {*chosen.tolist()}
    assert len(chosen) <= 400


def test_layers_of_findings_are_shown_where_others_are_left_out():
    of = large(3000, 40)
    of.of["gradient_norm"][:, 2999] = 0.0
    text = page([of], "0.1.0")
    assert of.tensors[2999].name in data_of(text)["heats"][0]["layers"]
    assert f'<th scope="row">{of.tensors[2999].name}</th>' in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"state": ["float32", "float32"]}, "lr 0.001, β1 0.9, β2 0.95, ε 1e-8"),
        ({"state": ["8bit", "8bit"], "eps": 1e-15}, "β2 0.95, ε 1e-15, state 8bit"),
        ({"state": ["bfloat16", "8bit"]}, "ε 1e-8, state bfloat16 and 8bit"),
        ({"state": "compact", "rounding": "stochastic"}, "state compact, rounding stochastic"),
        ({"betas": [0.9, None], "weight_decay": 0.1}, "lr 0.001, β1 0.9, weight decay 0.1"),
        (
            {"weight_decay": 0.1, "decay": "corrected", "lr_max": 0.5, "rectify": True},
            "weight decay 0.1 (corrected), lr_max 0.5, rectify",
        ),
        ({"weight_decay": 0.0, "decay": "cautious", "maximize": False}, "ε 1e-8"),
    ],
)
def test_options_of_a_group_are_told_in_few_words(tmp_path, options, told):
    lines = [line(10 * i) for i in range(1, 5)]
    text = page([read(write(tmp_path / "run.jsonl", header(**options), lines))], "0.1.0")
    (shown,) = re.findall(r"<dt>Options</dt><dd>(.*?)</dd>", text)
    assert shown.replace("\u00a0", " ").endswith(told)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_known_of_several_runs_is_folded_and_that_of_one_is_not(tmp_path, count):
    text = page([run(tmp_path / "run.jsonl")] * count, "0.1.0")
    head = text.partition("<main>")[0]
    assert head.count("<dt>Method</dt><dd>AdamW</dd>") == count
    assert head.count("<details>") == (0 if count == 1 else count)


def test_a_healthy_run_and_a_short_one_are_told_so(tmp_path):
    assert "None of the findings" in page([run(tmp_path / "a.jsonl")], "0.1.0")
    short = page([run(tmp_path / "b.jsonl", steps=2, head=header(betas=None))], "0.1.0")
    assert "has 2 lines so far" in short
    assert "None of the findings" not in short


def test_there_is_a_chart_of_everything_that_was_recorded(tmp_path):
    of = run(
        tmp_path / "run.jsonl", notes={"speed": 3, "loss": 1.0}, clip_factor=0.5,
        skipped={"nonfinite": 1, "spikes": 2}, head=header(phase={"clip_norm": 0.5}),
    )  # fmt: skip
    data = data_of(page([of], "0.1.0"))
    assert [each["chart"]["description"] for each in data["curves"]] == [
        "loss", "speed", "Norm of the gradient", "Clip factor", "Size of the update",
        "Learning rate", "Steps left out",
    ]  # fmt: skip
    assert [*data["heats"][0]["charts"]] == ["ratio", "gradient_norm", "unmoved", "below_eps"]


@pytest.mark.parametrize(("last", "kind"), [(9.9, None), (10.0, "log"), (0.0, None)])
def test_a_scale_is_logarithmic_where_numbers_differ_tenfold(tmp_path, last, kind):
    lines = [line(10 * i, gradient_norm=1.0 if i < 5 else last) for i in range(1, 6)]
    of = read(write(tmp_path / "run.jsonl", header(), lines))
    (chart,) = (
        each for each in data_of(page([of], "0.1.0"))["curves"]
        if each["chart"]["description"] == "Norm of the gradient"
    )  # fmt: skip
    assert chart["chart"]["layer"][-1]["encoding"]["y"]["scale"].get("type") == kind
    assert chart["lines"][0]["value"] == [1.0] * 4 + [last]


def test_charts_without_anything_to_show_are_left_out(tmp_path):
    lines = [line(10 * i, (), gradient_norm=None, lr=None) for i in range(1, 6)]
    of = read(write(tmp_path / "run.jsonl", header(()), lines))
    data = data_of(page([of], "0.1.0"))
    assert data["curves"] == []
    assert data["heats"][0]["values"] == {}
