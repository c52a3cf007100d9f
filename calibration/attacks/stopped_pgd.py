"""Stopped PGD: projected gradient steps, as many as it takes and no more."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from askance.calibration.attacks._lead import lead
from askance.calibration.attacks.attack import AimedAttack, Distance, Perturb

SHARES = 16  # a step is this share of the budget
SHORTEST = 1e-12  # of what is brought to a length


class StoppedPGD(AimedAttack):
    """Projected gradient steps, L-infinity or L2, that stop for each image once the wrong class leads by a margin.

    Run to the end of its budget, PGD overshoots: its wrong class leads by far more than a decision takes, and a
    detector is measured on the overshoot. An attacker who stops early is harder to tell from clean images, so rows of
    several margins, a ladder, say more than one row of PGD does.

    From the image itself, steps of epsilon / 16 along the cross-entropy's gradient (its sign, or itself at unit
    length), projected on the budget and on [0, 1]. An image is left as it is when its lead, the greatest
    logit of the other classes less the true class's (the target's less the greatest of the others, if the attack aims),
    is positive and at least the margin. One that never gets there ends where its lead was greatest. No image depends on
    its batch mates.

    Attributes:
        epsilon: the budget, in pixel values; of all pixels together where the norm is L2.
        norm: of the budget.
        margin: in logits; 0 stops at the first wrong answer.
        steps: at most.
    """

    kind: Literal["stopped_pgd"]
    epsilon: Distance
    norm: Literal["linf", "l2"] = "linf"
    margin: float = Field(default=0.0, ge=0)
    steps: int = Field(default=40, ge=1)

    @model_validator(mode="after")
    def _pixels_in_range(self) -> Self:
        if self.norm == "linf" and self.epsilon > 1:
            raise ValueError(f"an L-infinity budget is at most 1, the range of a pixel, got {self.epsilon:g}")
        return self

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """Steps, until every image has its lead."""
        direction = -1.0 if self.targeted else 1.0

        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            found, furthest = images.clone(), torch.full((len(images),), -torch.inf)
            going, moved = torch.arange(len(images)), images
            for step in range(self.steps + 1):
                moved = moved.detach().requires_grad_()
                logits = predict(moved)
                leads = direction * lead(logits, labels[going])
                ahead = leads > furthest[going]
                found[going[ahead]], furthest[going[ahead]] = moved.detach()[ahead], leads.detach()[ahead]
                on = (leads < self.margin) | (leads <= 0)
                if step == self.steps or not bool(on.any()):
                    break
                loss = direction * F.cross_entropy(logits, labels[going], reduction="sum")
                (gradient,) = torch.autograd.grad(loss, moved)
                going, start = going[on], images[going[on]]
                moved = self._projected(start, moved.detach()[on] - start + self._step(gradient[on]))
            return found

        return perturb

    def _step(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            direction = gradient.sign()
        else:  # by its greatest first: the square of a sure image's gradient is too small a number
            greatest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
            scaled = gradient / greatest.clamp_min(torch.finfo(gradient.dtype).tiny)
            direction = scaled / _lengths(scaled).clamp_min(SHORTEST)
        step: Tensor = self.epsilon / SHARES * direction
        return step

    def _projected(self, start: Tensor, moved: Tensor) -> Tensor:
        if self.norm == "linf":
            within = moved.clamp(-self.epsilon, self.epsilon)
        else:
            within = moved * (self.epsilon / _lengths(moved).clamp_min(SHORTEST)).clamp(max=1)
        return (start + within).clamp(0, 1)


def _lengths(images: Tensor) -> Tensor:
    """L2 norms of images [N, C, H, W], [N, 1, 1, 1]."""
    lengths: Tensor = images.flatten(1).norm(dim=1)[:, None, None, None]
    return lengths
