"""Every error fedsim raises on purpose. Each message gives the value, the place and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FedsimError(Exception):
    """Base of the errors that fedsim raises on purpose; the command returns ``exit_code``."""

    exit_code = 1


class ConfigError(FedsimError):
    """An experiment or study that cannot run as written; holds every problem found, a line each."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(FedsimError):
    """Data that is missing, corrupt, or of the wrong shape; the message names the file."""

    exit_code = 2


class PrivacyError(FedsimError):
    """What no guarantee can be given for: a setting without a proof, an update without a norm."""

    exit_code = 2


class CodecError(FedsimError):
    """An update that its codec cannot hold, or a payload that is damaged or of another model."""


class EngineError(FedsimError):
    """The engine could not start, or lost what it needs to go on."""


class RunFailed(FedsimError):
    """A run that cannot continue, for instance because no client answered."""


class SecureAggregationRefused(FedsimError, ValueError):
    """A message of secure aggregation that does not fit: damaged, replayed, or of another party."""


class SecureAggregationAborted(RunFailed):
    """A round of secure aggregation that too few clients are left for; nothing was revealed by it.

    ``stage`` is its place in ``secagg.STAGES``, ``answered`` who got so far, ``needed`` how many
    had to.
    """

    def __init__(self, problem: str, *, stage: int, answered: Sequence[int], needed: int) -> None:
        super().__init__(problem)
        self.stage, self.answered, self.needed = stage, tuple(answered), needed


class LedgerError(FedsimError):
    """A run directory that cannot be written, read or resumed."""


class RunExists(LedgerError):
    """The directory asked for already holds a run (or something else)."""

    exit_code = 2


def nearest(
    name: str, valid: Iterable[str], otherwise: Sequence[str] = (), cutoff: float = 0.5
) -> str:
    """Say which valid name was probably meant, or list them all.

    Args:
        name: what was written.
        valid: the names that would have been accepted.
        otherwise: what to list instead where the valid names are too many.
        cutoff: how alike a name has to be to be meant, in [0, 1].
    """
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {close[0]!r}?"
    return "valid: " + ", ".join(otherwise or options)
