"""The evaluation: tables of how well each detector separates clean from attacked, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from calibration.config import AttackConfig, EvaluationConfig
from calibration.metrics import detection
from calibration.scoring import Scores
from detectors.conformal import p_value
from detectors.screen import FUSED, Calibration

BASELINE = "max_softmax"


def choose_attacked(clean: Scores, config: EvaluationConfig) -> Tensor:
    """Positions of the correctly classified images that every attack starts from, in split order."""
    return torch.nonzero(clean.correct).flatten()[: config.attacked_images]


def evaluate(
    clean: Scores,
    calibration: Calibration,
    config: EvaluationConfig,
    attacked: Callable[[AttackConfig], Scores],
) -> dict[str, Any]:
    """Evaluate on the clean split and on every attack.

    Negatives are all clean images of the split, misclassified ones included, as in production. Positives are the
    *successful* attacks on images that the classifier got right; failed attacks are reported apart.

    Args:
        clean: of the evaluation split.
        calibration: the conformal tables.
        config: the attacks.
        attacked: gives the scores of one attack's images, made from the images of `choose_attacked`.

    Returns:
        JSON-ready: accuracy, flag rates beside their targets, and per attack and detector the figures of
        `metrics.detection`, under `<figure>.<attack>.<detector>`.
    """
    clean_scores = clean.with_fused(calibration.fusion)
    result: dict[str, Any] = {
        "classifier": {"accuracy": float(clean.correct.double().mean()), "images": len(clean.labels)},
        "target_flag_rate": dict(calibration.levels.items()),
        "clean_flag_rate": {},
        "detector_clean_flag_rate": {},
        "attacks": {},
    }
    tables: dict[str, Tensor] = {**calibration.tables, FUSED: calibration.fused_table}
    for name, values in clean_scores.items():
        p = p_value(values, tables[name])
        rates = {level: float((p <= alpha).double().mean()) for level, alpha in calibration.levels.items()}
        if name == FUSED:
            result["clean_flag_rate"] = rates
        result["detector_clean_flag_rate"][name] = rates
    clean_scores[BASELINE] = clean.doubt

    for config_of_one in config.attacks:
        scores = attacked(config_of_one)
        succeeded = ~scores.correct
        of_attack = scores.with_fused(calibration.fusion) | {BASELINE: scores.doubt}
        row: dict[str, Any] = config_of_one.model_dump(mode="json") | {
            "attempted": len(succeeded),
            "successful": int(succeeded.sum()),
            "failed_auroc": {},
        }
        for name, of_clean in clean_scores.items():
            figures = detection(of_clean, of_attack[name][succeeded])
            for figure, value in (figures or {}).items():
                result.setdefault(figure, {}).setdefault(config_of_one.name, {})[name] = value
            failed = detection(of_clean, of_attack[name][~succeeded])
            row["failed_auroc"][name] = failed and failed["auroc"]
        result["attacks"][config_of_one.name] = row
    return result


def summary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The part that a bundle's manifest carries."""
    keys = ("classifier", "target_flag_rate", "clean_flag_rate", "auroc")
    return {key: evaluation[key] for key in keys if key in evaluation}
