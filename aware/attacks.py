"""Aware attacks: steps that fool the classifier and leave the defence calm, which they have the gradients of.

Sources: N. Carlini and D. Wagner, "Adversarial examples are not easily detected" (2017), the weighted sum; O.
Bryniarski et al., "Evading adversarial example detection defenses with orthogonal projected gradient descent" (2022),
selective and orthogonal steps; S. Sabour et al., "Adversarial manipulation of deep representations" (2016), matching.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from askance.aware.defences import Defence, Look, in_bytes
from askance.aware.evaluation import HEADLINE
from askance.calibration.attacks import Pixels, lead
from askance.judgement.arrays import Bools, Doubles, Ints

FIRST = 0.25  # of the budget, the first step's length; the steps shrink along half a cosine
LAST = 0.1  # of the first step's length, the last one's
SHORTEST = 1e-12  # of what is brought to a length
CALM = 0.5  # a p-value above which there is nothing to gain


class Way(StrEnum):
    """How an attack goes about it.

    SELECTIVE: along one gradient at a time, the classifier's until it is wrong, then the defence's.
    ORTHOGONAL: the same, each without what it has of the other.
    WEIGHTED: along that of the sum of both.
    MATCHING: until the activations are those of an image of another class.
    """

    SELECTIVE = "selective"
    ORTHOGONAL = "orthogonal"
    WEIGHTED = "weighted"
    MATCHING = "matching"


class AwareAttack(BaseModel):
    """Projected steps within an L-infinity budget, of images that the defence sees in 8 bits a pixel.

    Attributes:
        way: how.
        epsilon: the budget.
        steps: at most; an image that the defence takes for a usual one takes no more.
        signs: step by the gradient's sign, or along it.
        margin: in logits, by which a wrong class is to lead before a step is the defence's; and beyond which a sum does
            not count it.
        weight: of the defence's score in a sum, in logits for a unit of it.
        random_start: from anywhere in the budget, or from the image.
        seed: of the start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: Way
    epsilon: Pixels
    steps: int = Field(ge=1)
    signs: bool = False
    margin: float = Field(default=0.0, ge=0)
    weight: float = Field(default=1.0, gt=0)
    random_start: bool = False
    seed: int = 0


class Found(NamedTuple):
    """What became of N images.

    Attributes:
        pixels: of 8 bits; those that fool the classifier with the greatest p-value, or, where none do, the image.
        p_values: that the defence gives them, float64 [N]; 0 where none fool the classifier.
        fooled_at: the first step that fooled it, int64 [N]; -1: none did.
        evaded_at: the first that did so with a p-value above 5%; likewise.
    """

    pixels: Tensor
    p_values: Doubles
    fooled_at: Ints
    evaded_at: Ints


def run(defence: Defence, attack: AwareAttack, images: Tensor, labels: Tensor, guides: Tensor | None = None) -> Found:
    """Attack images.

    Args:
        defence: in front of the classifier, or behind it.
        attack: how.
        images: float32 [N, C, H, W] in [0, 1].
        labels: the true classes, [N].
        guides: images of other classes, as many; for MATCHING alone.
    """
    best, p_values = images.clone(), np.zeros(len(images))
    fooled_at, evaded_at = np.full(len(images), -1), np.full(len(images), -1)
    going, moved = np.arange(len(images)), _start(attack, images)
    aims = None
    if attack.way is Way.MATCHING:
        assert guides is not None
        with torch.no_grad():
            aims = defence(guides).activations
    for step in range(attack.steps + 1):
        moved = moved.detach().requires_grad_()
        look = defence(moved)
        leads = lead(look.logits, labels[going])
        wrong = (leads.detach() > 0).numpy()
        _note(fooled_at, going[wrong], step)
        _note(evaded_at, going[wrong & (look.p_values > HEADLINE)], step)
        better = wrong & (look.p_values > p_values[going])
        best[going[better]] = in_bytes(moved.detach())[better]
        p_values[going[better]] = look.p_values[better]
        on: Bools = p_values[going] <= CALM
        if step == attack.steps or not on.any():
            break
        direction = _direction(attack, look, leads, moved, None if aims is None else tuple(a[going] for a in aims))
        going, start = going[on], images[going[on]]
        further = moved.detach()[on] + _length(attack, step) * _step(attack, direction[on])
        moved = (start + (further - start).clamp(-attack.epsilon, attack.epsilon)).clamp(0, 1)
    return Found(best, p_values, fooled_at, evaded_at)


def _note(first: Ints, rows: Ints, step: int) -> None:
    first[rows[first[rows] < 0]] = step


def _start(attack: AwareAttack, images: Tensor) -> Tensor:
    if not attack.random_start:
        return images
    generator = torch.Generator().manual_seed(attack.seed)
    anywhere = 2 * torch.rand(images.shape, generator=generator) - 1
    return (images + attack.epsilon * anywhere).clamp(0, 1)


def _length(attack: AwareAttack, step: int) -> float:
    shrunk = LAST + (1 - LAST) * (1 + math.cos(math.pi * step / attack.steps)) / 2
    return attack.epsilon * FIRST * shrunk


def _step(attack: AwareAttack, direction: Tensor) -> Tensor:
    """By sign, or as long as that where all pixels count alike."""
    if attack.signs:
        return direction.sign()
    return _unit(direction) * math.sqrt(direction[0].numel())


def _direction(
    attack: AwareAttack, look: Look, leads: Tensor, moved: Tensor, aims: tuple[Tensor, ...] | None
) -> Tensor:
    """Where to go, [B, C, H, W]."""
    if attack.way is Way.MATCHING:
        assert aims is not None
        return _gradient(-sum(_apart(one, aim) for one, aim in zip(look.activations, aims, strict=True)), moved)
    if attack.way is Way.WEIGHTED:
        return _gradient(leads.clamp(max=attack.margin).double() - attack.weight * look.suspicion, moved)
    to_fool = _unit(_gradient(leads, moved, again=True))
    to_calm = _unit(_gradient(-look.suspicion, moved))
    if attack.way is Way.ORTHOGONAL:
        shared = (to_fool * to_calm).sum(dim=(1, 2, 3), keepdim=True)
        to_fool, to_calm = to_fool - shared * to_calm, to_calm - shared * to_fool
    return torch.where((leads <= attack.margin).detach()[:, None, None, None], to_fool, to_calm)


def _apart(activation: Tensor, aim: Tensor) -> Tensor:
    """|a - b|^2 / |b|^2, [B]."""
    squares: Tensor = ((activation - aim) ** 2).flatten(1).sum(dim=1)
    return squares / (aim**2).flatten(1).sum(dim=1).clamp_min(SHORTEST)


def _gradient(goal: Tensor | int, moved: Tensor, *, again: bool = False) -> Tensor:
    """Of a goal [B] in each image; 0 where there is none, as where a distance of 0 has no slope."""
    assert isinstance(goal, Tensor)
    if not goal.requires_grad:  # a defence that shows none
        return torch.zeros_like(moved)
    (found,) = torch.autograd.grad(goal.sum(), moved, retain_graph=again, allow_unused=True)
    return torch.zeros_like(moved) if found is None else found.nan_to_num(0, 0, 0)


def _unit(direction: Tensor) -> Tensor:
    """At unit length; by its greatest first, for the square of a small number is none."""
    greatest = direction.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = direction / greatest.clamp_min(torch.finfo(direction.dtype).tiny)
    found: Tensor = scaled / scaled.flatten(1).norm(dim=1).clamp_min(SHORTEST)[:, None, None, None]
    return found
