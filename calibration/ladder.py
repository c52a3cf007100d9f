"""The ladder: attacks of every length, by which the fused score learns, from barely wrong to very sure.

An attack that runs to the end of its budget leaves a classifier surer than any clean image does, one that stops at once
leaves it in doubt, and a single step goes far and straight; a score that has learned from one of them is blind to the
others. Budgets are those that this classifier gives way to, of each norm by itself: what moves every pixel a little
goes much farther than an L2 attack has to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from askance.calibration.attacks import Attack
from askance.calibration.attacks.fgsm import FGSM
from askance.calibration.attacks.stopped_pgd import StoppedPGD
from askance.calibration.budgets import BUDGETS as TRIED
from askance.calibration.budgets import least_budget

RUNGS = {"barely": 0.0, "sure": 1e6}  # the margins to stop at, in logits: at once, and never
KINDS = frozenset({"stopped_pgd", "fgsm"})  # of attack, that the rungs are
SMALLEST, LARGEST = TRIED[0] / 255, TRIED[-1] / 255  # of the budgets that are tried
GIVES_WAY = 0.3  # the share of images that the first budget is to succeed on
BUDGETS = {"linf": 4, "l2": 3}  # the first one, twice it, four times, eight times
FARTHEST = 0.503  # of a budget in each pixel: half its range, beyond which little of an image is left
RUNG_IMAGES = 500  # that each rung starts from
PROBES = 100  # images that budgets are tried on


def first_budgets(success: Callable[[Attack], float], pixels: int) -> dict[str, float]:
    """By norm the smallest budget that an attack stopped at once succeeds with often enough; else the largest.

    Args:
        success: the share of images that an attack succeeds on.
        pixels: of an image, in all channels.

    Returns:
        {norm: a budget in each pixel}: of L2 the length of as much in each of them is tried.
    """

    def first(norm: str) -> float:
        def tried(budget: int) -> float:
            return success(_stopped(norm, budget / 255 * _length(norm, pixels), "barely"))

        return least_budget(tried, GIVES_WAY)[0] / 255

    return {norm: first(norm) for norm in BUDGETS}


def ladder(first: Mapping[str, float], pixels: int) -> tuple[Attack, ...]:
    """Every rung at every budget: L-infinity and L2 steps that stop at once and that never stop, and a single step.

    Args:
        first: the first budget in each pixel by norm, as `first_budgets` has them.
        pixels: of an image, in all channels.
    """
    budgets = [
        (norm, first[norm] * 2**i * _length(norm, pixels))
        for norm, count in BUDGETS.items()
        for i in range(count)
        if first[norm] * 2**i <= FARTHEST
    ]
    stopped = [_stopped(norm, epsilon, rung) for norm, epsilon in budgets for rung in RUNGS]
    steps = [_step(epsilon) for norm, epsilon in budgets if norm == "linf"]
    return (*stopped, *steps)


def _length(norm: str, pixels: int) -> float:
    """Of a change by 1 in each pixel."""
    return math.sqrt(pixels) if norm == "l2" else 1.0


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
