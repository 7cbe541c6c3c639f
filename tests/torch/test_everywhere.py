"""Every way in which torch's models are trained by several processes, with the bits of one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.support.cases import ROOT
from tests.support.everywhere_program import CASES
from tests.support.together import PASSED, outcomes

PROGRAM = str(ROOT / "tests" / "support" / "everywhere_program.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said(request, tmp_path_factory):
    """What four processes said of the cases that are asked for; one set runs all of them."""
    asked = {
        item.callspec.params["case"]
        for item in request.session.items
        if item.module is request.module
    }
    return outcomes(
        PROGRAM, 4, [name for name in CASES if name in asked], tmp_path_factory.mktemp("cases")
    )


@pytest.mark.parametrize("case", CASES)
def test_of_four_processes(said, case):
    assert said[case] == [PASSED] * 4, "\n".join(said[case])
