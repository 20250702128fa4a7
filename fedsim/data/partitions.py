"""How examples are dealt to clients: one function for each kind, from labels to owners.

Each takes the examples' labels and returns the client of each example, so an example can neither
be lost nor dealt twice. All are whole-array operations of bounded time: nothing is drawn again
until it fits. Functions ignore the options of the other kinds, which :func:`make_partition` passes
to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedsim.data.assignment import Partition, top_up
from fedsim.data.counting import apportion
from fedsim.data.dataset import Ints
from fedsim.errors import DataError, nearest


def iid(labels: Ints, *, clients: int, rng: np.random.Generator, **_: object) -> Ints:
    """Deal examples at random; client sizes differ by at most one."""
    owner = np.empty(len(labels), np.int64)
    owner[rng.permutation(len(labels))] = np.arange(len(labels)) % clients
    return owner


def dirichlet(
    labels: Ints, *, clients: int, rng: np.random.Generator, alpha: float, **_: object
) -> Ints:
    """Deal each class in proportions drawn from a symmetric Dirichlet distribution over clients.

    For class k, p_k ~ Dir(alpha) over the clients, and client j gets a part p_kj of the class
    (Yurochkin et al. 2019, Bayesian nonparametric federated learning). Client sizes follow from
    that, unlike in Hsu et al. 2019, who draw class proportions for clients of equal size. Small
    ``alpha`` is uneven: each class goes to few clients. The count of a class at a client is p_kj
    times the class's size, rounded down or up at random so that its expectation is exact
    (systematic sampling) and the counts sum to the class.
    """
    owner = np.empty(len(labels), np.int64)
    by_label = _by_label(labels)
    for label in range(len(by_label)):
        examples = rng.permutation(by_label.indices(label))
        # Clients stand in random order, or those that round up would be neighbours in each class.
        line = rng.permutation(clients)
        ends = np.cumsum(_dirichlet(clients, alpha, rng))
        marks = (np.arange(len(examples)) + rng.random()) / len(examples)
        # Rounding can leave the last end below 1, and the last mark beyond it.
        owner[examples] = line[np.searchsorted(ends, marks, side="right").clip(max=clients - 1)]
    return owner


def shards(
    labels: Ints, *, clients: int, rng: np.random.Generator, shards_per_client: int, **_: object
) -> Ints:
    """Sort by label, cut into equal shards, and deal the same number of shards to each client.

    McMahan et al. 2017 (Communication-efficient learning, section 3): 60,000 examples, 100
    clients and 2 shards each are 200 shards of 300. Shards that cannot be equal differ by one.
    """
    total = clients * shards_per_client
    shard = np.arange(len(labels)) * total // len(labels)
    owner = np.empty(len(labels), np.int64)
    owner[np.argsort(labels, kind="stable")] = rng.permutation(total)[shard] // shards_per_client
    return owner


def label_sets(
    labels: Ints, *, clients: int, rng: np.random.Generator, labels_per_client: int, **_: object
) -> Ints:
    """Deal ``labels_per_client`` distinct labels to each client, then each label to its holders.

    Labels have numbers of holders, and holders numbers of a label's examples, that differ by at
    most one. A client holds fewer labels where a label has fewer examples than holders, and more
    where :func:`top_up` had to bring it to the minimum size.

    Raises:
        DataError: there are fewer labels than a client should hold, or so few hands that a label
            would go to nobody.
    """
    by_label = _by_label(labels)
    classes, each = len(by_label), labels_per_client
    if each > classes:
        raise DataError(
            f"data.labels_per_client = {each}: the training examples have {classes} labels; set "
            f"{classes} or less"
        )
    if clients * each < classes:
        raise DataError(
            f"data.labels_per_client = {each}: data.clients = {clients} would hold "
            f"{clients * each} of {classes} labels, and the others' examples nobody; set "
            f"{-(-classes // clients)} or more"
        )
    # A deck is a shuffled row of all labels, dealt in turn, and dealt again in the same order
    # until a client's hand and the deck end together: so no hand gets a label twice.
    hands_per_deck = classes // math.gcd(classes, each)
    decks = np.tile(np.arange(classes), (-(-clients // hands_per_deck), 1))
    rng.permuted(decks, axis=1, out=decks)
    card = np.arange(clients * each)
    hands_by_label = Partition.of(decks[card // (hands_per_deck * each), card % classes], classes)
    owner = np.empty(len(labels), np.int64)
    for label in range(classes):
        examples = rng.permutation(by_label.indices(label))
        holders = rng.permutation(hands_by_label.indices(label) // each)
        owner[examples] = holders[np.arange(len(examples)) % len(holders)]
    return owner


def quantity(
    labels: Ints,
    *,
    clients: int,
    rng: np.random.Generator,
    size_sigma: float,
    min_examples: int,
    **_: object,
) -> Ints:
    """Deal examples at random to clients of log-normal sizes.

    Each client has ``min_examples``; the others are divided in proportion to
    exp(``size_sigma`` x N(0, 1)).
    """
    exponents = size_sigma * rng.standard_normal(clients)
    spare = apportion(len(labels) - clients * min_examples, np.exp(exponents - exponents.max()))
    owner = np.empty(len(labels), np.int64)
    owner[rng.permutation(len(labels))] = np.repeat(np.arange(clients), min_examples + spare)
    return owner


def natural(
    labels: Ints,
    *,
    clients: int,
    min_examples: int,
    natural: Ints | None,
    **_: object,
) -> Ints:
    """Leave each example with the client it came from.

    Raises:
        DataError: the data has no client ids, ``clients`` is neither 0 nor their number, or a
            client has too few examples: they cannot come from elsewhere.
    """
    if natural is None:
        raise DataError(
            'data.partition = "natural": the dataset has no client ids; name their column with '
            "data.client, or choose another partition"
        )
    sizes = np.bincount(natural)
    if clients not in (0, len(sizes)):
        raise DataError(
            f"data.clients = {clients}: the data comes from {len(sizes)} clients; set "
            f"data.clients = {len(sizes)}, or 0 for as many as there are"
        )
    if sizes.min() < min_examples:
        raise DataError(
            f"data.min_examples = {min_examples}: natural client {sizes.argmin()} has "
            f"{sizes.min()} training examples; set data.min_examples = {sizes.min()}"
        )
    return natural


PARTITIONS: dict[str, Callable[..., Ints]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "labels": label_sets,
    "quantity": quantity,
    "natural": natural,
}


def make_partition(
    kind: str,
    labels: Ints,
    *,
    clients: int,
    rng: np.random.Generator,
    alpha: float,
    shards_per_client: int,
    labels_per_client: int,
    size_sigma: float,
    min_examples: int,
    natural: Ints | None,
) -> Partition:
    """Deal the training examples to clients; equal arguments and streams give equal partitions.

    Args:
        kind: a key of ``PARTITIONS``.
        labels: shape (n,), the label of each training example.
        clients: number of clients; for ``natural``, 0 means as many as there are.
        rng: the only source of randomness.
        alpha: for ``dirichlet``: concentration, above 0.
        shards_per_client: for ``shards``: at least 1.
        labels_per_client: for ``labels``: at least 1.
        size_sigma: for ``quantity``: standard deviation of the log of client sizes, at least 0.
        min_examples: every client holds so many; examples are moved where the kind gives fewer.
        natural: for ``natural``: shape (n,), the client of each example, from 0 without gaps.

    Raises:
        DataError: the kind is unknown, or the examples cannot be dealt as asked.
    """
    if kind not in PARTITIONS:
        raise DataError(f"data.partition = {kind!r}: unknown; {nearest(kind, PARTITIONS)}")
    if len(labels) < clients * max(min_examples, 1):
        raise DataError(
            f"data.clients = {clients} with data.min_examples = {min_examples}: needs "
            f"{clients * max(min_examples, 1)} training examples, and there are {len(labels)}; "
            "lower one of the two"
        )
    owner = PARTITIONS[kind](
        labels,
        clients=clients,
        rng=rng,
        alpha=alpha,
        shards_per_client=shards_per_client,
        labels_per_client=labels_per_client,
        size_sigma=size_sigma,
        min_examples=min_examples,
        natural=natural,
    )
    clients = clients or int(owner.max()) + 1
    return Partition.of(top_up(owner, clients, min_examples, rng), clients)


def _by_label(labels: Ints) -> Partition:
    """Group examples by label, leaving out the labels that no example has."""
    present, codes = np.unique(labels, return_inverse=True)
    return Partition.of(codes, len(present))


def _dirichlet(size: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw from a symmetric Dirichlet distribution, for any alpha above 0.

    Gamma variables are drawn as logarithms, log G(alpha) = log G(alpha + 1) + log(U) / alpha
    (Marsaglia & Tsang 2000): at small alpha all would underflow to 0, and 0 / 0 is NaN.
    """
    uniform = 1.0 - rng.random(size)  # in (0, 1]
    logs = np.log(rng.standard_gamma(alpha + 1, size)) + np.log(uniform) / max(alpha, 1e-300)
    weights = np.exp(logs - logs.max())
    proportions: npt.NDArray[np.float64] = weights / weights.sum()
    return proportions
