"""How much noise each party adds: the same at the server, which counts on it, and at clients."""

from __future__ import annotations

import math

from fedsim.settings import PrivacyTable


def noise_share(table: PrivacyTable, cohort: int) -> float:
    """Return the deviation of the sum's noise in units of z C, for an expected cohort.

    It is 1, but where the noise is that of a larger cohort, M in place of m: the mean over m then
    has the deviation z C / M that the mean over M would have.
    """
    return cohort / table.noise_cohort if table.noise_cohort else 1.0


def client_noise_std(table: PrivacyTable, noise_multiplier: float, cohort: int) -> float:
    """Return the deviation of the noise in each coordinate of a client's own update.

    Level ``local``: all of it, z C. Level ``user``, shared: 1/sqrt(m) of the sum's, so that m
    clients come to it together (Kairouz et al. 2021, distributed discrete Gaussian, section 1).

    Args:
        table: the experiment's.
        noise_multiplier: z.
        cohort: m, expected.
    """
    own = noise_multiplier * table.clipping_norm
    return own if table.level == "local" else own * noise_share(table, cohort) / math.sqrt(cohort)
