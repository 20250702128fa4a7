from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import conflicts as rules
from fedsim.config import (
    EXECUTION_TABLES,
    TABLES,
    Experiment,
    differences,
    fields_by_key,
    flatten,
    from_flat,
    parse_override,
    read,
)
from fedsim.conflicts import conflicts
from fedsim.errors import ConfigError
from fedsim.vocabulary import vocabulary

ROOT = Path(__file__).parents[1]
KEYS = fields_by_key()
NAMES = vocabulary()
DEFAULTS = Experiment().flat()


def problems(flat: Mapping[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        from_flat(flat, vocabulary=NAMES)
    return caught.value.problems


def all_problems(flat: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the problems of a value that is valid, though perhaps not with other defaults."""
    try:
        from_flat(flat, vocabulary=NAMES)
    except ConfigError as error:
        return error.problems
    return ()


def problem(flat: Mapping[str, Any]) -> str:
    (line,) = problems(flat)
    return line


def typed(experiment: Experiment) -> dict[str, tuple[type, Any]]:
    """Every value with its type: 1, 1.0 and True are equal to Python, and unlike to us."""
    return {key: (type(value), value) for key, value in experiment.flat().items()}


def valid_values(key: str) -> st.SearchStrategy[Any]:
    declared = KEYS[key]
    limits = declared.metadata
    kind = type(declared.default)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(limits["low"] or 0, limits["high"] or 2**63 - 1)
    if kind is float:
        return st.floats(
            min_value=limits["above"] if limits["low"] is None else limits["low"],
            max_value=limits["below"] if limits["high"] is None else limits["high"],
            exclude_min=limits["low"] is None,
            exclude_max=limits["high"] is None and limits["below"] is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    if key == "experiment.name":
        return st.from_regex(r"\w[\w .+=-]*", fullmatch=True)
    names = sorted(NAMES.get(key, limits["choices"]))
    return st.sampled_from(names) if names else st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Draw some keys with values that are valid, alone and together."""
    flat = draw(st.fixed_dictionaries({}, optional={key: valid_values(key) for key in KEYS}))
    while involved := {key for keys, _ in conflicts(unchecked(flat)) for key in keys}:
        flat = {key: value for key, value in flat.items() if key not in involved}
    return flat


def unchecked(flat: Mapping[str, Any]) -> Experiment:
    complete = DEFAULTS | flat
    return Experiment(
        **{
            name: table(**{f.name: complete[f"{name}.{f.name}"] for f in dataclasses.fields(table)})
            for name, table in TABLES.items()
        }
    )


# The path from a file to both apps.


@given(experiments())
@settings(max_examples=60, deadline=None)
def test_an_experiment_survives_every_form_it_travels_in(flat: dict[str, Any]) -> None:
    first = from_flat(flat, vocabulary=NAMES)
    assert {key: first.flat()[key] for key in flat} == flat
    again = from_flat(first.flat(), vocabulary=NAMES)
    text = tomli_w.dumps(again.tables())
    last = from_flat(flatten(tomllib.loads(text)), vocabulary=NAMES)
    assert typed(first) == typed(again) == typed(last) == typed(unchecked(flat))
    assert first == last
    assert first.digest() == last.digest()


def test_a_file_is_read_as_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[model]\nactivation = "tanh"\n[train]\nlearning_rate = 1\n')
    experiment = read(path, vocabulary=NAMES)
    assert experiment.model.activation == "tanh"
    assert (type(experiment.train.learning_rate), experiment.train.learning_rate) == (float, 1.0)


def test_the_command_line_comes_before_the_file_and_the_file_before_the_defaults(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[experiment]\nrounds = 7\nseed = 8\n")
    overrides = ["experiment.seed=9", "data.clients=40", "data.clients=41"]
    experiment = read(path, overrides, vocabulary=NAMES)
    assert experiment.experiment.seed == 9
    assert experiment.experiment.rounds == 7
    assert experiment.data.clients == 41  # of two overrides the last one counts
    assert experiment.train == TABLES["train"]()
    based = read(None, overrides, vocabulary=NAMES, base={"experiment.rounds": 7})
    assert based.experiment == experiment.experiment


def test_pyproject_holds_every_default_for_flower() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    flat = flatten(project["tool"]["flwr"]["app"]["config"])
    assert {key: (type(value), value) for key, value in flat.items()} == typed(Experiment())
    assert list(flat) == list(DEFAULTS), "in the order of config.py, to be read side by side"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_a_shipped_file_opens_with_what_it_shows(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_defaults_are_valid_and_explained() -> None:
    assert from_flat({}, vocabulary=NAMES) == from_flat(DEFAULTS, vocabulary=NAMES) == Experiment()
    assert [key for key, declared in KEYS.items() if not declared.metadata["about"]] == []


def test_the_vocabulary_is_of_keys_that_exist() -> None:
    for key, names in NAMES.items():
        assert KEYS[key].default in names
        assert not KEYS[key].metadata["choices"], f"{key}: its names are kept in two places"


def test_what_is_said_about_a_key_names_what_its_registry_knows() -> None:
    for key in ("data.dataset", "data.partition", "model.name"):
        assert [name for name in NAMES[key] if name not in KEYS[key].metadata["about"]] == []


# Files.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"[experiment\n", "not valid TOML: "),
        (b"[experiment]\nname = 1\nname = 2\n", "not valid TOML: "),
        (b"\xff\xfe", "cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path, vocabulary=NAMES)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, vocabulary=NAMES)
    assert str(caught.value).startswith(f"{tmp_path}: cannot be read: ")


# One key that is wrong.


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("data.clientss", "did you mean 'data.clients'?"),
        ("model.activaton", "did you mean 'model.activation'?"),
        ("train.clients_per_round", "did you mean 'server.clients_per_round'?"),
        ("engine.x", "valid: engine.name, engine.workers, engine.address, engine.device"),
        ("train.zzzz", "valid: " + ", ".join(k for k in KEYS if k.startswith("train."))),
        ("run.zzzzzzzz", "valid: run.out, run.resume, run.data_dir"),
        ("zzzz", "valid: " + ", ".join(f"[{name}]" for name in TABLES)),
        ("zzzz.xxxx", "valid: " + ", ".join(f"[{name}]" for name in TABLES)),
        ("", "valid: " + ", ".join(f"[{name}]" for name in TABLES)),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_or_its_neighbours(key: str, hint: str) -> None:
    assert problem({key: 1}) == f"{key} = 1: unknown key; {hint}"


WRONG: dict[type, tuple[str, tuple[Any, ...]]] = {
    str: ("text", (1, 0.5, True, ["a"], None)),
    int: ("a whole number", ("1", 1.0, True, [1], None)),
    float: ("a number", ("1.0", False, [1.0], None)),
    bool: ("true or false", ("true", 1, 0.0, None)),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_is_refused(key: str) -> None:
    wanted, values = WRONG[type(KEYS[key].default)]
    for value in values:
        assert problem({key: value}) == f"{key} = {value!r}: must be {wanted}"


@pytest.mark.parametrize("key", [k for k, f in KEYS.items() if type(f.default) is float])
def test_a_whole_number_is_a_number_and_only_finite_ones_are(key: str) -> None:
    experiment = from_flat({key: 1} if key_allows(key, 1) else {}, vocabulary={})
    assert type(experiment.flat()[key]) is float
    for value in (math.nan, math.inf, -math.inf):
        assert problem({key: value}) == f"{key} = {value}: must be finite"


# What is refused while nothing is promised.
PROMISES = {f"privacy.{key}" for key in ("noise_multiplier", "target_epsilon", "epsilon_budget")}


def key_allows(key: str, value: float) -> bool:
    limits = KEYS[key].metadata
    return key not in PROMISES and (limits["below"] is None or value < limits["below"])


BOUNDS = {"low": "at least", "high": "at most", "above": "greater than", "below": "less than"}


def bounded() -> list[tuple[str, str]]:
    return [(k, b) for k, f in KEYS.items() for b in BOUNDS if f.metadata[b] is not None]


@pytest.mark.parametrize(("key", "bound"), bounded())
def test_a_bound_is_kept_to_the_last_digit(key: str, bound: str) -> None:
    limit = KEYS[key].metadata[bound]
    upwards = bound in ("high", "below")
    if type(KEYS[key].default) is int:
        outside, inside = limit + (1 if upwards else -1), limit
    else:
        towards = math.inf if upwards else -math.inf
        outside, inside = math.nextafter(limit, towards), float(limit)
    if bound in ("above", "below"):
        outside, inside = inside, math.nextafter(inside, -towards)
    assert problem({key: outside}) == f"{key} = {outside}: must be {BOUNDS[bound]} {limit:g}"
    assert not [line for line in all_problems({key: inside}) if ": must be" in line]


def test_every_number_but_a_flag_is_bounded_below() -> None:
    free = [
        key
        for key, declared in KEYS.items()
        if type(declared.default) in (int, float)
        and declared.metadata["low"] is declared.metadata["above"] is None
    ]
    assert free == []


def test_a_whole_number_fits_in_64_bits() -> None:
    from_flat({"experiment.seed": 2**63 - 1}, vocabulary=NAMES)
    assert problem({"experiment.seed": 2**63}).endswith("must fit in 64 bits")


@pytest.mark.parametrize("key", [k for k, f in KEYS.items() if f.metadata["choices"] or k in NAMES])
def test_a_name_is_one_of_those_that_are_known(key: str) -> None:
    names = NAMES.get(key) or KEYS[key].metadata["choices"]
    assert problem({key: "0"}).startswith(f"{key} = '0': unknown; valid: ")
    for name in names:
        assert f"did you mean {name!r}?" in problem({key: f"{name}_"})
        assert not [line for line in all_problems({key: name}) if "unknown" in line]


def test_an_activation_carries_parameters() -> None:
    written = "leaky_relu(0.1)"
    assert from_flat({"model.activation": written}, vocabulary=NAMES).model.activation == written
    line = problem({"model.activation": "leaky_rellu(0.1)"})
    assert line == ("model.activation = 'leaky_rellu(0.1)': unknown; did you mean 'leaky_relu'?")
    assert "unknown" in problem({"model.name": "mlp(3)"})


# Keys that do not go together: a case for each rule, and what cures it.

CONFLICTS: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"server.left_out": "1,two"},
        "server.left_out = '1,two': write numbers of clients, such as 2,5",
        {"server.left_out": "1, 2"},
    ),
    (
        {"server.left_out": "1,7", "data.clients": 5, "server.clients_per_round": 2},
        "server.left_out = '1,7': there is no client 7, as data.clients = 5 and the first is 0",
        {"server.left_out": "1,4"},
    ),
    (
        {"server.left_out": "1,0", "data.clients": 2, "server.clients_per_round": 2},
        "server.left_out = '1,0': leaves nobody; name fewer",
        {"server.left_out": "1"},
    ),
    (
        {"data.clients": 0},
        'data.clients = 0: needs data.partition = "natural"; otherwise give a number',
        {"data.clients": 10},
    ),
    (
        {"data.clients": 5, "server.clients_per_round": 6},
        "server.clients_per_round = 6: more than data.clients = 5",
        {"server.clients_per_round": 5},
    ),
    (
        {"data.dataset": "file"},
        'data.path = "": data.dataset = "file" needs the path of the file',
        {"data.path": "a.csv"},
    ),
    (
        {"data.dataset": "split", "data.partition": "iid", "data.path": "parts"},
        "data.partition = 'iid': the examples of data.dataset = \"split\" are dealt already; use "
        '"natural"',
        {"data.partition": "natural"},
    ),
    (
        {"data.label": "y"},
        "data.label = 'y': only with data.dataset = \"file\", not 'digits'",
        {"data.dataset": "file", "data.path": "a.csv"},
    ),
    (
        {"data.dataset": "file", "data.path": "a.csv", "data.partition": "natural"},
        'data.client = "": data.partition = "natural" needs the column of client ids',
        {"data.client": "hospital"},
    ),
    (
        {"server.strategy": "scaffold", "update.codec": "int8"},
        "update.codec = 'int8': server.strategy = 'scaffold' computes its control variates from "
        "exact models; leave it at 'none'",
        {"update.codec": "none"},
    ),
    (
        {"measure.device": "phone", "measure.level": "off"},
        "measure.device = 'phone': measure.level = 'off' counts nothing to model from; use 'light'",
        {"measure.level": "light"},
    ),
    (
        {"server.strategy": "fedprox"},
        "train.proximal_mu = 0.0: server.strategy = 'fedprox' needs it above 0 (at 0 it is fedavg)",
        {"train.proximal_mu": 0.1},
    ),
    (
        {"server.learning_rate": 0.5},
        "server.learning_rate = 0.5: server.strategy = 'fedavg' takes no server step; "
        "use one of fedavgm, fedadam, fedyogi, fedadagrad, scaffold",
        {"server.strategy": "fedadam"},
    ),
    (
        {"server.strategy": "scaffold", "train.momentum": 0.9},
        "train.momentum = 0.9: server.strategy = 'scaffold' is defined for plain SGD; set it to 0",
        {"train.momentum": 0.0},
    ),
    (
        {
            "server.strategy": "multikrum",
            "server.selected_clients": 10,
            "server.byzantine_clients": 1,
        },
        "server.selected_clients = 10: more than the 9 honest of server.clients_per_round = 10",
        {"server.selected_clients": 9},
    ),
    (
        {"server.strategy": "bulyan", "server.byzantine_clients": 2},
        "server.byzantine_clients = 2: bulyan then needs server.clients_per_round of at least 11, "
        "not 10",
        {"server.clients_per_round": 11},
    ),
    (
        {"engine.name": "inline", "engine.workers": 2},
        "engine.workers = 2: engine.name = 'inline' has one; use engine.name = \"ray\"",
        {"engine.name": "ray"},
    ),
    (
        {"engine.name": "inline", "engine.address": "h:1"},
        "engine.address = 'h:1': only with engine.name = \"ray\"",
        {"engine.name": "ray", "engine.workers": 2},
    ),
    (
        {"experiment.name": "../elsewhere"},
        "experiment.name = '../elsewhere': names a directory too; use letters, digits, spaces "
        "and . _ + - =",
        {"experiment.name": "a run.2"},
    ),
    (
        {"run.resume": True},
        'run.out = "": run.resume = true needs the directory to continue',
        {"run.out": "runs/a"},
    ),
]


@pytest.mark.parametrize(
    ("flat", "line", "cure"), CONFLICTS, ids=[line for _, line, _ in CONFLICTS]
)
def test_keys_that_do_not_go_together_are_refused_with_a_cure_that_works(
    flat: dict[str, Any], line: str, cure: dict[str, Any]
) -> None:
    assert problem(flat) == line
    from_flat(flat | cure, vocabulary=NAMES)


def test_every_rule_has_a_case() -> None:
    tree = ast.parse(inspect.getsource(rules))
    assert sum(isinstance(node, ast.Yield) for node in ast.walk(tree)) == len(CONFLICTS)


@pytest.mark.parametrize("key", ["path", "test_path", "label", "client"])
def test_what_describes_a_file_needs_one(key: str) -> None:
    assert problem({f"data.{key}": "a"}).startswith(f"data.{key} = 'a': only with")


@pytest.mark.parametrize(("strategy", "needed"), [("krum", 7), ("multikrum", 7), ("bulyan", 11)])
def test_a_robust_strategy_gets_the_cohort_that_its_proof_asks_for(
    strategy: str, needed: int
) -> None:
    flat = {"server.strategy": strategy, "server.byzantine_clients": 2}
    from_flat(flat | {"server.clients_per_round": needed}, vocabulary=NAMES)
    assert f"at least {needed}" in problem(flat | {"server.clients_per_round": needed - 1})


# Many problems at once.


def test_every_problem_is_told_at_once_in_a_line_of_its_own() -> None:
    flat = {
        "nope.x": 1,
        "data.clients": "many",
        "train.learning_rate": -1,
        "model.activation": "rellu",
        "server.strategy": "fedprox",
        "run.resume": True,
    }
    found = problems(flat)
    assert [line.split(" ")[0] for line in found] == [
        "nope.x",
        "data.clients",
        "train.learning_rate",
        "model.activation",
        "train.proximal_mu",
        "run.out",
    ]
    assert not [line for line in found if "\n" in line]


@pytest.mark.parametrize(
    ("wrong", "related"),
    [
        ({"data.clients": "5"}, {"server.clients_per_round": 60}),
        ({"data.dataset": "fille"}, {"data.path": "a.csv"}),
        ({"data.partition": "naturall"}, {"data.clients": 0}),
        ({"server.strategy": "fedadamm"}, {"server.learning_rate": 0.5}),
        ({"train.proximal_mu": -1}, {"server.strategy": "fedprox"}),
        ({"engine.name": "rays"}, {"engine.address": "h:1"}),
    ],
)
def test_a_key_that_is_wrong_brings_no_second_problem(
    wrong: dict[str, Any], related: dict[str, Any]
) -> None:
    assert problem(related | wrong).split(" ")[0] == next(iter(wrong))


# Overrides.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.activation=tanh", "tanh"),
        ("model.activation=leaky_relu(0.1)", "leaky_relu(0.1)"),
        ('model.activation="tanh"', "tanh"),
        ("model.activation='tanh'", "tanh"),
        (" model.activation = tanh ", "tanh"),
        ("experiment.name=2026", "2026"),
        ("experiment.name=true", "true"),
        ("experiment.name=a=b", "a=b"),
        ("run.out=", ""),
        ("run.out='", "'"),
        ("experiment.rounds=5", 5),
        ("train.learning_rate=1e-3", 0.001),
        ("train.learning_rate=2", 2.0),
        ("data.standardize=true", True),
    ],
)
def test_an_override_needs_no_quotes_and_keeps_its_type(text: str, expected: Any) -> None:
    experiment = read(None, [text], vocabulary={})
    value = experiment.flat()[text.partition("=")[0].strip()]
    assert (type(value), value) == (type(expected), expected)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("experiment.rounds", "-s experiment.rounds: write it as table.key=value"),
        ("experiment.rounds=", "experiment.rounds = '': must be a whole number"),
        ("experiment.rounds=five", "experiment.rounds = 'five': must be a whole number"),
        ("experiment.rounds=1.0", "experiment.rounds = 1.0: must be a whole number"),
        ("experiment.rounds=true", "experiment.rounds = True: must be a whole number"),
        ("data.standardize=True", "data.standardize = 'True': must be true or false"),
        ("data.standardize=1", "data.standardize = 1: must be true or false"),
        ("train.learning_rate=nan", "train.learning_rate = nan: must be finite"),
        ("train.learning_rate=inf", "train.learning_rate = inf: must be finite"),
        ("measure.y=[1]", "measure.y = [1]: unknown key; did you mean 'measure.energy'?"),
    ],
)
def test_an_override_that_is_wrong_is_answered_like_a_file(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(None, [text], vocabulary=NAMES)
    assert caught.value.problems == (line,)


@given(st.text())
def test_no_override_is_more_than_a_problem(text: str) -> None:
    for key in ("experiment.name", "experiment.rounds", "zzzz"):
        parse_override(key, text)


# What names an experiment.


@pytest.mark.parametrize("key", KEYS)
def test_the_digest_and_the_differences_leave_out_where_and_how_a_run_is_executed(key: str) -> None:
    default = DEFAULTS[key]
    other = not default if isinstance(default, bool) else default + type(default)(1)
    before, after = Experiment(), unchecked({key: other})
    ignored = key.split(".")[0] in ("engine", "run") or key == "measure.calibrate"
    assert (before.digest() == after.digest()) is ignored
    assert differences(before, after) == ([] if ignored else [f"{key}: {default!r} -> {other!r}"])
    assert EXECUTION_TABLES == ("engine", "run")


def test_the_digest_is_the_same_everywhere() -> None:
    # A change of this value makes every stored run one of another experiment.
    assert Experiment().digest() == (
        "f72b3eb50d27c7ed67f7f27f7498a4bd85f2f8988d74c353ead9535b1ec6a52a"
    )
