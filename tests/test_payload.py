"""What is counted of an update: norms, zeros, energy, entropy, blank inputs, angles."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as some_array
from torch import nn

from fedsim.measure import entropy
from fedsim.measure.entropy import entropy_bits, quantisation_step, rounding_error
from fedsim.measure.payload import (
    ZSTD_LEVEL,
    UpdateSummary,
    blank_coordinates,
    cosine,
    dense_bytes,
    flat_update,
    relative_error,
    update_statistics,
    update_summary,
)
from fedsim.models import build_model
from fedsim.randomness import stream
from fedsim.training import read_arrays, train_locally

F32 = np.float32
# Any finite float32, also subnormal and near the largest; exact zeros are common.
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(0.0)
vectors = some_array(F32, st.integers(1, 40), elements=numbers)


def normal(purpose: str, *shape: int) -> np.ndarray:
    return stream(0, purpose).standard_normal(shape, F32)


def test_dense_bytes_counts_elements() -> None:
    arrays = {"w": np.zeros((3, 2), F32), "s": np.array(1.0), "n": np.zeros(3, np.int8)}
    assert dense_bytes(arrays) == 3 * 2 * 4 + 8 + 3
    assert dense_bytes({}) == 0


def test_summary_by_hand() -> None:
    before = {"a": np.array([1, 1, 7], F32), "b": np.zeros((1, 1), F32)}
    after = {"b": np.array([[12]], F32), "a": np.array([4, 5, 7], F32)}
    summary = update_summary(before, after)
    assert summary == UpdateSummary(
        norm=13.0, zero_fraction=1 / 4, layer_norms={"a": 5.0, "b": 12.0}
    )
    assert list(summary.layer_norms) == ["a", "b"]


def test_only_floating_tensors_are_an_update() -> None:
    before = {
        "scale": np.array(1.0, F32),  # 0-d
        "seen": np.array(10),  # as batch normalisation counts
        "none": np.zeros((0, 4), F32),
        "wide": np.array([1.0, 2.0]),
        "half": np.array([1.0], np.float16),
    }
    after = {
        **before,
        "scale": np.array(4.0, F32),
        "seen": np.array(70),
        "wide": np.array([5.0, 2]),
    }
    summary = update_summary(before, after)
    assert summary.layer_norms == {"scale": 3.0, "none": 0.0, "wide": 4.0, "half": 0.0}
    assert (summary.norm, summary.zero_fraction) == (5.0, 2 / 4)
    assert flat_update(before, after).tolist() == [3.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("arrays", [{}, {"n": np.arange(3)}, {"w": np.zeros((0, 2), F32)}])
def test_an_update_without_elements(arrays: dict[str, np.ndarray]) -> None:
    summary = update_summary(arrays, arrays)
    assert (summary.norm, summary.zero_fraction) == (0.0, None)
    flat = flat_update(arrays, arrays)
    assert (flat.shape, flat.dtype) == ((0,), F32)
    assert relative_error(arrays, arrays) is None


def test_norms_do_not_overflow_in_float32() -> None:
    before = {"w": np.full(4, -1e30, F32)}
    after = {"w": np.full(4, 1e30, F32)}
    assert update_summary(before, after).layer_norms["w"] == pytest.approx(4e30, rel=1e-6)


def test_differences_are_not_rounded_to_float32() -> None:
    before, after = {"w": np.array([1], F32)}, {"w": np.array([-(2.0**-40)], F32)}
    assert update_summary(before, after).norm == 1 + 2.0**-40


@pytest.mark.parametrize(("value", "norm"), [(np.nan, math.nan), (np.inf, math.inf)])
def test_an_update_that_is_not_finite_is_said_to_be_so(value: float, norm: float) -> None:
    before, after = {"w": np.zeros(3, F32)}, {"w": np.array([0, value, 1], F32)}
    summary = update_summary(before, after)
    assert summary.norm == pytest.approx(norm, nan_ok=True)
    assert summary.zero_fraction == 1 / 3
    statistics = update_statistics(flat_update(before, after), blank=None)
    assert statistics == {
        "compressed_bytes": len(zstandard.compress(after["w"].tobytes(), ZSTD_LEVEL)),
        "zero_fraction_without_blank": 1 / 3,
        "top_1_percent_energy": None,
        "top_10_percent_energy": None,
        "entropy_bits": None,
    }
    assert math.isnan(cosine(after["w"], np.ones(3, F32)) or 0)
    assert relative_error(before, after) is relative_error(after, before) is None


@settings(deadline=None, max_examples=50)
@given(vectors, st.randoms(use_true_random=False), st.integers(1, 9))
def test_summary_is_the_definition_whatever_the_blocks(
    old: np.ndarray, shuffler: Any, block: int
) -> None:
    new = np.array([shuffler.choice([value, shuffler.choice(list(old))]) for value in old], F32)
    exact = new.astype(float) - old.astype(float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "BLOCK", block)
        summary = update_summary({"w": old}, {"w": new})
    assert summary.norm == pytest.approx(math.hypot(*exact), rel=1e-14)
    assert summary.zero_fraction == np.mean(exact == 0)


def test_flat_update_is_in_the_models_order_in_float32() -> None:
    before = {"b": normal("b", 2, 3), "a": normal("a", 4)}
    after = {"a": normal("c", 4), "b": normal("d", 2, 3)}
    flat = flat_update(before, after)
    expected = np.concatenate([(after[k] - before[k]).ravel() for k in ("b", "a")])
    assert flat.dtype == F32
    assert flat.tobytes() == expected.tobytes()


def test_flat_update_takes_differences_before_it_rounds() -> None:
    half, wide = np.array([1], np.float16), np.array([1.0])
    after = {"half": np.array([2.0**-24], np.float16), "wide": np.array([1 + 2.0**-40])}
    expected = [2.0**-24 - 1, 2.0**-40]
    assert flat_update({"half": half, "wide": wide}, after).tolist() == expected


def test_flat_update_beyond_float32_is_infinite() -> None:
    before, after = {"w": np.array([-3e38], F32)}, {"w": np.array([3e38], F32)}
    assert flat_update(before, after).tolist() == [math.inf]


def test_statistics_by_hand() -> None:
    update = np.concatenate([np.zeros(50), -np.arange(1, 101)]).astype(F32)
    blank = np.arange(150) < 30
    statistics = update_statistics(update, blank=blank)
    energy = 338_350  # 1 + 4 + ... + 10,000
    assert statistics["zero_fraction_without_blank"] == 20 / 120
    assert statistics["top_1_percent_energy"] == (100**2 + 99**2) / energy  # 1.5 coordinates
    assert statistics["top_10_percent_energy"] == sum(i * i for i in range(86, 101)) / energy
    assert update_statistics(update, blank=None)["zero_fraction_without_blank"] == 50 / 150
    everywhere = update_statistics(update, blank=np.ones(150, bool))
    assert everywhere["zero_fraction_without_blank"] is None


@pytest.mark.parametrize("size", [0, 1, 3, 100, 5000])
def test_compressed_bytes_are_of_one_frame_that_holds_the_update(size: int) -> None:
    update = np.round(normal("frame", size))
    frame = zstandard.ZstdCompressor(level=1).compress(update.tobytes())
    assert zstandard.decompress(frame) == update.tobytes()
    assert update_statistics(update, blank=None)["compressed_bytes"] == len(frame)


def test_the_magnitude_counts_not_the_sign() -> None:
    update = np.array([-3, 1, 1, 1, 1, 1, 1, 1, 1, 1], F32)
    assert update_statistics(update, blank=None)["top_10_percent_energy"] == 9 / 18


@settings(deadline=None, max_examples=50)
@given(some_array(F32, st.integers(1, 250), elements=numbers))
def test_energy_is_the_definition(update: np.ndarray) -> None:
    statistics = update_statistics(update, blank=None)
    squares = np.sort(update.astype(float) ** 2)[::-1]
    for percent in (1, 10):
        share = statistics[f"top_{percent}_percent_energy"]
        if not update.any():
            assert share is None
            continue
        count = math.ceil(percent * update.size / 100)
        expected = math.fsum(squares[:count]) / math.fsum(squares)
        assert share == pytest.approx(expected, rel=1e-12)
        assert 0 < share <= 1


def test_energy_is_no_more_than_everything() -> None:
    """Sums of the same squares in another order differ in the last bit, upwards as well."""
    for i in range(200):
        update = np.zeros(400, F32)
        update[stream(i, "places").permutation(400)[:40]] = normal(f"some {i}", 40)
        share = update_statistics(update, blank=None)["top_10_percent_energy"]
        assert share == pytest.approx(1.0, rel=1e-14)
        assert share <= 1


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_zero_update(size: int) -> None:
    statistics = update_statistics(np.zeros(size, F32), blank=None)
    assert statistics["top_1_percent_energy"] is statistics["top_10_percent_energy"] is None
    assert statistics["entropy_bits"] == 0.0
    assert statistics["zero_fraction_without_blank"] == (1.0 if size else None)


def test_statistics_of_a_strided_update_are_those_of_its_copy() -> None:
    update = normal("strided", 2000)[::2]
    assert update_statistics(update, blank=None) == update_statistics(update.copy(), blank=None)


def norm(update: np.ndarray) -> float:
    return math.hypot(*update.astype(float))


@settings(deadline=None, max_examples=200)
@given(vectors.filter(np.any))
@example(np.array([1], F32))
@example(np.array([1e-45], F32))
@example(np.array([3.4e38, 1e-45], F32))
@example(np.full(40, 3.4e38, F32))
@example(np.array([1, *[1e-3] * 39], F32))
@example(np.array([1, *[0.1] * 39], F32))
def test_the_step_loses_a_tenth_and_the_search_ends(update: np.ndarray) -> None:
    tries = 0

    def counting(*arguments: Any) -> float:
        nonlocal tries
        tries += 1
        return rounding_error(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "rounding_error", counting)
        step = quantisation_step(update, norm(update))
    wide = update.astype(float)
    lost = math.hypot(*(wide - step * np.rint(wide / step))) / norm(update)
    assert lost == pytest.approx(0.1, rel=1.001e-3)
    assert tries <= 30


@pytest.mark.parametrize("jump", [0.21, 0.7, 1.3, 2.9])
@pytest.mark.parametrize(("under", "over"), [(0.2, 3.9), (0.399, 3.9), (1e-9, 0.401)])
def test_the_search_closes_in_on_a_jump(
    jump: float, under: float, over: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No secant finds one. Real errors do not jump, but some rise steeply."""
    update = np.array([1.0] * 16, F32)
    monkeypatch.setattr(entropy, "rounding_error", lambda _, step: under if step < jump else over)
    assert quantisation_step(update, 4.0) == pytest.approx(jump, rel=1e-12)


@pytest.mark.parametrize("error", [0.0, 0.2, 3.9, math.inf])
def test_the_search_ends_where_the_error_never_changes(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropy, "rounding_error", lambda _, step: error)
    assert quantisation_step(np.array([1.0] * 16, F32), 4.0) > 0


@settings(deadline=None, max_examples=50)
@given(vectors.filter(np.any), st.integers(1, 9))
def test_entropy_is_the_definition_whatever_the_blocks(update: np.ndarray, block: int) -> None:
    step = quantisation_step(update, norm(update))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "BLOCK", block)
        bits = entropy_bits(update, norm=norm(update))
        assert rounding_error(update, step) == pytest.approx(
            math.hypot(*(update.astype(float) - step * np.rint(update.astype(float) / step)))
        )
    counts = Counter(np.rint(update.astype(float) * (1 / step)).tolist()).values()
    expected = -sum(c * math.log2(c / update.size) for c in counts)
    assert bits == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_entropy_by_hand() -> None:
    signs = np.array([1, -1, 1, 1] * 8, F32)  # a quarter is negative: two levels
    expected = 32 * (2 / 4 + 3 / 4 * math.log2(4 / 3))
    assert entropy_bits(signs, norm=norm(signs)) == pytest.approx(expected, rel=1e-14)
    same = np.full(10, -2.5, F32)
    assert entropy_bits(same, norm=norm(same)) == 0.0


def test_entropy_of_a_normal_density() -> None:
    """At a fine step the bits a coordinate are the differential entropy - log2(step)."""
    update = normal("normal", 200_000)
    expected = math.log2(math.sqrt(2 * math.pi * math.e) / (0.1 * math.sqrt(12)))
    bits = entropy_bits(update, norm=math.sqrt(float((update.astype(float) ** 2).sum())))
    assert bits is not None
    assert bits / update.size == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("scale", [1e-30, 7.0, 1e30])
def test_statistics_do_not_depend_on_the_scale(scale: float) -> None:
    update = normal("scale", 500)
    one, other = (update_statistics((f * update).astype(F32), blank=None) for f in (1, scale))
    for name in ("top_1_percent_energy", "top_10_percent_energy", "entropy_bits"):
        assert one[name] == pytest.approx(other[name], rel=1e-2)


def test_equal_updates_have_equal_statistics() -> None:
    update = normal("equal", 70_000)  # more than two blocks
    assert update_statistics(update, blank=None) == update_statistics(update.copy(), blank=None)


def inputs() -> torch.Tensor:
    """Return two examples of 2 x 3 pixels: 0 and 4 are blank, 1 is blank in one, 2 is negative."""
    return torch.tensor([[[[0.0, 1, -1], [2, 0, 3]]], [[[0, 0, 0], [0, -0.0, 4]]]])


@pytest.mark.parametrize("activation", ["relu", "tanh", "prelu"])
def test_blank_coordinates_are_what_training_leaves(activation: str) -> None:
    shape = {"input_shape": (1, 2, 3), "classes": 3, "width": 5}
    model = build_model("mlp", **shape, activation=activation, seed=1)
    x, y = inputs(), torch.tensor([0, 2])
    blank = blank_coordinates(model, x)
    assert blank is not None
    before = read_arrays(model)
    marked = {k: np.zeros_like(v) for k, v in before.items()}
    marked["dense1.weight"][:, [0, 4]] = 1
    zero = {k: np.zeros_like(v) for k, v in before.items()}
    assert blank.tolist() == flat_update(zero, marked).astype(bool).tolist()

    none: dict[str, Any] = {"momentum": 0, "weight_decay": 0, "clip_norm": 0, "proximal_mu": 0}
    sizes = {"epochs": 5, "steps": 0, "batch_size": 1}
    train_locally(model, x, y, **sizes, **none, learning_rate=0.1, rng=stream(0, "b"))
    update = flat_update(before, read_arrays(model))
    assert not update[blank].any()
    statistics = update_statistics(update, blank=blank)
    assert statistics["zero_fraction_without_blank"] == np.mean(update[~blank] == 0)


def test_blank_coordinates_skip_integer_buffers() -> None:
    model = nn.Linear(6, 2)
    model.register_buffer("seen", torch.tensor(3))
    model.register_buffer("mean", torch.zeros(2))
    blank = blank_coordinates(model, inputs())
    assert blank is not None
    row = [True, False, False, False, True, False]
    assert blank.tolist() == [*row, *row, *[False] * 2, *[False] * 2]


@pytest.mark.parametrize(
    "model",
    [
        build_model("cnn", input_shape=(1, 2, 3), classes=2, width=3, depth=1, seed=0),
        nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)),  # something comes before
        nn.Sequential(OrderedDict(dense=nn.Linear(3, 2))),  # along the last dimension
        nn.Flatten(),
    ],
)
def test_where_no_dense_layer_is_first_nothing_is_blank(model: nn.Module) -> None:
    assert blank_coordinates(model, inputs()) is None


def test_cosine_by_hand() -> None:
    a = np.array([3, 4, 0], F32)
    assert cosine(a, 7 * a) == 1.0
    assert cosine(a, -a) == -1.0
    assert cosine(a, np.array([0, 0, 5], F32)) == 0.0
    assert cosine(a, np.array([1, 0, 0], float)) == pytest.approx(0.6, rel=1e-15)
    assert cosine(a, np.zeros(3, F32)) is cosine(np.zeros(3, F32), a) is None
    assert cosine(np.zeros(0, F32), np.zeros(0, F32)) is None
    assert cosine(np.zeros(1, F32), np.array([np.inf], F32)) is None


@settings(deadline=None, max_examples=50)
@given(vectors, st.integers(1, 9))
def test_cosine_is_the_definition(a: np.ndarray, block: int) -> None:
    b = np.roll(a, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "BLOCK", block)
        found, alone = cosine(a, b), cosine(a, a)
    if not a.any():
        assert found is alone is None
        return
    product = math.fsum(a.astype(float) * b.astype(float))
    assert found == pytest.approx(product / norm(a) ** 2, rel=1e-12, abs=1e-12)
    assert -1 <= found <= 1
    assert alone == pytest.approx(1.0, rel=1e-14)
    assert alone <= 1


def test_relative_error_by_hand() -> None:
    meant = {"a": np.array([3, 0], F32), "b": np.array(4, F32), "n": np.array(2)}
    sent = {"n": np.array(9), "b": np.array(4, F32), "a": np.array([3, 0.5], F32)}
    assert relative_error(meant, sent) == 0.1
    assert relative_error(meant, meant) == 0.0
    nothing = {name: np.zeros_like(value) for name, value in meant.items()}
    assert relative_error(nothing, sent) is None
