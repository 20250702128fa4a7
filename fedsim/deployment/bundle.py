"""fedsim's apps as a Flower App Bundle, with the whole experiment as its run-config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from flwr.cli.build import build_fab_from_files

from fedsim import __version__
from fedsim.config import Experiment

APPS = ("clients", "server")


def make_bundle(experiment: Experiment, apps: Path) -> bytes:
    """Return the bundle that a SuperLink is given: the two apps and an experiment's settings.

    The settings are the bundle's defaults, so nothing has to be overridden when it is started.

    Args:
        experiment: checked.
        apps: the directory that holds the two apps.
    """
    files: dict[str, bytes | Path] = {
        path.relative_to(apps).as_posix(): path
        for app in APPS
        for path in sorted((apps / app).glob("**/*.py"))
    }
    files["pyproject.toml"] = tomli_w.dumps(project(experiment)).encode()
    return build_fab_from_files(files)[0]


def project(experiment: Experiment) -> dict[str, Any]:
    """Return the pyproject.toml of the bundle."""
    return {
        "project": {
            "name": "fedsim",
            "version": __version__,
            "description": experiment.experiment.name,
            "license": "Apache-2.0",
            # What its nodes have installed; Flower is told not to install anything.
            "dependencies": [f"fedsim=={__version__}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedsim",
                    "fab-include": [f"{app}/**/*.py" for app in APPS],
                    "components": {
                        "serverapp": "server.app:app",
                        "clientapp": "clients.app:app",
                    },
                    "config": experiment.tables(),
                }
            }
        },
    }
