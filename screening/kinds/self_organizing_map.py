"""Self-organizing map: its options, and what its evidence says (`detectors.self_organizing_map`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from askance.screening.options import ExplainingOptions


class SelfOrganizingMapOptions(ExplainingOptions):
    """Parameters of SelfOrganizingMap.

    Attributes:
        map_layers: the layers, one map each.
        side: units along each side of the square torus.
        epochs: passes of the batch algorithm; the neighbourhood radius shrinks geometrically over them.
        radius_end: the last radius, in units of the grid; it starts at side / 2.
        seed: of the initial units (codes drawn without replacement).
    """

    kind: ClassVar[str] = "self_organizing_map"

    map_layers: tuple[str, ...] = Field(min_length=1)
    side: int = Field(default=16, ge=2)
    epochs: int = Field(default=20, ge=1)
    radius_end: float = Field(default=0.5, gt=0)
    seed: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers with a map."""
        return self.map_layers

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """The best matching unit (row, column), its distance, and the share of clean distances at least as great."""
        side = self.side
        return {
            "layers": [
                {
                    "layer": layer,
                    "unit": [int(unit) // side, int(unit) % side],
                    "distance": round(float(distance), 4),
                    "clean_share_farther": round(float(share), 4),
                }
                for layer, unit, distance, share in zip(
                    self.layers, evidence["unit"], evidence["distance"], evidence["p"], strict=True
                )
            ]
        }
