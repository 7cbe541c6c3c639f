"""``python -m adamas``: the command line."""

from __future__ import annotations

from adamas.cli import main

if __name__ == "__main__":
    main()
