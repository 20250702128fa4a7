"""The names that an experiment may use, from the registries that know them."""

from __future__ import annotations

from fedsim import codecs, data, models
from fedsim.config import Vocabulary
from fedsim.federation.strategy import AGGREGATORS


def vocabulary() -> Vocabulary:
    """Return the valid names by configuration key."""
    return {
        "data.dataset": tuple(data.DATASETS),
        "data.partition": tuple(data.PARTITIONS),
        "model.name": tuple(models.MODELS),
        "model.activation": tuple(models.ACTIVATIONS),
        "server.strategy": tuple(AGGREGATORS),
        "update.codec": tuple(codecs.CODECS),
    }
