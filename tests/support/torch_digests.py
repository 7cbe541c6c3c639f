"""Digests of what adamas.torch does, seen from outside: a net under whoever changes its inside.

Of each case of ``torch_cases`` and each aspect (parameters, state, norms, texts of errors, …)
there is a short digest in ``torch_digests.json``, a line for each case, by which a failed test says
what changed where.

``write_torch_digests.py`` writes them anew; CONTRIBUTING.md says when that is allowed.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.processes import run_together
from tests.support.torch_cases import Case, cases, words
from tests.support.torch_routes import standing_in
from tests.support.torch_trainings import ASPECTS, Training

__all__ = ["FILE", "differences", "digested", "digested_by_two", "kept"]

FILE = Path(__file__).with_name("torch_digests.json")


def digested(
    route: str, method: str, chosen: Iterable[Case] | None = None, mesh: Any = None
) -> dict[str, list[str]]:
    """Return the digests of all cases of a method on a route, or the chosen, by their words."""
    found = {}
    with standing_in(route) as device, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases(route, method) if chosen is None else chosen:
            found[words(route, case)] = Training(route, method, case, device, mesh).run()
    return found


def digested_by_two(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the digests of two processes, each of its own parts, by "processes Adam"."""
    program = str(Path(__file__).with_name("torch_digests_program.py"))
    codes = run_together([program], 2, folder, str(folder))
    if codes != [0, 0]:
        raise RuntimeError(f"The processes ended with the codes {codes}.")
    texts = [(folder / f"digests of {rank}.json").read_text("utf-8") for rank in range(2)]
    one, other = map(json.loads, texts)
    return {
        key: {
            case: [both(*pair) for pair in zip(digests, other[key][case], strict=True)]
            for case, digests in of_method.items()
        }
        for key, of_method in one.items()
    }


def both(*texts: str) -> str:
    return hashlib.blake2b(" ".join(texts).encode(), digest_size=6).hexdigest()


def kept(key: str) -> dict[str, Any]:
    """Return what the file has under a key: "native Adam"."""
    return json.loads(FILE.read_text("utf-8")).get(key, {})


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return what is not as it was, a line for each case that says which aspects."""
    lines = [f"{case}: is no case any more" for case in wanted.keys() - found.keys()]
    lines += [f"{case}: is a new case" for case in found.keys() - wanted.keys()]
    for case in wanted.keys() & found.keys():
        pairs = zip(ASPECTS, wanted[case], found[case], strict=True)
        changed = [aspect for aspect, before, now in pairs if before != now]
        if changed:
            lines.append(f"{case}: {', '.join(changed)}")
    return sorted(lines)
