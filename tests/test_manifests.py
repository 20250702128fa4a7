"""What docs/deployment.md hands out: Kubernetes, systemd, and the commands in the text."""

from __future__ import annotations

import argparse
import copy
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from configparser import RawConfigParser
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import kubernetes_validate
import pytest
import typer
import yaml
from flwr.supercore.exit import ExitCode

import fedsim
from fedsim.cli.main import app as command_line
from fedsim.deployment import gate, node

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "deployment"
TEXTS = (ROOT / "docs" / "deployment.md", ROOT / "docs" / "security.md")
UNITS = sorted(FOLDER.glob("*.service"))

Manifest = dict[str, Any]

# Commands, wherever they stand: read as those who run them read them.


@lru_cache
def parsers() -> Mapping[str, argparse.ArgumentParser]:
    from flwr.supercore.cli.flower_superexec import _parse_args
    from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    return {
        "flower-superlink": _parse_args_run_superlink(),
        "flower-superexec": _parse_args(),
        "flower-supernode": _parse_args_run_supernode(),
    }


def read_command(words: list[str]) -> argparse.Namespace:
    """Return what a command is taken for; a word that its program does not know ends the test."""
    program, rest = Path(words[0]).name, words[1:]
    if rest[:2] == ["-m", "fedsim.deployment.gate"]:
        return read_gate(rest[2:])
    if program == "python":
        assert rest[:2] == ["-m", "fedsim.deployment.node"]
        own, others = node.arguments().parse_known_args(rest[2:])
        return argparse.Namespace(
            **{**vars(parsers()["flower-supernode"].parse_args(others)), **vars(own)}
        )
    return parsers()[program].parse_args(rest)


def read_gate(words: list[str]) -> argparse.Namespace:
    """Return what the gate would serve with, and as whom it would believe the SuperLink."""
    with (
        patch.object(sys, "argv", ["gate", *words]),
        patch.object(gate, "make_gate") as made,
        patch("uvicorn.run") as run,
    ):
        gate.main()
    (upstream, authority), served = made.call_args.args, run.call_args.kwargs
    files = {authority, served["ssl_certfile"], served["ssl_keyfile"]}
    insecure = None in files or not upstream.startswith("https://")
    return argparse.Namespace(upstream=upstream, insecure=insecure, **served)


# Kubernetes.


@lru_cache
def loaded() -> tuple[Manifest, ...]:
    return tuple(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))


def manifests() -> list[Manifest]:
    return copy.deepcopy(list(loaded()))


def of_kind(kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests() if m["kind"] == kind}


def pods() -> dict[str, Manifest]:
    """Return the pods' specifications, by what makes them."""
    workloads = {**of_kind("Deployment"), **of_kind("StatefulSet")}
    return {name: workload["spec"]["template"]["spec"] for name, workload in workloads.items()}


def containers() -> dict[str, tuple[Manifest, Manifest]]:
    """Return each container with its pod."""
    return {c["name"]: (c, pod) for pod in pods().values() for c in pod["containers"]}


OURS = ("superlink", "superexec", "gate", "node")
OLDEST = "1.28"  # the first that labels a pod of a StatefulSet with its ordinal


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_manifests_are_what_kubernetes_takes(version: str) -> None:
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    manifest = of_kind("Deployment")["superlink"]
    manifest["spec"]["template"]["spec"]["automountServiceAccountTokens"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, OLDEST, strict=True)


def test_everything_is_in_one_namespace_of_restricted_pods() -> None:
    (namespace,) = of_kind("Namespace").values()
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    others = [m["metadata"].get("namespace") for m in manifests() if m["kind"] != "Namespace"]
    assert set(others) == {namespace["metadata"]["name"]}


def is_no_superuser(container: Manifest, pod: Manifest) -> bool:
    user = container["securityContext"].get("runAsUser", pod["securityContext"]["runAsUser"])
    return bool(pod["securityContext"]["runAsNonRoot"] is True and user > 0)


def is_limited(container: Manifest, pod: Manifest) -> bool:
    resources = container["resources"]
    return {"cpu", "memory"} == set(resources["limits"]) == set(resources["requests"])


def has_named_volumes(container: Manifest, pod: Manifest) -> bool:
    there = {volume["name"] for volume in pod["volumes"]}
    return {mount["name"] for mount in container["volumeMounts"]} <= there


def reads_keys(container: Manifest, pod: Manifest) -> bool:
    """What is written is a claim or a directory of the pod; all else is read-only, and private."""
    writable = {v["name"] for v in pod["volumes"] if {"emptyDir", "persistentVolumeClaim"} & set(v)}
    modes = [
        volume[kind]["defaultMode"]
        for volume in pod["volumes"]
        for kind in ("secret", "projected")
        if kind in volume
    ]
    return (
        bool(modes)
        and all(mode & 0o337 == 0 for mode in modes)
        and all(
            mount["name"] in writable or mount.get("readOnly") is True
            for mount in container["volumeMounts"]
        )
    )


def is_asked_whether_it_is_well(container: Manifest, pod: Manifest) -> bool:
    probes = [container.get(f"{kind}Probe") for kind in ("startup", "liveness")]
    asked = [probe["exec"]["command"] for probe in probes if probe and "exec" in probe]
    if container["name"] in ("superlink", "node"):
        return asked == [["python", "-I", "-m", "fedsim.deployment.health"]] * 2
    if container["name"] == "gate":  # it is not ended because the SuperLink is away
        return not asked and "tcpSocket" in container["livenessProbe"]
    return bool(container["name"] == "superexec")


RULES: dict[str, Callable[[Manifest, Manifest], bool]] = {
    "the superuser is nobody": is_no_superuser,
    "the image is read-only": lambda c, _: c["securityContext"]["readOnlyRootFilesystem"] is True,
    "no capabilities": lambda c, _: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "no new privileges": lambda c, _: (
        c["securityContext"]["allowPrivilegeEscalation"] is False
        and not c["securityContext"].get("privileged")
    ),
    "the runtime's system calls": lambda _, p: (
        p["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    ),
    "namespaces of its own": lambda _, p: not {"hostNetwork", "hostPID", "hostIPC"} & set(p),
    "nothing of the machine": lambda _, p: not any("hostPath" in v for v in p["volumes"]),
    "no account at the cluster": lambda _, p: p["automountServiceAccountToken"] is False,
    "no other service's addresses": lambda _, p: p["enableServiceLinks"] is False,
    "processor and memory are limited": is_limited,
    "its volumes are there": has_named_volumes,
    "it reads keys and writes its own": reads_keys,
    "it is asked whether it is well": is_asked_whether_it_is_well,
}

# For each rule, what a container, and its pod, would have to be given to break it.
BREAKS: list[tuple[str, Manifest, Manifest]] = [
    ("the superuser is nobody", {"securityContext": {"runAsUser": 0}}, {}),
    ("the superuser is nobody", {}, {"securityContext": {"runAsNonRoot": False}}),
    ("the image is read-only", {"securityContext": {"readOnlyRootFilesystem": False}}, {}),
    ("no capabilities", {"securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}, {}),
    ("no capabilities", {"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}, {}),
    ("no new privileges", {"securityContext": {"allowPrivilegeEscalation": True}}, {}),
    ("no new privileges", {"securityContext": {"privileged": True}}, {}),
    ("the runtime's system calls", {}, {"securityContext": {"seccompProfile": {"type": "X"}}}),
    ("namespaces of its own", {}, {"hostNetwork": True}),
    ("nothing of the machine", {}, {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}),
    ("no account at the cluster", {}, {"automountServiceAccountToken": True}),
    ("no other service's addresses", {}, {"enableServiceLinks": True}),
    ("processor and memory are limited", {"resources": {"limits": {"gpu": 1}}}, {}),
    ("its volumes are there", {"volumeMounts": [{"name": "x"}]}, {}),
    ("it reads keys and writes its own", {"volumeMounts": [{"name": "keys"}]}, {}),
    ("it reads keys and writes its own", {}, {"volumes": [{"secret": {"defaultMode": 0o444}}]}),
    ("it is asked whether it is well", {"livenessProbe": None}, {}),
]


def changed(original: Manifest, change: Manifest) -> Manifest:
    """Return a copy with a change laid over it; what is a list there is replaced."""
    result = copy.deepcopy(original)
    for key, value in change.items():
        inside = result.get(key)
        both = isinstance(inside, dict) and isinstance(value, dict)
        result[key] = changed(inside, value) if both else value
    return result


@pytest.mark.parametrize("rule", RULES)
def test_every_container_keeps_the_rule(rule: str) -> None:
    assert set(containers()) == set(OURS)
    broken = [name for name, (c, pod) in containers().items() if not RULES[rule](c, pod)]
    assert broken == []


@pytest.mark.parametrize(("rule", "container", "pod"), BREAKS)
def test_a_container_that_breaks_the_rule_is_found(
    rule: str, container: Manifest, pod: Manifest
) -> None:
    good = containers()["superlink"]
    assert RULES[rule](*good)
    for volume in (pod := copy.deepcopy(pod)).get("volumes", []):
        volume.setdefault("name", "x")
    assert not RULES[rule](changed(good[0], container), changed(good[1], pod))


def test_every_rule_is_broken_once() -> None:
    assert {rule for rule, _, _ in BREAKS} == set(RULES)


def test_no_key_is_in_the_file() -> None:
    assert not of_kind("Secret")
    assert "BEGIN" not in (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")


def test_the_text_makes_each_secret() -> None:
    asked = {
        source["secret"].get("secretName") or source["secret"]["name"]
        for pod in pods().values()
        for volume in pod["volumes"]
        for source in (volume, *volume.get("projected", {}).get("sources", []))
        if "secret" in source
    }
    made = re.findall(r"create secret generic (\S+)", TEXTS[0].read_text(encoding="utf-8"))
    assert asked == {"superlink", "superexec", "gate", "node-0", "node-1", "node-2"}
    assert set(made) == {"superlink", "superexec", "gate", "node-$k"}


def test_our_images_are_of_this_version() -> None:
    images = {container["image"] for container, _ in containers().values()}
    assert images == {f"fedsim:{fedsim.__version__}"}


@pytest.mark.parametrize("name", OURS)
def test_a_container_s_command_is_one_and_reads_what_is_mounted(name: str) -> None:
    container, _ = containers()[name]
    words = [word.replace("$(PARTITION)", "2") for word in container["command"]]
    options = read_command(words)
    assert options.insecure is False
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    paths = re.findall(r"=(/[a-z]+)/", " ".join(words))
    assert paths
    assert set(paths) <= mounts
    if name == "node":
        assert (options.partition_id, options.partitions) == (2, 3)
        assert options.auth_supernode_private_key == "/node/key"
    elif name != "gate":
        assert options.superexec_auth_secret_file == "/tls/superexec.secret"


def test_servers_ask_for_keys_and_listen_where_they_are_called() -> None:
    superlink = read_command(containers()["superlink"][0]["command"])
    assert superlink.enable_supernode_auth is True
    assert (superlink.host, superlink.port, superlink.isolation) == ("0.0.0.0", 8000, "process")
    gate = read_command(containers()["gate"][0]["command"])
    assert (gate.host, gate.port, gate.upstream) == ("0.0.0.0", 8000, "https://superlink:8000")
    ports = {
        name: [(port["name"], port["port"]) for port in service["spec"].get("ports", [])]
        for name, service in of_kind("Service").items()
    }
    assert ports == {"superlink": [("all", 8000)], "gate": [("fleet", 8000)], "node": []}
    called = [word for name in ("superexec", "node") for word in containers()[name][0]["command"]]
    assert "--runtime-api-address=superlink:8000" in called
    assert "--superlink=gate:8000" in called


def test_a_service_s_pods_are_there_and_open_that_port() -> None:
    for name, service in of_kind("Service").items():
        container, _ = containers()[name]
        opened = {port["name"] for port in container.get("ports", [])}
        assert service["spec"]["selector"] == {"app": name}
        assert {port["targetPort"] for port in service["spec"].get("ports", [])} == opened


def test_a_node_s_ordinal_says_who_it_is_and_which_key_it_sees() -> None:
    workload = of_kind("StatefulSet")["node"]
    container, pod = containers()["node"]
    replicas = workload["spec"]["replicas"]
    assert f"--partitions={replicas}" in container["command"]
    fields = {
        variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"]
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert fields == {
        "PARTITION": "metadata.labels['apps.kubernetes.io/pod-index']",
        "NODE": "metadata.name",
    }
    (keys,) = [m for m in container["volumeMounts"] if m["name"] == "keys"]
    assert keys["subPathExpr"] == "$(NODE)"
    sources = next(v for v in pod["volumes"] if v["name"] == "keys")["projected"]["sources"]
    assert [source["secret"]["name"] for source in sources] == [
        f"node-{k}" for k in range(replicas)
    ]
    for source in sources:
        own = source["secret"]["name"]
        files = {item["key"]: item["path"] for item in source["secret"]["items"]}
        assert files == {"key": f"{own}/key", "ca.crt": f"{own}/ca.crt"}


def reached(policies: Mapping[str, Manifest], who: str, whom: str) -> set[int]:
    """Return the ports on which pods reach others: where both the one and the other allow it."""

    def allowed(way: str, end: str, subject: str, other: str) -> set[int]:
        return {
            port["port"]
            for policy in policies.values()
            if policy["spec"]["podSelector"].get("matchLabels", {"app": subject})["app"] == subject
            for rule in policy["spec"].get(way, [])
            for peer in rule[end]
            if "namespaceSelector" not in peer
            and peer["podSelector"]["matchLabels"]["app"] == other
            for port in rule["ports"]
        }

    return allowed("egress", "to", who, whom) & allowed("ingress", "from", whom, who)


def test_nodes_reach_the_gate_and_nobody_else() -> None:
    policies = of_kind("NetworkPolicy")
    assert policies["nobody"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    found = {(a, b): reached(policies, a, b) for a in OURS for b in OURS}
    assert {pair: ports for pair, ports in found.items() if ports} == {
        ("node", "gate"): {8000},
        ("gate", "superlink"): {8000},
        ("superexec", "superlink"): {8000},
    }
    outside = [
        (peer, {port["port"] for port in rule["ports"]})
        for policy in policies.values()
        for rule in (*policy["spec"].get("egress", []), *policy["spec"].get("ingress", []))
        for peer in rule.get("to", rule.get("from"))
        if "podSelector" not in peer or "namespaceSelector" in peer
    ]
    assert [(p["podSelector"]["matchLabels"], ports) for p, ports in outside] == [
        ({"k8s-app": "kube-dns"}, {53})
    ]


# systemd.


def text_of(path: Path) -> str:
    """Return a unit with its long lines joined."""
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def unit(path: Path) -> RawConfigParser:
    """Read a unit; of a key that stands there several times, the last."""
    parser = RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text_of(path))
    return parser


def credentials(path: Path) -> set[str]:
    return set(re.findall(r"^LoadCredential=([\w.]+):/etc/fedsim/", text_of(path), re.MULTILINE))


HARDENED = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "MemorySwapMax": "0",
    "TasksMax": "512",
}


def test_there_is_a_unit_for_each_service() -> None:
    assert [path.stem for path in UNITS] == [f"fedsim-{name}" for name in sorted(OURS)]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_may_do_little(path: Path) -> None:
    service = unit(path)["Service"]
    assert {key: service.get(key) for key in HARDENED} == HARDENED
    assert service["Restart"] == "always"
    assert "User" not in service
    assert re.fullmatch(r"\d+[GM]", service["MemoryMax"])
    assert re.fullmatch(r"\d+%", service["CPUQuota"])


def test_units_are_hardened_alike() -> None:
    """What is alike stands in each; it may not drift apart."""
    start, end = "# What it may do", "SystemCallErrorNumber"
    blocks = {re.search(f"{start}.*?{end}", text_of(path), re.DOTALL).group() for path in UNITS}  # type: ignore[union-attr]
    assert len(blocks) == 1


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_s_command_is_one_and_asks_for_its_credentials(path: Path) -> None:
    command = unit(path)["Service"]["ExecStart"]
    words = [re.sub(r"\$\{\w+\}", "1", word) for word in shlex.split(command)]
    assert words[0].startswith("/opt/fedsim/bin/")
    options = read_command(words)
    assert options.insecure is False
    assert set(re.findall(r"%d/([\w.]+)", command)) == credentials(path)


def test_what_a_node_s_unit_is_told_is_said_at_its_top() -> None:
    (path,) = (path for path in UNITS if path.stem == "fedsim-node")
    text = path.read_text(encoding="utf-8")
    told = set(re.findall(r"^#   (\w+)=", text, re.MULTILINE))
    assert told == set(re.findall(r"\$\{(\w+)\}", text))


def test_the_superexec_finds_the_program_that_it_starts() -> None:
    text = text_of(FOLDER / "fedsim-superexec.service")
    assert "Environment=PATH=/opt/fedsim/bin:" in text


def test_the_server_s_units_listen_on_the_loopback_and_the_gate_to_nodes() -> None:
    superlink, superexec, gate = (
        read_command(shlex.split(unit(FOLDER / f"fedsim-{name}.service")["Service"]["ExecStart"]))
        for name in ("superlink", "superexec", "gate")
    )
    assert superlink.host == "127.0.0.1"
    assert superexec.runtime_api_address == f"127.0.0.1:{superlink.port}"
    assert gate.upstream == f"https://127.0.0.1:{superlink.port}"
    assert (gate.host, gate.port) == ("0.0.0.0", 8443)
    assert superlink.enable_supernode_auth is True


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in UNITS]
    for path, copied in zip(UNITS, copies, strict=True):
        text = re.sub(r"/opt/fedsim/bin/\S+(?= )", "/bin/true", path.read_text(encoding="utf-8"))
        copied.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, copies)], capture_output=True, text=True, timeout=60
    )
    # It looks at the machine's own units, too.
    about = [line for line in done.stderr.splitlines() if "fedsim-" in line]
    assert (done.returncode, about) == (0, [])


# The gate.


def routes() -> Iterator[tuple[str, set[str]]]:
    """Yield the paths on Flower's one port, and how each is asked."""
    from flwr.supercore.routers import health
    from flwr.supercore.routers.runtime.router import router as runtime
    from flwr.superlink.routers.control import router as control
    from flwr.superlink.routers.fleet.router import router as fleet

    for router in (control, fleet, runtime, health.router):
        yield from ((route.path, route.methods) for route in router.routes)  # type: ignore[attr-defined]


def test_the_gate_knows_flower_s_paths() -> None:
    methods = dict(routes())
    paths = set(methods)
    let = {path for path in paths if gate.OPEN.fullmatch(path)}
    assert let == {path for path in paths if path.startswith("/v1/fleet/")} | {"/health"}
    assert len(let) > 10
    assert set().union(*(methods[path] for path in let)) - {"HEAD"} <= set(gate.METHODS)
    assert {path.split("/")[2] for path in paths - let} == {"control", "runtime"}


# The text.


def commands() -> Iterator[list[str]]:
    """Yield the commands in the text's blocks."""
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("fedsim ", "docker run ")):
                    yield shlex.split(line, comments=True)


def mentioned() -> Iterator[list[str]]:
    """Yield what is called in the lines between; such a mention may leave out what is required."""
    for path in TEXTS:
        text = " ".join(path.read_text(encoding="utf-8").split())
        yield from (shlex.split(line) for line in re.findall(r"`(fedsim [^`]+)`", text))


def make_sense_of(words: list[str]) -> None:
    """Read a command of fedsim as typer does, without running it.

    Raises:
        click.UsageError: what is wrong with it.
    """
    command = typer.main.get_command(command_line)
    rest = words[1:]
    if rest == ["--version"]:
        return
    if rest[0] in ("deploy", "data"):
        command = command.commands[rest.pop(0)]  # type: ignore[attr-defined]
    command.commands[rest[0]].make_context(rest[0], rest[1:])  # type: ignore[attr-defined]


def test_every_fedsim_command_in_the_text_is_one() -> None:
    called = [words for words in commands() if words[0] == "fedsim"]
    assert len(called) > 10
    for words in called:
        make_sense_of(words)
    for words in mentioned():
        with suppress(click.MissingParameter):
            make_sense_of(["4711" if word == "RUN" else word for word in words])


def test_a_command_that_is_none_is_found() -> None:
    for text in ("fedsim deploy up deployment", "fedsim deploy init --node 3", "fedsim data x"):
        with pytest.raises((click.UsageError, KeyError)):
            make_sense_of(shlex.split(text))


def test_the_node_that_is_run_elsewhere_is_as_hardened_as_compose_s() -> None:
    (words,) = (words for words in commands() if "fedsim.deployment.node" in words)
    where = words.index("python")
    options = read_command(words[where:])
    assert (options.partition_id, options.partitions, options.insecure) == (1, 3, False)
    pattern = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["supernode"]
    docker = " ".join(words[:where])
    for asked in (
        *("--init", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges"),
        f"--restart {pattern['restart']}",
        f"--tmpfs {pattern['tmpfs'][0]}",
        f"--pids-limit {pattern['pids_limit']}",
        f"--cpus {pattern['cpus']:g}",
        f"--memory {pattern['mem_limit']}",
        ":/node:ro",
        ":/data:ro",
    ):
        assert asked in docker


def test_flower_s_exit_codes_are_those_of_the_text() -> None:
    text = TEXTS[0].read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"Exit Code: (\d+)", text)}
    assert codes <= {value for value in vars(ExitCode).values() if isinstance(value, int)}
    assert codes == {104, 105, 302, 303, 304, 305, 401, 604, 606}
    assert ExitCode.SUPERNODE_CONNECTION_ERROR == 305


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        to = path.parent / name if name else path
        assert to.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", to.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, target
