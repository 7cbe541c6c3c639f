"""The page's rule repeats rule.py line by line, with every operator rounded to binary32."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest

from tests.support.cases import ROOT
from tests.support.node import PLAY, node

SOURCE = ROOT / "src" / "adamas" / "rule.py"
RULE = PLAY / "rule.js"

_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISONS = {ast.Eq: "===", ast.NotEq: "!==", ast.Lt: "<", ast.Gt: ">"}


def in_javascript(node: ast.expr) -> str:
    """A formula of rule.py in JavaScript: each operator of arithmetic rounds once."""
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return f"{in_javascript(left)} && {in_javascript(right)}"
        case ast.BinOp(left, ast.BitOr(), right):
            return " || ".join(
                f"({in_javascript(each)})" if isinstance(each, ast.BinOp) else in_javascript(each)
                for each in (left, right)
            )
        case ast.BinOp(left, operator, right):
            symbol = _OPERATORS[type(operator)]
            return f"f({in_javascript(left)} {symbol} {in_javascript(right)})"
        case ast.Compare(left, [operator], [right]):
            return f"{in_javascript(left)} {_COMPARISONS[type(operator)]} {in_javascript(right)}"
        case ast.Call(ast.Attribute(ast.Name("xp"), "abs"), [x]):
            return f"Math.abs({in_javascript(x)})"
        case ast.Call(ast.Attribute(ast.Name("xp"), "zeros_like"), [_]):
            return "0"
        case ast.Call(ast.Attribute(ast.Name("xp"), "ones_like"), [_]):
            return "1"
        case ast.Call(ast.Attribute(ast.Name("xp"), "where"), [condition, a, b]):
            return " ? ".join(map(in_javascript, (condition, a))) + f" : {in_javascript(b)}"
        case ast.Call(ast.Name(name), arguments):
            return f"{name}({', '.join(map(in_javascript, arguments))})"
        case ast.Attribute(ast.Call(), "smallest_normal"):
            return "SMALLEST_NORMAL"
        case ast.Attribute(ast.Name(owner), name):
            return f"{owner}.{name}"
        case ast.Name(name):
            return name
        case ast.Constant(number):
            return str(number)
    raise AssertionError(ast.dump(node))


def statements(body: list[ast.stmt]) -> list[str]:
    """Statements of rule.py as lines of JavaScript, without declarations and closing braces."""
    found: list[str] = []
    for each in body:
        match each:
            case ast.Assign([ast.Name("xp")]) | ast.Expr(ast.Constant()):
                pass
            case ast.Assign([ast.Name(name)], value):
                found.append(f"{name} = {in_javascript(value)};")
            case ast.If(ast.Compare(ast.Name(name), [ast.IsNot()], [ast.Constant(None)]), inside):
                found += [f"if ({name} !== null) {{", *statements(inside)]
            case ast.If(ast.Compare(ast.Name(name), [ast.Is()], [ast.Name(other)]), inside):
                found += [f"if ({name} === {other}) {{", *statements(inside)]
            case ast.Return(ast.Call(ast.Name("Result"), arguments)):
                found.append(f"return {{ {', '.join(map(in_javascript, arguments))} }};")
            case ast.Return(value):
                found.append(f"return {in_javascript(value)};")
            case _:
                raise AssertionError(ast.dump(each))
    return found


def python_lines(name: str) -> list[str]:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (found,) = (e for e in tree.body if isinstance(e, ast.FunctionDef) and e.name == name)
    return statements(found.body)


def javascript_lines(name: str) -> list[str]:
    text = RULE.read_text(encoding="utf-8")
    (body,) = re.findall(rf"^function {name}\(.*?\) \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"^(let|const) ", "", line.strip()) for line in body.splitlines()]
    return [line for line in lines if line != "}"]


def test_the_rule_has_the_same_lines_with_every_operator_rounded():
    assert python_lines("rule") == javascript_lines("rule")
    assert "v = flush(f(f(c.keep2 * v) + f(f(c.take2 * g) * g)));" in javascript_lines("rule")
    assert len(python_lines("rule")) == 18


@pytest.mark.parametrize("name", ["smooth", "flush", "maximum"])
def test_a_function_of_the_rule_has_the_same_formula(name):
    assert python_lines(name) == javascript_lines(name)
    assert len(python_lines(name)) == 1


def test_the_ratio_is_0_under_the_same_condition():
    condition, where = python_lines("ratio")
    assert javascript_lines("ratio") == [condition, "return still ? 0 : f(u / d);"]
    # Python divides whole arrays, so by 1 where JavaScript does not divide.
    assert where.startswith("return still ? 0 : f(u / ")


def test_what_shrinks_depends_on_the_same_signs():
    # Python asks first whether both decays are one, since it compares whole arrays.
    assert python_lines("shrinkage")[-2:] == javascript_lines("shrinkage")
    assert len(javascript_lines("shrinkage")) == 2


def test_the_smallest_normal_number_is_that_of_binary32():
    assert node("return SMALLEST_NORMAL") == float(np.finfo(np.float32).smallest_normal)


def test_the_lines_that_are_shown_filled_in_are_those_of_the_rule():
    shown = node("return filled_lines(defaults(), null, 0).map((line) => line.text);")
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (rule,) = (e for e in tree.body if isinstance(e, ast.FunctionDef) and e.name == "rule")
    lines = [ast.unparse(each) for each in ast.walk(rule) if isinstance(each, ast.Assign)]
    # The page offers no AMSGrad.
    without = {"w = maximum(w, v)", "s = w"}
    assert sorted(shown) == sorted(set(lines) - without)
    assert len(shown) == 10


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("m = flush(f(f(c.keep1 * m) + f(c.take1 * g)));",) * 2,
        ("f(f(c.keep1 * m) + f(c.take1 * g))", "f(c.keep1 * m + c.take1 * g)"),
        ("f(f(c.take2 * g) * g)", "f(c.take2 * f(g * g))"),
        ("p = f(p - change);", "p = p - change;"),
        ("    w = maximum(w, v);\n    s = w;\n", "    s = w;\n    w = maximum(w, v);\n"),
        ("return { p, m, v, w, u, change };", "return { p, m, v, w: s, u, change };"),
        ("if (s !== null) {", "if (v !== null) {"),
        ("Math.abs(x) < SMALLEST", "Math.abs(x) <= SMALLEST"),
        ("a > b || a !== a", "a > b"),
        ("d === 0 && u === u", "d === 0"),
        ("(u > 0 && p < 0)", "(u > 0 && p <= 0)"),
        ("f(opposed * p) : f(decay * p)", "f(decay * p) : f(opposed * p)"),
        ("flush(f(f(keep * mean) + f(take * x)))", "f(f(keep * mean) + f(take * x))"),
    ],
)
def test_a_line_that_differs_is_found(monkeypatch, tmp_path, line, other):
    text = RULE.read_text(encoding="utf-8")
    assert text.count(line) == 1
    changed = tmp_path / "rule.js"
    changed.write_text(text.replace(line, other), encoding="utf-8")
    monkeypatch.setitem(globals(), "RULE", changed)
    if line == other:
        every_test_of_the_text()
    else:
        with pytest.raises(AssertionError):
            every_test_of_the_text()


def every_test_of_the_text():
    test_the_rule_has_the_same_lines_with_every_operator_rounded()
    for name in ("smooth", "flush", "maximum"):
        test_a_function_of_the_rule_has_the_same_formula(name)
    test_the_ratio_is_0_under_the_same_condition()
    test_what_shrinks_depends_on_the_same_signs()
