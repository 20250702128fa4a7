"""Cohorts: many clients in one call of the app. What a block is, and how one runs.

An app that registers ``@app.train("cohort")`` is handed *blocks*: a message of the type
``train.cohort`` carries the content that the whole cohort shares, and a ConfigRecord named
``cohort`` whose ``partition-ids`` name the block's clients. What the handler returns is the
block's reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp

from fedsim.engine.executor import Job
from fedsim.engine.worker import client_context, delivered, isolated, run_job

COHORT_TYPE = "train.cohort"
Reply = RecordDict | Error


@dataclass(frozen=True, slots=True)
class Block:
    """Clients that travel together, in the order in which the app shall take them.

    ``clients`` are partition ids (node id = partition id + 1); ``work`` holds features of what
    the block costs, for instance (steps, examples). They steer who gets what, never a result.
    """

    clients: tuple[int, ...]
    work: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What all blocks of a cohort have in common, but for their content."""

    run_id: int
    nodes: int
    seed: int
    run_config: Mapping[str, object] = field(default_factory=dict)
    group_id: str = ""


@dataclass(frozen=True, slots=True)
class Cohort:
    """One round's question, and who gets the answers.

    ``numbers[i]`` is the message number of block i's first client. ``answer`` is given each block's
    place and the parts of its reply, as soon as they are there, in any order.
    """

    content: RecordDict
    blocks: Sequence[Block]
    numbers: Sequence[int]
    setting: Setting
    answer: Callable[[int, list[Reply]], None]


@dataclass(frozen=True, slots=True)
class Usage:
    """What became of the workers' time in a cohort.

    ``busy_seconds`` are those that each worker spent in the app, by the worker's number.
    """

    wall_seconds: float
    busy_seconds: tuple[float, ...]

    @property
    def idle_fraction(self) -> float:
        """The share of the workers' time in which they had nothing to do, in [0, 1]."""
        available = self.wall_seconds * len(self.busy_seconds)
        return max(0.0, 1.0 - sum(self.busy_seconds) / available) if available else 0.0


def offers_cohorts(app: ClientApp) -> bool:
    """Say whether the app registered ``@app.train("cohort")``."""
    return COHORT_TYPE in app._registered_funcs


def metadata_of(setting: Setting, number: int, client: int) -> Metadata:
    """Return the metadata of a block's message: ids follow from the numbers alone."""
    message = Message(RecordDict(), client + 1, COHORT_TYPE, group_id=setting.group_id)
    message.metadata.__dict__["_message_id"] = f"{setting.run_id}-{number}"
    return message.metadata


def run_block(
    app: ClientApp, content: RecordDict, clients: Sequence[int], number: int, setting: Setting
) -> list[Reply]:
    """Give a block to the app; if that fails, give it the block's clients one by one.

    Returns one reply for the block, or, where the app raised an exception for a block of several
    clients, a reply for each client: one that raises harms nobody.
    """
    reply = _ask(app, content, clients, number, setting)
    if isinstance(reply, RecordDict) or len(clients) == 1:
        return [reply]
    return [
        _ask(app, content, [client], number + place, setting)
        for place, client in enumerate(clients)
    ]


def _ask(
    app: ClientApp, content: RecordDict, clients: Sequence[int], number: int, setting: Setting
) -> Reply:
    own = isolated(content)
    own["cohort"] = ConfigRecord({"partition-ids": list(clients)})
    message = delivered(metadata_of(setting, number, clients[0]), own)
    context = client_context(
        run_id=setting.run_id,
        node_id=clients[0] + 1,
        nodes=setting.nodes,
        state=RecordDict(),
        run_config=setting.run_config,
    )
    reply = run_job(app, Job(message, context, setting.seed)).reply
    return reply.content if reply.has_content() else reply.error
