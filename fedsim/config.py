"""The experiment: one TOML file into frozen dataclasses, and into Flower's flat run-config.

Every key is a field in :mod:`fedsim.settings`. Everything that can be
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
from fedsim.settings import (
    AdversaryTable,
    DataTable,
    EngineTable,
    ExperimentTable,
    MeasureTable,
    ModelTable,
    PrivacyTable,
    RunTable,
    ServerTable,
    TrainTable,
    UpdateTable,
)
from fedsim.values import Value, convert

Vocabulary = Mapping[str, Collection[str]]

# Tables that say where and how a run is executed. They never change its result, so a run may be
# resumed with others, and they stay out of the hash that names an experiment.
EXECUTION_TABLES = ("engine", "run")

# Keys of other tables of which the same holds: a calibration is a file beside the ledger.
EXECUTION_KEYS = ("measure.calibrate",)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, complete and checked. Build it with :func:`read` or :func:`from_flat`."""

    experiment: ExperimentTable = ExperimentTable()
    data: DataTable = DataTable()
    model: ModelTable = ModelTable()
    train: TrainTable = TrainTable()
    server: ServerTable = ServerTable()
    update: UpdateTable = UpdateTable()
    privacy: PrivacyTable = PrivacyTable()
    adversary: AdversaryTable = AdversaryTable()
    engine: EngineTable = EngineTable()
    measure: MeasureTable = MeasureTable()
    run: RunTable = RunTable()

    @property
    def noise_seed(self) -> int | None:
        """What noise of privacy is drawn from; None: from a generator that nobody can foresee."""
        return self.experiment.seed if self.privacy.reproducible_noise else None

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
    "privacy": PrivacyTable,
    "adversary": AdversaryTable,
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
