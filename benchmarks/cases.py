"""What is measured: cases, the systems in each, and what fedsim should reach against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from benchmarks.spec import Spec


@dataclass(frozen=True, kw_only=True)
class System:
    """How a system is run: the module of its runner, whose environment, and through what."""

    runner: str
    environment: str = "project"
    launcher: tuple[str, ...] = ()  # between the interpreter and "-m runner"


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")

SYSTEMS = {
    "fedsim": System(runner="on_fedsim"),
    "flower": System(runner="on_flower"),
    "pfl": System(runner="on_pfl", environment="bench"),
    "pfl-2": System(runner="on_pfl", environment="bench", launcher=TORCHRUN),
    "torch": System(runner="plain_torch", environment="bench"),
    "jax": System(runner="plain_jax", environment="bench"),
    "noop": System(runner="on_noop"),
    "cold": System(runner="on_cold"),
}

DOES_NOT = {
    "fedsim": "leaves nothing out: a row for each client and round in the ledger, level `light`, "
    "two workers on Ray; in the case with `engine auto` what that chooses, *inline* if it says so",
    "fedsim-ray": "the same on Ray",
    "fedsim-1": "the same with one worker",
    "flower": "keeps no rows (the mean of the clients' metrics alone); two actors",
    "pfl": "keeps no rows, does not shuffle a client's examples, one process on one core",
    "pfl-2": "the same in two processes (torchrun)",
    "torch": "no framework: no rows, no messages, no failures; one process on one core",
    "jax": "the same, compiled for this one network; one process on one core",
    "jax-2": "the same in two bare processes: what the cores can do",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a case: a system with its rounds; ``target`` is what fedsim should reach.

    The target is a ratio, fedsim's clients a second over this entry's. Where one round takes
    fifteen seconds, ``most_repeats`` are enough, unless the command line says how many.
    """

    label: str
    system: str
    spec: Spec
    target: float | None = None
    most_repeats: int = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """Entries that are compared, the first with all others; ``table`` says how they are shown."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    table: str = "rates"  # rates, cold or memory
    most_repeats: int = 5
    default: bool = True


Rounds = tuple[int, int]  # warm-up, timed
TURNS = ("light", "off", "light", "off")  # fedsim's, in one process, for the price of measuring


def training(
    name: str,
    title: str,
    spec: Spec,
    rounds: Mapping[str, Rounds],
    targets: Mapping[str, float] = MappingProxyType({}),
    turns: tuple[str, ...] = TURNS,
    **told: Any,
) -> Case:
    """Return a case in which every system trains the same federation."""
    entries = []
    for label, (warm_up, timed) in rounds.items():
        workers = 1 if label in ("jax", "fedsim-1") else spec.workers
        system = {"jax-2": "jax", "fedsim-1": "fedsim", "fedsim-ray": "fedsim"}.get(label, label)
        levels = turns if label == "fedsim" else spec.levels
        engine = "ray" if label == "fedsim-ray" else spec.engine
        mine = replace(spec, workers=workers, levels=levels, engine=engine)
        entries.append(
            Entry(
                label=label,
                system=system,
                spec=replace(mine, warm_up=warm_up, rounds=timed),
                target=targets.get(label),
                most_repeats=3 if label == "flower" and spec.cohort >= 1_000 else 5,
            )
        )
    return Case(name=name, title=title, entries=tuple(entries), **told)


DENSE = Spec(model="2nn", clients=100, examples=600)
B10, B50 = replace(DENSE, batch_size=10), replace(DENSE, batch_size=50)
SMALL = Spec(model="small", examples=30, batch_size=10)
CNN = Spec(model="cnn", clients=100, examples=50, batch_size=10)
NOOP = Spec(model="tiny", clients=100, examples=2, cohort=100)
TINY = Spec(model="tiny", examples=2, batch_size=2, warm_up=3)


def registered(clients: int, cohort: int) -> Entry:
    """Return fedsim with so many clients of two examples each, of whom a few take part."""
    spec = replace(TINY, clients=clients, cohort=cohort, rounds=20)
    return Entry(label=f"{cohort} of {clients}", system="fedsim", spec=spec)


CASES = (
    training(
        "2nn-b10",
        "2NN, 100 clients x 600 examples, B=10, 100 a round",
        B10,
        {
            "fedsim": (3, 4),
            "fedsim-1": (2, 4),
            "flower": (0, 2),
            "pfl": (0, 2),
            "pfl-2": (0, 2),
            "torch": (0, 2),
            "jax": (1, 4),
            "jax-2": (1, 6),
        },
        {"flower": 7.0, "pfl": 7.0, "jax-2": 0.85, "fedsim-1": 1.85},
    ),
    training(
        "2nn-b10-few",
        "2NN, 100 clients x 600 examples, B=10, 10 a round",
        replace(B10, cohort=10),
        {"fedsim": (10, 20), "flower": (1, 5), "pfl": (0, 8), "jax-2": (2, 40)},
        most_repeats=3,
    ),
    training(
        "2nn-b50",
        "2NN, 100 clients x 600 examples, B=50, 100 a round",
        B50,
        {
            "fedsim": (3, 5),
            "flower": (0, 2),
            "pfl": (0, 2),
            "jax-2": (1, 8),
        },
        {"flower": 9.0, "pfl": 5.5},
    ),
    training(
        "2nn-b50-few",
        "2NN, 100 clients x 600 examples, B=50, 10 a round",
        replace(B50, cohort=10),
        {"fedsim": (10, 30), "flower": (1, 5), "pfl": (0, 10)},
        most_repeats=3,
    ),
    training(
        "small-100",
        "64-32-32-10, 30 examples a client, B=10, 100 of 100 (fedsim: engine auto)",
        replace(SMALL, engine="auto"),
        {
            "fedsim": (20, 100),
            "fedsim-ray": (20, 100),
            "flower": (1, 5),
            "pfl": (0, 20),
            "pfl-2": (0, 20),
            "torch": (1, 30),
            "jax-2": (5, 300),
        },
        {"flower": 40.0, "pfl": 10.0},
    ),
    training(
        "small-1000",
        "64-32-32-10, 30 examples a client, B=10, 1,000 of 1,000",
        replace(SMALL, clients=1_000, cohort=1_000),
        {"fedsim": (5, 15), "flower": (0, 1), "pfl": (0, 3), "jax-2": (3, 50)},
        {"flower": 300.0, "pfl": 25.0},
    ),
    training(
        "cnn-10",
        "McMahan's CNN, 100 clients x 50 examples, B=10, 10 a round",
        replace(CNN, cohort=10),
        {"fedsim": (3, 4), "flower": (0, 4), "pfl": (0, 4), "torch": (0, 4)},
        most_repeats=3,
    ),
    training(
        "cnn-100",
        "McMahan's CNN, 100 clients x 50 examples, B=10, 100 a round",
        CNN,
        {"fedsim": (1, 1), "flower": (0, 1), "pfl": (0, 1)},
        {"flower": 1.5, "pfl": 1.5},
        turns=TURNS[:2],
    ),
    training(
        "cnn-1000",
        "McMahan's CNN, 1,000 clients x 10 examples, B=10, 1,000 a round",
        replace(CNN, clients=1_000, examples=10, cohort=1_000),
        {"fedsim": (1, 1), "pfl": (0, 1)},
        turns=TURNS[:1],
        most_repeats=2,
    ),
    Case(
        name="noop-replies",
        title="no work, 199,210 weights each way, a reply a client: copied, 100 of 100",
        entries=(
            Entry(label="fedsim", system="noop", spec=replace(NOOP, warm_up=5, rounds=20)),
            Entry(
                label="flower",
                system="noop",
                spec=replace(NOOP, runtime="flower", warm_up=1, rounds=4),
                target=6.0,
            ),
        ),
    ),
    Case(
        name="noop-echo",
        title="no work, 199,210 weights each way, a reply a client: sent back unread, 100 of 100",
        entries=(
            Entry(
                label="fedsim",
                system="noop",
                spec=replace(NOOP, client="echo", warm_up=5, rounds=20),
            ),
            Entry(
                label="flower",
                system="noop",
                spec=replace(NOOP, client="echo", runtime="flower", warm_up=1, rounds=4),
            ),
        ),
        default=False,
    ),
    Case(
        name="noop-sums",
        title="no work, 199,210 weights: fedsim 1,000 of 10,000 summed in the workers, "
        "Flower 1,000 of 1,000",
        entries=(
            Entry(
                label="fedsim",
                system="noop",
                spec=replace(
                    NOOP, client="sums", clients=10_000, cohort=1_000, warm_up=3, rounds=15
                ),
            ),
            Entry(
                label="flower",
                system="noop",
                spec=replace(
                    NOOP, runtime="flower", clients=1_000, cohort=1_000, warm_up=0, rounds=1
                ),
                target=300.0,
                most_repeats=3,
            ),
        ),
    ),
    Case(
        name="registered",
        title="16-32-32-10, two examples a client: what registered clients cost",
        entries=(
            registered(1_000_000, 100),
            registered(100_000, 100),
            registered(10_000, 100),
            registered(1_000, 100),
            registered(100, 100),
        ),
        most_repeats=2,
    ),
    Case(
        name="registered-1000",
        title="16-32-32-10, two examples a client: what registered clients cost, 1,000 a round",
        entries=(registered(1_000_000, 1_000), registered(1_000, 1_000)),
        most_repeats=2,
    ),
    Case(
        name="cold",
        title="cold start: from `fedsim run` to the end of the first round (small net, 10 of 100)",
        entries=tuple(
            Entry(
                label=engine,
                system="cold",
                spec=replace(SMALL, cohort=10, warm_up=0, rounds=1, engine=engine),
            )
            for engine in ("ray", "inline")
        ),
        table="cold",
    ),
    Case(
        name="memory",
        title="memory over 1,000 rounds (small net, 100 of 100)",
        entries=(
            Entry(
                label="fedsim",
                system="fedsim",
                spec=replace(SMALL, warm_up=0, rounds=1_000, memory_at=(100, 1_000)),
            ),
        ),
        table="memory",
        most_repeats=1,
    ),
)

BY_NAME = {case.name: case for case in CASES}


def quick(case: Case) -> Case:
    """Return the case with as few rounds as still show that every runner works."""
    entries = tuple(replace(entry, spec=few_rounds(entry.spec)) for entry in case.entries)
    return replace(case, entries=entries)


def few_rounds(spec: Spec) -> Spec:
    """Return the spec with one timed round and at most one before it."""
    memory_at = (1,) if spec.memory_at else ()
    return replace(
        spec, warm_up=min(spec.warm_up, 1), rounds=1, levels=spec.levels[:2], memory_at=memory_at
    )
