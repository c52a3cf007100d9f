"""The strength of a classifier: what it gets right, as images are and under attack, and how far an attack moves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from askance.calibration.attacks import APGD, PGD, Attack
from askance.calibration.attacks.apgd import DLR_CLASSES
from askance.calibration.cache import attack_cache
from askance.calibration.images import Images
from askance.calibration.rates import Rate
from askance.calibration.suite import AttackJob, Target, run
from askance.detectors import Tap
from askance.hardening.losses import strayed

MEASURED = 1_000  # images at most
BATCH = 250
PGD_STEPS, STEP = 50, 0.1  # and the length of each, of the budget


class Strength(BaseModel):
    """What a classifier stands.

    Attributes:
        epsilon: the attacker's budget, L-infinity, in pixel values.
        images: how many were attacked, the first of those that accuracy is of.
        accuracy: the share of the images that it gets right as they are.
        robust: that of those that it still gets right under each of two attacks, PGD (50 steps) and Auto-PGD (100).
        gap: how far PGD moves each layer's activations on average, |phi(x*) - phi(x)| / |phi(x)|, by layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float
    images: int
    accuracy: Rate
    robust: Rate
    gap: dict[str, float]


def attacks(epsilon: float, classes: int) -> tuple[Attack, ...]:
    """Those that a classifier must stand, within a budget; both try harder than those that it learns by."""
    loss = "dlr" if classes >= DLR_CLASSES else "ce"
    return (
        PGD(name="pgd", kind="pgd", epsilon=epsilon, steps=PGD_STEPS, step_size=epsilon * STEP),
        APGD.model_validate({"name": "apgd", "kind": "apgd", "epsilon": epsilon, "loss": loss}),
    )


@torch.no_grad()
def strength(target: Target, images: Images, epsilon: float, layers: Sequence[str]) -> Strength:
    """Attack a classifier, and see.

    Args:
        target: the classifier.
        images: that it did not learn from, in no order.
        epsilon: the attacker's budget.
        layers: whose activations are compared.
    """
    some = images[:MEASURED]
    tried = attacks(epsilon, len(images.classes))
    attacked = run(target, [AttackJob(one, some.pixels(), some.y) for one in tried], attack_cache())
    predict = target.build()
    right = torch.cat([predict(part.pixels()).argmax(dim=1) == part.y for part in images.batches(BATCH)])
    stands = right[: len(some)].clone()
    for pixels in attacked:
        stands &= torch.cat([predict(part).argmax(dim=1) for part in pixels.split(BATCH)]) == some.y
    sums = dict.fromkeys(layers, 0.0)
    with Tap(predict.classifier, layers, target.preprocessing.normalize) as tap:
        for usual, moved in zip(some.pixels().split(BATCH), attacked[0].split(BATCH), strict=True):
            for layer, squares in strayed(tap(torch.cat([usual, moved]))).items():
                sums[layer] += float(squares.sqrt().sum())
    return Strength(
        epsilon=epsilon,
        images=len(some),
        accuracy=Rate.of(right.numpy()),
        robust=Rate.of(stands.numpy()),
        gap={layer: round(total / len(some), 4) for layer, total in sums.items()},
    )
