"""Doubts: the layers that, once the detectors are fitted, turn out to tell nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from askance.calibration.inputs import CalibrationInputs
from askance.calibration.progress import say
from askance.detectors import Detector, Tap

TRIED_IMAGES = 50  # that show whether a layer is the same for all


def doubts(
    inputs: CalibrationInputs, detectors: Mapping[str, Detector], diagnostics: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """What speaks against layers of fitted detectors, a line said of each.

    Args:
        inputs: the classifier and its data.
        detectors: by kind, fitted.
        diagnostics: their own figures, by kind.

    Returns:
        {detector: {layer: why}}; only where there is something to say.
    """
    constant = _constant_layers(inputs, detectors)
    found = {}
    for kind, detector in detectors.items():
        of_layers = {layer: "it gives the same for every image" for layer in detector.layers if layer in constant}
        of_layers |= detector.doubts(diagnostics.get(kind, {}), len(inputs.class_names))
        if of_layers:
            found[kind] = of_layers
    for kind, of_layers in found.items():
        for layer, why in of_layers.items():
            say(f"warning: {kind} has no use of layer {layer}: {why}")
    return found


def _constant_layers(inputs: CalibrationInputs, detectors: Mapping[str, Detector]) -> set[str]:
    layers = [layer for detector in detectors.values() for layer in detector.layers]
    images = inputs.splits["fit"][: min(TRIED_IMAGES, inputs.settings.batch_size)]
    if len(images) < 2:
        return set()
    with Tap(inputs.classifier, layers, inputs.preprocessing.normalize) as tap, torch.no_grad():
        capture = tap(images.pixels())
    return {layer for layer, shown in capture.activations.items() if bool((shown == shown[:1]).all())}
