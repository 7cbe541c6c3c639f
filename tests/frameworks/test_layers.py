"""Layers of real models, of transformers and of timm: found as their authors count them."""

from __future__ import annotations

import pytest

import adamas.torch as ours
from adamas.torch.layers import layers_of

#: These packages take seconds to load, and use what others have deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SMALL = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
}  # fmt: skip
WORDS = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
PICTURES = {"image_size": 16, "patch_size": 8}

#: Model, its configuration, and the layer of parameters whose names contain these words.
MODELS = {
    "BertForSequenceClassification": (
        "BertConfig", SMALL | WORDS,
        {"embeddings.word": 0, "embeddings.LayerNorm": 0, "encoder.layer.0.": 1,
         "encoder.layer.1.": 2, "pooler": 3, "classifier": 3},
    ),
    "DebertaV2ForSequenceClassification": (
        "DebertaV2Config", SMALL | WORDS | {"relative_attention": True},
        {"embeddings.word": 0, "rel_embeddings": 0, "encoder.layer.0.": 1, "encoder.layer.1.": 2,
         "pooler": 3, "classifier": 3},
    ),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig", WORDS | {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8},
        {"embeddings": 0, "transformer.layer.0.": 1, "transformer.layer.1.": 2, "classifier": 3},
    ),
    "GPT2LMHeadModel": (
        "GPT2Config", WORDS | {"n_embd": 8, "n_layer": 2, "n_head": 2},
        {"wte": 0, "wpe": 0, "h.0.": 1, "h.1.": 2, "ln_f": 3},
    ),
    "LlamaForCausalLM": (
        "LlamaConfig", SMALL | WORDS,
        {"embed_tokens": 0, "layers.0.": 1, "layers.1.": 2, "model.norm": 3, "lm_head": 3},
    ),
    "MixtralForCausalLM": (
        "MixtralConfig", SMALL | WORDS | {"num_key_value_heads": 2, "num_local_experts": 3},
        {"embed_tokens": 0, "layers.0.mlp": 1, "layers.1.mlp": 2, "lm_head": 3},
    ),
    "ViTForImageClassification": (
        "ViTConfig", SMALL | PICTURES,
        {"cls_token": 0, "position_embeddings": 0, "patch_embeddings": 0, "layers.0.": 1,
         "layers.1.": 2, "vit.layernorm": 3, "classifier": 3},
    ),
    "BeitForImageClassification": (
        "BeitConfig", SMALL | PICTURES,
        {"cls_token": 0, "patch_embeddings": 0, "layers.0.": 1, "layers.1.lambda_1": 2,
         "pooler": 3, "classifier": 3},
    ),
    "SwinForImageClassification": (
        "SwinConfig",
        {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "image_size": 32, "patch_size": 4,
         "window_size": 2},
        {"patch_embeddings": 0, "layers.0.blocks.0.": 1, "downsample": 1, "layers.1.blocks.0.": 2,
         "layers.1.blocks.1.": 3, "swin.layernorm": 4, "classifier": 4},
    ),
    "ResNetForImageClassification": (
        "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 2]},
        {"embedder": 0, "stages.0.layers.0.": 1, "stages.1.layers.0.": 2, "stages.1.layers.1.": 3,
         "classifier": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_transformers_models_are_embeddings_blocks_and_head(name):
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    configuration, options, expected = MODELS[name]
    made = getattr(transformers, configuration)(**options)
    model = getattr(transformers, name)(made)
    found = layers_of(model)
    assert found.keys() == {each for each, _ in model.named_parameters()}
    for words, layer in expected.items():
        layers = {each for parameter, each in found.items() if words in parameter}
        assert layers == {layer}, words
    assert max(found.values()) == max(expected.values())


def test_encoders_with_decoders_are_asked_about():
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    options = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=30, **options))
    with pytest.raises(ValueError, match=r"more than one place: encoder\.block, decoder\.block\."):
        ours.param_groups(model, 0.1, lr=1.0, layer_decay=0.5)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224",
     "eva02_tiny_patch14_224", "cspresnet50"],
)  # fmt: skip
def test_rates_of_timm_models_are_those_that_timm_gives(name):
    timm = pytest.importorskip("timm", reason="needs the package timm")
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(name, pretrained=False)
    names = {p: each for each, p in model.named_parameters()}
    theirs = {
        names[p]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.75)
        for p in group["params"]
    }
    groups = ours.param_groups(model, 0.05, lr=1.0, layer_decay=0.75)
    assert {each: group["lr"] for group in groups for each, _ in group["params"]} == theirs
    exempt = getattr(model, "no_weight_decay", set)()
    decay = {each: group["weight_decay"] for group in groups for each, _ in group["params"]}
    assert {each: decay[each] for each in exempt if each in decay} == {
        each: 0.0 for each in exempt if each in decay
    }
