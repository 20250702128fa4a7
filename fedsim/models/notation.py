"""Reads ``name``, ``name(0.1)`` and ``name(key=0.1)``, and nothing else; evaluates nothing."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping

from fedsim.errors import ConfigError, nearest

Signatures = Mapping[str, Mapping[str, float]]


def parse_call(text: str, signatures: Signatures, *, key: str) -> tuple[str, dict[str, float]]:
    """Return the name and all its parameters, by name, with defaults filled in.

    Args:
        text: such as ``"leaky_relu(0.1)"``.
        signatures: by name, its parameters in order with their defaults.
        key: the setting that holds the text, for the error.

    Raises:
        ConfigError: the text has another form, or names something that does not exist; a line
            for every problem.
    """
    place = f"{key} = {text!r}"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    call = ast.Call(func=node, args=[], keywords=[]) if isinstance(node, ast.Name) else node
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise ConfigError([f"{place}: write a name, or a name with numbers as in name(0.1)"])
    name = call.func.id
    if name not in signatures:
        raise ConfigError([f"{place}: unknown; {nearest(name, signatures)}"])
    given, problems = _arguments(call, list(signatures[name]))
    if problems:
        raise ConfigError([f"{place}: {problem}" for problem in problems])
    return name, {**signatures[name], **given}


def _arguments(call: ast.Call, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """Return the numbers of a call by parameter name, and what is wrong with it."""
    given: dict[str, float] = {}
    problems = []
    takes = ", ".join(names) or "none"
    if len(call.args) > len(names):
        problems.append(f"{len(call.args)} values for {len(names)} parameters; it takes: {takes}")
    pairs = [
        *zip(names, call.args, strict=False),
        *((item.arg or "**", item.value) for item in call.keywords),
    ]
    for name, node in pairs:
        number = _number(node)
        if name not in names:
            remedy = nearest(name, names) if names else "it takes none"
            problems.append(f"unknown parameter {name!r}; {remedy}")
        elif name in given:
            problems.append(f"{name} is given twice; give it once")
        elif number is None:
            problems.append(f"{name} must be a finite number, not {ast.unparse(node)!r}")
        else:
            given[name] = number
    return given, problems


def _number(node: ast.expr) -> float | None:
    """Return a literal number, signed or not; None for anything else."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign = -1 if isinstance(node.op, ast.USub) else 1
        node = node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = sign * float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
