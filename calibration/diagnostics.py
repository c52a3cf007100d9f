"""Diagnostics: the papers' own readings of how well each detector has learned the classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from askance.calibration.data import Images, ImageStream
from askance.detectors import Detector, Introspection, LibraryNetwork, SelfOrganizingMap, SemanticSignature, Tap
from askance.detectors.self_organizing_map import vector_code
from askance.detectors.semantic_signature import correlations, two_versus_two
from askance.detectors.tap import CaptureStream
from askance.detectors.torus_map import class_center, torus_distance

NEIGHBORS = 15  # of the k-NN that reads the activation map
PERMUTATIONS = 1000
DRAWS = 5  # images per concept, one at a time, as in the paper


@torch.no_grad()
def library_agreement(detector: LibraryNetwork, stream: CaptureStream) -> dict[str, dict[str, float]]:
    """Share of inputs whose predicted class is each library's best answer, or among its best three.

    Returns:
        {layer: {"rows", "top1", "top3"}}, shares in [0, 1] (paper 000, Figs. 2 and 4).
    """
    hits = {layer: np.zeros(2) for layer in detector.layers}
    count = 0
    for capture in stream:
        answers, _ = detector.answers(capture)
        order = answers.topk(min(3, answers.shape[2]), dim=2).indices
        match = order == capture.predicted[:, None, None]
        for i, layer in enumerate(detector.layers):
            hits[layer] += [float(match[:, i, 0].sum()), float(match[:, i].any(dim=1).sum())]
        count += len(capture)
    sizes = detector.sizes()
    return {
        layer: {"rows": sizes[layer], "top1": top1 / count, "top3": top3 / count}
        for layer, (top1, top3) in hits.items()
    }


@torch.no_grad()
def confusion_index(detector: LibraryNetwork, stream: CaptureStream) -> Tensor:
    """Confusion index CI(d1, d2) = CA(d1, d2) / CA(d1, d1) of every layer (paper 000, Eq. 4).

    CA(d1, d2) sums softmax(P)_d1 softmax(P)_d2 over the inputs of true class d1 that the layer's library answers right.

    Returns:
        float64 [L, K, K]; NaN in rows of classes that a library never answers right.
    """
    sums: Tensor | None = None
    for capture in stream:
        answers, _ = detector.answers(capture)
        share = answers.double().softmax(dim=2)  # [B, L, K]
        labels = capture.predicted if capture.labels is None else capture.labels
        right = answers.argmax(dim=2) == labels[:, None]
        own = share.gather(2, labels[:, None, None].expand(-1, share.shape[1], 1)) * right[..., None]
        if sums is None:
            sums = torch.zeros(share.shape[1], share.shape[2], share.shape[2], dtype=torch.float64)
        one_hot = torch.nn.functional.one_hot(labels, share.shape[2]).double()
        sums += torch.einsum("bd,blk->ldk", one_hot, own * share)
    assert sums is not None
    return sums / sums.diagonal(dim1=1, dim2=2).unsqueeze(2)


@torch.no_grad()
def map_separation(detector: Introspection, reference: CaptureStream, stream: CaptureStream) -> dict[str, float]:
    """How well the activation map separates classes, and the estimators rank mistakes.

    Args:
        detector: fitted.
        reference: captures whose map points the 15-NN remembers (of the fit split).
        stream: labelled captures that nothing was fitted on.

    Returns:
        {"knn_agreement": share of inputs whose neighbours on the map vote for their predicted class,
        "misclassification_auroc:<estimator>": AUROC of the classifier's mistakes, where it makes both kinds}.
    """

    def points(captures: CaptureStream) -> tuple[np.ndarray, np.ndarray]:
        parts = [(detector.map_points(capture), capture.predicted) for capture in captures]
        return torch.cat([z for z, _ in parts]).numpy(), torch.cat([c for _, c in parts]).numpy()

    known, classes = points(reference)
    z, predicted = points(stream)
    neighbors = KNeighborsClassifier(min(NEIGHBORS, len(known))).fit(known, classes)
    result = {"knn_agreement": float((neighbors.predict(z) == predicted).mean())}
    scores: dict[str, list[Tensor]] = {}
    wrong = []
    for capture in stream:
        assert capture.labels is not None
        wrong.append(capture.predicted != capture.labels)
        for name, values in detector.components(capture).items():
            scores.setdefault(name, []).append(values)
    mistakes = torch.cat(wrong).numpy()
    if 0 < mistakes.sum() < len(mistakes):
        for name, parts in scores.items():
            result[f"misclassification_auroc:{name}"] = float(roc_auc_score(mistakes, torch.cat(parts).numpy()))
    result["mistakes"] = int(mistakes.sum())
    return result


@torch.no_grad()
def map_quality(detector: SelfOrganizingMap, stream: CaptureStream) -> dict[str, dict[str, float]]:
    """Quantization and topographic error, units in use, mean torus distance between class centres, per layer."""
    codes: dict[str, list[Tensor]] = {layer: [] for layer in detector.layers}
    for capture in stream:
        for layer, parts in codes.items():
            parts.append(vector_code(capture.activations[layer]))
    result = {}
    for layer, layer_map in detector.layer_maps().items():
        quantization, topographic = layer_map.quality(layer_map.standardise(torch.cat(codes[layer])))
        side = layer_map.side
        seen = [k for k in range(layer_map.hits.shape[1]) if layer_map.hits[:, k].any()]
        centers = torch.stack([class_center(layer_map.hits[:, k], side) for k in seen])
        pairs = torch.combinations(torch.arange(len(seen)))
        apart = torus_distance(centers[pairs[:, 0]], centers[pairs[:, 1]], side)
        result[layer] = {
            "quantization_error": quantization,
            "topographic_error": topographic,
            "units_used": float((layer_map.hits.sum(dim=1) > 0).double().mean()),
            "mean_center_distance": float(apart.mean()) if len(pairs) else 0.0,
        }
    return result


@torch.no_grad()
def semantic_accuracy(detector: SemanticSignature, tap: Tap, images: Images, seed: int = 0) -> dict[str, Any]:
    """2-vs-2 accuracy of every layer over several draws of one image per class, with permutation p-values.

    The null permutes the concepts of the word vectors 1,000 times; p-values are corrected over layers by
    Benjamini-Hochberg-Yekutieli (paper 003, section 4.1).

    Returns:
        {layer: {"two_versus_two", "p_value"}}.
    """
    generator = torch.Generator().manual_seed(seed)
    present = [k for k in range(len(detector.word_correlations)) if bool((images.y == k).any())]
    word = detector.word_correlations.double()[present][:, present]
    draws = []
    for _ in range(DRAWS):
        order = torch.randperm(len(images), generator=generator)
        first = [order[(images.y[order] == k)][:1] for k in present]
        capture = tap(images[torch.cat(first)].pixels())
        draws.append({layer: correlations(capture.flat(layer).double()) for layer in detector.layers})
    shuffles = [torch.randperm(len(present), generator=generator) for _ in range(PERMUTATIONS)]
    accuracies, p_values = [], []
    for layer in detector.layers:

        def mean_accuracy(words: Tensor, layer: str = layer) -> float:
            return float(np.mean([two_versus_two(draw[layer], words).double().mean() for draw in draws]))

        accuracies.append(mean_accuracy(word))
        null = [mean_accuracy(word[shuffle][:, shuffle]) for shuffle in shuffles]
        p_values.append((1 + sum(value >= accuracies[-1] for value in null)) / (PERMUTATIONS + 1))
    corrected = false_discovery_control(p_values, method="by")
    return {
        layer: {"two_versus_two": a, "p_value": float(p)}
        for layer, a, p in zip(detector.layers, accuracies, corrected, strict=True)
    }


@torch.no_grad()
def signature_profile(detector: SemanticSignature, stream: CaptureStream) -> dict[str, float]:
    """Mean share of 1-vs-2 tests that the predicted class wins, per layer: the clean profile (rises with depth)."""
    outcomes = torch.cat([detector.margins(capture)[1] for capture in stream])
    return {layer: float(outcomes[:, i].mean()) for i, layer in enumerate(detector.layers)}


def diagnose(detectors: Mapping[str, Detector], tap: Tap, fit: Images, held: Images) -> dict[str, Any]:
    """All diagnostics of the detectors there are, on `held` images that nothing was fitted on."""
    stream = ImageStream(tap, held)
    result: dict[str, Any] = {}
    for name, detector in detectors.items():
        if isinstance(detector, LibraryNetwork):
            index = confusion_index(detector, stream)
            result[name] = {
                "layers": library_agreement(detector, stream),
                "confusion_index": {
                    layer: [[None if math.isnan(v) else round(v, 6) for v in row] for row in index[i].tolist()]
                    for i, layer in enumerate(detector.layers)
                },
            }
        elif isinstance(detector, Introspection):
            result[name] = map_separation(detector, ImageStream(tap, fit[:5000]), stream)
        elif isinstance(detector, SelfOrganizingMap):
            result[name] = {"layers": map_quality(detector, stream)}
        elif isinstance(detector, SemanticSignature):
            result[name] = {
                "layers": semantic_accuracy(detector, tap, held),
                "one_versus_two": signature_profile(detector, stream),
            }
    return result
