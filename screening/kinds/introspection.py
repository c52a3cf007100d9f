"""Introspection: its options, and what its evidence says (`detectors.introspection`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from askance.screening.options import ExplainingOptions

ERROR_FLOOR = 1e-6  # of e, before the logarithm: a confident network's long tail would rule the loss otherwise


class IntrospectionOptions(ExplainingOptions):
    """Parameters of Introspection.

    Attributes:
        hidden_layers: the layers whose activations are concatenated to h.
        latent_dimensions: z; 2 keeps the map drawable.
        estimator_reads: "hidden", the encoder's last hidden layer before projection (200 numbers), or "latent", z
            itself as in the paper. Both estimators are fitted; this one is the score.
        discrepancy_weight: lambda, the weight of the MMD beside 1/2 ||h_hat - h||^2 (which grows with D_h).
        cycles: triangular learning-rate cycles, at most, of the autoencoder and of each estimator.
        cycle_steps: gradient steps per cycle.
        peak_learning_rate: the top of the cycle.
        patience: cycles without improvement before stopping (5 in the paper).
        seed: of initial weights, prior draws, shuffling and the validation split.
    """

    kind: ClassVar[str] = "introspection"

    hidden_layers: tuple[str, ...] = Field(min_length=1)
    latent_dimensions: int = Field(default=2, ge=1)
    estimator_reads: Literal["hidden", "latent"] = "hidden"
    discrepancy_weight: float = Field(default=100.0, ge=0)
    cycles: int = Field(default=16, ge=1)
    cycle_steps: int = Field(default=500, ge=2)
    peak_learning_rate: float = Field(default=1e-3, gt=0)
    patience: int = Field(default=5, ge=1)
    seed: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of h."""
        return self.hidden_layers

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """The point on the activation map, the estimated error and confidence -log10 e."""
        return {
            "map_point": [round(float(coordinate), 4) for coordinate in evidence["point"]],
            # the range of the estimator's target, which its linear end can leave
            "estimated_error": float(f"{min(1.0, max(ERROR_FLOOR, 10 ** min(0.0, float(evidence['error'])))):.3g}"),
            "confidence": round(-float(evidence["error"]), 4),
            "log10_reconstruction_error": round(float(evidence["reconstruction"]), 4),
        }
