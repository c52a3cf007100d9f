"""Constellation: its options, and what its evidence says (`detectors.constellation`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from askance.screening.options import ExplainingOptions


class ConstellationOptions(ExplainingOptions):
    """Parameters of Constellation.

    Attributes:
        displacement_layers: the layers in which displacements are measured.
        noise_views: how many views of each input are noisy.
        noise: standard deviation of the noise, in pixel values.
        bit_depths: one view for each, rounded to so many bits a channel.
        median_sizes: one view for each, median-filtered by a square of so many pixels.
        seed: of the noise, which is drawn once and kept (secret) in the bundle; None: one of the operating system's,
            which nobody knows: the manifest names what is named here.
    """

    kind: ClassVar[str] = "constellation"

    displacement_layers: tuple[str, ...] = Field(min_length=1)
    noise_views: int = 1
    noise: float = Field(default=0.02, gt=0)
    bit_depths: tuple[int, ...] = (4,)
    median_sizes: tuple[int, ...] = (2,)
    seed: int | None = None

    @field_validator("noise_views")
    @classmethod
    def _some(cls, value: int) -> int:
        if value < 1:
            raise ValueError("at least one noisy view is needed; to do without the constellation leave its section out")
        return value

    def groups(self) -> dict[str, int]:
        """The kinds of views by name, in order, and how many there are of each."""
        return (
            {"noise": self.noise_views}
            | {f"bits_{bits}": 1 for bits in self.bit_depths}
            | {f"median_{size}": 1 for size in self.median_sizes}
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers in which displacements are measured."""
        return self.displacement_layers

    @property
    def view_layers(self) -> tuple[str, ...]:
        """The same."""
        return self.displacement_layers

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Every reading, and the share of clean inputs whose answer shifts, and whose grain is, at least as much."""
        kinds = self.groups()
        names = [f"{name}:{kind}" for name in ("drop", "shift") for kind in kinds]
        names += [f"displacement:{layer}:{kind}" for layer in self.layers for kind in kinds]
        names += [f"grain:{layer}" for layer in self.layers if self.median_sizes]
        shares = zip(("shift", "grain"), evidence["p"], strict=False)
        return {
            "readings": {name: round(float(value), 6) for name, value in zip(names, evidence["values"], strict=True)},
            "clean_share_above": {name: round(float(share), 4) for name, share in shares},
        }
