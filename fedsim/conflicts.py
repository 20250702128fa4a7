"""Settings that are each possible and together are not, found before any work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsim.promises import privacy_conflicts

if TYPE_CHECKING:
    from fedsim.config import Experiment

# The keys involved, and the line that explains them. A key that is wrong by itself says nothing
# about the others: what it is involved in is not reported.
Conflict = tuple[tuple[str, ...], str]

# Strategies that take a step of their own from the clients' mean.
STEPPING = ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold")

# Clients needed to withstand f Byzantine ones: factor x f + 3 (Krum: Blanchard et al. 2017,
# proposition 1; Bulyan: El Mhamdi et al. 2018, section 4).
BYZANTINE_FACTOR = {"krum": 2, "multikrum": 2, "bulyan": 4}


def conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield every impossible combination of an experiment."""
    yield from data_conflicts(e)
    yield from algorithm_conflicts(e)
    yield from byzantine_conflicts(e)
    yield from transport_conflicts(e)
    yield from privacy_conflicts(e)
    yield from execution_conflicts(e)


def data_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what is impossible about the data and the cohort."""
    d, cohort = e.data, e.server.clients_per_round
    if d.clients == 0 and d.partition != "natural":
        yield (
            ("data.clients", "data.partition"),
            'data.clients = 0: needs data.partition = "natural"; otherwise give a number',
        )
    elif d.clients and cohort > d.clients:
        yield (
            ("server.clients_per_round", "data.clients"),
            f"server.clients_per_round = {cohort}: more than data.clients = {d.clients}",
        )
    yield from absence_conflicts(e.server.left_out, d.clients)
    if d.dataset in ("file", "split") and not d.path:
        what = "file" if d.dataset == "file" else "folder"
        yield (
            ("data.path", "data.dataset"),
            f'data.path = "": data.dataset = "{d.dataset}" needs the path of the {what}',
        )
    if d.dataset != "file":
        for key in ("path", "test_path", "label", "client"):
            if (value := getattr(d, key)) and (key, d.dataset) != ("path", "split"):
                yield (
                    (f"data.{key}", "data.dataset"),
                    f'data.{key} = {value!r}: only with data.dataset = "file", not {d.dataset!r}',
                )
    if d.dataset == "split" and d.partition != "natural":
        yield (
            ("data.partition", "data.dataset"),
            f'data.partition = {d.partition!r}: the examples of data.dataset = "split" are dealt '
            'already; use "natural"',
        )
    if d.partition == "natural" and d.dataset == "file" and not d.client:
        yield (
            ("data.client", "data.partition", "data.dataset"),
            'data.client = "": data.partition = "natural" needs the column of client ids',
        )


def algorithm_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what the strategy and the local training cannot do together."""
    strategy, rate, train = e.server.strategy, e.server.learning_rate, e.train
    if strategy == "fedprox" and train.proximal_mu == 0:
        yield (
            ("train.proximal_mu", "server.strategy"),
            "train.proximal_mu = 0.0: server.strategy = 'fedprox' needs it above 0 "
            "(at 0 it is fedavg)",
        )
    if rate not in (0.0, 1.0) and strategy not in STEPPING:
        yield (
            ("server.learning_rate", "server.strategy"),
            f"server.learning_rate = {rate}: server.strategy = {strategy!r} takes no server "
            f"step; use one of {', '.join(STEPPING)}",
        )
    if strategy == "scaffold" and train.momentum:
        yield (
            ("train.momentum", "server.strategy"),
            f"train.momentum = {train.momentum}: server.strategy = 'scaffold' is defined for "
            "plain SGD; set it to 0",
        )


def byzantine_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield cohorts that are too small for what a robust strategy promises."""
    server, strategy = e.server, e.server.strategy
    cohort, hostile = server.clients_per_round, server.byzantine_clients
    involved = ("server.byzantine_clients", "server.clients_per_round", "server.strategy")
    honest, selected = max(cohort - hostile, 0), server.selected_clients
    if strategy == "multikrum" and selected > honest:
        yield (
            ("server.selected_clients", *involved),
            f"server.selected_clients = {selected}: more than the {honest} honest of "
            f"server.clients_per_round = {cohort}",
        )
    factor = BYZANTINE_FACTOR.get(strategy)
    if factor and cohort < factor * hostile + 3:
        yield (
            involved,
            f"server.byzantine_clients = {hostile}: {strategy} then needs "
            f"server.clients_per_round of at least {factor * hostile + 3}, not {cohort}",
        )


def remarks(e: Experiment) -> list[str]:
    """Return what is possible and perhaps not meant: it is said, and the run goes on."""
    server, attack = e.server, e.adversary
    expected = attack.fraction * server.clients_per_round if attack.kind != "none" else 0
    if server.strategy not in BYZANTINE_FACTOR or server.byzantine_clients >= expected:
        return []
    return [
        f"server.byzantine_clients = {server.byzantine_clients}: some {expected:.3g} of "
        f"server.clients_per_round = {server.clients_per_round} are hostile "
        f"(adversary.fraction = {attack.fraction:g}), more than {server.strategy} is to withstand"
    ]


def absence_conflicts(left_out: str, clients: int) -> Iterator[Conflict]:
    """Yield what is wrong with the clients that are never asked."""
    involved = ("server.left_out", "data.clients")
    numbers = [part.strip() for part in left_out.split(",")] if left_out else []
    if not all(number.isascii() and number.isdigit() for number in numbers):
        yield involved, f"server.left_out = {left_out!r}: write numbers of clients, such as 2,5"
    elif clients and (beyond := [number for number in numbers if int(number) >= clients]):
        yield (
            involved,
            f"server.left_out = {left_out!r}: there is no client {beyond[0]}, "
            f"as data.clients = {clients} and the first is 0",
        )
    elif clients and len(set(map(int, numbers))) == clients:
        yield involved, f"server.left_out = {left_out!r}: leaves nobody; name fewer"


def transport_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what cannot be compressed."""
    update = e.update
    if e.server.strategy == "scaffold":
        for key in ("codec", "coder", "downlink"):
            if (value := getattr(update, key)) != "none":
                yield (
                    (f"update.{key}", "server.strategy"),
                    f"update.{key} = {value!r}: server.strategy = 'scaffold' computes its control "
                    "variates from exact models; leave it at 'none'",
                )


def execution_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what the engine cannot do, a name that is no directory's, and a resume of nothing."""
    engine = e.engine
    if engine.name == "inline" and engine.workers > 1:
        yield (
            ("engine.workers", "engine.name"),
            f"engine.workers = {engine.workers}: engine.name = 'inline' has one; "
            'use engine.name = "ray"',
        )
    if engine.name == "inline" and engine.address:
        yield (
            ("engine.address", "engine.name"),
            f'engine.address = {engine.address!r}: only with engine.name = "ray"',
        )
    if e.measure.device and e.measure.level == "off" and not e.measure.full_every:
        yield (
            ("measure.device", "measure.level"),
            f"measure.device = {e.measure.device!r}: measure.level = 'off' counts nothing to model "
            "from; use 'light'",
        )
    name = e.experiment.name
    if not re.fullmatch(r"\w[\w .+=-]*", name):
        yield (
            ("experiment.name",),
            f"experiment.name = {name!r}: names a directory too; use letters, digits, spaces and "
            ". _ + - =",
        )
    if e.run.resume and not e.run.out:
        yield (
            ("run.out", "run.resume"),
            'run.out = "": run.resume = true needs the directory to continue',
        )
