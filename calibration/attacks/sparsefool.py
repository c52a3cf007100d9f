"""SparseFool: few pixels, by DeepFool's boundary."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from askance.calibration.attacks._foolbox import perturb_of
from askance.calibration.attacks._lead import lead
from askance.calibration.attacks.attack import Attack, Perturb

DEEPFOOL_STEPS, DEEPFOOL_OVERSHOOT = 50, 0.02


class SparseFool(Attack):
    """Few pixel values, each within [0, 1], to a boundary that DeepFool linearises (Modas et al. 2019, algorithm 2).

    Each step takes DeepFool's perturbation times `reach` for a point of the boundary, and goes to the plane through it
    by as few values as it can: the one that the plane leans on most is moved first, as far as it takes or as [0, 1]
    lets it. An image that it cannot fool ends where the last step led.

    Attributes:
        steps: at most.
        reach: times DeepFool's perturbation; more takes fewer steps and more pixels (the paper's lambda).
        overshoot: share by which the plane is overstepped.
    """

    kind: Literal["sparsefool"]
    steps: int = Field(default=20, ge=1)
    reach: float = Field(default=1.0, ge=1)
    overshoot: float = Field(default=0.02, ge=0)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """All steps."""
        from foolbox.attacks.deepfool import L2DeepFoolAttack

        nearest = perturb_of(
            predict, L2DeepFoolAttack(steps=DEEPFOOL_STEPS, candidates=classes, overshoot=DEEPFOOL_OVERSHOOT)
        )

        def perturb(images: Tensor, labels: Tensor) -> Tensor:
            found, moved, going = images.clone(), images.clone(), torch.arange(len(images))
            for _ in range(self.steps):
                with torch.no_grad():
                    going = going[lead(predict(found[going]), labels[going]) <= 0]
                if len(going) == 0:
                    break
                start, label = moved[going], labels[going]
                moved[going] = towards_plane(start, *self._plane(predict, start, nearest(start, label), label))
                overstepped = images[going] + (1 + self.overshoot) * (moved[going] - images[going])
                overstepped = overstepped.clamp(0, 1)
                with torch.no_grad():  # a step further is not always further over
                    over = lead(predict(overstepped), label) > 0
                found[going] = torch.where(over[:, None, None, None], overstepped, moved[going])
            return found

        return perturb

    def _plane(self, predict: nn.Module, start: Tensor, near: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The planes to go to: normals, towards the wrong class, and points, [n, C, H, W] each.

        Through `reach` times DeepFool's perturbation; where that plane bends back behind the image, DeepFool's own.
        """
        far = start + self.reach * (near - start)
        normal = _normal(predict, far, labels)
        bent = (normal * (far - start)).flatten(1).sum(dim=1) <= 0
        if not bool(bent.any()):
            return normal, far
        bent = bent[:, None, None, None]
        return torch.where(bent, _normal(predict, near, labels), normal), torch.where(bent, near, far)


def _normal(predict: nn.Module, boundary: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the wrong class's lead at points of the boundary, [n, C, H, W]."""
    boundary = boundary.detach().requires_grad_()
    (normal,) = torch.autograd.grad(lead(predict(boundary), labels).sum(), boundary)
    return normal


def towards_plane(start: Tensor, normal: Tensor, point: Tensor) -> Tensor:
    """Move images to planes by as few pixel values as possible (Modas et al. 2019, algorithm 1).

    Args:
        start: images [N, C, H, W] in [0, 1].
        normal, point: of each image's plane, [N, C, H, W] each.

    Returns:
        Images in [0, 1] on their planes, or as far towards them as [0, 1] lets them; one beyond its plane as it was.
    """
    x, w = start.flatten(1), normal.flatten(1)
    need = (w * (point.flatten(1) - x)).sum(dim=1, keepdim=True).clamp(min=0)
    room = torch.where(w > 0, 1 - x, x)
    order = w.abs().argsort(dim=1, descending=True, stable=True)
    gain = (w.abs() * room).gather(1, order)  # towards the plane, at most, by each value
    taken = torch.minimum(gain, (need - (gain.cumsum(dim=1) - gain)).clamp(min=0))
    step = torch.zeros_like(x).scatter(1, order, taken) / w.abs().clamp(min=torch.finfo(w.dtype).tiny)
    return (x + w.sign() * step).clamp(0, 1).view_as(start)
