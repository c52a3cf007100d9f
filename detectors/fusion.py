"""Fusion: one score of all detectors' components, by their p-values alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from detectors.conformal import harmonic_suspicion, p_value, table, two_sided_p_value
from detectors.detector import Reading
from detectors.errors import CalibrationError


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
    """Fused score = sum over f of w_f u_f, with u_f = -log p_f for each of F components, and one more u, below.

    p is one-sided where a component's paper fixes the suspicious side, else two-sided. No component can speak *for* an
    input: at its most typical it adds 0. The last u is -log of the harmonic mean of all p (`harmonic_suspicion`): a few
    strongly untypical readings speak among many typical ones. The weights are never negative: a score rises with every
    suspicion. Untrained, only that last u counts; trained, the weights come from `calibration.weighing`.

    Its own conformal calibration on its own split turns the score into a p-value, whatever the dependence between
    components and however the weights were found.

    Args:
        names: of the F components, in order.
        two_sided: those among them that can be untypical either way.
        tables: their clean calibration values, sorted, float32 [F, n].
        weights: float64 [F + 1], not negative.
    """

    tables: Tensor
    weights: Tensor
    either_way: Tensor

    def __init__(self, names: tuple[str, ...], two_sided: Collection[str], tables: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.names = tuple(names)
        self.two_sided = frozenset(two_sided)
        if weights.shape != (len(self.names) + 1,) or not bool((weights >= 0).all()):
            raise CalibrationError(
                f"fusion of {len(self.names)} components takes {len(self.names) + 1} weights, none of them negative"
            )
        self.register_buffer("tables", tables)
        self.register_buffer("weights", weights)
        self.register_buffer(
            "either_way", torch.tensor([name in self.two_sided for name in self.names]).unsqueeze(1), persistent=False
        )

    @classmethod
    def fit(cls, components: Mapping[str, Tensor], two_sided: Collection[str]) -> Fusion:
        """Tabulate the clean components {name: [n]} of the calibration split; untrained."""
        names = tuple(components)
        weights = torch.zeros(len(names) + 1, dtype=torch.float64)
        weights[-1] = 1
        return cls(names, two_sided, table(torch.stack(list(components.values())).float()), weights)

    def weighed(self, weights: Tensor) -> Fusion:
        """The same tables under other weights, [F + 1]."""
        return Fusion(self.names, self.two_sided, self.tables, weights)

    def suspicions(self, components: Mapping[str, Tensor]) -> Tensor:
        """u of every component and of their harmonic mean, {name: [B]} -> float64 [F + 1, B], each >= 0.

        Raises:
            CalibrationError: the components are not the ones it was fitted on.
        """
        if tuple(components) != self.names:
            raise CalibrationError(f"fusion was calibrated on {list(self.names)}, got {list(components)}")
        values = torch.stack([components[name] for name in self.names]).float()
        upper, either = p_value(values, self.tables), two_sided_p_value(values, self.tables)
        p = torch.where(self.either_way, either, upper)
        return torch.cat([-p.log(), harmonic_suspicion(p).unsqueeze(0)])

    def score(self, components: Mapping[str, Tensor]) -> Tensor:
        """Fused scores of {name: [B]}, [B], higher = more suspicious.

        Raises:
            CalibrationError: the components are not the ones it was fitted on.
        """
        # summed in a fixed order: a matrix product's last bits depend on the batch, and ranks on the last bits
        return (self.suspicions(components) * self.weights.unsqueeze(1)).sum(dim=0)
