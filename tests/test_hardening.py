"""What a deployment may not do, whatever else is changed: its Compose files, image, and Flower."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.supercore.superexec.executor.types import Executor

import fedsim
from fedsim.deployment import folder, node
from fedsim.deployment.compose import write_files
from fedsim.deployment.forking import ForkingExecutor

ROOT = Path(__file__).parents[1]
DEPLOYED, FIRST_TRY = "docker-compose.yml", "docker-compose.dev.yml"
ONE_OFF = ("submit",)  # what ends by itself, and is not started again

Service = Mapping[str, Any]
# By service, what Compose makes of a file.
Services = dict[str, dict[str, Any]]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def combined(base: Services, override: Services) -> Services:
    """Return services as Compose combines two files: lists are added, and all else replaced."""
    services = {name: dict(service) for name, service in base.items()}
    for name, service in override.items():
        into = services.setdefault(name, {})
        for key, value in service.items():
            into[key] = [*into.get(key, []), *value] if isinstance(value, list) else value
    return services


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Services]:
    """Return the services of the project's two files, and with those of a deployment's own."""
    split = tmp_path_factory.mktemp("split")
    for part in ("client-000", "client-001", "client-002", "server"):
        (split / part).mkdir()
    made = folder.create(
        tmp_path_factory.mktemp("made") / "clinic",
        nodes=3,
        data=split,
        devices=("phone", "laptop"),
    )
    write_files(made)
    override = yaml.safe_load((made.directory / "compose.yaml").read_text())["services"]
    base = read(DEPLOYED)["services"]
    return {
        DEPLOYED: base,
        FIRST_TRY: read(FIRST_TRY)["services"],
        "compose.yaml": combined(base, override),
    }


FILES = (DEPLOYED, FIRST_TRY, "compose.yaml")


# Compose: each rule returns what is wrong with a service; nothing, if it keeps it.


def words(service: Service) -> list[str]:
    command = service["command"]
    assert isinstance(command, list), "a shell would take it apart"
    return [str(word) for word in command]


def default(text: str) -> str:
    """Return a value with its variables at their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@dataclass(frozen=True)
class Mount:
    """A volume in Compose's short form."""

    source: str
    target: str
    mode: str

    @classmethod
    def of(cls, text: str) -> Mount:
        source, target, mode = (*default(text).split(":"), "rw")[:3]
        return cls(source, target, mode)

    @property
    def named(self) -> bool:
        """Whether it is a volume of the engine's, and no path of the machine."""
        return not self.source.startswith((".", "/", "~"))


def mounts(service: Service) -> list[Mount]:
    return [Mount.of(volume) for volume in service.get("volumes", [])]


def is_capped(name: str, service: Service) -> bool:
    memory = bool(service["mem_limit"]) and service["memswap_limit"] == service["mem_limit"]
    return float(service["cpus"]) > 0 and memory


def writes_where_it_may(name: str, service: Service) -> bool:
    """A service writes to the engine's volumes, and reads what it is given of this machine."""
    return all(
        mount.target in ("/state", "/claims") if mount.named else mount.mode == "ro"
        for mount in mounts(service)
    )


def publishes_to_loopback(name: str, service: Service) -> bool:
    ports = [default(str(port)) for port in service.get("ports", [])]
    return all(port.startswith("127.0.0.1:") for port in ports) and (
        not ports or name == "superlink"
    )


def is_no_superuser(name: str, service: Service) -> bool:
    """Either the image's own user, see the Dockerfile, or a number that is not the superuser's."""
    user = default(str(service.get("user", "10001:10001")))
    return re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) is not None


def rotates_logs(name: str, service: Service) -> bool:
    options = service["logging"].get("options", {})
    return service["logging"]["driver"] == "json-file" and {"max-size", "max-file"} <= set(options)


def has_little_room_in_memory(name: str, service: Service) -> bool:
    return all(
        re.fullmatch(r"/tmp:.*\bsize=\d+m", entry) is not None for entry in service["tmpfs"]
    ) and bool(service["tmpfs"])


def is_started_again(name: str, service: Service) -> bool:
    return bool(service["restart"] == ("no" if name in ONE_OFF else "unless-stopped"))


OWN_NAMESPACES = ("network_mode", "pid", "ipc", "uts", "userns_mode", "cgroup", "cgroup_parent")

RULES: dict[str, Callable[[str, Service], bool]] = {
    "an init reaps what ends": lambda _, s: s["init"] is True,
    "the image is read-only": lambda _, s: s["read_only"] is True,
    "no capabilities": lambda _, s: s["cap_drop"] == ["ALL"] and "cap_add" not in s,
    "no new privileges": lambda _, s: s["security_opt"] == ["no-new-privileges:true"],
    "not privileged": lambda _, s: "privileged" not in s and "devices" not in s,
    "namespaces of its own": lambda _, s: not {*OWN_NAMESPACES} & set(s),
    "no engine's socket": lambda _, s: not any("docker.sock" in m.source for m in mounts(s)),
    "the superuser is nobody": is_no_superuser,
    "processor and memory are limited": is_capped,
    "processes are limited": lambda _, s: 0 < s["pids_limit"] <= 512,
    "logs are rotated": rotates_logs,
    "it is started again": is_started_again,
    "it is given time to stop": lambda _, s: s["stop_grace_period"] == "10s",
    "a small /tmp in memory": has_little_room_in_memory,
    "what is mounted is read-only": writes_where_it_may,
    "the server alone is published, to this machine": publishes_to_loopback,
}

# For each rule, a change of a service that breaks it.
BREAKS: list[tuple[str, dict[str, Any]]] = [
    ("an init reaps what ends", {"init": False}),
    ("the image is read-only", {"read_only": False}),
    ("no capabilities", {"cap_drop": ["NET_RAW"]}),
    ("no capabilities", {"cap_add": ["SYS_ADMIN"]}),
    ("no new privileges", {"security_opt": ["seccomp:unconfined"]}),
    ("not privileged", {"privileged": True}),
    ("not privileged", {"devices": ["/dev/kmsg"]}),
    ("namespaces of its own", {"network_mode": "host"}),
    ("namespaces of its own", {"pid": "host"}),
    ("no engine's socket", {"volumes": ["/var/run/docker.sock:/var/run/docker.sock:ro"]}),
    ("the superuser is nobody", {"user": "0:0"}),
    ("the superuser is nobody", {"user": "${FEDSIM_USER:-root}"}),
    ("processor and memory are limited", {"mem_limit": 0}),
    ("processor and memory are limited", {"memswap_limit": "16g"}),
    ("processor and memory are limited", {"cpus": 0}),
    ("processes are limited", {"pids_limit": -1}),
    ("logs are rotated", {"logging": {"driver": "json-file"}}),
    ("it is started again", {"restart": "always"}),
    ("it is given time to stop", {"stop_grace_period": "0s"}),
    ("a small /tmp in memory", {"tmpfs": ["/tmp"]}),
    ("a small /tmp in memory", {"tmpfs": []}),
    ("what is mounted is read-only", {"volumes": ["./deployment/tls:/tls"]}),
    ("what is mounted is read-only", {"volumes": ["keys:/tls"]}),
    ("the server alone is published, to this machine", {"ports": ["8000:8000"]}),
    ("the server alone is published, to this machine", {"ports": ["0.0.0.0:8000:8000"]}),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("file", FILES)
def test_every_service_keeps_the_rule(file: str, rule: str, files: dict[str, Services]) -> None:
    services = files[file]
    assert {"superlink", "superexec"} < set(services)
    assert [name for name, service in services.items() if not RULES[rule](name, service)] == []


@pytest.mark.parametrize(("rule", "change"), BREAKS)
def test_a_service_that_breaks_the_rule_is_found(
    rule: str, change: dict[str, Any], files: dict[str, Services]
) -> None:
    service = files[DEPLOYED]["superlink"]
    assert RULES[rule]("superlink", service)
    assert not RULES[rule]("superlink", service | change)


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, _ in BREAKS} == set(RULES)


def test_no_other_service_is_published(files: dict[str, Services]) -> None:
    superlink = files[DEPLOYED]["superlink"]
    assert superlink["ports"] == ["127.0.0.1:${FEDSIM_PORT:-8000}:8000"]
    assert not publishes_to_loopback("superexec", superlink)
    published = {
        file: [name for name, service in services.items() if service.get("ports")]
        for file, services in files.items()
    }
    assert published == {DEPLOYED: ["superlink"], FIRST_TRY: [], "compose.yaml": ["superlink"]}


def test_nodes_reach_the_gate_and_nothing_else() -> None:
    file = read(DEPLOYED)
    inner = {"internal": True}
    assert file["networks"] == {"control": {}, "core": inner, "fleet": inner}
    assert {name: set(service["networks"]) for name, service in file["services"].items()} == {
        "superlink": {"control", "core"},
        "superexec": {"core"},
        "gate": {"core", "fleet"},
        "supernode": {"fleet"},
    }


def test_nobody_reaches_the_world_in_the_first_try(files: dict[str, Services]) -> None:
    assert read(FIRST_TRY)["networks"] == {"fleet": {"internal": True}}
    assert {tuple(service["networks"]) for service in files[FIRST_TRY].values()} == {("fleet",)}


def test_the_nodes_of_a_deployment_are_on_the_inner_network(files: dict[str, Services]) -> None:
    nodes = [service for name, service in files["compose.yaml"].items() if name.startswith("node")]
    assert [node["networks"] for node in nodes] == [["fleet"]] * 3


def test_each_service_is_given_its_own_folder_of_keys(files: dict[str, Services]) -> None:
    own = {
        name: {mount.source.split("/")[-1] for mount in mounts(service) if not mount.named}
        for name, service in files["compose.yaml"].items()
    }
    assert own == {
        "superlink": {"tls"},
        "superexec": {"server"},  # once as keys, once as the test part
        "gate": {"gate"},
        "supernode": set(),
        **{f"node-{k}": {f"node-{k}", f"client-00{k}"} for k in range(3)},
    }


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Read a command as Flower does; words that it does not know are an error."""
    return parser.parse_args(words)


@lru_cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return Flower's own parsers of its commands."""
    from flwr.supercore.cli.flower_superexec import _parse_args
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    return {
        "flower-superlink": _parse_args_run_superlink(),
        "flower-superexec": _parse_args(),
        "supernode": _parse_args_run_supernode(),
    }


def options(service: Service) -> argparse.Namespace:
    """Return what Flower takes a service's command for."""
    command = words(service)
    if command[:3] == ["python", "-m", "fedsim.deployment.node"]:
        # The pattern is no client of its own; of two partitions, the last counts.
        _, others = node.arguments().parse_known_args([*command[3:], "--partition-id=0"])
        return parsed(parsers()["supernode"], others)
    if command[:3] == ["python", "-m", "fedsim.deployment.gate"]:
        pairs = dict(word.removeprefix("--").split("=") for word in command[3:])
        return argparse.Namespace(insecure=not {"ca", "certificate", "key"} <= set(pairs), **pairs)
    return parsed(parsers()[command[0]], command[1:])


@pytest.mark.parametrize("file", [DEPLOYED, "compose.yaml"])
def test_with_keys_nothing_is_insecure(file: str, files: dict[str, Services]) -> None:
    for name, service in files[file].items():
        assert "insecure" not in str(service)
        assert options(service).insecure is False, name


@pytest.mark.parametrize("file", [DEPLOYED, "compose.yaml"])
def test_server_and_nodes_authenticate_each_other(file: str, files: dict[str, Services]) -> None:
    services = dict(files[file])
    superlink = options(services.pop("superlink"))
    assert superlink.enable_supernode_auth is True
    assert superlink.auth_list_public_keys is None  # nodes are let in one by one, and shut out
    assert superlink.superexec_auth_secret_file == "/tls/superexec.secret"
    assert (superlink.ssl_certfile, superlink.ssl_keyfile) == ("/tls/server.crt", "/tls/server.key")
    superexec = options(services.pop("superexec"))
    assert superexec.superexec_auth_secret_file == "/tls/superexec.secret"
    assert superexec.root_certificates == "/tls/ca.crt"
    gate = options(services.pop("gate"))
    assert gate.upstream == f"https://{superexec.runtime_api_address}"
    for service in services.values():
        own = options(service)
        assert own.superlink == "gate:8000"
        assert own.auth_supernode_private_key == "/node/key"
        assert own.root_certificates == "/node/ca.crt"


def test_the_keys_that_a_service_asks_for_are_mounted(files: dict[str, Services]) -> None:
    for name, service in files["compose.yaml"].items():
        targets = {mount.target for mount in mounts(service)}
        asked = {
            path.rpartition("/")[0]
            for path in re.findall(r"=(/(?:tls|node)/\S+?)(?:\s|$)", " ".join(words(service)))
        }
        assert asked
        assert asked <= targets or name == "supernode"  # the pattern has none


def test_the_first_try_says_that_it_has_no_keys(files: dict[str, Services]) -> None:
    head = (ROOT / FIRST_TRY).read_text(encoding="utf-8").split("\n\n")[0]
    assert "without TLS and without keys" in " ".join(head.split())
    for service in files[FIRST_TRY].values():
        assert "--insecure" in words(service)
        assert "/tls" not in str(service)


@pytest.mark.parametrize("file", FILES)
def test_every_module_that_a_service_runs_is_there(file: str, files: dict[str, Services]) -> None:
    commands = [words(service) for service in files[file].values()]
    modules = {command[2] for command in commands if command[:2] == ["python", "-m"]}
    assert "fedsim.deployment.node" in modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_what_is_submitted_is_a_command_of_fedsim(files: dict[str, Services]) -> None:
    import typer

    from fedsim.cli.main import app

    fedsim, *arguments = words(files[FIRST_TRY]["submit"])
    assert fedsim == "fedsim"
    command: Any = typer.main.get_command(app)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments.pop(0)]
    read = command.make_context("submit", arguments).params
    assert read["address"] == "superlink:8000"
    assert read["insecure"] is True
    assert str(read["file"]) in {mount.target for mount in mounts(files[FIRST_TRY]["submit"])}


def test_what_is_mounted_from_the_checkout_is_there(files: dict[str, Services]) -> None:
    given = [
        mount.source
        for service in files[FIRST_TRY].values()
        for mount in mounts(service)
        if not mount.named
    ]
    assert given
    assert [path for path in given if not (ROOT / path).is_file()] == []


def test_every_volume_that_is_named_is_declared() -> None:
    for name in (DEPLOYED, FIRST_TRY):
        file = read(name)
        named = {
            mount.source
            for service in file["services"].values()
            for mount in mounts(service)
            if mount.named
        }
        assert named == set(file["volumes"])


def test_both_files_give_services_alike(files: dict[str, Services]) -> None:
    """What is alike in the two stands in a table of its own in each; they may not drift apart."""
    first, second = read(DEPLOYED)["x-fedsim"], read(FIRST_TRY)["x-fedsim"]
    assert {key for key in first.keys() & second.keys() if first[key] != second[key]} == set()
    assert first.keys() - second.keys() == {"user"}


# The image.


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile, its continuations joined."""

    name: str
    value: str


Image = list[Instruction]


def instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, value = line.strip().partition(" ")
            yield Instruction(name.upper(), " ".join(value.split()))


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SECRET = re.compile(r"passw|secret|token|credential|api_?key|private", re.IGNORECASE)


def values(image: Image, *names: str) -> list[str]:
    return [line.value for line in image if line.name in names]


def last_stage(image: Image) -> Image:
    start = max(n for n, line in enumerate(image) if line.name == "FROM")
    return image[start:]


def installs_wheels_alone(image: Image) -> bool:
    """What comes from an index is not built here: its setup.py would run. fedsim itself is."""
    commands = [command.split() for run in values(image, "RUN") for command in run.split(" && ")]
    installs = [words for words in commands if re.search(r"\bpip3? install\b", " ".join(words))]
    return bool(installs) and all(
        words[words.index("--only-binary") + 1] == ":all:"
        if "--only-binary" in words
        else "--no-deps" in words and words[-1] == "."
        for words in installs
    )


def leaves_no_lists(image: Image) -> bool:
    return all(
        "apt-get" not in run or "rm -rf /var/lib/apt/lists" in run for run in values(image, "RUN")
    )


def labels(image: Image) -> dict[str, str]:
    return dict(
        pair.partition("=")[::2]
        for line in values(image, "LABEL")
        for pair in shlex.split(line)  # type: ignore[misc]
    )


def is_described(image: Image) -> bool:
    wanted = {"title", "description", "licenses", "version"}
    found = labels(last_stage(image))
    return all(found.get(f"org.opencontainers.image.{name}") for name in wanted)


def is_checked(image: Image) -> bool:
    checks = values(last_stage(image), "HEALTHCHECK")
    return len(checks) == 1 and "NONE" not in checks[0] and "fedsim.deployment.health" in checks[0]


IMAGE_RULES: dict[str, Callable[[Image], bool]] = {
    "it ends as a user that is not the superuser, by number": lambda image: (
        values(last_stage(image), "USER")[-1:] == ["10001"]
    ),
    "each stage is from BASE": lambda image: (
        all(value.split()[0] == "${BASE}" for value in values(image, "FROM"))
        and any(value.startswith("BASE=") for value in values(image, "ARG"))
    ),
    "its health is checked": is_checked,
    "it is described": is_described,
    "nothing is added from elsewhere": lambda image: (
        not values(image, "ADD")
        and not any(re.search(r"\b(curl|wget)\b", run) for run in values(image, "RUN"))
    ),
    "no secrets": lambda image: (
        not any(SECRET.search(value) for value in values(image, "ARG", "ENV"))
    ),
    "wheels alone": installs_wheels_alone,
    "no lists of packages are left": leaves_no_lists,
    "nothing is a shell's to take apart": lambda image: all(
        value.startswith("[") for value in values(image, "CMD", "ENTRYPOINT")
    ),
    "nothing is set to root's rights": lambda image: (
        not any(
            re.search(r"\bsudo\b|chmod (-R )?(0?777|\S*s\b)|[ugo]\+s", r)
            for r in values(image, "RUN")
        )
    ),
}

# For each rule, lines at the end of the Dockerfile that break it.
IMAGE_BREAKS = [
    ("it ends as a user that is not the superuser, by number", "USER root"),
    ("it ends as a user that is not the superuser, by number", "USER fedsim"),
    ("it ends as a user that is not the superuser, by number", "FROM ${BASE}"),
    ("each stage is from BASE", "FROM python:3.11"),
    ("its health is checked", "HEALTHCHECK NONE"),
    ("its health is checked", "FROM ${BASE}"),
    ("it is described", "FROM ${BASE}"),
    ("nothing is added from elsewhere", "ADD https://example.org/torch.whl /wheels/"),
    ("nothing is added from elsewhere", "RUN curl -sSL https://example.org/install | sh"),
    ("no secrets", "ARG INDEX_PASSWORD"),
    ("no secrets", "ENV HF_TOKEN=abc"),
    ("wheels alone", "RUN pip install requests"),
    ("wheels alone", "RUN /venv/bin/pip install --only-binary numpy requests"),
    ("wheels alone", "RUN /venv/bin/pip install --no-deps requests"),
    ("no lists of packages are left", "RUN apt-get update && apt-get install -y gcc"),
    ("nothing is a shell's to take apart", "CMD fedsim --help"),
    ("nothing is set to root's rights", "RUN chmod 777 /state"),
]


@pytest.mark.parametrize("rule", IMAGE_RULES)
def test_the_image_keeps_the_rule(rule: str) -> None:
    assert IMAGE_RULES[rule](list(instructions(DOCKERFILE)))


@pytest.mark.parametrize(("rule", "line"), IMAGE_BREAKS)
def test_an_image_that_breaks_the_rule_is_found(rule: str, line: str) -> None:
    assert not IMAGE_RULES[rule](list(instructions(f"{DOCKERFILE}\n{line}\n")))


def test_every_rule_of_the_image_is_broken_once() -> None:
    assert {rule for rule, _ in IMAGE_BREAKS} == set(IMAGE_RULES)


def test_the_user_is_the_same_everywhere() -> None:
    """Of the image, of the files of keys, and of the services."""
    image = list(instructions(DOCKERFILE))
    assert f"--uid {folder.IMAGE_USER} " in " ".join(values(image, "RUN"))
    assert values(last_stage(image), "USER") == [str(folder.IMAGE_USER)]
    assert default(read(DEPLOYED)["x-fedsim"]["user"]) == f"{folder.IMAGE_USER}:{folder.IMAGE_USER}"


def test_the_image_is_of_this_version_and_license() -> None:
    image = list(instructions(DOCKERFILE))
    assert f"VERSION={fedsim.__version__}" in values(last_stage(image), "ARG")
    assert labels(image)["org.opencontainers.image.version"] == "${VERSION}"
    assert labels(image)["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_nothing_is_installed_or_told_where_the_image_runs() -> None:
    """Flower would install an app's dependencies, look for updates, and count its uses."""
    env = dict(
        pair.partition("=")[::2]
        for line in values(last_stage(list(instructions(DOCKERFILE))), "ENV")
        for pair in shlex.split(line)  # type: ignore[misc]
    )
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["HOME"].startswith("/tmp")
    assert env["FLWR_HOME"].startswith("/tmp")  # all else is read-only


def ignored(path: str, patterns: list[str]) -> bool:
    """Say whether a path of the checkout is left out of the build, by the last line about it."""
    out = False
    for pattern in patterns:
        keep, glob = pattern.startswith("!"), pattern.lstrip("!")
        parents = [path, *(str(parent) for parent in Path(path).parents)]
        if any(fnmatch(name, glob) for name in parents if name != "."):
            out = not keep
    return out


def travelling() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "path",
    [
        *("deployment/ca/ca.key", "deployment/nodes/node-0/key", "clinic/tls/server.key"),
        *(".git/config", ".env", ".venv/bin/python", "runs/x/ledger.sqlite", "split/client-000"),
    ],
)
def test_keys_and_data_beside_the_source_never_reach_the_engine(path: str) -> None:
    assert travelling()[0] == "*"
    assert ignored(path, travelling())


def test_all_that_the_image_is_built_from_reaches_the_engine() -> None:
    copied = [
        word
        for line in values(list(instructions(DOCKERFILE)), "COPY")
        if not line.startswith("--from")
        for word in line.split()[:-1]
        if "$" not in word
    ]
    assert len(copied) > 8
    assert [path for path in copied if ignored(path, travelling())] == []
    assert [path for path in copied if not (ROOT / path).exists()] == []


# What is relied on inside Flower, which may change with any of its versions.


def supernode() -> Any:
    return importlib.import_module("flwr.supernode.start_client_internal")


def uses_of_time(source: str) -> tuple[list[str], list[float]]:
    """Return what is taken from the module ``time`` by a source, and how long it sleeps."""
    taken: list[str] = []
    slept: list[float] = []
    for found in ast.walk(ast.parse(source)):
        if isinstance(found, ast.ImportFrom) and found.module == "time":
            taken += [alias.name for alias in found.names]
        if isinstance(found, ast.Attribute) and ast.unparse(found.value) == "time":
            taken.append(found.attr)
        if isinstance(found, ast.Call) and ast.unparse(found.func) == "time.sleep":
            slept.append(ast.literal_eval(found.args[0]))
    return taken, sorted(slept)


def test_a_supernode_uses_the_clock_to_sleep_and_for_nothing_else() -> None:
    """``Patience`` stands for the module there, and tells an idle node from a busy one by how long
    it wants to sleep."""
    taken, slept = uses_of_time(inspect.getsource(supernode()))
    assert taken == ["sleep"] * 3
    assert slept == [0.5, 0.5, 3]
    assert {*taken} <= set(dir(node.Patience))


def test_another_use_of_the_clock_would_be_found() -> None:
    assert uses_of_time("import time\ntime.monotonic()\ntime.sleep(2)") == (
        ["monotonic", "sleep"],
        [2],
    )
    assert uses_of_time("from time import sleep")[0] == ["sleep"]


def test_a_supernode_sleeps_3_s_only_where_there_was_no_message() -> None:
    source = ast.unparse(ast.parse(inspect.getsource(supernode().start_client_internal)))
    assert re.search(r"if run_id is None:\n\s+time\.sleep\(3\)\n\s+continue", source)
    waiting = inspect.getsource(supernode()._push_messages)
    assert re.search(r"while not \(reply_messages := .*\n\s+time\.sleep\(0\.5\)", waiting)


def test_what_is_put_in_place_of_the_clock_is_found_there() -> None:
    """The package gives the module by that name, not the function of the same name in it."""
    import time

    from flwr.supernode import start_client_internal

    assert inspect.ismodule(start_client_internal)
    assert start_client_internal.time is time  # type: ignore[attr-defined]


def test_the_api_between_a_nodes_processes_listens_on_loopback() -> None:
    """It is not authenticated."""
    asked = parsed(parsers()["supernode"], ["--isolation", "process", "--port", "9094"])
    assert (asked.host, asked.port, asked.isolation) == ("127.0.0.1", node.RUNTIME_PORT, "process")
    assert asked.runtime_dependency_install is False


def test_a_node_keeps_no_option_from_flower() -> None:
    """An abbreviation of one of the node's own would be taken for it."""
    own = {word for action in node.arguments()._actions for word in action.option_strings}
    theirs = {word for action in parsers()["supernode"]._actions for word in action.option_strings}
    assert own & theirs == {"-h", "--help"}
    assert [(a, b) for a in theirs for b in own if a != b and b.startswith(a)] == []


def test_the_executor_is_what_flower_takes_for_one() -> None:
    declared = inspect.getmembers(Executor, inspect.isfunction)
    methods = [name for name, _ in declared if not name.startswith("_")]
    assert len(methods) == 5
    for name in methods:
        theirs = inspect.signature(getattr(Executor, name)).parameters
        ours = inspect.signature(getattr(ForkingExecutor, name)).parameters
        assert list(ours.values()) == list(theirs.values()), name


def test_flower_takes_what_it_is_called_with() -> None:
    from flwr.supercore.exit import add_exit_handler
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.superexec.plugin import AutoExecPlugin
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    inspect.signature(add_exit_handler).bind(print)
    inspect.signature(AutoExecPlugin).bind("127.0.0.1:9094", True, None, False, executor=None)
    inspect.signature(AutoExecPlugin.launch_task).bind(None, token="t", task=None)
    inspect.signature(RuntimeHttpClient.from_server_address).bind(
        server_address="127.0.0.1:9094",
        insecure=True,
        root_certificates=None,
        interceptors=[],
        retry_invoker=None,
    )
    inspect.signature(run_clientapp).bind(
        runtime_api_address="127.0.0.1:9094",
        token="t",
        insecure=True,
        certificates=None,
        parent_pid=1,
        runtime_dependency_install=False,
    )
