"""Semantic signature: its options, and what its evidence says (`detectors.semantic_signature`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from askance.screening.options import ExplainingOptions


class SemanticSignatureOptions(ExplainingOptions):
    """Parameters of SemanticSignature.

    Attributes:
        semantic_layers: the layers of the signature, shallow to deep.
        images_per_concept: how many correctly classified images average to a concept's reference activation.
        shrinkage: weight of the diagonal in the regularised covariance of the margins, in [0, 1].
    """

    kind: ClassVar[str] = "semantic_signature"

    semantic_layers: tuple[str, ...] = Field(min_length=1)
    images_per_concept: int = Field(default=100, ge=1)
    shrinkage: float = Field(default=0.1, ge=0, le=1)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the signature, shallow to deep."""
        return self.semantic_layers

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """The profile over the layers: the share of 1-vs-2 tests won by the predicted class, and the mean margin."""
        return {
            "untypicality": round(float(evidence["distance"]), 4),
            "layers": [
                {"layer": layer, "one_versus_two": round(float(share), 4), "margin": round(float(margin), 4)}
                for layer, share, margin in zip(self.layers, evidence["passes"], evidence["margins"], strict=True)
            ],
        }
