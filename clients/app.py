"""The Flower ClientApp: decode, train, measure, encode; for one client, or for a block of them."""

from __future__ import annotations

from functools import partial

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.control import control_of, correction, update_control
from clients.holding import experiment_at, inventory
from clients.protecting import protect, protected_update
from clients.securing import agree, encoding_of, send_masked
from clients.sending import encode_update
from clients.visit import figures_of, train_clients
from fedsim import codecs, flower, parts
from fedsim.config import Experiment
from fedsim.measure import container
from fedsim.measure.bill import Bill
from fedsim.randomness import stream
from fedsim.training import read_arrays

app = ClientApp()


@app.query(flower.PARTITION)
def partition(message: Message, context: Context) -> Message:
    """Say which partition this node holds, and whether there is something to train on."""
    return Message(RecordDict({flower.PARTITION: inventory(message, context)}), reply_to=message)


@app.query(flower.SECURE)
def secure(message: Message, context: Context) -> Message:
    """Take part in a stage of secure aggregation."""
    return agree(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's examples and return it with its bill."""
    stay = container.enter()  # before all else, as what came until here was start-up
    torch.set_num_threads(1)  # more would fight for the cores, and change the bits
    experiment = experiment_at(context)
    client, seed = int(context.node_config["partition-id"]), experiment.experiment.seed
    bill = Bill()
    with bill.clock("serialization"):
        asked = instruction_of(message, experiment)
        own_control = control_of(context, asked)
    visit = train_clients(
        experiment, asked, [client], bill, corrections=correction(asked, own_control)
    )
    if experiment.privacy.secure_aggregation:
        encoding = encoding_of(experiment, asked)
        update = protected_update(experiment, asked, client, visit.model(0), unit=encoding.unit)
        return send_masked(message, context, encoding, asked, update)
    arrays, steps = visit.model(0), int(visit.result.steps[0])
    with bill.clock("training"):  # the rest of SCAFFOLD's
        change = update_control(context, asked, own_control, arrays, steps)
    with bill.clock("serialization"):
        shown = protect(experiment, asked, client, arrays)
        rng = partial(stream, seed, "codec", round=asked.round, client=client)
        outgoing = encode_update(context, experiment.update, asked.arrays, shown, rng=rng)
        sent = flower.encode_sent(outgoing.sent, change)
    if asked.level == "full":
        bill.add(codec_error=outgoing.error(asked.arrays))
    columns, layers = figures_of(visit, bill)
    figures = {name: column[0].item() for name, column in columns.items()}
    if stay and asked.level != "off":
        figures |= stay.figures()
    return flower.encode_reply(sent, figures, layers.get(0, {}), to=message)


@app.train(flower.COHORT)
def train_block(message: Message, context: Context) -> Message:
    """Train the global model at each of a block's clients; return their sum, or their models.

    See docs/decisions/0011-cohorts.md. Clients that keep a state, and codecs, have messages of
    their own.
    """
    torch.set_num_threads(1)
    experiment = flower.experiment_of(context.run_config)
    bill = Bill()
    with bill.clock("serialization"):
        asked = instruction_of(message, experiment)
    visit = train_clients(experiment, asked, flower.asked_clients(message), bill)
    with bill.clock("serialization"):
        arrays = visit.digest.sum if asked.summed else visit.result.arrays
    columns, layers = figures_of(visit, bill)
    reply = flower.BlockReply.of(
        visit.clients,
        columns,
        problems=visit.problems(),
        arrays=arrays,
        summed=asked.summed,
        layers=layers,
    )
    return flower.encode_block(reply, to=message)


def instruction_of(message: Message, experiment: Experiment) -> flower.Instruction:
    """Return what the server asks, with the model decoded."""
    return flower.decode_instruction(
        message, lambda coded: codecs.decode(coded, read_arrays(parts.scratch_model(experiment)))
    )
