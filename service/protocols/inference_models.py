"""What the Open Inference Protocol says of the model that is served: JSON-ready, as its JSON has it, over gRPC too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from askance.service.observability.totals import Totals
from askance.service.protocols.inference_names import TensorNames
from askance.service.protocols.inference_tensors import ENCODED, IMAGE, Output, outputs_of
from askance.service.runtime.model import LoadedBundle
from askance.service.settings import ModelConfig

PLATFORM = "askance_pytorch"
EXTENSIONS = ("model_configuration", "statistics", "model_repository", "classification", "binary_tensor_data")
_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "FP64": "TYPE_FP64", "INT32": "TYPE_INT32"}


def server_metadata() -> dict[str, Any]:
    """The server's name, version and extensions."""
    return {"name": "askance", "version": version("askance"), "extensions": list(EXTENSIONS)}


class Model:
    """What is said of the model, by the names that clients have for it and its tensors.

    Args:
        settings: what else it is called, and what FP32 holds.
        inputs, outputs: their names.
    """

    def __init__(self, settings: ModelConfig, inputs: TensorNames, outputs: TensorNames) -> None:
        self._settings = settings
        self._inputs = inputs
        self._outputs = outputs

    def versions(self, own: Sequence[str]) -> list[str]:
        """The versions that answer, the default first; then what else that is called."""
        return [*own, *self._settings.versions]

    def outputs(self, bundle: LoadedBundle) -> dict[str, Output]:
        """The outputs by their own names, each called what clients call it, which know some of them first."""
        known = outputs_of(bundle.screen)
        return {own: replace(known[own], name=self._outputs.shown(own)) for own in self._outputs.in_order(known)}

    def metadata(self, name: str, bundle: LoadedBundle, versions: Sequence[str]) -> dict[str, Any]:
        """A version's inputs, of which a request holds one, and outputs; `versions` are all, the default first."""
        image, encoded = self._inputs.shown(IMAGE), self._inputs.shown(ENCODED)
        return {
            "name": name,
            "versions": self.versions(versions),
            "platform": PLATFORM,
            "inputs": [
                {"name": image, "datatype": "FP32", "shape": [-1, *bundle.screen.preprocessing.shape]},
                {"name": encoded, "datatype": "BYTES", "shape": [-1, 1]},
            ],
            "outputs": [
                {"name": output.name, "datatype": output.datatype, "shape": [-1, output.width]}
                for output in self.outputs(bundle).values()
            ],
        }

    def config(self, name: str, bundle: LoadedBundle, max_batch: int) -> dict[str, Any]:
        """The same in Triton's words, and what FP32 holds; `encoded` is optional, so that a client that makes up data
        makes up pixels.
        """
        image, encoded = self._inputs.shown(IMAGE), self._inputs.shown(ENCODED)
        preprocessing = bundle.screen.preprocessing
        said: dict[str, str] = {"input": self._settings.input}
        if self._settings.input == "normalised":
            said |= {"mean": json.dumps(preprocessing.mean), "std": json.dumps(preprocessing.std)}
        return {
            "name": name,
            "platform": PLATFORM,
            "backend": "askance",
            "max_batch_size": max_batch,
            "input": [
                {"name": image, "data_type": "TYPE_FP32", "dims": list(preprocessing.shape)},
                {"name": encoded, "data_type": "TYPE_STRING", "dims": [1], "optional": True},
            ],
            "output": [
                {"name": one.name, "data_type": _TYPES[one.datatype], "dims": [one.width]}
                for one in self.outputs(bundle).values()
            ],
            "parameters": {key: {"string_value": value} for key, value in said.items()},
        }


def model_statistics(bundle: LoadedBundle, totals: Totals) -> dict[str, Any]:
    """How many images were screened by this server, and how long that took."""

    def duration(count: float, seconds: float) -> dict[str, int]:
        return {"count": round(count), "ns": round(seconds * 1e9)}

    calls, images = totals.batches()
    succeeded, failed = totals.inferences()
    return {
        "last_inference": round(1000 * totals.last_inference),
        "inference_count": images,
        "execution_count": calls,
        "inference_stats": {
            "success": duration(*succeeded),
            "fail": duration(*failed),
            "queue": duration(*totals.stages("queue")),
            "compute_input": duration(*totals.stages("decode")),
            "compute_infer": duration(*totals.stages(*bundle.screen.stages, "fused")),
            "compute_output": duration(*totals.stages("respond")),
        },
    }


def repository_index(names: Sequence[str], versions: Sequence[str]) -> list[dict[str, Any]]:
    """The one model by each of its names, each of whose versions is ready."""
    return [{"name": name, "version": version, "state": "READY"} for name in names for version in versions]
