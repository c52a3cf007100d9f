"""The Square attack: random squares, without gradients."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from askance.calibration.attacks._autoattack import LIBRARIES, perturb_of
from askance.calibration.attacks.attack import Attack, Perturb, Pixels


class Square(Attack):
    """Squares at random places, kept where they help, without gradients, L-infinity (Andriushchenko et al. 2020).

    An image that it cannot fool stays as it is.

    Attributes:
        epsilon: the budget.
        queries: answers asked for, at most, for each image.
        first_share: of the image, that the first squares cover.
    """

    kind: Literal["square"]
    needs_gradients: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    epsilon: Pixels
    queries: int = Field(default=5000, ge=1)
    first_share: float = Field(default=0.8, gt=0, le=1)

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All queries."""
        from pyautoattack.square import SquareAttack

        return perturb_of(
            SquareAttack, predict=predict, eps=self.epsilon, n_queries=self.queries, p_init=self.first_share
        )
