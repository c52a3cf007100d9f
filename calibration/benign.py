"""Benign changes: what cameras, codecs and scaling do to an image, and nobody means by it.

The fused score learns that they are no attacks, and its p-value holds for them as for clean images. WebP, vignettes
and small rotations are left out, so that evaluations have changes that nothing has been fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from askance.calibration.controls import ControlConfig, control
from askance.calibration.images import Images
from askance.judgement import Readings

Read = Callable[[Images, Tensor], Readings]
Benign = tuple[Readings, Sequence[Readings]] | None  # what is learned from, and what is promised for, by change
BENIGN_IMAGES = 100  # that each change is made of, unless somebody says otherwise

KINDS = (
    *("gaussian", "blur", "jpeg", "resize", "pixelate", "shift"),
    *("brightness", "dimming", "contrast", "gamma", "fog", "shading"),
)
SEVERITIES = (1, 2)
LEARNED = 0.5  # the share of answers that a change may not alter, for the fused score to learn from it
PROMISED = 0.9  # the same, for it to be mild to this classifier: the rate of false alarms is promised for it, too


def mild_changes() -> tuple[ControlConfig, ...]:
    """Every kind at every mild severity."""
    rows = [{"name": f"{kind}_{n}", "kind": kind, "severity": n} for kind in KINDS for n in SEVERITIES]
    return tuple(ControlConfig.model_validate(row) for row in rows)


def benign_readings(images: Images, answers: Tensor, count: int, read: Read, stays: float) -> tuple[Readings, ...]:
    """What detectors read of images that were mildly changed, and answered as before, by change; none of some, perhaps.

    Args:
        images: clean ones; each change is made of others, as far as they go.
        answers: the classifier's, [N].
        count: how many images each change is made of.
        read: reads images with other pixels in place of their own.
        stays: the share of answers that a change may not alter.
    """
    rows = starts(count, len(images))
    if rows.numel() == 0:
        return ()
    before = images[rows.flatten()]
    parts = before.pixels().split(rows.shape[1])
    after = read(before, torch.cat([control(one, part) for one, part in zip(mild_changes(), parts, strict=True)]))
    kept = calm(answers[rows], torch.from_numpy(after.predicted).view_as(rows), stays)
    of_each = torch.arange(rows.numel()).view_as(rows)
    return tuple(after.where(of_each[i][own].numpy()) for i, own in enumerate(kept) if bool(own.any()))


def of_both(calibrate: Sequence[Readings], fuse: Sequence[Readings]) -> Benign:
    """Those of two splits, as `Calibration.fit` takes them; None where there is nothing to learn from."""
    return (Readings.joined(calibrate), fuse) if calibrate else None


def starts(count: int, available: int) -> Tensor:
    """Which of the available images each change is made of, [changes, count or fewer]."""
    changes = len(mild_changes())
    return (torch.arange(changes * min(count, available)) % max(1, available)).view(changes, -1)


def calm(before: Tensor, after: Tensor, stays: float) -> Tensor:
    """Which images kept their answer under a change that left most as they were, bool [changes, N].

    Args:
        before, after: the answers without and with the change, [changes, N].
        stays: the share of them that are to be the same.
    """
    stayed = before == after
    return stayed & (stayed.double().mean(dim=1, keepdim=True) >= stays)
