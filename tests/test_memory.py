"""Bytes saved for backward against closed forms and torch's own hooks; the peak of the process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.measure import memory
from fedsim.measure.memory import (
    Peak,
    SavedBytes,
    largest_batch,
    peak_memory,
    resident_bytes,
    saved_bytes,
    saved_model,
)
from fedsim.models import ACTIVATIONS, MODELS, build_model

Shape = tuple[int, ...]
CLASSES = 10
SMALL = (1, 8, 8)
# What a model needs that cannot take SMALL.
SHAPES = {"small_cnn": (1, 14, 14)}

# Tensors that a hidden layer keeps for backward, of one activation of each sort: what it saves is
# its result, which the next layer saves as its input, or it is not. test_activations.py has all.
KEPT = {"identity": 1, "relu": 1, "tanh": 1, "leaky_relu": 2, "prelu": 2, "gelu": 2}

M_MMAP_THRESHOLD, FRESH_BYTES = -3, 2**17  # malloc.h; glibc's default

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module", autouse=True)
def fresh_pages() -> None:
    """Let large blocks be fresh pages again, should an earlier test have opened a Ray engine.

    The engine tells glibc to keep them (``keep_freed_memory``), and what is resident already
    cannot be seen to grow.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, FRESH_BYTES)


def build(name: str, shape: Shape = SMALL, **settings: Any) -> nn.Module:
    return build_model(name, input_shape=shape, classes=CLASSES, seed=0, **settings)


def batch(examples: int, shape: Shape = SMALL) -> tuple[Tensor, Tensor]:
    return torch.rand(examples, *shape), torch.randint(CLASSES, (examples,))


def saved_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Add up what a real step saves, by the address of its memory."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(x), y)
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in parameters)


@pytest.mark.parametrize("activation", KEPT)
@pytest.mark.parametrize(("examples", "width", "depth"), [(1, 5, 1), (10, 200, 2), (33, 7, 4)])
def test_the_mlp_by_layer(activation: str, examples: int, width: int, depth: int) -> None:
    model = build("mlp", activation=activation, width=width, depth=depth)
    hidden = 4 * width * examples
    expected = {"dense1": 4 * 64 * examples}
    for i in range(1, depth + 1):
        following = f"dense{i + 1}" if i < depth else "output"
        if activation != "identity":
            expected[f"activation{i}"] = hidden
        if activation == "identity" or KEPT[activation] == 2:
            expected[following] = hidden
    logits, labels, total_weight = 4 * CLASSES * examples, 8 * examples, 4
    expected["loss"] = logits + labels + total_weight
    assert saved_bytes(model, *batch(examples)) == expected
    whole = 4 * 64 * examples + KEPT[activation] * depth * hidden + expected["loss"]
    assert sum(expected.values()) == whole


def test_the_2nn_in_figures() -> None:
    shape = (1, 28, 28)
    totals = {
        name: saved_model(build("mlp", shape, activation=name), shape).of(10)
        for name in ("identity", "relu", "tanh", "sigmoid", "gelu", "silu")
    }
    one, more = 31_360 + 16_000 + 400 + 80 + 4, 16_000
    assert totals == {
        **dict.fromkeys(("identity", "relu", "tanh", "sigmoid"), one),
        **dict.fromkeys(("gelu", "silu"), one + more),
    }


@each_activation
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("mlp", SMALL), ("mlp", (7,)), ("cnn", SMALL), ("cnn", (3, 9, 13))),
        ("small_cnn", (2, 14, 15)),
    ],
)
def test_real_steps_save_what_is_counted(name: str, shape: Shape, activation: str) -> None:
    model = build(name, shape, activation=activation, width=6)
    saved = saved_model(model, shape)
    for examples in (1, 4, 9):
        x, y = batch(examples, shape)
        counted = saved_bytes(model, x, y)
        assert saved.by_layer(examples) == counted
        assert saved.of(examples) == sum(counted.values()) == saved_by_hand(model, x, y)


@each_model
def test_every_layer_may_be_the_first_to_save(name: str) -> None:
    """Nothing is attributed to a layer that comes before it ran."""
    shape = SHAPES.get(name, SMALL)
    order = [*(n for n, _ in build(name, shape).named_children()), "loss"]
    saved = list(saved_model(build(name, shape, activation="gelu"), shape).per_example)
    assert saved == [layer for layer in order if layer in saved]


def test_a_pooling_saves_the_places_of_its_maxima() -> None:
    saved = saved_model(build("cnn"), SMALL).per_example
    assert saved["pool1"] == 8 * 32 * 4 * 4  # int64, an element each
    assert saved["activation1"] == 4 * 32 * 8 * 8  # relu's result is the pooling's input too
    assert saved["conv2"] == 4 * 32 * 4 * 4


def test_a_batch_that_is_part_of_more_counts_alone() -> None:
    model, (x, y) = build("mlp", width=3), batch(100)
    assert saved_bytes(model, x[3:7], y[3:7]) == saved_bytes(model, *batch(4))


def test_buffers_do_not_count_and_what_shares_memory_counts_once() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin() + x.view(-1).cos().view_as(x)  # both save the memory of x

    model = nn.Sequential(nn.Linear(4, 3), Shared(), nn.BatchNorm1d(3))
    saved = saved_bytes(model, torch.rand(5, 4), torch.zeros(5, dtype=torch.int64))
    assert saved["0"] == 4 * 4 * 5
    assert saved["1"] == 4 * 3 * 5
    assert saved["2"] == 4 * 3 * 5 + 2 * 4 * 3  # with the batch's mean and deviation


def test_a_network_of_one_layer() -> None:
    saved = saved_bytes(nn.Linear(4, 3), torch.rand(5, 4), torch.zeros(5, dtype=torch.int64))
    assert saved == {"": 4 * 4 * 5, "loss": 4 * 3 * 5 + 8 * 5 + 4}


@each_model
def test_the_model_is_not_touched(name: str) -> None:
    shape = SHAPES.get(name, SMALL)
    model = build(name, shape, width=4).eval()
    model.append(nn.BatchNorm1d(CLASSES))  # type: ignore[operator]
    model.append(nn.Dropout())  # type: ignore[operator]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, y = batch(3, shape)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    saved_bytes(model, x, y)
    saved_model(model, shape)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == [None] * len(list(model.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model[-1].training  # type: ignore[index]
    assert not model[0].training  # type: ignore[index]


sizes = st.integers(0, 10**6)


@given(sizes, sizes, sizes, st.integers(1, 10**4), st.none() | st.integers(0, 10**4))
def test_the_largest_batch_fits_and_one_more_does_not(
    cap: int, fixed: int, saved_once: int, each: int, examples: int | None
) -> None:
    saved = SavedBytes(fixed={"a": saved_once, "b": 0}, per_example={"a": each, "b": each})
    found = largest_batch(cap, fixed_bytes=fixed, saved=saved, examples=examples)
    if found:
        assert fixed + saved.of(found) <= cap
    if examples is None or found < examples:
        assert fixed + saved.of(found + 1) > cap
    else:
        assert found == examples


def test_the_largest_batch_by_hand() -> None:
    saved = SavedBytes(fixed={"loss": 4}, per_example={"loss": 10})
    fits = [largest_batch(cap, fixed_bytes=100, saved=saved, examples=None) for cap in (113, 114)]
    assert fits == [0, 1]
    assert largest_batch(10**6, fixed_bytes=100, saved=saved, examples=7) == 7


# The peak of the process.

MIB = 2**20
SLACK = 4 * MIB  # what the interpreter does meanwhile, and how exactly Linux counts


def allocate(mib: int) -> Tensor:
    return torch.ones(mib * MIB, dtype=torch.uint8)


def figure(peak: Peak) -> int:
    assert peak.reason == ""
    assert peak.above_bytes is not None
    return peak.above_bytes


@pytest.fixture(autouse=True)
def baselines(monkeypatch: pytest.MonkeyPatch) -> dict[Any, int]:
    """Let every test begin without baselines."""
    fresh: dict[Any, int] = {}
    monkeypatch.setattr(memory, "BASELINES", fresh)
    return fresh


linux = pytest.mark.skipif(not memory.CLEAR.exists(), reason="Linux alone says")


@linux
def test_a_peak_is_seen_though_it_is_gone_when_the_block_ends() -> None:
    with peak_memory() as peak:
        assert peak == Peak()
        allocate(64)
    assert abs(figure(peak) - 64 * MIB) < SLACK
    assert peak.peak_bytes is not None
    assert peak.peak_bytes >= 64 * MIB
    with peak_memory() as after:
        pass
    assert figure(after) < SLACK  # the mark began anew


@linux
def test_a_baseline_is_of_the_first_block_of_its_name() -> None:
    with peak_memory("one"):
        pass
    kept = allocate(64)
    with peak_memory("one") as first, peak_memory("two") as second:
        pass
    assert abs(figure(first) - len(kept)) < SLACK
    assert figure(second) < SLACK
    del kept


def pieces(mib: int) -> list[Tensor]:
    """Allocate from the heap; the last piece keeps the others' pages there when they are freed."""
    return [torch.ones(MIB // 16, dtype=torch.uint8) for _ in range(16 * mib)]


@linux
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone trims")
def test_a_baseline_is_without_what_earlier_blocks_left() -> None:
    """Or the first block of a process would have a larger figure than others that do the same."""
    with peak_memory("first") as first:
        last = pieces(64)[-1]
    with peak_memory("first") as again, peak_memory("second") as second:
        again_last = pieces(64)[-1]
    assert abs(figure(first) - 64 * MIB) < SLACK
    assert abs(figure(again) - 64 * MIB) < SLACK
    assert abs(figure(second) - 64 * MIB) < SLACK
    del last, again_last


@linux
def test_a_baseline_is_without_garbage(baselines: dict[Any, int]) -> None:
    memory.give_back()
    before = resident_bytes()
    assert before is not None
    gc.disable()
    try:
        cycle: list[Any] = [allocate(64)]
        cycle.append(cycle)
        del cycle
        with peak_memory("one"):
            pass
    finally:
        gc.enable()
    assert abs(baselines["one", "cpu"] - before) < SLACK


@linux
def test_what_is_loaded_once_is_in_every_baseline() -> None:
    loaded: list[Tensor] = []

    def warm_up() -> None:
        loaded.append(allocate(64))

    peaks = []
    for name in ("one", "one", "two", None):
        with peak_memory(name, warm_up=warm_up) as peak:
            pass
        peaks.append((len(loaded), figure(peak) // (32 * MIB)))
    assert peaks == [(1, 0), (1, 0), (2, 0), (2, 0)]


@linux
def test_without_glibc_the_peak_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(name: None) -> object:
        return object()  # which has no malloc_trim

    monkeypatch.setattr(memory.ctypes, "CDLL", library)
    with peak_memory("one") as peak:
        allocate(64)
    assert abs(figure(peak) - 64 * MIB) < SLACK


@linux
def test_a_process_that_shrank_has_no_peak_below_zero() -> None:
    big = allocate(64)
    with peak_memory("big"):
        pass
    del big
    with peak_memory("big") as peak:
        pass
    assert peak.above_bytes == 0


@linux
def test_a_block_that_raises_is_measured_too() -> None:
    with pytest.raises(ZeroDivisionError), peak_memory() as peak:
        _ = len(allocate(64)) / 0
    assert figure(peak) > 60 * MIB


@linux
def test_resident_memory_grows_with_what_is_touched() -> None:
    before = resident_bytes()
    kept = allocate(64)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert abs(after - before - len(kept)) < SLACK


def no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    return "No such file"


def no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSSS:\t7 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    return "has no VmRSS"


def no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t7 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    return "has no VmHWM"


def no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(memory, "CLEAR", tmp_path)  # a directory: nobody may write it
    return "directory"


@linux
@pytest.mark.parametrize("missing", [no_file, no_line, no_mark, no_permission])
@pytest.mark.parametrize("baseline", [None, "named"])
def test_where_nobody_says_there_is_a_reason(
    missing: Callable[[Path, pytest.MonkeyPatch], str],
    baseline: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    why = missing(tmp_path, monkeypatch)
    warmed: list[int] = []
    with peak_memory(baseline, warm_up=lambda: warmed.append(1)) as peak:
        pass
    assert (peak.peak_bytes, peak.above_bytes) == (None, None)
    assert bool(warmed) == (baseline is not None and missing in (no_mark, no_permission))
    assert why in peak.reason
    assert str(tmp_path) in peak.reason


def test_status_is_in_kibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\tVmRSS: 5 kB\nVmHWM:\t  226060 kB\nVmRSS:\t  7 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.status_bytes("VmHWM") == 226_060 * 1024
    assert resident_bytes() == 7 * 1024
    (tmp_path / "status").unlink()
    assert resident_bytes() is None


def test_on_cuda_the_allocator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    held, reset = [100, 500], []
    fake = memory.Meter(
        held=lambda: held[0], peak=lambda: held[1], reset=lambda: reset.append(tuple(held))
    )
    monkeypatch.setitem(memory.METERS, "cuda", fake)
    with peak_memory("gpu", device="cuda") as peak:
        assert reset == [(100, 500)]
    assert (peak.peak_bytes, peak.above_bytes) == (500, 400)
    held[:] = [300, 700]
    with peak_memory("gpu", device="cuda") as peak:
        pass
    assert (peak.peak_bytes, peak.above_bytes) == (700, 600)
