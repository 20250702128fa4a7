"""The experiment: one TOML file into frozen dataclasses, and into Flower's flat run-config.

Every key is a field below, with its default, its range and what it means. Everything that can be
said about an experiment without loading data is checked here, before any work, a line a problem.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.conflicts import conflicts
from fedsim.errors import ConfigError, nearest
from fedsim.values import Value, convert, setting

Vocabulary = Mapping[str, Collection[str]]

# Tables that say where and how a run is executed. They never change its result, so a run may be
# resumed with others, and they stay out of the hash that names an experiment.
EXECUTION_TABLES = ("engine", "run")

# Keys of other tables of which the same holds: a calibration is a file beside the ledger.
EXECUTION_KEYS = ("measure.calibrate",)


@dataclass(frozen=True, kw_only=True)
class ExperimentTable:
    """What the experiment is called, and how long it runs."""

    name: str = setting("quickstart", "names the run and its directory")
    seed: int = setting(0, "fixes partition, sampling, initial draw and batches", low=0)
    rounds: int = setting(30, "federated rounds", low=1)
    stop_at_accuracy: float = setting(
        0.0, "ends a run as soon as its test accuracy gets there; 0: never", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """Which examples there are, and which client holds which."""

    dataset: str = setting("digits", "digits, mnist, fashion_mnist, cifar10, file, or split")
    path: str = setting(
        "", "dataset = file: the .npz, .csv or .parquet file; dataset = split: its folder"
    )
    test_path: str = setting("", "dataset = file: a file of the same columns to test on")
    label: str = setting("", "dataset = file: the label column, or the array of labels")
    client: str = setting("", "dataset = file: the column or array of client ids")
    clients: int = setting(50, "clients in the federation; 0 with natural: as many as ids", low=0)
    partition: str = setting(
        "iid", "how examples are dealt: iid, dirichlet, shards, labels, quantity, natural"
    )
    alpha: float = setting(0.3, "dirichlet: concentration, small is uneven", above=0)
    shards_per_client: int = setting(2, "shards: label-sorted shards per client", low=1)
    labels_per_client: int = setting(2, "labels: distinct labels per client", low=1)
    size_sigma: float = setting(1.0, "quantity: sigma of the log-normal client sizes", above=0)
    min_examples: int = setting(1, "every client holds at least so many examples", low=1)
    test_fraction: float = setting(
        0.2, "held out for testing where a dataset has no test split", above=0, below=1
    )
    validation_fraction: float = setting(
        0.0,
        "tests on so much of the training part, held out, instead of the test part; 0: no",
        low=0,
        below=1,
    )
    offset: float = setting(
        0.0, "added to every feature: -0.5 gives pixels in [-0.5, 0.5]", low=-1000, high=1000
    )
    missing: str = setting("refuse", "dataset = file: missing values", choices=("refuse", "impute"))
    standardize: bool = setting(False, "dataset = file: numeric columns to mean 0, deviation 1")


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """The network that every client trains."""

    name: str = setting("mlp", "mlp or cnn")
    width: int = setting(0, "units of a dense hidden layer; 0: 200 (mlp), 512 (cnn)", low=0)
    depth: int = setting(0, "hidden layers (mlp) or convolutions (cnn); 0: two", low=0)
    activation: str = setting("relu", "such as relu, tanh, gelu, leaky_relu(0.1)")
    init_gain: float = setting(0.0, "initialisation gain; 0: the activation's own", low=0)


@dataclass(frozen=True, kw_only=True)
class TrainTable:
    """Local training: stochastic gradient descent on the client's own examples."""

    epochs: int = setting(1, "passes over the client's data in a round", low=1)
    steps: int = setting(0, "optimiser steps in a round; 0: as many as the epochs hold", low=0)
    batch_size: int = setting(10, "examples a step; 0: all of the client's", low=0)
    learning_rate: float = setting(0.1, "step size of the first round", above=0)
    momentum: float = setting(0.0, "of the client's optimiser, fresh every round", low=0, below=1)
    weight_decay: float = setting(0.0, "L2 penalty added to the gradient", low=0)
    clip_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", low=0)
    proximal_mu: float = setting(0.0, "FedProx: pull towards the global model", low=0)
    schedule: str = setting(
        "constant",
        "learning rate over the rounds",
        choices=("constant", "linear", "cosine", "exponential"),
    )
    decay: float = setting(0.99, "exponential: factor from round to round", above=0, high=1)
    compiler: str = setting(
        "auto",
        "what runs local training: xla (needs JAX), torch; auto: xla where it can",
        choices=("auto", "torch", "xla"),
    )
    vectorize: str = setting(
        "auto",
        "clients of a block at once, or one after another; auto: by the model's size",
        choices=("auto", "always", "never"),
    )
    block_clients: int = setting(0, "clients that are trained in one call; 0: by a rule", low=0)
    precision: str = setting(
        "float32",
        "of forward and backward; parameters and their updates stay float32",
        choices=("float32", "bfloat16"),
    )


@dataclass(frozen=True, kw_only=True)
class ServerTable:
    """Who is asked in a round, and how the answers become the next model."""

    strategy: str = setting("fedavg", "how updates are aggregated")
    clients_per_round: int = setting(10, "cohort size", low=1)
    learning_rate: float = setting(0.0, "server step size; 0: the strategy's own", low=0)
    momentum: float = setting(0.9, "fedavgm", low=0, below=1)
    beta_1: float = setting(0.9, "fedadam, fedyogi", low=0, below=1)
    beta_2: float = setting(0.99, "fedadam, fedyogi", low=0, below=1)
    tau: float = setting(1e-3, "fedadam, fedyogi, fedadagrad: adaptivity", above=0)
    byzantine_clients: int = setting(0, "krum, multikrum, bulyan: clients to withstand", low=0)
    selected_clients: int = setting(1, "multikrum: updates that are averaged", low=1)
    trim_fraction: float = setting(0.2, "fedtrimmedavg: cut from each end", low=0, below=0.5)
    q: float = setting(0.1, "qfedavg: fairness", low=0)
    evaluate_every: int = setting(1, "test the global model every so many rounds", low=1)
    round_timeout_seconds: float = setting(600.0, "a reply that takes longer is missed", above=0)
    left_out: str = setting("", "clients that are never asked, such as 2,5: their rows say so")

    @property
    def absent(self) -> tuple[int, ...]:
        """The clients of ``left_out``, by number."""
        return tuple(int(number) for number in self.left_out.split(",") if number.strip())


@dataclass(frozen=True, kw_only=True)
class EngineTable:
    """What executes the clients. Results do not depend on it."""

    name: str = setting(
        "auto",
        "ray, inline; auto: inline where Ray could not pay for its start",
        choices=("auto", "ray", "inline"),
    )
    workers: int = setting(0, "ray: worker processes; 0: one per core of machine or cluster", low=0)
    address: str = setting("", "ray: join the cluster at this address")
    device: str = setting("cpu", "where clients train", choices=("cpu", "cuda"))


@dataclass(frozen=True, kw_only=True)
class UpdateTable:
    """How updates are compressed before they are sent, and the model before it comes down."""

    codec: str = setting("none", "none, float16, int8, topk, drive")
    coder: str = setting(
        "none", "lossless stage behind the codec, both ways", choices=("none", "zstd", "entropy")
    )
    zstd_level: int = setting(3, "coder = zstd: effort", low=1, high=22)
    topk_fraction: float = setting(0.1, "topk: share of the coordinates sent", above=0, high=1)
    error_feedback: bool = setting(True, "topk: what was not sent is added to the next update")
    downlink: str = setting("none", "how the model comes down", choices=("none", "float16", "int8"))
    packed: bool = setting(False, "a model travels as one array: Flower fetches arrays one by one")

    @property
    def codes_up(self) -> bool:
        """Whether updates travel as payloads, and not as arrays."""
        return self.packed or {self.codec, self.coder} != {"none"}

    @property
    def codes_down(self) -> bool:
        """Whether the model comes down as a payload, and not as arrays."""
        return self.packed or {self.downlink, self.coder} != {"none"}

    @property
    def codes(self) -> bool:
        """Whether models travel in any other way than as arrays."""
        return self.codes_up or self.codes_down


@dataclass(frozen=True, kw_only=True)
class MeasureTable:
    """How much is measured. The model's bits are the same whatever is chosen here."""

    level: str = setting(
        "light",
        "off: clocks and losses alone; light: what needs no extra pass over the data; full: all",
        choices=("off", "light", "full"),
    )
    full_every: int = setting(0, "takes level full in every so many rounds; 0: never", low=0)
    device: str = setting("", "a device profile, by name or as a .toml file: modelled figures")
    energy: str = setting(
        "none", "rapl: the processor's own energy counter", choices=("none", "rapl")
    )
    calibrate: bool = setting(False, "times the activations on this machine before the start")


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Where a run reads and writes."""

    out: str = setting("", "the run directory; empty: a new one under runs/")
    resume: bool = setting(False, "continue the run in run.out")
    data_dir: str = setting("", "datasets; empty: $FEDSIM_DATA_DIR, then the user's cache")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, complete and checked. Build it with :func:`read` or :func:`from_flat`."""

    experiment: ExperimentTable = ExperimentTable()
    data: DataTable = DataTable()
    model: ModelTable = ModelTable()
    train: TrainTable = TrainTable()
    server: ServerTable = ServerTable()
    update: UpdateTable = UpdateTable()
    engine: EngineTable = EngineTable()
    measure: MeasureTable = MeasureTable()
    run: RunTable = RunTable()

    def tables(self) -> dict[str, dict[str, Value]]:
        """Return the nested form, as in the TOML file."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Value]:
        """Return the dotted form, as in Flower's run-config."""
        return {f"{t}.{k}": v for t, keys in self.tables().items() for k, v in keys.items()}

    def digest(self) -> str:
        """Return the SHA-256 of everything that can change the result."""
        flat = {key: value for key, value in self.flat().items() if changes_result(key)}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


TABLES: dict[str, Any] = {
    "experiment": ExperimentTable,
    "data": DataTable,
    "model": ModelTable,
    "train": TrainTable,
    "server": ServerTable,
    "update": UpdateTable,
    "engine": EngineTable,
    "measure": MeasureTable,
    "run": RunTable,
}


def fields_by_key() -> dict[str, dataclasses.Field[Any]]:
    """Return every dotted key with its declaration."""
    return {
        f"{name}.{key.name}": key
        for name, table in TABLES.items()
        for key in dataclasses.fields(table)
    }


def read(
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    vocabulary: Vocabulary,
    base: Mapping[str, Any] | None = None,
) -> Experiment:
    """Read an experiment from a TOML file; precedence: overrides, then the file, then defaults.

    Args:
        path: the TOML file; None for none.
        overrides: ``"table.key=value"``, as on the command line.
        base: dotted keys that stand in for a file.
        vocabulary: by key, the names that the registries know.

    Raises:
        ConfigError: with every problem found, a line each.
    """
    flat = dict(base or {}) if path is None else flatten(read_toml(path))
    if path is not None and "base" in flat:
        raise ConfigError([f"{path}: has a base, so it is a study; use: fedsim study {path}"])
    problems: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append(f"-s {text}: write it as table.key=value")
        else:
            flat[key.strip()] = parse_override(key.strip(), value.strip())
    return from_flat(flat, vocabulary=vocabulary, problems=problems)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file, with errors that name the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error


def flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested tables into dotted keys; dotted keys pass through."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def parse_override(key: str, text: str) -> Any:
    """Read a value as TOML where it is TOML, and as a bare string where it is not."""
    known = fields_by_key().get(key)
    if known is not None and isinstance(known.default, str) and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def from_flat(
    flat: Mapping[str, Any], *, vocabulary: Vocabulary, problems: Sequence[str] = ()
) -> Experiment:
    """Build an experiment from dotted keys, checking every one; see :func:`read`."""
    found = list(problems)
    known = fields_by_key()
    values: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    for key, value in flat.items():
        if key not in known:
            found.append(f"{key} = {value!r}: unknown key; {nearest_key(key)}")
            continue
        converted, problem = convert(key, value, known[key], vocabulary.get(key, ()))
        if problem:
            found.append(problem)
        else:
            table, _, name = key.partition(".")
            values[table][name] = converted
    experiment = Experiment(**{name: TABLES[name](**values[name]) for name in TABLES})
    rejected = {line.split(" ")[0] for line in found}
    found += [line for keys, line in conflicts(experiment) if not rejected & set(keys)]
    if found:
        raise ConfigError(found)
    return experiment


def nearest_key(key: str) -> str:
    """Say which key was probably meant, or what its table holds, or which tables there are."""
    known = fields_by_key()
    table = key.partition(".")[0]
    siblings = [name for name in known if name.startswith(f"{table}.")]
    tables = [f"[{name}]" for name in TABLES]
    # Keys of a table have its name in common, so that more of them has to be alike.
    return nearest(key, known, otherwise=siblings or tables, cutoff=0.75)


def changes_result(key: str) -> bool:
    """Say whether a key can change a run's result or its ledger, so that it names the run."""
    return key.split(".")[0] not in EXECUTION_TABLES and key not in EXECUTION_KEYS


def differences(old: Experiment, new: Experiment) -> list[str]:
    """List the keys that change the result and differ, as ``key: old -> new``."""
    before, after = old.flat(), new.flat()
    return [
        f"{key}: {before[key]!r} -> {after[key]!r}"
        for key in before
        if changes_result(key) and before[key] != after[key]
    ]
