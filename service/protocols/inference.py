"""Inference: the servicer of the Open Inference Protocol v2, package `inference`, that Triton's clients speak."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

import grpc

from askance.detectors.screen import Prediction
from askance.errors import AskanceError
from askance.service import models
from askance.service.guard.access import Identity, Role
from askance.service.runtime.screener import Screener, Call, ModelVersion
from askance.service.config import ServerConfig
from askance.service.context import Context, deadline_of, metadata_of
from askance.service.guard.interceptor import Gate, State
from askance.service.observability.requests import RequestLog
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.runtime.model import LoadedBundle
from askance.service.errors import StatusError, failed, invalid, withheld
from askance.service.protocols.streaming import in_order
from askance.service.observability.metrics import Metrics
from askance.service.protocols.inference_tensors import Output, outputs_of, pictures_of

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
ANY_STATE = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""What is answered while loading and draining, too."""
ADMIN = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
"""What takes the role admin."""
DETAIL = "detail"
"""The request's parameter that names how much to say, instead of a list of outputs."""
_DETAILS = {
    "verdict": (Role.PREDICT,),
    "scores": (Role.PREDICT, Role.SCORES),
    "explanations": (Role.PREDICT, Role.SCORES, Role.EXPLANATIONS),
}
# what befalls one image of a batch alone
_ITEMS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL)


class InferenceServicer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """A batch of images a request. Raises StatusError; stands behind a Gate.

    Args:
        config: the limits.
        gate: knows the server's state.
        metrics: gets the stages, and gives the statistics.
        request_log: keeps the stream's items.
        screener: screens the images.
        reload: loads what is served anew.
        unload: lets go of a version.
    """

    def __init__(
        self,
        config: ServerConfig,
        gate: Gate,
        metrics: Metrics,
        request_log: RequestLog,
        screener: Screener,
        reload: Callable[[], Awaitable[LoadedBundle]],
        unload: Callable[[str], None],
    ) -> None:
        self._config = config
        self._gate = gate
        self._metrics = metrics
        self._request_log = request_log
        self._screener = answering
        self._reload = reload
        self._unload = unload

    @property
    def _max_batch(self) -> int:
        return min(self._config.max_batch, self._config.queue_size)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: ARG002, N802
        """Whether the server answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: ARG002, N802
        """Whether it serves."""
        return pb.ServerReadyResponse(ready=self._gate.state is State.SERVING)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: ARG002, N802
        """Whether the model is served; another name or version is not."""
        ready = self._gate.state is State.SERVING and self._find(request.name, request.version) is not None
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.ServerMetadataResponse:
        """Name, version, extensions."""
        return models.server_metadata()

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:  # noqa: ARG002, N802
        """Inputs and outputs."""
        served = self._model(request.name, request.version).served
        return models.model_metadata(served, [one.served.version for one in self._screener.all()])

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:  # noqa: ARG002, N802
        """Inputs, outputs and the largest batch."""
        served = self._model(request.name, request.version).served
        return pb.ModelConfigResponse(config=models.model_config(served, self._max_batch))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:  # noqa: ARG002, N802
        """Counts and times of the model, all its versions together, or of all models, which is the same."""
        served = self._model(request.name, request.version).served if request.name else self._screener.served
        return pb.ModelStatisticsResponse(model_stats=[models.model_statistics(served, self._metrics)])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:  # noqa: ARG002, N802
        """The one model, in each of its versions."""
        return models.repository_index([one.served for one in self._screener.all()])

    async def RepositoryModelLoad(  # noqa: N802
        self,
        request: pb.RepositoryModelLoadRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.RepositoryModelLoadResponse:
        """Load the model anew from where it is, and the candidate; the old ones stay until the new ones are there, and
        if that fails.
        """
        self._model(request.model_name, "")
        if request.parameters:
            raise invalid(
                "parameters", "none: a model is loaded from where it is", ", ".join(sorted(request.parameters))
            )
        try:
            await self._reload()
        except AskanceError as error:
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self,
        request: pb.RepositoryModelUnloadRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload the version that the parameter `version` names, which must not be the default one."""
        version = request.parameters["version"].string_param if "version" in request.parameters else ""
        self._unload(self._model(request.model_name, version).served.version)
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """Screen a batch; an image that fails gets its error in its row, unless all fail."""
        return await self._infer(request, Call.of(context, request, request.id))

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Screen a stream of batches, answered in order; a request that fails gets an error in its place."""
        answer = partial(self._item, context=context)
        stream = in_order(request_iterator, answer, self._config.stream_window, self._gate.closing)
        async with aclosing(stream) as responses:
            async for response in responses:
                yield response

    def _find(self, name: str, version: str) -> ModelVersion | None:
        deployed = self._screener.at(version)
        return deployed if deployed is not None and name == deployed.served.classifier else None

    def _model(self, name: str, version: str) -> ModelVersion:
        deployed = self._find(name, version)
        if deployed is None:
            asked = f"{name} {version}".rstrip()
            versions = ", ".join(one.served.version for one in self._screener.all())
            raise StatusError(
                grpc.StatusCode.NOT_FOUND,
                f"model {asked[:80]!r} is not served: {self._screener.served.classifier} version {versions} is",
                "invalid",
            )
        return deployed

    async def _infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        deployed = self._model(request.model_name, request.model_version)
        served = deployed.served
        if served is not self._screener.served:  # another guard is another oracle
            call.identity.require(Role.SCORES)
        outputs = _wanted(request, served, call.identity, self._screener.shows_verdicts)
        pictures = pictures_of(request, served.screen.preprocessing, self._max_batch)
        explain = any(output.role is Role.EXPLANATIONS for output in outputs)
        answered, outcomes = await self._screener.screen(pictures, explain, call, deployed)
        errors = [outcome for outcome in outcomes if isinstance(outcome, StatusError)]
        fatal = [error for error in errors if error.code not in _ITEMS]
        if fatal or len(errors) == len(outcomes):
            raise (fatal or errors)[0]
        with self._metrics.timed("respond"):
            return _response(request.id, answered, outputs, outcomes)

    async def _item(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelStreamInferResponse:
        """One request of a stream: its answer, or its error in its place."""
        try:
            with self._request_log.request("ModelStreamInfer", metadata_of(context), deadline_of(context)):
                response = await self._infer(request, Call.of(context, request, request.id))
                return pb.ModelStreamInferResponse(infer_response=response)
        except StatusError as error:
            message = str(error)
        except Exception as error:
            logger.exception("a request of a stream failed")
            message = str(failed(error))
        # the id tells which request it was
        return pb.ModelStreamInferResponse(
            error_message=message, infer_response=pb.ModelInferResponse(id=request.id, model_name=request.model_name)
        )


def _wanted(request: pb.ModelInferRequest, served: LoadedBundle, client: Identity, shows_verdicts: bool) -> list[Output]:
    """The outputs that a request names, in its order; without names all that the client may see, unexplained."""
    known = outputs_of(served.screen)
    detail = _detail(request)
    if detail is not None:
        for role in detail:
            client.require(role)
        if not shows_verdicts:
            raise withheld()
        return [output for output in known.values() if output.role in detail]
    if not request.outputs:
        shown = client.roles - {Role.EXPLANATIONS}
        return [output for output in known.values() if output.role in shown and (output.prediction or shows_verdicts)]
    for asked in request.outputs:
        if asked.name not in known:
            raise invalid("outputs", f"names among {', '.join(known)}", repr(asked.name[:40]))
        if asked.parameters:
            raise invalid(f"outputs[{asked.name}].parameters", "none", ", ".join(sorted(asked.parameters))[:80])
        client.require(known[asked.name].role)
        if not (known[asked.name].prediction or shows_verdicts):
            raise withheld()
    return [known[asked.name] for asked in request.outputs]


def _detail(request: pb.ModelInferRequest) -> tuple[Role, ...] | None:
    """What the parameter `detail` asks to see; None without it."""
    if DETAIL not in request.parameters:
        return None
    asked = request.parameters[DETAIL].string_param
    if asked not in _DETAILS:
        raise invalid(f"parameters[{DETAIL}]", f"a string among {', '.join(_DETAILS)}", repr(asked[:40]))
    if request.outputs:
        raise invalid("outputs", f"none beside parameters[{DETAIL}]", f"{len(request.outputs)}")
    return _DETAILS[asked]


def _response(
    request_id: str, served: LoadedBundle, outputs: Sequence[Output], outcomes: Sequence[Prediction | StatusError]
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=served.classifier,
        model_version=served.version,
        id=request_id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=output.name, datatype=output.datatype, shape=[len(outcomes), output.width]
            )
            for output in outputs
        ],
        raw_output_contents=[output.raw(outcomes) for output in outputs],
    )
    response.parameters["bundle_id"].string_param = served.bundle_id
    response.parameters["detectors"].string_param = ",".join(served.screen.detectors)
    return response
