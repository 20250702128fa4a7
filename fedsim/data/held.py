"""Examples that lie in folders: a whole split, the server's part of it, or one client's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.card import CARD, Card, read_card
from fedsim.data.dataset import Dataset, Features, Ints
from fedsim.data.folders import EXAMPLES, SERVER, client_folder, read_examples
from fedsim.data.own import OWN_FORMATS, read_own
from fedsim.data.source import Source, reading
from fedsim.errors import DataError


def read_split(source: Source) -> Dataset:
    """Read what lies at ``source.path``.

    The folder of a whole split gives the clients' examples, one client after another, as natural
    clients, and the server's test part. The server's folder gives the test part alone, a client's
    (with its dealt examples, or a file of its own beside a card; the file may be named itself) that
    client's examples alone. The other part is then empty.

    Raises:
        DataError: a folder or file is missing, damaged, or does not fit the others.
    """
    if not source.path:
        raise DataError('data.path = "": data.dataset = "split" needs the folder of the split')
    path = Path(source.path).expanduser()
    with reading(path):
        if not path.exists():
            raise DataError(f"{path}: no such folder")
        if path.is_file():
            return _read_file(source, path)
        if (path / CARD).exists():
            return _read_folder(source, path)
        if not (path / SERVER / CARD).exists():
            raise DataError(
                f"{path}: holds neither {CARD} nor {SERVER}/{CARD}; name a folder that was made by "
                "fedsim data split"
            )
    return _read_whole(source, path)


def _read_file(source: Source, path: Path) -> Dataset:
    if path.name == EXAMPLES:
        return _read_folder(source, path.parent)
    if path.suffix.lower() not in OWN_FORMATS:
        raise DataError(f"{path}: is no {', '.join(OWN_FORMATS)} file")
    card = read_card(path.parent)
    return _one_client(source, card, *read_own(path, card))


def _read_folder(source: Source, folder: Path) -> Dataset:
    card = read_card(folder)
    names = (EXAMPLES, *(f"examples{suffix}" for suffix in OWN_FORMATS))
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: holds {listed}; leave one of them there")
    if not found:
        raise DataError(f"{folder}: holds a card but no examples: one of {', '.join(names)}")
    if found[0].name != EXAMPLES:
        return _one_client(source, card, *read_own(found[0], card))
    if card.role == "card":
        raise DataError(f"{found[0]}: the card beside it describes no such file")
    x, y = read_examples(folder, card)
    if card.role == "client":
        return _one_client(source, card, x, y)
    return _dataset(source, card, train=_nothing(card), test=(x, y), part="server")


def _read_whole(source: Source, path: Path) -> Dataset:
    server = read_card(path / SERVER)
    if server.role != "server":
        raise DataError(f"{path / SERVER / CARD}: is a {server.role}'s; {REMEDY}")
    names = [client_folder(client, server.clients) for client in range(server.clients)]
    strangers = {folder.name for folder in path.glob("client-*")} - set(names)
    if strangers:
        raise DataError(
            f"{path / min(strangers)}: the split has {server.clients} clients, {names[0]} to "
            f"{names[-1]}; remove what is not one of them"
        )
    cards = [_client_card(path / name, client, server) for client, name in enumerate(names)]
    sizes = [card.examples or 0 for card in cards]
    ends = np.cumsum(sizes)
    x = np.empty((ends[-1], *server.form.input_shape), server.form.dtype)
    y = np.empty(ends[-1], np.int64)
    for name, card, end, size in zip(names, cards, ends, sizes, strict=True):
        x[end - size : end], y[end - size : end] = read_examples(path / name, card)
    return _dataset(
        source,
        server,
        train=(x, y),
        test=read_examples(path / SERVER, server),
        part="whole",
        clients=np.repeat(np.arange(server.clients), sizes),
        names=tuple(names),
    )


REMEDY = "make the split anew, with fedsim data split"


def _client_card(folder: Path, client: int, server: Card) -> Card:
    card = read_card(folder)
    if (card.role, card.client, card.clients) != ("client", client, server.clients):
        raise DataError(
            f"{folder / CARD}: is of {card.role} {card.client} of {card.clients}, not of client "
            f"{client} of {server.clients}; {REMEDY}"
        )
    if differs := card.form.difference(server.form.values()):
        raise DataError(f"{folder / CARD}: {differs}, as the server's; {REMEDY}")
    if not card.examples:
        raise DataError(f"{folder / CARD}: the client holds no examples; {REMEDY}")
    # Before there is room made for so many.
    with reading(folder / EXAMPLES):
        if (folder / EXAMPLES).stat().st_size < card.examples:
            raise DataError(f"{folder / EXAMPLES}: is smaller than {CARD} says; {REMEDY}")
    return card


def _one_client(source: Source, card: Card, x: Features, y: Ints) -> Dataset:
    return _dataset(source, card, train=(x, y), test=_nothing(card), part="client")


def _nothing(card: Card) -> tuple[Features, Ints]:
    x: Features = np.empty((0, *card.form.input_shape), card.form.dtype)
    return x, np.empty(0, np.int64)


def _dataset(
    source: Source,
    card: Card,
    *,
    train: tuple[Features, Ints],
    test: tuple[Features, Ints],
    part: str,
    clients: Ints | None = None,
    names: tuple[str, ...] = (),
) -> Dataset:
    return Dataset(
        name=source.dataset,
        x_train=train[0],
        y_train=train[1],
        x_test=test[0],
        y_test=test[1],
        classes=len(card.form.class_names),
        class_names=card.form.class_names,
        scale=card.form.scale,
        clients=clients,
        client_names=names,
        part=part,
        client=card.client,
        raw=card.raw,
    )
