"""Measuring adamas against what is installed: ``python -m benchmarks`` in the repository's root.

A table is made of rows (``tables.py``): values that say what is measured, against what, with which
goal, how it is made and what it needs. Most tables are ratios (``ratios.py``): before anything is
timed, the results of both contenders are compared; then they take turns, round by round, and the
ratio is that of each round's two times, so that it holds where the machine's speed drifts. What is
quoted is the median. Others count bytes, distances and losses. ``catalogue.py`` names them all.

What a table measured is stored in ``results/`` with its machine, and shown from there: in a page
beside it, and in the README and the docs (``pages.py``).
"""
