"""Baselines: detectors from the literature, fitted and scored on the same inputs as ours, in the same run."""

from __future__ import annotations

from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.energy import Energy
from askance.calibration.baselines.feature_squeezing import FeatureSqueezing
from askance.calibration.baselines.knn import NearestNeighbors
from askance.calibration.baselines.lid import LocalIntrinsicDimensionality
from askance.calibration.baselines.logit_layer import FewLargeShifts, LogitLayer
from askance.calibration.baselines.mahalanobis import Mahalanobis
from askance.calibration.baselines.max_softmax import MaxSoftmax
from askance.calibration.baselines.observation import Need, Observation, observe
from askance.calibration.baselines.recovery import Recovery
from askance.plugins import Family

BASELINES: Family[Baseline] = Family(
    "askance.baselines",
    Baseline,
    (
        *(MaxSoftmax, Energy, Mahalanobis, LocalIntrinsicDimensionality, FeatureSqueezing, NearestNeighbors),
        *(Recovery, LogitLayer, FewLargeShifts),
    ),
    name_of=lambda baseline: baseline.name,
)
"""All baselines by name, in the order of the tables."""

__all__ = [
    "BASELINES",
    "Baseline",
    "Energy",
    "FeatureSqueezing",
    "FewLargeShifts",
    "LocalIntrinsicDimensionality",
    "LogitLayer",
    "Mahalanobis",
    "MaxSoftmax",
    "NearestNeighbors",
    "Need",
    "Observation",
    "Recovery",
    "observe",
]
