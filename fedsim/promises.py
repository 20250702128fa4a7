"""What an experiment may not combine with a promise of privacy, found before any work.

Each line names what is wrong, why, and what to choose instead. What needs the data (whether delta
is small enough for the people that there are) is checked where those are counted:
:mod:`fedsim.spending`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.config import Experiment
    from fedsim.conflicts import Conflict

# Strategies whose model depends on the updates through their mean alone, so that its noise is
# all that they see.
LINEAR = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
LEAST_COHORT = 3  # of two, each could take its own update from the sum


def privacy_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what a promise of privacy, a bound on updates, or a sum behind masks rules out."""
    yield from mean_conflicts(e)
    if e.privacy.on:
        yield from noise_conflicts(e)
        yield from shape_conflicts(e)
        yield from client_conflicts(e)
    else:
        yield from idle_conflicts(e)
    if e.privacy.secure_aggregation:
        yield from secrecy_conflicts(e)
    yield from adversary_conflicts(e)


def why_equal(e: Experiment) -> str | None:
    """Say which setting makes every update weigh the same; None where none does."""
    if e.privacy.level in ("user", "local"):
        return f"privacy.level = {e.privacy.level!r}"
    if e.privacy.secure_aggregation:
        return "privacy.secure_aggregation = true"
    if e.server.norm_bound:
        return f"server.norm_bound = {e.server.norm_bound}"
    return None


def mean_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield strategies that look at more than a mean, and weights that a bound cannot hold for."""
    strategy, why = e.server.strategy, why_equal(e)
    wanted = why or ('server.weighting = "equal"' if e.server.weighting == "equal" else None)
    if e.privacy.level == "example" and strategy not in LINEAR:
        wanted = "privacy.level = 'example'"
    if wanted and strategy not in LINEAR:
        yield (
            ("server.strategy", "privacy.level", "privacy.secure_aggregation", "server.norm_bound"),
            f"server.strategy = {strategy!r}: {wanted} needs one that sees the mean of updates "
            f"alone, and this one needs each update; use one of {', '.join(LINEAR)}",
        )
    if why and e.server.weighting == "examples":
        yield (
            ("server.weighting", "privacy.level"),
            f"server.weighting = 'examples': {why} bounds what one client can change, and a weight "
            "of its own choice would undo that; use 'equal', or leave it at 'auto'",
        )
    if e.server.norm_bound and e.privacy.level in ("user", "local"):
        yield (
            ("server.norm_bound", "privacy.level"),
            f"server.norm_bound = {e.server.norm_bound}: privacy.level = {e.privacy.level!r} cuts "
            "updates to privacy.clipping_norm already, and noise is drawn for that; set 0",
        )


def noise_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what is missing for noise to be a promise."""
    p = e.privacy
    level = f"privacy.level = {p.level!r}"
    if not p.clipping_norm:
        yield (
            ("privacy.clipping_norm", "privacy.level"),
            f"privacy.clipping_norm = 0.0: {level} adds noise, which promises nothing without "
            "clipping; give the norm that updates (example: gradients) are clipped to",
        )
    if p.noise_multiplier and p.target_epsilon:
        yield (
            ("privacy.noise_multiplier", "privacy.target_epsilon"),
            f"privacy.noise_multiplier = {p.noise_multiplier}: privacy.target_epsilon = "
            f"{p.target_epsilon} is solved for the noise; give one of the two",
        )
    if not p.noise_multiplier and not p.target_epsilon:
        yield (
            ("privacy.target_epsilon", "privacy.noise_multiplier"),
            f"privacy.target_epsilon = 0.0: {level} needs an epsilon above 0 to solve the noise "
            "for, or privacy.noise_multiplier; 0 itself would take infinite noise",
        )
    people = protected_people(e)
    if not p.delta:
        such = f", such as {0.1 / people:.1g}" if people else ""
        yield (
            ("privacy.delta", "privacy.level"),
            f"privacy.delta = 0.0: {level} needs a delta above 0 and below 1 / the number of those "
            f"it protects{such}; Gaussian noise promises nothing at 0",
        )
    if people and p.delta >= 1 / people:
        yield (
            ("privacy.delta", "data.clients", "privacy.noise_cohort"),
            f"privacy.delta = {p.delta}: not below 1/{people:g}, so that giving away one of "
            f"{people:g} people whole would be within the promise; use {0.1 / people:.1g}",
        )
    if p.epsilon_budget and p.target_epsilon > p.epsilon_budget:
        yield (
            ("privacy.target_epsilon", "privacy.epsilon_budget"),
            f"privacy.target_epsilon = {p.target_epsilon}: more than privacy.epsilon_budget = "
            f"{p.epsilon_budget}; the run would end before its last round",
        )


def protected_people(e: Experiment) -> float:
    """Return how many users there are, as far as the experiment says; 0 where it does not."""
    if e.privacy.level not in ("user", "local"):
        return 0
    cohort = e.privacy.noise_cohort or e.server.clients_per_round
    return e.data.clients * cohort / e.server.clients_per_round


def shape_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield variants that belong to another level."""
    p = e.privacy
    largest = (p.noise_cohort or e.server.clients_per_round) / 10
    if p.clipping == "adaptive" and (
        p.level != "user" or p.noise_by != "server" or p.secure_aggregation
    ):
        yield (
            ("privacy.clipping", "privacy.level", "privacy.noise_by"),
            "privacy.clipping = 'adaptive': follows how many updates were clipped, which only a "
            'server that sees the updates can count; it needs privacy.level = "user", '
            "privacy.noise_by = \"server\" and no secure aggregation; or use 'fixed'",
        )
    elif p.clipping == "adaptive" and p.noise_multiplier >= largest:
        yield (
            ("privacy.clipping", "privacy.noise_multiplier", "server.clients_per_round"),
            f"privacy.noise_multiplier = {p.noise_multiplier}: with privacy.clipping = 'adaptive' "
            f"it has to be below {largest:g}, a tenth of the cohort, as the count of short updates "
            "is noised too; ask more clients a round, or use 'fixed'",
        )
    if p.noise_by == "clients" and p.level != "user":
        yield (
            ("privacy.noise_by", "privacy.level"),
            f"privacy.noise_by = 'clients': privacy.level = {p.level!r} says who adds the noise; "
            "leave it at 'server'",
        )
    elif p.noise_by == "clients" and not p.secure_aggregation:
        yield (
            ("privacy.noise_by", "privacy.secure_aggregation"),
            "privacy.noise_by = 'clients': each adds a share of the noise, which hides nobody "
            "whose update the server sees alone; set privacy.secure_aggregation = true",
        )
    if p.noise_cohort and p.level != "user":
        yield (
            ("privacy.noise_cohort", "privacy.level"),
            f"privacy.noise_cohort = {p.noise_cohort}: only with privacy.level = 'user'; set 0",
        )
    elif p.noise_cohort and p.noise_cohort < e.server.clients_per_round:
        yield (
            ("privacy.noise_cohort", "server.clients_per_round"),
            f"privacy.noise_cohort = {p.noise_cohort}: less than server.clients_per_round = "
            f"{e.server.clients_per_round}; it makes noise smaller, as in a larger federation",
        )


def client_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what clients cannot do where they clip and noise for themselves."""
    p, train = e.privacy, e.train
    if p.level in ("example", "local") and (e.measure.level == "full" or e.measure.full_every):
        key = "measure.level" if e.measure.level == "full" else "measure.full_every"
        yield (
            (key, "privacy.level"),
            f"{key}: full figures of a client's data would go beside its noised update, and no "
            f"noise covers them; with privacy.level = {p.level!r} use measure.level = 'light' and "
            "full_every = 0",
        )
    if p.level == "example":
        if train.clip_norm:
            yield (
                ("train.clip_norm", "privacy.level"),
                f"train.clip_norm = {train.clip_norm}: privacy.level = 'example' clips each "
                "example's gradient to privacy.clipping_norm; set 0",
            )
        if train.batch_size == 0:
            yield (
                ("train.batch_size", "privacy.level"),
                "train.batch_size = 0: privacy.level = 'example' draws each example with "
                "probability batch_size / examples; give the expected size of a batch",
            )
    lossy = [k for k in ("codec", "coder") if getattr(e.update, k) != "none"]
    protects_itself = p.level == "local" or p.noise_by == "clients"
    if protects_itself and lossy:
        key = lossy[0]
        yield (
            (f"update.{key}", "privacy.level"),
            f"update.{key} = {getattr(e.update, key)!r}: an update that carries noise does not "
            "compress, and error feedback would send what was clipped; leave it at 'none'",
        )


def idle_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield settings that promise something while ``privacy.level`` is none."""
    for key in ("noise_multiplier", "target_epsilon", "epsilon_budget"):
        if value := getattr(e.privacy, key):
            yield (
                (f"privacy.{key}", "privacy.level"),
                f"privacy.{key} = {value}: privacy.level = 'none' adds no noise and spends no "
                'epsilon; set privacy.level to "user", "example" or "local"',
            )


def secrecy_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield what would show the server more than the sum."""
    cohort, on = e.server.clients_per_round, "privacy.secure_aggregation = true"
    if cohort < LEAST_COHORT:
        yield (
            ("server.clients_per_round", "privacy.secure_aggregation"),
            f"server.clients_per_round = {cohort}: {on} hides an update among others, at least "
            f"{LEAST_COHORT}; ask more clients a round",
        )
    # What is no list of numbers is told of elsewhere.
    left = cohort - len({*filter(None, map(str.strip, e.server.left_out.split(",")))})
    if e.privacy.level != "user" and left < LEAST_COHORT <= cohort:
        yield (
            ("server.left_out", "privacy.secure_aggregation"),
            f"server.left_out = {e.server.left_out!r}: may leave {left} of a cohort of {cohort}, "
            f"and {on} hides an update among at least {LEAST_COHORT}; ask more clients a round",
        )
    for key in ("codec", "coder"):
        if (value := getattr(e.update, key)) != "none":
            yield (
                (f"update.{key}", "privacy.secure_aggregation"),
                f"update.{key} = {value!r}: {on} adds masks, which do not compress and are not to "
                "be rounded; leave it at 'none'",
            )
    if e.measure.level == "full" or e.measure.full_every:
        key = "measure.level" if e.measure.level == "full" else "measure.full_every"
        yield (
            (key, "privacy.secure_aggregation"),
            f"{key}: full figures of single clients would show what {on} hides; "
            "use measure.level = 'light' and full_every = 0",
        )
    if e.server.norm_bound and e.privacy.level not in ("user", "local"):
        yield (
            ("server.norm_bound", "privacy.secure_aggregation"),
            f"server.norm_bound = {e.server.norm_bound}: the server cannot measure an update that "
            f"{on} hides from it; set 0, or clip at the clients: privacy.level = 'local'",
        )


def adversary_conflicts(e: Experiment) -> Iterator[Conflict]:
    """Yield attacks of nobody. A share without an attack is the arm of a study that has none."""
    kind, fraction = e.adversary.kind, e.adversary.fraction
    if kind != "none" and not fraction:
        yield (
            ("adversary.fraction", "adversary.kind"),
            f"adversary.fraction = 0.0: adversary.kind = {kind!r} needs hostile clients; "
            "give the share that is, such as 0.2",
        )
