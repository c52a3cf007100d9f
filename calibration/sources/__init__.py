"""Data sources: where images come from, by one string, `kind:what`."""

from __future__ import annotations

import torch

from askance.calibration.images import Images
from askance.calibration.sources.folder import Folder
from askance.calibration.sources.npz import Npz
from askance.calibration.sources.sklearn import Sklearn
from askance.calibration.sources.source import Pools, Source, located
from askance.calibration.sources.torchvision import Torchvision
from askance.errors import DataError, did_you_mean
from askance.plugins import Family

SOURCES: Family[Source] = Family(
    "askance.sources", Source, (Sklearn, Torchvision, Npz, Folder), name_of=lambda source: source.kind
)
"""All data sources by kind."""

__all__ = [
    "SOURCES",
    "Folder",
    "Npz",
    "Pools",
    "Sklearn",
    "Source",
    "Torchvision",
    "load_source",
    "located",
    "pools_of",
]


def pools_of(source: str) -> Pools:
    """The pools of a source.

    Raises:
        DataError: it is unknown, missing or invalid.
    """
    kind, _, what = source.partition(":")
    if kind not in SOURCES or not what:
        *first, last = (known.spelling for known in SOURCES.values())
        raise DataError(
            f"unknown data source {source!r}: {did_you_mean(kind, SOURCES)}; spelt {', '.join(first)} or {last}"
        )
    return SOURCES[kind].load(what)


def load_source(source: str) -> Images:
    """All images of a source, its pools together.

    Raises:
        DataError: it is unknown, missing or invalid.
    """
    train, test = pools_of(source)
    if test is None:
        return train
    return Images(torch.cat([test.x, train.x]), torch.cat([test.y, train.y]), train.classes)
