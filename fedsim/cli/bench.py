"""``fedsim bench``: what things cost on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import units
from fedsim.cli.calibrate import told
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Quiet,
    Settings,
    with_data_directory,
)
from fedsim.cli.progress import say

if TYPE_CHECKING:
    from rich.table import Table

    from fedsim.config import Experiment
    from fedsim.measure.timings import Calibration, Timing

# The control: it is measured beside every panel.
IDENTITY = "identity"


def activations(
    file: Annotated[
        Path | None, typer.Argument(help="The experiment, a TOML file; default: the defaults.")
    ] = None,
    settings: Settings = None,
    chosen: Annotated[
        str | None,
        typer.Option(
            "--activations", metavar="NAME,NAME,...", help="Which; default: all that there are."
        ),
    ] = None,
    blocks: Annotated[int, typer.Option(help="Times that everything is measured.")] = 20,
    seconds: Annotated[float, typer.Option(help="For everything, about.")] = 25.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Keep the calibration in a file.")
    ] = None,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Time activation functions at the shapes of an experiment's model.

    One thread on one core takes turns between the activations: each alone, forward and backward;
    in whole training steps; and in steps under torch's profiler. Medians over the blocks with 95%
    intervals. Every figure is measured, raw: the control, which is the identity, shows what of it
    is the call. The share of a step is that of the activation's operations; by difference it is
    what the step takes less with the identity in its place.

    Examples:

        fedsim bench activations
        fedsim bench activations configs/mnist.toml --out calibration.json
        fedsim bench activations --activations 'relu,tanh,leaky_relu(0.1)' --seconds 10
        fedsim bench activations -s train.batch_size=32 --format json
    """
    overrides = with_data_directory(settings, data_dir)
    experiments = read_experiments(file, overrides, chosen)
    check_out(out)
    from fedsim.calibration import calibrate_experiments, calibration_bytes
    from fedsim.ledger.files import write_atomically

    progress = told(len(experiments), quiet=quiet)
    found = calibrate_experiments(experiments, blocks=blocks, seconds=seconds, progress=progress)
    if output is OutputFormat.json:
        typer.echo(json.dumps(found.as_json()))
    else:
        show(found)
    if out is not None:
        write_atomically(out, calibration_bytes(found))
    for reason in found.unstable:
        say(f"unstable: {reason}")


def read_experiments(
    file: Path | None, overrides: list[str], chosen: str | None
) -> list[Experiment]:
    """Read the experiment once for each activation, by default the registry's and its own."""
    from fedsim import config
    from fedsim.errors import ConfigError
    from fedsim.vocabulary import vocabulary

    words = vocabulary()
    own = config.read(file, overrides, vocabulary=words).model.activation
    if chosen is None:
        names = [name for name in (*words["model.activation"], own) if name != IDENTITY]
    else:
        # A comma between parentheses belongs to one activation: tempered_sigmoid(2, 2, 1).
        names = [name.strip() for name in re.split(r",(?![^(]*\))", chosen)]
    experiments: list[Experiment] = []
    problems: list[str] = []
    for name in dict.fromkeys(names):
        try:
            settings = [*overrides, f"model.activation={name}"]
            experiments.append(config.read(file, settings, vocabulary=words))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return experiments


def check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written, before the time is spent."""
    from fedsim.errors import ConfigError

    if out is not None and out.is_dir():
        raise ConfigError([f"--out {out}: is a directory; name a file in it"])
    if out is not None and not out.parent.is_dir():
        raise ConfigError([f"--out {out}: {out.parent} is no directory; make it first"])


def show(found: Calibration) -> None:
    """Print a calibration as a table, with its conditions."""
    from fedsim.report.tables import show as print_table

    machine = found.machine
    core = "not pinned to a core" if machine.pinned is None else f"pinned to core {machine.pinned}"
    shapes = ", ".join("x".join(map(str, shape)) for shape in found.shapes)
    print_table(calibration_table(found))
    typer.echo(
        f"all measured: medians of {found.blocks} blocks [95% interval], one thread, {core}\n"
        f"inputs {shapes}; {machine.processor}, {machine.cores} cores, torch {machine.torch}"
    )


def calibration_table(found: Calibration) -> Table:
    """A line for each activation, the cheapest first, and one for the control."""
    from fedsim.report.tables import plain_table, with_interval

    figures = (
        "forward, ns/element",
        "backward, ns/element",
        "x relu",
        "share of a step",
        "by difference",
    )
    table = plain_table("activation", *figures, right=figures)

    def cost(item: tuple[str, Timing]) -> float:
        return item[1].forward_ns.estimate + item[1].backward_ns.estimate

    rows = sorted(found.activations.items(), key=cost)
    for name, timing in [*rows, ("(control: identity)", found.control)]:
        table.add_row(
            name,
            with_interval(timing.forward_ns, units.number),
            with_interval(timing.backward_ns, units.number),
            units.MISSING
            if timing.times_relu is None
            else units.number(timing.times_relu.estimate),
            with_interval(timing.share_of_step, units.percent),
            with_interval(timing.share_by_difference, units.percent),
        )
    return table
