"""Flower's strategies by name, and SCAFFOLD, behind one interface that a round can rely on.

Flower's own classes do the aggregation, but for a plain mean. Around them: cohorts are chosen by
us, arrays reach them in the order of the clients and as float64, and come back in the model's
dtypes; metrics are left alone (the ledger has every client's); what a strategy remembers can be
stored and restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.app.exception import AppExitException
from flwr.serverapp import strategy as flwr_strategy
from flwr.serverapp.strategy import Strategy

from fedsim.algorithms import scaffold
from fedsim.algorithms.sums import WeightedSum, block_sum
from fedsim.config import Experiment
from fedsim.errors import RunFailed
from fedsim.federation.replies import Update
from fedsim.flower import ARRAYS, METRICS, WEIGHT, Instruction
from fedsim.settings import ServerTable

Arrays = Mapping[str, np.ndarray]
SOMEBODY = 1  # the node of a message that goes nowhere
TRAIN_LOSS = "train_loss"  # where QFedAvg looks for the loss by default
AggregateSum = Callable[[int, Arrays, WeightedSum], dict[str, Any]]


class Aggregator(Protocol):
    """How updates become the next model.

    ``aggregate_sum`` returns the next model from the updates' sum, as ``aggregate`` does from the
    updates: None where more is needed than their mean, weighted by examples, so that they cannot be
    summed where they arise. ``clients_keep_state``: each is asked, and answers, alone.
    ``survives_nobody``: it makes a next model of a cohort that nobody was drawn for.
    """

    clients_keep_state: bool

    @property
    def aggregate_sum(self) -> AggregateSum | None:
        """From the round, the model and the updates' sum to the next model."""

    @property
    def survives_nobody(self) -> bool:
        """See above."""

    def instruct(
        self, round: int, arrays: Arrays, learning_rate: float, nodes: Sequence[int]
    ) -> Instruction:
        """Return what the cohort at these nodes is asked."""

    def aggregate(self, round: int, arrays: Arrays, updates: Sequence[Update]) -> dict[str, Any]:
        """Return the next model from the updates, which come in the order of the clients."""

    def state(self) -> dict[str, np.ndarray]:
        """Return what is remembered from round to round, besides the model."""

    def restore(self, state: Arrays) -> None:
        """Go on from a state."""

    def figures(self) -> Mapping[str, float]:
        """Return what there is to say of the last aggregation, as columns of the round."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of Flower's strategies: how to build it, and what it needs."""

    build: Callable[..., Strategy]
    arguments: Callable[[Experiment], dict[str, Any]] = lambda e: {}
    memory: tuple[str, ...] = ()  # attributes that hold arrays from round to round
    minimum: Callable[[ServerTable], int] = lambda s: 1  # updates without which it means nothing
    initial_loss: bool = False
    linear: bool = False  # it looks at the mean alone
    # The mean is its result, which Flower would multiply by 1.0 and take through four .npy files
    # an array: a seventh of a round of small clients.
    mean: bool = False
    weighted: bool = True  # by the clients' examples, where the strategy weighs at all
    round_offset: int = 0  # added to the round number that the strategy is told


def adaptive(e: Experiment, default_rate: float, *betas: str) -> dict[str, Any]:
    """Return what FedAdam, FedYogi and FedAdagrad share (Reddi et al. 2021, algorithm 2)."""
    s = e.server
    shared = {"eta": s.learning_rate or default_rate, "eta_l": e.train.learning_rate, "tau": s.tau}
    return shared | {beta: getattr(s, beta) for beta in betas}


def krum_like(e: Experiment) -> dict[str, Any]:
    """Return what the Byzantine-robust selections share."""
    return {"num_malicious_nodes": e.server.byzantine_clients}


def two_f_plus_3(s: ServerTable) -> int:
    """Krum's condition (Blanchard et al. 2017, proposition 1)."""
    return 2 * s.byzantine_clients + 3


FLOWER_STRATEGIES: dict[str, Kind] = {
    "fedavg": Kind(build=flwr_strategy.FedAvg, linear=True, mean=True),
    "fedprox": Kind(
        build=flwr_strategy.FedProx,
        arguments=lambda e: {"proximal_mu": e.train.proximal_mu},
        linear=True,
        mean=True,
    ),
    "fedavgm": Kind(
        build=flwr_strategy.FedAvgM,
        arguments=lambda e: {
            "server_learning_rate": e.server.learning_rate or 1.0,
            "server_momentum": e.server.momentum,
        },
        memory=("momentum_vector",),
        linear=True,
    ),
    "fedadam": Kind(
        build=flwr_strategy.FedAdam,
        arguments=lambda e: adaptive(e, 0.1, "beta_1", "beta_2"),
        memory=("m_t", "v_t"),
        linear=True,
        # Flower corrects the bias by beta^(round + 1); Kingma and Ba 2015 by beta^round.
        round_offset=-1,
    ),
    "fedyogi": Kind(
        build=flwr_strategy.FedYogi,
        arguments=lambda e: adaptive(e, 0.01, "beta_1", "beta_2"),
        memory=("m_t", "v_t"),
        linear=True,
    ),
    "fedadagrad": Kind(
        build=flwr_strategy.FedAdagrad,
        arguments=lambda e: adaptive(e, 0.1),
        memory=("m_t", "v_t"),
        linear=True,
    ),
    "fedmedian": Kind(build=flwr_strategy.FedMedian),
    "fedtrimmedavg": Kind(
        build=flwr_strategy.FedTrimmedAvg, arguments=lambda e: {"beta": e.server.trim_fraction}
    ),
    "krum": Kind(build=flwr_strategy.Krum, arguments=krum_like, minimum=two_f_plus_3),
    "multikrum": Kind(
        build=flwr_strategy.MultiKrum,
        arguments=lambda e: {**krum_like(e), "num_nodes_to_select": e.server.selected_clients},
        minimum=lambda s: max(two_f_plus_3(s), s.selected_clients + s.byzantine_clients),
        # Flower weighs by examples, which are the client's own claim; Blanchard et al. do not.
        weighted=False,
    ),
    "bulyan": Kind(
        build=flwr_strategy.Bulyan,
        arguments=krum_like,
        minimum=lambda s: 4 * s.byzantine_clients + 3,  # El Mhamdi et al. 2018, section 4
    ),
    "qfedavg": Kind(
        build=flwr_strategy.QFedAvg,
        arguments=lambda e: {"client_learning_rate": e.train.learning_rate, "q": e.server.q},
        initial_loss=True,
    ),
}


def make_aggregator(experiment: Experiment, arrays: Arrays, *, clients: int) -> Aggregator:
    """Return the aggregator that the experiment names.

    Args:
        experiment: complete and checked.
        arrays: the initial model.
        clients: how many the federation has.
    """
    return AGGREGATORS[experiment.server.strategy](experiment, arrays, clients)


class FlowerAggregator:
    """One of Flower's strategies, driven through its own hooks."""

    clients_keep_state = False
    survives_nobody = False

    def __init__(self, experiment: Experiment, arrays: Arrays, clients: int) -> None:
        self._name = experiment.server.strategy
        self._kind = FLOWER_STRATEGIES[self._name]
        linear = self._kind.linear
        self.aggregate_sum: AggregateSum | None = self._aggregate_sum if linear else None
        self._minimum = self._kind.minimum(experiment.server)
        self._strategy: Any = self._kind.build(
            min_train_nodes=1,
            min_available_nodes=1,
            **self._kind.arguments(experiment),
        )
        self._names = list(arrays)

    def instruct(
        self, round: int, arrays: Arrays, learning_rate: float, nodes: Sequence[int]
    ) -> Instruction:
        """Let the strategy take note of the model that this round starts from."""
        if hasattr(self._strategy, "current_arrays"):
            self._strategy.current_arrays = None  # FedAvgM would keep its own, unrounded copy
        if hasattr(self._strategy, "client_learning_rate"):
            self._strategy.client_learning_rate = learning_rate
        # It makes a message for every node that it sees, and we make our own; but for a node that
        # is not there, as in a cohort that nobody was drawn for, it would wait for ever.
        anybody = ChosenNodes(nodes[:1] or [SOMEBODY])
        self._strategy.configure_train(
            round + self._kind.round_offset, held(arrays), ConfigRecord(), anybody
        )
        return Instruction(
            round=round,
            arrays=arrays,
            learning_rate=learning_rate,
            initial_loss=self._kind.initial_loss,
        )

    def aggregate(self, round: int, arrays: Arrays, updates: Sequence[Update]) -> dict[str, Any]:
        """Give the strategy the updates and return its model in the dtypes of the old one.

        Raises:
            RunFailed: too few updates for what the strategy promises, or it refused them.
        """
        if self._kind.linear:
            total = block_sum((update.arrays, update.weight) for update in updates)
            return self._aggregate_sum(round, arrays, total)
        if len(updates) < self._minimum:
            raise RunFailed(
                f"round {round}: {self._name} needs {self._minimum} updates to keep its promise, "
                f"and {len(updates)} could be used"
            )
        return self._ask_strategy(round, arrays, [self._content(update) for update in updates])

    def _aggregate_sum(self, round: int, arrays: Arrays, total: WeightedSum) -> dict[str, Any]:
        """Give the strategy the mean, as one update with all of the examples.

        Raises:
            RunFailed: it refused it.
        """
        mean = total.mean()
        if self._kind.mean:
            return {name: in_dtype(mean[name], a.dtype) for name, a in arrays.items()}
        metrics = MetricRecord({WEIGHT: total.weight})
        content = RecordDict({ARRAYS: held(mean), METRICS: metrics})
        return self._ask_strategy(round, arrays, [content])

    def _ask_strategy(
        self, round: int, arrays: Arrays, contents: Sequence[RecordDict]
    ) -> dict[str, Any]:
        replies = [Message(content, SOMEBODY, MessageType.TRAIN) for content in contents]
        try:
            result, _ = self._strategy.aggregate_train(round + self._kind.round_offset, replies)
        except AppExitException as error:
            raise RunFailed(f"round {round}: {self._name} could not aggregate: {error}") from error
        return {name: in_dtype(result[name].numpy(), a.dtype) for name, a in arrays.items()}

    def _content(self, update: Update) -> RecordDict:
        metrics = MetricRecord({WEIGHT: update.examples if self._kind.weighted else 1})
        if self._kind.initial_loss:
            metrics[TRAIN_LOSS] = float(update.initial_loss or 0.0)
        return RecordDict({ARRAYS: held(update.arrays), METRICS: metrics})

    def state(self) -> dict[str, np.ndarray]:
        """Return the strategy's memory, as ``attribute/array``."""
        return {
            f"{attribute}/{name}": value
            for attribute in self._kind.memory
            for name, value in self._memory(attribute).items()
        }

    def figures(self) -> Mapping[str, float]:
        """See :class:`Aggregator`."""
        return {}

    def _memory(self, attribute: str) -> dict[str, np.ndarray]:
        value = getattr(self._strategy, attribute) or {}
        return value if isinstance(value, dict) else dict(zip(self._names, value, strict=True))

    def restore(self, state: Arrays) -> None:
        """Put the memory back."""
        for attribute in self._kind.memory:
            paths = {name: f"{attribute}/{name}" for name in self._names}
            named = {name: state[path] for name, path in paths.items() if path in state}
            if named:
                as_list = attribute == "momentum_vector"
                setattr(self._strategy, attribute, list(named.values()) if as_list else named)


def in_dtype(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return float64 values as the model stores them: whole numbers are rounded, never cut."""
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


class ScaffoldAggregator:
    """SCAFFOLD's server half; see :mod:`fedsim.algorithms.scaffold`."""

    aggregate_sum: AggregateSum | None = None  # clients send a second set of arrays
    clients_keep_state = True
    survives_nobody = False

    def __init__(self, experiment: Experiment, arrays: Arrays, clients: int) -> None:
        self._clients = clients
        self._learning_rate = experiment.server.learning_rate or 1.0
        self._control = {name: np.zeros_like(value) for name, value in arrays.items()}

    def instruct(
        self, round: int, arrays: Arrays, learning_rate: float, nodes: Sequence[int]
    ) -> Instruction:
        """Send the model and the server's control variate."""
        return Instruction(
            round=round, arrays=arrays, learning_rate=learning_rate, control=self._control
        )

    def aggregate(self, round: int, arrays: Arrays, updates: Sequence[Update]) -> dict[str, Any]:
        """Step the model and the control variate."""
        model, self._control = scaffold.server_step(
            arrays,
            self._control,
            [update.arrays for update in updates],
            [update.control_change or {} for update in updates],
            clients=self._clients,
            learning_rate=self._learning_rate,
        )
        return model

    def state(self) -> dict[str, np.ndarray]:
        """Return the control variate."""
        return {f"control/{name}": value for name, value in self._control.items()}

    def figures(self) -> Mapping[str, float]:
        """See :class:`Aggregator`."""
        return {}

    def restore(self, state: Arrays) -> None:
        """Put the control variate back."""
        self._control = {name: state[f"control/{name}"] for name in self._control}


AGGREGATORS: dict[str, Callable[[Experiment, Arrays, int], Aggregator]] = {
    **dict.fromkeys(FLOWER_STRATEGIES, FlowerAggregator),
    "scaffold": ScaffoldAggregator,
}


class HeldArray(Array):
    """An Array that hands out its values as float64 without serialising them first."""

    def __init__(self, values: np.ndarray) -> None:
        self.__dict__.update(dtype="float64", shape=values.shape, stype="numpy.ndarray")
        self.__dict__["_values"] = values

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return a float64 copy: strategies work on it in place."""
        return np.asarray(self.__dict__["_values"]).astype(np.float64)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised form, for whoever insists."""
        buffer = BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()


class HeldRecord(ArrayRecord):
    """An ArrayRecord without Flower's way of freeing it, a full garbage collection per array."""

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[np.ndarray]:
        """Return the arrays; they are only references, so the record stays as it is."""
        return [array.numpy() for array in self.values()]


def held(arrays: Arrays) -> HeldRecord:
    """Return a record of arrays held as they are."""
    record = HeldRecord()
    for name, values in arrays.items():
        record[name] = HeldArray(values)
    return record


@dataclass(frozen=True)
class ChosenNodes:
    """The grid that a strategy samples from: the cohort that was drawn for it, all of it."""

    nodes: Sequence[int]

    def get_node_ids(self) -> Iterable[int]:
        """Return the cohort's nodes."""
        return self.nodes
