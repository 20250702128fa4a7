"""What a cohort's blocks answer, put together: sums or updates, and rows as columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Error, Message

from fedsim.algorithms.sums import RunningSum, WeightedSum, sum_of
from fedsim.federation.replies import INITIAL_LOSS, Judged, Update, layer_rows
from fedsim.flower import CLIP_SCALE, BlockReply, Instruction, decode_block
from fedsim.privacy.clipping import UNIT
from fedsim.records import LayerRow
from fedsim.table import ClientTable

Arrays = Mapping[str, np.ndarray]
Places = npt.NDArray[np.int64]


class CohortAnswer:
    """The answers of a cohort's blocks, gathered in the order of the clients."""

    def __init__(
        self,
        instruction: Instruction,
        clients: Sequence[int],
        like: Arrays,
        places: Sequence[Places],
    ) -> None:
        """Expect answers.

        Args:
            instruction: what was asked.
            clients: of the cohort, in increasing order.
            like: the server's model.
            places: for each block, where in the cohort its clients are.
        """
        self.instruction = instruction
        self._clients, self._like, self._places = clients, like, places
        self._missing = set(range(len(places)))
        self._columns: dict[str, Any] = {}
        self._present: dict[str, npt.NDArray[np.bool_]] = {}
        self._problems: dict[int, tuple[str, str]] = {}
        self._layers: dict[int, list[LayerRow]] = {}
        self._total, self._next = RunningSum(), 0
        self._early: dict[int, list[WeightedSum]] = {}
        self._updates: dict[int, Update] = {}
        self.layer_columns: dict[int, Mapping[str, Any]] = {}
        # By place, what a client said in place of a reply: nothing at all, if None.
        self.errors: dict[int, Error | None] = {}
        # Of the messages that the clients would have had each for itself.
        self.numbers = np.ones(len(clients), np.int64)
        self.sent: tuple[str, ...] = ()  # the columns that clients gave

    def take(self, block: int, messages: Sequence[Message]) -> None:
        """Take a block's reply, in as many parts as there are; blocks may come in any order.

        Sums are added in the order of the blocks: those that come too early wait.
        """
        self._missing.discard(block)
        # Messages are numbered block by block; alone, clients would be asked in their own order.
        number = int(messages[0].metadata.reply_to_message_id.rpartition("-")[2])
        before = sum(map(len, self._places[:block]))
        self.numbers = number - before + np.arange(len(self._clients))
        self._early[block] = self._take(self._places[block], messages)
        self._add_early()

    def miss(self, reason: str) -> None:
        """Write down the blocks that did not answer."""
        for block in self._missing:
            self._fail(self._places[block], "timeout", reason, None)
            self._early[block] = []
        self._missing = set()
        self._add_early()

    def _add_early(self) -> None:
        while (sums := self._early.pop(self._next, None)) is not None:
            if sums:
                self._total.add(sums[0] if len(sums) == 1 else sum_of(sums))
            self._next += 1

    def _take(self, places: Places, messages: Sequence[Message]) -> list[WeightedSum]:
        split = len(messages) > 1
        sums: list[WeightedSum] = []
        for i, message in enumerate(messages):
            mine = places[i : i + 1] if split else places
            if message.has_error():
                reason = message.error.reason or f"error code {message.error.code}"
                self._fail(mine, "failed", reason, message.error)
                continue
            try:
                reply = decode_block(message.content)
                self._check(reply, mine)
                layers = self._layer_rows(reply, mine)
            except Exception as problem:  # whatever a damaged reply makes its readers raise
                self._fail(mine, "rejected", f"a block's reply: {problem}", None)
                continue
            self._layers |= layers
            self.layer_columns |= {int(mine[i]): columns for i, columns in reply.layers.items()}
            self._accept(reply, mine, sums)
        return sums

    def _fail(self, places: Places, status: str, reason: str, said: Error | None) -> None:
        self._problems |= {int(place): (status, reason) for place in places}
        self.errors |= dict.fromkeys(map(int, places), said)

    def _check(self, reply: BlockReply, places: Places) -> None:
        """Raise a ValueError if a reply is not of these clients and this model."""
        if [*reply.clients] != [self._clients[i] for i in places]:
            raise ValueError(f"it is of clients {list(reply.clients)}")
        if set(reply.problems) - set(range(len(places))):
            raise ValueError(f"it tells of places {list(reply.problems)}")
        if not (reply.counts["examples"] >= 1).all():
            raise ValueError("a client claims to hold no examples")
        if self.instruction.clipping_norm is not None:
            scale = reply.amounts[CLIP_SCALE]
            if not ((scale >= 0) & (scale <= 1)).all():
                raise ValueError(f"{CLIP_SCALE} is not a share")
        if negative := [name for name, column in reply.counts.items() if column.min() < 0]:
            raise ValueError(f"{negative[0]} holds a negative count")
        if list(reply.arrays) != list(self._like) and reply.arrays:
            raise ValueError(f"it holds arrays {list(reply.arrays)}")
        for name, array in reply.arrays.items():
            like = self._like[name]
            shape = like.shape if reply.summed else (len(places), *like.shape)
            dtype = np.dtype(np.float64) if reply.summed else like.dtype
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not {shape}")

    def _layer_rows(self, reply: BlockReply, places: Places) -> dict[int, list[LayerRow]]:
        round, clients = self.instruction.round, self._clients
        return {
            int(places[i]): layer_rows(round, clients[places[i]], columns)
            for i, columns in reply.layers.items()
        }

    def _accept(self, reply: BlockReply, places: Places, sums: list[WeightedSum]) -> None:
        for name, values in [*reply.counts.items(), *reply.amounts.items()]:
            self._column(name, values.dtype)[places] = values
            self._present[name][places] = True
        self.sent = tuple(dict.fromkeys((*self.sent, *reply.counts, *reply.amounts)))
        for place, (status, reason) in reply.problems.items():
            self._problems[int(places[place])] = (status, reason)
        good = [i for i in range(len(places)) if i not in reply.problems]
        examples = reply.counts["examples"]
        weights, unit = examples, 0
        if self.instruction.clipping_norm is not None:
            weights, unit = np.rint(reply.amounts[CLIP_SCALE] * UNIT).astype(np.int64), UNIT
        if reply.summed and good:
            whole = int(np.count_nonzero(weights[good] == unit))
            weight = int(weights[good].sum())
            sums.append(
                WeightedSum(arrays=reply.arrays, weight=weight, clients=len(good), whole=whole)
            )
            return
        for i in good:
            initial = reply.amounts.get(INITIAL_LOSS)
            self._updates[int(places[i])] = Update(
                client=self._clients[places[i]],
                arrays={name: stack[i] for name, stack in reply.arrays.items()},
                weight=int(weights[i]),
                examples=int(examples[i]),
                initial_loss=None if initial is None else float(initial[i]),
            )

    @property
    def _only_weighs(self) -> bool:
        """Whether updates weigh the same, and none was cut."""
        return self.instruction.clipping_norm == math.inf

    def _column(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if name not in self._columns:
            blank: Any = np.nan if dtype.kind == "f" else 0
            self._columns[name] = np.full(len(self._clients), blank, dtype)
            self._present[name] = np.zeros(len(self._clients), bool)
        return self._columns[name]  # type: ignore[no-any-return]

    def judged(self, *, summed: bool) -> Judged:
        """Return everything, in the order of the clients."""
        table = ClientTable(
            round=self.instruction.round, client=np.asarray(self._clients), **self._all_columns()
        )
        return Judged(
            updates=[update for _, update in sorted(self._updates.items())],
            clients=table,
            layers=[row for _, rows in sorted(self._layers.items()) for row in rows],
            total=self._total.result() if summed else None,
        )

    def _all_columns(self) -> dict[str, Any]:
        columns = {
            name: blanked(values, self._present[name])
            for name, values in self._columns.items()
            if name != INITIAL_LOSS and not (name == CLIP_SCALE and self._only_weighs)
        }
        if self._problems:
            told = [self._problems.get(place, ("ok", None)) for place in range(len(self._clients))]
            columns["status"] = [status for status, _ in told]
            columns["error"] = [reason for _, reason in told]
        return columns


def blanked(values: npt.NDArray[Any], present: npt.NDArray[np.bool_]) -> Any:
    """Return a column as it is where all are present; otherwise with its blanks."""
    if present.all():
        return values
    if values.dtype.kind == "f":
        return np.where(present, values, np.nan)
    pairs: Iterable[tuple[Any, bool]] = zip(values.tolist(), present.tolist(), strict=True)
    return [value if here else None for value, here in pairs]
