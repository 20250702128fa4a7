"""The Flower ClientApp: decode, train, measure, encode."""

from __future__ import annotations

from functools import partial

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.control import control_of, correction, update_control
from clients.figures import compression_figures, health_figures, layer_columns
from clients.sending import encode_update
from fedsim import codecs, flower, parts
from fedsim.costs import counted
from fedsim.measure.bill import Bill
from fedsim.measure.health import Health, look, probe_indices
from fedsim.measure.payload import update_summary
from fedsim.randomness import stream
from fedsim.training import load_arrays, mean_loss, read_arrays, train_locally, warm_up

app = ClientApp()


@app.query(flower.PARTITION)
def partition(message: Message, context: Context) -> Message:
    """Say which partition this node holds."""
    held = ConfigRecord({"partition-id": context.node_config["partition-id"]})
    return Message(RecordDict({flower.PARTITION: held}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's examples and return it with its bill."""
    torch.set_num_threads(1)  # more would fight for the cores, and change the bits
    experiment = flower.experiment_of(context.run_config)
    client = int(context.node_config["partition-id"])
    device, settings, seed = experiment.engine.device, experiment.train, experiment.experiment.seed
    bill = Bill()

    with bill.clock("data"):
        examples = parts.dataset(experiment).train(parts.partition(experiment).indices(client))
        x, y = (torch.from_numpy(part).to(device) for part in examples)
        model = parts.scratch_model(experiment).to(device)
    with bill.clock("serialization"):
        asked = flower.decode_instruction(
            message, lambda coded: codecs.decode(coded, read_arrays(model))
        )
        load_arrays(model, asked.arrays)
        own_control = control_of(context, asked)
    draw = partial(stream, seed, round=asked.round, client=client)
    size = settings.batch_size or len(y)
    light, full = asked.level != "off", asked.level == "full"

    def examine() -> Health | None:
        if not full:
            return None
        probe = torch.from_numpy(probe_indices(len(y), stream(seed, "probe", client=client)))
        return look(model, x, y, probe=probe, activation=experiment.model.activation)

    with bill.clock("evaluation"):
        initial_loss = mean_loss(model, x, y) if asked.initial_loss else None
        before = examine()
    with bill.training(
        experiment,
        device=device,
        conditions=light,
        warm_up=partial(warm_up, model, x[:size], y[:size]),
    ):
        result = train_locally(
            model,
            x,
            y,
            epochs=settings.epochs,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=asked.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            proximal_mu=settings.proximal_mu,
            rng=draw("batches"),
            correction=correction(asked, own_control, device),
        )
    with bill.clock("evaluation"):
        after = examine()

    with bill.clock("serialization"):
        arrays = read_arrays(model)
    with bill.clock("training"):  # the rest of SCAFFOLD's
        change = update_control(context, asked, own_control, arrays, result.steps)
    with bill.clock("serialization"):
        outgoing = encode_update(
            context, experiment.update, asked.arrays, arrays, rng=lambda: draw("codec")
        )
        sent = flower.encode_sent(outgoing.sent, change)
    layers = {}
    with bill.clock("measuring"):
        if light:
            summary = update_summary(asked.arrays, arrays)
            bill.add(update_norm=summary.norm, zero_fraction=summary.zero_fraction)
            bill.add(**counted(experiment, examples=result.examples, steps=result.steps))
        if before and after:
            bill.add(**health_figures(before, after))
            bill.add(**compression_figures(model, x, asked.arrays, arrays))
            bill.add(codec_error=outgoing.error(asked.arrays))
            layers = layer_columns(before, after, summary.layer_norms)
    bill.add(**vars(result), initial_loss=initial_loss)
    return flower.encode_reply(sent, bill.at(asked.level), layers, to=message)
