"""Measure steps: small states, beside float32 and the 8-bit of others. See README.md."""

from save import measure

measure("small_states", ("small",))
