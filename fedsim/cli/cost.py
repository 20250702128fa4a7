"""``fedsim cost``: what an experiment costs a client, counted before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim import units
from fedsim.cli.options import (
    DataDirectory,
    Format,
    OutputFormat,
    Settings,
    with_data_directory,
)
from fedsim.config import Experiment

MIB = 2**20

# What is printed, by the name of the figure.
STEP = {
    "forward_flops": "forward FLOPs",
    "backward_flops": "backward FLOPs",
    "bias_flops": "bias FLOPs",
    "saved_bytes": "saved bytes",
}
OPERATIONS = {
    "activation_elements": "elements",
    "compare": "compare",
    "multiply_add": "multiply-add",
    "divide": "divide",
    "transcendental": "transcendental",
}
CLIENT = {
    "examples_processed": "examples processed",
    "train_flops": "train FLOPs",
    "bias_flops": "bias FLOPs",
    "optimizer_flops": "optimizer FLOPs",
    "activation_elements": "activation elements",
    "compare_ops": "compare operations",
    "multiply_add_ops": "multiply-add operations",
    "division_ops": "divide operations",
    "transcendental_ops": "transcendental operations",
}
MEMORY = {
    "model_bytes": "model",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "saved_bytes": "saved for backward",
    "total_bytes": "total",
}


def cost(
    file: Annotated[
        Path | None,
        typer.Argument(help="The experiment, a TOML file or a run directory; default: defaults."),
    ] = None,
    settings: Settings = None,
    memory_mib: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Say which batch fits in so much memory, in MiB (2^20 bytes)."
        ),
    ] = None,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
) -> None:
    """Count what an experiment costs a client, without running it.

    FLOPs, elementwise operations and memory of one training step, layer by layer, and of one
    client in one round. The figures are counted: they are the same on every machine.

    Examples:

        fedsim cost configs/quickstart.toml
        fedsim cost configs/mnist.toml -s model.activation=gelu --memory-mib 64
        fedsim cost runs/quickstart-20261123-101500 --format json
    """
    experiment = read_experiment(file, with_data_directory(settings, data_dir))
    from fedsim.costs import itemised

    found = itemised(experiment, cap_bytes=None if memory_mib is None else memory_mib * MIB)
    if output is OutputFormat.json:
        typer.echo(json.dumps(found))
    else:
        show_text(found)


def read_experiment(file: Path | None, settings: list[str]) -> Experiment:
    """Read the experiment of a TOML file or of a run."""
    from fedsim import config, runs
    from fedsim.vocabulary import vocabulary

    if file is not None and file.is_dir():
        stored = runs.stored_experiment(file).flat()
        return config.read(None, settings, vocabulary=vocabulary(), base=stored)
    return config.read(file, settings, vocabulary=vocabulary())


def show_text(found: dict[str, Any]) -> None:
    """Print the costs for people."""
    step, client, memory = found["step"], found["client_round"], found["memory"]
    typer.echo(
        f"{found['model']} on {found['dataset']}, activation {found['activation']}: "
        f"{found['parameters']:,} parameters\n\n"
        f"one training step, {examples_text(step['examples'])} (counted)"
    )
    show_figures("layer", STEP, step["layers"])
    typer.echo("its activations: elements, and operations of both passes (counted)")
    show_figures("layer", OPERATIONS, [flat(layer) for layer in step["layers"]])
    held = f"{client['training_examples']:,} / {client['clients']:,} clients"
    typer.echo(
        f"the mean client in one round: {examples_text(client['examples'])} ({held}), "
        f"{client['steps']:,} steps (counted)"
    )
    show_column({title: client[column] for column, title in CLIENT.items()})
    typer.echo(f"memory of a step, {examples_text(step['examples'])}, in bytes (counted)")
    show_column({title: memory[column] for column, title in MEMORY.items()})
    typer.echo("that client-round on other devices, messages dense (modelled)")
    show_devices(found["modelled"])
    if "largest_batch" in found:
        typer.echo(largest_text(**found["largest_batch"]))


def show_figures(key: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """Print a table of whole numbers with its sums; rows of zeros are left out."""
    from fedsim.report.tables import plain_table, show

    table = plain_table(key, *columns.values(), right=list(columns.values()))
    for row in rows:
        if any(row[column] for column in columns):
            table.add_row(row[key], *(f"{row[column]:,}" for column in columns))
    table.add_row("total", *(f"{sum(row[column] for row in rows):,}" for column in columns))
    show(table)


def show_column(figures: dict[str, int]) -> None:
    """Print whole numbers, a line each."""
    from fedsim.report.tables import plain_table, show

    table = plain_table("figure", "count", right=["count"])
    table.show_header = False
    for title, figure in figures.items():
        table.add_row(title, f"{figure:,}")
    show(table)


def show_devices(visits: list[dict[str, Any]]) -> None:
    """Print what a client's visit takes on each device."""
    from fedsim.report.tables import plain_table, show

    columns = ["products", "elementwise", "messages", "time", "energy"]
    table = plain_table("device", *columns, right=columns)
    for visit in visits:
        messages = visit["uplink"]["seconds"] + visit["downlink"]["seconds"]
        parts = (visit["compute"]["seconds"], visit["elementwise"]["seconds"], messages)
        times = map(units.seconds, (*parts, visit["seconds"]))
        table.add_row(visit["device"], *times, units.joules(visit["joules"]))
    show(table)


def flat(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a layer with its operations of both passes, by kind."""
    both = {kind: layer["forward_ops"][kind] + n for kind, n in layer["backward_ops"].items()}
    return {**layer, **both}


def largest_text(cap_bytes: int, examples: int) -> str:
    """Say which batch fits, and what that leaves out."""
    fits = f"at most {examples_text(examples)} a step" if examples else "not even one example fits"
    return (
        f"within {cap_bytes // MIB:,} MiB: {fits} (counted)\n"
        "that is of model, gradients, optimizer and what is saved for backward; without the\n"
        "allocator's overhead, the kernels' workspaces, Python and the data"
    )


def examples_text(examples: int) -> str:
    """Say how many examples."""
    return f"{examples:,} example" + ("s" if examples != 1 else "")
