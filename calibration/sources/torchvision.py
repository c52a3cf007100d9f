"""torchvision's data sets, downloaded before."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from askance.calibration.images import make_images
from askance.calibration.paths import data_root
from askance.calibration.sources.source import Pools, Source
from askance.classifiers.torchvision_compat import import_torchvision
from askance.errors import DataError, did_you_mean

DATA_SETS = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")


class Torchvision(Source):
    """A data set of torchvision's, under ASKANCE_DATA; nothing is downloaded."""

    kind: ClassVar[str] = "torchvision"
    spelling: ClassVar[str] = "torchvision:NAME"

    @classmethod
    def load(cls, what: str) -> Pools:
        """Its training images and its test images."""
        import_torchvision()
        from torchvision import datasets

        if what not in DATA_SETS:
            raise DataError(f"unknown torchvision data set {what!r}: {did_you_mean(what, DATA_SETS)}")
        root = data_root()
        if root is None:
            raise DataError(f"torchvision:{what} needs ASKANCE_DATA, the folder that holds {what}/")
        parts = []
        for train in (True, False):
            try:
                part = getattr(datasets, what)(root, train=train, download=False)
            except RuntimeError:
                raise DataError(
                    f"torchvision:{what} is not under ASKANCE_DATA={root}: download it there first"
                ) from None
            classes = tuple(re.sub(r"^\d - ", "", label) for label in part.classes)
            parts.append(make_images(np.asarray(part.data), np.asarray(part.targets), classes, f"torchvision:{what}"))
        return parts[0], parts[1]
