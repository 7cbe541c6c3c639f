"""Tell what any implementation of Adam computes.

The way of a check through this package:

* :mod:`~adamas.checking.subjects` finds what is to be checked and which of its arguments are
  settings, :mod:`~adamas.checking.roles` what the others are for;
* :mod:`~adamas.checking.conventions` finds out how it is called: in one of the ways of
  :mod:`~adamas.checking.callables`, :mod:`~adamas.checking.loops` and
  :mod:`~adamas.checking.frameworks`, which fill in the one step of
  :mod:`~adamas.checking.trials`;
* :mod:`~adamas.checking.probes` has the gradients it is given, :mod:`~adamas.checking.observation`
  what it makes of them;
* :mod:`~adamas.checking.variants` is the space of variants: every known choice and mistake, which
  :mod:`~adamas.checking.wording` has the words for; :mod:`~adamas.checking.prediction` is what a
  variant computes, in the arithmetics of :mod:`~adamas.checking.arithmetic`;
* :mod:`~adamas.checking.fitting` searches the variant that explains what was seen;
* :mod:`~adamas.checking.distances`, :mod:`~adamas.checking.edges` and
  :mod:`~adamas.checking.cost` measure;
* :mod:`~adamas.checking.examination` does one after the other and makes a
  :mod:`~adamas.checking.report`.

:mod:`~adamas.checking.vectors` writes probes with exact results, for implementations in any
language.
"""

from __future__ import annotations

from adamas.checking.examination import check
from adamas.checking.report import Report
from adamas.checking.subjects import CannotCheckError

__all__ = ["CannotCheckError", "Report", "check"]
