"""``fedsim privacy attack``: how much leaks from what a client sends, by activation."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import units
from fedsim.cli.options import DataDirectory, Format, OutputFormat, Quiet
from fedsim.cli.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedsim.privacy.attacks.gallery import Reconstructions
    from fedsim.privacy.attacks.measure import Outcome
    from fedsim.privacy.attacks.rows import LeakageRow


def attack(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="labels, analytic, trap, dlg, cosine or membership; see above."
        ),
    ],
    activation: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="One arm for each.")
    ] = "relu",
    dataset: Annotated[str, typer.Option(help="digits, mnist, fashion_mnist or cifar10.")] = (
        "digits"
    ),
    batch: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Examples a client holds; default: 8, or 1 to match."),
    ] = None,
    local_steps: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Of SGD, before it sends; 0: it sends the gradient."),
    ] = "0",
    learning_rate: Annotated[float, typer.Option(help="Of those steps.")] = 0.1,
    model: Annotated[str, typer.Option(help="The architecture.")] = "mlp",
    width: Annotated[int, typer.Option(help="Units of a hidden layer.")] = 500,
    depth: Annotated[
        int | None, typer.Option(help="Hidden layers or blocks; default: 1 of an mlp.")
    ] = None,
    level: Annotated[
        str, typer.Option(help="What is clipped and noised: none, user (update) or example.")
    ] = "none",
    clipping_norm: Annotated[float, typer.Option(metavar="C", help="Of that level.")] = 0.0,
    noise_multiplier: Annotated[
        float, typer.Option(metavar="Z", help="Its noise, in clipping norms.")
    ] = 0.0,
    seeds: Annotated[int, typer.Option(min=1, help="From 0; arms are paired by seed.")] = 5,
    iterations: Annotated[
        int, typer.Option(min=0, help="dlg, cosine: of the search; 0: 300 and 600.")
    ] = 0,
    starts: Annotated[int, typer.Option(min=1, help="dlg, cosine: the best match counts.")] = 2,
    trap_scale: Annotated[float, typer.Option(help="trap: factor of the weights.")] = 1.0,
    members: Annotated[int, typer.Option(min=1, help="membership: a model trains on.")] = 100,
    shadows: Annotated[int, typer.Option(min=6, help="membership: models, in pairs.")] = 16,
    epochs: Annotated[int, typer.Option(min=0, help="membership: passes; many overfit.")] = 30,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep rows and images in a new directory.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw reconstructions there, as SVG and PNG.")
    ] = False,
    data_dir: DataDirectory = None,
    output: Format = OutputFormat.text,
    quiet: Quiet = False,
) -> None:
    """Attack what a client sends, and measure how much of its data comes back.

    labels reads labels off the last layer; analytic divides the first dense layer's gradients;
    trap does so with weights set by a dishonest server; dlg and cosine search examples whose
    gradient matches, given the labels; membership tells who was trained on. Each arm is measured
    with every seed: means with 95% intervals. The default of every attack takes under a minute.

    Examples:

        fedsim privacy attack analytic --activation relu,leaky_relu,tanh --batch 1,8,64
        fedsim privacy attack analytic --local-steps 0,1,5 --out leakage --pictures
        fedsim privacy attack trap --activation tanh,gelu --dataset mnist --trap-scale 100
        fedsim privacy attack cosine --activation relu,sigmoid --seeds 3
        fedsim privacy attack labels --level user --clipping-norm 1 --noise-multiplier 0.5
        fedsim privacy attack membership --activation relu,tanh --width 64 --format json
    """
    from fedsim.data import load_dataset
    from fedsim.errors import ConfigError, nearest
    from fedsim.privacy.attacks.measure import ATTACKS, Effort, measure
    from fedsim.privacy.attacks.settings import Setting

    check_out(out, pictures=pictures)
    if name not in ATTACKS:
        raise ConfigError([f"attack {name!r}: unknown; {nearest(name, ATTACKS)}"])
    if not ATTACKS[name].of_a_batch and (batch or local_steps != "0"):
        raise ConfigError([f"--batch and --local-steps: {name} trains models; use --members"])
    batches = [ATTACKS[name].batch] if batch is None else numbers("--batch", batch)
    settings = [
        Setting(
            model=model,
            width=width,
            depth=(1 if model == "mlp" else 0) if depth is None else depth,
            activation=function,
            batch=examples,
            local_steps=steps,
            learning_rate=learning_rate,
            level=level,
            clipping_norm=clipping_norm,
            noise_multiplier=noise_multiplier,
        )
        for examples in batches
        for steps in numbers("--local-steps", local_steps)
        for function in names(activation)
    ]
    effort = Effort(
        iterations=iterations,
        starts=starts,
        trap_scale=trap_scale,
        members=members,
        shadows=shadows,
        epochs=epochs,
    )
    data = load_dataset(dataset, directory="" if data_dir is None else str(data_dir))
    outcomes = measure(name, settings, data, range(seeds), effort=effort)
    rows, shown = kept(told(outcomes, len(settings) * seeds, quiet=quiet), out)
    if pictures and out is not None:
        draw(shown, out)
    show(rows, output)
    if out is not None:
        say(f"rows and images: {out}", quiet=quiet)


def check_out(out: Path | None, *, pictures: bool) -> None:
    """Refuse a directory that holds anything, before the time is spent."""
    from fedsim.errors import ConfigError, RunExists

    if out is None and pictures:
        raise ConfigError(["--pictures: needs a directory to draw in; name one by --out DIR"])
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunExists(f"{out}: is there already; name another directory with --out")


def numbers(option: str, text: str) -> list[int]:
    """Read whole numbers between commas, each once."""
    from fedsim.errors import ConfigError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(
            [f"{option} {text!r}: must be whole numbers between commas, as in 1,8,64"]
        ) from None


def names(text: str) -> list[str]:
    """Read activations between commas; one between parentheses belongs to an activation."""
    return list(dict.fromkeys(part.strip() for part in re.split(r",(?![^(]*\))", text)))


def told(outcomes: Iterator[Outcome], tasks: int, *, quiet: bool) -> Iterator[Outcome]:
    """Say what each attack came to, and how long the others will take."""
    begun, seen = time.monotonic(), set()
    for outcome in outcomes:
        row = outcome.row
        seen.add((row.activation, row.batch, row.local_steps, row.seed))
        left = (time.monotonic() - begun) / len(seen) * (tasks - len(seen))
        say(
            f"[{len(seen)}/{tasks}] {row.title}, seed {row.seed}: {headline(row)}; "
            f"about {units.seconds(left)} to go",
            quiet=quiet,
        )
        yield outcome


def headline(row: LeakageRow) -> str:
    """Say the one figure of an attack that matters most."""
    for name, said in (
        ("labels_recovered", "labels"),
        ("recovered_at_0_1", "recovered at 0.1"),
        ("auc", "AUC"),
    ):
        value = getattr(row, name)
        if value is not None:
            return f"{said} {units.number(value) if name == 'auc' else units.percent(value)}"
    return units.MISSING


def kept(
    outcomes: Iterator[Outcome], out: Path | None
) -> tuple[list[LeakageRow], list[Reconstructions]]:
    """Return the rows and each arm's first images, and keep them in a directory as they come."""
    from fedsim.ledger.files import explained, write_atomically
    from fedsim.privacy.attacks.gallery import PICTURES, gallery_bytes
    from fedsim.privacy.attacks.rows import ROWS, rows_bytes

    rows: list[LeakageRow] = []
    shown: list[Reconstructions] = []
    if out is not None:
        with explained(out):
            out.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        first = all(row.arm != outcome.row.arm for row in rows)
        rows.append(outcome.row)
        if first and outcome.shown is not None:
            shown.append(outcome.shown)
        if out is not None:
            write_atomically(out / ROWS, rows_bytes(rows))
    if out is not None and shown:
        write_atomically(out / PICTURES, gallery_bytes(shown))
    return rows, shown


def draw(shown: Sequence[Reconstructions], out: Path) -> None:
    """Draw originals and reconstructions, as SVG and as PNG."""
    from fedsim.report.drawing import write_file
    from fedsim.report.reconstructions import reconstructions_picture

    if not shown:
        say("no pictures: this attack reconstructs no images")
        return
    picture = reconstructions_picture(shown)
    for kind in ("svg", "png"):
        write_file(picture, out / f"{picture.name}.{kind}")


def show(rows: Sequence[LeakageRow], output: OutputFormat) -> None:
    """Print what leaked, by arm."""
    from fedsim.privacy.attacks.rows import as_json
    from fedsim.report.leakage import leakage_table, leakages
    from fedsim.report.tables import show as print_table

    found = leakages(rows)
    if output is OutputFormat.json:
        document = {
            "arms": [arm.as_json() for arm in found],
            "rows": [as_json(row) for row in rows],
        }
        typer.echo(json.dumps(document))
        return
    print_table(leakage_table(found))
    count = max(arm.seeds for arm in found)
    typer.echo(f"means [95% intervals] over {count} seeds; counted, but for CPU, which is measured")
