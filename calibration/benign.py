"""Benign changes: what cameras, codecs and scaling do to an image, and nobody means by it.

The fused score learns that they are no attacks, and its p-value holds for them as for clean images. Fog, WebP and
pixels that are repeated are left out, so that evaluations have changes that nothing has been fitted to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from askance.calibration.controls import ControlConfig, control

KINDS = ("gaussian", "blur", "jpeg", "resize", "shift", "brightness", "dimming", "contrast", "gamma")
SEVERITIES = (1, 2)
STAYS = 0.9  # the share of answers that a change may not alter, to count as mild


def mild_changes() -> tuple[ControlConfig, ...]:
    """Every kind at every mild severity."""
    rows = [{"name": f"{kind}_{n}", "kind": kind, "severity": n} for kind in KINDS for n in SEVERITIES]
    return tuple(ControlConfig.model_validate(row) for row in rows)


def starts(images: int, available: int) -> Tensor:
    """Which of the available images each change is made of, [changes, images]: others for each, as far as they go."""
    count = len(mild_changes())
    return (torch.arange(count * min(images, available)) % available).view(count, -1)


def changed(pixels: Tensor) -> Tensor:
    """Images [changes, N, C, H, W] in [0, 1], each set changed its own way, [changes N, C, H, W]."""
    return torch.cat([control(change, part) for change, part in zip(mild_changes(), pixels, strict=True)])


def calm(before: Tensor, after: Tensor) -> Tensor:
    """Which images, of all changes one after the other, kept their answer under a change that was mild, bool [M].

    Args:
        before, after: the classifier's answers without and with the change, [M].
    """
    stayed = (before == after).view(len(mild_changes()), -1)
    mild = stayed.double().mean(dim=1, keepdim=True) >= STAYS
    return (stayed & mild).flatten()
