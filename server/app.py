"""The Flower ServerApp: config -> strategy -> rounds -> ledger."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim import adversary, config, parts
from fedsim.federation.billing import Evaluation, why_blank
from fedsim.federation.bounded import make_bounded
from fedsim.federation.evaluation import examine
from fedsim.federation.rounds import RoundFailed, RoundOutcome, federated_rounds
from fedsim.federation.sampling import locate_clients
from fedsim.federation.states import ClientStates, changed_states, restore_states
from fedsim.federation.strategy import Aggregator
from fedsim.federation.transport import Transport
from fedsim.ledger.store import Entry
from fedsim.ledger.writer import LedgerWriter
from fedsim.measure.cores import allowed_cores
from fedsim.measure.energy import not_measured, package_energy
from fedsim.privacy.accounting import statement
from fedsim.privacy.noise import source_of
from fedsim.records import RoundRow
from fedsim.runs import open_run
from fedsim.settings import MeasureTable
from fedsim.telling import round_line
from fedsim.training import learning_rate, load_arrays, read_arrays
from fedsim.vocabulary import vocabulary
from server.asker import asker, cut_cohort
from server.promise import BASIS, account, check_basis, chooser, spent

Arrays = Mapping[str, np.ndarray]

app = ServerApp()
log = logging.getLogger("flwr.fedsim")  # a child of Flower's, which shows it in its own runtime


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run-config describes, or go on with it."""
    torch.set_num_threads(1)
    experiment = config.from_flat(context.run_config, vocabulary=vocabulary())
    experiment = dataclasses.replace(experiment, train=parts.settled(experiment.train))
    settings, server, clients = experiment.experiment, experiment.server, parts.clients(experiment)
    model = parts.initial_model(experiment)
    arrays, plan = read_arrays(model), parts.plan(experiment)
    at = locate_clients(
        grid,
        clients,
        form=parts.form(experiment),
        absent=server.absent,
        timeout_seconds=server.round_timeout_seconds,
    )
    # Clients that had to be asked where they are also said what they hold, which may be only there.
    sizes = parts.partition(experiment).sizes if at.sizes is None else at.sizes
    choose = chooser(experiment, clients)
    spending = account(experiment, clients=clients, sizes=sizes, choose=choose, absent=at.left_out)
    noise_multiplier = spending.noise_multiplier if spending else None
    aggregator = make_bounded(
        experiment,
        arrays,
        clients=clients,
        noise_multiplier=noise_multiplier,
        source=lambda round, purpose: source_of(experiment.noise_seed, purpose, round=round),
    )
    about = {"blocks": dataclasses.asdict(plan), **({BASIS: spending.basis()} if spending else {})}
    with (
        open_run(experiment, about=about) as ledger,
        LedgerWriter(ledger) as writer,
    ):
        if spending:  # what was broken off and is done again counts
            check_basis(ledger.manifest.engine, spending)
            spending.repeated = len(ledger.manifest.resumed)
        done, last = 0, spending.last_round() if spending else settings.rounds
        reached = partial(is_reached, settings.stop_at_accuracy)
        if checkpoint := ledger.checkpoint():
            done, arrays = checkpoint.round, checkpoint.arrays
            last = done if any(map(reached, ledger.rounds())) else last
            aggregator.restore(checkpoint.state)
            restore_states(grid, checkpoint.client_states, at.node_of)
        begun = min(done + 1, last)
        transport = Transport(update=experiment.update, seed=settings.seed)
        cut = partial(cut_cohort, experiment.train, plan, sizes)
        rounds = federated_rounds(
            aggregator,
            arrays,
            first=done + 1,
            last=last,
            choose=choose,
            ask=asker(experiment, grid, at, aggregator=aggregator, transport=transport, cut=cut),
            cut=cut,
            at=at,
            noise_multiplier=noise_multiplier,
            learning_rate=partial(rate_of, experiment),
            level=partial(level_of, experiment.measure),
            transport=transport,
            evaluate=tester(experiment, model),
            evaluate_every=server.evaluate_every,
            figures=partial(spent, spending),
            energy=package_energy if experiment.measure.energy == "rapl" else not_measured,
        )
        try:
            for outcome in rounds:
                states = changed_states(grid, outcome.clients, at.node_of)
                write_down(writer, outcome, aggregator, states, experiment)
                if experiment.privacy.on or experiment.privacy.secure_aggregation:
                    # No round that others have seen may be made again, with other noise or members.
                    writer.flush()
                done = outcome.row.round
                begun = min(done + 1, last)
                if reached(outcome.row):
                    break
            begun = done
        except RoundFailed as failure:
            writer.flush()
            ledger.append_failed_round(failure.clients)
            raise
        finally:
            if spending:  # a round that was broken off may have been seen
                found = spending.guarantee(begun)
                ledger.promise(statement(found), found.epsilon)


def write_down(
    writer: LedgerWriter,
    outcome: RoundOutcome,
    aggregator: Aggregator,
    client_states: ClientStates,
    experiment: config.Experiment,
) -> None:
    """Put a round into the ledger, with what a resumed run needs, and tell of it."""
    entry = Entry(
        round=outcome.row,
        clients=outcome.clients,
        layers=outcome.layers,
        arrays=outcome.arrays,
        state=aggregator.state(),
        client_states=client_states,
    )
    own_threads = experiment.train.compiler == "xla"
    writer.append(entry, why_blank(outcome.clients, outcome.energy, own_threads=own_threads))
    report(outcome.row, experiment.experiment.rounds)


def tester(
    experiment: config.Experiment, model: torch.nn.Module
) -> Callable[[Arrays, str], Evaluation]:
    """Return what tests a model: from its arrays and a level to what it is worth."""
    x, y = (torch.from_numpy(part) for part in parts.dataset(experiment).test())
    aimed_at = adversary.victims(experiment)
    victims = aimed_at and (torch.from_numpy(aimed_at[0]), torch.from_numpy(aimed_at[1]))

    def test(arrays: Arrays, level: str) -> Evaluation:
        return examine(
            load_arrays(model, arrays),
            x,
            y,
            level=level,
            activation=experiment.model.activation,
            seed=experiment.experiment.seed,
            threads=len(allowed_cores()) or 1,
            victims=victims,
        )

    return test


def rate_of(experiment: config.Experiment, round: int) -> float:
    """Return the clients' learning rate in a round."""
    train = experiment.train
    return learning_rate(
        train.schedule,
        first=train.learning_rate,
        round=round,
        rounds=experiment.experiment.rounds,
        decay=train.decay,
    )


def is_reached(stop_at_accuracy: float, row: RoundRow) -> bool:
    """Say whether a round's test accuracy is what the run was to stop at; 0 is never reached."""
    return bool(stop_at_accuracy and (row.test_accuracy or 0.0) >= stop_at_accuracy)


def level_of(measure: MeasureTable, round: int) -> str:
    """Return how much is measured in a round."""
    often = measure.full_every
    return "full" if often and round % often == 0 else measure.level


def report(row: RoundRow, rounds: int) -> None:
    """Log a round; whoever listens finds the whole row in the record."""
    log.info(round_line(row, rounds), extra={"row": row, "rounds": rounds})
