"""The page about troubleshooting quotes what adamas says: each text is made to appear."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import adamas
from adamas.engines import native
from adamas.engines.triton import devices
from adamas.extras import require
from adamas.torch import SGD, AdamW, param_groups
from tests.support.sharded import WAYS, alone
from tests.support.troubleshooting import QUOTES, quoted

#: Said where adamas cannot be imported: tests/engines/test_build.py.
ELSEWHERE = 1


def linear(outputs=2):
    return nn.Linear(4, outputs)


def stepped(optimizer):
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def adamw(model=None, **options):
    return AdamW((model or linear()).parameters(), **options)


# ── PyTorch ────────────────────────────────────────────────────────────────────────────────────


def gradients_are_nan(_):
    model = nn.Sequential(linear())
    optimizer = AdamW(model.named_parameters(), on_nonfinite="raise")
    (model(torch.ones(2, 4)).sum() * torch.nan).backward()
    optimizer.step()


def other_number_of_groups(_):
    adamw().load_state_dict(AdamW(param_groups(linear(), 0.1)).state_dict())


def other_number_of_parameters(_):
    adamw().load_state_dict(AdamW([linear().weight]).state_dict())


def other_shape(_):
    adamw(linear(3)).load_state_dict(stepped(adamw()).state_dict())


def other_class(_):
    saved = stepped(SGD(linear().parameters(), lr=0.1, momentum=0.9))
    adamw().load_state_dict(saved.state_dict())


def whole_checkpoint(_):
    adamw().load_state_dict({"model": {}, "optimizer": adamw().state_dict()})


def step_among_averages(_):
    optimizer = stepped(adamw(ema=0.9))
    with optimizer.ema_weights():
        optimizer.step()


def checkpoint_among_averages(_):
    optimizer = stepped(adamw(ema=0.9))
    with optimizer.ema_weights():
        optimizer.state_dict()


def other_engine(_):
    p = nn.Parameter(torch.ones(4, 4).t()[::2])
    p.grad = torch.ones_like(p)
    AdamW([p], engine="native").step()


def unknown_option(_):
    adamw(clip_nrom=1.0)


def option_of_the_step_in_a_group(_):
    AdamW([{"params": linear().parameters(), "clip_norm": 1.0}])


def option_set_in_a_run(_):
    adamw().ema = 0.9


def no_statistics(_):
    adamw().statistics()


def no_statistics_yet(_):
    adamw(statistics=True).statistics()


def no_average(_):
    with adamw().ema_weights():
        pass


def empty_list(_):
    AdamW([])


def sparse(_):
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    AdamW(table.parameters()).step()


def small_state_of_float64(_):
    stepped(adamw(linear().double(), state="8bit"))


def remainder_of_float32(_):
    adamw(rounding="remainder")


def float16_scaled(_):
    model = linear().half()
    optimizer, scaler = adamw(model), torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 4).half()).sum()).backward()
    scaler.unscale_(optimizer)


def sharded_afterwards(_):
    with alone():
        model = linear()
        optimizer = AdamW(model.named_parameters())
        WAYS["fully_shard"][0](nn.Sequential(model))
        optimizer.step()


def parallelized_afterwards(_):
    with alone():
        model = nn.Sequential(linear(), nn.Tanh(), linear(4))
        optimizer = AdamW(model.named_parameters())
        WAYS["parallelize_module"][0](model)
        optimizer.step()


def made_of_gathered_parameters(_):
    with alone():
        model = fully_shard(linear(), mesh=init_device_mesh("cpu", (1,)))
        with torch.no_grad():
            model(torch.ones(2, 4))
        optimizer = AdamW(model.named_parameters())
        model.reshard()
        optimizer.step()


def flat_part(_):
    part = nn.Parameter(torch.ones(3))
    part._fsdp_flattened = True  # as FullyShardedDataParallel marks it
    stepped(AdamW([part], clip_norm=1.0))


def no_triton(_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "has_triton", lambda: False)
        devices.takes(torch.device("cuda"))


# ── NumPy, files ───────────────────────────────────────────────────────────────────────────────


def whole_numbers(_):
    adamas.Adam(np.array([1, 2]))


def other_dtype(_):
    adamas.Adam(np.ones(3, np.float32)).step(np.ones(3))


def replaced(_):
    weights = {"w": np.ones(3)}
    optimizer = adamas.Adam(weights)
    weights["w"] = weights["w"] * 0.5
    optimizer.step({"w": np.ones(3)})


def tensor(_):
    adamas.Adam(torch.ones(3))


def call_within_a_call(_):
    def schedule(step):
        if step == 1:
            optimizer.step(np.ones(3))
        return 0.1

    optimizer = adamas.Adam(np.ones(3), lr=schedule)
    optimizer.step(np.ones(3))


def saved(path):
    optimizer = adamas.Adam({"a": np.ones(3)})
    optimizer.step({"a": np.ones(3)})
    adamas.save(path, optimizer)


def damaged(path):
    saved(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    adamas.load(path, adamas.Adam({"a": np.ones(3)}))


def other_names(path):
    saved(path)
    adamas.load(path, adamas.Adam({"b": np.ones(3)}))


def other_shapes(path):
    saved(path)
    adamas.load(path, adamas.Adam({"a": np.ones(4)}))


def package_missing(_):
    require("no_package_has_this_name", "adamas demo", "demo", "scikit-learn")


def no_such_target(_):
    native.set_target("avx1024")


# ── JAX ────────────────────────────────────────────────────────────────────────────────────────


def functions_among_arrays(_):
    import jax

    from adamas.jax import adam

    class Model(NamedTuple):
        activation: Any
        weight: Any

    adam(1e-3).init(Model(jax.nn.relu, np.ones(3, np.float32)))


def state_of_other_options(_):
    from adamas.jax import adam

    params = {"w": np.ones(3, np.float32)}
    adam(1e-3, state="8bit").update(params, adam(1e-3).init(params), params)


def numbers_in_half_precision(_):
    import jax.numpy as jnp
    import optax

    from adamas.jax import adam

    params = {"w": jnp.ones(3, jnp.bfloat16)}
    optimizer = optax.inject_hyperparams(adam)(learning_rate=1e-3)
    optimizer.update(params, optimizer.init(params), params)


def decay_without_parameters(_):
    from adamas.jax import adamw

    params = {"w": np.ones(3, np.float32)}
    adamw(1e-3).update(params, adamw(1e-3).init(params))


WITH_JAX = [
    functions_among_arrays,
    state_of_other_options,
    numbers_in_half_precision,
    decay_without_parameters,
]
MADE = [
    gradients_are_nan,
    other_number_of_groups,
    other_number_of_parameters,
    other_shape,
    other_class,
    whole_checkpoint,
    step_among_averages,
    checkpoint_among_averages,
    other_engine,
    unknown_option,
    option_of_the_step_in_a_group,
    option_set_in_a_run,
    no_statistics,
    no_statistics_yet,
    no_average,
    empty_list,
    sparse,
    small_state_of_float64,
    remainder_of_float32,
    float16_scaled,
    sharded_afterwards,
    parallelized_afterwards,
    made_of_gathered_parameters,
    flat_part,
    no_triton,
    whole_numbers,
    other_dtype,
    replaced,
    tensor,
    call_within_a_call,
    damaged,
    other_names,
    other_shapes,
    package_missing,
    no_such_target,
    *(WITH_JAX if find_spec("jax") else []),
]


def said_by(mistake, path):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the text is compared with the page
        mistake(path)
    return f"{type(raised.value).__name__}: {raised.value}"


def test_every_error_that_the_page_quotes_is_what_adamas_says(tmp_path):
    made = [quoted(said_by(mistake, tmp_path / mistake.__name__)) for mistake in MADE]
    assert dict(zip(MADE, map(len, made), strict=True)) == dict.fromkeys(MADE, 1)
    if find_spec("jax"):
        assert len({quote for found in made for quote in found}) == len(QUOTES) - ELSEWHERE
