"""What the attacks that see decisions alone share: images to start from that are wrong already."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from askance.calibration.attacks._foolbox import MinimizationAttack, perturb_of
from askance.calibration.attacks.attack import Perturb

TOGETHER = 10  # images at a time: the noise around each is held at once
DIRECTIONS, BLENDS = 100, 50  # of noise tried, and of steps towards it


def from_decisions(predict: nn.Module, attack: MinimizationAttack) -> Perturb:
    """What an attack that walks along the boundary does to images.

    It sets out from noise blended into the image, or, where all noise is taken for the image's own class, from the
    nearest of its batch mates that is not. An image with neither, or one that is wrong already, stays as it is.
    """

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        right = (_answers(predict, images) == labels).nonzero()[:, 0]
        starts = _starts(predict, images, labels, right)
        found = images.clone()
        going = right[_answers(predict, starts[right]) != labels[right]]
        for rows in going.split(TOGETHER) if len(going) > 0 else ():
            walk = perturb_of(predict, attack, starting_points=starts[rows])
            found[rows] = walk(images[rows], labels[rows])
        return found

    return torch.no_grad()(perturb)


def _answers(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return predict(images).argmax(dim=1)


def _starts(predict: nn.Module, images: Tensor, labels: Tensor, right: Tensor) -> Tensor:
    """Where each image [N, C, H, W] sets out from, wrong if any was found, for the rows `right`."""
    from foolbox.attacks.blended_noise import LinearSearchBlendedUniformNoiseAttack

    noise = LinearSearchBlendedUniformNoiseAttack(directions=DIRECTIONS, steps=BLENDS)
    starts, answers = perturb_of(predict, noise)(images, labels), _answers(predict, images)
    for row in right[_answers(predict, starts[right]) == labels[right]]:
        others = images[answers != labels[row]]
        if len(others) > 0:
            starts[row] = others[(others - images[row]).flatten(1).norm(dim=1).argmin()]
    return starts
