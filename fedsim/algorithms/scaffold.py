"""SCAFFOLD: stochastic controlled averaging (Karimireddy et al. 2020, algorithm 1, option II).

x is the global model, c the server's control variate, y and c_i the client's, K its steps,
lr its learning rate, N the number of clients and S the cohort. The client adds c - c_i to every
gradient, then::

    c_i+ = c_i - c + (x - y) / (K lr)
    x <- x + server_lr mean_S(y - x)
    c <- c + |S| / N mean_S(c_i+ - c_i)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Arrays = Mapping[str, np.ndarray]


def client_control(
    x: Arrays, y: Arrays, c: Arrays, c_i: Arrays, *, steps: int, learning_rate: float
) -> dict[str, np.ndarray]:
    """Return c_i+, the client's control variate after its ``steps``; same names and shapes as x."""
    scale = 1.0 / (steps * learning_rate)
    return {
        k: (c_i[k] - c[k] + scale * (x[k].astype(np.float64) - y[k])).astype(x[k].dtype) for k in x
    }


def server_step(
    x: Arrays,
    c: Arrays,
    ys: Sequence[Arrays],
    control_changes: Sequence[Arrays],
    *,
    clients: int,
    learning_rate: float,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the next x and c, summed over the cohort in the order given, in float64.

    Args:
        ys: each client's model.
        control_changes: each client's c_i+ - c_i, in the same order.
        clients: N, all clients of the federation.
        learning_rate: the server's; 1 is the mean of the clients' models.
    """
    model: dict[str, np.ndarray] = {}
    control: dict[str, np.ndarray] = {}
    for k in x:
        moved = sum(y[k].astype(np.float64) - x[k] for y in ys) / len(ys)
        change = sum(d[k].astype(np.float64) for d in control_changes) / clients
        model[k] = (x[k] + learning_rate * moved).astype(x[k].dtype)
        control[k] = (c[k] + change).astype(c[k].dtype)
    return model, control
