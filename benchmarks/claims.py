"""The README's reasons to take adamas, with the figures that are stored."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

from benchmarks.convergence import COMPARISONS, summary
from benchmarks.tables import Stored, short

#: In braces: a ratio, as table · work · against, or a figure of memory or of trainings.
CLAIMS = (
    """
    **Fast steps of small models.** With 5,702 parameters in 6 tensors, a step is
    {torch_step · torch step, 5,702 in 6 tensors · torch fused} as fast as torch's fused Adam and
    {torch_step · torch step, 5,702 in 6 tensors · torch default} as fast as its default; with 128
    tensors of 2,080, {torch_step · torch step, 128 tensors of 2,080 · torch fused} as fast as
    fused. One tensor of 64 M is bound by memory, for both:
    {torch_step · torch step, 64 M in 1 tensor · torch fused}.
    """,
    """
    **Clipping, step, EMA and copy in two passes over memory**: one reads the gradients, for the
    norm, and the other does all the rest. Global-norm clipping, AdamW, EMA of the weights and a
    bfloat16 copy together are
    {torch_phase · phase, transformer of 4.7 M · torch: clip, fused step, EMA, copy} as fast as
    torch's fused parts for a transformer of 4.7 M parameters, and
    {torch_phase · phase, 5,702 in 6 tensors · torch: clip, fused step, EMA, copy} for a small MLP.
    """,
    """
    **8-bit optimizer states that train as float32 does**, in {8bit} bytes for each parameter in
    place of {float32}. On a CPU a step is
    {small_states · small, 64 M, 8bit states · bitsandbytes 8-bit} as fast as that of bitsandbytes,
    and {small_states · small, 64 M, 8bit states · torch fused, float32} as fast as torch's fused
    one with float32 states. Over {seeds} seeds of a classifier of digits the mean held-out loss at
    the end is {loss with 8bit}, and {loss} with float32; its standard deviation over the seeds is
    {spread} ([small states](https://adamas-optimizer.github.io/adamas/guides/small-states/)).
    """,
    """
    **Adam for NumPy and SciPy**, {step · NumPy step, 16 M · the formula in NumPy} as fast as the
    formula written in NumPy and {step · NumPy step, 16 M · scikit-learn} as fast as scikit-learn's.
    For JAX the gain is in bits, not in time: beside optax, which XLA compiles,
    {jax_step · JAX step, 16 M in 1 array · optax.adam} with 16 M parameters and
    {jax_step · JAX step, 5,702 in 6 arrays · optax.adam} with 5,702.
    """,
    """
    **The same bits everywhere**: on every processor, with any number of threads, in NumPy, in
    PyTorch, in JAX under jit, and after every resume; tests compare with `==`
    ([exactness](https://adamas-optimizer.github.io/adamas/exactness/)). And trainings end where
    torch's end: over the same seeds the final losses of that classifier differ by {difference} on
    average
    ([convergence](https://adamas-optimizer.github.io/adamas/convergence/)).
    """,
)
#: What stands where a figure should.
NOT_MEASURED = "(not measured)"


def claims(stored: Mapping[str, Stored]) -> str:
    """Return the reasons as a numbered list in Markdown; what has no figure says so.

    ``stored`` is what is stored of tables, by their names.
    """
    others = {**_of_memory(stored.get("memory")), **_of_trainings(stored.get("convergence"))}

    def figure(found: re.Match[str]) -> str:
        name, *row = found[1].split(" · ")
        if not row:
            return others.get(name, NOT_MEASURED)
        for each in stored.get(name, {"figures": ()})["figures"]:
            if [each["work"], each["against"]] == row and "ratio" in each:
                return f"**{short(each['ratio'])}×**"
        return NOT_MEASURED

    told = (re.sub(r"\{([^}]+)\}", figure, " ".join(claim.split())) for claim in CLAIMS)
    lines = textwrap.TextWrapper(
        110, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"{lines.fill(f'{i}. {claim}')}\n" for i, claim in enumerate(told, 1))


def _of_memory(stored: Stored | None) -> dict[str, str]:
    sizes = {each["work"]: each.get("counted") for each in (stored or {}).get("figures", ())}
    found = {form: sizes.get(f"torch: AdamW, {form}") for form in ("8bit", "float32")}
    return {form: f"{size:.3g}" for form, size in found.items() if size is not None}


def _of_trainings(stored: Stored | None) -> dict[str, str]:
    if stored is None or "digits" not in stored["tasks"]:
        return {}
    task = stored["tasks"]["digits"]
    plain, *small = summary(task["runs"], COMPARISONS["states"].subjects)
    _, ours = summary(task["runs"], COMPARISONS["optimizers"].subjects)
    (eight,) = (each for each in small if each.subject == "adamas 8bit")
    return {
        "seeds": f"{task['seeds']}",
        "loss": f"{plain.mean:.4f}",
        "loss with 8bit": f"{eight.mean:.4f}",
        "spread": f"{plain.spread:.4f}",
        "difference": f"{abs(ours.difference):.4f} ± {ours.error:.4f}",
    }
