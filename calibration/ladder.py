"""The ladder: attacks that stop early or late, by which the fused score learns, from barely wrong to very sure.

An attack that runs to the end of its budget leaves a classifier surer than any clean image does, one that steps once
leaves it in doubt; a score that has learned from either is blind to the other. The ladder's rungs are margins between
the two, in units of this classifier's own clean ones; its budgets are those that this classifier gives way to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from askance.calibration.attacks import Attack
from askance.calibration.attacks.stopped_pgd import StoppedPGD
from askance.calibration.budgets import BUDGETS as TRIED
from askance.calibration.budgets import least_budget

RUNGS = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, math.inf)  # margins, as shares of the median clean one; inf: to the end
NEVER = 1e6  # a margin, in logits, that no image reaches
SMALLEST, LARGEST = TRIED[0] / 255, TRIED[-1] / 255  # of the budgets that are tried
GIVES_WAY = 0.3  # the share of images that the first budget is to succeed on
BUDGETS = {"linf": 3, "l2": 2}  # the first one, twice it, and four times
RUNG_IMAGES = 250  # that each rung starts from
PROBES = 100  # images that budgets are tried on


def first_budget(success: Callable[[Attack], float]) -> float:
    """The smallest L-infinity budget that an attack stopped at once succeeds with often enough; else the largest.

    Args:
        success: the share of images that an attack succeeds on.
    """
    budget, _ = least_budget(lambda tried: success(_rung("linf", tried / 255, 0.0, 0.0)), GIVES_WAY)
    return budget / 255


def ladder(budget: float, clean_margin: float, pixels: int) -> tuple[StoppedPGD, ...]:
    """Every rung at every budget.

    Args:
        budget: the first one, L-infinity.
        clean_margin: the median by which the classifier's answer leads the next on clean images.
        pixels: of an image, in all channels; an L2 budget is as long as a step of `budget` in each of them.
    """
    unit = {"linf": 1.0, "l2": math.sqrt(pixels)}
    budgets = [(norm, min(1.0, budget * 2**i) * unit[norm]) for norm, count in BUDGETS.items() for i in range(count)]
    return tuple(_rung(norm, epsilon, share, clean_margin) for norm, epsilon in budgets for share in RUNGS)


def _rung(norm: str, epsilon: float, share: float, clean_margin: float) -> StoppedPGD:
    return StoppedPGD.model_validate(
        {
            "name": f"ladder_{norm}_{epsilon:.3g}_{share:g}",
            "kind": "stopped_pgd",
            "norm": norm,
            "epsilon": epsilon,
            "margin": share * clean_margin if share < math.inf else NEVER,
            "images": RUNG_IMAGES,
        }
    )
