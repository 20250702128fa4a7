"""What other people's programs rely on. A change here is one that breaks them: the changelog."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import typer

import fedsim
from fedsim import errors
from fedsim.cli.main import app
from fedsim.records import ClientRow, LayerRow, Manifest, RoundRow


def test_the_exported_names() -> None:
    assert fedsim.__all__ == ["__version__", "load", "run_simulation"]
    from fedsim.engine import run_simulation
    from fedsim.ledger.read import load

    assert (fedsim.load, fedsim.run_simulation) == (load, run_simulation)
    with pytest.raises(AttributeError, match="module 'fedsim' has no attribute 'nope'"):
        _ = fedsim.nope


def test_the_version_is_the_package_s() -> None:
    path = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    assert fedsim.__version__ == project["version"]


def test_importing_fedsim_imports_the_standard_library_alone() -> None:
    script = "import sys; old = set(sys.modules); import fedsim; print(*set(sys.modules) - old)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - sys.stdlib_module_names == {"fedsim"}


def test_a_simulation_is_called_as_flower_s() -> None:
    parameters = inspect.signature(fedsim.run_simulation).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert positional == ["server_app", "client_app", "num_supernodes"]
    assert keywords == {"workers": None, "ray_address": None, "seed": 0}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            RoundRow,
            "round test_accuracy test_loss clients_trained clients_failed uplink_bytes "
            "downlink_bytes cpu_seconds wall_seconds",
        ),
        (
            ClientRow,
            "round client examples steps loss_first_step loss_last_step cpu_seconds wall_seconds "
            "dense_bytes update_norm status error",
        ),
        (LayerRow, "round client layer parameters update_norm"),
        (
            Manifest,
            "format_version name status created updated finished error rounds_planned "
            "wall_seconds model_sha256 config_hash engine threads pid host command python platform "
            "processor cores versions commit library_paths resumed changed",
        ),
    ],
)
def test_the_columns_of_the_ledger(row: type, columns: str) -> None:
    assert [field.name for field in dataclasses.fields(row)] == columns.split()


def options(command: click.Command, words: str = "") -> dict[str, list[str]]:
    """Return the options of every command by the words that call it."""
    inner = command.commands if isinstance(command, click.Group) else {}
    mine = sorted(max(p.opts, key=len) for p in command.params if isinstance(p, click.Option))
    found = {words.strip(): mine}
    for word, below in inner.items():
        found |= options(below, f"{words} {word}")
    return found


def test_the_commands() -> None:
    assert options(typer.main.get_command(app)) == {
        "": ["--version"],
        "run": ["--data-dir", "--format", "--out", "--quiet", "--resume", "--set"],
        "study": ["--data-dir", "--format", "--out", "--quiet", "--set"],
        "ls": ["--format"],
        "export": ["--out", "--overwrite", "--to"],
        "data": [],
        "data fetch": ["--data-dir", "--from"],
    }


def test_the_errors_and_their_exit_codes() -> None:
    codes = {
        error.__name__: (error.__base__.__name__, error.exit_code)
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.FedsimError)
    }
    assert codes == {
        "FedsimError": ("Exception", 1),
        "ConfigError": ("FedsimError", 2),
        "DataError": ("FedsimError", 2),
        "EngineError": ("FedsimError", 1),
        "RunFailed": ("FedsimError", 1),
        "LedgerError": ("FedsimError", 1),
        "RunExists": ("LedgerError", 2),
    }
