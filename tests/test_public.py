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


def test_the_commands() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    options = {
        name: sorted(
            max(parameter.opts, key=len)
            for parameter in command.params
            if isinstance(parameter, click.Option)
        )
        for name, command in group.commands.items()
    }
    assert options == {
        "run": ["--data-dir", "--format", "--out", "--quiet", "--resume", "--set"],
        "study": ["--data-dir", "--format", "--out", "--quiet", "--set"],
        "ls": ["--format"],
        "export": ["--out", "--overwrite", "--to"],
    }


def test_the_exit_codes() -> None:
    codes = {
        error.__name__: error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.FedsimError)
    }
    assert codes == {
        "FedsimError": 1,
        "ConfigError": 2,
        "DataError": 2,
        "EngineError": 1,
        "RunFailed": 1,
        "LedgerError": 1,
        "RunExists": 2,
    }
