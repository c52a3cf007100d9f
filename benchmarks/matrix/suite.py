"""The attacks, the same on every victim, at multiples of the budget that it gives way to."""

from __future__ import annotations

import math
from typing import Any

STOPS = (0, 1, 3, 5, 10)  # margins, in logits, at which attacks of the ladder stop
SLOW = 60  # images, for attacks that ask for very many answers
MOST = 0.5  # of an L-infinity budget: half a pixel's range


def suite(budget: float, pixels: int) -> list[dict[str, Any]]:
    """Rows of a config's `evaluation.attacks`.

    Args:
        budget: L-infinity, at which a single step succeeds on half of the images.
        pixels: of an image, in all channels.
    """
    half, once, twice = (min(MOST, share * budget) for share in (0.5, 1, 2))
    l2 = half * math.sqrt(pixels)
    steps = {"steps": 20, "step_size": once / 8}
    return [
        {"name": "fgsm_half", "kind": "fgsm", "epsilon": half},
        {"name": "fgsm", "kind": "fgsm", "epsilon": once},
        {"name": "fgsm_twice", "kind": "fgsm", "epsilon": twice},
        {"name": "pgd_half", "kind": "pgd", "epsilon": half, **steps},
        {"name": "pgd", "kind": "pgd", "epsilon": once, **steps},
        {"name": "pgd_twice", "kind": "pgd", "epsilon": twice, **steps},
        {"name": "mim", "kind": "mim", "epsilon": once},
        *({"name": f"stopped_{m}", "kind": "stopped_pgd", "epsilon": twice, "margin": m} for m in STOPS),
        {"name": "l2_pgd", "kind": "l2_pgd", "epsilon": l2},
        {"name": "apgd_ce", "kind": "apgd", "epsilon": once},
        {"name": "apgd_dlr", "kind": "apgd", "epsilon": once, "loss": "dlr"},
        {"name": "square", "kind": "square", "epsilon": once, "queries": 500},
        {"name": "deepfool", "kind": "deepfool"},
        {"name": "ddn", "kind": "ddn"},
        {"name": "cw_20", "kind": "cw", "confidence": 20, "steps": 200, "learning_rate": 0.05, "searches": 5},
        {"name": "hop_skip_jump", "kind": "hop_skip_jump", "images": SLOW},
        {"name": "sparsefool", "kind": "sparsefool", "images": SLOW},
        {"name": "universal", "kind": "universal", "epsilon": twice},
        {"name": "patch", "kind": "patch", "share": 0.1},
        {"name": "rotation_translation", "kind": "rotation_translation"},
    ]
