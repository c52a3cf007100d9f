"""Neuron consistency: whether what excites a neuron is of one class, or of classes that are alike.

Source: Y. Dong et al., "Towards interpretable deep neural networks by leveraging adversarial examples" (2019), of which
the abstract tells no formula. As in "Improving interpretability of deep neural networks with semantic information"
(2017) consistency is p' A p; how many images excite a neuron, what a channel's activation is and how chance is taken
out are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from askance.detectors import Capture
from askance.inside.data import Part, Row
from askance.judgement.arrays import Doubles

EXCITING, FEWEST = 50, 10  # images of a neuron: those that it fires for most; one that fires for fewer says nothing
RESAMPLED = 1000  # times, for an interval
Mean = Annotated[float, Field(le=1)]


class Consistency(Part):
    """Of the neurons of a layer; a map's are its channels.

    Attributes:
        neurons: which fire for FEWEST images or more; the others are left out.
        consistency: of each, (p' A p - chance) / (1 - chance): 1 where all images that excite it are of one class, 0 as
            for classes at random.
        mean: over them.
        low, high: its 95% bootstrap interval over neurons.
    """

    neurons: tuple[int, ...]
    consistency: Row
    mean: Mean
    low: Mean
    high: Mean


def excitations(capture: Capture) -> Mapping[str, Tensor]:
    """How far each neuron fires for each image, {layer: [B, neurons]}: a channel where on its map it does most."""
    return {
        layer: (found if found.ndim == 2 else found.flatten(2).amax(dim=2)).clamp_min(0)
        for layer, found in capture.activations.items()
    }


def exciting(fired: Tensor) -> Tensor:
    """The images that excite each neuron most, the first of equals first, int64 [neurons, EXCITING]; -1 where fewer do.

    Args:
        fired: of N images, [N, neurons].
    """
    most, which = fired.sort(dim=0, descending=True, stable=True)
    return torch.where(most > 0, which, -1)[:EXCITING].T


def consistency(excited: Tensor, labels: Tensor, affinity: Tensor) -> Consistency | None:
    """How consistent neurons are; None where all are left out.

    Args:
        excited: as `exciting` gives it.
        labels: the true classes of the images, [N].
        affinity: how alike classes are, float [K, K] in [0, 1], with 1 on the diagonal.
    """
    classes = len(affinity)
    counts = torch.stack([((labels[excited] == k) & (excited >= 0)).sum(dim=1) for k in range(classes)], dim=1).double()
    neurons = (counts.sum(dim=1) >= FEWEST).nonzero().flatten()
    if not len(neurons):
        return None
    shares = counts[neurons] / counts[neurons].sum(dim=1, keepdim=True)
    alike = affinity.double()
    chance = alike.mean()
    values = (((shares @ alike) * shares).sum(dim=1) - chance) / (1 - chance)
    low, high = interval(values.numpy())
    return Consistency(
        neurons=tuple(neurons.tolist()),
        consistency=tuple(values.tolist()),
        mean=float(values.mean()),
        low=low,
        high=high,
    )


def interval(values: Doubles) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean (percentiles)."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLED, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def by_words(correlations: Tensor) -> Tensor:
    """The affinity of classes by the correlation of their words, [K, K] in [-1, 1]."""
    return (1 + correlations) / 2
