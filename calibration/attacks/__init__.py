"""Attacks on the classifier alone: one class each, with its options, its budget and its paper."""

from __future__ import annotations

from typing import get_args

from askance.calibration.attacks.attack import AimedAttack, Attack, Perturb, PixelClassifier, Pixels, perturb
from askance.calibration.attacks.bim import BIM
from askance.calibration.attacks.cw import CarliniWagner
from askance.calibration.attacks.ddn import DDN
from askance.calibration.attacks.deepfool import DeepFool
from askance.calibration.attacks.ead import ElasticNet
from askance.calibration.attacks.fab import FAB
from askance.calibration.attacks.fgsm import FGSM
from askance.calibration.attacks.local_search import LocalSearch
from askance.calibration.attacks.mim import MIM
from askance.calibration.attacks.pgd import PGD
from askance.calibration.attacks.spatial import SpatialTransform
from askance.calibration.attacks.spsa import SPSA
from askance.calibration.attacks.stopped_pgd import StoppedPGD
from askance.plugins import Family


def _kind(attack: type[Attack]) -> str:
    (kind,) = get_args(attack.model_fields["kind"].annotation)
    return str(kind)


ATTACKS: Family[Attack] = Family(
    "askance.attacks",
    Attack,
    (
        FGSM,
        BIM,
        PGD,
        StoppedPGD,
        MIM,
        CarliniWagner,
        ElasticNet,
        DDN,
        DeepFool,
        FAB,
        SpatialTransform,
        LocalSearch,
        SPSA,
    ),
    name_of=_kind,
)
"""All attacks by kind, in the order of the tables."""

__all__ = [
    "ATTACKS",
    "BIM",
    "DDN",
    "FAB",
    "FGSM",
    "MIM",
    "PGD",
    "SPSA",
    "AimedAttack",
    "Attack",
    "CarliniWagner",
    "DeepFool",
    "ElasticNet",
    "LocalSearch",
    "Perturb",
    "PixelClassifier",
    "Pixels",
    "SpatialTransform",
    "StoppedPGD",
    "perturb",
]
