"""The ladder: attacks of every length, by which the fused score learns, from barely wrong to very sure.

An attack that runs to the end of its budget leaves a classifier surer than any clean image does, one that stops at once
leaves it in doubt, and a single step goes far and straight; a score that has learned from one of them is blind to the
others. Budgets are those that this classifier gives way to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from askance.calibration.attacks import Attack
from askance.calibration.attacks.fgsm import FGSM
from askance.calibration.attacks.stopped_pgd import StoppedPGD
from askance.calibration.budgets import BUDGETS as TRIED
from askance.calibration.budgets import least_budget

RUNGS = {"barely": 0.0, "sure": 1e6}  # the margins to stop at, in logits: at once, and never
KINDS = frozenset({"stopped_pgd", "fgsm"})  # of attack, that the rungs are
SMALLEST, LARGEST = TRIED[0] / 255, TRIED[-1] / 255  # of the budgets that are tried
GIVES_WAY = 0.3  # the share of images that the first budget is to succeed on
BUDGETS = {"linf": 4, "l2": 2}  # the first one, twice it, four times, eight times
FARTHEST = 0.503  # of L-infinity budgets: half a pixel's range, beyond which little of an image is left
RUNG_IMAGES = 500  # that each rung starts from
PROBES = 100  # images that budgets are tried on


def first_budget(success: Callable[[Attack], float]) -> float:
    """The smallest L-infinity budget that an attack stopped at once succeeds with often enough; else the largest.

    Args:
        success: the share of images that an attack succeeds on.
    """
    budget, _ = least_budget(lambda tried: success(_stopped("linf", tried / 255, "barely")), GIVES_WAY)
    return budget / 255


def ladder(budget: float, pixels: int) -> tuple[Attack, ...]:
    """Every rung at every budget: L-infinity and L2 steps that stop at once and that never stop, and a single step.

    Args:
        budget: the first one, L-infinity.
        pixels: of an image, in all channels; an L2 budget is as long as a step of `budget` in each of them.
    """
    unit = {"linf": 1.0, "l2": math.sqrt(pixels)}
    near = [budget * 2**i for i in range(max(BUDGETS.values())) if budget * 2**i <= FARTHEST]
    budgets = [(norm, one * unit[norm]) for norm, count in BUDGETS.items() for one in near[:count]]
    stopped = [_stopped(norm, epsilon, rung) for norm, epsilon in budgets for rung in RUNGS]
    steps = [_step(epsilon) for norm, epsilon in budgets if norm == "linf"]
    return (*stopped, *steps)


def _stopped(norm: str, epsilon: float, rung: str) -> StoppedPGD:
    return StoppedPGD.model_validate(
        {
            "name": f"ladder_{rung}_{norm}_{epsilon:.3g}",
            "kind": "stopped_pgd",
            "norm": norm,
            "epsilon": epsilon,
            "margin": RUNGS[rung],
            "images": RUNG_IMAGES,
        }
    )


def _step(epsilon: float) -> FGSM:
    return FGSM(name=f"ladder_step_{epsilon:.3g}", kind="fgsm", epsilon=epsilon, images=RUNG_IMAGES)
