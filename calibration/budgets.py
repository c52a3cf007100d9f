"""The budget at which attacks on a classifier begin to succeed: the least of some that double."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from askance.calibration.attacks import ATTACKS, PixelClassifier, perturb
from askance.calibration.images import Images
from askance.screening.preprocessing import Preprocessing

BUDGETS = (1, 2, 4, 8, 16, 32, 64)  # L-infinity, in 255ths
TRIED_IMAGES = 50
ENOUGH = 0.5  # of the images, on which an attack is worth a row in the tables


def least_budget(success: Callable[[int], float], enough: float) -> tuple[int, float]:
    """The least of the budgets at which an attack succeeds often enough; else the greatest.

    Args:
        success: the share of images that it succeeds on, by its budget in 255ths.
        enough: such a share.

    Returns:
        The budget in 255ths, and the share on which it succeeds.
    """
    budget, share = BUDGETS[-1], 0.0
    for budget in BUDGETS:
        share = success(budget)
        if share >= enough:
            break
    return budget, share


def budget_for(classifier: nn.Module, preprocessing: Preprocessing, images: Images) -> tuple[str, float]:
    """The least of the budgets at which FGSM succeeds on half of some images that the classifier gets right.

    Args:
        classifier: in eval mode.
        preprocessing: in front of it.
        images: of which some are tried.

    Returns:
        The budget, L-infinity, and the share on which FGSM succeeds with it; the greatest budget where none is enough,
        and a share of 0 where nothing is right to begin with.
    """
    predict = PixelClassifier(classifier, preprocessing)
    some = images[: 4 * TRIED_IMAGES]
    right = some[predict(some.pixels()).argmax(dim=1) == some.y][:TRIED_IMAGES]

    def success(budget: int) -> float:
        attack = ATTACKS["fgsm"].model_validate({"name": "fgsm", "kind": "fgsm", "epsilon": f"{budget}/255"})
        attacked = perturb(predict, attack, right.pixels(), right.y, attack.seed)
        return float((predict(attacked).argmax(dim=1) != right.y).double().mean())

    budget, share = least_budget(success, ENOUGH) if len(right) else (BUDGETS[-1], 0.0)
    return f"{budget}/255", share
