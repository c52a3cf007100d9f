"""A share of images, and how sure it is."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from askance.inside.data import Share
from askance.judgement.arrays import Bools

QUANTILE = 1.959964  # of a normal distribution, for 95%


class Rate(BaseModel):
    """A share of images, and its 95% Wilson interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Share
    low: Share
    high: Share

    @classmethod
    def of(cls, which: Bools) -> Rate:
        """The share of those marked.

        E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
        """
        count, share, square = len(which), float(which.mean()), QUANTILE**2
        middle = (share + square / (2 * count)) / (1 + square / count)
        half = QUANTILE * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
        return cls(share=share, low=max(0.0, min(middle - half, share)), high=min(1.0, max(middle + half, share)))
