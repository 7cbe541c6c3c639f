"""Four processes that train in every way that torch knows: see `together` for how it is called."""

from __future__ import annotations

from tests.support import everywhere_shards, everywhere_training
from tests.support.together import main

CASES = {case.__name__: case for case in (*everywhere_shards.CASES, *everywhere_training.CASES)}

if __name__ == "__main__":
    main(CASES)
