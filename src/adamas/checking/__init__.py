"""Tell what any implementation of Adam computes.

The way of a check through this package:

* ``subjects`` finds what is to be checked and which of its arguments are settings, ``roles`` what
  the others are for;
* ``conventions`` finds out how it is called: in one of the ways of ``callables``, ``loops`` and
  ``frameworks``, which fill in the one step of ``trials``;
* ``probes`` has the gradients it is given, ``observation`` what it makes of them;
* ``variants`` is the space of variants: every known choice and mistake, which ``wording`` has the
  words for; ``prediction`` is what a variant computes, in the arithmetics of ``arithmetic``;
* ``fitting`` searches the variant that explains what was seen;
* ``distances``, ``edges`` and ``cost`` measure;
* ``examination`` does one after the other and makes a ``report``; ``progress`` tells how far it is.

``candidates`` lists what in a module or file could be an Adam.
``vectors`` writes probes with exact results, for implementations in any language.
"""

from __future__ import annotations

from adamas.checking.examination import check
from adamas.checking.report import Report
from adamas.checking.subjects import CannotCheckError

__all__ = ["CannotCheckError", "Report", "check"]
