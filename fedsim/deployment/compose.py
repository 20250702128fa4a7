"""The nodes of a deployment as Compose is told of them, and Compose as it is called."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

import fedsim
from fedsim.deployment.folder import CARD, Deployment, NodePlan, container_user
from fedsim.errors import EngineError
from fedsim.ledger.files import write_atomically

PATTERN = "supernode"  # the service that nodes are made from
OVERRIDE = "compose.yaml"
VARIABLES = "compose.env"
DATA = "/data"  # where a node, and the server, find what was mounted


def base_file() -> Path:
    """Return the project's own docker-compose.yml: inside the package, or in a source checkout."""
    package = Path(fedsim.__file__).parent
    for path in (
        package / "deployment" / "docker-compose.yml",
        package.parent / "docker-compose.yml",
    ):
        if path.is_file():
            return path
    raise EngineError(f"docker-compose.yml is missing beside {package}; reinstall fedsim")


def write_files(made: Deployment) -> None:
    """Write what Compose reads beside the project's own file: the nodes, and the variables."""
    pattern = yaml.safe_load(base_file().read_text(encoding="utf-8"))["services"][PATTERN]
    services = {node.name: service(made, node, pattern) for node in made.active}
    if made.server_data:
        services["superexec"] = {"volumes": [f"{made.server_data}:{DATA}:ro"]}
    if made.publish:
        services["gate"] = {"ports": [f"{made.publish}:8000"], "networks": ["control"]}
    header = "# Written by fedsim deploy, from deployment.toml: a service for each node.\n\n"
    text = header + yaml.safe_dump({"services": services}, sort_keys=False)
    write_atomically(made.directory / OVERRIDE, text.encode())
    variables = {
        "COMPOSE_PROJECT_NAME": made.name,
        "FEDSIM_DEPLOYMENT": made.directory,
        "FEDSIM_PORT": made.port,
        "FEDSIM_USER": container_user(),
    }
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    write_atomically(made.directory / VARIABLES, lines.encode())


def service(made: Deployment, node: NodePlan, pattern: dict[str, Any]) -> dict[str, Any]:
    """Return a node as a service: the pattern, with its own key, partition, data and limits."""
    own = copy.deepcopy(pattern)
    del own["profiles"]
    own["command"] += [f"--partition-id={node.partition}", f"--partitions={len(made.nodes)}"]
    own["volumes"] = [f"{made.folder_of(node)}:/node:ro"]
    if node.data:
        data, inside = Path(node.data), Path(DATA)
        if data.is_file():
            own["volumes"].append(f"{data.parent / CARD}:{inside / CARD}:ro")
            inside /= data.name
        own["volumes"].append(f"{data}:{inside}:ro")
        own["command"].append(f"--data={inside}")
    if limits := node.limits():
        # Docker refuses more cores than there are, and gives as much again for swap.
        own["cpus"] = min(limits.cpus, float(os.cpu_count() or 1))
        own["mem_limit"] = own["memswap_limit"] = limits.memory_bytes
    return own


@lru_cache(maxsize=1)
def compose_command() -> tuple[str, ...]:
    """Return how Compose is called on this machine: version 2, or the older one.

    Raises:
        EngineError: there is none.
    """
    docker = shutil.which("docker")
    if docker and _answers(docker, "compose", "version"):
        return (docker, "compose")
    if old := shutil.which("docker-compose"):
        return (old,)
    raise EngineError(
        "no Docker Compose was found; install Docker Engine with its Compose plugin, or run nodes "
        "without containers: docs/deployment.md"
    )


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Compose:
    """A deployment's containers."""

    made: Deployment

    def __call__(self, *arguments: str) -> None:
        """Call Compose; what it says is shown.

        Raises:
            EngineError: it failed.
        """
        code = subprocess.run([*self._command(), *arguments], check=False).returncode
        if code:
            raise EngineError(f"docker compose {' '.join(arguments)} failed with exit code {code}")

    def containers(self) -> dict[str, tuple[str, str]]:
        """Return id and status of each service's container."""
        shape = '{{.ID}}\t{{.Label "com.docker.compose.service"}}\t{{.Status}}'
        label = f"label=com.docker.compose.project={self.made.name}"
        lines = engine("ps", "--all", "--filter", label, "--format", shape).splitlines()
        rows = (line.split("\t") for line in lines)
        return {name: (container, status) for container, name, status in rows}

    def copy(self, service: str, path: str, to: Path) -> None:
        """Copy a file or a directory out of a service's container.

        Raises:
            EngineError: there is no such container, or no such path in it.
        """
        found = self.containers()
        if service not in found:
            raise EngineError(
                f"{service} has no container in {self.made.name}; is it up? fedsim deploy status"
            )
        engine("cp", f"{found[service][0]}:{path}", str(to))

    def _command(self) -> list[str]:
        folder = self.made.directory
        return [
            *compose_command(),
            *("--env-file", str(folder / VARIABLES)),
            *("-p", self.made.name),
            *("-f", str(base_file()), "-f", str(folder / OVERRIDE)),
        ]


def docker(*arguments: str) -> None:
    """Call Docker; what it says is shown.

    Raises:
        EngineError: there is none, or it failed.
    """
    code = subprocess.run([docker_command(), *arguments], check=False).returncode
    if code:
        raise EngineError(f"docker {' '.join(arguments)} failed with exit code {code}")


def docker_command() -> str:
    """Return how Docker is called.

    Raises:
        EngineError: there is none.
    """
    found = shutil.which("docker")
    if found is None:
        raise EngineError("no docker was found; install Docker Engine")
    return found


def engine(*arguments: str) -> str:
    """Call Docker and return what it prints.

    Raises:
        EngineError: there is none, or it refuses; with what it says.
    """
    command = [docker_command(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def has_image(name: str) -> bool:
    """Say whether the engine holds an image.

    Raises:
        EngineError: there is no engine.
    """
    return bool(engine("images", "--quiet", name).strip())
