"""Docs and texts speak the field's words, so that people find and understand them by search."""

from __future__ import annotations

import re

import pytest

from tests.support.cases import ROOT

#: What is not said, and what the field says for it.
INSTEAD = {
    r"\bby chance\b": "stochastic rounding, stochastically",
    r"\brunning means?\b(?! of batch)": "moving average (EMA), first moment, second moment",
    r"\bthe (whole )?house\b": "the code, the layout of the code",
    r"\bstates? in few bits\b": "quantized, low-bit or small states",
    r"\bwalks? (of (its|their) own|through memory)\b": "a pass over memory",
    r"\bspread over (the )?(processes|devices)\b": "sharded over",
    r"\bdifference quotients?\b": "finite differences",
    r"\band friends\b": "the names of what is meant",
    r"\bheads in turn\b": "alternating heads",
}
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
SOURCES = [
    path
    for folder in ("src/adamas", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
]


#: Between two parts of one text in Python: quotes, a line's end, the prefix of the next.
JOINT = re.compile(r"""["']\s*\n?\s*[rf]?["']""")
PHRASES = re.compile("|".join(INSTEAD), re.IGNORECASE)


def not_said(text: str) -> list[str]:
    """Return each phrase of ``text`` that is not said, with what is."""
    found = (each[0] for each in PHRASES.finditer(" ".join(text.split())))
    return [f"{each!r}: say {instead_of(each)}" for each in found]


def instead_of(said: str) -> str:
    """Return what the field says for a phrase that was found."""
    (meant,) = (new for old, new in INSTEAD.items() if re.search(old, said, re.IGNORECASE))
    return meant


@pytest.mark.parametrize("paths", [PAGES, SOURCES], ids=["pages", "sources"])
def test_pages_and_texts_of_the_source_speak_the_words_of_the_field(paths):
    assert len(paths) > 20
    found = {
        str(path.relative_to(ROOT)): not_said(JOINT.sub("", path.read_text("utf-8")))
        for path in paths
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_phrase_is_found_across_lines_and_parts_of_a_text():
    assert not_said("rounded by\n  chance") == [
        "'by chance': say stochastic rounding, stochastically"
    ]
    in_parts = 'f"The {name} is a running "\n    "mean."'
    assert not_said(JOINT.sub("", in_parts)) == [
        "'running mean': say moving average (EMA), first moment, second moment"
    ]
    assert not_said("The model's running means of batch normalization") == []
