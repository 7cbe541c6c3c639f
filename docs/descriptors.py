"""For the API reference: options that an optimizer shows have their types and what help() says."""

import ast
from typing import Any

import griffe


class Descriptors(griffe.Extension):
    """Reads attributes made by ``Setting[T]()``, ``Fixed[T](…)`` or ``settings.whole()``."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        said = ast.literal_eval(str(pkg["settings._SAID"].value))
        for module in ("numpy", "torch.optimizer"):
            for name, each in pkg[f"{module}.Optimizer"].members.items():
                if name in said and each.is_attribute:
                    each.docstring = griffe.Docstring(said[name], parent=each)
                    made = each.value.function
                    generic = isinstance(made, griffe.ExprSubscript)
                    each.annotation = (
                        made.slice
                        if generic
                        else griffe.ExprName("Phase", each.parent)
                    )
