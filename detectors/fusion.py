"""Fusion: one score of all detectors' components, untrained: the sum of the logarithms of two-sided p-values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detectors.conformal import table, two_sided_p_value
from detectors.detector import Reading
from detectors.errors import CalibrationError


def all_components(readings: Mapping[str, Reading]) -> dict[str, Tensor]:
    """Every detector's components under `<detector>/<component>`, {name: [B]}."""
    return {
        f"{detector}/{name}": values
        for detector, reading in readings.items()
        for name, values in reading.components.items()
    }


class Fusion(nn.Module):
    """Fused score = -sum over components of log p, p two-sided against the clean calibration split.

    A reading can be untypical on either side (a strong PGD makes a classifier more confident than any clean image
    does), hence two-sided; Fisher's sum needs no attack to train on, hence every attack is unseen. The components
    depend on one another, so the sum has no known distribution: its own conformal calibration on its own split is
    what turns it into a p-value (science.md, section 6).

    Buffer: `tables` [F, n], the components' sorted clean values, rows in the order of `names`.
    """

    tables: Tensor

    def __init__(self, names: tuple[str, ...], tables: Tensor) -> None:
        super().__init__()
        self.names = names
        self.register_buffer("tables", tables)

    @classmethod
    def fit(cls, components: Mapping[str, Tensor]) -> Fusion:
        """Tabulate the clean components {name: [n]} of the calibration split."""
        return cls(tuple(components), table(torch.stack(list(components.values())).float()))

    def score(self, components: Mapping[str, Tensor]) -> Tensor:
        """Fused scores of {name: [B]}, [B], higher = more suspicious.

        Raises:
            CalibrationError: the components are not the ones it was fitted on.
        """
        if tuple(components) != self.names:
            raise CalibrationError(f"fusion was calibrated on {list(self.names)}, got {list(components)}")
        values = torch.stack([components[name] for name in self.names]).float()
        return -two_sided_p_value(values, self.tables).log().sum(dim=0)
