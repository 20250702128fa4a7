"""The ``fedsim`` command: what it can do, and what it answers when something is wrong.

Nothing heavy is imported before a command knows that it needs it, so that help is instant.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from fedsim import __version__
from fedsim.cli import (
    bench,
    cost,
    data,
    deploy,
    overhead,
    peers,
    privacy_attack,
    privacy_audit,
    privacy_table,
    runs,
    study,
)
from fedsim.cli import compare as compare_command
from fedsim.cli import report as report_command
from fedsim.cli import run as run_command
from fedsim.cli.command import Command
from fedsim.cli.folding import folded
from fedsim.cli.privacy import privacy_app
from fedsim.errors import FedsimError

app = typer.Typer(
    name="fedsim",
    help="Federated learning, measured: what an activation function costs and buys.",
    epilog="Start with: fedsim run configs/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: a command in it can be copied, whatever the width
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", cls=Command)(run_command.run)
app.command("study", cls=Command)(study.study)
app.command("compare", cls=Command)(compare_command.compare)
app.command("report", cls=Command)(report_command.report)
app.command("ls", cls=Command)(runs.ls)
app.command("export", cls=Command)(runs.export)
app.command("cost", cls=Command)(cost.cost)
data_app = typer.Typer(help="Get datasets, and split them for nodes.", no_args_is_help=True)
data_app.command("fetch", cls=Command)(data.fetch)
data_app.command("split", cls=Command)(data.split)
app.add_typer(data_app, name="data")
deploy_app = typer.Typer(help="Run the same clients in containers.", no_args_is_help=True)
for command in (
    *(deploy.init, deploy.up, deploy.submit, deploy.status, deploy.logs),
    *(deploy.stop, deploy.rotate, deploy.revoke, deploy.down),
):
    deploy_app.command(command.__name__, cls=Command)(command)
app.add_typer(deploy_app, name="deploy")
privacy_app.command("audit", cls=Command)(privacy_audit.audit)
privacy_app.command("attack", cls=Command)(privacy_attack.attack)
privacy_app.command("table", cls=Command)(privacy_table.table)
app.add_typer(privacy_app, name="privacy")
bench_app = typer.Typer(help="Measure what things cost on this machine.", no_args_is_help=True)
bench_app.command("activations", cls=Command)(bench.activations)
bench_app.command("measure", cls=Command)(overhead.measure)
# Its options are the suite's.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
bench_app.command("peers", cls=Command, context_settings=PASSED_ON)(peers.peers)
app.add_typer(bench_app, name="bench")


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Take what applies to every command."""
    if version:
        typer.echo(f"fedsim {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command and leave with an honest exit code.

    0: done. 1: the run failed. 2: it cannot run as written. 130: interrupted, as typer says it.
    """
    signal.signal(signal.SIGTERM, terminate)
    try:
        app(prog_name="fedsim")
    except FedsimError as error:
        for line in str(error).splitlines():
            typer.secho(folded(f"error: {line}", indent=2, err=True), fg="red", err=True)
        sys.exit(error.exit_code)


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does: cleanly, leaving a run that resumes."""
    raise KeyboardInterrupt
