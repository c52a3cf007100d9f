"""The gallery: the images that a calibration is judged by at worst, with all that was read of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from askance.answers import FUSED
from askance.calibration.evaluation import AttackedSet, Evidence, SetScores
from askance.calibration.files import png
from askance.calibration.images import Images
from askance.detectors import DETECTORS
from askance.inside.data import Gallery, Shown, Success
from askance.judgement.arrays import Floats
from askance.judgement.conformal import p_value

SHOWN = 12  # images of each kind
RARELY = 0.05  # of its images, that an attack succeeds with or fails with
OF_AN_ATTACK = 2  # that are missed most, so that one attack does not fill it all


def hardest(scores: SetScores, pixels: Tensor) -> Mapping[int, Tensor]:
    """Of an attack's images those that fooled the classifier and are least suspicious, {position: pixels}."""
    succeeded = torch.nonzero(~scores.correct).flatten()
    least = scores.columns[FUSED][succeeded].argsort(stable=True)[:OF_AN_ATTACK]
    return {int(row): pixels[row] for row in succeeded[least]}


def gallery(evidence: Evidence, clean: Images) -> Gallery:
    """The attacked images that are least suspicious, and the clean ones that are most.

    Args:
        evidence: with the hardest images of each attack.
        clean: the evaluation split.
    """
    suspicious = evidence.clean.columns[FUSED].argsort(descending=True, stable=True)[:SHOWN].tolist()
    missed = [one for attacked in evidence.attacks for one in _of(attacked, evidence.tables)]
    return Gallery(
        missed=tuple(sorted(missed, key=lambda one: -one.p_values[FUSED])[:SHOWN]),
        alarms=tuple(
            _shown("clean", clean.x[row].float() / 255, evidence.clean, row, evidence.tables) for row in suspicious
        ),
    )


def success_by_class(evidence: Evidence, classes: int) -> Success | None:
    """The gentlest attack's success by true class."""
    rates = [(attacked, float((~attacked.scores.correct).double().mean())) for attacked in evidence.attacks]
    telling = [attacked for attacked, rate in rates if RARELY <= rate <= 1 - RARELY]
    if not telling:
        return None
    gentlest = min(telling, key=lambda attacked: float(attacked.distances["linf"].median()))
    scores = gentlest.scores
    return Success(
        attack=gentlest.attack.name,
        by_class=tuple(
            round(float((~scores.correct[scores.labels == k]).double().mean()), 4)
            if bool((scores.labels == k).any())
            else None
            for k in range(classes)
        ),
    )


def _of(attacked: AttackedSet, tables: Mapping[str, Floats]) -> Iterator[Shown]:
    for row, pixels in attacked.hardest.items():
        yield _shown(attacked.attack.name, pixels, attacked.scores, row, tables)


def _shown(of: str, pixels: Tensor, scores: SetScores, row: int, tables: Mapping[str, Floats]) -> Shown:
    read = [name for name in (FUSED, *DETECTORS) if name in scores.columns and name in tables]
    return Shown(
        of=of,
        image=base64.b64encode(png(pixels.numpy())).decode(),
        label=int(scores.labels[row]),
        predicted=int(scores.predicted[row]),
        p_values={
            name: round(float(p_value(scores.columns[name][row : row + 1].double().numpy(), tables[name])[0]), 6)
            for name in read
        },
    )
