"""Random streams: alike for equal keys, unlike for others, and the same for ever."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.federation.sampling import choose_clients
from fedsim.randomness import key, stream, streams

small = st.integers(0, 12)
keys = st.tuples(small, st.sampled_from(["sampling", "batches", "1/2", "2"]), small, small)


def draws(seed: int, purpose: str, round: int, client: int) -> list[int]:
    generator = stream(seed, purpose, round=round, client=client)
    return generator.integers(0, 2**64, size=4, dtype=np.uint64).tolist()


@settings(deadline=None)
@given(keys, keys)
def test_streams_are_equal_exactly_where_their_keys_are(
    one: tuple[int, str, int, int], other: tuple[int, str, int, int]
) -> None:
    assert (draws(*one) == draws(*other)) == (one == other)
    assert (key(*one) == key(*other)) == (one == other)


@settings(deadline=None)
@given(keys, st.lists(small, max_size=6), st.integers(0, 5))
def test_one_generator_for_many_clients(
    one: tuple[int, str, int, int], clients: list[int], drawn: int
) -> None:
    """Each client's draws are its own, whatever was left of the stream before."""
    seed, purpose, round, _ = one
    for client, rng in zip(
        clients, streams(seed, purpose, round=round, clients=clients), strict=True
    ):
        expected = stream(seed, purpose, round=round, client=client)
        rng.integers(0, 2**31, size=drawn, dtype=np.int32)  # may leave half a word
        expected.integers(0, 2**31, size=drawn, dtype=np.int32)
        assert rng.permutation(7).tolist() == expected.permutation(7).tolist()
        assert rng.standard_normal(3).tolist() == expected.standard_normal(3).tolist()


def test_streams_are_not_shifts_of_each_other() -> None:
    """Seeds that are counted up must not give draws that another seed gives later."""
    pool = [d for seed in range(50) for d in stream(seed, "x").integers(0, 2**62, 50).tolist()]
    assert len(set(pool)) == len(pool)


def test_draws_never_change() -> None:
    """Every published result hangs on these figures."""
    assert key(0, "sampling") == 80870209220532661089773429251064274665
    assert draws(7, "batches", 3, 11) == [
        13513516797437937137,
        16454593048647941405,
        15743732993085246020,
        13670168017600786367,
    ]
    assert stream(7, "batches", round=3, client=11).permutation(8).tolist() == [
        3,
        7,
        4,
        0,
        2,
        6,
        5,
        1,
    ]
    assert choose_clients(0, 1, clients=50, cohort=6) == [2, 5, 17, 22, 45, 46]


def test_another_process_draws_the_same() -> None:
    code = "from fedsim.randomness import stream; print(stream(5, 'x').integers(0, 2**62))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(shown) == stream(5, "x").integers(0, 2**62)


def test_global_generators_have_no_say() -> None:
    random.seed(1)
    np.random.seed(1)
    first = draws(0, "x", 0, 0), choose_clients(0, 1, clients=9, cohort=4)
    random.seed(2)
    np.random.seed(2)
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert (draws(0, "x", 0, 0), choose_clients(0, 1, clients=9, cohort=4)) == first
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), round=st.integers(1, 1000), data=st.data())
def test_cohorts_are_distinct_sorted_clients(seed: int, round: int, data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, 60))
    cohort = data.draw(st.integers(1, clients))
    chosen = choose_clients(seed, round, clients=clients, cohort=cohort)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == cohort
    assert set(chosen) <= set(range(clients))
    assert all(type(client) is int for client in chosen)
    assert chosen == choose_clients(seed, round, clients=clients, cohort=cohort)


def test_a_cohort_of_all_is_everybody() -> None:
    assert choose_clients(3, 5, clients=7, cohort=7) == list(range(7))


def test_cohorts_differ_between_rounds_and_seeds() -> None:
    chosen = {
        tuple(choose_clients(seed, round, clients=100, cohort=10))
        for seed in range(5)
        for round in range(1, 21)
    }
    assert len(chosen) == 100


def test_every_client_is_chosen_about_equally_often() -> None:
    rounds, clients, cohort = 1000, 10, 3
    chosen = [c for r in range(rounds) for c in choose_clients(0, r, clients=10, cohort=cohort)]
    share = cohort / clients
    deviation = (rounds * share * (1 - share)) ** 0.5
    counts = np.bincount(chosen, minlength=clients)
    assert np.all(np.abs(counts - rounds * share) < 5 * deviation)
