"""What happens to one message at a client, in whichever process it runs."""

from __future__ import annotations

import copy
import random
import sys
import traceback
from collections.abc import Mapping

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsim.engine.executor import Job, Outcome

# What XLA and torch say where memory does not suffice; neither raises a MemoryError.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")

Record = ArrayRecord | MetricRecord | ConfigRecord


def run_job(app: ClientApp, job: Job) -> Outcome:
    """Give one message to the app; whatever it raises becomes an error reply."""
    message = job.message
    seed_global_generators(job)
    try:
        reply = app(message, job.context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply)} instead of a Message")
    except Exception as error:
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        reply = Message(Error(code=code, reason=describe(error)), reply_to=message)
    return Outcome(message.metadata.message_id, reply, job.context.state)


def describe(error: BaseException) -> str:
    """Say what was raised and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = f"{type(error).__name__}: {error}{where}"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
        text += "; out of memory: lower engine.workers, train.batch_size or train.block_clients"
    return text


def seed_global_generators(job: Job) -> None:
    """Seed the generators that a ClientApp may draw from without being asked.

    The key is the run's seed, the node and the message, so neither the worker nor the order in
    which clients run has any influence.
    """
    name = f"{job.seed}/{job.context.node_id}/{job.message.metadata.message_id}"
    rng = random.Random(name)  # strings are hashed with SHA-512: the same in every process
    random.seed(rng.getrandbits(64))
    np.random.seed(rng.getrandbits(32))
    if torch := sys.modules.get("torch"):
        seed = rng.getrandbits(63)
        # Not torch.manual_seed: for devices that nobody uses it notes where it was called, which
        # takes as long as training a small client.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)


def delivered(metadata: Metadata, content: RecordDict) -> Message:
    """Return a message as it arrives: the metadata it was sent with, and content of its own."""
    return Message(content, metadata=metadata)  # type: ignore[call-overload, no-any-return]


def isolated(content: RecordDict) -> RecordDict:
    """Return records that a client may change without another client seeing it.

    A strategy puts one RecordDict into all messages of a round. The arrays' bytes are immutable
    and stay shared.
    """
    return RecordDict({name: copy_record(record) for name, record in content.items()})


def copy_record(record: Record) -> Record:
    """Copy one record, sharing the immutable values in it."""
    if isinstance(record, ArrayRecord):
        return record.copy()
    return copy.deepcopy(record)


def client_context(
    *, run_id: int, node_id: int, nodes: int, state: RecordDict, run_config: Mapping[str, object]
) -> Context:
    """Build a client's context: partition-id is node id - 1, as ``docs`` promise to apps."""
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config={"partition-id": node_id - 1, "num-partitions": nodes},
        state=state,
        run_config=dict(run_config),  # type: ignore[arg-type]
    )
