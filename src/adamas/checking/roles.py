"""What the arguments of a function or method that makes steps are for, by their names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from adamas.checking.subjects import is_setting

__all__ = ["Roles", "roles_of_function", "roles_of_loop", "roles_of_method"]

#: The names of arguments, each with its role.
Roles = Mapping[str, str]

_PATTERNS = {
    "pairs": r"(grads?_and_vars?|grads?_vars?|gvs?|pairs)",
    "grads": r"(.*grad.*|g|gs|gt|g_t|d|dw|dx|dp|dtheta|d_?params?|deltas?|updates|∇.*)",
    "params": r"(p|ps|.*param.*|w|ws|.*weights?|thetas?|θ|x|xs|.*variables?|vars?|values?|arrays?)",
    "state": r"(.*state|.*states|st|cache|memory|slots)",
    "t": r"(?-i:t|n|i|k|it|iter|step|steps|time|timestep|iteration|iterations|count|epoch)",
    "memory": r"(m|v|s|r|u|mu|nu|m_?t|v_?t|m_?prev|v_?prev|exp_avg|exp_avg_sq|mean|square|first"
    r"|second|v_?hat|v_?max|max_?v|momentum|velocity|moments?\d?)",
}
#: Of a function that makes all steps itself. No value is asked for.
_LOOP_PATTERNS = {
    "count": r"(n|num|max)_?(iters?|iterations?|steps?|epochs?)"
    r"|iters?|iterations|steps|epochs|niter|t_max",
    "gradient": r"(.*grad.*|g|df.*|d_?f|dfdx|jac.*|.*derivative.*|∇.*)",
    "value": r"(f|fun|func|fn|function|objective.*|loss.*|cost.*|value)",
    "start": r"(x|x_?0|w|w_?0|p|p_?0|.*init.*|start.*|.*params?_?0?|.*weights?_?0?|theta_?0?|θ0?"
    r"|guess)",
}


#: Roles that several arguments may have.
_MANY = {"state", "t", "memory", "count"}


def _role(name: str, taken: Mapping[str, str], patterns: Mapping[str, str]) -> str | None:
    """Return the first role whose pattern fits and that is still to be had."""
    for role, pattern in patterns.items():
        free = role in _MANY or role not in taken.values()
        if free and re.fullmatch(pattern, name, re.IGNORECASE):
            return role
    return None


def _roles_of(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the role of each argument of a function that makes a step, in the signature's order.

    Roles are "params", "grads", "pairs" (of gradient and parameter), "state", "t" and "memory" (m,
    v). None where there is no gradient among them. Arguments with a default are left out, but for
    the time and what is remembered.
    """
    found: dict[str, str] = {}
    for name, p in signature.parameters.items():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        role = None if is_setting(name) else _role(name, found, _PATTERNS)
        if role is None and p.default is p.empty:
            return None
        if role is not None and (p.default is p.empty or p.default is None):
            found[name] = role
    return found if {"grads", "pairs"} & set(found.values()) else None


def roles_of_function(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the role of each argument of a function that makes a step; None where it makes none.

    Where the names say nothing, three arguments that are needed are params, grads and state. Where
    none is for the state, those that begin as None or empty are "fed" with what a step returns.
    """
    roles = _roles_of(signature)
    if roles is not None and {"params", "pairs"} & set(roles.values()):
        if not {"state", "memory"} & set(roles.values()):
            for name, p in signature.parameters.items():
                empty = isinstance(p.default, (dict, list)) and not p.default
                if (empty or p.default is None) and not is_setting(name):
                    roles.setdefault(name, "fed")
        return roles
    needed = _needed(signature)
    if roles is None and len(needed) == 3:
        return dict(zip(needed, ("params", "grads", "state"), strict=True))
    return None


def roles_of_method(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the roles of a method's arguments; empty where it takes none."""
    roles, needed = _roles_of(signature), _needed(signature)
    if roles is not None:
        return roles
    usual = {0: (), 1: ("grads",), 2: ("params", "grads")}.get(len(needed))
    return None if usual is None else dict(zip(needed, usual, strict=True))


def roles_of_loop(signature: inspect.Signature) -> dict[str, str] | None:
    """Return the role of each argument of a function that loops; None where it is none.

    Roles are "gradient", "value", "start" and "count".
    """
    roles: dict[str, str] = {}
    for name, p in signature.parameters.items():
        if is_setting(name) or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        role = _role(name, roles, _LOOP_PATTERNS)
        if role is None and p.default is p.empty:
            return None
        if role is not None and (role == "count" or p.default is p.empty):
            roles[name] = role
    return roles if {"gradient", "start"} <= set(roles.values()) else None


def _needed(signature: inspect.Signature) -> list[str]:
    return [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
