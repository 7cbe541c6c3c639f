"""What the tests need that is not there for every Python: JAX, from 3.11 on."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("jax") else ["test_jax*.py"]
