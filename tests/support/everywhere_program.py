"""Four processes that train in every way that torch knows: see `together` for how it is called."""

from __future__ import annotations

from tests.support import everywhere_pipelines, everywhere_shards, everywhere_training
from tests.support.together import main

PARTS = (everywhere_shards, everywhere_training, everywhere_pipelines)
CASES = {case.__name__: case for part in PARTS for case in part.CASES}

if __name__ == "__main__":
    main(CASES)
