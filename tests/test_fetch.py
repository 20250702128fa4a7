"""Fetching datasets: from a server on this machine that behaves, or does not."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pty
import shlex
import signal
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedsim.data import DATASETS, fetch, load_dataset
from fedsim.data.fetch import PUBLISHED, Fetched, Published
from fedsim.errors import DataError

CLI = Callable[..., Any]
Send = Callable[[BaseHTTPRequestHandler], None]
IMAGES = "train-images-idx3-ubyte.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
BATCHES = (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")
BATCH = b"".join(bytes([label]) + bytes(3072) for label in (0, 1))


def idx(*shape: int) -> bytes:
    """A gzipped IDX file of the labels 0, 1, ..., or of as many images."""
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    values = bytes(index // (36 if shape[1:] else 1) for index in range(shape[0] * 36))
    content = values if shape[1:] else values[: shape[0]]
    return gzip.compress(bytes((0, 0, 8, len(shape))) + sizes + content)


MNIST = {
    IMAGES: idx(4, 6, 6),
    "train-labels-idx1-ubyte.gz": idx(4),
    "t10k-images-idx3-ubyte.gz": idx(2, 6, 6),
    "t10k-labels-idx1-ubyte.gz": idx(2),
}


def tar(*entries: tuple[str, bytes | str]) -> bytes:
    """A gzipped tar of files by content, and of symbolic links by target."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                entry.size = len(BATCH)  # a lie that makes it look like the file that is wanted
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


CIFAR = dict.fromkeys((f"{FOLDER}/{batch}" for batch in BATCHES), BATCH)
FIRST = next(iter(CIFAR))


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``answers`` are what it does instead for some of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Send] = {}
        self.asked: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(self.path)
        if name in self.server.answers:
            self.server.answers[name](self)
        elif name in self.server.files:
            send(self, self.server.files[name])
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, body: bytes, promised: int = 0) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(promised or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def send_unannounced(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, **published: Any) -> None:
    """Have the registry name the server's files, as they are now."""
    sums = {file: hashlib.md5(content).hexdigest() for file, content in server.files.items()}
    row = Published(url=server.url, checksums=sums, **published)
    monkeypatch.setitem(PUBLISHED, name, row)


@pytest.fixture
def mnist(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    server.files = dict(MNIST)
    publish(server, monkeypatch, "mnist")
    return server


@pytest.fixture
def cifar(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Server]:
    def serve(archive: bytes) -> Server:
        server.files = {ARCHIVE: archive}
        publish(server, monkeypatch, "cifar10", members=dict.fromkeys(CIFAR, len(BATCH)))
        return server

    return serve


def fetched(name: str, directory: Path, **options: Any) -> list[Fetched]:
    return list(fetch.fetch(name, directory, **options))


def refusal(name: str, directory: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        fetched(name, directory, **options)
    return str(caught.value)


def files(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if not path.is_dir())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


# What is published.


def test_what_is_published_is_what_the_readers_read() -> None:
    assert set(PUBLISHED) <= set(DATASETS)
    for name, published in PUBLISHED.items():
        assert published.url.startswith("http")
        assert all(len(bytes.fromhex(checksum)) == 16 for checksum in published.checksums.values())
        with pytest.raises(DataError) as caught:
            load_dataset(name, directory="/nowhere")
        wanted = list(published.members) or [f.removesuffix(".gz") for f in published.checksums]
        assert ", ".join(Path(file).name for file in wanted) in str(caught.value)


@pytest.mark.data
def test_the_checksums_of_fashion_mnist() -> None:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDSIM_DATA_DIR") or beside) / "fashion_mnist"
    if not folder.is_dir():
        pytest.skip("no real data: set FEDSIM_DATA_DIR")
    for file, checksum in PUBLISHED["fashion_mnist"].checksums.items():
        assert hashlib.md5((folder / file).read_bytes()).hexdigest() == checksum


# Fetching.


def test_what_is_fetched_can_be_read(mnist: Server, tmp_path: Path) -> None:
    result = fetched("mnist", tmp_path)
    assert [(f.path.name, f.received_bytes) for f in result] == [
        (name, len(content)) for name, content in MNIST.items()
    ]
    assert files(tmp_path / "mnist") == MNIST
    dataset = load_dataset("mnist", directory=str(tmp_path))
    assert dataset.y_train.tolist() == [0, 1, 2, 3]
    assert dataset.x_test.shape == (2, 1, 6, 6)


def test_an_archive_is_unpacked_and_kept(cifar: Callable[[bytes], Server], tmp_path: Path) -> None:
    server = cifar(tar(*CIFAR.items(), (f"{FOLDER}/readme.html", b"hello")))
    fetched("cifar10", tmp_path)
    assert files(tmp_path / "cifar10") == {**CIFAR, **server.files}
    assert len(load_dataset("cifar10", directory=str(tmp_path)).y_train) == 10


def test_only_what_is_missing_or_another_file_is_fetched(mnist: Server, tmp_path: Path) -> None:
    first, _, third, _ = MNIST
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / first).write_bytes(MNIST[first])
    (tmp_path / "mnist" / third).write_bytes(b"damaged")
    result = fetched("mnist", tmp_path)
    assert [file.received_bytes == 0 for file in result] == [True, False, False, False]
    assert mnist.asked == [f"/{name}" for name in MNIST if name != first]
    assert files(tmp_path / "mnist") == MNIST
    fetched("mnist", tmp_path)
    assert len(mnist.asked) == 3


def test_what_was_damaged_after_unpacking_is_unpacked_again(
    cifar: Callable[[bytes], Server], tmp_path: Path
) -> None:
    server = cifar(tar(*CIFAR.items()))
    fetched("cifar10", tmp_path)
    (tmp_path / "cifar10" / FOLDER / "test_batch.bin").write_bytes(bytes(len(BATCH)))
    fetched("cifar10", tmp_path)
    assert files(tmp_path / "cifar10") == {**CIFAR, **server.files}
    assert server.asked == [f"/{ARCHIVE}"]


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_mirror_is_asked_for_the_same_files(mnist: Server, tmp_path: Path, ending: str) -> None:
    fetched("mnist", tmp_path, mirror=f"{mnist.url}/data/of/others{ending}")
    assert mnist.asked == [f"/data/of/others/{name}" for name in MNIST]


def test_progress_counts_bytes_up_to_the_size(
    mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 40)
    *_, last = MNIST
    mnist.answers[last] = partial(send_unannounced, body=MNIST[last])
    told: dict[str, list[tuple[int, int | None]]] = {}
    fetched("mnist", tmp_path, advance=lambda name, *at: told.setdefault(name, []).append(at))
    size = len(MNIST[IMAGES])
    assert told[IMAGES] == [(min(at + 40, size), size) for at in range(0, size, 40)]
    assert told[last] == [(len(MNIST[last]), None)]


# What goes wrong: each leaves the files that are complete, and nothing else.


def stall(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"x", promised=100)
    handler.server.over.wait(timeout=30)  # type: ignore[attr-defined]


def break_off(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda handler: handler.send_error(404), "HTTP Error 404: Not Found"),
        (lambda handler: handler.send_error(503), "HTTP Error 503: Service Unavailable"),
        (lambda handler: None, "Remote end closed connection without response"),
        (partial(send, body=b"12345", promised=100), "the connection ended after 5 of 100 bytes"),
        (break_off, "IncompleteRead"),
        (stall, "timed out"),
        (
            partial(send, body=b"hello"),
            "its MD5 is 5d41402abc4b2a76b9719d911017c592, that of the published file is "
            + hashlib.md5(MNIST["train-labels-idx1-ubyte.gz"]).hexdigest(),
        ),
    ],
)
def test_a_file_that_does_not_come_is_named_with_what_to_do(
    mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Send, words: str
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2)
    mnist.answers["train-labels-idx1-ubyte.gz"] = answer
    text = refusal("mnist", tmp_path)
    assert text.startswith(f"{mnist.url}/train-labels-idx1-ubyte.gz: {words}")
    assert text.endswith(f"--from, or put the file into {tmp_path / 'mnist'} by hand")
    assert files(tmp_path) == {f"mnist/{IMAGES}": MNIST[IMAGES]}


def test_a_file_that_is_there_outlives_a_fetch_that_fails(mnist: Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / IMAGES).write_bytes(b"packed by somebody else")
    mnist.answers[IMAGES] = partial(send, body=b"hello")
    assert "its MD5 is" in refusal("mnist", tmp_path)
    assert files(tmp_path) == {f"mnist/{IMAGES}": b"packed by somebody else"}


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    text = refusal("mnist", tmp_path, mirror=url)
    assert text.startswith(f"{url}/{IMAGES}: Connection refused; ")
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("mirror", "words"),
    [
        ("file:///etc", "--from file:///etc: must begin with http:// or https://"),
        ("example.org", "--from example.org: must begin with http:// or https://"),
        ("http://[1", "http://[1/train-images-idx3-ubyte.gz: Invalid IPv6 URL"),
        ("http://x:y", "http://x:y/train-images-idx3-ubyte.gz: nonnumeric port: 'y'"),
        ("http://a b", "http://a b/train-images-idx3-ubyte.gz: URL can't contain control char"),
    ],
)
def test_a_mirror_has_to_be_a_url(tmp_path: Path, mirror: str, words: str) -> None:
    assert refusal("mnist", tmp_path, mirror=mirror).startswith(words)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "words"), [("mnits", "did you mean 'mnist'?"), ("digits", "valid: cifar10, ")]
)
def test_only_what_is_published_is_fetched(tmp_path: Path, name: str, words: str) -> None:
    assert refusal(name, tmp_path).startswith(f"'{name}' is no dataset to be fetched; {words}")


def test_a_full_disk_is_named(
    mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first byte is written to a device that is always full."""
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode: opened(Path("/dev/full") if mode == "wb" else path, mode)
    )
    text = refusal("mnist", tmp_path)
    path = tmp_path / "mnist" / IMAGES
    assert text.startswith(f"{path}: cannot be written: No space left on device; make room")
    assert "--data-dir" in text
    assert files(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_named(mnist: Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").write_bytes(b"a file")
    assert f"{tmp_path / 'mnist' / IMAGES}: cannot be written: " in refusal("mnist", tmp_path)
    assert files(tmp_path) == {"mnist": b"a file"}


def test_an_archive_writes_what_was_asked_for_and_nothing_else(
    cifar: Callable[[bytes], Server], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    server = cifar(
        tar(
            ("../evil", b"evil"),
            (str(elsewhere / "evil"), b"evil"),
            (f"{FOLDER}/../../evil", b"evil"),
            (FOLDER, str(elsewhere)),
            *CIFAR.items(),
        )
    )
    fetched("cifar10", tmp_path / "data")
    assert files(tmp_path / "data" / "cifar10") == {**CIFAR, **server.files}
    assert files(tmp_path).keys() == {f"data/cifar10/{name}" for name in (*CIFAR, ARCHIVE)}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([*CIFAR.items()][1:], f"lacks {FIRST}"),
        ([(FIRST, "/etc/passwd")], f"{FIRST} is no regular file of {len(BATCH)} bytes"),
        ([(FIRST, BATCH + b"x")], f"{FIRST} is no regular file of {len(BATCH)} bytes"),
        ([], "lacks "),
    ],
)
def test_an_archive_that_does_not_hold_it_is_named(
    cifar: Callable[[bytes], Server], tmp_path: Path, entries: list[Any], words: str
) -> None:
    cifar(tar(*entries))
    text = refusal("cifar10", tmp_path)
    assert text.startswith(f"{tmp_path / 'cifar10' / ARCHIVE}: {words}")
    assert f"cifar10/{FIRST}" not in files(tmp_path)


@pytest.mark.parametrize(
    "archive", [b"no archive", tar(*CIFAR.items())[:-200]], ids=("text", "cut off")
)
def test_what_is_no_whole_archive_is_named(
    cifar: Callable[[bytes], Server], tmp_path: Path, archive: bytes
) -> None:
    cifar(archive)
    text = refusal("cifar10", tmp_path)
    assert text.startswith(f"{tmp_path / 'cifar10' / ARCHIVE}: truncated or corrupt (")


# The command.


def test_the_command_tells_each_file_in_a_line_and_prints_the_folder(
    cli: CLI, mnist: Server, tmp_path: Path
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / IMAGES).write_bytes(MNIST[IMAGES])
    answer = cli("data", "fetch", "mnist", "--data-dir", tmp_path)
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'mnist'}\n")
    sizes = ["there already", *(f"{len(content)} B" for content in list(MNIST.values())[1:])]
    assert answer.err.splitlines() == [
        f"{name}: {size}" for name, size in zip(MNIST, sizes, strict=True)
    ]


def test_the_command_takes_a_mirror_and_the_data_directory_that_is_set(
    cli: CLI, mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_DATA_DIR", str(tmp_path / "set"))
    answer = cli("data", "fetch", "mnist", "--from", f"{mnist.url}/mirror")
    assert (answer.code, answer.out) == (0, f"{tmp_path / 'set' / 'mnist'}\n")
    assert mnist.asked[0] == f"/mirror/{IMAGES}"


def test_a_run_without_its_dataset_names_the_command_that_fetches_it(
    cli: CLI, mnist: Server, tmp_path: Path
) -> None:
    answer = cli("run", "-s", "data.dataset=mnist", "--data-dir", tmp_path / "my data")
    assert answer.code == 2
    command = answer.err.partition("Fetch them: ")[2].partition(";")[0]
    program, *arguments = shlex.split(command)
    assert program == "fedsim"
    assert cli(*arguments).code == 0
    assert files(tmp_path / "my data" / "mnist") == MNIST


def test_a_tilde_is_the_same_directory_to_every_command(
    cli: CLI, mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves it as it is in ``--data-dir=~/data``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "data" / "mnist"
    answer = cli("run", "-s", "data.dataset=mnist", "--data-dir=~/data")
    assert answer.err.startswith(f"error: {folder}: missing")
    assert cli("data", "fetch", "mnist", "--data-dir=~/data").out == f"{folder}\n"


def test_the_command_says_in_a_line_what_went_wrong(cli: CLI, server: Server) -> None:
    answer = cli("data", "fetch", "mnist", "--data-dir", "data", "--from", server.url)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        f"error: {server.url}/{IMAGES}: HTTP Error 404: Not Found; try again, name a mirror with "
        "--from, or put the file into data/mnist by hand\n"
    )
    assert cli("data", "fetch", "mnits").code == 2


def test_ctrl_c_in_the_middle_of_a_file_leaves_no_part_of_it(
    cli: CLI, mnist: Server, tmp_path: Path
) -> None:
    def interrupt(handler: BaseHTTPRequestHandler) -> None:
        send(handler, b"x" * fetch.CHUNK_BYTES, promised=2 * fetch.CHUNK_BYTES)
        while not any(name.endswith(".part") and part for name, part in files(tmp_path).items()):
            mnist.over.wait(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        mnist.over.wait(timeout=30)

    mnist.answers["train-labels-idx1-ubyte.gz"] = interrupt
    answer = cli("data", "fetch", "mnist", "--data-dir", tmp_path)
    assert (answer.code, answer.out) == (130, "")
    assert files(tmp_path) == {f"mnist/{IMAGES}": MNIST[IMAGES]}


def everything(descriptor: int) -> str:
    """Read a pseudo-terminal until its other end is closed, which is an error on Linux."""
    found = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal, suppress(OSError):
        while part := terminal.read(2**16):
            found += part
    return found.decode()


def test_a_terminal_shows_a_bar(
    cli: CLI, mnist: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pseudo-terminal stands in for standard error, and is read as it is written."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with ThreadPoolExecutor(1) as reader:
        shown = reader.submit(everything, ours)
        with monkeypatch.context() as patch, os.fdopen(theirs, "w") as terminal:
            patch.setattr(sys, "stderr", terminal)
            answer = cli("data", "fetch", "mnist", "--data-dir", tmp_path)
        text = shown.result(timeout=60)
    assert answer.code == 0
    assert "━" in text
    for name, content in MNIST.items():
        assert f"{name}: {len(content)} B" in text
