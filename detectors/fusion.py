"""Fusion: one score of all detectors' components, by their p-values alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from askance.detectors.conformal import table
from askance.detectors.detector import Reading
from askance.detectors.margins import around
from askance.detectors.surprisal import Surprisal, harmonic_mean
from askance.errors import CalibrationError, listed

EVEN_ODDS = 0.01  # the harmonic mean of all p at which the untrained opinion gives even odds


def all_components(readings: Mapping[str, Reading]) -> dict[str, Tensor]:
    """Every detector's components under `<detector>/<component>`, {name: [B]}."""
    return {
        f"{detector}/{name}": values
        for detector, reading in readings.items()
        for name, values in reading.components.items()
    }


def all_two_sided(readings: Mapping[str, Reading]) -> frozenset[str]:
    """The names among `all_components` that can be untypical either way."""
    return frozenset(f"{detector}/{name}" for detector, reading in readings.items() for name in reading.two_sided)


class Fusion(nn.Module):
    """Fused score = log of the odds of an attack, added over opinions: log(sum over e of exp(o_e)).

    Each opinion is on S surprisals u_s = -log p_s (`Surprisal`): one for each of F components where its paper fixes the
    suspicious side, else one for either side. The untrained opinion, always there, is -log of their harmonic mean p
    plus log 0.01: even odds where that mean is 1%. A trained one is a logistic regression o_e = b_e + sum w_es u_s
    (`calibration.weighing`), learned from one seen attack: it knows what to look for, and the untrained one remains
    for what was never seen. Weights are never negative: no component can speak *for* an input.

    Its own conformal calibration on its own split turns the score into a p-value, whatever the dependence between
    components and however the weights were found.

    Args:
        names: of the F components, in order.
        two_sided: those among them that can be untypical either way.
        tables: their clean calibration values, sorted, float32 [F, n].
        weights: of the E trained opinions, float64 [E, S], not negative.
        biases: theirs, float64 [E].
    """

    tables: Tensor
    weights: Tensor
    biases: Tensor

    def __init__(
        self, names: tuple[str, ...], two_sided: Collection[str], tables: Tensor, weights: Tensor, biases: Tensor
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.two_sided = frozenset(two_sided)
        if weights.shape != (len(biases), self.surprisal_count) or not bool((weights >= 0).all()):
            raise CalibrationError(
                f"fusion takes {self.surprisal_count} weights for each of its {len(biases)} trained opinions, "
                f"none of them negative, got {list(weights.shape)}"
            )
        self.register_buffer("tables", tables)
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)
        self._surprisal = Surprisal(tables, torch.tensor([name in self.two_sided for name in self.names]))

    @classmethod
    def fit(cls, components: Mapping[str, Tensor], two_sided: Collection[str]) -> Fusion:
        """Tabulate the clean components {name: [n]} of the calibration split; untrained."""
        names = tuple(components)
        tables = table(torch.stack(list(components.values())).float())
        none = torch.zeros(0, len(names) + len(two_sided), dtype=torch.float64)
        return cls(names, two_sided, tables, none, none[:, 0])

    @property
    def surprisal_count(self) -> int:
        """S: one for each component, one more for each that can be untypical either way."""
        return len(self.names) + len(self.two_sided)

    def trained(self, weights: Tensor, biases: Tensor) -> Fusion:
        """The same tables with trained opinions, [E, S] and [E]."""
        return Fusion(self.names, self.two_sided, self.tables, weights, biases)

    def surprisals(self, components: Mapping[str, Tensor]) -> Tensor:
        """All surprisals of the components, {name: [B]} -> float64 [S, B], each >= 0.

        Raises:
            CalibrationError: the components are not the ones it was fitted on.
        """
        if tuple(components) != self.names:
            raise CalibrationError(f"fusion was calibrated on {listed(self.names)}; got {listed(list(components))}")
        values: Tensor = self._surprisal(torch.stack([components[name] for name in self.names]).float())
        return values

    def score(self, components: Mapping[str, Tensor]) -> Tensor:
        """Fused scores of {name: [B]}, [B], higher = more suspicious.

        Raises:
            CalibrationError: the components are not the ones it was fitted on.
        """
        return self._score(self.surprisals(components))

    def range(self, components: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The least and the greatest score, each [B], where each component is off by its margin either way.

        Surprisals rise or fall with their component, and no weight is negative: the ends are reached at the ends.
        """
        values = torch.stack([components[name] for name in self.names]).float()
        one, other = self._surprisal(torch.cat(around(values, self.tables), dim=1)).chunk(2, dim=1)
        return self._score(torch.minimum(one, other)), self._score(torch.maximum(one, other))

    def _score(self, u: Tensor) -> Tensor:
        # summed in a fixed order: a matrix product's last bits depend on the batch, and ranks on the last bits
        trained = (u * self.weights.unsqueeze(2)).sum(dim=1) + self.biases.unsqueeze(1)
        untrained = harmonic_mean(u) + math.log(EVEN_ODDS)
        return torch.cat([trained, untrained.unsqueeze(0)]).logsumexp(dim=0)
