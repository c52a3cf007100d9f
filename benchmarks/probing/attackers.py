"""Attackers who have nothing but a live server's answers: by scores, by decisions, and who knows what is looked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import eagerpy as ep
import grpc
import torch
from torch import Tensor, nn

from askance.answers import Answer
from askance.aware.black_box import NOTICED, Server
from askance.calibration.attacks import SPSA, Square
from askance.calibration.attacks._foolbox import perturb_of
from askance.service.client import Client
from askance.service.client_messages import ServiceError

UNEVEN, UNEVEN_STEPS = (0.3, 0.7), 12  # of the way left, where who knows divides it, and how often
SIGMA, PAIRS = 0.01, 20  # of NES: of its noise, and how many it asks for in a step
Attacker = Callable[[Any, Tensor, Tensor], object]
"""Attacks a model's image [1, C, H, W], with an image of another class."""


class RefusedError(Exception):
    """The server answers this client no more, or it has asked enough."""


class Asking(Server):
    """A live server that clients ask in turn, until it refuses one.

    Args:
        clients: connected to it.
        wanted: at most 0 once an answer is.
        most: questions.
    """

    def __init__(self, clients: Sequence[Client], wanted: Callable[[Answer], float], most: int) -> None:
        super().__init__(clients[0], wanted)
        self._clients, self._most = clients, most

    def _ask(self, image: Tensor) -> float:
        if self.asked == self._most:
            raise RefusedError
        self._client = self._clients[self.asked % len(self._clients)]
        try:
            return super()._ask(image)
        except ServiceError as error:
            if error.code is grpc.StatusCode.PERMISSION_DENIED:
                raise RefusedError from None
            raise


def nes(model: nn.Module, image: Tensor, epsilon: float, *, in_pairs: bool = True, steps: int = 100) -> None:
    """NES, by the sign of the gradient (Ilyas et al. 2018); antithetic, or by noise that a camera sends, too."""
    current = image
    for _ in range(steps):
        noise = torch.randn(PAIRS if in_pairs else 2 * PAIRS, *image.shape[1:])
        asked = torch.stack([noise, -noise], dim=1).flatten(0, 1) if in_pairs else noise
        leads = model(current + SIGMA * asked)[:, 0]
        slope = ((leads - leads.mean())[:, None, None, None] * asked).mean(dim=0, keepdim=True)
        current = (image + (current - epsilon / 10 * slope.sign() - image).clamp(-epsilon, epsilon)).clamp(0, 1)


def unevenly(attack: Any) -> Any:
    """A HopSkipJump that divides ways at uneven places, not in halves."""
    project = attack._project

    def search(is_adversarial: Callable[[Any], Any], originals: Any, perturbed: Any) -> Any:
        low, high = 0.0, 1.0
        for _ in range(UNEVEN_STEPS):
            middle = low + (high - low) * float(torch.empty(()).uniform_(*UNEVEN))
            between = project(originals, perturbed, ep.full(originals, (1,), middle))
            low, high = (low, middle) if is_adversarial(between).item() else (middle, high)
        return project(originals, perturbed, ep.full(originals, (1,), high))

    attack._binary_search = search
    return attack


def by_decisions(attack: Any) -> Attacker:
    """Sets out from the other image."""
    return lambda model, image, other: perturb_of(model, attack, starting_points=other)(image, NOTICED)


def attacks(epsilon: float) -> dict[str, tuple[bool, Attacker]]:
    """By name: whether it goes by scores, and who attacks."""
    from foolbox.attacks.boundary_attack import BoundaryAttack
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack

    def by_pixels(attack: Square | SPSA) -> Attacker:
        return lambda model, image, _: attack.perturbation(model, 2)(image, NOTICED)

    return {
        "Square": (True, by_pixels(Square(name="square", kind="square", epsilon=epsilon, queries=1000))),
        "NES": (True, lambda model, image, _: nes(model, image, epsilon)),
        "SPSA": (True, by_pixels(SPSA(name="spsa", kind="spsa", epsilon=epsilon))),
        "HopSkipJump": (False, by_decisions(HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=40))),
        "HopSkipJump, 100 at first": (
            False,
            by_decisions(HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=100)),
        ),
        "HopSkipJump, who knows": (
            False,
            by_decisions(unevenly(HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=40))),
        ),
        "NES, who knows": (True, lambda model, image, _: nes(model, image, epsilon, in_pairs=False)),
        "Boundary": (False, by_decisions(BoundaryAttack(steps=1000))),
    }
