"""Stopped PGD: projected gradient steps, as many as it takes and no more."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.attacks._lead import lead
from askance.calibration.attacks.attack import AimedAttack, Perturb, Pixels

SHARES = 16  # a step is this share of the budget


class StoppedPGD(AimedAttack):
    """Projected gradient steps, L-infinity, that stop for each image once the wrong class leads by a margin.

    Run to the end of its budget, PGD overshoots: its wrong class leads by far more than a decision takes, and a
    detector is measured on the overshoot. An attacker who stops early is harder to tell from clean images, so rows of
    several margins, a ladder, say more than one row of PGD does.

    From the image itself, steps of epsilon / 16 along the sign of the cross-entropy's gradient, projected on the budget
    and on [0, 1]. An image is left as it is when its lead, the greatest logit of the other classes less the true
    class's (the target's less the greatest of the others, if the attack aims), is positive and at least the margin. One
    that never gets there ends where its lead was greatest. No image depends on its batch mates.

    Attributes:
        epsilon: the budget.
        margin: in logits; 0 stops at the first wrong answer.
        steps: at most.
    """

    kind: Literal["stopped_pgd"]
    epsilon: Pixels
    margin: float = Field(default=0.0, ge=0)
    steps: int = Field(default=40, ge=1)

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
                stepped = moved.detach()[on] + self.epsilon / SHARES * gradient[on].sign()
                moved = stepped.clamp(start - self.epsilon, start + self.epsilon).clamp(0, 1)
            return found

        return perturb
