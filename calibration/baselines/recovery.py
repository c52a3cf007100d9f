"""The baseline of recovery testing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from askance.calibration.baselines._unusual import Unusual
from askance.calibration.baselines.baseline import Baseline
from askance.calibration.baselines.observation import Need, Observation
from askance.errors import CalibrationError

WIDTH, DEPTH = 128, 4  # of each adapter, as published
BATCH, EPOCHS, RATE, DECAY = 64, 40, 1e-3, 1e-2
LEAST = 1e-8


class Recovery(Baseline):
    """How badly, and how unevenly, earlier layers are recovered from the deepest one by small networks.

    With e_l the squared error at layer l of L and p = softmax(e): sum over l of (log L + p_l log p_l), times
    log(mean e); its normal quantile among clean images, squared, for both sides are suspicious. Fitted for fewer steps
    than published, at ten times the rate.
    """

    name: ClassVar[str] = "recovery"
    title: ClassVar[str] = "recovery testing, Yun et al. (2025)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES})

    def fit(self, clean: Observation, tune: Observation, seen: Sequence[Observation]) -> Self:  # noqa: ARG002
        """Learn to recover the layers of clean images, and what is usual of others.

        Raises:
            CalibrationError: there are fewer than three layers to recover one from another.
        """
        *earlier, deepest = (layer.float() for layer in clean.hidden)
        if len(earlier) < 2:  # of one by itself nothing is uneven
            raise CalibrationError(
                f"the baseline recovery needs three tapped layers before the logits, got {len(earlier) + 1}: tap more, "
                "or leave it out"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._adapters: list[nn.Module] = [_adapter(deepest.shape[1], layer.shape[1]) for layer in earlier]
            _train(self._adapters, deepest, earlier)
        self._usual = Unusual(self._recovered(tune))
        return self

    def score(self, inputs: Observation) -> Tensor:
        """In [0, inf)."""
        return self._usual(self._recovered(inputs))

    @torch.no_grad()
    def _recovered(self, inputs: Observation) -> Tensor:
        *earlier, deepest = (layer.float() for layer in inputs.hidden)
        errors = torch.stack(
            [
                (layer - adapter(deepest)).double().square().sum(dim=1)
                for adapter, layer in zip(self._adapters, earlier, strict=True)
            ],
            dim=1,
        )
        shares = errors.softmax(dim=1)
        uneven = math.log(len(earlier)) + shares * (shares + LEAST).log()
        return (uneven * (errors.mean(dim=1, keepdim=True) + LEAST).log()).sum(dim=1)


def _adapter(inputs: int, outputs: int) -> nn.Sequential:
    """[B, inputs] -> [B, outputs]."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH - 1):
        layers += [nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
        inputs = WIDTH
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _train(adapters: Sequence[nn.Module], deepest: Tensor, earlier: Sequence[Tensor]) -> None:
    """By the mean squared error of each layer; the adapters end in eval mode."""
    optimizer = torch.optim.AdamW([p for one in adapters for p in one.parameters()], lr=RATE, weight_decay=DECAY)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(deepest)).split(BATCH):
            if len(rows) == 1:  # of which no batch normalisation can be made
                continue
            optimizer.zero_grad()
            losses = [F.mse_loss(a(deepest[rows]), layer[rows]) for a, layer in zip(adapters, earlier, strict=True)]
            torch.stack(losses).sum().backward()
            optimizer.step()
    for adapter in adapters:
        adapter.eval()
