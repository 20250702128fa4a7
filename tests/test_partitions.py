"""Partitions: every example once, no client too small, and each kind's own promise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import PARTITIONS, Partition, make_partition, partitions
from fedsim.data.assignment import top_up
from fedsim.data.counting import apportion
from fedsim.errors import DataError
from fedsim.randomness import stream

Ints = npt.NDArray[np.int64]

# One row for each kind: the options that matter to it, drawn for a labelling of n examples.
ROWS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "iid": {},
    "dirichlet": {"alpha": st.sampled_from([5e-324, 1e-300, 1e-9, 1e-3, 0.1, 1.0, 1e6, 1e300])},
    "shards": {"shards_per_client": st.integers(1, 5)},
    "labels": {},
    "quantity": {"size_sigma": st.sampled_from([0.0, 0.5, 2.0, 1e3])},
    "natural": {},
}
DEALT = sorted(set(ROWS) - {"natural"})


def partition(kind: str, labels: Ints, *, seed: int = 0, **options: Any) -> Partition:
    defaults = {
        "clients": 10,
        "alpha": 0.3,
        "shards_per_client": 2,
        "labels_per_client": 2,
        "size_sigma": 1.0,
        "min_examples": 1,
        "natural": None,
    }
    return make_partition(kind, labels, rng=stream(seed, "partition"), **(defaults | options))


def balanced(n: int, classes: int = 10) -> Ints:
    """Labels of n examples in random order, as many of each class as possible."""
    return stream(0, "labels").permutation(np.arange(n) % classes)


def counts_by_client(dealt: Partition, labels: Ints) -> Ints:
    """How many examples of each class each client holds: shape (clients, classes)."""
    return np.array(
        [
            np.bincount(labels[dealt.indices(client)], minlength=int(labels.max()) + 1)
            for client in range(len(dealt))
        ]
    )


def test_table_has_every_kind() -> None:
    assert set(ROWS) == set(PARTITIONS)


@pytest.mark.parametrize("kind", DEALT)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_example_once_and_no_client_too_small(kind: str, data: st.DataObject) -> None:
    sparse = st.lists(st.sampled_from([0, 1, 2, 7]), min_size=2, max_size=120)
    labels = np.array(data.draw(sparse))
    clients = data.draw(st.integers(2, len(labels)))
    min_examples = data.draw(st.integers(1, len(labels) // clients))
    options = {name: data.draw(strategy) for name, strategy in ROWS[kind].items()}
    options["labels_per_client"] = len(set(labels.tolist()))
    dealt = partition(kind, labels, clients=clients, min_examples=min_examples, **options)
    assert len(dealt) == clients
    assert dealt.order.dtype == np.int64
    assert sorted(dealt.order.tolist()) == list(range(len(labels)))
    assert dealt.sizes.min() >= min_examples
    assert np.array_equal(np.concatenate([dealt.indices(c) for c in range(clients)]), dealt.order)
    assert all((np.diff(dealt.indices(client)) > 0).all() for client in range(clients))


@pytest.mark.parametrize("kind", DEALT)
def test_streams_decide(kind: str) -> None:
    labels = balanced(500)
    first, again, other = (partition(kind, labels, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.order, other.order)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "labels", "quantity"])
def test_which_examples_of_a_class_a_client_gets_is_random(kind: str) -> None:
    labels = np.zeros(400, np.int64)
    dealt = partition(kind, labels, clients=2, alpha=1e12, labels_per_client=1, size_sigma=0.0)
    assert dealt.sizes.tolist() == [200, 200]
    # A run, or every other example, would have steps of a single length.
    assert len(set(np.diff(dealt.indices(0)).tolist())) > 3
    assert dealt.indices(0).mean() == pytest.approx(199.5, abs=30)


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_a_million_clients(kind: str) -> None:
    n, clients = 1_200_000, 1_000_000
    natural = stream(0, "ids").permutation(np.arange(n) % clients)
    labels = stream(0, "labels").integers(0, 10, n)
    dealt = partition(kind, labels, clients=clients, shards_per_client=1, natural=natural)
    assert len(dealt) == clients
    assert dealt.sizes.sum() == n
    assert dealt.sizes.min() >= 1
    assert np.bincount(dealt.order, minlength=n).max() == 1


def test_iid_sizes_differ_by_at_most_one() -> None:
    dealt = partition("iid", balanced(1003), clients=10)
    assert sorted(set(dealt.sizes.tolist())) == [100, 101]


def test_dirichlet_at_large_alpha_is_even_in_every_class() -> None:
    labels = balanced(10_050)
    counts = counts_by_client(partition("dirichlet", labels, clients=20, alpha=1e12), labels)
    # A class of 1,005 examples makes 50.25 a client.
    assert set(np.unique(counts)) == {50, 51}


def test_dirichlet_at_large_alpha_rounds_up_elsewhere_in_each_class() -> None:
    # Each class has an example for every tenth client. Were those evenly spaced in each class,
    # clients j and j + 10 would always hold the same classes, and there would be about 10 mixes.
    labels = balanced(200)
    dealt = partition("dirichlet", labels, clients=200, alpha=1e12, min_examples=0)
    assert len({tuple(row) for row in counts_by_client(dealt, labels).tolist()}) > 30


def test_dirichlet_at_tiny_alpha_gives_each_class_to_one_client() -> None:
    labels = balanced(1000)
    dealt = partition("dirichlet", labels, clients=20, alpha=1e-9, min_examples=0)
    assert ((counts_by_client(dealt, labels) > 0).sum(axis=0) == 1).all()


def test_dirichlet_proportions_have_the_variance_of_the_distribution() -> None:
    clients, alpha, classes, each = 4, 0.5, 3000, 200
    labels = np.repeat(np.arange(classes), each)
    dealt = partition("dirichlet", labels, clients=clients, alpha=alpha, min_examples=0)
    parts = counts_by_client(dealt, labels) / each
    # Var p_j = (1/K)(1 - 1/K) / (K alpha + 1)
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert parts.mean(axis=1) == pytest.approx(1 / clients, abs=0.02)
    assert parts.var(axis=1) == pytest.approx(expected, rel=0.08)


def test_dirichlet_rounds_counts_by_systematic_sampling() -> None:
    # 3 examples a class, 2 clients, p ~ Beta(1/2, 1/2), u ~ U(0, 1): one client gets all 3 if
    # p < u / 3 or 1 - p < (1 - u) / 3, so with probability 6 int_0^{1/3} (2/pi) asin(sqrt x) dx.
    labels = np.repeat(np.arange(6000), 3)
    dealt = partition("dirichlet", labels, clients=2, alpha=0.5, min_examples=0)
    assert (counts_by_client(dealt, labels)[0] % 3 == 0).mean() == pytest.approx(0.5085, abs=0.02)


def test_dirichlet_deals_all_examples_where_proportions_sum_below_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partitions, "_dirichlet", lambda *_: np.array([0.5, 0.4]))
    assert partition("dirichlet", balanced(100), clients=2).sizes.sum() == 100


def test_dirichlet_takes_a_draw_of_zero() -> None:
    zeros: Any = SimpleNamespace(
        random=lambda size: np.zeros(size), standard_gamma=lambda shape, size: np.ones(size)
    )
    assert partitions._dirichlet(4, 0.1, zeros).tolist() == [0.25] * 4


def test_shards_are_those_of_the_paper() -> None:
    # McMahan et al. 2017: 60,000 examples sorted by label, 200 shards of 300, two a client.
    labels = balanced(60_000)
    dealt = partition("shards", labels, clients=100, shards_per_client=2)
    shard = np.empty(60_000, np.int64)
    shard[np.argsort(labels, kind="stable")] = np.repeat(np.arange(200), 300)
    held = [np.unique(shard[dealt.indices(client)], return_counts=True) for client in range(100)]
    assert [sizes.tolist() for _, sizes in held] == [[300, 300]] * 100
    pairs = np.array([which for which, _ in held])
    assert sorted(pairs.ravel().tolist()) == list(range(200))
    assert not (pairs[:, 1] == pairs[:, 0] + 1).all()


def test_uneven_shards_differ_by_at_most_one() -> None:
    dealt = partition("shards", np.zeros(1003, np.int64), clients=100, shards_per_client=1)
    assert sorted(set(dealt.sizes.tolist())) == [10, 11]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_label_sets_are_distinct_even_and_complete(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 12))
    each = data.draw(st.integers(1, classes))
    clients = data.draw(st.integers(max(2, -(-classes // each)), 40))
    labels = balanced(classes * clients * 3, classes)
    dealt = partition("labels", labels, clients=clients, labels_per_client=each)
    counts = counts_by_client(dealt, labels)
    assert ((counts > 0).sum(axis=1) == each).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.min() >= 1
    assert holders.max() - holders.min() <= 1
    for held in counts.T:
        assert np.ptp(held[held > 0]) <= 1


def test_label_sets_pair_labels_in_many_ways() -> None:
    labels = balanced(5000)
    counts = counts_by_client(partition("labels", labels, clients=100), labels)
    assert len({tuple(np.flatnonzero(row)) for row in counts}) > 30


def test_label_sets_give_the_larger_parts_to_anybody() -> None:
    # 10 of the 20 holders of a label get two of its 30 examples, the others one.
    sizes = partition("labels", balanced(300), clients=100).sizes
    assert sizes[:50].mean() == pytest.approx(sizes[50:].mean(), abs=0.6)


def test_label_sets_leave_out_labels_without_examples() -> None:
    labels = np.repeat([2, 5, 9], 40)
    dealt = partition("labels", labels, clients=6, labels_per_client=2)
    assert sorted(set(dealt.sizes.tolist())) == [20]


def test_quantity_sizes_follow_the_log_normal() -> None:
    dealt = partition("quantity", balanced(1_000_000), clients=2000, size_sigma=0.7)
    logs = np.log(dealt.sizes)
    assert logs.std() == pytest.approx(0.7, rel=0.05)
    assert dealt.sizes.mean() == 500


def test_quantity_without_spread_is_even() -> None:
    dealt = partition("quantity", balanced(1003), clients=10, size_sigma=0.0, min_examples=3)
    assert sorted(set(dealt.sizes.tolist())) == [100, 101]


@pytest.mark.parametrize("clients", [0, 3])
def test_natural_leaves_examples_where_they_are(clients: int) -> None:
    natural = np.array([2, 0, 1, 0, 2, 2])
    dealt = partition("natural", balanced(6), clients=clients, natural=natural)
    assert [dealt.indices(c).tolist() for c in range(len(dealt))] == [[1, 3], [2], [0, 4, 5]]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_top_up_moves_no_more_than_is_lacking(data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, 12))
    owners = st.lists(st.integers(0, clients - 1), min_size=clients, max_size=100)
    owner = np.array(data.draw(owners))
    least = data.draw(st.integers(0, len(owner) // clients))
    before = np.bincount(owner, minlength=clients)
    topped_up = top_up(owner, clients, least, stream(0, "top up"))
    after = np.bincount(topped_up, minlength=clients)
    assert (topped_up != owner).sum() == np.maximum(least - before, 0).sum()
    assert after[before < least].tolist() == [least] * int((before < least).sum())
    assert (after[before >= least] >= least).all()
    assert (after[before >= least] <= before[before >= least]).all()


def test_top_up_takes_in_proportion_to_what_is_above_the_minimum() -> None:
    owner = np.repeat([0, 1, 2], [50, 30, 0])
    # The minimum is 10: 40 and 20 are above it, and of the 10 lacking they give 7 and 3.
    assert np.bincount(top_up(owner, 3, 10, stream(0, "top up"))).tolist() == [43, 27, 10]


def test_top_up_takes_from_few_givers() -> None:
    owner = stream(0, "owners").permutation(np.repeat([0, 1, 2], 60))
    topped_up = top_up(owner, 8, 20, stream(0, "top up"))
    pairs = {(giver, receiver) for giver, receiver in zip(owner, topped_up, strict=True)}
    moves = {(giver, receiver) for giver, receiver in pairs if giver != receiver}
    # Givers and receivers in line: as many pairs as borders between them, and one.
    assert len(moves) <= 3 + 5 - 1


@given(
    total=st.integers(0, 10**6),
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3),
)
def test_apportioned_shares_sum_up_and_are_rounded_quotas(total: int, weights: list[float]) -> None:
    shares = apportion(total, np.array(weights))
    quota = total * np.array(weights) / sum(weights)
    assert shares.sum() == total
    assert (np.abs(shares - quota) < 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("dirichlt", {}, ["data.partition", "'dirichlt'", "'dirichlet'"]),
        ("iid", {"clients": 21}, ["data.clients = 21", "data.min_examples = 1", "20"]),
        ("iid", {"min_examples": 3}, ["data.clients = 10", "data.min_examples = 3", "30", "20"]),
        ("iid", {"clients": 21, "min_examples": 0}, ["21", "20"]),
        ("labels", {"labels_per_client": 11}, ["data.labels_per_client = 11", "10 labels"]),
        (
            "labels",
            {"clients": 4, "labels_per_client": 2},
            ["data.labels_per_client = 2", "data.clients = 4", "8 of 10", "set 3 or more"],
        ),
        ("natural", {}, ["no client ids", "data.client"]),
        ("natural", {"natural": np.arange(20) % 4}, ["data.clients = 10", "4 clients"]),
        (
            "natural",
            {"natural": np.arange(20) // 19, "clients": 2, "min_examples": 5},
            ["data.min_examples = 5", "client 1", "has 1"],
        ),
    ],
)
def test_impossible_partitions_say_what_to_change(
    kind: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        partition(kind, balanced(20), **options)
    for word in words:
        assert word in str(caught.value)
