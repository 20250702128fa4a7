from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import ConfigError
from fedsim.study.design import Hypothesis, Published, Study, Values, study_of
from fedsim.study.file import FIRST_TUNING_SEED, read_study
from fedsim.vocabulary import vocabulary

NAMES = vocabulary()
BASE = """
[experiment]
rounds = 2
seed = 4
[data]
clients = 5
[model]
width = 8
[server]
clients_per_round = 2
[engine]
name = "inline"
"""
AXES = """
[axes]
"model.activation" = ["relu", "tanh", "gelu"]
"model.depth" = [1, 2]
"""
CLAIM = """
[[hypothesis]]
arm = "tanh"
reference = "relu"
endpoint = "best_accuracy"
claim = "better"
"""
RATE = "train.learning_rate"
Reader = Callable[..., Study]


@pytest.fixture
def study(tmp_path: Path) -> Reader:
    """Return a function that reads a study file of some text, with two axes."""
    (tmp_path / "base.toml").write_text(BASE)

    def read(*parts: str, axes: str = AXES) -> Study:
        path = tmp_path / "small.toml"
        path.write_text("\n".join(['base = "base.toml"', *parts, axes]))
        return read_study(path, (), vocabulary=NAMES)

    return read


@pytest.fixture
def problems(study: Reader, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function from the text of a study file to what is wrong with it."""

    def read(*parts: str, axes: str = AXES) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            study(*parts, axes=axes)
        return [line.removeprefix(f"{tmp_path / 'small.toml'}: ") for line in caught.value.problems]

    return read


def entry(**changes: str | None) -> str:
    """An entry like ``CLAIM``, of TOML values by key; None leaves a key out."""
    usual = {
        "arm": '"tanh"',
        "reference": '"relu"',
        "endpoint": '"best_accuracy"',
        "claim": '"better"',
    }
    lines = [f"{k} = {v}" for k, v in {**usual, **changes}.items() if v is not None]
    return "\n".join(["[[hypothesis]]", *lines])


def arm(activation: str, depth: int) -> Values:
    return (("model.activation", activation), ("model.depth", depth))


def sides(study: Study) -> list[tuple[Values, Values]]:
    return [(h.arm, h.reference) for h in study.hypotheses]


# What an entry says.


def test_a_claim_about_two_values_is_made_for_every_value_of_the_other_axes(study: Reader) -> None:
    found = study(CLAIM).hypotheses
    assert found == tuple(
        Hypothesis(
            arm=arm("tanh", depth),
            reference=arm("relu", depth),
            endpoint="best_accuracy",
            claim="better",
            margin=0.005,
            direction="higher",
            scale="difference",
        )
        for depth in (1, 2)
    )
    assert [h.text for h in found] == [
        "tanh is better than relu in best_accuracy, depth 1",
        "tanh is better than relu in best_accuracy, depth 2",
    ]
    assert found[0].changed == ("model.activation",)
    assert found[0].labels == ("tanh", "relu", "depth 1")


def test_an_entry_in_the_plural_is_every_combination(study: Reader) -> None:
    found = study(
        entry(
            arm='["tanh", "gelu"]',
            reference='["relu"]',
            endpoint='["best_accuracy", "rounds_to_0.5"]',
            where="{ depth = 2 }",
        )
    )
    assert [(h.arm, h.endpoint) for h in found.hypotheses] == [
        (arm(activation, 2), endpoint)
        for activation in ("tanh", "gelu")
        for endpoint in ("best_accuracy", "rounds_to_0.5")
    ]
    assert {h.reference for h in found.hypotheses} == {arm("relu", 2)}


def test_one_arm_may_stand_against_several_references(study: Reader) -> None:
    found = study(entry(reference='["relu", "gelu"]', where='{ "model.depth" = 1 }'))
    assert sides(found) == [
        (arm("tanh", 1), arm("relu", 1)),
        (arm("tanh", 1), arm("gelu", 1)),
    ]


def test_arms_may_be_tables_of_axes_named_in_short_or_in_full(study: Reader) -> None:
    found = study(
        entry(
            arm='{ activation = "tanh", depth = 2 }',
            reference='{ "model.activation" = "relu", model.depth = 2 }',
        )
    )
    assert sides(found) == [(arm("tanh", 2), arm("relu", 2))]


def test_values_that_are_no_text_are_arms_too(study: Reader) -> None:
    found = study(entry(arm="2", reference="1", claim='"worse"', where='{ activation = "gelu" }'))
    assert sides(found) == [(arm("gelu", 2), arm("gelu", 1))]
    assert found.hypotheses[0].text == "2 is worse than 1 in best_accuracy, activation gelu"


def test_entries_are_taken_in_turn(study: Reader) -> None:
    found = study(
        entry(where="{ depth = 1 }"), entry(arm="2", reference="1", where='{ activation = "relu" }')
    )
    assert sides(found) == [(arm("tanh", 1), arm("relu", 1)), (arm("relu", 2), arm("relu", 1))]


def test_a_study_without_claims_has_no_hypotheses(study: Reader) -> None:
    assert study().hypotheses == ()


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("test_accuracy", (0.005, "higher", "difference")),
        ("best_accuracy", (0.005, "higher", "difference")),
        ("area_under_curve", (0.005, "higher", "difference")),
        ("local_worst_decile", (0.005, "higher", "difference")),
        ("rounds_to_0.9", (0.10, "lower", "ratio")),
        ("train_flops_to_.9", (0.10, "lower", "ratio")),
        ("cpu_seconds_to_0.9", (0.05, "lower", "ratio")),
        ("bytes_to_1", (0.05, "lower", "ratio")),
        ("uplink_bytes", (0.05, "lower", "ratio")),
        ("saved_bytes", (0.05, "lower", "ratio")),
        ("cpu_seconds", (0.05, "lower", "ratio")),
        ("train_flops", (0.05, "lower", "ratio")),
        ("modelled_seconds_per_client", (0.05, "lower", "ratio")),
    ],
)
def test_endpoints_know_what_is_better_and_what_counts(
    study: Reader, endpoint: str, expected: tuple[float, str, str]
) -> None:
    for h in study(entry(endpoint=f'"{endpoint}"')).hypotheses:
        assert h.endpoint == endpoint
        assert (h.margin, h.direction, h.scale) == expected


def test_what_an_entry_says_counts_more_than_what_is_usual(study: Reader) -> None:
    h = study(entry(margin="0.02", direction='"lower"')).hypotheses[0]
    assert (h.margin, h.direction, h.scale) == (0.02, "lower", "difference")
    h = study(entry(scale='"ratio"', margin="1")).hypotheses[0]
    assert (h.margin, h.direction, h.scale) == (1, "higher", "ratio")


def test_an_endpoint_without_a_better_end_may_be_given_one(study: Reader) -> None:
    h = study(
        entry(endpoint='"hidden_zero_fraction"', margin="0.1", direction='"higher"')
    ).hypotheses[0]
    assert (h.endpoint, h.margin, h.direction, h.scale) == (
        *("hidden_zero_fraction", 0.1),
        *("higher", "difference"),
    )


# What may be wrong with it.


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"reference": None}, ["reference: is missing"]),
        (
            {"arm": None, "reference": None, "endpoint": None, "claim": None},
            [f"{key}: is missing" for key in ("arm", "reference", "endpoint", "claim")],
        ),
        ({"refrence": '"relu"'}, ["refrence: unknown key; did you mean 'reference'?"]),
        (
            {"reference": '"rellu"'},
            ["reference = 'rellu': is no arm of this study; did you mean 'relu'?"],
        ),
        (
            {"arm": '["tanh", "sine"]'},
            ["arm = 'sine': is no arm of this study; valid: 1, 2, gelu, relu, tanh"],
        ),
        ({"arm": "3"}, ["arm = 3: is no arm of this study; valid: 1, 2, gelu, relu, tanh"]),
        (
            {"claim": '"good"'},
            ["claim = 'good': must be one of better, worse, equal"],
        ),
        (
            {"endpoint": '"best_acuracy"'},
            [
                "endpoint = 'best_acuracy': unknown endpoint; did you mean 'best_accuracy'?",
            ],
        ),
        (
            {"endpoint": '["best_accuracy", "round_to_0.9"]'},
            ["endpoint = 'round_to_0.9': unknown endpoint; did you mean 'rounds_to_0.95'?"],
        ),
        (
            {"endpoint": '"rounds_to_1.5"'},
            ["endpoint = 'rounds_to_1.5': unknown endpoint; did you mean 'rounds_to_0.95'?"],
        ),
        (
            {"endpoint": '"hidden_zero_fraction"'},
            [
                "direction = None: hidden_zero_fraction needs one: higher or lower (is better)",
                "margin = None: hidden_zero_fraction needs one above 0, what counts as a "
                "difference",
            ],
        ),
        (
            {"endpoint": '"local_gini"'},
            ["margin = None: local_gini needs one above 0, what counts as a difference"],
        ),
        (
            {"direction": '"up"'},
            ["direction = 'up': best_accuracy needs one: higher or lower (is better)"],
        ),
        (
            {"scale": '"logarithm"', "margin": "1"},
            ["scale = 'logarithm': must be difference or ratio"],
        ),
        (  # the usual margin is of a difference
            {"scale": '"ratio"'},
            ["margin = None: best_accuracy needs one above 0, what counts as a difference"],
        ),
        *(
            (
                {"margin": margin},
                [f"margin = {shown}: best_accuracy needs one above 0, what counts as a difference"],
            )
            for margin, shown in (
                *(("0", "0"), ("-0.1", "-0.1"), ("nan", "nan"), ("inf", "inf")),
                *(("true", "True"), ('"0.1"', "'0.1'")),
            )
        ),
        ({"where": "2"}, ["where = 2: must be a table of axes and values"]),
        ({"where": "{ dept = 2 }"}, ["where.dept: is no axis; did you mean 'model.depth'?"]),
        (
            {"where": "{ learning_rate = 2 }"},
            ["where.learning_rate: is no axis; valid: model.activation, model.depth"],
        ),
        ({"where": "{ depth = 3 }"}, ["where.depth = 3: the axis has 1, 2"]),
        ({"where": "{ depth = true }"}, ["where.depth = True: the axis has 1, 2"]),
        (
            {"arm": '{ activation = "tahn" }'},
            ["arm.activation = 'tahn': the axis has relu, tanh, gelu"],
        ),
        ({"arm": '"relu"'}, ["arm and reference are both activation relu"]),
        ({"reference": "2"}, ["arm and reference must name the same axes"]),
        (
            {"arm": '{ activation = "tanh", depth = 2 }'},
            ["arm and reference must name the same axes"],
        ),
        (
            {
                "arm": '{ activation = "tanh", depth = 2 }',
                "reference": '{ activation = "relu", depth = 1 }',
            },
            [
                "arm and reference differ in model.activation and model.depth: nobody could say "
                "which of them made the difference; compare them one at a time"
            ],
        ),
        (
            {"where": '{ activation = "gelu" }'},
            ["where.model.activation: arm and reference say it already"],
        ),
    ],
)
def test_an_entry_that_is_wrong_is_told_every_problem(
    problems: Callable[..., list[str]], changes: dict[str, str | None], lines: list[str]
) -> None:
    assert problems(entry(**changes)) == [f"hypothesis 1: {line}" for line in lines]


def test_a_value_of_two_axes_is_ambiguous(problems: Callable[..., list[str]]) -> None:
    axes = '[axes]\n"model.depth" = [1, 2]\n"train.epochs" = [1, 5]'
    assert problems(entry(arm="2", reference="1"), axes=axes) == [
        "hypothesis 1: reference = 1: is a value of model.depth and train.epochs; write "
        '{ "model.depth" = 1 }'
    ]


def test_a_value_of_two_axes_may_be_given_as_a_table(study: Reader) -> None:
    axes = '[axes]\n"model.depth" = [1, 2]\n"train.epochs" = [1, 5]'
    found = study(entry(arm="2", reference='{ "model.depth" = 1 }'), axes=axes)
    assert sides(found) == [
        ((("model.depth", 2), key), (("model.depth", 1), key))
        for key in (("train.epochs", 1), ("train.epochs", 5))
    ]


def test_the_entry_with_the_problem_is_counted(problems: Callable[..., list[str]]) -> None:
    assert problems(CLAIM, entry(claim='"good"', arm='"gelu"'), entry(arm='"sine"')) == [
        "hypothesis 2: claim = 'good': must be one of better, worse, equal",
        "hypothesis 3: arm = 'sine': is no arm of this study; valid: 1, 2, gelu, relu, tanh",
    ]


def test_an_entry_has_to_be_a_table(problems: Callable[..., list[str]]) -> None:
    assert problems("hypothesis = 3") == ["hypothesis 1: must be a table, [[hypothesis]]"]


def test_nothing_is_claimed_twice(problems: Callable[..., list[str]]) -> None:
    again = entry(margin="0.02", where="{ depth = 2 }")
    assert problems(CLAIM, again) == [
        "hypothesis: says twice that tanh is better than relu in best_accuracy, depth 2"
    ]


def test_another_claim_about_the_same_arms_is_another_hypothesis(study: Reader) -> None:
    found = study(
        CLAIM, entry(claim='"equal"'), entry(endpoint='"test_accuracy"'), entry(arm='"gelu"')
    )
    assert len(found.hypotheses) == 8


def test_a_claim_about_a_later_round_than_the_last_is_refused(
    problems: Callable[..., list[str]],
) -> None:
    stop = '[set]\n"experiment.stop_at_accuracy" = 0.9'
    endpoints = '["best_accuracy", "rounds_to_0.95", "rounds_to_0.9", "rounds_to_0.5"]'
    assert problems(stop, entry(endpoint=endpoints)) == [
        f"{endpoint}: experiment.stop_at_accuracy = 0.9 ends runs before that is "
        "known; use one such as rounds_to_0.9, or set it to 0"
        for endpoint in ("best_accuracy", "rounds_to_0.95")
    ]


def test_runs_that_stop_at_a_target_can_tell_what_it_took(study: Reader) -> None:
    stop = '[set]\n"experiment.stop_at_accuracy" = 0.9'
    assert len(study(stop, entry(endpoint='"rounds_to_0.9"')).hypotheses) == 2


def test_nobody_tunes_on_a_round_after_the_last(problems: Callable[..., list[str]]) -> None:
    stop = '[set]\n"experiment.stop_at_accuracy" = 0.9'
    tune = f'[tune]\ngrid = {{ "{RATE}" = 0.1 }}'
    (line,) = problems(stop, tune)
    assert line.startswith("area_under_curve: experiment.stop_at_accuracy = 0.9 ends")


# What others published.


PUBLISHED = """
[[published]]
endpoint = "rounds_to_0.9"
source = "McMahan et al. 2017, table 2"
values = [
    { activation = "relu", depth = 2, value = 87 },
    { "model.activation" = "tanh", "model.depth" = 1, value = 12.5 },
]
"""


def test_published_figures_are_read_in_the_order_of_the_axes(study: Reader) -> None:
    assert study(PUBLISHED).published == tuple(
        Published(
            arm=arm(*place),
            endpoint="rounds_to_0.9",
            value=value,
            source="McMahan et al. 2017, table 2",
        )
        for place, value in ((("relu", 2), 87.0), (("tanh", 1), 12.5))
    )
    assert study().published == ()


def test_a_single_published_value_needs_no_list(study: Reader) -> None:
    text = PUBLISHED.replace("[\n    {", "{").partition("},\n")[0] + "}"
    assert [p.value for p in study(text).published] == [87.0]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (
            'source = "McMahan et al. 2017, table 2"',
            "",
            ["must hold endpoint, source and values"],
        ),
        (
            'source = "McMahan et al. 2017, table 2"',
            'source = "x"\nyear = 2017',
            ["must hold endpoint, source and values"],
        ),
        (
            "rounds_to_0.9",
            "round_to_0.9",
            ["endpoint = 'round_to_0.9': unknown endpoint; did you mean 'rounds_to_0.95'?"],
        ),
        (
            "depth = 2, value = 87",
            "depth = 2",
            [
                "values: {'activation': 'relu', 'depth': 2} must be axes and a value, "
                "a number above 0"
            ],
        ),
        (
            "value = 87",
            'value = "87"',
            [
                "values: {'activation': 'relu', 'depth': 2, 'value': '87'} must be axes and a "
                "value, a number above 0"
            ],
        ),
        (
            "depth = 2, value = 87",
            "value = 87",
            ["values: {'activation': 'relu', 'value': 87} does not say model.depth"],
        ),
        ("depth = 2", "depth = 3", ["values.depth = 3: the axis has 1, 2"]),
        ("depth = 2", "dept = 2", ["values.dept: is no axis; did you mean 'model.depth'?"]),
    ],
)
def test_published_figures_that_are_wrong_are_told(
    problems: Callable[..., list[str]], old: str, new: str, lines: list[str]
) -> None:
    assert old in PUBLISHED
    found = problems(PUBLISHED.replace(old, new))
    assert found[: len(lines)] == [f"published 1: {line}" for line in lines]
    # A value that is none of its axis leaves the axis unsaid as well.
    assert all("does not say model.depth" in line for line in found[len(lines) :])


def test_published_figures_have_to_be_tables(problems: Callable[..., list[str]]) -> None:
    assert problems("published = 3") == ["published 1: must hold endpoint, source and values"]


# Tuning.


def tuned(*lines: str, grid: str = f'"{RATE}" = 0.1') -> str:
    return "\n".join(["[tune]", *lines, "[tune.grid]", grid])


def test_a_tuning_plan_and_what_it_leaves_open(study: Reader) -> None:
    tune = study(tuned()).tune
    assert tune is not None
    assert (dict(tune.grids), dict(tune.choices)) == ({RATE: 0.1}, {})
    assert tune.seeds == tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + 3))
    assert (tune.endpoint, tune.split, tune.validation_fraction) == (
        *("area_under_curve", "validation"),
        0.1,
    )
    assert dict(tune.settings) == {}
    assert study().tune is None


def test_a_tuning_plan_in_full(study: Reader) -> None:
    tune = study(
        tuned(
            *("seeds = [100, 99]", 'endpoint = "rounds_to_0.9"', "validation_fraction = 0.25"),
            'set = { "experiment.rounds" = 1 }',
            grid=f'"{RATE}" = 1\n"train.epochs" = [1, 5]',
        )
    ).tune
    assert tune is not None
    assert (dict(tune.grids), dict(tune.choices)) == ({RATE: 1.0}, {"train.epochs": (1, 5)})
    assert (tune.seeds, tune.endpoint, tune.validation_fraction) == (
        *((99, 100), "rounds_to_0.9"),
        0.25,
    )
    assert dict(tune.settings) == {"experiment.rounds": 1}


def test_tuning_on_the_test_part_uses_the_runs_of_the_study(study: Reader) -> None:
    found = study("seeds = [8, 9]", tuned('split = "test"'))
    assert found.tune is not None
    assert (found.tune.split, found.tune.seeds) == ("test", (8, 9))
    cell = found.tuning_cell(found.arms[0], ((RATE, 0.1),), 8, NAMES)
    assert cell == found.cell(found.arms[0], ((RATE, 0.1),), 8, NAMES)
    assert not cell.tuning


def test_a_tuning_run_looks_at_the_validation_part_and_lies_apart(study: Reader) -> None:
    found = study(tuned('set = { "experiment.rounds" = 1 }'))
    point: Values = ((RATE, 0.215),)
    cell = found.tuning_cell(found.arms[0], point, FIRST_TUNING_SEED, NAMES)
    e = cell.experiment
    assert (e.data.validation_fraction, e.experiment.rounds, e.train.learning_rate) == (
        *(0.1, 1),
        0.215,
    )
    assert cell.folder == Path(
        "tuning", "activation=relu,depth=1", "learning_rate=0.215", f"seed-{FIRST_TUNING_SEED}"
    )
    result = found.cell(found.arms[0], point, 4, NAMES)
    assert result.experiment.data.validation_fraction == 0
    assert result.experiment.experiment.rounds == 2
    assert result.folder == Path("activation=relu,depth=1", "learning_rate=0.215", "seed-4")


@pytest.mark.parametrize(
    ("lines", "grid", "expected"),
    [
        (["grids = 3"], None, ["tune.grids: unknown key; did you mean 'grid'?"]),
        (
            [],
            "",
            ['tune.grid: must name what is tuned, such as "train.learning_rate" = 0.1'],
        ),
        (
            [],
            '"train.learnin_rate" = 0.1',
            ["tune.grid.train.learnin_rate: unknown key; did you mean 'train.learning_rate'?"],
        ),
        (
            [],
            '"experiment.seed" = [1, 2]',
            ["tune.grid.experiment.seed: seeds are no axis; use seeds = [...]"],
        ),
        (
            [],
            '"model.depth" = [1, 2]',
            ["tune.grid.model.depth: is an axis of this study too; keep one of them"],
        ),
        (
            [],
            '"train.epochs" = 2',
            ["tune.grid.train.epochs = 2: takes whole values; give a list of them"],
        ),
        *(
            (
                [],
                f'"{RATE}" = {value}',
                [
                    f"tune.grid.{RATE} = {shown}: must be a number above 0 at which a grid "
                    "begins, or a list of values"
                ],
            )
            for value, shown in (
                *(("0", "0"), ("-0.1", "-0.1"), ("nan", "nan"), ("true", "True")),
                *(("[]", "[]"), ("[0.1, 0.1]", "[0.1, 0.1]"), ('"0.1"', "'0.1'")),
            )
        ),
        (["seeds = [5, 77]"], None, ["tune.seeds: 5 is a seed of the study too; tune on others"]),
        (
            ["seeds = 0"],
            None,
            ["tune.seeds = 0: must be a number of at least 1, or a list of seeds"],
        ),
        (
            ['split = "tset"'],
            None,
            ["tune.split = 'tset': unknown; did you mean 'test'?"],
        ),
        *(
            (
                [f"validation_fraction = {value}"],
                None,
                [f"tune.validation_fraction = {value}: must be between 0 and 1"],
            )
            for value in ("0.0", "1.0", "1", "nan")
        ),
        (
            ['endpoint = "best_acuracy"'],
            None,
            [
                "tune.endpoint = 'best_acuracy': unknown endpoint; did you mean 'best_accuracy'?",
            ],
        ),
        (
            ['endpoint = "hidden_zero_fraction"'],
            None,
            [
                "tune.endpoint = 'hidden_zero_fraction': nobody knows which values of it are "
                "better; take another"
            ],
        ),
        (["set = 3"], None, ["tune.set: must be a table of keys and values"]),
        (
            [f'set = {{ "model.depth" = 3, "{RATE}" = 2, "model.widht" = 3 }}'],
            None,
            [
                "tune.set.model.depth: is an axis of this study too; keep one of them",
                f"tune.set.{RATE}: is an axis of this study too; keep one of them",
                "tune.set.model.widht: unknown key; did you mean 'model.width'?",
            ],
        ),
        (
            ['split = "test"', "seeds = 3", "validation_fraction = 0.1"],
            None,
            [
                f"tune.{key}: with tune.split = 'test' the runs that choose are the study's own"
                for key in ("seeds", "validation_fraction")
            ],
        ),
    ],
)
def test_a_tuning_plan_that_is_wrong_is_told_every_problem(
    problems: Callable[..., list[str]], lines: list[str], grid: str | None, expected: list[str]
) -> None:
    text = tuned(*lines) if grid is None else tuned(*lines, grid=grid)
    assert problems("seeds = [4, 5]", text) == expected


def test_a_tuning_plan_has_to_be_a_table(problems: Callable[..., list[str]]) -> None:
    assert problems("tune = 3") == ["tune: must be a table"]


def test_what_was_chosen_on_the_test_part_gives_no_verdict(
    problems: Callable[..., list[str]],
) -> None:
    assert problems(tuned('split = "test"'), CLAIM) == [
        "tune.split = 'test': a verdict needs values that were not chosen by what it is about; "
        "tune on 'validation', or leave the hypotheses out"
    ]


# As a document.


def test_a_study_is_what_its_document_says(study: Reader) -> None:
    asked = study(
        *('about = "does it matter?"', "seeds = [3, 1]", "targets = [0.5, 0.9]"),
        *('[set]\n"train.epochs" = 2', CLAIM, entry(endpoint='"uplink_bytes"'), PUBLISHED),
        tuned(
            'set = { "experiment.rounds" = 1 }',
            grid=f'"{RATE}" = 0.1\n"train.batch_size" = [8, 16]',
        ),
    )
    document: dict[str, Any] = json.loads(json.dumps(asked.document(), allow_nan=False))
    again = study_of(document)
    assert again == asked
    assert hash(again.hypotheses) == hash(asked.hypotheses)  # arms are looked up in tables
    assert again.arms == asked.arms
    assert again.tune is not None
    assert len(again.hypotheses) == 4


def test_the_smallest_study_is_what_its_document_says(study: Reader) -> None:
    asked = study(axes="")
    assert study_of(json.loads(json.dumps(asked.document()))) == asked
    assert (asked.tune, asked.arms) == (None, [()])
