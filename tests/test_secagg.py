"""Secure aggregation: exact sums, what the server sees, who may vanish, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, hypergeom, kstest

from fedsim.errors import SecureAggregationAborted, SecureAggregationRefused
from fedsim.privacy.secagg import (
    STAGES,
    Assumptions,
    ClientSide,
    FixedPoint,
    SecureSum,
    ServerSide,
    Session,
    aggregate,
    begin,
    from_state,
    keys,
    server,
    to_state,
)
from fedsim.privacy.secagg.encoding import EXACT_IN_FLOAT64
from fedsim.privacy.secagg.graph import COMPLETE_UP_TO, degree, draw_graph
from fedsim.privacy.secagg.masks import add_mask, subtract_mask, uniform
from fedsim.privacy.secagg.messages import Delivery, Invitation, Unmasking, UnmaskRequest
from fedsim.privacy.secagg.sharing import recover, split

SESSION = Session(run=b"a run of its own", round=3)
ELSEWHERE = Session(run=SESSION.run, round=2)
ANSWERS = (ClientSide.advertise, ClientSide.share_keys, None, ClientSide.unmask)
WORDS = 5


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws the secrets of clients from a fixed seed, so that chance always falls alike."""
    rng = np.random.default_rng(1)
    monkeypatch.setattr(keys, "fresh_secret", lambda: rng.bytes(32))


class Play:
    """A cohort of clients 10, 11, ... that is played stage by stage, so that one can interfere."""

    def __init__(self, clients: int = 5, *, words: int = WORDS, session: Session = SESSION) -> None:
        ids = range(10, 10 + clients)
        self.server = ServerSide(session, ids, words=words, word_bits=32)
        self.sides = {one: ClientSide(session=session, client=one) for one in ids}
        self.vectors = {one: np.full(words, one, np.uint32) for one in ids}
        self.requests: Mapping[int, Any] = self.server.invite()
        self.said: list[dict[int, Any]] = []  # the replies, stage by stage

    def answers(self) -> dict[int, Any]:
        """Let every client that is asked answer the stage that it is at."""
        stage = self.server.exchange.stage
        answer = ANSWERS[stage] or (lambda side, r: side.mask(r, self.vectors[side.client]))
        return {one: answer(self.sides[one], request) for one, request in self.requests.items()}

    def to(self, stage: int) -> Play:
        """Play on until the requests of a stage are there."""
        while self.server.exchange.stage < stage:
            self.said.append(self.answers())
            self.take(list(self.said[-1].values()))
        return self

    def take(self, replies: list[Any]) -> Any:
        """Give the server the replies of the stage that it is at."""
        server = self.server
        step = (server.introduce, server.deliver, server.request, server.unmask)[
            server.exchange.stage
        ]
        self.requests = step(replies)
        return self.requests

    def total(self) -> SecureSum:
        """Play to the end."""
        self.to(3)
        return self.take(list(self.answers().values()))

    def exact(self, clients: tuple[int, ...]) -> list[int]:
        return sum(self.vectors[one] for one in clients).tolist()


def changed(reply: Any, **fields: Any) -> Any:
    return dataclasses.replace(reply, **fields)


def flipped(data: bytes, place: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# Sums ---------------------------------------------------------------------------------------------


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[int, np.ndarray], dict[int, int], FixedPoint, Any]:
    """Vectors with weights, encoded, and who drops out when."""
    ids = draw(st.lists(st.integers(0, 2**40), min_size=3, max_size=9, unique=True))
    largest_weight = draw(st.sampled_from([1, 7, 60_000]))
    coding = FixedPoint.fitting(value_range=4.0, clients=len(ids), largest_weight=largest_weight)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = {one: int(rng.integers(1, largest_weight + 1)) for one in ids}
    vectors = {one: rng.normal(0, 2, draw(st.just(11))) for one in ids}
    drops = draw(st.dictionaries(st.sampled_from(ids), st.integers(0, 3), max_size=len(ids) // 3))
    return vectors, weights, coding, drops


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.booleans())
def test_the_sum_is_exact_whoever_drops_out_when(case: Any, stochastic: bool) -> None:
    vectors, weights, coding, drops = case
    encoded = {
        one: coding.encode(vector, weights[one], stochastic=stochastic)[0]
        for one, vector in vectors.items()
    }
    try:
        result = aggregate(encoded, drop_at=drops)
    except SecureAggregationAborted as aborted:
        assume(not (drops and len(aborted.answered) < len(vectors)))  # too few: that is right
        raise
    assert set(result.clients) == {one for one in vectors if drops.get(one, 3) == 3}
    sums, weight = coding.decode(result.words)
    plain = [coding.decode(encoded[one])[0] for one in result.clients]  # w * q, one by one
    assert sums.tolist() == np.sum(plain, axis=0).tolist()
    assert weight == sum(weights[one] for one in result.clients)
    clipped = [np.clip(vectors[one], -4, 4) * weights[one] for one in result.clients]
    mean, exact = sums * 2.0**-coding.fraction_bits / weight, np.sum(clipped, axis=0) / weight
    assert np.abs(mean - exact).max() <= 2.0**-coding.fraction_bits


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_a_cohort_with_a_sparse_graph_survives_drops_at_every_stage(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    clients = COMPLETE_UP_TO + 2
    assert degree(clients, Assumptions()).neighbours < clients - 1
    top = np.iinfo(dtype).max
    vectors = {one: rng.integers(0, top, 70_001, dtype, True) for one in range(clients)}
    result = aggregate(vectors, drop_at={1: 0, 4: 1, 9: 2, 30: 2, 17: 3})
    assert set(result.clients) == set(vectors) - {1, 4, 9, 30}
    assert np.array_equal(result.words, sum(vectors[one] for one in result.clients))
    assert result.refused == {}


def test_the_sum_is_that_of_whoever_answered_and_costs_what_was_sent() -> None:
    play = Play(6).to(2)
    inputs = play.answers()
    del inputs[12]
    play.take(list(inputs.values()))
    unmaskings = play.answers()
    del unmaskings[15]
    result = play.take(list(unmaskings.values()))
    assert result.clients == (10, 11, 13, 14, 15)
    assert result.words.tolist() == play.exact(result.clients)
    head = len(SESSION.run) + 8 + 8
    assert result.downlink_bytes == (
        6 * head,
        6 * (head + 8 + 5 * (8 + 64)),
        6 * (head + 5 * (8 + keys.BOX_BYTES)),
        5 * (head + 5 * 8),
    )
    assert result.uplink_bytes == (
        6 * (head + 96),
        6 * (head + 5 * (8 + keys.BOX_BYTES)),
        5 * (head + 4 * WORDS),
        4 * (head + 5 * (8 + 32)),
    )


@pytest.mark.parametrize("stage", range(4))
def test_everyone_dropped_at_a_stage_aborts_and_says_what_was_needed(stage: int) -> None:
    vectors = {one: np.zeros(3, np.uint32) for one in range(6)}
    with pytest.raises(SecureAggregationAborted) as caught:
        aggregate(vectors, drop_at=dict.fromkeys(vectors, stage))
    assert (caught.value.stage, caught.value.answered) == (stage, ())
    assert caught.value.needed == (3 if stage == 3 else 4)
    assert STAGES[stage] in str(caught.value)
    assert "0 of 6 clients" in str(caught.value)


@pytest.mark.parametrize("stage", range(4))
def test_one_too_many_dropped_aborts_and_one_fewer_does_not(stage: int) -> None:
    vectors = {one: np.full(3, one, np.uint32) for one in range(7)}  # k = 6, t = 4
    fine = aggregate(vectors, drop_at={0: stage, 3: stage}, least_clients=5)
    assert fine.words.tolist() == [sum(fine.clients)] * 3
    with pytest.raises(SecureAggregationAborted):
        aggregate(vectors, drop_at={0: stage, 3: stage, 5: stage}, least_clients=5)


def test_who_keeps_too_few_neighbours_is_left_out_before_masks_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And who has too few for that reason, too: without 11 client 10 goes, and without 10, 17."""
    pairs = {(10, 11), (10, 12), (10, 13), (10, 17), (12, 17), (13, 17), (14, 17)}
    pairs |= set(combinations(range(11, 17), 2))
    graph = {
        one: tuple(other for other in range(10, 18) if {(one, other), (other, one)} & pairs)
        for one in range(10, 18)
    }  # t = 4, as for all eight
    monkeypatch.setattr(server, "draw_graph", lambda clients, neighbours: graph)
    play = Play(8).to(1)
    answers = play.answers()
    del answers[11]
    play.take(list(answers.values()))
    assert play.server.sharing == (12, 13, 14, 15, 16)
    result = play.total()
    assert result.clients == (12, 13, 14, 15, 16)
    assert result.words.tolist() == play.exact(result.clients)


@pytest.mark.parametrize("clients", [0, 1, 2])
def test_a_cohort_below_three_is_refused(clients: int) -> None:
    with pytest.raises(SecureAggregationRefused, match=f"a cohort of {clients}.*at least 3"):
        aggregate({one: np.zeros(2, np.uint32) for one in range(clients)})


def test_a_sum_of_fewer_than_three_is_not_given_even_if_asked_for() -> None:
    vectors = {one: np.zeros(2, np.uint32) for one in range(4)}
    with pytest.raises(SecureAggregationAborted, match="3 are needed"):
        aggregate(vectors, drop_at={0: 0, 1: 0}, least_clients=1)


# What the server sees -----------------------------------------------------------------------------


def looks_uniform(words: np.ndarray) -> bool:
    """Bytes by chi-square and words by Kolmogorov-Smirnov, each at one in a thousand."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    by_bytes = chi2.sf(((counts - expected) ** 2 / expected).sum(), 255)
    by_words = kstest(words / 2.0 ** (8 * words.itemsize), "uniform").pvalue
    return min(by_bytes, by_words) > 1e-3


@pytest.mark.usefixtures("drawn")
def test_every_masked_input_of_equal_vectors_looks_uniform() -> None:
    play = Play(4, words=20_000)
    play.vectors = {one: np.full(20_000, 7, np.uint32) for one in play.vectors}
    inputs = play.to(2).answers()
    assert not looks_uniform(play.vectors[10])
    for reply in inputs.values():
        assert looks_uniform(reply.words)
    for one, other in pairwise(inputs.values()):
        assert looks_uniform(one.words - other.words)
        assert np.mean(one.words == other.words) < 1e-3


@pytest.mark.usefixtures("drawn")
def test_what_the_server_takes_off_leaves_a_single_vector_masked() -> None:
    """Whether a client vanished before or after its masked input came, half of its masks remain."""
    play = Play(4, words=20_000)
    play.to(2)
    side = play.sides[11]
    seed, private = side.seed, side.mask_private
    masked = play.answers()[11].words
    without_self, without_pairs = masked.copy(), masked.copy()
    subtract_mask(without_self, seed)  # it is in the sum: its seed is recovered
    for other in (10, 12, 13):  # too late: its key is recovered, and with it what it shares
        public = play.server.advertised[other].mask_key
        pair = keys.mask_seed(private, public, SESSION, 11, other)
        (subtract_mask if other > 11 else add_mask)(without_pairs, pair)
    assert looks_uniform(without_self)
    assert looks_uniform(without_pairs)
    subtract_mask(without_pairs, seed)
    assert without_pairs.tolist() == play.vectors[11].tolist()  # both would give it away


def test_the_same_vector_masked_twice_differs() -> None:
    first, second = (Play().to(2).answers()[10].words for _ in range(2))
    assert (first != second).all()


def test_of_no_client_are_both_secrets_ever_asked_for_or_given() -> None:
    play = Play(6).to(2)
    inputs = play.answers()
    del inputs[12], inputs[14]
    play.take(list(inputs.values()))
    seeds: set[int] = set()
    masks: set[int] = set()
    for reply in play.answers().values():
        assert not set(reply.seed_shares) & set(reply.key_shares)
        seeds, masks = seeds | set(reply.seed_shares), masks | set(reply.key_shares)
    assert (seeds, masks) == ({10, 11, 13, 15}, {12, 14})


@pytest.mark.parametrize("clients", [*range(3, 40), 100, 1000])
def test_a_lying_server_cannot_get_both_secrets_from_honest_neighbours(clients: int) -> None:
    chosen = degree(clients, Assumptions())
    assert 2 * chosen.threshold > chosen.neighbours >= chosen.threshold >= 2


# What a client refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", range(4))
def test_a_client_answers_each_stage_once_and_in_order(stage: int) -> None:
    play = Play().to(stage)
    side, request = play.sides[10], play.requests[10]
    play.answers()
    before = to_state(side)
    with pytest.raises(SecureAggregationRefused, match="answered once"):
        (ANSWERS[stage] or (lambda s, r: s.mask(r, play.vectors[10])))(side, request)
    early = Play()
    with pytest.raises(SecureAggregationRefused, match=f"stage {max(stage, 1)} .*advertise keys"):
        ((*ANSWERS[:2], lambda s, r: s.mask(r, play.vectors[10]), ANSWERS[3])[max(stage, 1)])(
            early.sides[10], request
        )
    assert to_state(side) == before


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("field", ["session", "client"])
def test_a_client_refuses_what_is_of_another_round_or_for_another(stage: int, field: str) -> None:
    play = Play().to(stage)
    wrong = changed(play.requests[10], **{field: ELSEWHERE if field == "session" else 11})
    play.requests = {10: wrong}
    with pytest.raises(SecureAggregationRefused, match="replayed, or went astray"):
        play.answers()


def test_a_client_refuses_neighbours_that_share_an_id_or_a_key_or_have_its_own() -> None:
    play = Play().to(1)
    sent = play.requests[10]
    first, *others = sent.neighbours
    own = play.said[0][10]
    for neighbours, why in {
        (first, first, *others): "named more than once",
        (changed(first, client=10), *others): "has its id",
        (changed(first, mask_key=own.mask_key), *others): "same public key",
        (changed(first, share_key=own.share_key), *others): "same public key",
        (changed(first, mask_key=own.share_key), *others): "same public key",
        (changed(first, mask_key=others[0].mask_key), *others): "same public key",
        (changed(first, mask_key=first.share_key), *others): "same public key",
        (changed(first, share_key=bytes(32)), *others): "low order",
    }.items():
        play.requests = {10: changed(sent, neighbours=neighbours)}
        with pytest.raises(SecureAggregationRefused, match=why):
            play.answers()
    for threshold in (1, 2, 5):
        play.requests = {10: changed(sent, threshold=threshold)}
        with pytest.raises(SecureAggregationRefused, match="majority"):
            play.answers()
    play.requests = {10: sent}
    play.answers()  # the true one is still answered


def test_a_client_refuses_shares_of_strangers_too_few_and_ones_that_do_not_open() -> None:
    play = Play().to(2)
    sent = play.requests[10]
    boxes = dict(sent.boxes)
    replayed = Play(session=ELSEWHERE).to(2).requests[10].boxes[12]
    for wrong, why in [
        ({**boxes, 99: boxes[11]}, "clients 99 .*no neighbours"),
        ({11: boxes[11], 12: boxes[12]}, "2 neighbours.*below 3"),
        ({**boxes, 12: boxes[11]}, "from client 12 to client 10 do not open"),
        ({**boxes, 12: play.requests[11].boxes[12]}, "from client 12"),
        ({**boxes, 12: replayed}, "from client 12"),
        ({**boxes, 12: b""}, "from client 12"),
        *(({**boxes, 12: flipped(boxes[12], at)}, "from client 12") for at in (0, 20, 100, 107)),
    ]:
        play.requests = {10: changed(sent, boxes=wrong)}
        with pytest.raises(SecureAggregationRefused, match=why):
            play.answers()
    assert len(boxes[11]) == keys.BOX_BYTES == 108


def test_a_box_names_its_two_ends_inside_too() -> None:
    one, other = keys.fresh_secret(), keys.fresh_secret()
    about = keys.label("box of shares", SESSION, 1, 2)
    key = keys.agree(one, keys.public_key(other), about, 2)
    content = keys.CONTENT.pack(3, 2, bytes(32), bytes(32))
    box = bytes(12) + keys.ChaCha20Poly1305(key).encrypt(bytes(12), content, about)
    with pytest.raises(SecureAggregationRefused, match="from 3 to 2"):
        keys.unseal(other, keys.public_key(one), SESSION, sender=1, recipient=2, box=box)


@pytest.mark.parametrize(
    ("survivors", "dropped", "why"),
    [
        ((11, 12, 13, 14), (14,), "14 are named more than once"),
        ((11, 12, 13, 13), (14,), "13 are named more than once"),
        ((11, 12, 13), (14, 14), "14 are named more than once"),
        ((11, 12), (13, 14), "2 neighbours are in the sum; below 3"),
        ((), (11, 12, 13, 14), "below 3"),
        ((11, 12, 13), (), "where shares were delivered from 11, 12, 13, 14"),
        ((11, 12, 13, 14, 99), (), "where shares were delivered"),
        ((10, 11, 12, 13, 14), (), "where shares were delivered"),
    ],
)
def test_a_client_refuses_a_request_that_asks_for_too_much(
    survivors: tuple[int, ...], dropped: tuple[int, ...], why: str
) -> None:
    play = Play().to(3)
    before = to_state(play.sides[10])
    wrong = UnmaskRequest(session=SESSION, client=10, survivors=survivors, dropped=dropped)
    with pytest.raises(SecureAggregationRefused, match=why):
        play.sides[10].unmask(wrong)
    assert to_state(play.sides[10]) == before
    assert play.total().clients == (10, 11, 12, 13, 14)


def test_a_client_refuses_a_second_request_with_another_list() -> None:
    play = Play().to(3)
    play.answers()
    other = UnmaskRequest(session=SESSION, client=10, survivors=(11, 12, 13), dropped=(14,))
    with pytest.raises(SecureAggregationRefused, match="answered once"):
        play.sides[10].unmask(other)


def test_a_client_refuses_an_invitation_to_a_round_that_it_was_in() -> None:
    play = Play().to(2)
    state = to_state(play.sides[10])
    for round in (SESSION.round, ELSEWHERE.round):
        again = Invitation(session=Session(run=SESSION.run, round=round), client=10)
        with pytest.raises(SecureAggregationRefused, match="was in round 3 and refuses"):
            begin(again, state)
    begin(Invitation(session=Session(run=SESSION.run, round=4), client=10), state)
    begin(Invitation(session=Session(run=b"another run", round=1), client=10), state)
    assert begin(again).stage == 0


def test_a_client_that_is_done_keeps_no_secret() -> None:
    play = Play()
    play.total()
    side = play.sides[10]
    assert (side.seed, side.mask_private, side.share_private, side.held) == (b"", b"", b"", {})


# What the server refuses --------------------------------------------------------------------------


def test_the_server_refuses_a_cohort_with_a_client_twice() -> None:
    with pytest.raises(SecureAggregationRefused, match="clients 2 are in the cohort twice"):
        ServerSide(SESSION, [1, 2, 2, 3], words=1, word_bits=32)


def test_who_claims_anothers_key_is_refused_and_so_is_the_other() -> None:
    play = Play(7)
    answers = play.answers()
    answers[12] = changed(answers[12], mask_key=answers[11].mask_key)
    answers[13] = changed(answers[13], mask_key=answers[13].share_key)
    play.take(list(answers.values()))
    assert set(play.server.exchange.refused) == {11, 12, 13}
    assert "claims a public key" in play.server.exchange.refused[12]
    assert play.total().clients == (10, 14, 15, 16)


@pytest.mark.parametrize("stage", range(4))
def test_two_messages_in_one_name_are_both_refused(stage: int) -> None:
    play = Play(7).to(stage)
    answers = play.answers()
    result = play.take([*answers.values(), answers[12]])
    assert "2 messages in its name" in play.server.exchange.refused[12]
    if stage < 3:
        assert 12 not in play.requests
        result = play.total()
    assert (12 in result.clients) == (stage == 3)
    assert result.words.tolist() == play.exact(result.clients)


@pytest.mark.parametrize("stage", range(4))
def test_messages_of_other_rounds_stages_and_strangers_are_refused(stage: int) -> None:
    """A replay beside the true message does no harm; in place of it, its client is left out."""
    play = Play(7).to(stage)
    answers = play.answers()
    old = changed(answers[12], session=ELSEWHERE)
    stranger = changed(answers[13], client=99)
    earlier = play.said[stage - 1][14] if stage else Delivery(session=SESSION, client=14, boxes={})
    true = [reply for one, reply in answers.items() if one != 15]
    result = play.take([*true, old, stranger, earlier, changed(answers[15], session=ELSEWHERE)])
    refused = play.server.exchange.refused
    assert set(refused) == {12, 99, 14, 15}
    assert "replayed" in refused[12]
    assert "not asked" in refused[99]
    assert "is due; it is replayed" in refused[14]
    result = result if stage == 3 else play.total()
    assert {12, 14} <= set(result.clients)
    assert (15 in result.clients) == (stage == 3)
    assert result.words.tolist() == play.exact(result.clients)


def test_the_server_takes_each_stage_once() -> None:
    play = Play()
    answers = list(play.answers().values())
    play.take(answers)
    with pytest.raises(SecureAggregationRefused, match=r"replies of stage 0\s+once"):
        play.server.introduce(answers)


def test_shares_for_others_and_inputs_of_another_shape_are_refused() -> None:
    play = Play(8).to(1)
    answers = play.answers()
    boxes = dict(answers[12].boxes)
    answers[12] = changed(answers[12], boxes={**boxes, 99: boxes.pop(10)})
    answers[13] = changed(answers[13], boxes={**answers[13].boxes, 10: b"short"})
    play.take(list(answers.values()))
    assert "not its neighbours" in play.server.exchange.refused[12]
    assert "clients 10 of a wrong length" in play.server.exchange.refused[13]
    answers = play.answers()
    answers[10] = changed(answers[10], words=answers[10].words[1:])
    play.take(list(answers.values()))
    assert "shape (4,)" in play.server.exchange.refused[10]
    assert play.total().clients == (11, 14, 15, 16, 17)


def test_a_wrong_share_is_found_its_holder_named_and_the_sum_still_exact() -> None:
    play = Play(7).to(2)
    inputs = play.answers()
    del inputs[16]
    play.take(list(inputs.values()))
    answers = play.answers()
    right = answers[10]
    answers[10] = changed(
        right,
        seed_shares={**right.seed_shares, 12: flipped(right.seed_shares[12], 31)},
        key_shares={16: flipped(right.key_shares[16])},
    )
    result = play.take(list(answers.values()))
    assert set(result.refused) == {10}
    assert "its share of client" in result.refused[10]
    assert result.words.tolist() == play.exact((10, 11, 12, 13, 14, 15))


def test_without_a_share_to_spare_a_wrong_one_ends_the_session_and_names_the_owner() -> None:
    play = Play(5).to(3)  # t = 3
    answers = play.answers()
    del answers[14]
    right = answers[10].seed_shares
    answers[10] = changed(answers[10], seed_shares={**right, 12: flipped(right[12])})
    with pytest.raises(SecureAggregationRefused, match=r"client 12: .*from clients 10, 11, 13"):
        play.take(list(answers.values()))


def test_wrong_shares_of_a_mask_key_by_too_many_end_the_session_and_name_the_owner() -> None:
    play = Play(6).to(2)  # t = 3
    inputs = play.answers()
    del inputs[14], inputs[15]
    play.take(list(inputs.values()))
    answers = play.answers()
    for liar in (10, 12):  # unlike lies, since equal ones can cancel
        right = answers[liar].key_shares
        wrong = flipped(right[15], liar)
        answers[liar] = changed(answers[liar], key_shares={**right, 15: wrong})
    with pytest.raises(SecureAggregationRefused, match=r"client 15: .*from clients 10, 11, 12, 13"):
        play.take(list(answers.values()))


def test_a_client_that_gives_out_shares_of_something_else_is_named() -> None:
    play = Play(5).to(1)
    play.sides[12].seed = flipped(play.sides[12].seed)  # not what it stands by
    play.to(3)
    with pytest.raises(SecureAggregationRefused, match="client 12: the shares of its secret"):
        play.total()


def test_shares_of_others_than_asked_for_are_refused() -> None:
    play = Play(6).to(3)
    answers = play.answers()
    given = dict(answers[10].seed_shares)
    answers[10] = Unmasking(
        session=SESSION, client=10, seed_shares=given, key_shares={11: given.pop(11)}
    )
    result = play.take(list(answers.values()))
    assert "shares of others" in result.refused[10]
    assert result.words.tolist() == play.exact(result.clients)


# Shares, graph, masks, encoding -------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 6), st.integers(0, 4))
def test_any_threshold_of_shares_recovers_and_wrong_ones_are_named(
    data: st.DataObject, threshold: int, spare: int
) -> None:
    secret = data.draw(st.binary(min_size=32, max_size=32))
    holders = data.draw(
        st.lists(
            st.integers(0, 99), min_size=threshold + spare, max_size=threshold + spare, unique=True
        )
    )
    shares = split(secret, holders, threshold)
    present = data.draw(st.permutations(holders))[: data.draw(st.integers(threshold, len(holders)))]
    options = {"owner": 5, "holders": holders, "threshold": threshold}
    given_shares = {one: shares[one] for one in present}
    assert recover(given_shares, genuine=secret.__eq__, **options) == (secret, frozenset())
    wrong = min(present)  # among the first that are tried
    given_shares[wrong] = flipped(shares[wrong], data.draw(st.integers(0, 31)))
    if len(present) > threshold:
        assert recover(given_shares, genuine=secret.__eq__, **options) == (secret, {wrong})
    else:
        with pytest.raises(SecureAggregationRefused, match="client 5: the shares"):
            recover(given_shares, genuine=secret.__eq__, **options)


def test_fewer_shares_than_the_threshold_say_nothing() -> None:
    """Two shares of three that are needed fit every secret: a third one can be made for any."""
    secret = bytes(range(32))
    shares = split(secret, [1, 2, 3], 3)
    found, _ = recover(
        {1: shares[1], 2: shares[2], 3: keys.fresh_secret()},
        owner=0,
        holders=[1, 2, 3],
        threshold=3,
        genuine=lambda candidate: candidate != secret,
    )
    assert len(found) == 32
    for threshold, holders in ((1, 3), (4, 3)):
        with pytest.raises(SecureAggregationRefused, match="threshold is from 2"):
            split(secret, range(holders), threshold)


@pytest.mark.parametrize("clients", [31, 50, 100, 333])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_degree_keeps_its_bounds_and_is_the_least_that_does(clients: int, share: float) -> None:
    chosen = degree(clients, Assumptions(colluding=share, dropping=share))
    gone = int(share * clients)

    def bounds(k: int, t: int) -> bool:
        return (
            clients * hypergeom.sf(t - 1, clients - 1, gone, k) <= 2**-40
            and clients * hypergeom.cdf(t - 1, clients - 1, clients - 1 - gone, k) <= 2**-30
            and clients**2 / 2 * (2 * gone / clients) ** k <= 2**-40
        )

    if chosen.neighbours < clients - 1:
        assert bounds(chosen.neighbours, chosen.threshold)
        fewer = chosen.neighbours - 2
    else:
        fewer = clients - 2 - clients % 2
    assert not any(bounds(fewer, t) for t in range(fewer // 2 + 1, fewer + 1))


def test_a_hundred_clients_have_the_neighbours_that_the_docstring_names() -> None:
    found = [degree(100, Assumptions(colluding=s, dropping=s)) for s in (0.1, 0.2, 1 / 3)]
    assert [(d.neighbours, d.threshold) for d in found] == [(24, 13), (42, 22), (88, 45)]
    for colluding, dropping in ((-0.1, 0.1), (0.5, 0.5), (math.nan, 0.1)):
        with pytest.raises(SecureAggregationRefused, match="colluding"):
            Assumptions(colluding=colluding, dropping=dropping)


@given(st.integers(3, 60), st.data())
def test_the_graph_is_regular_symmetric_and_without_loops(
    clients: int, draws: st.DataObject
) -> None:
    even = list(range(2, clients - 1, 2))
    neighbours = draws.draw(st.sampled_from([*even, clients - 1]))
    graph = draw_graph(range(0, 3 * clients, 3), neighbours)
    for one, around in graph.items():
        assert len(set(around)) == len(around) == neighbours
        assert one not in around
        assert list(around) == sorted(around)
        assert all(one in graph[other] for other in around)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("length", [0, 1, 7, 16_384, 16_385, 40_000])
def test_a_mask_is_the_ciphers_keystream_and_comes_off_again(dtype: Any, length: int) -> None:
    seed = bytes(range(32))
    words = np.arange(length, dtype=dtype)
    add_mask(words, seed)
    cipher = keys_stream(seed, words.nbytes)
    expected = np.frombuffer(cipher, np.dtype(dtype).newbyteorder("<"))
    assert np.array_equal(words, expected + np.arange(length, dtype=dtype))
    subtract_mask(words, seed)
    assert words.tolist() == list(range(length))


def keys_stream(seed: bytes, length: int) -> bytes:
    """ChaCha20's keystream, in one piece, by the other library."""
    from Crypto.Cipher import ChaCha20

    return ChaCha20.new(key=seed, nonce=bytes(8)).encrypt(bytes(length))


def test_masks_are_for_vectors_of_words() -> None:
    for wrong in (np.zeros(3), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(SecureAggregationRefused, match="contiguous vectors of uint32 or"):
            add_mask(wrong, bytes(32))


def test_labels_of_unlike_uses_differ_wherever_one_field_ends() -> None:
    labels = {
        keys.label("a", Session(run=b"bc", round=1), 1, 2),
        keys.label("ab", Session(run=b"c", round=1), 1, 2),
        keys.label("a", Session(run=b"bc", round=2), 1, 2),
        keys.label("a", Session(run=b"bc", round=1), 2, 1),
        keys.label("a", Session(run=b"bc", round=1), 1),
    }
    assert len(labels) == 5


def test_two_clients_agree_on_a_seed_that_no_other_round_has() -> None:
    one, other = keys.fresh_secret(), keys.fresh_secret()
    ours = keys.mask_seed(one, keys.public_key(other), SESSION, 1, 2)
    assert ours == keys.mask_seed(other, keys.public_key(one), SESSION, 2, 1)
    assert ours != keys.mask_seed(one, keys.public_key(other), ELSEWHERE, 1, 2)
    assert ours != keys.mask_seed(one, keys.public_key(other), SESSION, 1, 3)


def test_encoding_by_hand() -> None:
    coding = FixedPoint(value_range=2.0, fraction_bits=2, clients=3, largest_weight=5)
    assert (coding.largest, coding.largest_sum, coding.word_bits) == (8, 120, 32)
    words, clipped = coding.encode(np.array([0.25, -0.25, 0.6, 0.375, 2.5, -9.0]), weight=3)
    assert words.view(np.int32).tolist() == [3, -3, 6, 6, 24, -24, 3]  # 1.5 rounds to the even 2
    assert clipped == 2
    sums, weight = coding.decode(words + words)
    assert (sums.tolist(), weight) == ([6, -6, 12, 12, 48, -48], 6)


@given(st.floats(1e-6, 1e6), st.integers(1, 10_000), st.sampled_from([1, 2, 600, 60_000]))
def test_a_fitting_encoding_holds_the_worst_sum_and_no_step_less_would(
    value_range: float, clients: int, largest_weight: int
) -> None:
    coding = FixedPoint.fitting(
        value_range=value_range, clients=clients, largest_weight=largest_weight
    )
    assume(coding.fraction_bits > 0)
    worst = clients * largest_weight * coding.largest
    assert worst < 2 ** (coding.word_bits - 1)
    assert coding.largest <= EXACT_IN_FLOAT64
    finer = value_range * 2.0 ** (coding.fraction_bits + 1)
    assert clients * largest_weight * finer >= 2 ** (coding.word_bits - 1) - worst or (
        finer > EXACT_IN_FLOAT64
    )


def test_the_worst_sums_of_both_signs_do_not_wrap_around() -> None:
    for largest_weight in (1, 60_000):
        coding = FixedPoint.fitting(value_range=8.0, clients=100, largest_weight=largest_weight)
        worst, _ = coding.encode(np.array([8.0, -8.0]), largest_weight)
        total = np.zeros_like(worst)
        for _ in range(100):
            total += worst
        sums, weight = coding.decode(total)
        exact = 100 * largest_weight * coding.largest
        assert sums.tolist() == [exact, -exact]
        assert weight == 100 * largest_weight
    equal = FixedPoint.fitting(value_range=8.0, clients=100)
    assert (equal.fraction_bits, equal.parameter_bytes) == (21, 4)
    assert coding.parameter_bytes == 8


def test_stochastic_rounding_is_right_on_average_and_draws_are_uniform() -> None:
    coding = FixedPoint(value_range=4.0, fraction_bits=0, clients=1)
    words, _ = coding.encode(np.full(40_000, 1.25), stochastic=True)
    values = words[:-1].view(np.int32)
    assert set(values.tolist()) == {1, 2}
    assert abs(values.mean() - 1.25) < 6 * math.sqrt(0.1875 / 40_000)
    drawn = uniform(40_000)
    assert 0 <= drawn.min() < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 6 * math.sqrt(1 / 12 / 40_000)


def test_what_cannot_be_encoded_is_refused() -> None:
    coding = FixedPoint.fitting(value_range=8.0, clients=10, largest_weight=5)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(SecureAggregationRefused, match="1 of 2 parameters are not finite"):
            coding.encode(np.array([bad, 1.0]))
    for weight in (0, -1, 6):
        with pytest.raises(SecureAggregationRefused, match=f"weight = {weight}: .* from 1 to 5"):
            coding.encode(np.zeros(2), weight)
    for value_range in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SecureAggregationRefused, match="value_range"):
            FixedPoint.fitting(value_range=value_range, clients=10)
        with pytest.raises(SecureAggregationRefused, match="value_range"):
            FixedPoint(value_range=value_range, fraction_bits=1, clients=10)
    with pytest.raises(SecureAggregationRefused, match="at least 0, 1 and 1"):
        FixedPoint(value_range=1.0, fraction_bits=1, clients=0)
    with pytest.raises(SecureAggregationRefused, match="fit into 64 bits"):
        FixedPoint(value_range=1.0, fraction_bits=50, clients=2**13)


def test_a_sum_that_no_clients_can_have_is_refused() -> None:
    coding = FixedPoint.fitting(value_range=8.0, clients=3)
    words, _ = coding.encode(np.zeros(2))
    beyond = words.copy()
    beyond[0] = coding.largest + 1
    for wrong in (beyond, words * np.uint32(0), words * np.uint32(4)):
        with pytest.raises(SecureAggregationRefused, match="a client sent something other"):
            coding.decode(wrong)
    with pytest.raises(SecureAggregationRefused, match="same experiment"):
        coding.decode(words.astype(np.uint64))


def test_a_state_comes_back_the_same_at_every_stage() -> None:
    play = Play()
    for stage in range(4):
        play.to(stage)
        for side in play.sides.values():
            assert from_state(to_state(side)) == side
    play.total()
    assert all(from_state(to_state(side)) == side for side in play.sides.values())
