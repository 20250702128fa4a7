"""What a user gets from ``pip install .``: one top-level name, and a command that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import fedsim

pytestmark = pytest.mark.install

ROOT = Path(fedsim.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_no_top_level_name_but_fedsim(wheel):
    command = [sys.executable, "-m", "check_wheel_contents", "--toplevel", "fedsim", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fedsim"}
    for part in ("clients/app.py", "server/app.py"):
        assert f"fedsim/flowerapp/{part}" in names


def test_the_wheel_carries_the_device_profiles(wheel, tmp_path):
    """The very files of the checkout, where the installed package looks for them."""
    sources = {path.name: path.read_bytes() for path in (ROOT / "configs" / "devices").iterdir()}
    archive = zipfile.ZipFile(wheel)
    carried = [name for name in archive.namelist() if name.startswith("fedsim/devices/")]
    assert {Path(name).name: archive.read(name) for name in carried} == sources
    archive.extractall(tmp_path)
    code = (
        "from fedsim.measure import devices as d; "
        "print(d.profile_directory(), *(d.load_profile(n).name for n in d.profile_names()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,  # before the editable install
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    names = sorted(name.removesuffix(".toml") for name in sources)
    assert done.stdout.split() == [str(tmp_path / "fedsim" / "devices"), *names]


def test_the_installed_command_runs_in_an_empty_directory(wheel, tmp_path):
    """The wheel goes into an environment of its own; only the libraries are borrowed from ours."""
    home, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, timeout=120, capture_output=True)
    borrowed = next(p for p in sys.path if p.endswith("site-packages"))
    site = next((home / "lib").glob("python*/site-packages"))
    # Behind the wheel's own directory, and without our editable fedsim, which a .pth would bring.
    (site / "borrowed.pth").write_text(borrowed + "\n")
    settings = ["experiment.rounds=2", "data.clients=4", "server.clients_per_round=2"]
    flags = [part for setting in settings for part in ("-s", setting)]
    for engine in ("inline", "ray"):
        done = subprocess.run(
            [
                *(str(home / "bin" / "fedsim"), "run", *flags, "-s", f"engine.name={engine}"),
                *("-q", "--out", engine, "--format", "json"),
            ],
            cwd=empty,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rounds"] == 2
    manifest = json.loads((empty / "inline" / "manifest.json").read_text())
    assert manifest["library_paths"]["fedsim"].startswith(str(home))
