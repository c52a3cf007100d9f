"""The ladder: attacks of every length, by which the fused score learns, from barely wrong to very sure.

An attack that runs to the end of its budget leaves a classifier surer than any clean image does, one that stops at once
leaves it in doubt, and a single step goes far and straight; a score that has learned from one of them is blind to the
others; and one that has seen no image turned takes a turn for a benign change. Budgets are those that this classifier
gives way to, of each kind by itself: what moves every pixel a little goes much farther than an L2 attack has to.

Patches are not among them: an opinion that has learned from them speaks up for many a clean image, and cost every other
row more than it gave to theirs (docs/detection.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from askance.calibration.attacks import Attack
from askance.calibration.attacks.fgsm import FGSM
from askance.calibration.attacks.rotation_translation import RotationTranslation
from askance.calibration.attacks.stopped_pgd import StoppedPGD
from askance.calibration.budgets import BUDGETS as TRIED
from askance.calibration.budgets import least_budget

RUNGS = {"barely": 0.0, "sure": 1e6}  # the margins to stop at, in logits: at once, and never
KINDS = frozenset({"stopped_pgd", "fgsm", "rotation_translation"})  # of attack, that the rungs are
BUDGET_OPTIONS = frozenset({"epsilon", "degrees", "shift"})  # by which rungs of one kind differ
SMALLEST, LARGEST = TRIED[0] / 255, TRIED[-1] / 255  # of the budgets that are tried
GIVES_WAY = 0.3  # the share of images that the first budget is to succeed on
BUDGETS = {"linf": 4, "l2": 3, "turn": 2}  # the first one, twice it, four times, eight times
FARTHEST = 0.503  # of a budget: half a pixel's range, or half the image, beyond which little of an image is left
TURNS = 20  # that are tried, for the worst of them
RUNG_IMAGES = 500  # that each rung starts from
PROBES = 100  # images that budgets are tried on


def first_budgets(success: Callable[[Attack], float], pixels: int) -> dict[str, float]:
    """By kind the smallest budget that an attack stopped at once succeeds with often enough; else the largest.

    Args:
        success: the share of images that an attack succeeds on.
        pixels: of an image, in all channels.

    Returns:
        {"linf", "l2": a budget in each pixel; "turn": a share of a full turn, and of the sides for a shift}: of L2 the
        length of as much in each pixel is tried.
    """

    def first(kind: str) -> float:
        def tried(budget: int) -> float:
            share = budget / 255
            return success(_turned(share) if kind == "turn" else _stopped(kind, share, "barely", pixels))

        return least_budget(tried, GIVES_WAY)[0] / 255

    return {kind: first(kind) for kind in BUDGETS}


def ladder(first: Mapping[str, float], pixels: int) -> tuple[Attack, ...]:
    """Every rung at every budget: steps that stop at once and that never stop, single L-infinity ones, and turns.

    Args:
        first: the first budget by kind, as `first_budgets` has them.
        pixels: of an image, in all channels.
    """
    budgets = [
        (kind, first[kind] * 2**i)
        for kind, count in BUDGETS.items()
        for i in range(count)
        if first[kind] * 2**i <= FARTHEST
    ]
    stopped = [_stopped(kind, budget, rung, pixels) for kind, budget in budgets if kind != "turn" for rung in RUNGS]
    steps = [_step(epsilon) for kind, epsilon in budgets if kind == "linf"]
    turns = [_turned(share) for kind, share in budgets if kind == "turn"]
    return (*stopped, *steps, *turns)


def _stopped(norm: str, budget: float, rung: str, pixels: int) -> StoppedPGD:
    epsilon = budget * math.sqrt(pixels) if norm == "l2" else budget
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


def _turned(share: float) -> RotationTranslation:
    return RotationTranslation(
        name=f"ladder_turn_{share:.3g}",
        kind="rotation_translation",
        degrees=min(180, 360 * share),
        shift=share,
        samples=TURNS,
        images=RUNG_IMAGES,
    )
