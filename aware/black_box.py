"""Black box: attackers who have nothing but a live server's answers.

What they want is made a classifier of two outputs, "noticed" and "not", which off-the-shelf black-box attacks then fool
by asking the server: Square (Andriushchenko et al. 2020) goes by the fused score, which clients with the role scores
see, HopSkipJump (Chen et al. 2020) by class and verdict alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from askance.answers import Answer, Verdict
from askance.aware.defences import LEVELS
from askance.aware.evaluation import HEADLINE, MOVES, ByAnswers, ByDecisions, Gate
from askance.calibration.attacks import Square
from askance.calibration.attacks._foolbox import perturb_of
from askance.calibration.progress import track
from askance.calibration.rates import Rate
from askance.errors import AskanceError
from askance.judgement.arrays import Bools
from askance.service.client import Client

TOGETHER = 16  # victims attacked at a time, each by a client of its own
SHARES = (0.25, 0.5, 1.0)  # of the answers asked for, at which success is counted
NOTICED = torch.zeros(1, dtype=torch.long)  # the class that a victim is to leave
FoundT = TypeVar("FoundT")


class Server(nn.Module):
    """A live server, as a classifier of images [B, C, H, W]: output 0 leads while an image is noticed, [B, 2].

    Args:
        client: connected to it.
        noticed: above 0 while the answer for an image is not what its attacker wants.

    Attributes:
        asked: how many answers were asked for.
        succeeded_at: how many of them until the first that was wanted; None: there was none.
    """

    def __init__(self, client: Client, noticed: Callable[[Answer], float]) -> None:
        super().__init__()
        self._client, self._noticed = client, noticed
        self.asked = 0
        self.succeeded_at: int | None = None
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Ask for each image by itself."""
        lead = torch.tensor([self._ask(image) for image in pixels])
        return torch.stack([lead, torch.zeros_like(lead)], dim=1)

    def _ask(self, image: Tensor) -> float:
        sent = (image.detach().clamp(0, 1) * LEVELS).round().to(torch.uint8).numpy()
        answer = self._client.screen(sent)
        self.asked += 1
        found = self._noticed(answer)
        if found <= 0 and self.succeeded_at is None:
            self.succeeded_at = self.asked
        return found


def by_score(answer: Answer, label: int) -> float:
    """Above 1 while the classifier is right, by how sure it is; then above 0 while p is low, by the fused score."""
    assert answer.prediction is not None
    shares = np.array(answer.prediction.probabilities).clip(min=1e-12)
    if answer.prediction.index == label:
        return 1 + math.log(shares[label] / np.delete(shares, label).max())
    if answer.p_value is None or answer.score is None:
        raise AskanceError("the server keeps its scores to itself: an attack by scores needs the role scores")
    return -1.0 if answer.p_value > HEADLINE else 1 / (1 + math.exp(-answer.score))


def by_decision(answer: Answer, label: int, *, with_verdict: bool = True) -> float:
    """1 while the classifier is right, or the verdict is not CLEAN; else -1."""
    wrong = answer.prediction is not None and answer.prediction.index != label
    return -1.0 if wrong and (answer.verdict is Verdict.CLEAN or not with_verdict) else 1.0


@dataclass(frozen=True)
class BlackBox:
    """Attacks on a live server.

    Attributes:
        target: HOST:PORT.
        images: of the victims, float32 [N, C, H, W] in [0, 1].
        labels: their classes.
        guides: images of other classes, as many, to set out from.
    """

    target: str
    images: Tensor
    labels: Sequence[int]
    guides: Tensor

    def by_answers(self, epsilon: float, answers: int, white_box: Bools) -> ByAnswers:
        """Square within a budget, by as many answers for each victim; white_box: which gave way to who knows all."""
        attack = Square(name="square", kind="square", epsilon=epsilon, queries=answers)

        def one(place: int, client: Client) -> int | None:
            server = Server(client, lambda answer: by_score(answer, self.labels[place]))
            attack.perturbation(server, 2)(self.images[place : place + 1], NOTICED)
            return server.succeeded_at

        found = self._each(one, f"Square on a live server, {answers} answers each")
        unnoticed = {
            round(share * answers): np.array([at is not None and at <= share * answers for at in found])
            for share in SHARES
        }
        black, white = float(unnoticed[answers].mean()), float(white_box.mean())
        return ByAnswers(
            epsilon=epsilon,
            victims=len(found),
            unnoticed={count: Rate.of(which) for count, which in unnoticed.items()},
            gate=Gate(holds=white + MOVES > black, why=f"who knows all {white:.1%}, who sees answers {black:.1%}"),
        )

    def by_decisions(self, steps: int, evaluations: int) -> ByDecisions:
        """HopSkipJump, of any length: how far it must go to be let through, beside how far to be wrong alone."""

        def walks(what: str, *, with_verdict: bool) -> list[tuple[float, int] | None]:
            def one(place: int, client: Client) -> tuple[float, int] | None:
                return self._walk(place, client, steps, evaluations, with_verdict=with_verdict)

            return self._each(one, f"HopSkipJump on a live server, {what}")

        with_verdicts = walks("class and verdict", with_verdict=True)
        without = walks("class alone", with_verdict=False)
        both = [(one[0], other[0]) for one, other in zip(with_verdicts, without, strict=True) if one and other]
        arrived = [one for one in with_verdicts if one]
        return ByDecisions(
            victims=len(with_verdicts),
            unnoticed=Rate.of(np.array([one is not None for one in with_verdicts])),
            answers=round(median(asked for _, asked in arrived)) if arrived else 0,
            distance=median(one for one, _ in both) / median(other for _, other in both) if both else None,
        )

    def _walk(
        self, place: int, client: Client, steps: int, evaluations: int, *, with_verdict: bool
    ) -> tuple[float, int] | None:
        """(L2 to the image, answers asked for); None where no guide is let through."""
        from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack

        server = Server(client, lambda answer: by_decision(answer, self.labels[place], with_verdict=with_verdict))
        image = self.images[place : place + 1]
        start = self._start(server, place)
        if start is None:
            return None
        attack = HopSkipJumpAttack(steps=steps, initial_gradient_eval_steps=evaluations)
        found = perturb_of(server, attack, starting_points=start)(image, NOTICED)
        return float((found - image).norm()), server.asked

    def _start(self, server: Server, place: int) -> Tensor | None:
        """The victim's guide, or the nearest other that is let through."""
        order = [place, *(other for other in range(len(self.guides)) if other != place)]
        for other in order:
            guide = self.guides[other : other + 1]
            if float(server(guide)[0, 0]) <= 0:
                return guide
        return None

    def _each(self, attack: Callable[[int, Client], FoundT], what: str) -> list[FoundT]:
        with ThreadPoolExecutor(TOGETHER) as pool, Client(self.target) as client:
            running = [pool.submit(attack, place, client) for place in range(len(self.images))]
            return [future.result() for future in track(running, what)]
