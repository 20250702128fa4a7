"""The Flower ClientApp: decode, train, measure, encode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim import flower, parts
from fedsim.algorithms import scaffold
from fedsim.measure.clocks import spent
from fedsim.measure.payload import dense_bytes, layer_norms, total_norm
from fedsim.randomness import stream
from fedsim.training import load_arrays, mean_loss, read_arrays, train_locally

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
    asked = flower.decode_instruction(message)
    client = int(context.node_config["partition-id"])
    device, settings = experiment.engine.device, experiment.train

    examples = parts.dataset(experiment).train(parts.partition(experiment).indices(client))
    x, y = (torch.from_numpy(part).to(device) for part in examples)
    model = load_arrays(parts.scratch_model(experiment).to(device), asked.arrays)
    own_control = control_of(context, asked)
    figures: dict[str, Any] = {}
    if asked.initial_loss:
        figures["initial_loss"] = mean_loss(model, x, y)
    with spent() as seconds:
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
            rng=stream(experiment.experiment.seed, "batches", round=asked.round, client=client),
            correction=correction(asked, own_control, device),
        )
    arrays = read_arrays(model)
    change = update_control(context, asked, own_control, arrays, result.steps)
    norms = layer_norms(asked.arrays, arrays)
    figures |= {
        "examples": result.examples,
        "steps": result.steps,
        "loss_first_step": result.loss_first_step,
        "loss_last_step": result.loss_last_step,
        "cpu_seconds": seconds.cpu_seconds,
        "wall_seconds": seconds.wall_seconds,
        "dense_bytes": dense_bytes(arrays) + dense_bytes(change or {}),
        "update_norm": total_norm(norms),
    }
    reply = flower.Reply(
        arrays=arrays,
        figures=figures,
        layer_norms=list(norms.values()) if experiment.measure.level == "full" else [],
        control_change=change,
    )
    return flower.encode_reply(reply, to=message)


def control_of(context: Context, asked: flower.Instruction) -> flower.Arrays:
    """Return this client's control variate (SCAFFOLD): zero until it has taken part."""
    if asked.control is None:
        return {}
    if flower.CONTROL in context.state:
        return flower.decode_arrays(context.state.array_records[flower.CONTROL])
    return {name: np.zeros_like(value) for name, value in asked.control.items()}


def correction(
    asked: flower.Instruction, own: flower.Arrays, device: str
) -> dict[str, torch.Tensor] | None:
    """Return what SCAFFOLD adds to every gradient, c - c_i."""
    if asked.control is None:
        return None
    return {k: torch.from_numpy(c - own[k]).to(device) for k, c in asked.control.items()}


def update_control(
    context: Context,
    asked: flower.Instruction,
    own: flower.Arrays,
    arrays: flower.Arrays,
    steps: int,
) -> flower.Arrays | None:
    """Keep the new control variate in this client's state and return its change."""
    if asked.control is None:
        return None
    new = scaffold.client_control(
        asked.arrays, arrays, asked.control, own, steps=steps, learning_rate=asked.learning_rate
    )
    if all(np.isfinite(value).all() for value in new.values()):
        context.state[flower.CONTROL] = flower.encode_arrays(new)
    return {name: value - own[name] for name, value in new.items()}
