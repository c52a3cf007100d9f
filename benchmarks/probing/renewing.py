"""Renewing: what an attack costs whoever has accounts without end, and goes on by another one when one is blocked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc
import torch
from torch import Tensor

from askance.answers import Answer
from askance.aware.black_box import Server, by_decision, by_score
from askance.calibration.images import Images
from askance.calibration.progress import track
from askance.service.client_messages import ServiceError
from benchmarks.probing.attackers import PAIRS, SIGMA, Attacker, attacks, by_decisions
from benchmarks.probing.field import Accounts, Field, guarded

MOST = 2000  # questions of an attacker
ACCOUNTS = 100  # of an attacker, at most
ROUNDING = 1 / 255  # of what is sent
MOST_SCALE = 64.0  # of the noise, beside that of NES


class EndedError(Exception):
    """The attacker has what it wants, or has asked enough, or has no account left."""


@dataclass(frozen=True)
class Renewed:
    """What became of an attack.

    Attributes:
        attack: which.
        victims: how often it was tried.
        done: how often it had what it wanted, within MOST questions and ACCOUNTS accounts.
        questions: that were answered to those, the median, and the most.
        accounts: that those used up, likewise.
    """

    attack: str
    victims: int
    done: int
    questions: tuple[int, int] | None
    accounts: tuple[int, int] | None


class Renewing(Server):
    """A live server, asked by another account as often as one is blocked, until the attacker has what it wants.

    Args:
        accounts: to take.
        noticed: above 0 while an answer is not what the attacker wants.
        victim: [1, C, H, W].
        epsilon: how far from the victim what it wants may be, L-infinity.

    Attributes:
        blocked: how many accounts were.
        done: whether the attacker has what it wants.
    """

    def __init__(self, accounts: Accounts, noticed: Callable[[Answer], float], victim: Tensor, epsilon: float) -> None:
        super().__init__(accounts.take()[1], noticed)
        self._accounts, self._victim, self._epsilon = accounts, victim[0], epsilon
        self.blocked, self.done = 0, False

    def _ask(self, image: Tensor) -> float:
        if self.asked == MOST:
            raise EndedError
        while True:
            try:
                found = super()._ask(image)
                break
            except ServiceError as error:
                if error.code is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
            self.blocked += 1
            if self.blocked == ACCOUNTS:
                raise EndedError
            self._client = self._accounts.take()[1]
        if found <= 0 and float((image - self._victim).abs().max()) <= self._epsilon + ROUNDING:
            self.done = True
            raise EndedError
        return found


def oars(model: Renewing, image: Tensor, epsilon: float) -> None:
    """NES that adapts: where its account is blocked it asks from further away and goes further, else from nearer.

    Feng et al., "Stateful defenses for machine learning models are not yet secure against black-box attacks" (2023):
    the scale of the noise, and of the steps, is the least at which questions are not refused. Noise without pairs.
    """
    current, scale = image, 1.0
    while True:
        before, noise = model.blocked, torch.randn(2 * PAIRS, *image.shape[1:])
        leads = model(current + SIGMA * scale * noise)[:, 0]
        slope = ((leads - leads.mean())[:, None, None, None] * noise).mean(dim=0, keepdim=True)
        step = min(epsilon / 10 * scale, epsilon)
        current = (image + (current - step * slope.sign() - image).clamp(-epsilon, epsilon)).clamp(0, 1)
        scale = min(2 * scale, MOST_SCALE) if model.blocked > before else max(scale / 2, 1.0)


def renewing(bundle: Path, images: Images, epsilon: float, victims: int, most_alike: int) -> Iterator[Renewed]:
    """Attack a live server, each by accounts, and a victim, of its own."""
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack

    field = Field.of(bundle, images)
    nearest = HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=40, constraint="linf")
    by_name: dict[str, tuple[bool, Attacker]] = attacks(epsilon) | {
        "HopSkipJump, L-infinity": (False, by_decisions(nearest)),
        "OARS": (True, lambda model, image, _: oars(model, image, epsilon)),
    }
    with guarded(bundle, victims * len(by_name) * ACCOUNTS, most_alike) as (_, accounts):
        for place, (name, (by_scores, attack)) in enumerate(by_name.items()):
            spent = []
            for row in track(field.victims[place * victims : (place + 1) * victims], f"{name}, accounts without end"):
                image, start, label = field.victim(row)
                by = by_score if by_scores else by_decision
                model = Renewing(accounts, lambda answer, by=by, y=label: by(answer, y), image, epsilon)  # type: ignore[misc]
                torch.manual_seed(row)
                with suppress(EndedError):
                    attack(model, image, start)
                if model.done:
                    spent.append((model.asked, model.blocked + 1))
            yield Renewed(name, victims, len(spent), _middle([q for q, _ in spent]), _middle([a for _, a in spent]))


def _middle(counts: Sequence[int]) -> tuple[int, int] | None:
    return (round(median(counts)), max(counts)) if counts else None
