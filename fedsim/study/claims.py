"""The hypotheses of a study file: each entry is one claim for every arm that it speaks of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from fedsim.errors import nearest
from fedsim.study.design import Claim, Hypothesis, Published, Values, named, short
from fedsim.study.endpoints import Endpoint, endpoint_of, endpoint_problem

KEYS = ("arm", "reference", "endpoint", "claim", "margin", "where", "direction", "scale")
Axes = Mapping[str, Sequence[Any]]


def read_hypotheses(raw: object, axes: Axes, problems: list[str]) -> tuple[Hypothesis, ...]:
    """Return the claims, one for each arm, endpoint and combination of the other axes.

    An entry's ``arm`` and ``reference`` are values of one axis, or tables of axes and values;
    each of them and ``endpoint`` may be lists; ``where`` keeps other axes at a value.
    """
    entries = raw if isinstance(raw, list) else [raw]
    found: list[Hypothesis] = []
    for number, entry in enumerate(entries, 1):
        place = f"hypothesis {number}"
        wrong: list[str] = []
        if isinstance(entry, Mapping):
            found += read_entry(entry, axes, wrong)
        else:
            wrong.append("must be a table, [[hypothesis]]")
        problems += [f"{place}: {line}" for line in wrong]
    said = [(h.arm, h.reference, h.endpoint, h.claim) for h in found]
    twice = {h.text for h, what in zip(found, said, strict=True) if said.count(what) > 1}
    problems += [f"hypothesis: says twice that {text}" for text in sorted(twice)]
    return tuple(found)


def read_entry(entry: Mapping[str, Any], axes: Axes, wrong: list[str]) -> list[Hypothesis]:
    """Return the claims of one entry."""
    wrong += [f"{key}: unknown key; {nearest(key, KEYS)}" for key in entry if key not in KEYS]
    needed = ("arm", "reference", "endpoint", "claim")
    wrong += [f"{key}: is missing" for key in needed if entry.get(key, []) == []]
    claims = get_args(Claim)
    if "claim" in entry and entry["claim"] not in claims:
        wrong.append(f"claim = {entry['claim']!r}: must be one of {', '.join(claims)}")
    where = read_where(entry.get("where", {}), axes, wrong)
    endpoints = [read_endpoint(name, entry, wrong) for name in listed(entry.get("endpoint", []))]
    arms, references = (
        [read_arm(side, arm, axes, wrong) for arm in listed(entry.get(side, []))]
        for side in ("arm", "reference")
    )
    if wrong:
        return []
    found: list[Hypothesis] = []
    for arm, reference in itertools.product(arms, references):
        if problem := pair_problem(arm, reference, where):
            wrong.append(problem)
            continue
        sides = pairs_of(arm, reference, where, axes)
        found += [
            Hypothesis(arm=mine, reference=other, claim=entry["claim"], **endpoint)
            for endpoint, (mine, other) in itertools.product(endpoints, sides)
        ]
    return found


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def read_published(raw: object, axes: Axes, problems: list[str]) -> tuple[Published, ...]:
    """Return what others found: entries of an ``endpoint``, a ``source`` and ``values``.

    Each value is a table that names an arm, a value of every axis, and the ``value`` itself.
    """
    found: list[Published] = []
    for number, entry in enumerate(raw if isinstance(raw, list) else [raw], 1):
        wrong: list[str] = []
        if not isinstance(entry, Mapping) or set(entry) != {"endpoint", "source", "values"}:
            problems.append(f"published {number}: must hold endpoint, source and values")
            continue
        if problem := endpoint_problem(entry["endpoint"]):
            wrong.append(f"endpoint = {entry['endpoint']!r}: {problem}")
        for given in listed(entry["values"]):
            value = given.get("value") if isinstance(given, Mapping) else None
            if type(value) not in (int, float) or not 0 < float(value or 0) < float("inf"):
                wrong.append(f"values: {given!r} must be axes and a value, a number above 0")
                continue
            arm = read_where(
                {k: v for k, v in given.items() if k != "value"}, axes, wrong, "values"
            )
            if missing := [axis for axis in axes if axis not in arm]:
                wrong.append(f"values: {given!r} does not say {', '.join(missing)}")
            found.append(
                Published(
                    arm=tuple((axis, arm.get(axis)) for axis in axes),
                    endpoint=str(entry["endpoint"]),
                    value=float(value or 0),
                    source=str(entry["source"]),
                )
            )
        problems += [f"published {number}: {line}" for line in wrong]
    return tuple(found)


def read_endpoint(name: object, entry: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """Return what a claim says of its endpoint: name, margin, direction and scale."""
    if problem := endpoint_problem(name):
        wrong.append(f"endpoint = {name!r}: {problem}")
        return {}
    endpoint = endpoint_of(str(name)) or Endpoint(name=str(name))
    direction = entry.get("direction", endpoint.direction)
    scale = entry.get("scale", endpoint.scale)
    margin = entry.get("margin", endpoint.margin if scale == endpoint.scale else None)
    if direction not in ("higher", "lower"):
        wrong.append(f"direction = {direction!r}: {name} needs one: higher or lower (is better)")
    if scale not in ("difference", "ratio"):
        wrong.append(f"scale = {scale!r}: must be difference or ratio")
    if type(margin) not in (int, float) or not 0 < margin < float("inf"):
        wrong.append(f"margin = {margin!r}: {name} needs one above 0, what counts as a difference")
    return {"endpoint": name, "direction": direction, "scale": scale, "margin": margin}


def read_arm(name: str, value: Any, axes: Axes, wrong: list[str]) -> dict[str, Any]:
    """Return an arm as axes and values, from a value of one axis or from a table."""
    if isinstance(value, Mapping):
        return read_where(value, axes, wrong, name)
    homes = [axis for axis, values in axes.items() if is_among(value, values)]
    if len(homes) == 1:
        return {homes[0]: value}
    if homes:
        example = f'{{ "{homes[0]}" = {value!r} }}'
        wrong.append(f"{name} = {value!r}: is a value of {' and '.join(homes)}; write {example}")
    else:
        known = [str(v) for values in axes.values() for v in values]
        wrong.append(f"{name} = {value!r}: is no arm of this study; {nearest(str(value), known)}")
    return {}


def read_where(raw: object, axes: Axes, wrong: list[str], name: str = "where") -> dict[str, Any]:
    """Return axes, which may be named by their last part, and a value of each."""
    if not isinstance(raw, Mapping):
        wrong.append(f"{name} = {raw!r}: must be a table of axes and values")
        return {}
    found: dict[str, Any] = {}
    for given, value in flat(raw):
        named_so = [axis for axis in axes if given == axis] or [
            axis for axis in axes if given == short(axis)
        ]
        axis = named_so[0] if named_so else ""
        if len(named_so) > 1:
            wrong.append(f"{name}.{given}: may be {' or '.join(named_so)}; write it in full")
        elif not axis:
            wrong.append(f"{name}.{given}: is no axis; {nearest(given, axes)}")
        elif not is_among(value, axes[axis]):
            known = ", ".join(map(str, axes[axis]))
            wrong.append(f"{name}.{given} = {value!r}: the axis has {known}")
        else:
            found[axis] = value
    return found


def flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values."""
    from fedsim.config import flatten

    yield from flatten(table).items()


def is_among(value: Any, values: Sequence[Any]) -> bool:
    """Say whether a value is one of an axis; true is not 1 here."""
    return any(type(v) is type(value) and v == value for v in values)


def pair_problem(arm: Mapping[str, Any], other: Mapping[str, Any], where: Values | Any) -> str:
    """Say why two arms cannot be compared; "" where they can."""
    differing = sorted(
        {key for key in (*arm, *other) if arm.get(key) != other.get(key) or key in where}
    )
    if not differing:
        return f"arm and reference are both {named(tuple(arm.items()))}"
    if set(arm) != set(other):
        return "arm and reference must name the same axes"
    if common := [key for key in differing if key in where]:
        return f"where.{common[0]}: arm and reference say it already"
    if len(differing) > 1:
        return (
            f"arm and reference differ in {' and '.join(differing)}: nobody could say which of "
            "them made the difference; compare them one at a time"
        )
    return ""


def pairs_of(
    arm: Mapping[str, Any], reference: Mapping[str, Any], where: Mapping[str, Any], axes: Axes
) -> list[tuple[Values, Values]]:
    """Return arm and reference in full, for every combination of the axes that are left open."""
    kept = {**where, **{key: arm[key] for key in arm}}
    options = [[kept[axis]] if axis in kept else list(axes[axis]) for axis in axes]
    found = []
    for values in itertools.product(*options):
        full = dict(zip(axes, values, strict=True))
        found.append((tuple(full.items()), tuple({**full, **reference}.items())))
    return found
