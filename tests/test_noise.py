"""Noise: its distribution, its secrecy, that it never repeats, and that it is what it was."""

from __future__ import annotations

import hashlib
import math
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from fedsim.errors import PrivacyError
from fedsim.privacy.noise import BLOCK, NoiseSource
from fedsim.randomness import stream

KEY = bytes(range(32))
COUNT = 200_000


def test_normals_are_normal() -> None:
    draws = NoiseSource(KEY).normal(COUNT)
    assert draws.dtype == np.float64
    assert stats.kstest(draws, stats.norm.cdf).pvalue > 0.01
    # Moments against their standard errors: 1, 2, 15 - 9, 105 - 9.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = math.sqrt(variance / COUNT)
        assert abs(float((draws**power).mean()) - moment) < 4 * error
    tails = np.abs(draws) > 3
    assert abs(float(tails.mean()) - 0.0027) < 4 * math.sqrt(0.0027 / COUNT)


def test_draws_are_independent_of_their_neighbours() -> None:
    """Also across the halves of a block, which share no words."""
    draws = NoiseSource(KEY).normal(COUNT)
    for lag in (1, 2, BLOCK // 2, BLOCK, 2 * BLOCK):
        for change in (np.asarray, np.square):
            values = change(draws)
            correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
            assert abs(correlation) < 4 / math.sqrt(COUNT)


def test_uniforms_are_uniform() -> None:
    draws = NoiseSource(KEY).uniform(COUNT)
    assert stats.kstest(draws, stats.uniform.cdf).pvalue > 0.01
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws * 2**53 % 1 == 0).all()


def test_coins_are_fair() -> None:
    source = NoiseSource(KEY)
    assert not source.bernoulli(0.0, 1000).any()
    assert source.bernoulli(1.0, 1000).all()
    heads = source.bernoulli(0.1, COUNT)
    assert heads.dtype == bool
    assert abs(float(heads.mean()) - 0.1) < 4 * math.sqrt(0.09 / COUNT)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(PrivacyError, match="between 0 and 1"):
            source.bernoulli(wrong, 3)


def words(call: int, count: int) -> list[int]:
    """Return words of RFC 8439's keystream under KEY, by another way than the source's."""
    nonce = bytes(4) + call.to_bytes(12, "little")
    stream = Cipher(algorithms.ChaCha20(KEY, nonce), mode=None).encryptor()
    text = stream.update(bytes(8 * count))
    return [int.from_bytes(text[i : i + 8], "little") for i in range(0, len(text), 8)]


def test_a_normal_is_half_the_sum_of_four() -> None:
    """By the book: two pairs of Box and Muller, of the words that the source takes."""
    source = NoiseSource(KEY)
    for call, count in ((0, 3), (1, 1)):
        drawn, used = source.normal(count), words(call, 4 * count)
        for i, value in enumerate(drawn):
            total = 0.0
            for place in (i, count + i):
                u = (used[place] + 1) / 2**64
                # The source's angle is in half a circle; turned, it is one of a whole circle's.
                angle = used[2 * count + place]
                half = math.pi * (angle - 2**64 * (angle >= 2**63)) / 2**64
                turned = half - math.pi / 4
                total += math.sqrt(-2 * math.log(u)) * (math.sin(turned) + math.cos(turned))
            assert value == pytest.approx(total / 2, rel=1e-12, abs=1e-14)


def test_the_keystream_is_chacha20_and_stays_what_it_is() -> None:
    """The key of RFC 8439's examples; pinned, so that reproducible noise stays reproducible."""
    source = NoiseSource(KEY)
    assert source.uniform(2).tolist() == [word / 2**53 for word in (w >> 11 for w in words(0, 2))]
    assert source.uniform(2).tolist() == pytest.approx(PINNED_UNIFORM, rel=1e-15)
    assert source.normal(3).tolist() == pytest.approx(PINNED_NORMAL, rel=1e-13)
    named = NoiseSource.reproducible(7, "noise", round=3, client=5)
    assert named.normal(2).tolist() == pytest.approx(PINNED_NAMED, rel=1e-13)


PINNED_UNIFORM = [0.22727098014182168, 0.650198118819343]
PINNED_NORMAL = [-1.755735884373874, 0.44370103534879746, 0.5878376548325768]
PINNED_NAMED = [0.7309383301374466, -0.9353294889231161]


def test_equal_keys_draw_equally_and_unlike_ones_have_nothing_in_common() -> None:
    def draws(*name: object, **place: int) -> bytes:
        return NoiseSource.reproducible(*name, **place).normal(50).tobytes()  # type: ignore[arg-type]

    assert draws(0, "noise", round=1) == draws(0, "noise", round=1)
    others = [
        draws(0, "noise"), draws(1, "noise", round=1), draws(0, "count", round=1),
        draws(0, "noise", round=1), draws(0, "noise", round=2), draws(0, "noise", client=1),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert NoiseSource.secure().normal(9).tolist() != NoiseSource.secure().normal(9).tolist()


def test_a_reproducible_key_is_not_that_of_a_stream_of_draws() -> None:
    """A stream's draws may be published, as those of a partition are."""
    key = hashlib.blake2b(b"0/noise/1/0", digest_size=32).digest()
    assert NoiseSource(key).uniform(3).tolist() != (
        NoiseSource.reproducible(0, "noise", round=1).uniform(3).tolist()
    )
    assert stream(0, "noise", round=1).random() not in (
        NoiseSource.reproducible(0, "noise", round=1).uniform(100)
    )


def test_calls_never_repeat_each_other() -> None:
    source = NoiseSource(KEY)
    many = np.concatenate([source.normal(count) for count in (1, 10, 3 * BLOCK, 1, 10, BLOCK + 1)])
    assert len(np.unique(many)) == many.size
    seen = np.concatenate([source.uniform(5) for _ in range(100)])
    assert len(np.unique(seen)) == seen.size


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_any_number_is_drawn(count: int) -> None:
    source = NoiseSource(KEY)
    assert source.normal(count).shape == source.uniform(count).shape == (count,)
    assert np.isfinite(source.normal(count)).all()
    assert np.unique(source.normal(count)).size == count


@pytest.mark.parametrize(
    ("word", "angle", "value"),
    [
        (0, 0, 0.0),  # the longest radius, at no angle
        (2**64 - 1, 2**62, 0.0),  # no radius: the logarithm of 1
        (0, 2**63, -2 * math.sqrt(64 * math.log(2))),  # as far out as it gets
        (0, 2**63 - 1, 2 * math.sqrt(64 * math.log(2))),
    ],
)
def test_the_extreme_words_have_values(
    word: int, angle: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No word is without a logarithm."""

    def constant(stream: object, count: int) -> np.ndarray:
        return np.array([word] * (count // 2) + [angle] * (count // 2), np.uint64)

    monkeypatch.setattr("fedsim.privacy.noise.keystream", constant)
    with np.errstate(all="raise"):
        assert NoiseSource(KEY).normal(1)[0] == pytest.approx(value, rel=1e-12)


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(PrivacyError, match="a key of 16 bytes"):
        NoiseSource(bytes(16))


def test_another_process_may_not_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source = NoiseSource.secure()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(PrivacyError, match="make one in each process"):
        source.normal(1)
