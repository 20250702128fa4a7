"""A deployment without containers: keys, plans, claims, bundles, processes, and what is told."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import ipaddress
import itertools
import logging
import math
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import (
    DNSName,
    IPAddress,
    PolicyBuilder,
    Store,
    VerificationError,
)
from flwr.common.config import get_fused_config_from_fab, parse_config_args
from flwr.supercore.constant import TaskType
from flwr.supercore.primitives import asymmetric
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.superexec.executor import ExecutionSpec
from flwr.supercore.superexec.executor.types import LaunchResultStatus
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config import Experiment, from_flat
from fedsim.deployment import (
    claims,
    compose,
    folder,
    forking,
    gate,
    health,
    keys,
    node,
    operate,
)
from fedsim.deployment.bundle import make_bundle
from fedsim.deployment.folder import Deployment, NodePlan
from fedsim.deployment.superlink import Node, Standing, key_bytes
from fedsim.errors import ConfigError, EngineError
from fedsim.measure.devices import load_limits
from fedsim.records import RoundRow
from fedsim.telling import read_round, round_line

pytestmark = pytest.mark.timeout(60)  # what should not wait may otherwise wait for ever

ROOT = Path(__file__).parents[1]
HOSTS = ("superlink", "gate", "localhost", "127.0.0.1", "fl.example.org", "::1")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Let everybody read what is made, unless it is made otherwise."""
    before = os.umask(0)
    yield
    assert os.umask(before) == 0, "the process was left with another umask"


# Keys.


@dataclasses.dataclass(frozen=True)
class Keys:
    """An authority, the server's certificate from it, and another authority of the same name."""

    authority: Path
    server: Path
    stranger: Path


@pytest.fixture(scope="module")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    root = tmp_path_factory.mktemp("keys")
    made = Keys(root / "ca", root / "tls", root / "stranger")
    keys.make_authority(made.authority, "clinic")
    keys.make_authority(made.stranger, "clinic")
    keys.make_server_certificate(made.authority, made.server, HOSTS)
    return made


def subject(host: str) -> DNSName | IPAddress:
    try:
        return IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return DNSName(host)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(server: Path, authority: Path, host: str) -> Sequence[x509.Certificate]:
    """Verify a certificate as RFC 5280 and the web's rules have it, and return the chain."""
    store = Store([certificate(authority / "ca.crt")])
    verifier = PolicyBuilder().store(store).build_server_verifier(subject(host))
    return verifier.verify(certificate(server / "server.crt"), [])


def handshake(server: Path, authority: Path, host: str) -> str | None:
    """Let OpenSSL greet itself in memory, as strictly as it can; return the protocol."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(server / "server.crt", server / "server.key")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs.load_verify_locations(authority / "ca.crt")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=host)
    ends = (client, own.wrap_bio(up, down, server_side=True))
    done: set[ssl.SSLObject] = set()
    for end in itertools.islice(itertools.cycle(ends), 8):
        try:
            end.do_handshake()
            done.add(end)
        except ssl.SSLWantReadError:
            pass
    assert done == {*ends}
    return client.version()


@pytest.mark.parametrize("host", HOSTS)
def test_the_servers_certificate_is_good_for_each_of_its_hosts(host: str, made_keys: Keys) -> None:
    chain = verify(made_keys.server, made_keys.authority, host)
    assert chain == [
        certificate(made_keys.server / "server.crt"),
        certificate(made_keys.authority / "ca.crt"),
    ]
    assert handshake(made_keys.server, made_keys.authority, host) == "TLSv1.3"


@pytest.mark.parametrize(
    "host", ["example.org", "a.fl.example.org", "superlink.example.org", "127.0.0.2", "::2"]
)
def test_it_is_good_for_no_other_host(host: str, made_keys: Keys) -> None:
    with pytest.raises(VerificationError):
        verify(made_keys.server, made_keys.authority, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(made_keys.server, made_keys.authority, host)


def test_it_is_good_under_no_other_authority(made_keys: Keys) -> None:
    with pytest.raises(VerificationError):
        verify(made_keys.server, made_keys.stranger, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made_keys.server, made_keys.stranger, "localhost")


def test_the_server_can_sign_for_nobody(made_keys: Keys, tmp_path: Path) -> None:
    """Whoever takes the server's key cannot make another certificate that the nodes trust."""
    shutil.copy(made_keys.server / "server.key", tmp_path / "ca.key")
    shutil.copy(made_keys.server / "server.crt", tmp_path / "ca.crt")
    keys.make_server_certificate(tmp_path, tmp_path / "forged", ["localhost"])
    store = Store([certificate(made_keys.authority / "ca.crt")])
    verifier = PolicyBuilder().store(store).build_server_verifier(DNSName("localhost"))
    between = [certificate(made_keys.server / "server.crt")]
    with pytest.raises(VerificationError):
        verifier.verify(certificate(tmp_path / "forged" / "server.crt"), between)


def test_certificates_last_and_are_valid_at_once(made_keys: Keys) -> None:
    for path, days in (
        (made_keys.authority / "ca.crt", 3650),
        (made_keys.server / "server.crt", 397),
    ):
        found = certificate(path)
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
        assert (end - begin - keys.CLOCK_SKEW).days == days
        assert begin.timestamp() < time.time() - 200  # for a clock that is behind


def test_every_pair_of_keys_is_another(made_keys: Keys, tmp_path: Path) -> None:
    for name in ("a", "b"):
        keys.make_node_key(tmp_path / name)
    files = [
        *(tmp_path / name / "key" for name in ("a", "b")),
        *(made_keys.authority / "ca.key", made_keys.server / "server.key"),
        made_keys.stranger / "ca.key",
    ]
    assert len({path.read_bytes() for path in files}) == len(files)


def test_a_node_key_is_loaded_as_flower_loads_it(tmp_path: Path) -> None:
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    keys.make_node_key(tmp_path)
    found = _try_setup_client_authentication(
        argparse.Namespace(
            auth_supernode_private_key=str(tmp_path / "key"), auth_supernode_public_key=None
        )
    )
    assert found is not None
    private, public = found
    assert isinstance(private.curve, ec.SECP384R1)
    assert asymmetric.uses_nist_ec_curve(public)
    registered = asymmetric.bytes_to_public_key(key_bytes(tmp_path / "key.pub"))
    signature = asymmetric.sign_message(private, b"a message")
    assert asymmetric.verify_signature(registered, b"a message", signature)
    assert not asymmetric.verify_signature(registered, b"another", signature)


def test_all_keys_are_on_the_same_curve(made_keys: Keys) -> None:
    for path in (made_keys.authority / "ca.key", made_keys.server / "server.key"):
        key = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP384R1)


def test_secrets_are_long_and_never_the_same(tmp_path: Path) -> None:
    for name in "ab":
        keys.make_secret(tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in "ab")
    assert len(first) == len(second) == 32
    assert first != second


@pytest.mark.usefixtures("open_umask")
def test_a_private_file_is_never_open_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Looked at when its content is on the disk under another name, and when it is renamed."""
    seen: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def looked_at(file: int) -> None:
        if stat.S_ISREG((found := os.fstat(file)).st_mode):
            seen.append(("synced", stat.S_IMODE(found.st_mode)))
        fsync(file)

    def renamed(source: Path, target: Path) -> None:
        seen.append(("renamed", mode(Path(source))))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", looked_at)
    monkeypatch.setattr(os, "replace", renamed)
    keys.write(tmp_path / "key", b"secret", keys.PRIVATE)
    keys.write(tmp_path / "key", b"another", keys.PRIVATE)
    assert seen == [("synced", 0o600), ("renamed", 0o600)] * 2
    assert (mode(tmp_path / "key"), (tmp_path / "key").read_bytes()) == (0o600, b"another")


@pytest.mark.usefixtures("open_umask")
def test_what_could_not_be_written_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Exception, match="the disk is full"):
        keys.write(tmp_path / "key", b"secret", keys.PRIVATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host",
    [
        *("", "fl example.org", "https://fl.example.org", "fl.example.org:8000", "me@example.org"),
        *("192.168.0.0/24", "münchen.example"),
        *("fl\texample", "fl.example.org\n", "a,b", "a..b", "x" * 254),
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keys.alternative_name(host)
    assert str(caught.value) == f"--host {host!r}: is neither a host's name nor an address"


# Folders.


def split(root: Path, clients: int) -> Path:
    """Make the folders of a split."""
    for part in (*(f"client-{k:03}" for k in range(clients)), "server"):
        (root / part).mkdir(parents=True)
    return root


def create(directory: Path, nodes: int = 2, **options: Any) -> Deployment:
    return folder.create(directory, nodes=nodes, **options)


def refused(directory: Path, nodes: int = 2, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        create(directory, nodes, **options)
    return list(caught.value.problems)


def test_what_was_made_is_read_again(tmp_path: Path) -> None:
    made = create(
        tmp_path / "clinic",
        nodes=3,
        data=split(tmp_path / "parts", 3),
        devices=("phone", "laptop"),
        port=8123,
        hosts=("fl.example.org", "localhost", "::1"),
        publish="0.0.0.0:8443",
    )
    assert folder.load(tmp_path / "clinic") == made
    assert made == Deployment(
        directory=tmp_path / "clinic",
        name=folder.project_name(tmp_path / "clinic"),
        port=8123,
        hosts=("superlink", "gate", "localhost", "127.0.0.1", "fl.example.org", "::1"),
        nodes=tuple(
            NodePlan(
                name=f"node-{k}",
                partition=k,
                device=device,
                data=str(tmp_path / "parts" / f"client-00{k}"),
            )
            for k, device in enumerate(("phone", "laptop", "phone"))
        ),
        server_data=str(tmp_path / "parts" / "server"),
        publish="0.0.0.0:8443",
    )
    assert made.address == "127.0.0.1:8123"
    assert [plan.limits() for plan in made.nodes] == [
        load_limits(name) for name in ("phone", "laptop", "phone")
    ]


def test_a_folder_is_found_from_wherever_it_was_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = create(Path("here"), data=split(tmp_path / "parts", 2).relative_to(tmp_path))
    assert made.directory == tmp_path / "here"
    assert all(Path(plan.data).is_absolute() for plan in made.nodes)
    assert Path(made.server_data).is_absolute()


TEXT = st.text(max_size=20)
PLANS = st.builds(NodePlan, name=TEXT, partition=st.integers(0, 2**40), device=TEXT, data=TEXT)


@given(
    name=TEXT,
    port=st.integers(1, 65535),
    hosts=st.lists(TEXT).map(tuple),
    nodes=st.lists(PLANS, max_size=4).map(tuple),
    server_data=TEXT,
    publish=TEXT,
    revoked=st.lists(TEXT).map(tuple),
)
@settings(deadline=None, max_examples=40)
def test_a_plan_is_kept_as_it_is(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    made = Deployment(directory=tmp_path_factory.getbasetemp(), **values)
    folder.save(made)
    assert folder.load(made.directory) == made


@given(devices=st.lists(st.sampled_from(("phone", "laptop", "raspberry-pi")), max_size=4))
@settings(deadline=None, max_examples=5)
def test_devices_are_dealt_in_turn(
    tmp_path_factory: pytest.TempPathFactory, devices: list[str]
) -> None:
    made = create(tmp_path_factory.mktemp("dealt") / "d", nodes=5, devices=devices)
    dealt = [plan.device for plan in made.nodes]
    assert dealt == (list(itertools.islice(itertools.cycle(devices), 5)) if devices else [""] * 5)


def test_every_problem_is_told_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    occupied = tmp_path / "here"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    assert refused(occupied, 0, port=65536, data=tmp_path / "none") == [
        "--nodes 0: a federation has at least one",
        "--port 65536: must be between 1 and 65535",
        f"{occupied} is not empty; name another folder, or use what is there: fedsim deploy up",
        f"--data {tmp_path / 'none'}: holds no folder server; make it: fedsim data split CONFIG "
        f"--out {tmp_path / 'none'}",
    ]
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "notes.txt"]


def test_so_are_the_device_and_the_hosts(tmp_path: Path) -> None:
    problems = refused(tmp_path / "d", 0, devices=("toaster", "phone"), hosts=("a b", "c d"))
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"nodes": -1}, "--nodes -1: a federation has at least one"),
        ({"port": 0}, "--port 0: must be between 1 and 65535"),
        *(
            (
                {"publish": where},
                f"--publish {where!r}: write an address and a port, such as 0.0.0.0:8443",
            )
            for where in ("8443", "0.0.0.0", "fl.example.org:8443", "0.0.0.0:8443:8000")
        ),
        ({"hosts": ("a b",)}, "--host 'a b': is neither a host's name nor an address"),
        (
            {"devices": ("phnoe",)},
            "'phnoe': no such device profile; did you mean 'phone'?, or the path of a .toml file",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "d", **options) == [problem]
    assert not (tmp_path / "d").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("")
    [problem] = refused(tmp_path / "d")
    assert problem.startswith(f"{tmp_path / 'd'} is not empty; name another folder")


def test_a_split_for_others_is_refused(tmp_path: Path) -> None:
    parts = split(tmp_path / "parts", 3)
    assert refused(tmp_path / "d", data=parts) == [
        f"--data {parts}: is split for 3 nodes, --nodes says 2; use one number"
    ]
    (parts / "server").rmdir()
    [problem] = refused(tmp_path / "d", nodes=3, data=parts)
    assert problem.startswith(f"--data {parts}: holds no folder server; make it: ")


def of_their_own(root: Path) -> tuple[Path, Path]:
    """Make two nodes' own data, a folder and a file, each beside its card."""
    for name in ("north", "south"):
        (root / name).mkdir()
        (root / name / "dataset.json").write_text("{}")
    (root / "south" / "patients.csv").write_text("a,b")
    return root / "north", root / "south" / "patients.csv"


def test_nodes_may_have_data_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own, parts = of_their_own(tmp_path), split(tmp_path / "parts", 3)
    monkeypatch.chdir(tmp_path)
    made = create(tmp_path / "d", data=parts, own=[path.relative_to(tmp_path) for path in own])
    assert [plan.data for plan in made.nodes] == [str(path) for path in own]
    assert made.server_data == str(parts / "server")


def test_data_of_their_own_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    own, parts = of_their_own(tmp_path), split(tmp_path / "parts", 3)
    assert refused(tmp_path / "d", own=own) == [
        f"--own {own[0]}: needs --data, for what the server tests on"
    ]
    for path in tmp_path.glob("*th/dataset.json"):
        path.unlink()
    assert refused(tmp_path / "d", nodes=3, data=parts, own=own) == [
        *(
            f"--own {path}: {tmp_path / name / 'dataset.json'} is missing; the server's has what "
            "it is: fedsim data split CONFIG --server-only --out DIR"
            for path, name in zip(own, ("north", "south"), strict=True)
        ),
        "--own is given for 2 nodes, --nodes says 3; use one number",
    ]


def test_a_device_that_says_nothing_of_containers_is_refused(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text("[container]\ncpus = 0\nmemory_bytes = 1e9\n")
    [problem] = refused(tmp_path / "d", devices=(str(profile),))
    assert problem.startswith(f"{profile}: needs a table [container] with cpus and memory_bytes")
    profile.write_text("[container]\ncpus = 0.5\nmemory_bytes = 1e9\n")
    assert create(tmp_path / "d", devices=(str(profile),)).nodes[0].device == str(profile)


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    create(tmp_path / "d")
    assert mode(tmp_path / "d") == 0o700
    assert refused(tmp_path / "d") != []


@pytest.mark.usefixtures("open_umask")
def test_keys_lie_where_their_owner_alone_reads_them(tmp_path: Path) -> None:
    made = create(tmp_path / "d")
    compose.write_files(made)
    found = {
        path.relative_to(made.directory).as_posix(): path for path in made.directory.rglob("*")
    }
    assert {name: oct(mode(path)) for name, path in found.items() if path.is_dir()} == {
        "ca": "0o777",  # by the umask of this test; within a folder that is its owner's alone
        "nodes": "0o777",
        **dict.fromkeys(("tls", "server", "gate", "nodes/node-0", "nodes/node-1"), "0o700"),
    }
    private = {
        *("ca/ca.key", "tls/server.key", "tls/superexec.secret", "server/superexec.secret"),
        *("gate/server.key", "nodes/node-0/key", "nodes/node-1/key"),
    }
    assert {name for name, path in found.items() if mode(path) == 0o600} == private
    public = {
        *("ca/ca.crt", "tls/ca.crt", "tls/server.crt", "server/ca.crt"),
        *("gate/ca.crt", "gate/server.crt"),
        *(f"nodes/node-{k}/{name}" for k in (0, 1) for name in ("ca.crt", "key.pub")),
    }
    plain = {".gitignore", "deployment.toml", "compose.yaml", "compose.env"}
    assert {name for name, path in found.items() if path.is_file()} == private | public | plain
    secret = found["tls/superexec.secret"].read_bytes()
    assert found["server/superexec.secret"].read_bytes() == secret
    for name in public | plain:
        content = found[name].read_bytes()
        assert b"PRIVATE" not in content
        assert secret not in content
    keys_of = {name: found[name].read_bytes() for name in private}
    assert len(set(keys_of.values())) == len(private) - 1  # the secret is two's
    for name in public:
        if name.endswith("ca.crt"):
            assert found[name].read_bytes() == made.authority.read_bytes()


def test_git_sees_none_of_it(tmp_path: Path) -> None:
    if (git := shutil.which("git")) is None:
        pytest.skip("needs git")
    compose.write_files(create(tmp_path / "d"))
    (tmp_path / "seen").write_text("")
    call = [git, "-C", str(tmp_path), "-c", "core.excludesFile="]
    subprocess.run([*call, "init", "--quiet"], check=True, capture_output=True)
    seen = subprocess.check_output([*call, "ls-files", "--others", "--exclude-standard"], text=True)
    assert seen.split() == ["seen"]


def test_keys_that_the_superuser_makes_are_the_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, tuple[int, int]] = {}

    def note(path: Path, user: int, group: int) -> None:
        given[Path(path).relative_to(tmp_path / "d").as_posix()] = (user, group)

    monkeypatch.setattr(os, "chown", note)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    create(tmp_path / "d", nodes=1)
    assert folder.container_user() == "10001:10001"
    assert set(given.values()) == {(10001, 10001)}
    assert {"tls", "tls/server.key", "server/superexec.secret", "nodes/node-0/key"} <= set(given)
    assert not any(name.startswith("ca") for name in given)
    given.clear()
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 567)
    create(tmp_path / "e", nodes=1)
    assert folder.container_user() == "1234:567"
    assert given == {}


@pytest.mark.parametrize(
    ("name", "project"),
    [
        ("deployment", "fedsim-deployment"),
        ("St. Mary's", "fedsim-st-mary-s"),
        ("_x_", "fedsim-x"),
        ("Größe", "fedsim-gr-e"),
        ("...", "fedsim"),
    ],
)
def test_a_project_is_named_after_its_folder(name: str, project: str) -> None:
    named = folder.project_name(Path("/somewhere") / name)
    assert re.fullmatch(project + "-[0-9a-f]{6}", named)
    elsewhere = folder.project_name(Path("/elsewhere") / name)
    assert elsewhere != named, "two folders of one name would be one project"


@pytest.mark.parametrize("sign", list(":$#\"'\\\n"))
def test_a_path_that_compose_reads_otherwise_is_refused(sign: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / f"a{sign}b", 1)
    assert problem.endswith(
        f": Compose reads {sign!r} in a path as something else; choose another place"
    )


@pytest.mark.parametrize(
    "publish", ["8443", "0.0.0.0", "0.0.0.0:", "0.0.0.0:0", "0.0.0.0:65536", "999.9.9.9:1", "a:1"]
)
def test_what_is_no_endpoint_is_refused(publish: str, tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / "d", 1, publish=publish)
    assert problem.startswith(f"--publish {publish!r}: write an address and a port")


@given(name=st.text(min_size=1).filter(lambda text: "/" not in text and "\0" not in text))
@settings(deadline=None)
def test_compose_takes_every_name_of_a_project(name: str) -> None:
    assert re.fullmatch("[a-z0-9][a-z0-9_-]*", folder.project_name(Path("/somewhere") / name))


def test_a_folder_may_have_a_long_name(tmp_path: Path) -> None:
    made = create(tmp_path / ("clinic" * 10), nodes=1)
    assert verify(made.directory / "tls", made.directory / "ca", "localhost")


def test_where_nothing_was_made_it_says_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        folder.load(tmp_path / "none")
    assert str(caught.value) == (
        f"{tmp_path / 'none'} holds no deployment; make one: "
        f"fedsim deploy init {tmp_path / 'none'} --nodes 3"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "format 2; this fedsim reads 1"),
        ({"nodes": None}, "is damaged: 'nodes'"),
        ({"name": None}, "is damaged: 'name'"),
        ({"revoked": None}, "is damaged: 'revoked'"),
        ({"nodes": [{"name": "node-0", "disk": 3}]}, "is damaged: NodePlan.__init__() got an "),
        ({"nodes": ["node-0"]}, "is damaged: "),
        ({"hosts": 3}, "is damaged: "),
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    import tomli_w

    path = create(tmp_path / "d", nodes=1).directory / "deployment.toml"
    content = tomllib.loads(path.read_text()) | change
    path.write_text(tomli_w.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(ConfigError) as caught:
        folder.load(tmp_path / "d")
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_a_torn_plan_is_refused(tmp_path: Path) -> None:
    path = create(tmp_path / "d", nodes=1).directory / "deployment.toml"
    path.write_text("format = 1\nnodes = [")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: not valid TOML")):
        folder.load(tmp_path / "d")


def plan(directory: Path, *names: str, **others: Any) -> Deployment:
    """Return a deployment that was never made."""
    nodes = tuple(NodePlan(name=name, partition=k) for k, name in enumerate(names))
    values = {"name": "fedsim-d", "port": 8000, "hosts": HOSTS, "nodes": nodes} | others
    return Deployment(directory=directory, **values)


def test_who_is_shut_out_is_no_node_any_more(tmp_path: Path) -> None:
    made = plan(tmp_path, "node-0", "node-1", "node-2", revoked=("node-1",))
    assert [node.name for node in made.active] == ["node-0", "node-2"]
    assert made.node("node-2").partition == 2
    for name in ("node-1", "node-3"):
        with pytest.raises(ConfigError) as caught:
            made.node(name)
        assert str(caught.value) == (f"{name!r}: no such node in {tmp_path}; valid: node-0, node-2")


# Claims.

CLAIM = """
import sys
from pathlib import Path
from fedsim.deployment.claims import claim_partition
print(claim_partition(Path(sys.argv[1]), int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@contextmanager
def claimants(directory: Path, count: int, partitions: int) -> Iterator[list[Any]]:
    """Start processes at once that each claim a partition and then stay."""
    command = [sys.executable, "-c", CLAIM, str(directory), str(partitions)]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.fixture
def let_go() -> Iterator[Callable[[], None]]:
    """Give up what this process claimed in the test, and return a function that does so now."""

    def close() -> None:
        while claims._HELD:
            os.close(claims._HELD.pop())

    yield close
    close()


def test_processes_claim_partitions_of_their_own_until_they_die(
    let_go: Callable[[], None], tmp_path: Path
) -> None:
    with claimants(tmp_path / "claims", 3, partitions=3) as processes:
        claimed = [int(process.stdout.readline()) for process in processes]
        assert sorted(claimed) == [0, 1, 2]
        with pytest.raises(EngineError) as caught:
            claims.claim_partition(tmp_path / "claims", 3)
        assert str(caught.value) == (
            f"all 3 clients are claimed in {tmp_path / 'claims'}; start no more nodes"
        )
        processes[1].send_signal(signal.SIGKILL)
        processes[1].wait()
        assert claims.claim_partition(tmp_path / "claims", 3) == claimed[1]


@pytest.mark.usefixtures("let_go")
def test_the_first_that_is_free_is_claimed_also_by_the_same_process(tmp_path: Path) -> None:
    assert [claims.claim_partition(tmp_path, None) for _ in range(3)] == [0, 1, 2]
    assert claims.claim_partition(tmp_path / "other", None) == 0
    assert {mode(tmp_path / str(k)) for k in range(3)} == {0o600}


def test_a_claim_is_not_handed_on_to_programs(let_go: Callable[[], None], tmp_path: Path) -> None:
    """What a node starts, and may outlive it, does not keep its client."""
    claims.claim_partition(tmp_path, 1)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as outlives:
        let_go()
        assert claims.claim_partition(tmp_path, 1) == 0
        outlives.kill()


# A round in a line.

# Beside what is no number: what four digits can tell, which the largest float is not.
AMOUNTS = st.floats(-1e300, 1e300) | st.sampled_from((math.nan, math.inf, -math.inf))
ROWS = st.builds(
    RoundRow,
    round=st.integers(1, 10**6),
    test_accuracy=st.floats(0, 1),
    test_loss=AMOUNTS,
    clients_trained=st.integers(0, 10**6),
    clients_failed=st.integers(0, 10**6),
    wall_seconds=st.floats(0, 1e7),
) | st.builds(
    RoundRow,
    round=st.integers(1, 10**6),
    clients_trained=st.integers(0, 10**6),
    clients_failed=st.integers(0, 10**6),
)


def near(told: float | None, meant: float | None, **tolerance: float) -> bool:
    if told is None or meant is None or not math.isfinite(meant):
        return repr(told) == repr(meant)
    return math.isclose(told, meant, **tolerance)


@given(row=ROWS, rounds=st.integers(1, 10**6), before=st.text(), after=st.text())
@settings(deadline=None)
def test_a_round_is_read_as_it_was_told(
    row: RoundRow, rounds: int, before: str, after: str
) -> None:
    line = round_line(row, rounds)
    found = read_round(f"{before} {line} {after}")
    assert found is not None
    read, of = found
    assert of == rounds
    for name in ("round", "clients_trained", "clients_failed"):
        assert getattr(read, name) == getattr(row, name)
    assert near(read.test_accuracy, row.test_accuracy, abs_tol=5.1e-5)
    assert near(read.test_loss, row.test_loss, rel_tol=5.1e-4)
    assert near(read.wall_seconds, row.wall_seconds or 0.0, rel_tol=5.1e-3)
    assert round_line(*found) == line


def test_a_round_is_told_in_these_words() -> None:
    row = RoundRow(
        round=3,
        test_accuracy=0.87654,
        test_loss=0.43219,
        clients_trained=9,
        clients_failed=1,
        wall_seconds=1.2345,
    )
    assert round_line(row, 30) == (
        "round 3/30: test accuracy 0.8765, test loss 0.4322, 9 clients trained, 1 failed, 1.23 s"
    )
    blank = RoundRow(round=4, clients_trained=9, clients_failed=0, wall_seconds=0.5)
    assert round_line(blank, 30) == "round 4/30: not evaluated, 9 clients trained, 0 failed, 0.5 s"


@pytest.mark.parametrize(
    ("loss", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_a_loss_that_is_no_number_is_told_as_such(loss: float, word: str) -> None:
    row = RoundRow(round=1, test_accuracy=0.1, test_loss=loss, clients_trained=2, clients_failed=0)
    assert f"test loss {word}, " in round_line(row, 2)
    found = read_round(round_line(row, 2))
    assert found is not None
    assert repr(found[0].test_loss) == repr(loss)


@pytest.mark.parametrize(
    "line",
    [
        *("", "INFO :      Starting logstream", "round 3 of 30", "[RUN 1, ROUND 3]"),
        "round 3/30: test accuracy 0.8765, 9 clients trained, 1 failed, 1.23 s",
        "round x/30: not evaluated, 9 clients trained, 0 failed, 0.5 s",
        "round 3/30: not evaluated, some clients trained, 0 failed, 0.5 s",
        "round 3/30: not evaluated, 9 clients trained",
    ],
)
def test_other_lines_tell_of_no_round(line: str) -> None:
    assert read_round(line) is None


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    assert read_round(text) is None or "clients trained" in text


# Bundles.

# Of a library of Flower's, at each pattern of files.
bundles = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def flower_run() -> FlowerRun:
    return FlowerRun.create_empty(1)


def experiment(**flat: Any) -> Experiment:
    keys = {name.replace("__", "."): value for name, value in flat.items()}
    return from_flat(keys, vocabulary={})


def given_back(bundle: bytes) -> Experiment:
    """Return the experiment that Flower hands to the apps of a bundle."""
    return from_flat(get_fused_config_from_fab(bundle, flower_run()), vocabulary={})


@bundles
@given(
    name=st.from_regex(r"\A\w[\w .+=-]*\Z"),
    seed=st.integers(0, 2**63 - 1),
    path=st.text(min_size=1),
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    offset=st.floats(-1000, 1000),
    feedback=st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_flower_gives_back_the_very_experiment(
    name: str, seed: int, path: str, rate: float, offset: float, feedback: bool
) -> None:
    asked = experiment(
        experiment__name=name,
        experiment__seed=seed,
        data__dataset="file",
        data__path=path,
        data__offset=offset,
        train__learning_rate=rate,
        update__error_feedback=feedback,
        model__activation="leaky_relu(0.1)",
    )
    found = given_back(make_bundle(asked, ROOT))
    assert found == asked
    assert found.digest() == asked.digest()


@bundles
def test_every_key_has_its_type_after_the_way_through_flower() -> None:
    asked = experiment(train__learning_rate=1, run__resume=True, run__out="x")
    flat = get_fused_config_from_fab(make_bundle(asked, ROOT), flower_run())
    assert {key: type(value) for key, value in flat.items()} == {
        key: type(value) for key, value in asked.flat().items()
    }


@bundles
def test_a_bundle_holds_the_two_apps_and_nothing_else() -> None:
    bundle = make_bundle(experiment(), ROOT)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    project = tomllib.loads(found.pop("pyproject.toml").decode())
    found.pop(".info/CONTENT")
    assert found == {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for app in ("clients", "server")
        for path in (ROOT / app).rglob("*.py")
    }
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "server.app:app",
        "clientapp": "clients.app:app",
    }
    assert project["tool"]["flwr"]["app"]["config"] == experiment().tables()


@bundles
def test_the_same_experiment_is_the_same_bundle() -> None:
    """Its hash is what a SuperLink and its nodes know it by."""
    first, again = (make_bundle(experiment(), ROOT) for _ in range(2))
    assert first == again
    assert make_bundle(experiment(experiment__seed=1), ROOT) != first


# What an operator does.


@pytest.fixture
def said() -> list[str]:
    """Return what was told; its ``append`` is what tells."""
    return []


def test_a_federation_has_as_many_clients_as_there_are_nodes(
    said: list[str], tmp_path: Path
) -> None:
    asked = experiment(data__clients=50, server__clients_per_round=10, train__epochs=2)
    fitted = operate.fitted(asked, plan(tmp_path, "a", "b", "c"), said.append)
    assert (fitted.data.clients, fitted.server.clients_per_round) == (3, 3)
    assert said == [
        "3 nodes: data.clients = 3 (was 50), server.clients_per_round = 3 (was 10)",
    ]
    before, after = asked.flat(), fitted.flat()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"data.clients", "server.clients_per_round"}


def test_a_cohort_that_the_nodes_can_give_is_left(said: list[str], tmp_path: Path) -> None:
    asked = experiment(data__clients=5, server__clients_per_round=2)
    fitted = operate.fitted(asked, plan(tmp_path, "a", "b", "c"), said.append)
    assert (fitted.data.clients, fitted.server.clients_per_round) == (3, 2)
    assert said == ["3 nodes: data.clients = 3 (was 5), server.clients_per_round = 2 (was 2)"]


def test_what_fits_is_not_touched(said: list[str], tmp_path: Path) -> None:
    asked = experiment(data__clients=3, server__clients_per_round=2)
    assert operate.fitted(asked, plan(tmp_path, "a", "b", "c"), said.append) == asked
    assert said == []


def test_clients_that_were_shut_out_keep_their_part(said: list[str], tmp_path: Path) -> None:
    """Otherwise the others' examples would be dealt anew."""
    made = plan(tmp_path, "a", "b", "c", revoked=("b",))
    assert operate.fitted(experiment(), made, said.append).data.clients == 3


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "file"])
def test_data_that_no_node_has_is_refused(dataset: str, said: list[str], tmp_path: Path) -> None:
    asked = experiment(data__dataset=dataset, data__path="x.csv" if dataset == "file" else "")
    with pytest.raises(ConfigError) as caught:
        operate.fitted(asked, plan(tmp_path, "a"), said.append)
    assert str(caught.value) == (
        f"data.dataset = {dataset!r}: no node has it; give each its part: fedsim data split "
        "CONFIG --out DATA, then fedsim deploy init DIR --data DATA"
    )
    assert said == []


def over_split(clients: int, cohort: int = 1) -> Experiment:
    return experiment(
        data__dataset="split",
        data__path="/parts",
        data__partition="natural",
        data__clients=clients,
        server__clients_per_round=cohort,
    )


def test_a_split_that_no_node_was_given_is_refused(said: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        operate.fitted(over_split(3), plan(tmp_path, "a", "b", "c"), said.append)
    assert str(caught.value) == (
        "data.path = '/parts': no node was given a part of it; make a deployment that does: "
        "fedsim deploy init DIR --nodes 3 --data /parts"
    )


def test_a_split_for_others_is_not_run(said: list[str], tmp_path: Path) -> None:
    made = plan(tmp_path, "a", "b", server_data="/parts/server")
    with pytest.raises(ConfigError) as caught:
        operate.fitted(over_split(3), made, said.append)
    assert str(caught.value) == (
        f"data.clients = 3: there are 2 nodes in {made.directory}; make a deployment with as many, "
        "or split the data for 2"
    )


def test_a_split_is_where_it_is_mounted(said: list[str], tmp_path: Path) -> None:
    made = plan(tmp_path, "a", "b", server_data="/parts/server")
    fitted = operate.fitted(over_split(2, cohort=2), made, said.append)
    assert fitted.data == dataclasses.replace(over_split(2).data, path="/data")
    assert said == []


def test_nodes_with_data_of_their_own_are_given_no_other_run(
    said: list[str], tmp_path: Path
) -> None:
    """They would train on their own data, whatever the run's ledger says."""
    made = plan(tmp_path, "a", "b", server_data="/parts/server")
    with pytest.raises(ConfigError, match="the nodes have their own data"):
        operate.fitted(experiment(data__clients=20), made, said.append)
    others = over_split(2)
    others = dataclasses.replace(others, data=dataclasses.replace(others.data, path="/others"))
    with pytest.raises(ConfigError, match="the nodes were given /parts; submit /parts/exp"):
        operate.fitted(others, made, said.append)


def test_whom_the_experiment_leaves_out_stays_out(said: list[str], tmp_path: Path) -> None:
    made = dataclasses.replace(plan(tmp_path, "a", "b", "c", "d"), revoked=("a",))
    asked = experiment(server__left_out="2", data__clients=4, server__clients_per_round=2)
    assert operate.fitted(asked, made, said.append).server.absent == (0, 2)


def test_a_cohort_that_is_too_small_for_its_strategy_is_refused(
    said: list[str], tmp_path: Path
) -> None:
    asked = experiment(
        server__strategy="krum", server__byzantine_clients=2, server__clients_per_round=7
    )
    with pytest.raises(ConfigError, match="at least 7, not 3"):
        operate.fitted(asked, plan(tmp_path, "a", "b", "c"), said.append)


def test_a_run_goes_to_the_server_s_volume_and_its_models_travel_packed() -> None:
    asked = experiment(run__out="here", run__data_dir="/mine", experiment__name="x y")
    placed = operate.placed(asked)
    assert re.fullmatch(r"/state/runs/x y-\d{8}-\d{6}-[0-9a-f]{4}", placed.run.out)
    assert placed.run.data_dir == ""
    assert placed.update.packed
    before, after = asked.flat(), placed.flat()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"run.out", "run.data_dir", "update.packed"}


def test_a_new_run_resumes_none() -> None:
    assert not operate.placed(experiment(run__resume=True, run__out="here")).run.resume


def checkout(directory: Path) -> Path:
    """Make what a checkout is known by."""
    (directory / "fedsim" / "deployment").mkdir(parents=True)
    (directory / "Dockerfile").write_text("FROM scratch")
    return directory


def test_the_image_is_built_where_the_source_is(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an installation, which has no source: from the checkout that it is called in."""
    built: list[tuple[str, ...]] = []
    monkeypatch.setattr(operate, "docker", lambda *arguments: built.append(arguments))
    monkeypatch.setattr(operate, "base_file", lambda: tmp_path / "site" / "docker-compose.yml")
    monkeypatch.delenv("FEDSIM_IMAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match="this is no checkout of the source"):
        operate.build_image(said.append)
    here = checkout(tmp_path / "here")
    monkeypatch.chdir(here)
    operate.build_image(said.append)
    assert any("CUDA" in line for line in said)
    said.clear()
    (here / "wheels").mkdir()
    (here / "wheels" / "torch-2.13.0+cpu-cp311.whl").touch()
    operate.build_image(said.append)
    assert not any("CUDA" in line for line in said)
    site = checkout(tmp_path / "site")
    operate.build_image(said.append)
    assert built == [("build", "--tag", "fedsim", str(root)) for root in (here, here, site)]


class FakeSuperLink:
    """Stands for a connection to a SuperLink: what it streams, and what it knows.

    Args:
        streams: what each call of ``logs`` yields, or raises.
        standings: what each call of ``standing`` returns; the last one stays.
        known: nodes by call of ``nodes``; the last one stays.
        sick: how often it says that it is not healthy.
    """

    def __init__(
        self,
        streams: Sequence[Sequence[tuple[float, str] | Exception]] = (),
        standings: Sequence[str] = ("finished",),
        known: Sequence[Sequence[Node]] = ((),),
        sick: int = 0,
    ) -> None:
        self._streams, self._standings = list(streams), list(standings)
        self._known, self.sick = [list(nodes) for nodes in known], sick
        self.asked_after: list[float] = []
        self.waited: list[float] = []
        self.registered: list[str] = []

    def logs(self, run: int, after: float) -> Iterator[tuple[float, str]]:
        assert run == 7
        self.asked_after.append(after)
        for item in self._streams.pop(0) if self._streams else ():
            if isinstance(item, Exception):
                raise item
            yield item

    def standing(self, run: int) -> Standing:
        first = self._standings.pop(0) if len(self._standings) > 1 else self._standings[0]
        return Standing(status=first, sub_status="completed", details="")

    def healthy(self) -> bool:
        self.sick -= 1
        return self.sick < 0

    def wait_until_healthy(self, seconds: float) -> None:
        self.waited.append(seconds)

    def nodes(self) -> list[Node]:
        return self._known.pop(0) if len(self._known) > 1 else self._known[0]

    def register(self, public_key: Path, name: str) -> int:
        self.registered.append(name)
        return 1


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how long was slept, without sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(
        operate, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    )
    return slept


def followed(superlink: FakeSuperLink) -> list[str]:
    return list(operate.follow(superlink, 7))  # type: ignore[arg-type]


def test_a_log_is_followed_line_by_line_whatever_it_comes_in(naps: list[float]) -> None:
    stream = [(1.0, "one\ntw"), (2.0, "o\n"), (3.0, "\x1b[92mINFO\x1b[0m three\n\nfi"), (4.0, "ve")]
    assert followed(FakeSuperLink([stream])) == ["one", "two", "INFO three", "", "five"]
    assert naps == []


def test_a_stream_that_ends_before_the_run_is_asked_for_again(naps: list[float]) -> None:
    superlink = FakeSuperLink(
        [[(1.0, "one\n")], [], [(5.0, "two\n")]], ["running"] * 2 + ["finished"]
    )
    assert followed(superlink) == ["one", "two"]
    assert superlink.asked_after == [0.0, 1.0, 1.0]
    assert naps == [operate.POLL_SECONDS] * 2


@pytest.mark.parametrize("sick", [0, 1])
def test_a_superlink_that_breaks_and_returns_is_followed_from_where_it_broke(
    sick: int, naps: list[float]
) -> None:
    streams = [
        [(1.0, "one\n"), (2.0, "tw"), EngineError("cannot be reached")],
        [(3.0, "o\nthree\n")],
    ]
    superlink = FakeSuperLink(streams, ["running", "finished"], sick=sick)
    assert followed(superlink) == ["one", "two", "three"]
    assert superlink.asked_after == [0.0, 2.0]
    assert superlink.waited == [60] * sick


def test_the_last_lines_are_not_lost_with_the_connection(naps: list[float]) -> None:
    streams = [
        [(1.0, "one\n"), EngineError("cannot be reached")],
        [(2.0, "two\n")],
    ]
    assert followed(FakeSuperLink(streams)) == ["one", "two"]


def test_a_colour_that_is_cut_in_two_is_taken_out_too(naps: list[float]) -> None:
    assert followed(FakeSuperLink([[(1.0, "\x1b[9"), (2.0, "2mINFO\x1b[0m\n")]])) == ["INFO"]


def test_what_cannot_be_mended_is_told(naps: list[float]) -> None:
    class Gone(FakeSuperLink):
        def wait_until_healthy(self, seconds: float) -> None:
            raise EngineError("gave no answer in 60 s")

    superlink = Gone([[(1.0, "one\n"), EngineError("cannot be reached")]], sick=1)
    lines = operate.follow(superlink, 7)  # type: ignore[arg-type]
    assert next(lines) == "one"
    with pytest.raises(EngineError, match="gave no answer"):
        next(lines)


Registered = Callable[..., Node]


@pytest.fixture
def registered(tmp_path: Path) -> Registered:
    """Return a function that gives a node of the test's folder, with its key, as it stands."""
    for name in "abcd":
        keys.make_node_key(tmp_path / "nodes" / name)

    def node_of(name: str, status: str = "online") -> Node:
        key = key_bytes(tmp_path / "nodes" / name / "key.pub")
        return Node(id=ord(name), name=name, status=status, public_key=key)

    return node_of


def test_nodes_are_waited_for_until_all_are_there(
    registered: Registered, naps: list[float], said: list[str], tmp_path: Path
) -> None:
    a, b = registered("a"), registered("b")
    known = [[], [a, registered("b", "offline")], [a, b]]
    superlink: Any = FakeSuperLink(known=known)
    found = operate.wait_for_nodes(plan(tmp_path, "a", "b"), superlink, said.append, 30)
    assert found == [a, b]
    assert said == ["0 of 2 nodes online", "1 of 2 nodes online", "2 of 2 nodes online"]


def test_nodes_that_do_not_come_are_named(
    registered: Registered, naps: list[float], said: list[str], tmp_path: Path
) -> None:
    made = plan(tmp_path, "a", "b", "c", "d", revoked=("d",))
    namesake = dataclasses.replace(registered("a"), public_key=b"of another time")
    known = [registered("b"), registered("c", "offline"), registered("d"), namesake]
    superlink: Any = FakeSuperLink(known=[known])
    with pytest.raises(EngineError) as caught:
        operate.wait_for_nodes(made, superlink, said.append, 3)
    assert str(caught.value) == (
        "2 of 3 nodes did not come online in 3 s: a, c; what they say: "
        f"fedsim deploy logs a --dir {tmp_path}"
    )
    assert said == ["1 of 3 nodes online"]


def test_keys_are_registered_once_and_those_that_were_revoked_never(
    registered: Registered, said: list[str], tmp_path: Path
) -> None:
    superlink: Any = FakeSuperLink(known=[[registered("a")]])
    operate.register(plan(tmp_path, "a", "b", "c", revoked=("c",)), superlink, said.append)
    assert superlink.registered == ["b"]
    assert said == ["b: key registered"]


# What Compose is given.


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Return one of eleven nodes, so that a name is the beginning of another."""
    root = tmp_path_factory.mktemp("eleven")
    made = create(
        root / "d",
        nodes=11,
        data=split(root / "parts", 11),
        devices=("phone", "laptop"),
        port=8123,
    )
    nodes = (dataclasses.replace(made.nodes[0], device=""), *made.nodes[1:])
    return dataclasses.replace(made, nodes=nodes)


def services(made: Deployment) -> dict[str, Any]:
    compose.write_files(made)
    return dict(yaml.safe_load((made.directory / "compose.yaml").read_text())["services"])


def pattern() -> dict[str, Any]:
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return dict(file["services"]["supernode"])


def test_each_node_is_given_what_is_its_own_and_nothing_else(deployment: Deployment) -> None:
    written = services(deployment)
    base = pattern()
    for k, name in enumerate(f"node-{k}" for k in range(11)):
        service = written.pop(name)
        assert service.pop("volumes") == [
            f"{deployment.directory}/nodes/{name}:/node:ro",
            f"{deployment.directory.parent}/parts/client-{k:03}:/data:ro",
        ]
        assert service.pop("command") == [
            *base["command"],
            *(f"--partition-id={k}", "--partitions=11", "--data=/data"),
        ]
        limits = load_limits(("phone", "laptop")[k % 2])
        expected = (limits.cpus, limits.memory_bytes) if k else (base["cpus"], base["mem_limit"])
        assert service.pop("memswap_limit") == service["mem_limit"]  # or as much again for swap
        cpus = min(expected[0], os.cpu_count() or 1)
        assert (service.pop("cpus"), service.pop("mem_limit")) == (cpus, expected[1])
        assert service == {key: base[key] for key in service}
        own = {"profiles", "command", "cpus", "mem_limit", "memswap_limit", "volumes"}
        assert base.keys() - service.keys() <= own
    assert written == {
        "superexec": {"volumes": [f"{deployment.directory.parent}/parts/server:/data:ro"]}
    }


def test_what_a_node_is_started_with_is_read_by_it(deployment: Deployment) -> None:
    command = services(deployment)["node-10"]["command"]
    assert command[:3] == ["python", "-m", "fedsim.deployment.node"]
    options, others = node.arguments().parse_known_args(command[3:])
    assert (options.partition_id, options.partitions, options.data) == (10, 11, "/data")
    assert others == command[3:6]


def test_a_node_whose_data_is_a_file_is_given_it_and_its_card(tmp_path: Path) -> None:
    own, parts = of_their_own(tmp_path), split(tmp_path / "parts", 1)
    written = services(create(tmp_path / "d", data=parts, own=own))
    assert written["node-0"]["volumes"][1:] == [f"{tmp_path}/north:/data:ro"]
    assert written["node-0"]["command"][-1] == "--data=/data"
    assert written["node-1"]["volumes"][1:] == [
        f"{tmp_path}/south/dataset.json:/data/dataset.json:ro",
        f"{tmp_path}/south/patients.csv:/data/patients.csv:ro",
    ]
    assert written["node-1"]["command"][-1] == "--data=/data/patients.csv"


def test_the_gate_is_published_where_that_was_asked_for(tmp_path: Path) -> None:
    made = create(tmp_path / "d", publish="0.0.0.0:8443", hosts=["fl.example.org"])
    written = services(made)
    assert written["gate"] == {"ports": ["0.0.0.0:8443:8000"], "networks": ["control"]}
    assert all("ports" not in service for name, service in written.items() if name != "gate")


def test_who_is_published_has_a_name(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / "d", 1, publish="0.0.0.0:8443")
    assert problem.startswith("--publish 0.0.0.0:8443: give the --host")


def test_without_data_nothing_is_mounted_but_keys(tmp_path: Path) -> None:
    made = create(tmp_path / "d", nodes=1)
    written = services(made)
    assert list(written) == ["node-0"]
    assert written["node-0"]["volumes"] == [f"{made.directory}/nodes/node-0:/node:ro"]
    assert "--data" not in str(written)


def test_who_is_shut_out_has_no_service_and_the_others_keep_their_partition(
    deployment: Deployment,
) -> None:
    written = services(dataclasses.replace(deployment, revoked=("node-1",)))
    assert "node-1" not in written
    assert written["node-2"]["command"][-3:-1] == ["--partition-id=2", "--partitions=11"]


def test_the_variables_of_the_project_s_file_are_given(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    services(deployment)
    lines = (deployment.directory / "compose.env").read_text().splitlines()
    assert lines == [
        f"COMPOSE_PROJECT_NAME={deployment.name}",
        f"FEDSIM_DEPLOYMENT={deployment.directory}",
        "FEDSIM_PORT=8123",
        "FEDSIM_USER=10001:10001",
    ]
    asked = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker-compose.yml").read_text()))
    assert asked - {line.partition("=")[0] for line in lines} == {"FEDSIM_IMAGE"}


# A node's processes.


def test_a_bell_wakes_once_however_often_it_rang() -> None:
    bell = node.Bell.new()
    assert not bell.wait(0)
    for _ in range(3):
        bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)
    os.close(bell.reader)
    bell.ring()  # nobody is there any more
    os.close(bell.writer)


def test_a_bell_that_nobody_hears_never_blocks() -> None:
    bell = node.Bell.new()
    for _ in range(70_000):  # a pipe holds 65536
        bell.ring()
    assert bell.wait(0)
    for end in (bell.reader, bell.writer):
        os.close(end)


def test_a_bell_is_heard_while_one_waits() -> None:
    bell = node.Bell.new()
    threading.Timer(0.05, bell.ring).start()
    begun = time.monotonic()
    assert bell.wait(5)
    assert time.monotonic() - begun < 4
    for end in (bell.reader, bell.writer):
        os.close(end)


class FakeBell:
    """Notes when it is rung and waited at."""

    def __init__(self, name: str, events: list[tuple[str, float | None]]) -> None:
        self._name, self._events = name, events

    def ring(self) -> None:
        self._events.append((f"ring {self._name}", None))

    def wait(self, seconds: float) -> bool:
        self._events.append((f"wait for {self._name}", seconds))
        return True


Patient = tuple[node.Patience, list[tuple[str, float | None]]]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Patient:
    """Return what stands for the clock, and what it does."""
    events: list[tuple[str, float | None]] = []
    clock = SimpleNamespace(sleep=lambda seconds: events.append(("sleep", seconds)))
    monkeypatch.setattr(node, "time", clock)
    bells: list[Any] = [FakeBell(name, events) for name in ("work", "done")]
    return node.Patience(*bells), events


def test_an_idle_node_asks_ever_more_seldom_but_as_often_as_flower(patient: Patient) -> None:
    patience, events = patient
    for _ in range(30):
        patience.sleep(3)
    assert {what for what, _ in events} == {"sleep"}
    slept = [seconds for _, seconds in events if seconds is not None]
    assert slept[:4] == pytest.approx([0.1, 0.13, 0.169, 0.2197])
    assert slept == sorted(slept)
    assert slept[-1] == 3


def test_a_busy_node_wakes_its_executor_and_is_woken_by_it(patient: Patient) -> None:
    patience, events = patient
    patience.sleep(0.5)
    assert events == [("ring work", None), ("wait for done", 0.5)]


def test_a_node_that_had_a_message_asks_at_once_for_the_next(patient: Patient) -> None:
    patience, events = patient
    for seconds in (3, 3, 3, 0.5, 3):
        patience.sleep(seconds)
    assert events[-1] == ("sleep", 0.1)


def test_a_client_that_is_done_ends_the_wait() -> None:
    work, done = node.Bell.new(), node.Bell.new()
    done.ring()
    begun = time.monotonic()
    node.Patience(work, done).sleep(0.9)
    assert time.monotonic() - begun < 0.8
    assert work.wait(0)
    for end in dataclasses.astuple(work) + dataclasses.astuple(done):
        os.close(end)


Started = Callable[..., tuple[dict[str, Any], list[str], int]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Return a function that starts a node with options, and returns what Flower is told:

    the node's config, as Flower reads it, its other options, and the port between processes.
    """
    monkeypatch.delenv("FEDSIM_NODE_DIR", raising=False)
    told: list[tuple[list[str], int]] = []

    def run(options: list[str], port: int) -> None:
        assert Path(os.environ["FEDSIM_NODE_DIR"]).is_dir()
        told.append((options, port))

    def start(*options: str) -> tuple[dict[str, Any], list[str], int]:
        monkeypatch.setattr(node, "run_supernode", run)
        monkeypatch.setattr(sys, "argv", ["node", *options])
        node.main()
        assert "FEDSIM_NODE_DIR" not in os.environ
        (*others, flag, config), port = told[-1]
        assert flag == "--node-config"
        return parse_config_args([config]), others, port

    return start


def test_a_node_says_who_it_is_and_where_its_data_lies(started: Started) -> None:
    theirs = ["--superlink=superlink:8000", "--root-certificates=/node/ca.crt"]
    config, others, port = started(
        *theirs, "--partition-id=2", "--partitions=5", "--data=/data/my own.csv"
    )
    assert config == {"partition-id": 2, "num-partitions": 5, "data": "/data/my own.csv"}
    assert (others, port) == (theirs, node.RUNTIME_PORT)
    config, _, port = started("--partition-id=0", "--runtime-port=9999", "--data=/data.toml")
    assert (config, port) == ({"partition-id": 0, "data": "/data.toml"}, 9999)


@pytest.mark.usefixtures("let_go")
def test_a_node_without_a_partition_claims_one(started: Started, tmp_path: Path) -> None:
    claim = f"--claim={tmp_path / 'claims'}"
    assert [started(claim)[0] for _ in range(2)] == [{"partition-id": 0}, {"partition-id": 1}]
    with pytest.raises(EngineError, match="all 2 clients are claimed"):
        started(claim, "--partitions=2")


@pytest.mark.parametrize("options", [(), ("--partition-id=0", "--claim=x"), ("--partition-id=a",)])
def test_a_node_is_one_client(
    options: tuple[str, ...], started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        started(*options)
    assert left.value.code == 2
    assert "--partition-id" in capsys.readouterr().err


# Tasks in forks. A process with threads, as this one may be, warns when it forks.

# A node's executor has one thread. Other tests of this process may have left some: Python's and
# JAX's warnings are of those.
forks = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
    "ignore:os.fork.. was called:RuntimeWarning",
    "ignore:.*_at_fork:pytest.PytestUnraisableExceptionWarning",
)


def spec(task: int = 1, task_type: TaskType = TaskType.CLIENT_APP, **others: Any) -> ExecutionSpec:
    values: dict[str, Any] = {
        "task_type": task_type,
        "runtime_api_address": "127.0.0.1:9094",
        "token": "t",
        "insecure": True,
        "root_certificates_path": None,
        "runtime_dependency_install": False,
        "parent_pid": os.getpid(),
        "suppress_output": False,
        "task_id": task,
    }
    return ExecutionSpec(**values | others)


Run = Callable[[ExecutionSpec], None]


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Run], forking.ForkingExecutor]]:
    """Return a function that makes an executor whose tasks run something small."""
    made: list[forking.ForkingExecutor] = []

    def make(run: Run) -> forking.ForkingExecutor:
        monkeypatch.setattr(forking, "run_task", run)
        made.append(forking.ForkingExecutor(preload=()))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[[Run], forking.ForkingExecutor]


def settle(executor: forking.ForkingExecutor) -> None:
    """Return once the executor has found that no task runs any more."""
    deadline = time.monotonic() + 10
    while executor.busy:
        assert time.monotonic() < deadline
        time.sleep(0.005)
        executor.reconcile()


def linger(_: ExecutionSpec) -> None:
    time.sleep(60)


@forks
def test_a_task_runs_in_a_process_of_its_own(executor: Make, tmp_path: Path) -> None:
    def leave_a_trace(task: ExecutionSpec) -> None:
        os.environ["FEDSIM_TRACE"] = "only there"
        (tmp_path / str(task.task_id)).write_text(f"{os.getpid()} {os.getppid()}")

    own = executor(leave_a_trace)
    for task in (1, 2):
        assert own.launch(spec(task)).status is LaunchResultStatus.ACCEPTED
        settle(own)
    first, second = ((tmp_path / task).read_text().split() for task in "12")
    assert first[1] == second[1] == str(os.getpid())
    assert len({first[0], second[0], str(os.getpid())}) == 3
    assert "FEDSIM_TRACE" not in os.environ


@pytest.mark.parametrize("other", sorted({*TaskType} - {TaskType.CLIENT_APP}))
def test_a_client_s_node_runs_nothing_else(other: TaskType, executor: Make) -> None:
    own = executor(linger)
    refused = own.launch(spec(task_type=other))
    assert refused.status is LaunchResultStatus.FAILED
    assert refused.message == f"a client's node runs no {other} tasks"
    assert not own.busy
    assert own.get_eligible_capacity({other}) == (set(), set())


@forks
def test_a_node_takes_one_task_at_a_time(executor: Make, tmp_path: Path) -> None:
    def wait_for_leave(_: ExecutionSpec) -> None:
        deadline = time.monotonic() + 10
        while not (tmp_path / "leave").exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    own = executor(wait_for_leave)
    assert own.get_eligible_capacity({*TaskType}) == ({TaskType.CLIENT_APP}, set())
    own.launch(spec())
    assert own.busy
    assert own.get_eligible_capacity({*TaskType}) == (set(), set())
    own.reconcile()
    assert own.busy
    (tmp_path / "leave").touch()
    own.wait_for_capacity()
    assert not own.busy
    assert own.get_eligible_capacity({*TaskType}) == ({TaskType.CLIENT_APP}, set())


def processes(executor: forking.ForkingExecutor) -> list[int]:
    return list(executor._running)


@forks
def test_a_task_that_was_killed_is_forgotten_and_told_of(
    executor: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    own = executor(linger)
    own.launch(spec(task=17))
    [child] = processes(own)
    os.kill(child, signal.SIGKILL)
    with caplog.at_level(logging.ERROR, logger="flwr.fedsim"):
        settle(own)
    assert own.get_eligible_capacity({TaskType.CLIENT_APP})[0]
    assert [record.getMessage() for record in caplog.records] == [
        "task 17: its process was ended by signal 9"
    ]


@forks
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (None, 0),
        (SystemExit(0), 0),
        (SystemExit(None), 0),
        (SystemExit(3), 3),
        (SystemExit("no"), 1),
        (ValueError("broken"), 1),
        (KeyboardInterrupt(), 1),
    ],
    ids=repr,
)
def test_a_task_ends_its_process_however_it_ends(
    ending: BaseException | None,
    code: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run() -> None:
        if ending is not None:
            raise ending

    child = os.fork()
    if child == 0:
        forking.run_and_exit(run)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    told = capfd.readouterr().err
    assert ("ValueError: broken" in told) == isinstance(ending, ValueError)


@forks
def test_closing_ends_what_runs(executor: Make) -> None:
    own = executor(linger)
    own.launch(spec())
    [child] = processes(own)
    begun = time.monotonic()
    own.close()
    assert time.monotonic() - begun < 10
    assert not own.busy
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    own.close()  # twice is once


@forks
def test_a_task_runs_none_of_its_node_s_handlers(
    executor: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it did, a task that was ended early went on as a second node, with all its files."""

    def node_s_own(*_: object) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGTERM, node_s_own)
    try:
        own = executor(linger)
        own.launch(spec())
        own.close()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "its process was ended by signal 15" in caplog.text


@forks
def test_what_was_not_printed_yet_is_printed_once(
    executor: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    own = executor(lambda _: print("from the child"))
    with (
        closing(open(os.dup(1), "w", buffering=4096)) as buffered,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", buffered)
        print("from the parent")
        own.launch(spec())
        settle(own)
    assert capfd.readouterr().out.splitlines() == ["from the parent", "from the child"]


def test_a_task_is_flower_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(forking, "run_clientapp", lambda **options: told.update(options))
    (tmp_path / "ca.crt").write_bytes(b"pem")
    forking.run_task(spec(root_certificates_path=str(tmp_path / "ca.crt"), insecure=False))
    assert told == {
        "runtime_api_address": "127.0.0.1:9094",
        "token": "t",
        "insecure": False,
        "certificates": b"pem",
        "parent_pid": os.getpid(),
        "runtime_dependency_install": False,
    }


# Health.


class Answering(BaseHTTPRequestHandler):
    """Is well at /health, and ill elsewhere."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def listening(tls: Path | None = None) -> Iterator[str]:
    """Listen on this machine, and give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "server.crt", tls / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str | None]:
    """Return a function that checks an address: None if all is well, and otherwise why not."""
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the first proxies that it saw
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def check(url: str) -> str | None:
        monkeypatch.setenv("FEDSIM_HEALTH", url)
        try:
            health.main()
        except SystemExit as left:
            return str(left.code)
        return None

    return check


Check = Callable[[str], str | None]


def test_who_answers_is_well_and_who_complains_is_not(check: Check) -> None:
    with listening() as address:
        assert check(f"{address}/health") is None
        told = check(f"{address}/elsewhere")
    assert told == f"{address}/elsewhere: HTTP Error 503: Service Unavailable"
    gone = check(f"{address}/health")
    assert gone is not None
    assert "refused" in gone


def test_a_certificate_for_other_names_is_no_illness(check: Check, made_keys: Keys) -> None:
    with listening(made_keys.server) as address:
        assert check(f"{address}/health") is None


def test_who_listens_nowhere_is_well(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("") is None
    monkeypatch.delenv("FEDSIM_HEALTH")
    health.main()


def test_no_proxy_is_asked(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with listening() as address:
        assert check(f"{address}/health") is None


# The gate.


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[httpx.Request]]]:
    """Return a function that sends a request to the gate, and returns the answer's status and what
    arrived at the SuperLink. The path is sent as it stands, as a client of bad faith would."""
    arrived: list[httpx.Request] = []
    own = httpx.AsyncClient

    def answer(request: httpx.Request) -> httpx.Response:
        arrived.append(request)
        if request.url.path.endswith("away"):
            raise httpx.ConnectError("refused")
        return httpx.Response(201, content=b"answered", headers={"Connection": "close", "X-A": "b"})

    def client(**options: Any) -> httpx.AsyncClient:
        return own(base_url=options["base_url"], transport=httpx.MockTransport(answer))

    monkeypatch.setattr(gate.httpx, "AsyncClient", client)
    app = gate.make_gate("https://superlink:8000", None)

    def send(path: str, method: str = "POST") -> tuple[int, list[httpx.Request]]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"signed"}

        async def respond(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"gate:8000"), (b"x-signature", b"s"), (b"te", b"trailers")]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": unquote(path),  # as a server hands it on
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "server": ("gate", 8000),
        }
        arrived.clear()
        asyncio.run(app(scope, receive, respond))  # type: ignore[arg-type]
        return sent[0]["status"], list(arrived)

    return send


Through = Callable[..., tuple[int, list[httpx.Request]]]


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/fleet/pull-messages", "POST"), ("/health", "GET")]
)
def test_what_is_for_nodes_is_passed_on(path: str, method: str, through: Through) -> None:
    status, [request] = through(path, method)
    assert status == 201
    assert (request.method, str(request.url)) == (method, f"https://superlink:8000{path}")
    assert request.content == b"signed"
    assert request.headers["x-signature"] == "s"
    assert request.headers["host"] == "superlink:8000"
    assert "te" not in request.headers


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet", "/healthy"),
        *("//v1/control/start-run", "/V1/FLEET/x", "/v1/fleetx/y", "/docs"),
        *("/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run"),
        *("/v1/fleet/%2e%2e%2fcontrol/start-run", "/v1/fleet/x/../../control/start-run"),
        *("/health/../v1/control/start-run", "/v1/fleet/..", "/v1/fleet/"),
        *("/v1/fleet/pull-messages/x", "/v1/fleet/pull%00messages"),
    ],
)
def test_nothing_else_is(path: str, through: Through) -> None:
    status, arrived = through(path)
    assert [str(request.url) for request in arrived] == []
    assert 300 <= status < 500


def test_the_gate_knows_the_paths_of_this_flower() -> None:
    from flwr.superlink.routers.control.router import router as control
    from flwr.superlink.routers.fleet.router import router as fleet

    let, kept = ([route.path for route in router.routes] for router in (fleet, control))
    assert len(let) > 9
    assert len(kept) > 9
    assert [path for path in let if not gate.OPEN.fullmatch(path)] == []
    assert [path for path in kept if gate.OPEN.fullmatch(path)] == []


def test_a_superlink_that_is_away_is_told_of(through: Through) -> None:
    status, arrived = through("/v1/fleet/away")
    assert status == 503
    assert len(arrived) == 1


# A SuperLink.


@pytest.mark.parametrize(
    ("standing", "over", "completed", "text"),
    [
        (("running", "", ""), False, False, "running"),
        (("finished", "completed", ""), True, True, "completed"),
        (("finished", "failed", "out of memory"), True, False, "failed: out of memory"),
        (("finished", "stopped", ""), True, False, "stopped"),
    ],
)
def test_where_a_run_stands(
    standing: tuple[str, str, str], over: bool, completed: bool, text: str
) -> None:
    found = Standing(**dict(zip(("status", "sub_status", "details"), standing, strict=True)))
    assert (found.over, found.completed, str(found)) == (over, completed, text)
