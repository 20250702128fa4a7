"""Digests, blocks and orders against their plain forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.algorithms.sums import block_sum
from fedsim.measure.payload import update_summary
from fedsim.models import build_model
from fedsim.randomness import stream
from fedsim.training import CohortResult, Recipe, cut_blocks, plan_for, steps_of
from fedsim.training.blocks import Plan
from fedsim.training.digest import BLOCK, digest
from fedsim.training.local import batches
from fedsim.training.orders import chunks, shapes_of

SHAPES = {
    "small": {"a": (3, 4), "count": (), "b": (5,), "slope": (1,)},
    "large": {"a": (2, BLOCK + 7), "b": (5,), "c": (BLOCK,), "slope": (1,), "d": (BLOCK - 3,)},
    "nothing": {"count": ()},
}


def cohort(shapes: dict[str, Any], clients: int = 9) -> tuple[dict[str, Any], CohortResult]:
    """Return a model, and clients' models near it with some coordinates that did not move."""
    draw = stream(0, "cohort")
    start: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name, shape in shapes.items():
        if name == "count":
            start[name], after[name] = np.array(3), draw.integers(0, 99, clients)
            continue
        start[name] = draw.standard_normal(shape, dtype=np.float32)
        moved = draw.standard_normal((clients, *shape), dtype=np.float32)
        moved *= draw.random(moved.shape) < 0.7
        after[name] = start[name] + moved
    zeros = np.zeros(clients)
    return start, CohortResult(
        arrays=after,
        examples=draw.integers(1, 2**29, clients),
        steps=zeros.astype(np.int64),
        loss_first_step=zeros,
        loss_last_step=zeros,
    )


def model(result: CohortResult, place: int) -> dict[str, Any]:
    return {name: stack[place] for name, stack in result.arrays.items()}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("spoilt", [[], [0, 4]])
def test_digest(shapes: str, spoilt: list[int]) -> None:
    start, result = cohort(SHAPES[shapes])
    floating = [name for name in start if name != "count"]
    spoilt = spoilt if floating else []
    for place, value in zip(spoilt, [np.nan, -np.inf], strict=False):
        result.arrays["slope"][place] = value
    got = digest(start, result)
    good = [place for place in range(9) if place not in spoilt]
    assert np.flatnonzero(got.finite).tolist() == good
    expected = block_sum((model(result, i), int(result.examples[i])) for i in good)
    assert list(got.sum) == list(start)
    for name, array in expected.arrays.items():
        assert got.sum[name].tobytes() == array.tobytes(), name
    for place in range(9):
        summary = update_summary(start, model(result, place))
        assert got.tensor_norms(place) == pytest.approx(summary.layer_norms, rel=1e-13, nan_ok=True)
        assert got.update_norm[place] == pytest.approx(summary.norm, rel=1e-13, nan_ok=True)
        if summary.zero_fraction is not None:
            assert got.zero_fraction[place] == summary.zero_fraction
        else:
            assert np.isnan(got.zero_fraction[place])


def test_weights_follow_the_norms() -> None:
    start, result = cohort(SHAPES["small"])
    weights = np.array([0, 1, 0, 0, 0, 0, 0, 2, 0])
    seen = []

    def weigh(norms: Any) -> Any:
        seen.append(norms)
        return weights

    got = digest(start, result, weigh=weigh)
    assert np.array_equal(got.weights, weights)
    (norms,) = seen
    assert np.array_equal(norms, got.update_norm)
    expected = block_sum([(model(result, 1), 1), (model(result, 7), 2)])
    assert all((got.sum[name] == array).all() for name, array in expected.arrays.items())


def test_squares_that_overflow_are_no_sign_of_infinity() -> None:
    start = {"w": np.zeros(2)}
    _, result = cohort(SHAPES["small"], 1)
    large = CohortResult(**{**vars(result), "arrays": {"w": np.array([[1e200, 0.0]])}})
    assert digest(start, large).finite.tolist() == [True]


@given(
    st.lists(st.integers(1, 400), max_size=80),
    st.booleans(),
    st.integers(0, 20),
    st.integers(1, 16),
)
def test_blocks(steps: list[int], together: bool, size: int, least: int) -> None:
    plan = Plan(together=together, lanes=4, call=4, most=10, blocks=least)
    taken = np.array(steps, np.int64)
    blocks = cut_blocks(taken, plan=plan, size=size)
    flat = np.concatenate(blocks).tolist() if blocks else []
    assert sorted(flat) == list(range(len(steps)))
    assert all((np.diff(block) > 0).all() for block in blocks)
    assert [block[0] for block in blocks] == sorted(block[0] for block in blocks)
    if size:
        assert max(map(len, blocks), default=0) <= size
    else:
        assert len(blocks) >= min(least, len(steps))
        if not together and steps:  # Graham's bound
            loads = [int(taken[block].sum()) for block in blocks]
            assert max(loads) <= sum(loads) / len(blocks) + max(steps)
    if together and len(blocks) > 1:  # like goes with like
        ordered = sorted(blocks, key=lambda block: taken[block].max())
        pairs = itertools.pairwise(ordered)
        assert all(taken[a].max() <= taken[b].max() for a, b in pairs)
        assert sum(int(np.ptp(taken[b])) for b in blocks) <= max(steps) - min(steps)


def test_plans() -> None:
    """The rule for the models at hand, and that it can be overruled."""
    small = build_model("mlp", input_shape=(64,), classes=10, width=32, seed=0)
    large = build_model("mlp", input_shape=(784,), classes=10, seed=0)
    kernels = nn.Conv2d(1, 2, 3)
    assert [plan_for(m).together for m in (small, large, kernels)] == [True, False, False]
    assert plan_for(large, vectorize="always").together
    assert not plan_for(small, vectorize="never").together
    hundred = cut_blocks(np.full(100, 60), plan=plan_for(large))
    assert (len(hundred), {len(block) for block in hundred}) == (16, {6, 7})
    plan = plan_for(small)
    counts = {n: len(cut_blocks(np.full(n, 3), plan=plan)) for n in (1, 32, 33, 100, 1000, 9000)}
    assert counts == {1: 1, 32: 1, 33: 2, 100: 2, 1000: 4, 9000: 36}
    assert len(cut_blocks(np.full(1000, 60), plan=plan)) == 16  # more to do, more to share out


COUNTS = [
    {},
    {"epochs": 3},
    {"steps": 7},
    {"steps": 2, "epochs": 3},
    {"batch_size": 0, "epochs": 2},
    {"batch_size": 100},
]


@pytest.mark.parametrize("options", COUNTS)
def test_orders_are_those_of_the_plain_form(options: dict[str, int]) -> None:
    how = {"epochs": 1, "steps": 0, "batch_size": 4, **options}
    recipe = Recipe(**how, momentum=0.0, weight_decay=0.0, clip_norm=0.0, proximal_mu=0.0)
    sizes = [1, 3, 4, 5, 5, 8, 30, 80, 200, 5, 30, 30]  # equal ones share a chunk, and some do not
    draws = [stream(0, "held", client=place) for place in range(len(sizes))]
    clients = [rng.permutation(1000)[:size] for rng, size in zip(draws, sizes, strict=True)]
    rngs = [stream(0, "batches", client=place) for place in range(len(sizes))]
    seen = []
    for chunk in chunks(clients, rngs, recipe, lanes=3):
        for lane, place in enumerate(chunk.places):
            size = sizes[place]
            rng = stream(0, "batches", client=int(place))
            expected = list(batches(size, **how, rng=rng))
            assert chunk.taken[lane] == len(expected) == steps_of(size, **how)
            assert chunk.shape == shapes_of(sizes, recipe)[place]
            assert chunk.shape.width == shapes_of([size], recipe)[0].width
            for t, batch in enumerate(expected):
                count = chunk.sizes[t, lane]
                row = chunk.order[t, lane]
                assert row[:count].tolist() == clients[place][batch.numpy()].tolist()
                assert set(row[count:]) <= set(row[:count])  # filled with its own examples
            seen.append(int(place))
        assert (chunk.taken[len(chunk.places) :] == 0).all()
    assert sorted(seen) == list(range(len(sizes)))
