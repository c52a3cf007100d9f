"""The mask of logit-layer testing (Yun et al. 2025): by which pixels are multiplied to ask what a small change does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from askance.calibration.baselines.observation import Need, Observation, observe_batch
from askance.calibration.images import Images
from askance.detectors import Tap
from askance.errors import CalibrationError

BATCH, STEPS = 32, 100
RATE, DECAY = 8e-4, 1e-2  # as far as the published 1e-6 takes a pixel in a hundred epochs of 50,000 images
LEAST = 1e-8


def moved(inputs: Observation) -> Tensor:
    """How much the mask moves the answers for what it moves each of L layers, [N, L], log.

    The answer moves by the mean squared distance of the masked softmax from the predicted class, times the entropy of
    the softmax as it was; a layer by the mean squared change of its features.

    Raises:
        CalibrationError: no layer before the logits is tapped.
        ValueError: there are no masked copies.
    """
    if inputs.masked is None:
        raise ValueError("the mask moves masked copies: state Need.MASKED")
    if not inputs.hidden:
        raise CalibrationError("logit-layer testing needs a tapped layer before the logits: tap one, or leave it out")
    logits, classes = inputs.logits, inputs.logits.shape[1]
    distance = inputs.masked.logits.softmax(dim=1) - F.one_hot(inputs.predicted, classes)
    entropy = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    answer = distance.square().mean(dim=1) * entropy
    layers = zip(inputs.masked.hidden, inputs.hidden, strict=True)
    changes = torch.stack([(after - before).square().mean(dim=1) for after, before in layers], dim=1)
    ratios: Tensor = (answer + LEAST).log().unsqueeze(1) - (changes + LEAST).log()
    return ratios


def learn_mask(tap: Tap, images: Images) -> Tensor:
    """The mask [C, H, W] that moves the layers of clean images as far, and their answers as little, as it can.

    The published code learns four, all from ones and by the same gradients: they are one. It multiplies pixels before
    they are normalised; the published code normalises masked attacks only, and leaves masked clean images as they are.

    Args:
        tap: over the classifier and the layers that the baselines read.
        images: clean; no more than BATCH * STEPS of them are looked at.

    Raises:
        CalibrationError: the classifier has no gradient, or no layer before the logits is tapped.
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(images.x.shape[1:], requires_grad=True)
    optimizer = torch.optim.AdamW([mask], lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        with torch.enable_grad():
            loss = moved(observe_batch(tap, batch.pixels(), batch.y, {Need.FEATURES}, mask)).mean()
            if not loss.requires_grad:
                raise CalibrationError("logit-layer testing learns by gradients, the classifier has none: leave it out")
            (mask.grad,) = torch.autograd.grad(loss, mask)
        optimizer.step()
    return mask.detach()
