"""Data sources: where images come from, by one string, `kind:what`."""

from __future__ import annotations

import torch

from askance.calibration.images import Images
from askance.calibration.sources.folder import Folder
from askance.calibration.sources.npz import Npz
from askance.calibration.sources.parquet import Parquet
from askance.calibration.sources.sklearn import Sklearn
from askance.calibration.sources.source import Pools, Source, located
from askance.calibration.sources.tar import Tar
from askance.calibration.sources.torchvision import Torchvision
from askance.errors import DataError, did_you_mean
from askance.plugins import Family
from askance.screening.preprocessing import Preprocessing

SOURCES: Family[Source] = Family(
    "askance.sources", Source, (Sklearn, Torchvision, Npz, Folder, Parquet, Tar), name_of=lambda source: source.kind
)
"""All data sources by kind."""

__all__ = [
    "SOURCES",
    "Folder",
    "Npz",
    "Parquet",
    "Pools",
    "Sklearn",
    "Source",
    "Tar",
    "Torchvision",
    "load_source",
    "located",
    "pools_of",
]


def pools_of(source: str, preprocessing: Preprocessing | None = None) -> Pools:
    """The pools of a source.

    Args:
        source: "kind:what".
        preprocessing: what the classifier takes: encoded images are decoded to it, as a server does; None: to the
            shape of the first of them.

    Raises:
        DataError: it is unknown, missing or invalid.
    """
    kind, _, what = source.partition(":")
    if kind not in SOURCES or not what:
        *first, last = (known.spelling for known in SOURCES.values())
        raise DataError(
            f"unknown data source {source!r}: {did_you_mean(kind, SOURCES)}; spelt {', '.join(first)} or {last}"
        )
    known = SOURCES[kind]
    return known.load(what) if preprocessing is None else known.load_for(what, preprocessing)


def load_source(source: str, preprocessing: Preprocessing | None = None) -> Images:
    """All images of a source, its pools together; as for `pools_of`.

    Raises:
        DataError: it is unknown, missing or invalid.
    """
    train, test = pools_of(source, preprocessing)
    if test is None:
        return train
    return Images(torch.cat([test.x, train.x]), torch.cat([test.y, train.y]), train.classes)
