"""``fedsim privacy``: calculators of differential privacy.

``privacy_app`` is where other files' commands are added, in :mod:`fedsim.cli.main`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.command import Command
from fedsim.cli.folding import folded
from fedsim.cli.options import Format, OutputFormat

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Guarantee

privacy_app = typer.Typer(
    help="Reckon what privacy promises, and measure what leaks.",
    no_args_is_help=True,
)


class Accountant(StrEnum):
    """Whose bound counts."""

    pld = "pld"
    rdp = "rdp"


class Level(StrEnum):
    """Whose data a guarantee is for."""

    user = "user"
    example = "example"
    local = "local"


SamplingProbability = Annotated[
    float,
    typer.Option(
        "--sampling-probability",
        metavar="Q",
        help="With which each record is in a step: expected cohort over clients, or batch over "
        "examples; 1: always.",
    ),
]
Steps = Annotated[
    int, typer.Option("--steps", metavar="T", help="Rounds, or optimiser steps of DP-SGD.")
]
Delta = Annotated[
    float, typer.Option("--delta", metavar="D", help="Below 1 over the number of records.")
]
Population = Annotated[
    int | None,
    typer.Option(
        "--population", metavar="N", help="Users, or a client's examples: refuse a delta of 1/N."
    ),
]
AccountantChoice = Annotated[
    Accountant, typer.Option("--accountant", help="Whose bound counts; both are printed.")
]
LevelChoice = Annotated[
    Level, typer.Option("--level", help="What a record is, and which records are neighbours.")
]


@privacy_app.command("epsilon", cls=Command)
def epsilon(
    sampling_probability: SamplingProbability,
    noise_multiplier: Annotated[
        float,
        typer.Option(
            "--noise-multiplier",
            metavar="Z",
            help="The noise's standard deviation, in clipping norms.",
        ),
    ],
    steps: Steps,
    delta: Delta,
    population: Population = None,
    level: LevelChoice = Level.user,
    accountant: AccountantChoice = Accountant.pld,
    output: Format = OutputFormat.text,
) -> None:
    """Say which epsilon a Gaussian mechanism with Poisson sampling has.

    Each step samples every record by itself, clips what each contributes, adds it up and adds
    noise. The bound is of Google's dp-accounting: PLD, by privacy loss distributions, is the
    tighter one; RDP, by Renyi divergences, is the one in older papers.

    Examples:

        fedsim privacy epsilon --sampling-probability 0.1 --noise-multiplier 1.1 --steps 9 --delta 1e-5
        fedsim privacy epsilon --sampling-probability 1 --noise-multiplier 9 --steps 9 --delta 1e-5 --accountant rdp
    """  # noqa: E501
    from fedsim.privacy.accounting import check_delta, guarantee

    check_delta(delta, population)
    found = guarantee(
        level=level.value,
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        steps=steps,
        delta=delta,
        accountant=accountant.value,
        caveats=caveats(population),
    )
    show(found, output, population=population)


@privacy_app.command("noise", cls=Command)
def noise(
    target_epsilon: Annotated[
        float, typer.Option("--target-epsilon", metavar="E", help="Which must not be exceeded.")
    ],
    sampling_probability: SamplingProbability,
    steps: Steps,
    delta: Delta,
    population: Population = None,
    level: LevelChoice = Level.user,
    accountant: AccountantChoice = Accountant.pld,
    output: Format = OutputFormat.text,
) -> None:
    """Say how much noise keeps a Gaussian mechanism within an epsilon.

    The least noise multiplier to a relative 1e-4, rounded up, and the guarantee that it gives.

    Examples:

        fedsim privacy noise --target-epsilon 2 --sampling-probability 0.1 --steps 30 --delta 1e-5
        fedsim privacy noise --target-epsilon 8 --sampling-probability 1 --steps 10 --delta 1e-5 --level local
    """  # noqa: E501
    from fedsim.privacy.accounting import (
        SENSITIVITY,
        check_delta,
        check_level,
        guarantee,
        noise_multiplier_for,
    )

    check_delta(delta, population)
    check_level(level.value, sampling_probability)
    multiplier = noise_multiplier_for(
        target_epsilon=target_epsilon,
        sampling_probability=sampling_probability,
        steps=steps,
        delta=delta,
        accountant=accountant.value,
    )
    found = guarantee(
        level=level.value,
        sampling_probability=sampling_probability,
        noise_multiplier=multiplier * SENSITIVITY[level.value],
        steps=steps,
        delta=delta,
        accountant=accountant.value,
        caveats=caveats(population),
    )
    if output is OutputFormat.text:
        typer.echo(f"noise multiplier: {found.noise_multiplier:.10g}")
    show(found, output, target_epsilon=target_epsilon, population=population)


def caveats(population: int | None) -> tuple[str, ...]:
    """Return what a calculator cannot know."""
    rests = (
        "This is of a mechanism that samples and adds noise as said and clips every contribution, "
        "which a calculator cannot check"
    )
    below = "Delta has to be below 1/N for N records, and N was not given"
    return (rests,) if population is not None else (rests, below)


def show(found: Guarantee, output: OutputFormat, **inputs: float | None) -> None:
    """Print a guarantee; as JSON with the other inputs, and null for an infinite epsilon."""
    from fedsim.privacy.accounting import other_accountant, statement

    if output is OutputFormat.text:
        typer.echo(folded(statement(found)))
        return
    by = {
        found.accountant: found.epsilon,
        other_accountant(found.accountant): found.other_epsilon,
    }
    values = asdict(found) | {f"epsilon_{name}": by[name] for name in sorted(by)} | inputs
    values["statement"] = statement(found)
    typer.echo(json.dumps({key: finite(value) for key, value in values.items()}))


def finite(value: object) -> object:
    """Return a value, or None for infinity, which JSON has no number for."""
    return None if isinstance(value, float) and math.isinf(value) else value
