"""What layers know of the classes' meaning: 2 vs 2 of every layer, and 1 vs 2 of images that are mistaken.

Source: "Using word embeddings to explore the learned representations of convolutional neural networks" (paper 003).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from askance.detectors import CaptureStream, SemanticSignature, SemanticSignatureOptions
from askance.detectors.semantic_signature import over_layers
from askance.inside.data import Part, Share

AT_ONCE = 8  # layers, whose activations are in memory together
NORMAL = 1.96  # standard deviations that 95% of a normal distribution lie within


class LayerSemantics(Part):
    """The 2-vs-2 test of one layer.

    Attributes:
        accuracy: the share of pairs of classes that it passes.
        p_value: by permutation of the classes' words, corrected over layers (Benjamini-Hochberg-Yekutieli).
        chance: what 95% of permutations lie between.
    """

    accuracy: Share
    p_value: Share
    chance: tuple[float, float]


class Rivalry(Part):
    """The 1-vs-2 test of the true class against the one that the classifier takes images for.

    Attributes:
        images: how many.
        shares: by layer, of the images for which the layer speaks for the true class.
    """

    images: int
    shares: Mapping[str, Share]

    def half_width(self, layer: str) -> float:
        """Of the 95% interval of a layer's share."""
        share = self.shares[layer]
        return NORMAL * math.sqrt(share * (1 - share) / self.images)


def semantics(
    layers: Sequence[str], words: Tensor, stream_of: Callable[[Sequence[str]], CaptureStream]
) -> dict[str, LayerSemantics]:
    """The 2-vs-2 test of layers (Figs. 1, 2, 8 and 9), of a few at once.

    Args:
        layers: in order of depth.
        words: correlations of the classes' word vectors, [K, K].
        stream_of: gives Captures, with labels, of some layers.

    Raises:
        DataError: the streams are empty, have no labels, or show fewer than four classes.
    """
    found: dict[str, dict[str, float]] = {}
    for at in range(0, len(layers), AT_ONCE):
        some = tuple(layers[at : at + AT_ONCE])
        detector = SemanticSignature(SemanticSignatureOptions(semantic_layers=some))
        detector.word_correlations = words
        found |= detector.semantic_tests(stream_of(some))
    p_values = over_layers(found)
    return {
        layer: LayerSemantics(
            accuracy=one["two_versus_two"], p_value=p_values[layer], chance=(one["chance_low"], one["chance_high"])
        )
        for layer, one in found.items()
    }


@torch.no_grad()
def rivalry(detector: SemanticSignature, stream: CaptureStream) -> Rivalry | None:
    """1 vs 2 of the images of a stream, with labels, that the classifier takes for another class; None of none.

    Figs. 4 and 5 of its own mistakes, Fig. 6 of those that it is led to.
    """
    parts = []
    for capture in stream:
        assert capture.labels is not None
        margins = detector.pair_margins(capture)  # of the predicted class over each other
        against = margins.gather(2, capture.labels.view(-1, 1, 1).expand(-1, margins.shape[1], 1)).squeeze(2)
        parts.append((against < 0)[capture.predicted != capture.labels])
    wins = torch.cat(parts)
    if not len(wins):
        return None
    return Rivalry(images=len(wins), shares=dict(zip(detector.layers, wins.double().mean(dim=0).tolist(), strict=True)))
