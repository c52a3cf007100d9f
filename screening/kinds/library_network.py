"""Library network: its options, and what its evidence says (`detectors.library_network`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from askance.screening.options import ExplainingOptions

Rows = Annotated[int, Field(ge=1)]


class LibraryNetworkOptions(ExplainingOptions):
    """Parameters of LibraryNetwork.

    Attributes:
        thresholds: novelty threshold theta_l of each layer, in order of depth; the higher, the larger the library.
        rows: in place of `thresholds`, about how large a library is to be, {layer: rows} or one number for all of
            `library_layers`: the thresholds are then found on a sample of what is fitted on (`settle`).
        library_layers: the layers, in order of depth, where `rows` is one number.
        neighbors: k of Eq. 3, how many of the most similar rows speak (3 in the paper for MNIST, 8 for ResNet44).
        softmax: softmax P before correlating, as the author's code does and the paper does not.
        sampled_neurons: if set, each library sees only this many randomly chosen neurons of its layer ("sparse
            sampling", the paper's section 3.3): it bounds memory and look-up and hides the reference points.
        seed: of the sampling, which is done once and kept (secret) in the bundle; None: one of the operating system's,
            which nobody knows: the manifest names what is named here.
    """

    kind: ClassVar[str] = "library_network"

    thresholds: dict[str, Annotated[float, Field(ge=-1, le=1)]] | None = Field(default=None, min_length=2)
    rows: Rows | Annotated[dict[str, Rows], Field(min_length=2)] | None = None
    library_layers: tuple[str, ...] | None = Field(default=None, min_length=2)
    neighbors: int = Field(default=3, ge=1)
    softmax: bool = False
    sampled_neurons: int | None = Field(default=None, ge=1)
    seed: int | None = None

    @model_validator(mode="after")
    def _one_way_to_say_how_large(self) -> Self:
        if (self.thresholds is None) == (self.rows is None):
            raise ValueError("expected `thresholds`, or `rows` in their place: one of the two")
        if isinstance(self.rows, int) != (self.library_layers is not None):
            raise ValueError("`library_layers` goes with one number of `rows` for all of them, and only with that")
        return self

    @property
    def sizes(self) -> dict[str, int]:
        """About how many rows the library of each layer is to have; empty where the thresholds are given."""
        if isinstance(self.rows, int):
            return dict.fromkeys(self.library_layers or (), self.rows)
        return dict(self.rows or {})

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers with a library, in order of depth."""
        return tuple(self.thresholds or self.sizes)

    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """The class each layer's library answers, and how similar the nearest stored pattern is."""
        return {
            "consistency": round(float(evidence["cpl"]), 4),
            "layers": [
                {"layer": layer, "answer": int(answer), "similarity": round(float(similarity), 4)}
                for layer, answer, similarity in zip(
                    self.layers, evidence["answer"], evidence["similarity"], strict=True
                )
            ],
        }
