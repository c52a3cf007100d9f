"""APGD: projected gradient steps whose size follows the loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from askance.calibration.attacks._autoattack import LIBRARIES, perturb_of
from askance.calibration.attacks.attack import Attack, Perturb, Pixels
from askance.errors import ConfigError

DLR_CLASSES = 3  # that the difference of logits ratio compares


class APGD(Attack):
    """Auto-PGD, L-infinity: a step that halves itself when the loss stalls (Croce and Hein 2020).

    One restart. An image that it cannot fool stays as it is.

    Attributes:
        epsilon: the budget.
        loss: "ce" (cross-entropy), or "dlr", the difference of logits ratio, which no scale of the logits flattens and
            which needs three classes.
        steps: of the gradient.
    """

    kind: Literal["apgd"]
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES
    epsilon: Pixels
    loss: Literal["ce", "dlr"] = "ce"
    steps: int = Field(default=100, ge=1)

    def check(self, classes: int) -> None:
        """Refuse a loss that needs more classes than there are.

        Raises:
            ConfigError: it does.
        """
        if self.loss == "dlr" and classes < DLR_CLASSES:
            raise ConfigError(f'attack {self.name}: the loss "dlr" needs 3 classes, there are {classes}: take "ce"')

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:  # noqa: ARG002
        """All steps."""
        from pyautoattack.autopgd_base import APGDAttack

        return perturb_of(APGDAttack, predict=predict, n_iter=self.steps, eps=self.epsilon, loss=self.loss)
