"""Learning rates that decay with depth: which layer a parameter is of, and its group."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch.layers import layers_of


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Numbers inside of a block are none of layers.
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    def __init__(self, depth=3, width=4):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 2, width))
        self.tokens = nn.Embedding(5, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5, bias=False)

    def forward(self, x):
        x = self.tokens(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def rates(groups):
    return {name: group["lr"] for group in groups for name, _ in group["params"]}


def test_a_layer_learns_at_the_rate_of_the_one_above_times_the_decay():
    found = rates(ours.param_groups(Transformer(), 0.1, lr=0.8, layer_decay=0.5))
    expected = {
        "position": 0.05, "tokens.weight": 0.05, "blocks.0.mlp.0.weight": 0.1,
        "blocks.1.norm.bias": 0.2, "blocks.2.mlp.2.bias": 0.4, "norm.weight": 0.8,
        "head.weight": 0.8,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found.keys() == {name for name, _ in Transformer().named_parameters()}


def test_groups_are_one_for_each_layer_and_decay_lowest_first():
    net = Transformer(depth=2)
    groups = ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.75, float32=["head.*"])
    told = [(g["layer"], g["weight_decay"], g.get("state")) for g in groups]
    assert told == [
        (0, 0.1, None), (1, 0.1, None), (1, 0.0, None), (2, 0.1, None), (2, 0.0, None),
        (3, 0.0, None), (3, 0.1, "float32"),
    ]  # fmt: skip
    assert [g["lr"] for g in groups] == [0.75 ** (3 - g["layer"]) for g in groups]
    no_decay = ours.param_groups(net, 0.0, lr=1.0, layer_decay=0.75)
    assert [g["layer"] for g in no_decay] == [0, 1, 2, 3]


def test_shared_parameters_are_of_the_layer_of_their_first_name():
    net = Transformer(depth=2)
    net.head.weight = net.tokens.weight
    groups = ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5)
    named = [name for group in groups for name, _ in group["params"]]
    assert len(named) == len(set(named)) == len(list(net.parameters()))
    assert rates(groups)["tokens.weight"] == 0.125


def test_frozen_parameters_are_left_out_and_others_keep_their_rates():
    net = Transformer()
    whole = rates(ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5))
    for part in (net.tokens, net.blocks[0], net.head):
        part.requires_grad_(False)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    found = rates(ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5))
    assert found == {name: lr for name, lr in whole.items() if name not in frozen}
    net.requires_grad_(False)
    net.norm.requires_grad_(True)
    assert set(rates(ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5)).values()) == {1.0}


def test_schedules_keep_the_ratio_of_layers():
    net = Transformer()
    optimizer = ours.AdamW(ours.param_groups(net, 0.1, lr=0.8, layer_decay=0.5))
    begun = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(3):
        assert [g["initial_lr"] for g in optimizer.param_groups] == begun
        assert [g["lr"] for g in optimizer.param_groups] == [lr * (1 / (1 + step)) for lr in begun]
        optimizer.zero_grad()
        net(torch.tensor([[1, 2]])).sum().backward()
        optimizer.step()
        schedule.step()
    OneCycle = torch.optim.lr_scheduler.OneCycleLR
    OneCycle(optimizer, max_lr=begun, total_steps=9, pct_start=0.5, div_factor=4)
    assert [g["max_lr"] for g in optimizer.param_groups] == begun


def test_a_step_moves_each_layer_as_an_optimizer_with_its_rate_would():
    net, twin = Transformer(), Transformer()
    twin.load_state_dict(net.state_dict())
    found = rates(ours.param_groups(net, 0.1, lr=0.8, layer_decay=0.5))
    one = ours.create("adam", net, lr=0.8, layer_decay=0.5)
    many = [ours.Adam([p], lr=found[name]) for name, p in twin.named_parameters()]
    for model, optimizers in ((net, [one]), (twin, many)):
        for _ in range(2):
            model(torch.tensor([[1, 2]])).square().sum().backward()
            for each in optimizers:
                each.step()
                each.zero_grad()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_rate_that_is_a_tensor_gives_each_group_one_of_its_own():
    lr = torch.tensor(0.5)
    groups = ours.param_groups(Transformer(), 0.1, lr=lr, layer_decay=0.5)
    assert all(isinstance(group["lr"], torch.Tensor) for group in groups)
    assert len({group["lr"].data_ptr() for group in groups} | {lr.data_ptr()}) == len(groups) + 1
    assert groups[-1]["lr"] == 0.5


def test_a_rate_without_decay_stands_in_all_groups():
    for lr in (0.3, torch.tensor(0.3)):  # a tensor is the one that was given, as in torch
        groups = ours.param_groups(Transformer(), 0.1, lr=lr)
        assert len(groups) == 2
        assert all(group["lr"] is lr for group in groups)
    assert all("layer" not in group for group in groups)


def test_what_a_model_says_not_to_decay_does_not():
    class Named(Transformer):
        def no_weight_decay(self):
            return {"position", "no such name"}

    decayed, others = ours.param_groups(Named(), 0.1)
    assert "position" in dict(others["params"])
    assert "position" not in dict(decayed["params"])


class Vision(Transformer):
    def no_weight_decay(self):
        return {"position"}


class Compiled(nn.Module):
    """Wraps as torch.compile does, without the seconds that importing its compiler takes."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def __getattr__(self, name):
        own = name == "_orig_mod" or "_orig_mod" not in self._modules
        return super().__getattr__(name) if own else getattr(self._orig_mod, name)


compiling = pytest.param(
    torch.compile, marks=[pytest.mark.slow, pytest.mark.filterwarnings("default")]
)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, Compiled, compiling, lambda net: nn.ModuleList([net])]
)
def test_what_a_wrapped_model_says_not_to_decay_does_not(wrap):
    net = Vision(depth=1)
    exempt = [p for g in ours.param_groups(wrap(net), 0.1) if not g["weight_decay"]
              for _, p in g["params"]]  # fmt: skip
    assert any(p is net.position for p in exempt)


@pytest.mark.parametrize("wrap", [Compiled, compiling])
def test_a_wrapped_model_is_grouped_as_the_model_itself(wrap):
    plain, whole, parts = Vision(), Vision(), Vision()
    parts.blocks[1] = wrap(parts.blocks[1])
    parts.tokens = wrap(parts.tokens)
    given = {"lr": 1.0, "layer_decay": 0.5, "float32": ["tokens.*", "blocks.1.norm.*"]}

    def told(model):
        groups = ours.param_groups(model, 0.1, **given)
        return [{**g, "params": [name for name, _ in g["params"]]} for g in groups]

    expected = told(plain)
    assert told(nn.DataParallel(wrap(whole))) == expected
    assert told(parts) == expected
    names = []
    given["layer_of"] = lambda name: names.append(name) or 0
    told(wrap(parts))
    assert names == [name for name, _ in plain.named_parameters()]


@pytest.mark.parametrize("said", ["position", 5])
def test_names_not_to_decay_that_are_no_collection_are_refused(said):
    net = Transformer()
    net.no_weight_decay = lambda: said
    with pytest.raises(TypeError) as refused:
        ours.param_groups(net, 0.1)
    assert str(refused.value) == (
        f"no_weight_decay of a Transformer gives {said!r}, but it must give the names of "
        "parameters, such as {'pos_embed'}."
    )


@pytest.mark.parametrize("said", [None, ["position"]])
def test_names_not_to_decay_may_be_an_attribute(said):
    net = Transformer()
    net.no_weight_decay = said
    others = ours.param_groups(net, 0.1)[1]
    assert ("position" in dict(others["params"])) == (said is not None)


def test_rates_are_pythons_numbers_which_checkpoints_can_hold():
    given = {"lr": np.float64(0.5), "layer_decay": np.float32(0.5)}
    groups = ours.param_groups(Transformer(), 0.1, **given)
    assert {type(g["lr"]) for g in groups} == {float}
    given["lr"] = torch.tensor(0.5)
    found = [g["lr"].dtype for g in ours.param_groups(Transformer(), 0.1, **given)]
    assert set(found) == {torch.float32}


# ── how layers are found ───────────────────────────────────────────────────────────────────────


def test_a_function_says_which_layer_a_parameter_is_of_with_gaps_as_it_says():
    net = Transformer(depth=2)

    def layer_of(name):
        found = re.match(r"blocks\.(\d+)\.", name)
        return 2 * int(found[1]) + 1 if found else 5 if name.startswith("head") else 0

    found = rates(ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5, layer_of=layer_of))
    assert found["norm.weight"] == found["position"] == 0.5**5
    assert (found["blocks.0.norm.weight"], found["blocks.1.norm.weight"]) == (0.5**4, 0.5**2)
    assert found["head.weight"] == 1.0


def test_layers_are_of_a_sequence_of_layers_where_there_are_no_blocks():
    net = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1)
    )
    assert layers_of(net) == {
        "0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 1, "3.bias": 1,
        "4.weight": 2, "4.bias": 2,
    }  # fmt: skip


def test_a_sequence_of_unlike_parts_is_looked_into():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), 2)
    found = layers_of(nn.Sequential(nn.Embedding(5, 4), encoder, nn.Linear(4, 2)))
    assert found["0.weight"] == 0
    assert (found["1.layers.0.norm1.weight"], found["1.layers.1.norm1.weight"]) == (1, 2)
    assert found["2.weight"] == 3


def test_blocks_stand_in_a_sequence_with_what_is_below_and_above_them():
    found = layers_of(nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 2)))
    assert [found[name] for name in ("0.bias", "1.norm.bias", "2.norm.bias", "3.bias")] == [
        0,
        1,
        2,
        3,
    ]


def test_stages_of_blocks_are_counted_by_their_blocks():
    class Stage(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.downsample = nn.Linear(4, 4)

    class Hierarchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            self.stages = nn.ModuleList(Stage(depth) for depth in (1, 2))
            self.head = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))

    found = layers_of(Hierarchy())
    names = ["stem.0.bias", "stages.0.blocks.0.norm.bias", "stages.0.downsample.bias",
             "stages.1.blocks.0.norm.bias", "stages.1.blocks.1.norm.bias", "head.0.bias",
             "head.2.bias"]  # fmt: skip
    assert [found[name] for name in names] == [0, 1, 1, 2, 3, 4, 4]


def test_stages_may_be_siblings_with_numbers():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Linear(4, 4)
            self.layer1 = nn.Sequential(Block())
            self.layer2 = nn.Sequential(Block(), Block())
            self.fc = nn.Linear(4, 2)

    found = layers_of(Residual())
    names = [
        "conv1.bias",
        "layer1.0.norm.bias",
        "layer2.0.norm.bias",
        "layer2.1.norm.bias",
        "fc.bias",
    ]
    assert [found[name] for name in names] == [0, 1, 2, 3, 4]


def test_a_head_is_the_head_and_an_embedding_the_lowest_wherever_a_model_defines_them():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head = nn.Linear(4, 5)
            self.blocks = nn.ModuleDict({"0": Block(), "1": Block()})
            self.relative = nn.Embedding(3, 4)

    found = layers_of(Reversed())
    assert found["lm_head.weight"] == 3
    assert (found["blocks.0.norm.bias"], found["blocks.1.norm.bias"]) == (1, 2)
    assert found["relative.weight"] == 0


def test_a_frozen_tower_does_not_count_but_one_in_training_makes_it_unclear():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.text = Transformer(2), Transformer(2)

    net = Towers()
    with pytest.raises(ValueError, match=r"^The model has") as refused:
        ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5)
    assert str(refused.value) == (
        "The model has layers in more than one place: vision.blocks, text.blocks. Which are above "
        "which cannot be told. Say it by layer_of: a function that takes the name of a parameter "
        "and gives the number of its layer, 0 for the lowest."
    )
    net.vision.requires_grad_(False)
    found = rates(ours.param_groups(net, 0.1, lr=1.0, layer_decay=0.5))
    assert found["text.blocks.1.norm.bias"] == 0.5


# ── refused ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"layer_decay": 0.0}, ValueError,
         "layer_decay is 0.0, but it must be greater than 0 and at most 1."),
        ({"layer_decay": 1.5}, ValueError,
         "layer_decay is 1.5, but it must be greater than 0 and at most 1."),
        ({"layer_decay": "0.75"}, TypeError,
         "layer_decay is '0.75', but it must be a number. It is text: give float('0.75')."),
        ({"layer_decay": 0.75, "lr": None}, TypeError,
         "layer_decay needs lr, the learning rate of the head, from which those of the layers "
         "below are made. Give for example param_groups(model, 0.05, lr=1e-3, layer_decay=0.75)."),
        ({"layer_of": len}, TypeError,
         "layer_of tells layers, which only layer_decay asks for. Give for example "
         "layer_decay=0.75, or leave it out."),
        ({"layer_decay": 0.75, "layer_of": 3}, TypeError,
         "layer_of is 3, but it must be a function that takes the name of a parameter and gives "
         "the number of its layer, 0 for the lowest."),
        ({"layer_decay": 0.75, "layer_of": lambda _: None}, TypeError,
         "layer_of('position') gave None, but it must give the number of the layer: an integer, 0 "
         "for the lowest."),
        ({"layer_decay": 0.75, "layer_of": lambda _: -1}, TypeError,
         "layer_of('position') gave -1, but it must give the number of the layer: an integer, 0 "
         "for the lowest."),
        ({"decay_embeddings": "no"}, TypeError,
         "decay_embeddings is 'no', but it must be True or False."),
        ({"float32": None}, TypeError,
         "float32 is None, but it must hold names of parameters, or patterns of them. Give for "
         "example float32=['head.*']."),
        ({"float32": [5]}, TypeError,
         "float32 is [5], but it must hold names of parameters, or patterns of them. Give for "
         "example float32=['head.*']."),
        ({"lr": -0.1}, ValueError, "lr is -0.1, but it must be finite and at least 0."),
        ({"lr": "0.1"}, TypeError,
         "lr is '0.1', but it must be a number. It is text: give float('0.1')."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given, error, text):
    with pytest.raises(error) as refused:
        ours.param_groups(Transformer(), 0.1, **{"lr": 1.0, **given})
    assert str(refused.value) == text


def test_a_model_without_numbered_layers_is_refused():
    with pytest.raises(ValueError, match=r"^The model has") as refused:
        ours.param_groups(nn.Linear(2, 2), 0.1, lr=1.0, layer_decay=0.5)
    assert str(refused.value) == (
        "The model has no numbered layers (such as blocks.0, blocks.1), so how deep its parameters "
        "are cannot be told. Say it by layer_of: a function that takes the name of a parameter and "
        "gives the number of its layer, 0 for the lowest."
    )


def test_a_model_of_timm_asks_for_timm(monkeypatch):
    class Timm(Transformer):
        def group_matcher(self, coarse=False):
            return {"stem": r"^tokens", "blocks": r"^blocks\.(\d+)"}

    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(ModuleNotFoundError) as refused:
        ours.param_groups(Timm(), 0.1, lr=1.0, layer_decay=0.5)
    assert str(refused.value) == (
        "The model is a Timm with a group_matcher(), which timm reads, but timm is not installed. "
        "Install it with: pip install timm. Say it by layer_of: a function that takes the name of "
        "a parameter and gives the number of its layer, 0 for the lowest."
    )
