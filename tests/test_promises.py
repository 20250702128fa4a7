"""What cannot be promised is refused before any work, with the value, the reason and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Experiment, from_flat
from fedsim.errors import ConfigError
from fedsim.promises import LEAST_COHORT, LINEAR, privacy_conflicts
from fedsim.vocabulary import vocabulary

CLI = Callable[..., Any]
Flat = dict[str, object]

# A hundred clients, ten of which are expected in a round, and a sound promise of each level.
FEDERATION: Flat = {"data.clients": 100, "server.clients_per_round": 10}
NOISE: Flat = {
    "privacy.clipping_norm": 1.0,
    "privacy.noise_multiplier": 0.9,
    "privacy.delta": 1e-4,
}
USER: Flat = FEDERATION | NOISE | {"privacy.level": "user"}
LOCAL: Flat = FEDERATION | NOISE | {"privacy.level": "local"}
EXAMPLE: Flat = FEDERATION | NOISE | {"privacy.level": "example"}
SECURE: Flat = FEDERATION | {"privacy.secure_aggregation": True}
SOLVED: Flat = USER | {"privacy.noise_multiplier": 0.0, "privacy.target_epsilon": 2.0}
BOUNDED: Flat = FEDERATION | {"server.norm_bound": 2.0}
HOSTILE: Flat = FEDERATION | {"adversary.kind": "sign_flip", "adversary.fraction": 0.1}

NOT_LINEAR = sorted(set(vocabulary()["server.strategy"]) - set(LINEAR))


def lines(settings: Flat) -> list[str]:
    """Return every problem of an experiment, none if it is accepted."""
    try:
        from_flat(settings, vocabulary=vocabulary())
    except ConfigError as error:
        return error.problems
    return []


def settings_of(name: str) -> Flat:
    """Return what a strategy needs to be possible by itself."""
    more: dict[str, Flat] = {
        "krum": {"server.byzantine_clients": 1},
        "multikrum": {"server.byzantine_clients": 1, "server.selected_clients": 2},
        "bulyan": {"server.byzantine_clients": 1},
    }
    return {"server.strategy": name, **more.get(name, {})}


# What is sound, what is changed in it, and of the one line that this gives: value, reason, remedy.
CONFLICTS: list[tuple[Flat, Flat, str, str, str]] = [
    (
        USER,
        {"privacy.clipping_norm": 0.0},
        "clipping_norm = 0.0",
        "nothing without",
        "give the norm",
    ),
    (LOCAL, {"privacy.clipping_norm": 0.0}, "clipping_norm = 0.0", "nothing without", "give the"),
    (
        EXAMPLE,
        {"privacy.clipping_norm": 0.0},
        "clipping_norm = 0.0",
        "nothing without",
        "gradients",
    ),
    (
        USER,
        {"privacy.target_epsilon": 2.0},
        "privacy.noise_multiplier = 0.9",
        "privacy.target_epsilon = 2.0 is solved",
        "give one of the two",
    ),
    (
        USER,
        {"privacy.noise_multiplier": 0.0},
        "privacy.target_epsilon = 0.0",
        "infinite noise",
        "or privacy.noise_multiplier",
    ),
    (USER, {"privacy.delta": 0.0}, "privacy.delta = 0.0", "promises nothing at 0", "above 0"),
    (USER, {"privacy.delta": 0.01}, "privacy.delta = 0.01", "not below 1/100", "use 0.001"),
    (LOCAL, {"privacy.delta": 0.5}, "privacy.delta = 0.5", "not below 1/100", "use 0.001"),
    (
        USER,
        {"privacy.noise_cohort": 1000, "privacy.delta": 1e-4},
        "privacy.delta = 0.0001",
        "not below 1/10000",
        "use 1e-05",
    ),
    (
        SOLVED,
        {"privacy.epsilon_budget": 1.0},
        "privacy.target_epsilon = 2.0",
        "would end before",
        "privacy.epsilon_budget = 1.0",
    ),
    (LOCAL, {"privacy.clipping": "adaptive"}, "'adaptive'", "only a server", "use 'fixed'"),
    (EXAMPLE, {"privacy.clipping": "adaptive"}, "'adaptive'", "only a server", "use 'fixed'"),
    (
        USER | SECURE | {"privacy.noise_by": "clients"},
        {"privacy.clipping": "adaptive"},
        "privacy.clipping = 'adaptive'",
        "only a server that sees the updates",
        "use 'fixed'",
    ),
    (
        USER | {"privacy.secure_aggregation": True},
        {"privacy.clipping": "adaptive"},
        "privacy.clipping = 'adaptive'",
        "only a server that sees the updates",
        "use 'fixed'",
    ),
    (LOCAL, {"privacy.noise_by": "clients"}, "noise_by = 'clients'", "'local' says", "'server'"),
    (
        EXAMPLE,
        {"privacy.noise_by": "clients"},
        "noise_by = 'clients'",
        "'example' says",
        "'server'",
    ),
    (LOCAL, {"privacy.noise_cohort": 20}, "noise_cohort = 20", "only with", "set 0"),
    (EXAMPLE, {"privacy.noise_cohort": 20}, "noise_cohort = 20", "only with", "set 0"),
    (
        USER,
        {"privacy.noise_cohort": 9},
        "privacy.noise_cohort = 9",
        "less than server.clients_per_round = 10",
        "as in a larger federation",
    ),
    (EXAMPLE, {"train.clip_norm": 1.5}, "train.clip_norm = 1.5", "each example's", "set 0"),
    (EXAMPLE, {"train.batch_size": 0}, "train.batch_size = 0", "probability", "expected size"),
    (LOCAL, {"update.codec": "int8"}, "update.codec = 'int8'", "carries noise", "'none'"),
    (LOCAL, {"update.coder": "zstd"}, "update.coder = 'zstd'", "carries noise", "'none'"),
    (USER, {"privacy.noise_by": "clients"}, "noise_by = 'clients'", "sees alone", "= true"),
    (
        USER | {"privacy.clipping": "adaptive"},
        {"privacy.noise_multiplier": 1.0},
        "privacy.noise_multiplier = 1.0",
        "a tenth of the cohort, as the count of short updates is noised too",
        "use 'fixed'",
    ),
    (LOCAL, {"measure.level": "full"}, "measure.level: full", "no noise covers", "'light'"),
    (LOCAL, {"measure.full_every": 5}, "measure.full_every: full", "no noise", "full_every = 0"),
    (EXAMPLE, {"measure.level": "full"}, "measure.level: full", "no noise covers", "'light'"),
    (FEDERATION, {"privacy.noise_multiplier": 1.0}, "noise_multiplier = 1.0", "no noise", "set"),
    (FEDERATION, {"privacy.target_epsilon": 3.0}, "target_epsilon = 3.0", "no noise", '"example"'),
    (FEDERATION, {"privacy.epsilon_budget": 3.0}, "epsilon_budget = 3.0", "spends no", '"local"'),
    (SECURE, {"server.clients_per_round": 2}, "clients_per_round = 2", "hides", "ask more clients"),
    (SECURE, {"server.clients_per_round": 1}, "clients_per_round = 1", "at least 3", "ask more"),
    (
        SECURE | {"server.clients_per_round": 4},
        {"server.left_out": "1,2"},
        *("server.left_out = '1,2'", "may leave 2 of a cohort of 4", "ask more clients"),
    ),
    (SECURE, {"update.codec": "int8"}, "update.codec = 'int8'", "masks", "leave it at 'none'"),
    (SECURE, {"update.coder": "entropy"}, "update.coder = 'entropy'", "masks", "'none'"),
    (SECURE, {"measure.level": "full"}, "measure.level: full", "would show", "level = 'light'"),
    (SECURE, {"measure.full_every": 5}, "measure.full_every: full", "would show", "full_every = 0"),
    (SECURE, {"server.norm_bound": 2.0}, "norm_bound = 2.0", "cannot measure", "set 0, or clip"),
    (USER, {"server.norm_bound": 2.0}, "norm_bound = 2.0", "privacy.clipping_norm", "set 0"),
    (LOCAL, {"server.norm_bound": 2.0}, "norm_bound = 2.0", "privacy.clipping_norm", "set 0"),
    (USER, {"server.weighting": "examples"}, "'examples'", "would undo", "use 'equal'"),
    (LOCAL, {"server.weighting": "examples"}, "'examples'", "would undo", "or leave it at 'auto'"),
    (SECURE, {"server.weighting": "examples"}, "'examples'", "would undo", "use 'equal'"),
    (BOUNDED, {"server.weighting": "examples"}, "'examples'", "norm_bound = 2.0", "use 'equal'"),
    (HOSTILE, {"adversary.fraction": 0.0}, "adversary.fraction = 0.0", "'sign_flip'", "needs"),
]


@pytest.mark.parametrize(
    ("sound", "change", "value", "reason", "remedy"),
    CONFLICTS,
    ids=[" ".join(f"{k}={v}" for k, v in change.items()) for _, change, *_ in CONFLICTS],
)
def test_a_conflict_is_one_line_with_value_reason_and_remedy(
    sound: Flat, change: Flat, value: str, reason: str, remedy: str
) -> None:
    assert lines(sound) == []
    (line,) = lines(sound | change)
    for part in (value, reason, remedy):
        assert part in line


@pytest.mark.parametrize("strategy", NOT_LINEAR)
@pytest.mark.parametrize(
    ("sound", "why"),
    [
        (USER, "privacy.level = 'user'"),
        (LOCAL, "privacy.level = 'local'"),
        (EXAMPLE, "privacy.level = 'example'"),
        (SECURE, "privacy.secure_aggregation = true"),
        (BOUNDED, "server.norm_bound = 2.0"),
        (FEDERATION | {"server.weighting": "equal"}, 'server.weighting = "equal"'),
    ],
)
def test_a_strategy_that_needs_single_updates_is_refused(
    sound: Flat, why: str, strategy: str
) -> None:
    assert lines(FEDERATION | settings_of(strategy)) == []
    (line,) = lines(sound | settings_of(strategy))
    assert line.startswith(f"server.strategy = {strategy!r}: {why} needs one that sees the mean")
    assert line.endswith(f"use one of {', '.join(LINEAR)}")


@pytest.mark.parametrize("strategy", LINEAR)
@pytest.mark.parametrize("sound", [USER, LOCAL, EXAMPLE, SECURE, USER | SECURE, SOLVED, BOUNDED])
def test_a_linear_strategy_is_accepted(sound: Flat, strategy: str) -> None:
    more: Flat = {"train.proximal_mu": 0.1} if strategy == "fedprox" else {}
    assert lines(sound | {"server.strategy": strategy, **more}) == []


NEIGHBOURS: dict[str, Flat] = {
    "adaptive at the server": USER | {"privacy.clipping": "adaptive"},
    "noise by clients behind masks": USER | SECURE | {"privacy.noise_by": "clients"},
    "local behind masks": LOCAL | SECURE,
    "example behind masks": EXAMPLE | SECURE,
    "example in a mean by examples": EXAMPLE | {"server.weighting": "examples"},
    "example within a bound": EXAMPLE | {"server.norm_bound": 2.0},
    "the noise of a larger cohort": USER | {"privacy.noise_cohort": 100, "privacy.delta": 1e-5},
    "of exactly the cohort": USER | {"privacy.noise_cohort": 10},
    "delta just below 1/N": USER | {"privacy.delta": 0.0099},
    "people who are counted later": USER
    | {"data.clients": 0, "data.partition": "natural", "data.dataset": "split", "data.path": "x"}
    | {"privacy.delta": 0.4},
    "a budget of the target": SOLVED | {"privacy.epsilon_budget": 2.0},
    "a budget without a target": USER | {"privacy.epsilon_budget": 0.1},
    "codec for an update that the server noises": USER | {"update.codec": "int8"},
    "codec after DP-SGD": EXAMPLE | {"update.codec": "topk"},
    "codec down before noised updates": LOCAL | {"update.downlink": "int8"},
    "packed updates behind no masks": LOCAL | {"update.packed": True},
    "the least that can hide": SECURE | {"server.clients_per_round": LEAST_COHORT},
    "one client in the cohort": USER | {"server.clients_per_round": 1},
    "everybody in every round": USER | {"server.clients_per_round": 100},
    "full measures where the server sees updates": USER | {"measure.level": "full"},
    "noise from the seed": USER | {"privacy.reproducible_noise": True},
    "a share of hostile clients that do nothing": FEDERATION | {"adversary.fraction": 0.2},
    "hostile clients under a promise": USER | HOSTILE,
    "a study's arm without privacy": FEDERATION
    | {"privacy.clipping_norm": 1.0, "privacy.delta": 1e-4, "privacy.reproducible_noise": True},
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_of_a_conflict_passes(name: str) -> None:
    assert lines(NEIGHBOURS[name]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("target_epsilon", value) for value in (-1.0, float("nan"), float("inf"))),
        *(("noise_multiplier", value) for value in (-0.5, float("nan"), float("inf"))),
        *(("delta", value) for value in (-1e-5, 1.0, 2.0)),
        *(("clipping_norm", value) for value in (-1.0, float("inf"))),
        *(("epsilon_budget", -1.0), ("noise_cohort", -3), ("value_range", 0.0)),
        *(("level", "client"), ("accountant", "moments"), ("noise_by", "nobody")),
        *(("target_quantile", value) for value in (0.0, 1.0)),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(name: str, value: object) -> None:
    found = lines(USER | {f"privacy.{name}": value})
    assert len(found) == 1  # and nothing follows from it
    assert found[0].startswith(f"privacy.{name} = {value!r}: ")


def test_all_problems_are_told_at_once() -> None:
    found = lines(
        USER | SECURE | settings_of("krum") | {"privacy.delta": 0.5, "update.codec": "int8"}
    )
    assert {line.split(" ")[0] for line in found} == {
        *("server.strategy", "privacy.delta", "update.codec")
    }


COMMANDS: dict[str, tuple[Flat, str]] = {
    "epsilon 0": (
        USER | {"privacy.noise_multiplier": 0.0},
        "privacy.target_epsilon = 0.0: privacy.level = 'user' needs an epsilon above 0",
    ),
    "epsilon below 0": (USER | {"privacy.target_epsilon": -2}, "privacy.target_epsilon = -2"),
    "noise without clipping": (
        USER | {"privacy.clipping_norm": 0.0},
        "promises nothing without clipping",
    ),
    "krum behind masks": (SECURE | settings_of("krum"), "use one of fedavg, fedprox"),
    "krum under noise": (USER | settings_of("krum"), "use one of fedavg, fedprox"),
    "weights by examples": (USER | {"server.weighting": "examples"}, "use 'equal'"),
    "one client behind masks": (SECURE | {"server.clients_per_round": 1}, "ask more clients"),
    # What only the run's first steps find out.
    "more examples than delta is for": (
        EXAMPLE | {"data.clients": 10, "privacy.delta": 0.01},
        "delta = 0.01: it has to be below 1/N",
    ),
    "a budget that is gone at once": (
        USER | {"privacy.epsilon_budget": 0.01, "privacy.accountant": "rdp"},
        "privacy.epsilon_budget = 0.01: the first round alone would spend",
    ),
    "too few for adaptive clipping": (
        USER | {"privacy.clipping": "adaptive", "server.clients_per_round": 4},
        "use 'fixed'",
    ),
    "noise that masks would cut": (
        USER
        | SECURE
        | {
            "privacy.noise_by": "clients",
            "privacy.clipping_norm": 50.0,
            "server.clients_per_round": 50,
        },
        "privacy.value_range = 8.0",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_refuses_before_the_run_and_leaves_nothing(
    case: str, cli: CLI, tmp_path: Path
) -> None:
    settings, text = COMMANDS[case]
    options = [part for k, v in settings.items() for part in ("-s", f"{k}={told(v)}")]
    answer = cli("run", *options, "-s", "engine.name=inline", "--out", "run", "--format", "json")
    assert (answer.code, answer.out) == (2, "")
    assert text in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


def told(value: object) -> str:
    """Write a value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_a_checked_experiment_yields_nothing() -> None:
    assert list(privacy_conflicts(Experiment())) == []
