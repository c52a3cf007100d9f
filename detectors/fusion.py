"""Fusion: one score of all detectors' components, untrained: the harmonic mean of their p-values."""

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
    """Fused score = -log of the harmonic mean of the components' p-values against the clean calibration split.

    p is one-sided where a component's paper fixes the suspicious side, else two-sided (`harmonic_suspicion` says why
    this mean). It needs no attack to train on, hence every attack is unseen. Its own conformal calibration on its own
    split turns it into a p-value, whatever the dependence between components.

    Args:
        names: of the F components, in order.
        two_sided: those of them that can be untypical either way.
        tables: their sorted clean values, [F, n] (a buffer).
    """

    tables: Tensor
    either_way: Tensor

    def __init__(self, names: tuple[str, ...], two_sided: Collection[str], tables: Tensor) -> None:
        super().__init__()
        self.names = names
        self.two_sided = frozenset(two_sided)
        self.register_buffer("tables", tables)
        self.register_buffer(
            "either_way", torch.tensor([name in two_sided for name in names])[:, None], persistent=False
        )

    @classmethod
    def fit(cls, components: Mapping[str, Tensor], two_sided: Collection[str]) -> Fusion:
        """Tabulate the clean components {name: [n]} of the calibration split."""
        return cls(tuple(components), two_sided, table(torch.stack(list(components.values())).float()))

    def score(self, components: Mapping[str, Tensor]) -> Tensor:
        """Fused scores of {name: [B]}, [B], higher = more suspicious.

        Raises:
            CalibrationError: the components are not the ones it was fitted on.
        """
        if tuple(components) != self.names:
            raise CalibrationError(f"fusion was calibrated on {list(self.names)}, got {list(components)}")
        values = torch.stack([components[name] for name in self.names]).float()
        upper, either = p_value(values, self.tables), two_sided_p_value(values, self.tables)
        return harmonic_suspicion(torch.where(self.either_way, either, upper))
