"""Update codecs: what comes back, how far off it is, how long it is, and what is refused."""

from __future__ import annotations

import itertools
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim.codecs import (
    CODECS,
    CODERS,
    HEADER_BYTES,
    CodecError,
    decode,
    drive,
    encode,
    payload_bytes,
    topk,
)
from fedsim.codecs.body import Body
from fedsim.codecs.elementwise import int8_encode
from fedsim.randomness import stream

Update = dict[str, np.ndarray]

FLOATS = ("float16", "float32", "float64")
OTHERS = ("int8", "uint16", "int64", "bool")
COMBINATIONS = list(itertools.product(CODECS, CODERS))
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
codecs, coders = st.sampled_from(sorted(CODECS)), st.sampled_from(sorted(CODERS))


def arrays(dtypes: tuple[str, ...], largest: float | None) -> st.SearchStrategy[np.ndarray]:
    """Arrays of finite numbers, up to a magnitude or of the type's whole range."""

    def of(name: str) -> st.SearchStrategy[np.ndarray]:
        dtype = np.dtype(name)
        if dtype.kind != "f":
            return hnp.arrays(dtype, shapes)
        limit = None if largest is None else np.floor(dtype.type(largest)).item()
        values = st.floats(
            min_value=None if limit is None else -limit,
            max_value=limit,
            allow_nan=False,
            allow_infinity=False,
            width=8 * dtype.itemsize,
        )
        return hnp.arrays(dtype, shapes, elements=values)

    return st.sampled_from(dtypes).flatmap(of)


def updates(
    dtypes: tuple[str, ...] = FLOATS + OTHERS, largest: float | None = 1000.0
) -> st.SearchStrategy[Update]:
    return st.dictionaries(st.text(max_size=4), arrays(dtypes, largest), max_size=4)


def send(
    update: Update, codec: str, coder: str = "none", *, fraction: float = 0.1, seed: int = 0
) -> bytes:
    return encode(
        update,
        codec=codec,
        coder=coder,
        zstd_level=3,
        topk_fraction=fraction,
        rng=stream(seed, "codec"),
    )


def sent(update: Update, codec: str, coder: str = "none", **settings: Any) -> Update:
    return decode(send(update, codec, coder, **settings), update)


def bits(update: Update) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(n, a.dtype.str, a.shape, a.tobytes()) for n, a in update.items()]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return stream(seed, "normal").standard_normal(shape, np.float32)


def small() -> Update:
    """A little of everything."""
    return {
        "weight": normal(3, 5) * np.float32(0.01),
        "größe": np.array(0.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "steps": np.array([3, -4], np.int64),
    }


# What comes back.


@settings(deadline=None)
@given(updates(), codecs, coders, st.floats(0.01, 1))
def test_names_order_shapes_and_types_come_back_and_counters_exactly(
    update: Update, codec: str, coder: str, fraction: float
) -> None:
    before = bits(update)
    back = sent(update, codec, coder, fraction=fraction)
    assert bits(update) == before
    assert [row[:3] for row in bits(back)] == [row[:3] for row in before]
    assert all(array.flags.writeable for array in back.values())
    for name, array in update.items():
        if array.dtype.kind != "f":
            assert back[name].tobytes() == array.tobytes()


@settings(deadline=None)
@given(updates(largest=None), coders)
def test_codec_none_is_exact(update: Update, coder: str) -> None:
    assert bits(sent(update, "none", coder)) == bits(update)


@settings(deadline=None)
@given(updates(), codecs, coders)
def test_a_coder_loses_nothing_and_never_makes_it_longer(
    update: Update, codec: str, coder: str
) -> None:
    plain, coded = send(update, codec), send(update, codec, coder)
    assert bits(decode(coded, update)) == bits(decode(plain, update))
    assert len(coded) <= len(plain)


@pytest.mark.parametrize("coder", ["zstd", "entropy"])
@pytest.mark.parametrize("codec", sorted(set(CODECS) - {"drive"}))
def test_a_coder_finds_what_is_there(codec: str, coder: str) -> None:
    update = {"w": normal(100, 100) * (normal(100, 100, seed=1) > 0.5)}
    assert len(send(update, codec, coder)) < 0.95 * len(send(update, codec))


@settings(deadline=None)
@given(updates(FLOATS, largest=None), codecs, coders)
def test_the_largest_and_smallest_numbers_come_back_finite_or_are_refused(
    update: Update, codec: str, coder: str
) -> None:
    try:
        back = sent(update, codec, coder)
    except CodecError:
        assert codec in ("float16", "drive")
    else:
        assert all(np.isfinite(array).all() for array in back.values())


@pytest.mark.parametrize(("codec", "coder"), COMBINATIONS)
def test_equal_generators_give_equal_payloads_and_global_ones_have_no_say(
    codec: str, coder: str
) -> None:
    update, before = {"w": normal(40, 10)}, str(np.random.get_state())
    assert send(update, codec, coder) == send(update, codec, coder)
    drawn = send(update, codec, coder, seed=1) != send(update, codec, coder)
    assert drawn == (codec in ("int8", "drive"))
    assert str(np.random.get_state()) == before


def test_views_and_scalars_are_updates_too() -> None:
    update = {"w": normal(6, 8).T[::2], "b": np.float32(2) - np.float32(1)}
    assert bits(sent(update, "none", "zstd")) == bits(update)
    with pytest.raises(CodecError, match="b: nan"):
        send(update | {"b": np.float32(math.nan)}, "none")


# How long it is.


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        ("none", 4 * 1003 + 16),
        ("float16", 2 * 1003 + 16),
        ("int8", 1003 + 2 * 4 + 16),
        # 101 of 1003; three low bits each, and 101 + (1002 >> 3) bits of marks.
        ("topk", 8 + 4 * 101 + 38 + 29 + 16),
        # 1003 is padded to 1024, one block.
        ("drive", 8 + 4 + 128 + 16),
    ],
)
def test_the_length_by_hand(codec: str, body: int) -> None:
    update = {"w": normal(10, 100), "b": normal(3), "steps": np.arange(2)}
    assert HEADER_BYTES == 23
    assert len(send(update, codec)) == 23 + body


@settings(deadline=None)
@given(updates(), codecs, st.floats(0.01, 1))
def test_the_length_is_counted_without_encoding(
    update: Update, codec: str, fraction: float
) -> None:
    length = payload_bytes(update, codec=codec, topk_fraction=fraction)
    assert len(send(update, codec, fraction=fraction)) == length
    assert length <= payload_bytes(update, codec=codec, topk_fraction=1.0)


# How far off it is.


@settings(deadline=None)
@given(updates(FLOATS))
def test_float16_rounds_to_nearest(update: Update) -> None:
    for name, array in sent(update, "float16").items():
        wanted = update[name].astype(np.float64)
        error = np.abs(array.astype(np.float64) - wanted)
        assert np.all(error <= np.maximum(2.0**-11 * np.abs(wanted), 2.0**-25))


def test_float16_rounds_ties_to_even_and_ends_at_65504() -> None:
    update = {"w": np.array([1 + 2**-11, 1 + 3 * 2**-11, 65504, -65504, 2**-25], np.float32)}
    assert sent(update, "float16")["w"].tolist() == [1, 1 + 2**-9, 65504, -65504, 0]
    with pytest.raises(CodecError, match=r"b: a magnitude of 65505 does not fit codec float16"):
        send({"w": normal(2), "b": np.array([1, -65505], np.float32)}, "float16")


@settings(deadline=None)
@given(updates(FLOATS), st.integers(0, 5))
def test_int8_errs_by_less_than_a_step_of_its_array(update: Update, seed: int) -> None:
    for name, array in sent(update, "int8", seed=seed).items():
        wanted = update[name].astype(np.float64)
        top = np.abs(wanted).max(initial=0)
        rounding = float(np.spacing(array.dtype.type(top)))
        assert np.all(np.abs(array - wanted) <= top / 127 + rounding)
        assert np.all(array[np.abs(wanted) == top] == wanted[np.abs(wanted) == top])


def test_int8_is_right_on_average() -> None:
    """A coordinate p of the way between two steps has the variance p (1 - p); six deviations."""
    steps = np.linspace(-127, 127, 508, dtype=np.float32)  # 254 steps, two points in each
    draws = 2000
    mean = np.mean([sent({"w": steps}, "int8", seed=s)["w"] for s in range(draws)], axis=0)
    share = steps - np.floor(steps)
    deviation = np.sqrt(share * (1 - share) / draws)
    assert np.all(np.abs(mean - steps) <= 6 * deviation + 1e-5)


def test_int8_never_wraps_around() -> None:
    top = np.full(4, 3.7, np.float32)
    for drawn in (np.nextafter(np.float32(1), np.float32(0)), np.float32(0)):
        generator: Any = SimpleNamespace(random=lambda n, _, d=drawn: np.full(n, d))
        (_, up), (_, down) = (int8_encode({"w": a}, rng=generator) for a in (top, -top))
        assert up.tolist() == [127] * 4
        assert down.tolist() == [-127] * 4


@settings(deadline=None)
@given(hnp.arrays(np.int8, st.integers(1, 60), elements=st.integers(-4, 4)), st.floats(0.01, 1))
def test_topk_keeps_the_largest_of_the_whole_and_of_equal_ones_the_first(
    values: np.ndarray, fraction: float
) -> None:
    x = values.astype(np.float32) * np.float32(0.1)
    half = x.size // 2
    update = {"a": x[:half], "steps": np.arange(3), "b": x[half:].reshape(1, -1)}
    back = sent(update, "topk", fraction=fraction)
    kept = np.argsort(-np.abs(x), kind="stable")[: max(1, math.ceil(fraction * x.size))]
    wanted = np.zeros_like(x)
    wanted[kept] = x[kept]
    assert np.concatenate([back["a"], back["b"][0]]).tobytes() == wanted.tobytes()


def test_topk_keeps_doubles_exactly_and_refuses_other_fractions() -> None:
    update = {"a": np.array([1 / 3, 0.1]), "b": np.array([0.7], np.float16)}
    assert bits(sent(update, "topk", fraction=1.0)) == bits(update)
    ones = {"w": np.ones(1000, np.float32)}  # its largest update, and one that packs well
    assert bits(sent(ones, "topk", "zstd", fraction=1.0)) == bits(ones)
    for fraction in (0.0, 1.1, math.nan):
        with pytest.raises(CodecError, match="topk_fraction"):
            send(update, "topk", fraction=fraction)


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_positions_come_back_and_take_little_more_than_their_entropy(
    n: int, data: st.DataObject
) -> None:
    indices = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=200))), np.int64)
    columns = topk.positions_encode(indices, n)
    body = Body(data=memoryview(b"".join(c.tobytes() for c in columns)))
    assert topk.positions_decode(body, indices.size, n).tolist() == indices.tolist()
    body.end()
    k = indices.size
    assert len(body.data) <= 2 + math.ceil(min(n, k * (2 + math.log2(n / k))) / 8) if k else True


# DRIVE.


def test_hadamard_is_sylvester_s_matrix() -> None:
    matrix = np.ones((1, 1))
    for _ in range(6):
        x = normal(len(matrix)).astype(np.float64)
        assert drive.hadamard(x) == pytest.approx(matrix @ x)
        matrix = np.kron([[1, 1], [1, -1]], matrix)


def test_the_rotation_is_one() -> None:
    x = normal(256).astype(np.float64)
    flips = drive.random_signs(5, x)
    assert set(flips.ravel().tolist()) == {1.0, -1.0}
    assert np.linalg.norm(drive.rotate(x, flips)) == pytest.approx(np.linalg.norm(x))
    assert drive.rotate_back(drive.rotate(x, flips), flips) == pytest.approx(x)


@given(st.integers(0, 10**7))
def test_blocks_are_powers_of_two_without_gaps(n: int) -> None:
    length = drive.padded(n)
    cuts = list(drive.blocks(length))
    assert 0 <= length - n < 128
    assert [c.start for c in cuts] + [length] == [0, *(c.stop for c in cuts)]
    sizes = [c.stop - c.start for c in cuts]
    assert all(size >= 128 and size.bit_count() == 1 for size in sizes)
    assert sizes == sorted(set(sizes), reverse=True)


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 700), elements=st.floats(-1000, 1000, width=32)))
def test_drive_projects_onto_what_was_meant(x: np.ndarray) -> None:
    y = sent({"w": x}, "drive")["w"]
    assert y @ x == pytest.approx(x @ x, rel=1e-9)
    if x.size <= 128 and np.any(x):
        padded = np.pad(x, (0, 128 - x.size))
        key = int(Body(data=memoryview(send({"w": x}, "drive"))[HEADER_BYTES:]).take("u8", 1)[0])
        rotated = drive.rotate(padded, drive.random_signs(key, padded))
        expected = 128 * (x @ x) ** 2 / np.abs(rotated).sum() ** 2  # ||y||^2, padding included
        assert y @ y <= expected * (1 + 1e-9)
        assert x.size < 128 or y @ y == pytest.approx(expected)


def test_drive_errs_by_0_756_of_the_norm() -> None:
    """For d normal coordinates ||R x||_1 deviates by 0.756 / sqrt(d) of itself, the squared error
    by no more than pi times that: 0.018 for d = 2^14, and 0.007 for the mean of eight."""
    x = normal(2**14 + 300)
    errors = [np.sum((sent({"w": x}, "drive", seed=s)["w"] - x) ** 2) for s in range(8)]
    assert np.mean(errors) / (x @ x) == pytest.approx(math.pi / 2 - 1, abs=0.028)


@pytest.mark.parametrize("others", [1.0, 0.01, 0.0])
def test_drive_is_right_on_average(others: float) -> None:
    """The mean of n unbiased draws is off by (pi / 2 - 1) / n of the squared norm.

    That sum over 1024 coordinates deviates by sqrt(2 / 1024) of itself: 25% are five deviations,
    and let no bias of 2% of the norm pass. With one Hadamard factor the second and the third
    vector, few large coordinates among small ones or zeros, are biased by a third.
    """
    x = normal(1024) * np.float32(others)
    x[[7, 300, 800]] = [1.0, -0.7, 0.4]
    draws = 400
    mean = np.mean([sent({"w": x}, "drive", seed=s)["w"] for s in range(draws)], axis=0)
    assert np.sum((mean - x) ** 2) / (x @ x) < 1.25 * (math.pi / 2 - 1) / draws


@pytest.mark.parametrize("x", [[0.0], [-2.5], [0.0] * 300, [3e-38, 1e-39], [1e38]])
def test_drive_of_almost_nothing(x: list[float]) -> None:
    update = {"w": np.array(x, np.float32)}
    y = sent(update, "drive")["w"]
    assert y[0] == pytest.approx(x[0], rel=1e-5) or len(x) == 2
    assert np.any(y) == np.any(x)


def test_drive_refuses_a_scale_that_no_float32_holds() -> None:
    """Of equal numbers the scale is some 1.25 times their magnitude."""
    with pytest.raises(
        CodecError, match=r"a scale of 4\..*e\+38 does not fit codec drive in float32"
    ):
        send({"w": np.full(1024, 3.3e38, np.float32)}, "drive")


# What is refused.


@pytest.mark.parametrize(("codec", "coder"), COMBINATIONS)
def test_no_damage_passes(codec: str, coder: str) -> None:
    update = small() | {"zeros": np.zeros(60, np.int16)}  # so that the coders are used
    payload = send(update, codec, coder)
    decode(memoryview(payload), update)
    for place, bit in itertools.product(range(len(payload)), range(8)):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << bit
        with pytest.raises(CodecError, match=r"^payload: "):
            decode(bytes(damaged), update)
    for length in range(len(payload)):
        with pytest.raises(CodecError, match=r"^payload: "):
            decode(payload[:length], update)
    with pytest.raises(CodecError, match="its header says"):
        decode(payload + b"\0", update)


@pytest.mark.parametrize(
    "change",
    [
        lambda u: {("other" if n == "weight" else n): a for n, a in u.items()},
        lambda u: u | {"weight": u["weight"].T},
        lambda u: u | {"weight": u["weight"].astype(np.float64)},
        lambda u: u | {"steps": u["steps"].view(np.uint64)},
        lambda u: dict(reversed(u.items())),
        lambda u: u | {"more": np.zeros(0)},
        lambda u: {},
    ],
)
def test_a_payload_of_another_model_is_refused(change: Callable[[Update], Update]) -> None:
    for codec in CODECS:
        with pytest.raises(CodecError, match="of another model"):
            decode(send(small(), codec), change(small()))


def forged(payload: bytes, body: bytes, **fields: int) -> bytes:
    """Return a payload with another body, or other numbers in its header, and right checksums."""
    names = ("version", "codec", "coder", "model", "length")
    magic, *values = struct.unpack("<4sBBBIQ", payload[:19])
    numbers = dict(zip(names, values, strict=True)) | {"length": len(body)} | fields
    head = struct.pack("<4sBBBIQ", magic, *numbers.values())
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


@pytest.mark.parametrize("field", ["version", "codec", "coder"])
def test_numbers_of_the_future_are_refused(field: str) -> None:
    payload = send(small(), "int8")
    with pytest.raises(CodecError, match="version" if field == "version" else f"{field} number 9"):
        decode(forged(payload, payload[HEADER_BYTES:], **{field: 9}), small())


def zstd(data: bytes, **settings: bool) -> bytes:
    return zstandard.ZstdCompressor(**settings).compress(data)


def deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("coder", "compress"),
    [
        ("zstd", zstd),
        ("zstd", lambda data: zstd(data, write_content_size=False)),
        ("entropy", deflate),
    ],
)
def test_a_bomb_does_not_go_off(codec: str, coder: str, compress: Callable[[bytes], bytes]) -> None:
    payload = send(small(), codec)
    bomb = forged(payload, compress(bytes(2**24)), coder=CODERS[coder].number)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="would unpack to more than"):
            decode(bomb, small())
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coder", ["zstd", "entropy"])
def test_what_follows_a_stream_is_refused(coder: str) -> None:
    payload, compress = send(small(), "none"), {"zstd": zstd, "entropy": deflate}[coder]
    stream_ = compress(payload[HEADER_BYTES:])
    number = CODERS[coder].number
    assert bits(decode(forged(payload, stream_, coder=number), small())) == bits(small())
    for body in (stream_ + b"\0", stream_ * 2, stream_[:-1], b""):
        with pytest.raises(CodecError, match="payload: "):
            decode(forged(payload, body, coder=number), small())


@pytest.mark.parametrize(("codec", "size"), [("none", 4), ("float16", 2), ("int8", 4)])
def test_what_is_not_finite_after_decoding_is_refused(codec: str, size: int) -> None:
    update = {"w": np.ones(1, np.float32)}
    payload = send(update, codec)
    infinite = np.array([np.inf], f"f{size}").tobytes() + payload[HEADER_BYTES + size :]
    with pytest.raises(CodecError, match="w: inf"):
        decode(forged(payload, infinite), update)


@pytest.mark.parametrize("codec", CODECS)
def test_a_body_is_as_long_as_the_model_warrants(codec: str) -> None:
    payload = send(small(), codec)
    for body, complaint in (
        (payload[HEADER_BYTES:] + b"\0", "and the model needs"),
        (payload[HEADER_BYTES:-1], "its body ends at"),
        (b"", "its body ends at"),
    ):
        with pytest.raises(CodecError, match=complaint):
            decode(forged(payload, body), small())


@pytest.mark.parametrize(
    ("kept", "positions"),
    [
        (101, b""),  # more than there are
        (2, b"\x4c\x01"),  # one mark for two
        (2, b"\x4c\x07"),  # three
        (2, b"\x4f\x03"),  # 98 and 111
        (2, b"\xcc\x03"),  # 99 and 99
        (2, b"\xc4\x03"),  # 99, then 98
    ],
)
def test_positions_that_no_encoder_writes(kept: int, positions: bytes) -> None:
    """98 and 99 of 100: the low bits are 2 and 3; the high ones, 6 and 6, mark bits 6 and 7."""
    update = {"w": np.arange(100, dtype=np.float32)}
    payload = send(update, "topk", fraction=0.02)
    assert payload.endswith(b"\x4c\x03")
    body = struct.pack("<Q", kept) + bytes(4 * kept) + positions
    with pytest.raises(
        CodecError, match=r"101 coordinates of a model of 100|not 2 rising positions"
    ):
        decode(forged(payload, body), update)


@settings(deadline=None, max_examples=200)
@given(codecs, coders, st.data())
def test_a_forger_gets_a_refusal_or_arrays_of_the_model(
    codec: str, coder: str, data: st.DataObject
) -> None:
    payload = send(small(), codec, coder)
    body = bytearray(payload[HEADER_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = decode(forged(payload, bytes(body)), small())
    except CodecError:
        return
    assert [row[:3] for row in bits(back)] == [row[:3] for row in bits(small())]
    assert all(np.isfinite(array).all() for array in back.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", CODECS)
def test_what_diverged_is_not_encoded(codec: str, value: float) -> None:
    update = {"ok": normal(3), "w": np.array([[0.0, value]], np.float32)}
    with pytest.raises(CodecError, match=rf"^w: {value} .* lower train\.learning_rate$"):
        send(update, codec)


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, "U3", "M8[s]"])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises(CodecError, match=r"^w: arrays of .* cannot be sent; use float16"):
        send({"w": np.zeros(2, dtype)}, "none")


def test_an_unknown_name_is_answered_with_a_known_one() -> None:
    with pytest.raises(CodecError, match=r"codec = 'topc': unknown; did you mean 'topk'\?"):
        send(small(), "topc")
    with pytest.raises(CodecError, match=r"coder = 'zst': unknown; did you mean 'zstd'\?"):
        send(small(), "none", "zst")


# What was sent once stays readable: payloads of version 1.

HEAD, MODEL, STEPS = "4653555001", "00c7b5c78f", "07ff00ff"


@pytest.mark.parametrize(
    ("number", "codec", "rest", "decoded"),
    [
        (0, "none", "10 adba1c24 00009a0000998000993fbf3e", [1.0, -0.5, 0.3]),
        (1, "float16", "0a ec4ed3f4 0000cd3cb834", [1.0, -0.5, 0.300048828125]),
        (2, "int8", "0b cca36300 0000803f 7fc026", [1.0, -64 / 127, 38 / 127]),
        (3, "topk", "15 ed4fc883 0200000000000000 0000000080003fbf c0", [1.0, -0.5, 0.0]),
        (
            4,
            "drive",
            "20 40e79512 0280b2e250490e19 7d23053e 5005301c3fc0c40f1c00fcf038c0eccc",
            [0.95888412, -0.69884777, 0.10563978],
        ),
    ],
)
def test_version_1_stays_readable(number: int, codec: str, rest: str, decoded: list[float]) -> None:
    length, checksum, *body = rest.split()
    parts = (HEAD, f"{number:02x}", MODEL, length, "00" * 7, checksum, *body, STEPS)
    update = {"w": np.array([[1, -0.5, 0.3]], np.float32), "n": np.array([7, -1], np.int16)}
    back = decode(bytes.fromhex("".join(parts)), update)
    assert back["w"].tolist() == np.array([decoded], np.float32).tolist()
    assert back["n"].tolist() == [7, -1]
    assert CODECS[codec].number == number


def test_the_coders_keep_their_numbers() -> None:
    assert {name: coder.number for name, coder in CODERS.items()} == {
        "none": 0,
        "zstd": 1,
        "entropy": 2,
    }
