"""What can be checked, how it is called, and what the libraries compute."""

from __future__ import annotations

import inspect
import os
import re

import numpy as np
import pytest
import torch  # noqa: F401 - loaded as it is wherever a subject needs it

from adamas.checking import subjects

os.environ.setdefault("KERAS_BACKEND", "jax")

import adamas
from adamas.checking import CannotCheckError
from adamas.checking.examination import diagnose
from adamas.checking.variants import Variant
from tests.support import ways
from tests.support.cases import ROOT
from tests.support.planted import planted

PAPER = Variant()

# ── ways of calling ────────────────────────────────────────────────────────────────────────────

WAYS = {
    ways.with_state: "a function (params, grads, state) of a list of arrays",
    ways.with_dict_of_state: "a function (weights, gradients, state) of one array",
    ways.with_m_and_v: "a function (theta, g, m, v, t) of one array",
    ways.with_m_v_and_t: "a function (w, dw, m, v, t) of one array",
    ways.with_names: "a function (params, grads, state) of a dict of arrays",
    ways.Updates: "an object with update(params, grads) on a list of arrays",
    ways.GetUpdates: "an object with get_updates(params, grads) on a list of arrays",
    ways.AppliesGradients: "an object with apply_gradients(grads_and_vars) on a list of arrays",
    ways.Rebinds: "an object with step(grads) on a list of arrays",
    ways.HasShape: "an object with step(w, g) on one array",
    ways.Boxed: "an object with step() on parameters with data and grad",
    ways.OnTensors: "a PyTorch optimizer: step() on tensors with grad",
    ways.Transformation: "an optax transformation: update(grads, state, params)",
}


@pytest.mark.parametrize("subject", WAYS, ids=lambda subject: subject.__name__)
def test_one_adam_is_the_same_however_it_is_called(subject):
    if subject is ways.Transformation:
        pytest.importorskip("jax")
    found = diagnose(subject)
    assert found.convention.name == WAYS[subject]
    assert found.fit.variant == PAPER
    assert found.fit.rivals == ()


def test_a_factory_with_open_arguments_is_an_optimizer_of_what_it_makes():
    found = diagnose(ways.made_by_a_factory)
    assert found.fit.variant == Variant(decay="decoupled")
    assert found.convention.arguments.settable == {"lr", "beta1", "beta2", "eps", "weight_decay"}


def test_a_lambda_can_be_checked():
    found = diagnose(lambda params, lr=0.5: adamas.Adam(params, lr=lr, betas=(0.8, 0.95)))
    assert found.fit.variant == Variant(beta1_fixed=0.8, beta2_fixed=0.95)


def test_what_cannot_be_set_is_found_out_and_is_no_mistake():
    report = adamas.check(ways.with_everything_fixed)
    assert report.faithful, report
    assert (
        "cannot be set, and so taken as it is found: lr = 0.002, β1 = 0.8, β2 = 0.99, ε = 1e-06"
        in report.remarks
    )


def test_options_are_handed_over():
    found = diagnose("adamas:Adam", nesterov=True, bias_correction="first-step")
    wanted = Variant(nesterov="dozat", correction1="first-step", correction2="first-step")
    assert found.fit.variant == wanted


def test_a_setting_given_as_an_option_stands():
    assert diagnose("adamas:Adam", betas=(0.5, 0.75)).fit.variant == PAPER


def test_an_eps_root_that_is_given_is_part_of_what_is_expected():
    assert diagnose("adamas:Adam", eps_root=0.01).fit.variant == PAPER


def test_state_that_outlives_its_optimizer_is_noticed():
    report = adamas.check(ways.with_state_for_ever)
    assert not report.faithful
    assert report.sentence.startswith(
        "state outlives its optimizer: a second one goes on where the first has stopped"
    )


# ── libraries, as they are installed ───────────────────────────────────────────────────────────

GUIDE = (ROOT / "docs" / "guides" / "check.md").read_text("utf-8")
_TABLE = GUIDE[GUIDE.index("<!-- installed: begin -->") : GUIDE.index("<!-- installed: end -->")]
LIBRARIES = re.findall(r"^\| `(.+?)` \| \S+ \| (.+) \|$", _TABLE, re.MULTILINE)


def without_distance(sentence):
    return re.sub(r"[\d.]+ ulp", "ulp", sentence)


def test_the_guide_has_a_row_for_every_kind_of_library():
    named = {subject.partition(":")[0].partition(".")[0] for subject, _ in LIBRARIES}
    assert named == {"torch", "optax", "keras", "sklearn", "adamas"}
    assert len(LIBRARIES) == 17


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("command", "told"), LIBRARIES, ids=[command for command, _ in LIBRARIES])
def test_a_library_computes_what_the_guide_says(command, told):
    subject, *settings = command.split(" --set ")
    pytest.importorskip(subject.partition(":")[0].partition(".")[0])
    options = dict(setting.split("=") for setting in settings)
    flags = {name: True if value == "True" else value for name, value in options.items()}
    report = adamas.check(subject, **flags)
    assert without_distance(report.sentence) == without_distance(told), report
    assert report.faithful == (not report.deviations)
    assert report.faithful == ("; else " not in told)
    assert report.rivals == ()


def test_torch_and_optax_are_told_apart_by_their_amsgrad():
    """The published difference: torch takes the largest v and corrects it, optax the largest v̂."""
    rows = dict(LIBRARIES)
    assert rows["torch.optim:Adam --set amsgrad=True"].startswith("AMSGrad (the largest v, corre")
    assert rows["optax:amsgrad"].startswith("AMSGrad (the largest v̂), ")


def test_the_fully_decoupled_decay_is_told_from_one_without_lr_by_a_schedule():
    assert diagnose("adamas:AdamW", decay="fully-decoupled").fit.variant == Variant(decay="fully")
    assert diagnose(planted("decay without lr")).fit.variant == Variant(decay="without lr")


@pytest.mark.parametrize("decay", ["cautious", "corrected"])
def test_a_decay_that_asks_for_signs_or_the_square_of_the_rate_is_named(decay):
    report = adamas.check("adamas:AdamW", decay=decay)
    assert f", {decay} decay, " in report.sentence
    assert report.faithful
    assert report.rivals == ()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("subject", "options", "words"),
    [
        ("torch.optim:RMSprop", {}, "no first moment: RMSProp"),
        ("adamas:RMSProp", {}, "no first moment: RMSProp"),
        ("torch.optim:SGD", {"momentum": 0.9}, "no second moment: Momentum"),
        ("adamas:Momentum", {}, "no second moment: Momentum"),
        (ways.descends, {}, "neither m nor v: gradient descent"),
    ],
)
def test_half_an_adam_is_named_too(subject, options, words):
    report = adamas.check(subject, **options)
    assert report.deviations[0] == words
    assert not report.faithful


def test_a_stranger_is_not_given_a_name():
    report = adamas.check("torch.optim:Adamax")
    assert report.sentence.startswith("none of the known forms: the nearest leaves ")
    assert not report.faithful
    assert report.formula == ()
    assert report.distances == ()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", ["bfloat16", "compact", "8bit"])
def test_state_in_few_bits_is_named_as_such(form):
    report = adamas.check("adamas:Adam", state=form)
    assert report.sentence.startswith(
        "quantized state (block scales or stochastic rounding): equal gradients move parameters by"
    )
    assert report.sentence.endswith("; else paper, ε outside the root, L2 weight decay")
    assert not report.faithful


# ── what cannot be checked ─────────────────────────────────────────────────────────────────────


MINE = """
class Adam:
    pass


ADAMS = 3
"""


def refusal(subject, **options):
    with pytest.raises(CannotCheckError) as refused:
        adamas.check(subject, **options)
    return str(refused.value)


def test_a_name_that_leads_nowhere_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    assert refusal("Adam") == (
        "'Adam' is neither module:Class nor path/to/file.py:Class. For example: "
        "adamas check torch.optim:Adam"
    )
    assert refusal("no_such_module:Adam") == (
        "The module 'no_such_module' cannot be imported (ModuleNotFoundError: No module named "
        "'no_such_module'). Give module:Class, with the module in the current directory or "
        "installed, or path/to/file.py:Class."
    )
    assert refusal("no_such_file.py:Adam") == (
        "There is no file no_such_file.py. Give path/to/file.py:Class, from the current directory."
    )
    message = refusal("mine.py")
    assert message.startswith("Nothing in mine.py looks like an Adam: no class with one of the ")
    assert message.endswith("optimizer or a step. Possible are mine.py:Adam.")
    assert refusal("mine.py:Adm") == (
        "mine.py has no 'Adm'. Did you mean 'Adam'? Possible are mine.py:Adam."
    )
    assert refusal("mine.py:ADAMS") == (
        "mine.py:ADAMS is 3, but it must be a class or a function. Possible are mine.py:Adam."
    )


def test_names_that_are_nearly_right_are_answered_with_the_right_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "mine_to_check.py"):
        (tmp_path / name).write_text(MINE)
    for name, meant in (
        ("torch.optim.Adam", "torch.optim:Adam"),
        ("torch.optim:Adm", "Adam"),
        ("torch.optim:AdamW.stpe", "step"),
        ("torch.optm:Adam", "optim"),
        ("trch.optim:Adam", "torch"),
        ("mne.py:Adam", "mine.py"),
        ("mine_to_check:adam", "Adam"),
    ):
        assert f" Did you mean '{meant}'? " in refusal(name) + " ", name
    assert "Possible are torch.optim:ASGD" not in refusal("torch.optim:Adm")
    assert "torch.optim:Adam, " in refusal("torch.optim:Adm")


def test_a_module_that_ends_the_program_is_refused_and_does_not_end_the_check(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    assert refusal(f"{tmp_path / 'script.py'}:Adam") == (
        f"{tmp_path / 'script.py'} cannot be run (SystemExit: 0). It must be importable on its own."
    )


def test_an_object_is_refused_as_its_options_stand():
    message = refusal(adamas.Adam(np.ones(2)))
    assert message.startswith("The subject is an object of class Adam, whose options stand already")
    assert message.endswith("Give its class, or a function that makes it, so that other options "
                            "can be tried.")  # fmt: skip
    assert refusal(3).startswith("The subject is 3, but it must be a class, a function that makes")


def test_what_is_called_in_no_known_way_is_refused_with_what_was_tried():
    message = refusal(ways.raises_at_once)
    assert "raises_at_once can be called in no way that is known. Tried as a function" in message
    assert "RuntimeError: not written yet" in message
    assert "Possible are: a torch.optim.Optimizer; an optax transformation;" in message
    assert "the parameters did not change" in refusal(ways.does_nothing)
    message = refusal(ways.NeedsMore)
    assert "what params and layers mean is unknown" in message
    assert message.endswith("Arguments that it needs besides are given by --set name=value.")


def test_a_subject_that_raises_later_is_refused_with_its_error():
    message = refusal(ways.StopsLater)
    assert "began to step, but then raised ValueError: out of paper (probe " in message
    assert message.endswith("Mend that first, or give options with --set under which it runs.")


def test_a_subject_that_raises_in_the_last_probes_is_refused_with_its_error():
    class RunsOut(ways.Updates):
        def update(self, params, grads):
            if self.t == 20:
                raise RuntimeError("out of paper")
            return super().update(params, grads)

    message = refusal(RunsOut)
    assert "began to step, but then raised RuntimeError: out of paper (probe 'usual', " in message


def test_an_option_that_is_not_known_is_refused_with_the_near_one():
    assert refusal(planted(), weigth_decay=0.1) == (
        "planted:Adam has no argument 'weigth_decay'. Did you mean 'weight_decay'? Possible are "
        "params, lr, betas, eps, weight_decay."
    )
    assert "has no argument 'amsgrd'. Did you mean 'amsgrad'?" in refusal(
        "torch.optim:Adam", amsgrd=True
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "fast"}, "lr is 'fast', but it must be a number."),
        (
            {"eps": "1e-8"},
            "eps is '1e-8', but it must be a number. It is text: give float('1e-8').",
        ),
        (
            {"betas": 0.9},
            "betas is 0.9, but it must be a pair of decay rates (β1, β2). Give for example "
            "(0.9, 0.999).",
        ),
        (
            {"betas": (0.9, 2)},
            "betas[1] is 2.0, but a decay rate must be at least 0 and less than 1.",
        ),
    ],
)
def test_a_setting_that_is_no_number_is_refused(options, message):
    assert refusal("torch.optim:AdamW", **options) == message


def test_a_first_step_that_divides_by_zero_is_told_with_the_usual_cause():
    message = refusal(lambda params, grads, state, lr=1e-3: 1 / 0)
    assert "ZeroDivisionError" in message
    assert "1 − β^t is 0 where t starts at 0" in message


def test_checking_changes_nothing_for_others():
    import mpmath

    before = mpmath.mp.prec
    with np.errstate(divide="raise"):
        adamas.check(planted("no eps"))
        assert np.geterr()["divide"] == "raise"
    assert mpmath.mp.prec == before


@pytest.mark.parametrize(("options", "root"), [({}, 0.0), ({"eps_root": 0.5}, 0.5)])
def test_eps_root_is_0_where_it_is_not_given_whatever_its_default(options, root):
    def adam(params, grads, state, lr=1e-3, eps_root=1e-16):
        raise NotImplementedError

    arguments = subjects.arguments_of(inspect.signature(adam), options)
    assert arguments.keywords(arguments.defaults)["eps_root"] == root
