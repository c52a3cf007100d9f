"""Engines: what may compute a bundle."""

from __future__ import annotations

from enum import StrEnum


class Engine(StrEnum):
    """What computes a bundle.

    Attributes:
        AUTO: ONNX Runtime where the bundle has a graph, else torch.
        ONNXRUNTIME: the bundle's graph; nothing of the classifier's code is needed.
        TORCH: the classifier itself, under hooks.
    """

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"
