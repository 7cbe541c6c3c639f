"""Optimizers by name: which there are, what they are made of, and what is refused."""

from __future__ import annotations

import inspect
import re
import typing

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch import by_name

CLASSES = {
    "adam": ours.Adam,
    "adamw": ours.AdamW,
    "nadam": ours.NAdam,
    "radam": ours.RAdam,
    "rmsprop": ours.RMSprop,
    "sgd": ours.SGD,
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))


def options_of(optimizer):
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def test_names_are_those_of_all_classes_sorted_and_taken_by_patterns():
    made = {
        name.lower()
        for name in ours.__all__
        if inspect.isclass(getattr(ours, name)) and name not in ("Optimizer", "Packed")
    }
    assert ours.names() == sorted(made) == sorted(CLASSES)
    assert ours.names("*adam*") == ["adam", "adamw", "nadam", "radam"]
    assert ours.names("Adam*") == ["adam", "adamw"]
    assert ours.names(["sgd", "*prop"]) == ["rmsprop", "sgd"]
    assert ours.names("lion") == []
    for given in (None, [5]):
        with pytest.raises(
            TypeError, match=r"^names\(\) got .*, but it takes a pattern, or several"
        ):
            ours.names(given)


@pytest.mark.parametrize("name", CLASSES)
def test_a_name_in_any_case_makes_its_class_with_its_own_defaults(name):
    kind, parameters = CLASSES[name], [nn.Parameter(torch.ones(2))]
    for given in (name, name.upper(), kind.__name__):
        made = ours.create(given, parameters)
        assert type(made) is kind
        assert options_of(made) == options_of(kind(parameters))
        assert made.param_groups[0]["params"] == parameters


def test_options_go_to_the_class_and_groups_are_taken_as_they_are():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "lr": 0.5}, {"params": [bias], "weight_decay": 0.0}]
    made = ours.create("adamw", groups, lr=0.1, betas=(0.8, 0.9), clip_norm=1.0, state="8bit")
    assert [g["lr"] for g in made.param_groups] == [0.5, 0.1]
    assert [g["weight_decay"] for g in made.param_groups] == [0.01, 0.0]
    assert made.param_groups[0]["betas"] == (0.8, 0.9)
    assert made.clip_norm == 1.0
    assert made.param_groups[1]["state"] == "8bit"


def test_a_model_is_grouped_as_param_groups_does():
    net = network()
    made = ours.create("adamw", net, lr=0.1, weight_decay=0.3)
    expected = ours.AdamW(ours.param_groups(net, 0.3), lr=0.1, weight_decay=0.3)
    assert options_of(made) == options_of(expected)
    assert [g["weight_decay"] for g in made.param_groups] == [0.3, 0.0]
    # The decay of the class where none is given.
    assert [g["weight_decay"] for g in ours.create("adamw", net).param_groups] == [0.01, 0.0]


def test_a_model_without_decay_is_one_group_in_its_own_order():
    net = network()
    net[1].bias.requires_grad_(False)
    (group,) = ours.create("sgd", net, lr=0.1).param_groups
    assert group["param_names"] == [n for n, p in net.named_parameters() if p.requires_grad]
    assert group["weight_decay"] == 0.0


def test_a_model_is_grouped_by_layers_with_the_rate_of_the_class_where_none_is_given():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for given, top in (({}, 2e-3), ({"lr": 0.5}, 0.5)):
        made = ours.create("nadam", net, layer_decay=0.5, **given)
        assert [g["lr"] for g in made.param_groups] == [0.5 * top, top]


def test_what_is_made_by_name_gives_the_bits_of_what_is_made_by_its_class():
    nets = [network(), network()]
    made = [
        ours.create("adamw", nets[0], lr=0.1),
        ours.AdamW(ours.param_groups(nets[1], 0.01), 0.1),
    ]
    for net, optimizer in zip(nets, made, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(5, 3)).square().sum().backward()
            optimizer.step()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adma", "There is no optimizer 'adma', but there are adam, adamw, nadam, radam, rmsprop, "
                 "sgd. Did you mean 'adam'?"),
        ("lion", "There is no optimizer 'lion', but there are adam, adamw, nadam, radam, rmsprop, "
                 "sgd."),
        ("AdamW_8bit", "There is no optimizer 'AdamW_8bit', but there are adam, adamw, nadam, "
                       "radam, rmsprop, sgd. Use create('adamw', params, state=\"8bit\")."),
        ("AdamC", "There is no optimizer 'AdamC', but there are adam, adamw, nadam, radam, "
                  "rmsprop, sgd. Use create('adamw', params, decay=\"corrected\")."),
        ("stableadamw", "There is no optimizer 'stableadamw', but there are adam, adamw, nadam, "
                        "radam, rmsprop, sgd. Use create('adamw', params, clip_update=1.0)."),
        ("nadamw", "There is no optimizer 'nadamw', but there are adam, adamw, nadam, radam, "
                   "rmsprop, sgd. Use create('nadam', params, decoupled_weight_decay=True)."),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_those_that_there_are(name, text):
    with pytest.raises(ValueError, match=r"^There is no") as refused:
        ours.create(name, [nn.Parameter(torch.ones(2))])
    assert str(refused.value) == text


@pytest.mark.parametrize(
    "name",
    [
        "adam8bit",
        "adamw_8bit",
        "AMSGrad",
        "momentum",
        "NAdamW",
        "nesterov",
        "RAdamW",
        "AdamC",
        "StableAdamW",
    ],
)
def test_what_is_said_instead_of_a_name_of_others_can_be_done(name):
    with pytest.raises(ValueError, match=r" Use create\('") as refused:
        ours.create(name, network())
    (said,) = re.findall(r" Use (create\(.*\))\.$", str(refused.value))
    made = eval(said, {"create": ours.create, "params": network().parameters()})
    assert type(made) in CLASSES.values()


def test_an_option_that_the_class_has_not_is_refused_before_any_parameter_is_taken():
    def parameters():
        raise AssertionError("taken")
        yield

    with pytest.raises(TypeError, match=r"^SGD\(\) has the unknown option 'betas'\."):
        ours.create("sgd", parameters(), betas=(0.9, 0.99))
    with pytest.raises(TypeError, match=r"'clip_nrom'\. Did you mean 'clip_norm'\?"):
        ours.create("adamw", network(), clip_nrom=1)
    with pytest.raises(TypeError, match=r"'layer_dacay'\. Did you mean 'layer_decay'\?"):
        ours.create("adamw", parameters(), layer_dacay=0.75)
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        ours.create("adamw", network(), decoupled_weight_decay=False)


def test_what_groups_a_model_is_refused_where_only_parameters_are_given():
    given = {
        "layer_decay": 0.75, "layer_of": len, "decay_embeddings": False, "float32": ["head.*"],
    }  # fmt: skip
    for name, value in given.items():
        with pytest.raises(TypeError) as refused:
            ours.create("adamw", network().parameters(), **{name: value})
        assert str(refused.value) == (
            f"create() got {name}, which needs the model itself, but params are parameters. Give "
            f"for example create('adamw', model, {name}={value!r})."
        )


def test_a_model_in_the_place_of_the_name_is_refused():
    with pytest.raises(TypeError) as refused:
        ours.create(network(), "adamw")
    assert str(refused.value) == (
        "create() got a Sequential as the name of an optimizer, which comes first. Give for "
        'example create("adamw", model, lr=1e-3).'
    )


@pytest.mark.parametrize("name", CLASSES)
def test_the_types_of_options_are_those_of_the_class(name):
    said = typing.get_type_hints(getattr(by_name, f"{CLASSES[name].__name__}Arguments"))
    grouping = {"layer_decay", "layer_of", "decay_embeddings", "float32"}
    own = typing.get_type_hints(CLASSES[name].__init__)
    phase = typing.get_type_hints(by_name.PhaseArguments)
    assert said.keys() - grouping == (own.keys() - {"params", "phase", "return"}) | phase.keys()
    for option in own.keys() - {"params", "phase", "return", "lr", "weight_decay"}:
        assert said[option] == own[option], option
    every = typing.get_type_hints(by_name.AnyArguments)
    assert every.keys() >= said.keys()
