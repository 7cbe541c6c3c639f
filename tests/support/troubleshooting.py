"""The error texts that docs/troubleshooting.md quotes."""

from __future__ import annotations

import re

from tests.support.cases import ROOT

__all__ = ["QUOTES", "quoted"]

_PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
_BLOCKS = re.findall(r"^```text\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)

#: Each as one line; "…" stands for what differs from case to case.
QUOTES = [" ".join(text.split()) for block in _BLOCKS for text in block.split("\n\n")]


def quoted(said: str) -> list[str]:
    """The quotes of the page that ``said``, a text with the name of its class, is."""

    def pattern(quote: str) -> str:
        return ".+".join(map(re.escape, quote.split("…")))

    return [quote for quote in QUOTES if re.fullmatch(pattern(quote), said, re.DOTALL)]
