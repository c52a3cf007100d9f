"""Attackers with accounts without end: what they use up is counted, and where they have what they want they stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from askance.answers import Answer, Prediction, Verdict
from askance.service.client_messages import ServiceError
from benchmarks.probing import renewing
from benchmarks.probing.field import Accounts
from benchmarks.probing.renewing import EndedError, Renewing, oars

VICTIM = torch.full((1, 1, 2, 2), 0.5)


class Scripted:
    """Accounts, each blocked after so many answers; who sends an image brighter than .6 is let through."""

    def __init__(self, lasts: Sequence[int]) -> None:
        self._lasts = iter(lasts)
        self.sent: list[NDArray[np.uint8]] = []

    def take(self) -> tuple[str, Any]:
        return "c", Account(self, next(self._lasts))


class Account:
    def __init__(self, all_of_them: Scripted, lasts: int) -> None:
        self._all, self._left = all_of_them, lasts

    def screen(self, image: NDArray[np.uint8]) -> Answer:
        if not self._left:
            raise ServiceError(grpc.StatusCode.PERMISSION_DENIED, "it looks like an attack")
        self._left -= 1
        self._all.sent.append(image)
        return Answer(Prediction(int(image.mean() > 0.6 * 255), "", (0.5, 0.5)), Verdict.CLEAN)


def asking(lasts: Sequence[int], epsilon: float = 0.2) -> tuple[Renewing, Scripted]:
    scripted = Scripted(lasts)

    def noticed(answer: Answer) -> float:
        assert answer.prediction is not None
        return 1.0 - 2 * answer.prediction.index

    return Renewing(cast(Accounts, scripted), noticed, VICTIM, epsilon), scripted


def test_who_is_blocked_goes_on_by_another_account() -> None:
    model, scripted = asking([2, 0, 5])
    assert model(VICTIM.repeat(4, 1, 1, 1))[:, 0].tolist() == [1.0] * 4
    assert (model.asked, model.blocked, model.done, len(scripted.sent)) == (4, 2, False, 4)


def test_it_ends_with_what_was_wanted_near_enough() -> None:
    model, _ = asking([10])
    far = torch.full((1, 1, 2, 2), 0.9)
    assert model(far)[:, 0].tolist() == [-1.0]  # let through, but too far from the victim
    with pytest.raises(EndedError):
        model(VICTIM + 0.15)
    assert (model.asked, model.done) == (2, True)


def test_it_ends_without_accounts_or_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "ACCOUNTS", 3)
    monkeypatch.setattr(renewing, "MOST", 5)
    for lasts, counted in (([1, 1, 1], (3, 3)), ([9], (5, 0))):
        model, _ = asking(lasts)
        with pytest.raises(EndedError):
            model(VICTIM.repeat(9, 1, 1, 1))
        assert (model.asked, model.blocked, model.done) == (*counted, False)


def test_oars_asks_from_further_away_where_it_was_blocked_and_then_from_nearer() -> None:
    """A step is 40 questions; the account lasts one step and a half."""
    torch.manual_seed(0)
    model, scripted = asking([60, 5000], epsilon=0.01)  # what it may reach is never let through

    def spread(step: int) -> float:
        rows: Tensor = torch.from_numpy(np.stack(scripted.sent[40 * step : 40 * (step + 1)]).astype(np.float32))
        return float(rows.std(dim=0).mean())

    with pytest.raises(EndedError):
        oars(model, VICTIM, 0.01)
    assert spread(2) == pytest.approx(2 * spread(0), rel=0.35)
    assert spread(4) == pytest.approx(spread(0), rel=0.35)
