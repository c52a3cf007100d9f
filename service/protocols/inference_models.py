"""Models: what the Open Inference Protocol says of the classifier that is served."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from askance.service.pb.inference import inference_pb2 as pb
from askance.service.runtime.model import LoadedBundle
from askance.service.observability.metrics import Metrics
from askance.service.protocols.inference_tensors import ENCODED, IMAGE, Output, outputs_of

PLATFORM = "askance_pytorch"
EXTENSIONS = ("model_configuration", "statistics", "model_repository")
_TYPES = {"BYTES": pb.TYPE_STRING, "FP32": pb.TYPE_FP32, "FP64": pb.TYPE_FP64, "INT32": pb.TYPE_INT32}


def server_metadata() -> pb.ServerMetadataResponse:
    """The server's name, version and extensions."""
    return pb.ServerMetadataResponse(name="askance", version=version("askance"), extensions=EXTENSIONS)


def model_metadata(served: LoadedBundle, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """A version's inputs, of which a request holds one, and outputs; `versions` are all, the default first."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=served.classifier,
        versions=versions,
        platform=PLATFORM,
        inputs=[
            tensor(name=IMAGE, datatype="FP32", shape=[-1, *served.screen.preprocessing.shape]),
            tensor(name=ENCODED, datatype="BYTES", shape=[-1, 1]),
        ],
        outputs=[
            tensor(name=output.name, datatype=output.datatype, shape=[-1, output.width])
            for output in outputs_of(served.screen).values()
        ],
    )


def model_config(served: LoadedBundle, max_batch: int) -> pb.ModelConfig:
    """The same in Triton's words; `encoded` is optional, so that a client that makes up data makes up pixels."""
    image = pb.ModelInput(name=IMAGE, data_type=pb.TYPE_FP32, dims=served.screen.preprocessing.shape)
    encoded = pb.ModelInput(name=ENCODED, data_type=pb.TYPE_STRING, dims=[1], optional=True)

    def output(one: Output) -> pb.ModelOutput:
        return pb.ModelOutput(name=one.name, data_type=_TYPES[one.datatype], dims=[one.width])

    return pb.ModelConfig(
        name=served.classifier,
        platform=PLATFORM,
        backend="askance",
        max_batch_size=max_batch,
        input=[image, encoded],
        output=[output(one) for one in outputs_of(served.screen).values()],
    )


def model_statistics(served: LoadedBundle, metrics: Metrics) -> pb.ModelStatistics:
    """How many images were screened by this server, and how long that took, from its metrics."""

    def duration(count: float, seconds: float) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=round(count), ns=round(seconds * 1e9))

    calls, images = metrics.batches()
    succeeded, failed = metrics.inferences()
    return pb.ModelStatistics(
        name=served.classifier,
        version=served.version,
        last_inference=round(1000 * metrics.last_inference),
        inference_count=images,
        execution_count=calls,
        inference_stats=pb.InferStatistics(
            success=duration(*succeeded),
            fail=duration(*failed),
            queue=duration(*metrics.stages("queue")),
            compute_input=duration(*metrics.stages("decode")),
            compute_infer=duration(*metrics.stages("classify", *served.screen.detectors, "fused")),
            compute_output=duration(*metrics.stages("respond")),
        ),
    )


def repository_index(versions: Sequence[LoadedBundle]) -> pb.RepositoryIndexResponse:
    """The one model, each of whose versions is ready."""
    index = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[index(name=served.classifier, version=served.version, state="READY") for served in versions]
    )
