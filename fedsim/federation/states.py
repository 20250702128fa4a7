"""What clients keep between rounds, where the grid lets the server see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedsim.errors import RunFailed
from fedsim.flower import decode_state, encode_state
from fedsim.table import Clients, column

ClientStates = Mapping[int, Mapping[str, np.ndarray]]


def changed_states(
    grid: Grid, clients: Clients, node_of: Callable[[int], int]
) -> dict[int, dict[str, np.ndarray]]:
    """Return the states of the clients that took part in a round, as the ledger stores them.

    Only a simulation's grid holds them (``client_states``); deployed clients keep their own.
    """
    states: Mapping[int, RecordDict] = getattr(grid, "client_states", {})
    if not states:
        return {}
    held = ((client, states.get(node_of(client))) for client in column(clients, "client"))
    return {client: decode_state(state) for client, state in held if state}


def restore_states(grid: Grid, stored: ClientStates, node_of: Callable[[int], int]) -> None:
    """Give resumed clients back what they kept.

    Raises:
        RunFailed: the grid cannot do that, and there is something to restore.
    """
    if not stored:
        return
    states: dict[int, RecordDict] | None = getattr(grid, "client_states", None)
    if states is None:
        raise RunFailed(
            "the run has clients with state, which Flower's own runtime cannot restore; "
            "resume it with fedsim run --resume"
        )
    states.update({node_of(client): encode_state(arrays) for client, arrays in stored.items()})
