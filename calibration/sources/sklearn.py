"""The data set that comes with scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from askance.calibration.images import make_images
from askance.calibration.sources.source import Pools, Source
from askance.errors import DataError


class Sklearn(Source):
    """scikit-learn's handwritten digits, 8 x 8 pixels: no file from outside is needed."""

    kind: ClassVar[str] = "sklearn"
    spelling: ClassVar[str] = "sklearn:digits"

    @classmethod
    def load(cls, what: str) -> Pools:
        """All 1,797; there is one pool."""
        if what != "digits":
            raise DataError(f"unknown data source 'sklearn:{what}': scikit-learn's only one here is sklearn:digits")
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        return make_images(x, digits.target, words, "sklearn:digits"), None
