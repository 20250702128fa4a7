"""What a node holds: its own data where it has been given some, and whether that can be used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message

from fedsim import flower, parts
from fedsim.config import Experiment
from fedsim.errors import DataError, FedsimError

DATA = "data"  # of a node's configuration: the folder or file with its examples

log = logging.getLogger("flwr.fedsim")


def experiment_at(context: Context) -> Experiment:
    """Return the experiment as it is at this node: over the node's own data, if it has any.

    Where it has none, a run over a split has to see the whole of it, as a simulation does.

    Raises:
        DataError: this client has no data here.
    """
    experiment = flower.experiment_of(context.run_config)
    own = str(context.node_config.get(DATA, ""))
    if own:
        table = dataclasses.replace(
            experiment.data,
            dataset="split",
            path=own,
            test_path="",
            label="",
            client="",
            validation_fraction=0.0,  # these were done before the data was dealt
            offset=0.0,
            standardize=False,
        )
        experiment = dataclasses.replace(experiment, data=table)
        whose, client = parts.dataset(experiment).client, int(context.node_config["partition-id"])
        if whose not in (None, client):
            raise DataError(f"{own}: is client {whose}'s, and this node has partition-id={client}")
        if parts.dataset(experiment).part != "client":
            raise DataError(f"{own}: holds no client's examples")
    elif experiment.data.dataset == "split":
        try:
            parts.partition(experiment)
        except DataError as error:
            raise DataError(f"the node's configuration names no {DATA}; {error}") from error
    return experiment


def inventory(message: Message, context: Context) -> ConfigRecord:
    """Say which partition this node holds, and its examples, or why it has none to train on.

    Args:
        message: the server's query; it may hold the form that examples must have.
        context: the node's.
    """
    held = ConfigRecord({"partition-id": context.node_config["partition-id"]})
    try:
        examples = usable_examples(message.content.config_records, context)
        table = flower.experiment_of(context.run_config).privacy
        # How many would tell what masks hide; level "example" counts them as known, and needs them.
        hidden = table.secure_aggregation and table.level != "example"
        held["examples"] = 1 if hidden else examples
    except FedsimError as error:
        held["problem"] = str(error)
    except Exception as error:  # its text may hold values, which stay here
        log.exception("this node's data cannot be read")
        held["problem"] = f"its data cannot be read ({type(error).__name__}); see the node's log"
    return held


def usable_examples(records: Mapping[str, Mapping[str, Any]], context: Context) -> int:
    """Return how many examples this node trains on.

    Raises:
        DataError: there are none, or not of the server's form.
    """
    experiment = experiment_at(context)
    (held,) = parts.indices(experiment, [int(context.node_config["partition-id"])])
    examples = len(held)
    if not examples:
        raise DataError(f"{experiment.data.path}: holds no examples")
    if flower.PARTITION in records:
        difference = parts.form(experiment).difference(records[flower.PARTITION])
        if difference:
            raise DataError(f"its data is not of the server's form: {difference}")
    return examples
