"""Device profiles, and what a client's visit would take on one of them: modelled, not measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import fedsim
from fedsim.config import read_toml
from fedsim.errors import ConfigError, nearest

FLOPS_PER_MULTIPLY_ADD = 2
TEXTS = ("name", "description", "uncertainty")
SOURCE = "_source"
CONTAINER = "container"  # a table of its own, see Limits


def rate() -> Any:
    """Declare a figure that must be above 0, as times are found by dividing by it."""
    return field(metadata={"above_zero": True})


def price() -> Any:
    """Declare a figure that must be at least 0."""
    return field(metadata={"above_zero": False})


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What a device does in a second, and what that takes of energy.

    A matrix FLOP is a multiplication or an addition within a matrix product or a convolution. An
    elementwise operation is one of those that ``fedsim.models.activations.Cost`` counts, each
    with a float32 read and one written. Bytes up are sent by the device, bytes down received.

    Attributes:
        uncertainty: how far the figures may be off, and what they leave out.
        sources: where each figure comes from, by its name.
    """

    name: str
    description: str
    uncertainty: str

    matrix_flops_per_second: float = rate()
    compare_ops_per_second: float = rate()
    multiply_add_ops_per_second: float = rate()
    division_ops_per_second: float = rate()
    transcendental_ops_per_second: float = rate()
    uplink_bytes_per_second: float = rate()
    downlink_bytes_per_second: float = rate()

    joules_per_matrix_flop: float = price()
    joules_per_compare_op: float = price()
    joules_per_multiply_add_op: float = price()
    joules_per_division_op: float = price()
    joules_per_transcendental_op: float = price()
    joules_per_uplink_byte: float = price()
    joules_per_downlink_byte: float = price()

    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container gets that stands for a device: cores of this machine, and memory."""

    cpus: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Time and energy of a part of the work, each at least 0."""

    seconds: float
    joules: float


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """Time and energy of a client's visit on a device, by part; nothing overlaps.

    ``compute`` is matrix products and convolutions, ``elementwise`` activations, biases and the
    optimiser, ``uplink`` and ``downlink`` the messages.
    """

    compute: Part
    elementwise: Part
    uplink: Part
    downlink: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order above."""
        return (self.compute, self.elementwise, self.uplink, self.downlink)

    @property
    def seconds(self) -> float:
        """Of all parts, one after the other."""
        return sum(part.seconds for part in self.parts)

    @property
    def joules(self) -> float:
        """Of all parts together."""
        return sum(part.joules for part in self.parts)


def modelled(
    profile: DeviceProfile,
    *,
    train_flops: float,
    bias_flops: float,
    optimizer_flops: float,
    compare_ops: float,
    multiply_add_ops: float,
    division_ops: float,
    transcendental_ops: float,
    uplink_bytes: float,
    downlink_bytes: float,
) -> Modelled:
    """Return what counted work takes on a device.

    Every count is divided by its rate and multiplied by its energy, and the parts are added: no
    overlap of computing and sending, no start-up costs, no waiting. Every elementwise operation
    pays for the memory that it reads and writes, where a fused kernel pays once, so that ratios
    between activations come out too large: these are not to be compared by it. The FLOPs of
    biases and of the optimiser are elementwise too: two of them, a product and the addition to
    it, are one multiply-add. (A lone addition thus counts half of what it takes.)

    Args:
        profile: the device.
        train_flops: of matrix products and convolutions, a multiply-add being two.
        bias_flops: additions of biases, and summing their gradients.
        optimizer_flops: of the optimiser's steps.
        compare_ops: as the other operations, of the activations, forward and backward.
        uplink_bytes: that the device sends.
        downlink_bytes: that it receives.
    """
    multiply_adds = multiply_add_ops + (bias_flops + optimizer_flops) / FLOPS_PER_MULTIPLY_ADD
    elementwise = (
        part(compare_ops, profile.compare_ops_per_second, profile.joules_per_compare_op),
        part(
            multiply_adds, profile.multiply_add_ops_per_second, profile.joules_per_multiply_add_op
        ),
        part(division_ops, profile.division_ops_per_second, profile.joules_per_division_op),
        part(
            transcendental_ops,
            profile.transcendental_ops_per_second,
            profile.joules_per_transcendental_op,
        ),
    )
    return Modelled(
        compute=part(train_flops, profile.matrix_flops_per_second, profile.joules_per_matrix_flop),
        elementwise=Part(
            seconds=sum(each.seconds for each in elementwise),
            joules=sum(each.joules for each in elementwise),
        ),
        uplink=part(uplink_bytes, profile.uplink_bytes_per_second, profile.joules_per_uplink_byte),
        downlink=part(
            downlink_bytes, profile.downlink_bytes_per_second, profile.joules_per_downlink_byte
        ),
    )


def part(count: float, per_second: float, joules_each: float) -> Part:
    """Return what so many of one thing take."""
    return Part(seconds=count / per_second, joules=count * joules_each)


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles that come with fedsim, sorted."""
    return tuple(sorted(path.stem for path in profile_directory().glob("*.toml")))


def load_profile(name_or_path: str) -> DeviceProfile:
    """Read a device profile. Every figure must be there, and beside it where it comes from.

    Args:
        name_or_path: one of :func:`profile_names`, or the path of a ``.toml`` file.

    Raises:
        ConfigError: there is no such profile, or what is wrong with it, a line each.
    """
    table = read_toml(profile_path(name_or_path))
    problems = [f"{name_or_path}: {problem}" for problem in profile_problems(table)]
    if problems:
        raise ConfigError(problems)
    numbers = {name: float(table[name]) for name in figures()}
    sources = {name: table[name + SOURCE] for name in numbers}
    values: dict[str, Any] = {**{name: table[name] for name in TEXTS}, **numbers}
    return DeviceProfile(**values, sources=sources)


def load_limits(name_or_path: str) -> Limits:
    """Read what a container gets that stands for a device: the profile's table ``container``.

    Raises:
        ConfigError: there is no such profile, or it says nothing sensible of containers.
    """
    table = read_toml(profile_path(name_or_path)).get(CONTAINER, {})
    cpus, memory_bytes = table.get("cpus"), table.get("memory_bytes")
    if not is_figure(cpus, True) or not is_figure(memory_bytes, True):
        raise ConfigError(
            [
                f"{name_or_path}: needs a table [container] with cpus and memory_bytes, both "
                f"above 0; it has {table!r}"
            ]
        )
    return Limits(cpus=float(cpus), memory_bytes=int(memory_bytes))


def profile_path(name_or_path: str) -> Path:
    """Return the file that holds a profile."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.name != name_or_path:
        return path.expanduser()
    if name_or_path not in (names := profile_names()):
        raise ConfigError(
            [
                f"{name_or_path!r}: no such device profile; {nearest(name_or_path, names)}, "
                "or the path of a .toml file"
            ]
        )
    return profile_directory() / f"{name_or_path}.toml"


def profile_directory() -> Path:
    """Return the directory of fedsim's profiles: inside the package, or in a source checkout."""
    package = Path(fedsim.__file__).parent
    for directory in (package / "devices", package.parent / "configs" / "devices"):
        if directory.is_dir():
            return directory
    raise ConfigError([f"the device profiles are missing beside {package}; reinstall fedsim"])


def figures() -> dict[str, bool]:
    """Return a profile's figures by name, and whether each must be above 0."""
    declared = (f for f in fields(DeviceProfile) if "above_zero" in f.metadata)
    return {f.name: f.metadata["above_zero"] for f in declared}


def profile_problems(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a profile as it was read, by key."""
    numbers = figures()
    texts = [*TEXTS, *(name + SOURCE for name in numbers)]
    for key in table:
        if key not in numbers and key not in texts and key != CONTAINER:
            yield f"{key}: unknown key; {nearest(key, [*numbers, *texts])}"
    for key in texts:
        if key not in table:
            yield f"{key}: missing; write a text"
        elif not isinstance(table[key], str) or not table[key].strip():
            yield f"{key} = {table[key]!r}: must be a text that says something"
    for key, above_zero in numbers.items():
        wanted = "a number greater than 0" if above_zero else "a number, at least 0"
        if key not in table:
            yield f"{key}: missing; write {wanted}: nothing is guessed"
        elif not is_figure(table[key], above_zero):
            yield f"{key} = {table[key]!r}: must be {wanted}"


def is_figure(value: Any, above_zero: bool) -> bool:
    """Say whether a value is a finite number of the sign that it must have."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and (value > 0 if above_zero else value >= 0)
    except OverflowError:  # a whole number that no float holds
        return False
