"""Writes ``torch_digests.json`` anew: ``python -m tests.support.write_torch_digests``.

Or the digests of some routes: ``python -m tests.support.write_torch_digests native plain``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What has to be settled before Triton is imported.
import tests.conftest  # noqa: F401
from tests.support.torch_cases import METHODS
from tests.support.torch_digests import FILE, digested, digested_by_two
from tests.support.torch_refusals import KINDS, refusals
from tests.support.torch_routes import ROUTES


def write(routes: Sequence[str]) -> None:
    """Write the digests of some routes, and those of bad input, anew; a line for each case."""
    unknown = [route for route in routes if route not in ROUTES]
    if unknown:
        sys.exit(f"There is no route {unknown[0]!r}. Possible are {', '.join(map(repr, ROUTES))}.")
    found = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    for route in routes:
        if route == "processes":
            with tempfile.TemporaryDirectory() as folder:
                found |= digested_by_two(Path(folder))
        else:
            found |= {f"{route} {method}": digested(route, method) for method in METHODS}
    found |= {f"refused {kind}": refusals(kind) for kind in KINDS}
    parts = [
        f"{json.dumps(key)}: {{\n"
        + ",\n".join(f" {json.dumps(case)}: {json.dumps(each)}" for case, each in of_key.items())
        + "\n}"
        for key, of_key in sorted(found.items())
    ]
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


if __name__ == "__main__":
    write(sys.argv[1:] or ROUTES)
