"""Graph: the classifier and all that detectors compute as one ONNX graph, which ONNX Runtime computes.

A bundle holds it beside the tensors that it was made of (`calibration.exporting`). Whoever has it needs no factory, no
code of the classifier's authors and no hooks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import onnxruntime
from numpy.typing import NDArray

from askance.errors import BundleError, ConfigError, one_line
from askance.images import Batch, array_of
from askance.screening.reading import Observe, Read, Reading, Rows

IMAGES, LOGITS = "images", "logits"
LAYOUT = "askance"
"""The key of the model's metadata under which stands what its outputs are."""
PARTS = ("score", "tied", "slack")
"""What else there is of a Reading beside components and evidence; some of it may be absent."""


class Model(NamedTuple):
    """An ONNX model, its large tensors apart: a bundle has most of them already.

    Attributes:
        content: the model, which names them.
        tensors: {initializer: its value}.
    """

    content: bytes
    tensors: Mapping[str, NDArray[Any]]


def layout_of(readings: Mapping[str, Reading]) -> dict[str, Any]:
    """What a graph's outputs are, JSON-ready: of each detector the components, and what else there is."""
    return {
        kind: {
            "components": list(one.components),
            "two_sided": sorted(one.two_sided),
            "evidence": list(one.evidence),
            "parts": [part for part in PARTS if getattr(one, part) is not None],
        }
        for kind, one in readings.items()
    }


def output_names(layout: Mapping[str, Any]) -> list[str]:
    """What a graph of that layout calls its outputs, in order."""
    names = [LOGITS]
    for kind, of in layout.items():
        names += [f"{kind}/{part}" for part in (*of["parts"], "components")]
        names += [f"{kind}/evidence/{name}" for name in of["evidence"]]
    return names


def _restored(outputs: Mapping[str, NDArray[Any]], layout: Mapping[str, Any]) -> Read:
    """What was read, from a graph's outputs by their names."""
    readings = {}
    for kind, of in layout.items():
        parts: dict[str, Any] = {part: outputs[f"{kind}/{part}"] for part in of["parts"]}
        readings[kind] = Reading(
            components=Rows(of["components"], outputs[f"{kind}/components"]),
            two_sided=frozenset(of["two_sided"]),
            evidence={name: outputs[f"{kind}/evidence/{name}"] for name in of["evidence"]},
            **parts,
        )
    return Read(outputs[LOGITS], readings)


class GraphReader:
    """Reads images by a graph. Safe to call from several threads.

    Args:
        graph: gives all that detectors read, with its layout in its metadata.
        classifier: gives the logits alone.
        detectors: whose readings are expected of the graph.
        threads: that compute; 0: as many as there are cores.

    Raises:
        BundleError: one of them is none that ONNX Runtime can compute here, or the graph has other readings.
    """

    engine = "onnxruntime"
    stages: tuple[str, ...] = ("graph",)

    def __init__(self, graph: Model, classifier: Model, detectors: Sequence[str], threads: int = 0) -> None:
        shared: dict[int, onnxruntime.OrtValue] = {}
        self._graph, self._classifier = (_session(model, shared, threads) for model in (graph, classifier))
        self._names = [output.name for output in self._graph.get_outputs()]
        try:
            self._layout = json.loads(self._graph.get_modelmeta().custom_metadata_map[LAYOUT])
            as_expected = list(self._layout) == list(detectors)
        except (KeyError, ValueError, TypeError):
            as_expected = False
        if not as_expected:
            raise BundleError("its graph does not say what its detectors read: calibrate again")

    def __call__(self, images: Batch, observe: Observe | None = None) -> Read:
        """Read a batch; its one stage is "graph"."""
        start = time.perf_counter()
        found = self._graph.run(self._names, {IMAGES: array_of(images)})
        if observe is not None:
            observe("graph", time.perf_counter() - start)
        return _restored(dict(zip(self._names, found, strict=True)), self._layout)

    def classify(self, images: Batch) -> NDArray[Any]:
        """The logits alone, [B, K]."""
        logits: NDArray[Any] = self._classifier.run([LOGITS], {IMAGES: array_of(images)})[0]
        return logits

    def to(self, device: str) -> None:
        """Stay on the CPU.

        Raises:
            ConfigError: another device was asked for.
        """
        if device.partition(":")[0] != "cpu":
            raise ConfigError(f"device {device!r} cannot be used with a graph: expected cpu, or the engine torch")

    def close(self) -> None:
        """Nothing is held that others might use."""


def _session(model: Model, shared: dict[int, onnxruntime.OrtValue], threads: int) -> onnxruntime.InferenceSession:
    """A session of a model, whose tensors may be those of another one in `shared`, by where they are in memory."""
    options = onnxruntime.SessionOptions()
    for tensor in model.tensors.values():
        if tensor.ctypes.data not in shared:
            shared[tensor.ctypes.data] = onnxruntime.OrtValue.ortvalue_from_numpy(tensor)
    values = [shared[tensor.ctypes.data] for tensor in model.tensors.values()]
    options.add_external_initializers(list(model.tensors), values)
    options.intra_op_num_threads = threads
    # a tensor that is not given is no file's, wherever that might be looked for
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the event loop has use for the CPU
    options.log_severity_level = 3  # errors: it warns of each constant that it cannot fold
    try:
        return onnxruntime.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has exceptions of its own, of no common class
        raise BundleError(f"its graph cannot be computed here: {one_line(error)}") from None
