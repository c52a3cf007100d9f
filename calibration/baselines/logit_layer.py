"""The baseline of logit-layer testing, and the two tests of its paper together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor

from askance.calibration.baselines._unusual import Unusual
from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.masks import moved
from askance.calibration.baselines.observation import Need, Observation
from askance.calibration.baselines.recovery import Recovery


class LogitLayer(Baseline):
    """How much a mask moves the answer for what it moves the layers: log of the ratio, averaged over the layers; its
    normal quantile among clean images, squared, for both sides are suspicious.
    """

    name: ClassVar[str] = "logit_layer"
    title: ClassVar[str] = "logit-layer testing, Yun et al. (2025)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.MASKED})

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:  # noqa: ARG002
        """Learn what is usual of clean images."""
        self._usual = Unusual(moved(tune).double().mean(dim=1))
        return self

    def score(self, inputs: Observation) -> Tensor:
        """In [0, inf)."""
        return self._usual(moved(inputs).double().mean(dim=1))


class FewLargeShifts(Baseline):
    """The sum of the squared quantiles of recovery and of logit-layer testing."""

    name: ClassVar[str] = "few_large_shifts"
    title: ClassVar[str] = "recovery and logit-layer testing together, Yun et al. (2025)"
    needs: ClassVar[frozenset[Need]] = Recovery.needs | LogitLayer.needs

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:
        """Learn both.

        Raises:
            CalibrationError: there are fewer than three layers to recover one from another.
        """
        self._tests: list[Baseline] = [test().fit(clean, tune, seen) for test in (Recovery, LogitLayer)]
        return self

    def score(self, inputs: Observation) -> Tensor:
        """In [0, inf)."""
        recovery, logit_layer = (test.score(inputs) for test in self._tests)
        return recovery + logit_layer
