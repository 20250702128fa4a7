"""The size of an update, how far it moved the model, and how well it would compress.

An update is what local training changed: the arrays after it minus the arrays before, over the
floating tensors. Integer buffers count things; they are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import zstandard
from torch import Tensor, nn

from fedsim.measure.entropy import blocks, entropy_bits, squared_norm

Arrays = Mapping[str, np.ndarray]

# Of ``compressed_bytes``, whatever the codec and the coder that an experiment sends with.
ZSTD_LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class UpdateSummary:
    """An update in brief. ``zero_fraction`` is in [0, 1], and None of an update without elements.

    The norms are Euclidean: ``layer_norms`` by tensor name in the model's order, ``norm`` of all.
    """

    norm: float
    zero_fraction: float | None
    layer_norms: dict[str, float]


def dense_bytes(arrays: Arrays) -> int:
    """Count elements x bytes per element: the payload without names, headers or framing."""
    return sum(array.nbytes for array in arrays.values())


def update_summary(before: Arrays, after: Arrays) -> UpdateSummary:
    """Return the norms and the share of exact zeros of (after - before), in one pass.

    Differences and sums are in float64, so that float32 values of any size neither overflow nor
    round. Norms of an update that is not finite are infinite or NaN.

    Args:
        before: arrays by name.
        after: arrays of the same names and shapes, in any order.
    """
    zeros = elements = 0
    norms = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name in floating_names(before):
            squares = 0.0
            for change, old in zip(blocks(after[name]), blocks(before[name]), strict=True):
                change -= old
                squares += float(np.einsum("i,i->", change, change))
                zeros += int(np.count_nonzero(change == 0))
                elements += change.size
            norms[name] = math.sqrt(squares)
    return UpdateSummary(
        norm=math.hypot(*norms.values()),
        zero_fraction=zeros / elements if elements else None,
        layer_norms=norms,
    )


def difference(after: Arrays, before: Arrays) -> dict[str, np.ndarray]:
    """Return after - before, in the arrays' own types; what is no floating-point array as it is."""
    return {
        name: np.subtract(value, before[name]) if value.dtype.kind == "f" else value
        for name, value in after.items()
    }


def relative_error(meant: Arrays, sent: Arrays) -> float | None:
    """Return |sent - meant| / |meant| over all floating tensors, in float64.

    None where nothing was meant, and where it is not finite.

    Args:
        meant: arrays by name.
        sent: arrays of the same names and shapes, in any order.
    """
    norm = math.hypot(*(math.sqrt(squared_norm(meant[name])) for name in floating_names(meant)))
    error = update_summary(meant, sent).norm / norm if norm else math.nan
    return error if math.isfinite(error) else None


def floating_names(arrays: Arrays) -> list[str]:
    """Return the names of the tensors that an update consists of, in the model's order."""
    return [name for name, array in arrays.items() if array.dtype.kind == "f"]


def flat_update(before: Arrays, after: Arrays) -> np.ndarray:
    """Return (after - before) as one vector, (coordinates,), float32, in the order of ``before``.

    Differences are taken in the tensors' own type, or float32 if that is narrower; one beyond
    float32's range becomes infinite.
    """
    names = floating_names(before)
    flat = np.empty(sum(before[name].size for name in names), np.float32)
    start = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for name in names:
            old = before[name]
            part = flat[start : start + old.size].reshape(old.shape)
            wide = np.promote_types(old.dtype, np.float32)
            np.subtract(after[name], old, out=part, dtype=wide, casting="same_kind")
            start += old.size
    return flat


def update_norm(before: Arrays, after: Arrays) -> float:
    """Return the Euclidean norm of after - before over the floating arrays, in float64."""
    squares = [
        np.square(np.asarray(after[name], np.float64) - before[name]).sum()
        for name in floating_names(before)
    ]
    return math.sqrt(math.fsum(map(float, squares)))


def update_statistics(
    update: np.ndarray, *, blank: np.ndarray | None
) -> dict[str, int | float | None]:
    """Return what says how well an update compresses, by the ledger's column names.

    ``compressed_bytes`` is one zstd frame of the float32 values at level ``ZSTD_LEVEL``.
    ``zero_fraction_without_blank`` is the share of exact zeros among the coordinates that are not
    blank. ``top_1_percent_energy`` and ``top_10_percent_energy`` are the shares of the squared norm
    in the ceil(p n) largest magnitudes. ``entropy_bits`` is
    :func:`fedsim.measure.entropy.entropy_bits`.

    What an update does not define is None: the fraction of no coordinates, the energy of a zero
    update, energy and entropy of one that is not finite.

    Args:
        update: (coordinates,), float32, as :func:`flat_update` gives it; the values of a model
            serve as well.
        blank: (coordinates,), True where a coordinate is to be left out; None for nowhere.
    """
    update = np.ascontiguousarray(update, np.float32)
    energy = squared_norm(update)
    top_1, top_10 = _energy_shares(update, energy)
    return {
        "compressed_bytes": len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(update.data)),
        "zero_fraction_without_blank": _zero_fraction(update, blank),
        "top_1_percent_energy": top_1,
        "top_10_percent_energy": top_10,
        "entropy_bits": entropy_bits(update, norm=math.sqrt(energy)),
    }


def _zero_fraction(update: np.ndarray, blank: np.ndarray | None) -> float | None:
    """Return the share of exact zeros among the coordinates that are not blank."""
    zero, kept = update == 0, update.size
    if blank is not None:
        zero &= ~blank
        kept -= int(np.count_nonzero(blank))
    return int(np.count_nonzero(zero)) / kept if kept else None


def _energy_shares(update: np.ndarray, energy: float) -> tuple[float | None, float | None]:
    """Return the shares of the squared norm in the largest 1% and 10% of the magnitudes."""
    if not (math.isfinite(energy) and energy > 0):
        return None, None
    largest, shares = np.abs(update), []
    for percent in (10, 1):
        rest = largest.size - -(-percent * update.size // 100)
        largest = np.partition(largest, rest)[rest:]
        shares.append(squared_norm(largest) / energy)
    top_10, top_1 = (min(1.0, share) for share in shares)  # the two sums round differently
    return top_1, top_10


def blank_coordinates(model: nn.Module, x: Tensor) -> np.ndarray | None:
    """Return where an update of this model is zero because the client's inputs are blank.

    These are the weights of the first dense layer whose input is exactly 0 in all examples (the
    border of MNIST's images): the loss has no gradient there, whatever the activation. (What else
    moves weights may: weight decay, a control variate.) They depend on nothing but the client's
    data, so that one call serves all rounds.

    Args:
        model: its modules are registered in the order in which they run.
        x: all of the client's features, (examples, \\*input shape).

    Returns:
        (coordinates,), bool, in the order of :func:`flat_update`; None where the first layer is no
        dense layer on the flattened input, as in a convolutional network.
    """
    leaves = ((n, m) for n, m in model.named_modules() if not any(m.children()))
    name, first = next(((n, m) for n, m in leaves if not isinstance(m, nn.Flatten)), ("", None))
    inputs = x.flatten(1).cpu().numpy()
    if not isinstance(first, nn.Linear) or first.in_features != inputs.shape[1]:
        return None
    weight = f"{name}.weight".removeprefix(".")
    masks = {
        key: np.zeros(tuple(tensor.shape), bool)
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    masks[weight][:, ~inputs.any(axis=0)] = True
    return np.concatenate([mask.ravel() for mask in masks.values()])


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the cosine of the angle between two vectors, in [-1, 1], in float64.

    None if either is zero, or is empty; NaN if either is not finite.

    Args:
        a: (coordinates,), float32, or float64 within float32's range.
        b: as ``a``.
    """
    sums = np.zeros(3)
    with np.errstate(over="ignore", invalid="ignore"):
        for x, y in zip(blocks(a), blocks(b), strict=True):
            sums += [np.einsum("i,i->", *pair) for pair in ((x, x), (y, y), (x, y))]
    a_squared, b_squared, product = sums.tolist()
    if a_squared == 0 or b_squared == 0:
        return None
    lengths = math.sqrt(a_squared) * math.sqrt(b_squared)
    return max(-1.0, min(1.0, product / lengths)) if math.isfinite(lengths) else math.nan
