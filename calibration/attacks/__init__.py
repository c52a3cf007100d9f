"""Attacks on the classifier alone: one class each, with its options, its budget and its paper."""

from __future__ import annotations

from typing import get_args

from askance.calibration.attacks._lead import lead
from askance.calibration.attacks.apgd import APGD
from askance.calibration.attacks.attack import AimedAttack, Attack, Perturb, PixelClassifier, Pixels, perturb
from askance.calibration.attacks.bim import BIM
from askance.calibration.attacks.boundary import Boundary
from askance.calibration.attacks.cw import CarliniWagner
from askance.calibration.attacks.ddn import DDN
from askance.calibration.attacks.deepfool import DeepFool
from askance.calibration.attacks.ead import ElasticNet
from askance.calibration.attacks.fab import FAB
from askance.calibration.attacks.fgsm import FGSM
from askance.calibration.attacks.hop_skip_jump import HopSkipJump
from askance.calibration.attacks.l2_pgd import L2PGD
from askance.calibration.attacks.local_search import LocalSearch
from askance.calibration.attacks.mim import MIM
from askance.calibration.attacks.patch import Patch
from askance.calibration.attacks.pgd import PGD
from askance.calibration.attacks.rotation_translation import RotationTranslation
from askance.calibration.attacks.sparsefool import SparseFool
from askance.calibration.attacks.spatial import SpatialTransform
from askance.calibration.attacks.spsa import SPSA
from askance.calibration.attacks.square import Square
from askance.calibration.attacks.stopped_pgd import StoppedPGD
from askance.calibration.attacks.transfer import Transfer
from askance.calibration.attacks.universal import Universal
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
        L2PGD,
        StoppedPGD,
        MIM,
        APGD,
        CarliniWagner,
        ElasticNet,
        DDN,
        DeepFool,
        FAB,
        SparseFool,
        Patch,
        Universal,
        SpatialTransform,
        RotationTranslation,
        LocalSearch,
        SPSA,
        Square,
        HopSkipJump,
        Boundary,
        Transfer,
    ),
    name_of=_kind,
)
"""All attacks by kind, in the order of the tables."""

__all__ = [
    "APGD",
    "ATTACKS",
    "BIM",
    "DDN",
    "FAB",
    "FGSM",
    "L2PGD",
    "MIM",
    "PGD",
    "SPSA",
    "AimedAttack",
    "Attack",
    "Boundary",
    "CarliniWagner",
    "DeepFool",
    "ElasticNet",
    "HopSkipJump",
    "LocalSearch",
    "Patch",
    "Perturb",
    "PixelClassifier",
    "Pixels",
    "RotationTranslation",
    "SparseFool",
    "SpatialTransform",
    "Square",
    "StoppedPGD",
    "Transfer",
    "Universal",
    "lead",
    "perturb",
]
