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


def test_what_only_reads_and_prints_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; import fedsim.report.tables, fedsim.cli.main; "
        "sys.argv = ['fedsim', 'ls', '.']\n"
        "try: fedsim.cli.main.main()\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "False"


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
            "downlink_bytes uplink_dense_bytes downlink_dense_bytes train_flops cpu_seconds "
            "wall_seconds package_joules worker_idle_fraction clipping_norm clipped_fraction "
            "noise_std signal_to_noise epsilon secure_wall_seconds attack_success_fraction "
            "model_compressed_bytes model_zero_fraction model_top_1_percent_energy "
            "model_top_10_percent_energy "
            "model_entropy_bits",
        ),
        (
            ClientRow,
            "round client examples steps examples_processed loss_first_step loss_last_step "
            "loss_before loss_after accuracy_after train_flops bias_flops optimizer_flops "
            "activation_elements compare_ops multiply_add_ops division_ops transcendental_ops "
            "cpu_seconds wall_seconds data_cpu_seconds data_wall_seconds "
            "serialization_cpu_seconds serialization_wall_seconds evaluation_cpu_seconds "
            "evaluation_wall_seconds measuring_cpu_seconds measuring_wall_seconds threads cohort "
            "waiting_seconds others_cpu_seconds saved_bytes model_bytes gradient_bytes "
            "optimizer_bytes peak_memory_bytes startup_cpu_seconds startup_wall_seconds "
            "container_cpu_seconds container_peak_memory_bytes container_memory_limit_bytes "
            "container_received_bytes container_sent_bytes dense_bytes wire_bytes compressed_bytes "
            "downlink_dense_bytes downlink_wire_bytes zero_fraction zero_fraction_without_blank "
            "top_1_percent_energy top_10_percent_energy entropy_bits codec_error update_norm "
            "drift_cosine gradient_ratio_before gradient_ratio_after clip_scale "
            "secure_uplink_bytes "
            "secure_downlink_bytes secure_cpu_seconds modelled_seconds modelled_joules status "
            "error",
        ),
        (
            LayerRow,
            "round client layer phase parameters zero_fraction dead_fraction saturated_fraction "
            "preactivation_mean preactivation_std gradient_norm update_norm",
        ),
        (
            Manifest,
            "format_version name status created updated finished error rounds_planned "
            "wall_seconds model_sha256 config_hash engine threads pid host command python platform "
            "processor cores versions commit library_paths resumed changed epsilon guarantee "
            "blanks",
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
        "study": [
            *("--calibrate", "--data-dir", "--format", "--out", "--plan", "--quiet", "--set"),
        ],
        "compare": ["--endpoint", "--format"],
        "report": ["--data-dir", "--figures", "--format", "--markdown", "--open", "--out"],
        "ls": ["--format"],
        "export": ["--out", "--overwrite", "--to"],
        "cost": ["--data-dir", "--format", "--memory-mib", "--set"],
        "bench": [],
        "bench activations": [
            *("--activations", "--blocks", "--data-dir", "--format", "--out", "--quiet"),
            *("--seconds", "--set"),
        ],
        "bench measure": ["--data-dir", "--format", "--quiet", "--repeats", "--rounds", "--set"],
        "bench peers": [],
        "privacy": [],
        "privacy attack": [
            *("--activation", "--batch", "--clipping-norm", "--data-dir", "--dataset", "--depth"),
            *("--epochs", "--format", "--iterations", "--learning-rate", "--level"),
            *("--local-steps", "--members", "--model", "--noise-multiplier", "--out"),
            *("--pictures", "--quiet", "--seeds", "--shadows", "--starts", "--trap-scale"),
            "--width",
        ],
        "privacy audit": ["--canaries", "--data-dir", "--format", "--level", "--seed", "--set"],
        "privacy epsilon": [
            *("--accountant", "--delta", "--format", "--level", "--noise-multiplier"),
            *("--population", "--sampling-probability", "--steps"),
        ],
        "privacy table": ["--attacks", "--out"],
        "privacy noise": [
            *("--accountant", "--delta", "--format", "--level", "--population"),
            *("--sampling-probability", "--steps", "--target-epsilon"),
        ],
        "data": [],
        "data fetch": ["--data-dir", "--from"],
        "data split": ["--data-dir", "--out", "--quiet", "--server-only", "--set"],
        "deploy": [],
        "deploy init": [
            *("--data", "--device", "--host", "--nodes", "--own", "--port", "--publish"),
        ],
        "deploy up": ["--build", "--dir", "--quiet", "--wait"],
        "deploy submit": [
            *("--certificate", "--dir", "--format", "--insecure", "--open", "--out", "--quiet"),
            *("--set", "--superlink"),
        ],
        "deploy status": ["--dir", "--format"],
        "deploy logs": ["--dir", "--follow", "--tail"],
        "deploy stop": ["--dir"],
        "deploy rotate": ["--dir"],
        "deploy revoke": ["--dir"],
        "deploy down": ["--dir", "--volumes"],
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
        "PrivacyError": ("FedsimError", 2),
        "CodecError": ("FedsimError", 1),
        "EngineError": ("FedsimError", 1),
        "RunFailed": ("FedsimError", 1),
        "LedgerError": ("FedsimError", 1),
        "RunExists": ("LedgerError", 2),
        "SecureAggregationRefused": ("FedsimError", 1),
        "SecureAggregationAborted": ("RunFailed", 1),
    }
