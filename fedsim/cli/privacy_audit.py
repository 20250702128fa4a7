"""``fedsim privacy audit``: whether a mechanism keeps what its accountant promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.cli.folding import folded
from fedsim.cli.options import DataDirectory, Format, OutputFormat, Settings, with_data_directory
from fedsim.errors import RunFailed

if TYPE_CHECKING:
    from fedsim.config import Experiment
    from fedsim.privacy.audit import AuditReport

# Where no file says more: fifty clients, ten of them in a round of thirty.
DEFAULTS = {
    "privacy.level": "user",
    "privacy.clipping_norm": 1.0,
    "privacy.noise_multiplier": 1.0,
    "privacy.delta": 1e-4,
}


def audit(
    file: Annotated[
        Path | None,
        typer.Argument(help="The experiment, a TOML file; default: 50 clients and z = 1."),
    ] = None,
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help="user or example; default: the file's.")
    ] = "",
    canaries: Annotated[
        int, typer.Option(min=1, metavar="N", help="Made-up people, in or out by a coin.")
    ] = 500,
    seed: Annotated[
        int, typer.Option(min=0, help="Of canaries and coins; noise stays a secret.")
    ] = 0,
    settings: Settings = None,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
) -> None:
    """Audit the mechanism that an experiment's privacy rests on, in one run of it.

    Canaries, each in or out by a coin, take part in all rounds in place of clients (level user) or
    of examples (level example). Guesses about them bound epsilon from below, beside the
    accountant's bound from above; checks of sampling, clipping and noise say what each part does.
    Where anything contradicts the promise the command fails.

    Examples:

        fedsim privacy audit
        fedsim privacy audit configs/privacy/user_dp.toml --canaries 1000
        fedsim privacy audit --level example -s privacy.noise_multiplier=0.8 --format json
    """
    chosen = [f"privacy.level={level}"] if level else []
    experiment = read_experiment(file, [*with_data_directory(settings, data_dir), *chosen])
    from fedsim.auditing import audit_experiment

    report = audit_experiment(experiment, canaries=canaries, seed=seed)
    if output is OutputFormat.json:
        typer.echo(json.dumps(report.as_json()))
    else:
        show(report)
    if report.contradicted:
        names = ", ".join(check.name for check in report.refuted) or "the bound"
        raise RunFailed(f"the promise is contradicted by: {names}")


def read_experiment(file: Path | None, settings: list[str]) -> Experiment:
    """Read the experiment, or the one that stands in for a file."""
    from fedsim import config
    from fedsim.vocabulary import vocabulary

    base: dict[str, Any] | None = DEFAULTS if file is None else None
    return config.read(file, settings, vocabulary=vocabulary(), base=base)


def show(report: AuditReport) -> None:
    """Print the report for people."""
    claims = report.claims
    held_to = (
        f"level {claims.level}: clipping norm {claims.clipping_norm:g}, noise of "
        f"{claims.noise_multiplier:.4g} clipping norms, {claims.rounds:,} releases, each of a "
        f"sample of probability {claims.sampling_probability:.4g}"
    )
    for sentence in (held_to, *report.sentences()):
        typer.echo(folded(sentence, indent=2))
