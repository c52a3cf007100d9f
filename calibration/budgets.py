"""The budget at which attacks on a classifier begin to succeed, found on a few of its images."""

from __future__ import annotations

from torch import nn

from askance.calibration.attacks import ATTACKS, PixelClassifier, perturb
from askance.calibration.images import Images
from askance.detectors.preprocessing import Preprocessing

BUDGETS = ("1/255", "2/255", "4/255", "8/255", "16/255", "32/255", "64/255")
TRIED_IMAGES = 50
ENOUGH = 0.5  # of the images, on which an attack is worth a row in the tables


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
    budget, share = BUDGETS[-1], 0.0
    for budget in BUDGETS if len(right) else ():
        attack = ATTACKS["fgsm"].model_validate({"name": "fgsm", "kind": "fgsm", "epsilon": budget})
        attacked = perturb(predict, attack, right.pixels(), right.y, attack.seed)
        share = float((predict(attacked).argmax(dim=1) != right.y).double().mean())
        if share >= ENOUGH:
            break
    return budget, share
