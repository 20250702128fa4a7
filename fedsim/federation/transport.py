"""How the model comes down and how updates go up: as arrays, or through a codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import RecordDict

from fedsim import codecs
from fedsim.federation.replies import Rejected, read_arrays
from fedsim.flower import ARRAYS, CODED, PROBLEM, Instruction, decode_payload
from fedsim.measure.payload import difference
from fedsim.randomness import stream
from fedsim.settings import UpdateTable

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Transport:
    """The server's ends of both directions; ``clients/sending.py`` has the client's.

    The server keeps its model in full precision: where the model comes down coded, a client's
    change is relative to what the client received, and is added to what the server has.
    """

    update: UpdateTable
    seed: int

    @property
    def codes(self) -> bool:
        """Whether models travel in any other way than as arrays."""
        return self.update.codes

    def down(self, instruction: Instruction) -> tuple[Instruction, Arrays]:
        """Return the instruction as it is sent, and the model as clients receive it.

        Raises:
            CodecError: the model cannot be coded: it is too large for float16.
        """
        if not self.update.codes_down:
            return instruction, instruction.arrays
        payload = codecs.encode(
            instruction.arrays,
            codec=self.update.downlink,
            coder=self.update.coder,
            zstd_level=self.update.zstd_level,
            topk_fraction=self.update.topk_fraction,
            rng=stream(self.seed, "downlink", round=instruction.round),
        )
        coded = replace(instruction, coded=payload)
        if self.update.downlink == "none":
            return coded, instruction.arrays
        return coded, codecs.decode(payload, instruction.arrays)

    def up(self, content: RecordDict, like: Arrays, received: Arrays) -> dict[str, np.ndarray]:
        """Return a client's model, relative to the server's, from its reply.

        Args:
            content: the reply's.
            like: the server's model.
            received: the model as the client received it.

        Raises:
            Rejected: the reply holds no acceptable update.
        """
        if not self.update.codes_up:
            model = read_arrays(content, ARRAYS, like)
        else:
            decoded = read_payload(content, like)
            if self.update.codec != "none":
                return moved(like, decoded)
            model = decoded
        if received is like:
            return model
        with np.errstate(over="ignore", invalid="ignore"):
            change = difference(model, received)
        return moved(like, change)


def moved(model: Arrays, update: Arrays) -> dict[str, np.ndarray]:
    """Return model + update; what is no floating-point array is the update's.

    Raises:
        Rejected: each is finite and their sum is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        sums = {
            name: value + update[name] if value.dtype.kind == "f" else update[name]
            for name, value in model.items()
        }
    for name, array in sums.items():
        if not np.isfinite(array).all():
            raise Rejected(f"{name} overflows where the update is added to the model")
    return sums


def read_payload(content: RecordDict, like: Arrays) -> dict[str, np.ndarray]:
    """Return the arrays of a coded update.

    Raises:
        Rejected: it is missing, damaged or of another model.
    """
    if PROBLEM in content.config_records:
        reason = content.config_records[PROBLEM].get("reason")
        raise Rejected(f"{CODED}: {reason if isinstance(reason, str) else 'no reason given'}")
    if CODED not in content.array_records:
        raise Rejected(f"the reply has no {CODED!r} record")
    try:
        payload = decode_payload(content.array_records[CODED])
        return dict(codecs.decode(payload, like))
    except Exception as error:  # NumPy's reader raises what it trips over
        raise Rejected(f"{CODED}: {error}") from error
