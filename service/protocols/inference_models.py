"""What the Open Inference Protocol says of the model that is served: JSON-ready, as its JSON has it, over gRPC too."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from askance.service.observability.metrics import Metrics
from askance.service.protocols.inference_tensors import ENCODED, IMAGE, Output, outputs_of
from askance.service.runtime.model import LoadedBundle

PLATFORM = "askance_pytorch"
EXTENSIONS = ("model_configuration", "statistics", "model_repository", "classification", "binary_tensor_data")
_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "FP64": "TYPE_FP64", "INT32": "TYPE_INT32"}


def server_metadata() -> dict[str, Any]:
    """The server's name, version and extensions."""
    return {"name": "askance", "version": version("askance"), "extensions": list(EXTENSIONS)}


def model_metadata(bundle: LoadedBundle, versions: Sequence[str]) -> dict[str, Any]:
    """A version's inputs, of which a request holds one, and outputs; `versions` are all, the default first."""
    return {
        "name": bundle.classifier,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [
            {"name": IMAGE, "datatype": "FP32", "shape": [-1, *bundle.screen.preprocessing.shape]},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": output.name, "datatype": output.datatype, "shape": [-1, output.width]}
            for output in outputs_of(bundle.screen).values()
        ],
    }


def model_config(bundle: LoadedBundle, max_batch: int) -> dict[str, Any]:
    """The same in Triton's words; `encoded` is optional, so that a client that makes up data makes up pixels."""

    def output(one: Output) -> dict[str, Any]:
        return {"name": one.name, "data_type": _TYPES[one.datatype], "dims": [one.width]}

    return {
        "name": bundle.classifier,
        "platform": PLATFORM,
        "backend": "askance",
        "max_batch_size": max_batch,
        "input": [
            {"name": IMAGE, "data_type": "TYPE_FP32", "dims": list(bundle.screen.preprocessing.shape)},
            {"name": ENCODED, "data_type": "TYPE_STRING", "dims": [1], "optional": True},
        ],
        "output": [output(one) for one in outputs_of(bundle.screen).values()],
    }


def model_statistics(bundle: LoadedBundle, metrics: Metrics) -> dict[str, Any]:
    """How many images were screened by this server, and how long that took, from its metrics."""

    def duration(count: float, seconds: float) -> dict[str, int]:
        return {"count": round(count), "ns": round(seconds * 1e9)}

    calls, images = metrics.batches()
    succeeded, failed = metrics.inferences()
    return {
        "name": bundle.classifier,
        "version": bundle.version,
        "last_inference": round(1000 * metrics.last_inference),
        "inference_count": images,
        "execution_count": calls,
        "inference_stats": {
            "success": duration(*succeeded),
            "fail": duration(*failed),
            "queue": duration(*metrics.stages("queue")),
            "compute_input": duration(*metrics.stages("decode")),
            "compute_infer": duration(*metrics.stages("classify", *bundle.screen.detectors, "fused")),
            "compute_output": duration(*metrics.stages("respond")),
        },
    }


def repository_index(versions: Sequence[LoadedBundle]) -> list[dict[str, Any]]:
    """The one model, each of whose versions is ready."""
    return [{"name": bundle.classifier, "version": bundle.version, "state": "READY"} for bundle in versions]
