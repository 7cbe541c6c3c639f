"""The rule is written down once: every engine that repeats it repeats its text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.cases import ROOT

RULE = ROOT / "src" / "adamas" / "rule.py"
NATIVE = ROOT / "native" / "rule.h"
TRITON = ROOT / "src" / "adamas" / "engines" / "triton" / "rule.py"

#: What a formula of rule.py is called in C++.
IN_CPP = {
    "xp.finfo(x.dtype).smallest_normal": "std::numeric_limits<T>::min()",
    "xp.abs(": "std::abs(",
    "xp.zeros_like(x)": "T(0)",
    "xp.zeros_like(u)": "T(0)",
}


#: What it is called in Triton.
IN_TRITON = {
    "xp.finfo(x.dtype).smallest_normal": "smallest_normal",
    "xp.": "tl.",
}


def python_function(name: str) -> str:
    """The body of a function of rule.py, without its docstring."""
    return function_of(RULE, name)


def triton_function(name: str) -> str:
    """The body of a function of Triton's rule.py."""
    return function_of(TRITON, name)


def function_of(path: Path, name: str) -> str:
    function = rf'^def {name}\(.*?\n    """.*?"""\n(.*?)(?=^\S|\Z)'
    return the_only(function, path.read_text(encoding="utf-8"))


def cpp_function(name: str) -> str:
    """The body of a function of rule.h."""
    function = rf"^(?:ADAMAS_INLINE|inline) \S+ {name}\(.*?\) \{{\n(.*?)^\}}"
    return the_only(function, NATIVE.read_text(encoding="utf-8"))


def the_only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return found


def lines(pattern: str, text: str) -> list[Any]:
    return re.findall(rf"^ +{pattern}$", text, re.MULTILINE)


def python_assignments(body: str) -> list[str]:
    return lines(r"(\w+ = .*)", body)


def cpp_assignments(body: str) -> list[str]:
    return lines(r"(?:(?:T|bool|auto) )?(\w+ = .*);", body)


def where_as_choice(formula: str) -> str:
    """``xp.where(condition, a, b)`` as C++ writes it."""
    for python, cpp in IN_CPP.items():
        formula = formula.replace(python, cpp)
    return re.sub(r"xp\.where\((.*), (.*), (.*)\)", r"\1 ? \2 : \3", formula)


def test_the_rule_has_the_same_lines_in_the_same_order_in_cpp():
    formulas = python_assignments(python_function("rule"))
    assert formulas == cpp_assignments(cpp_function("rule"))
    assert formulas[0] == "g = g * c.grad_scale + c.l2 * p"
    assert formulas[-1] == "p = p - change"
    assert len(formulas) == 12


def test_the_rule_asks_the_same_questions_before_the_same_lines_in_cpp():
    # The rule names what stands under the root s: v, or w where there is one.
    names = {"m": "Mean", "v": "Square", "w": "Largest", "s": "Square"}
    python = lines(r"if (\w) is not None:\n +(\w) = .*", python_function("rule"))
    cpp = lines(r"if constexpr \((\w+)\) \{\n +(?:T )?(\w) = .*", cpp_function("rule"))
    assert [(names[asked], assigned) for asked, assigned in python] == cpp
    assert len(cpp) == 5


def test_what_updates_are_measured_by_has_the_same_lines_in_cpp():
    python, cpp = python_function("unsmoothed"), cpp_function("unsmoothed")
    formulas = python_assignments(python)
    assert formulas == cpp_assignments(cpp)
    assert formulas[0] == "g = g * c.grad_scale"
    assert formulas[-1] == "d = maximum(sqrt(s + c.inner) * c.root, c.eps)"
    assert len(formulas) == 7
    # p is given where l2 is not 0.
    names = {"p": "Decays", "w": "Largest"}
    asked = lines(r"if (\w) is not None:\n +(\w) = .*", python)
    found = lines(r"if constexpr \((\w+)\) \{\n +(?:T )?(\w) = .*", cpp)
    assert [(names[each], assigned) for each, assigned in asked] == found
    assert lines(r"return (.*)", python) == lines(r"return (.*);", cpp) == ["ratio(g, d)"]


@pytest.mark.parametrize("name", ["smooth", "flush", "maximum"])
def test_a_function_of_the_rule_has_the_same_formula_in_cpp(name):
    python = lines(r"return (.*)", python_function(name))
    cpp = lines(r"return (.*);", cpp_function(name))
    assert [where_as_choice(formula) for formula in python] == cpp
    assert len(cpp) == 1


def test_the_ratio_is_0_under_the_same_condition_in_cpp():
    condition = "still = (d == 0) & (u == u)"
    assert python_assignments(python_function("ratio"))[1:] == [condition]
    assert cpp_assignments(cpp_function("ratio")) == [condition]
    # Python divides whole arrays, so by 1 where C++ does not divide.
    assert "return xp.where(still, xp.zeros_like(u), u / xp.where(" in python_function("ratio")
    assert "return still ? T(0) : u / d;" in cpp_function("ratio")


def test_what_shrinks_depends_on_the_same_signs_in_cpp():
    python = function_of(RULE, "shrinkage").strip().splitlines()
    # Where both decays are one there is a functor in C++, which compares nothing.
    assert python[:2] == ["if opposed is decay:", "        return decay * p"]
    condition = "differ = ((u < 0) & (p > 0)) | ((u > 0) & (p < 0))"
    assert python_assignments(python_function("shrinkage"))[1:] == [condition]
    assert cpp_assignments(cpp_function("shrinkage")) == [condition]
    assert python[-1].strip() == "return xp.where(differ, opposed * p, decay * p)"
    assert lines(r"return (.*);", cpp_function("shrinkage")) == ["differ ? opposed * p : decay * p"]


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("m = flush(c.keep1 * m + c.take1 * g);", "m = flush(c.take1 * g + c.keep1 * m);"),
        ("p = p - change;", "p -= change;"),
        ("w = maximum(w, v);\n        s = w;", "s = w;\n        w = maximum(w, v);"),
        ("    T s = v;\n", ""),
    ],
)
def test_a_line_that_differs_is_found(monkeypatch, tmp_path, line, other):
    text = NATIVE.read_text(encoding="utf-8")
    assert line in text
    changed = tmp_path / "rule.h"
    changed.write_text(text.replace(line, other), encoding="utf-8")
    monkeypatch.setitem(globals(), "NATIVE", changed)
    with pytest.raises(AssertionError):
        test_the_rule_has_the_same_lines_in_the_same_order_in_cpp()


# ── Triton ─────────────────────────────────────────────────────────────────────────────────────


def in_triton(formula: str) -> str:
    for python, triton in IN_TRITON.items():
        formula = formula.replace(python, triton)
    return formula


def test_the_rule_has_the_same_lines_in_triton():
    *python, gives = python_function("rule").strip().splitlines()
    *triton, gives_triton = triton_function("rule").strip().splitlines()
    assert python == triton
    assert len(python) == 17
    # What is None on the way in is given back as something.
    assert gives.strip() == "return Result(p, m, v, w, u, change)"
    assert gives_triton.strip() == "return Result(p, some(m, p), some(v, p), some(w, p), u, change)"


def test_what_updates_are_measured_by_has_the_same_lines_in_triton():
    python = python_function("unsmoothed").strip().splitlines()
    assert python == triton_function("unsmoothed").strip().splitlines()
    assert len(python) == 10


@pytest.mark.parametrize("name", ["smooth", "flush", "maximum"])
def test_a_function_of_the_rule_has_the_same_formula_in_triton(name):
    python = lines(r"return (.*)", python_function(name))
    assert [in_triton(formula) for formula in python] == lines(
        r"return (.*)", triton_function(name)
    )
    assert len(python) == 1


def test_the_smallest_normal_number_is_that_of_the_dtype_in_triton():
    assert triton_function("flush").splitlines()[0].strip() == (
        "smallest_normal: tl.constexpr = SMALLEST_64 if x.dtype == tl.float64 else SMALLEST_32"
    )
    text = TRITON.read_text(encoding="utf-8")
    for name, dtype in (("SMALLEST_32", np.float32), ("SMALLEST_64", np.float64)):
        exponent = int(the_only(rf"^{name}: tl.constexpr = tl.constexpr\(2\.0\*\*(-\d+)\)$", text))
        assert 2.0**exponent == np.finfo(dtype).smallest_normal


def test_the_ratio_is_0_under_the_same_condition_in_triton():
    assert python_assignments(python_function("ratio"))[1:] == python_assignments(
        triton_function("ratio")
    )
    # Triton divides all elements, too, and what 0 gives is not taken.
    assert lines(r"return (.*)", triton_function("ratio")) == [
        "tl.where(still, tl.zeros_like(u), divided(u, d))"
    ]


def test_what_shrinks_depends_on_the_same_signs_in_triton():
    assert python_assignments(python_function("shrinkage"))[1:] == python_assignments(
        triton_function("shrinkage")
    )
    assert lines(r"return (.*)", triton_function("shrinkage")) == [
        "tl.where(differ, opposed * p, decay * p)"
    ]


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("m = flush(c.keep1 * m + c.take1 * g)", "m = flush(c.take1 * g + c.keep1 * m)"),
        ("p = p - change", "p -= change"),
        ("if s is not None:", "if v is not None:"),
        (
            "        w = maximum(w, v)\n        s = w\n",
            "        s = w\n        w = maximum(w, v)\n",
        ),
        ("    s = v\n", ""),
        ("return Result(p, some(m, p)", "return Result(p, some(m, u)"),
        ("return flush(keep * mean + take * x)", "return flush(mean + take * (x - mean))"),
        ("tl.abs(x) < smallest_normal", "tl.abs(x) <= smallest_normal"),
        ("2.0**-126", "2.0**-125"),
        ("(a > b) | (a != a)", "a > b"),
        ("still = (d == 0) & (u == u)", "still = d == 0"),
        ("divided(u, d))", "u / d)"),
    ],
)
def test_a_line_that_differs_in_triton_is_found(monkeypatch, tmp_path, line, other):
    text = TRITON.read_text(encoding="utf-8")
    assert line in text
    changed = tmp_path / "rule.py"
    changed.write_text(text.replace(line, other), encoding="utf-8")
    every_test_of_triton()
    monkeypatch.setitem(globals(), "TRITON", changed)
    with pytest.raises(AssertionError):
        every_test_of_triton()


def every_test_of_triton():
    test_the_rule_has_the_same_lines_in_triton()
    for name in ("smooth", "flush", "maximum"):
        test_a_function_of_the_rule_has_the_same_formula_in_triton(name)
    test_the_smallest_normal_number_is_that_of_the_dtype_in_triton()
    test_the_ratio_is_0_under_the_same_condition_in_triton()
