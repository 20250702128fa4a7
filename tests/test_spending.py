"""The account of a run, against compositions that were worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsim.config import Experiment, from_flat
from fedsim.errors import ConfigError, PrivacyError
from fedsim.federation.sampling import choose_clients
from fedsim.ledger.read import Run, load
from fedsim.privacy.accounting import epsilon, statement
from fedsim.simulation import prepare
from fedsim.spending import MARKS, Releases, Spending, spending_of
from fedsim.vocabulary import vocabulary
from server.promise import BASIS, account, check_basis, spent

Make = Callable[..., Experiment]
RunInline = Callable[..., Run]

DELTA = 1e-5
FLAT: dict[str, object] = {
    "experiment.rounds": 12,
    "data.clients": 100,
    "server.clients_per_round": 10,
    "train.batch_size": 10,
    "privacy.level": "user",
    "privacy.clipping_norm": 1.0,
    "privacy.noise_multiplier": 1.1,
    "privacy.delta": DELTA,
    "privacy.accountant": "rdp",  # the faster one; what is composed does not depend on it
}


def made(**changes: object) -> Experiment:
    """Return the experiment with some keys changed, dots written as two underscores."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return from_flat(FLAT | named, vocabulary=vocabulary())


def everybody(round: int) -> list[int]:
    raise AssertionError("who takes part must not matter")


def spending(
    experiment: Experiment,
    *,
    clients: int = 100,
    sizes: Sequence[int] | None = None,
    choose: Callable[[int], Sequence[int]] = everybody,
) -> Spending:
    held = None if sizes is None else np.array(sizes, np.int64)
    found = spending_of(experiment, clients=clients, sizes=held, choose=choose)
    assert found is not None
    return found


def by_hand(q: float, z: float, steps: int, delta: float = DELTA, accountant: str = "rdp") -> float:
    return epsilon(
        sampling_probability=q,
        noise_multiplier=z,
        steps=steps,
        delta=delta,
        accountant=accountant,
    )


def test_nothing_is_accounted_for_where_nothing_is_promised() -> None:
    none = from_flat({}, vocabulary=vocabulary())
    assert spending_of(none, clients=50, sizes=None, choose=everybody) is None
    assert spent(None, 1) == {}


def test_user_level_composes_every_round_at_the_draw_s_probability() -> None:
    found = spending(made())
    for rounds in (1, 5, 12):
        assert found.epsilon(rounds) == by_hand(0.1, 1.1, rounds)
    assert found.epsilon(0) == 0.0
    assert found.guarantee(12).sampling_probability == 0.1


def test_user_level_of_everybody_is_without_amplification() -> None:
    found = spending(made(server__clients_per_round=100))
    assert found.epsilon(12) == by_hand(1.0, 1.1, 12)


def test_local_level_counts_the_client_that_takes_part_most_and_replacement() -> None:
    """Client 3 is in every round, the others in one of two; a replaced update moves 2 C."""
    found = spending(made(privacy__level="local"), choose=lambda r: [3, 4 + r % 2])
    assert found.epsilon(12) == by_hand(1.0, 1.1 / 2, 12)
    assert found.epsilon(1) == by_hand(1.0, 1.1 / 2, 1)
    guarantee = found.guarantee(12)
    assert (guarantee.steps, guarantee.sampling_probability) == (12, 1.0)
    assert guarantee.epsilon == found.epsilon(12)
    assert "replace a client's update" in statement(guarantee)


def test_local_level_with_the_run_s_own_cohorts() -> None:
    def choose(round: int) -> list[int]:
        return choose_clients(0, round, clients=100, cohort=10)

    most = np.bincount([c for r in range(1, 13) for c in choose(r)]).max()
    found = spending(made(privacy__level="local"), choose=choose)
    assert 1 < most < 12
    assert found.epsilon(12) == by_hand(1.0, 0.55, int(most))


def test_example_level_takes_the_worst_client() -> None:
    """Small clients draw each example often, large ones step often, and neither need be worst.

    One epoch of expected batches of 10. Client 0: 40 examples, q = 1/4, 4 steps in each of 6
    rounds: 24. Client 1: 200, q = 1/20, 20 steps in each of 12: 240. Client 2: 100, q = 1/10, 10
    steps in each of 6: 60. Client 3: 400, q = 1/40, 40 steps in 3 rounds: 120, less of a smaller
    draw than client 1's, so that it cannot be worst.
    """

    def choose(round: int) -> list[int]:
        return [1, 0 if round % 2 else 2, *([3] if round % 4 == 0 else [])]

    experiment = made(privacy__level="example", data__clients=4, server__clients_per_round=2)
    found = spending(experiment, clients=4, sizes=[40, 200, 100, 400], choose=choose)
    assert found.worst_parts(12) == [
        Releases(sampling_probability=1 / 4, steps=24),
        Releases(sampling_probability=1 / 10, steps=60),
        Releases(sampling_probability=1 / 20, steps=240),
    ]
    candidates = [by_hand(1 / 4, 1.1, 24), by_hand(1 / 10, 1.1, 60), by_hand(1 / 20, 1.1, 240)]
    assert found.epsilon(12) == max(candidates)
    assert max(candidates) > by_hand(1 / 40, 1.1, 120)
    worst = candidates.index(max(candidates))
    assert found.guarantee(12).steps == [24, 60, 240][worst]


def test_example_level_by_steps_and_with_batches_larger_than_a_client() -> None:
    experiment = made(
        privacy__level="example",
        data__clients=2,
        server__clients_per_round=2,
        train__steps=7,
        train__batch_size=50,
    )
    found = spending(experiment, clients=2, sizes=[30, 500], choose=lambda round: [0, 1])
    # The small client's batches are all that it has: no sampling, and no amplification.
    assert found.worst_parts(3) == [Releases(sampling_probability=1.0, steps=21)]
    assert found.epsilon(3) == by_hand(1.0, 1.1, 21)


def test_example_level_of_clients_that_were_never_asked_spends_nothing() -> None:
    experiment = made(privacy__level="example", data__clients=3, server__clients_per_round=1)
    found = spending(experiment, clients=3, sizes=[20, 5000, 5000], choose=lambda round: [1])
    assert found.epsilon(2) == by_hand(10 / 5000, 1.1, 1000)


def test_clients_without_data_are_chosen_and_spend_nothing() -> None:
    experiment = made(privacy__level="example", data__clients=3, server__clients_per_round=1)
    found = spending_of(
        experiment, clients=3, sizes=np.array([0, 5000, 5000]), choose=lambda r: [r % 2], absent=[0]
    )
    assert found is not None
    assert found.epsilon(4) == by_hand(10 / 5000, 1.1, 1000)


def test_few_who_all_take_part_are_too_few_to_lose_one_behind_masks() -> None:
    """Without one of three the sum stays shut, and the others' updates are gone with it."""
    small = {"data__clients": 4, "privacy__secure_aggregation": True, "privacy__delta": 0.01}
    with pytest.raises(ConfigError, match="with a probability of 1 some round draws fewer than 3"):
        spending(made(**small, server__clients_per_round=3), clients=3)
    with pytest.raises(ConfigError, match="with a probability of 1 some round draws fewer than 3"):
        spending_of(
            made(**small, server__clients_per_round=4),
            clients=4,
            sizes=None,
            choose=everybody,
            absent=[1],
        )
    assert spending(made(**small, server__clients_per_round=4), clients=4).chance_of_few == 0.0


@pytest.mark.parametrize("accountant", ["rdp", pytest.param("pld", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("level", "target"), [("user", 2.0), ("local", 30.0), ("example", 4.0)])
def test_the_noise_that_is_solved_for_never_exceeds_the_target(
    level: str, target: float, accountant: str
) -> None:
    experiment = made(
        privacy__level=level,
        privacy__noise_multiplier=0.0,
        privacy__target_epsilon=target,
        privacy__accountant=accountant,
        experiment__rounds=5,
    )
    sizes = [40 if client % 2 else 200 for client in range(100)]
    found = spending(experiment, sizes=sizes, choose=lambda round: [0, 1, 2])
    spent_in_all = found.epsilon(5)
    assert 0.99 * target < spent_in_all <= target
    assert found.guarantee(5).epsilon == spent_in_all
    assert found.epsilon(4) < spent_in_all


def test_marks_are_few_and_hold_the_first_and_the_last_round() -> None:
    for rounds in (1, 7, 20, 21, 33, 1000):
        found = spending(made(experiment__rounds=rounds))
        assert {1, rounds} <= found.marks <= set(range(1, rounds + 1))
        assert len(found.marks) <= min(rounds, MARKS + 1)
    found = spending(made(experiment__rounds=1000))
    assert spent(found, 2) == {}
    assert spent(found, 50) == {"epsilon": by_hand(0.1, 1.1, 50)}


def test_a_budget_ends_the_run_before_it_would_be_exceeded() -> None:
    by_round = [by_hand(0.1, 1.1, rounds) for rounds in range(13)]
    for last in (1, 5, 11):
        exactly = spending(made(privacy__epsilon_budget=by_round[last]))
        between = spending(made(privacy__epsilon_budget=(by_round[last] + by_round[last + 1]) / 2))
        assert (exactly.last_round(), between.last_round()) == (last, last)
    assert spending(made(privacy__epsilon_budget=by_round[12])).last_round() == 12
    assert spending(made()).last_round() == 12
    assert spending(made(privacy__epsilon_budget=by_round[1] * 0.99)).last_round() == 0


def test_a_budget_of_less_than_a_round_is_refused() -> None:
    experiment = made(privacy__epsilon_budget=by_hand(0.1, 1.1, 1) * 0.99)
    with pytest.raises(ConfigError, match=r"first round alone would spend .*; raise it"):
        account(experiment, clients=100, sizes=None, choose=everybody)


IMPOSSIBLE: dict[str, tuple[dict[str, object], str]] = {
    "a budget for no round, examples": (
        {"level": "example", "noise_multiplier": 1.0, "epsilon_budget": 1e-3},
        "privacy.epsilon_budget = 0.001: the first round alone would spend",
    ),
    "a budget for no message, clients": (
        {"level": "local", "noise_multiplier": 1.0, "epsilon_budget": 1e-3},
        "privacy.epsilon_budget = 0.001: the first round alone would spend",
    ),
    "no noise gives it, clients": (
        {"level": "local", "target_epsilon": 1e-10},
        "target_epsilon = 1e-10: no noise multiplier up to",
    ),
    "adaptive clipping without room in the noise": (
        {"level": "user", "clipping": "adaptive", "target_epsilon": 0.1},
        "adaptive clipping with noise_multiplier",
    ),
    "masks too coarse for the noise": (
        {
            **{"level": "user", "noise_by": "clients", "secure_aggregation": True},
            **{"noise_multiplier": 1.0, "clipping_norm": 1e-5},
        },
        "too coarse for the noise that clients add",
    ),
    "noise beyond the masks": (
        {"level": "local", "noise_multiplier": 50.0, "secure_aggregation": True},
        "privacy.value_range = 8.0: would cut the noise",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_promised_is_refused_before_an_engine_starts(
    case: str, make_experiment: Make
) -> None:
    table, message = IMPOSSIBLE[case]
    privacy = {"clipping_norm": 1.0, "delta": 1e-4, "accountant": "rdp", **table}
    with pytest.raises((ConfigError, PrivacyError)) as refused:
        prepare(make_experiment(privacy=privacy, server={"clients_per_round": 8}))
    assert message in str(refused.value)


CAVEATS: list[tuple[dict[str, object], str]] = [
    ({}, "the server sees every update, and how many clients came, and figures"),
    (
        {"privacy__secure_aggregation": True, "server__clients_per_round": 40},
        "the server sees every update only in sums,",
    ),
    ({"privacy__level": "local"}, "of each update as it leaves the client"),
    ({"privacy__level": "example"}, "of each client's models as they leave it"),
    (
        {
            "privacy__noise_by": "clients",
            "privacy__secure_aggregation": True,
            "server__clients_per_round": 40,
        },
        "Clients add the noise, and are trusted to; each rounds its share",
    ),
    (
        {"privacy__noise_cohort": 500, "privacy__delta": 1e-5},
        "NOT of these 100 clients: the noise is as small as in a federation of 5000 clients with "
        "cohorts of 500",
    ),
    ({"privacy__reproducible_noise": True}, "whoever knows the seed can take them off"),
]


@pytest.mark.parametrize(("changes", "said"), CAVEATS)
def test_what_a_promise_rests_on_is_said(changes: dict[str, object], said: str) -> None:
    found = spending(made(**changes), sizes=[100] * 100, choose=lambda round: [0])
    text = statement(found.guarantee(3))
    assert said in text
    silent = [other for change, other in CAVEATS[4:] if change.items() - changes.items()]
    assert not [other for other in silent if other in text]


@pytest.mark.parametrize("level", ["user", "local", "example"])
@pytest.mark.parametrize("rounds", [0, 1, 12])
def test_noise_from_the_seed_is_never_promised_without_the_caveat(level: str, rounds: int) -> None:
    experiment = made(privacy__level=level, privacy__reproducible_noise=True)
    found = spending(experiment, sizes=[100] * 100, choose=lambda round: [0])
    assert "privacy.reproducible_noise" in statement(found.guarantee(rounds))


NATURAL: dict[str, object] = {
    "data__clients": 0,
    "data__partition": "natural",
    "data__dataset": "split",
    "data__path": "somewhere",
}


@pytest.mark.parametrize("level", ["user", "local"])
def test_delta_is_held_against_the_clients_that_there_are(level: str) -> None:
    """The experiment does not say how many ids its file holds: nothing could be checked before."""
    experiment = made(privacy__level=level, privacy__delta=0.01, **NATURAL)
    with pytest.raises(PrivacyError, match=r"delta = 0.01: .* below 1/N = 0.01 for N = 100"):
        spending(experiment, clients=100, choose=lambda round: [0])
    spending(experiment, clients=99, choose=lambda round: [0])


def test_delta_is_held_against_the_federation_that_the_noise_is_of() -> None:
    experiment = made(privacy__noise_cohort=1000, privacy__delta=1e-4, **NATURAL)
    with pytest.raises(PrivacyError, match="N = 10,000"):
        spending(experiment, clients=100)
    assert spending(experiment, clients=99).protected == pytest.approx(9900)


def test_delta_is_held_against_the_examples() -> None:
    experiment = made(privacy__level="example", privacy__delta=0.001)
    with pytest.raises(PrivacyError, match="N = 1,000"):
        spending(experiment, sizes=[10] * 100, choose=lambda round: [0])


def test_examples_that_nobody_counted_are_no_promise() -> None:
    with pytest.raises(ConfigError, match="nobody says how many examples"):
        spending(made(privacy__level="example"), sizes=None)


PRIVACY: dict[str, Any] = {
    "level": "user",
    "clipping_norm": 1.0,
    "noise_multiplier": 1.0,
    "delta": 0.01,
    "accountant": "rdp",
    "reproducible_noise": True,
}


def test_a_run_ends_at_its_budget_and_says_what_it_spent(
    make_experiment: Make, run_inline: RunInline
) -> None:
    budget = by_hand(0.5, 1.0, 2, 0.01) * 1.001
    run = run_inline(
        make_experiment(privacy=PRIVACY | {"epsilon_budget": budget}, experiment={"rounds": 6})
    )
    assert (run.status, run.last_round) == ("completed", 2)
    assert run.rounds.epsilon.tolist() == [by_hand(0.5, 1.0, n, 0.01) for n in (1, 2)]
    assert "2 rounds; accountant: RDP" in (run.manifest.guarantee or "")


@pytest.mark.parametrize("reproducible", [True, False])
def test_a_resumed_run_accounts_for_all_of_its_rounds(
    reproducible: bool,
    make_experiment: Make,
    run_inline: RunInline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that breaks off says what it spent until then; gone on with, what all of it did.

    The round that was broken off counts again, unless its noise comes again too.
    """
    privacy = PRIVACY | {"reproducible_noise": reproducible}
    experiment = make_experiment(privacy=privacy, experiment={"rounds": 5})

    import server.promise

    broken = {"at": 3}
    draw = server.promise.draw_clients

    def break_off(*args: Any, **kwargs: Any) -> list[int]:
        broken["at"] -= 1
        if broken["at"] < 0:
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(server.promise, "draw_clients", break_off)
        with pytest.raises(KeyboardInterrupt):
            run_inline(experiment)
    first = load(experiment.run.out)
    assert (first.status, first.last_round) == ("interrupted", 3)
    # The fourth was begun, and may have been seen.
    assert "4 rounds; accountant" in (first.manifest.guarantee or "")
    run = run_inline(
        make_experiment(
            privacy=privacy,
            experiment={"rounds": 5},
            run={"out": experiment.run.out, "resume": True},
        )
    )
    again = 0 if reproducible else 1
    counted = [1, 2, 3, 4 + again, 5 + again]
    assert run.rounds.epsilon.tolist() == [by_hand(0.5, 1.0, n, 0.01) for n in counted]
    assert f"{5 + again} rounds; accountant" in (run.manifest.guarantee or "")


def test_a_run_goes_on_with_nothing_but_what_it_promised_to(
    make_experiment: Make, run_inline: RunInline
) -> None:
    privacy = PRIVACY | {"level": "example", "delta": 1e-4}
    experiment = make_experiment(privacy=privacy, experiment={"rounds": 1})
    begun = run_inline(experiment).manifest.engine
    account = begun[BASIS]
    assert account["noise_multiplier"] == 1.0
    same = spending(experiment, clients=8, sizes=[10] * 8, choose=lambda round: [0])
    other = spending(experiment, clients=8, sizes=[10] * 7 + [11], choose=lambda round: [0])
    check_basis({BASIS: same.basis()}, same)
    check_basis({}, same)  # a run of before there was a basis
    with pytest.raises(ConfigError, match="are no longer what they were"):
        check_basis({BASIS: other.basis()}, same)
    quieter = spending(
        make_experiment(privacy=privacy | {"noise_multiplier": 0.9}),
        clients=8,
        sizes=[10] * 8,
        choose=lambda round: [0],
    )
    with pytest.raises(ConfigError, match="are no longer what they were"):
        check_basis({BASIS: quieter.basis()}, same)
