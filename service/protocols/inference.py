"""Inference: the Open Inference Protocol v2 over gRPC, package `inference`, that Triton's clients speak."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

import grpc
from google.protobuf.json_format import ParseDict

from askance.service.call import Call, this_call
from askance.service.errors import StatusError, failed, forgetful, invalid
from askance.service.guard.admission import Kind
from askance.service.guard.interceptor import Context, Sent
from askance.service.pb.inference import inference_pb2 as pb
from askance.service.pb.inference import inference_pb2_grpc
from askance.service.protocols.base import Parts, Protocol
from askance.service.protocols.images import MOST_DIMENSIONS
from askance.service.protocols.inference_core import InferenceAnswer, InferenceCore
from askance.service.protocols.inference_tensors import InferenceRequest, InputTensor, Parameters, RequestedOutput
from askance.service.protocols.streaming import in_order

logger = logging.getLogger(__name__)

_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}


class InferenceProtocol(Protocol):
    """The service inference.GRPCInferenceService."""

    name: ClassVar[str] = "inference"
    service: ClassVar[str] = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    methods: ClassVar[Mapping[str, Kind]] = {
        "ModelInfer": Kind.SCREENS,
        "ModelStreamInfer": Kind.STREAMS,
        "ServerLive": Kind.PROBES,
        "ServerReady": Kind.PROBES,
        "ModelReady": Kind.PROBES,
        "ServerMetadata": Kind.ASKS,
        "ModelMetadata": Kind.ASKS,
        "ModelConfig": Kind.ASKS,
        "ModelStatistics": Kind.ASKS,
        "RepositoryIndex": Kind.ASKS,
        "RepositoryModelLoad": Kind.ADMINISTERS,
        "RepositoryModelUnload": Kind.ADMINISTERS,
    }

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        servicer = InferenceServicer(self.parts)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]


class InferenceServicer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Translates messages; raises StatusError, and stands behind an Interceptor.

    Args:
        parts: as for a protocol.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._core = InferenceCore(parts)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: ARG002, N802
        """Whether the server answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: ARG002, N802
        """Whether it serves."""
        return pb.ServerReadyResponse(ready=self._core.is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: ARG002, N802
        """Whether the model is served; another name or version is not."""
        return pb.ModelReadyResponse(ready=self._core.is_model_ready(request.name, request.version))

    async def ServerMetadata(  # noqa: N802
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.ServerMetadataResponse:
        """Name, version, extensions."""
        return ParseDict(self._core.server_metadata(), pb.ServerMetadataResponse())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:  # noqa: ARG002, N802
        """Inputs and outputs."""
        return ParseDict(self._core.model_metadata(request.name, request.version), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:  # noqa: ARG002, N802
        """Inputs, outputs and the largest batch."""
        config = self._core.model_config(request.name, request.version)
        return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:  # noqa: ARG002, N802
        """Counts and times of the model, all its versions together, or of all models, which is the same."""
        statistics = await self._core.model_statistics(request.name, request.version)
        return ParseDict({"model_stats": statistics}, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:  # noqa: ARG002, N802
        """The one model, in each of its versions."""
        return ParseDict({"models": self._core.repository_index()}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(  # noqa: N802
        self,
        request: pb.RepositoryModelLoadRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.RepositoryModelLoadResponse:
        """Load the model anew from where it is, and the candidate."""
        await self._core.load(request.model_name, _parameters(request.parameters))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self,
        request: pb.RepositoryModelUnloadRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload the version that the parameter `version` names, which must not be the default one."""
        await self._core.unload(request.model_name, _parameters(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(  # noqa: N802
        self,
        request: Sent[pb.ModelInferRequest],
        context: Context,  # noqa: ARG002
    ) -> pb.ModelInferResponse:
        """Screen a batch; an image that fails gets its error in its row, unless all fail."""
        return await self._infer(_request(request.parsed()), this_call())

    async def ModelStreamInfer(  # noqa: N802
        self,
        request_iterator: AsyncIterator[Sent[pb.ModelInferRequest]],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Screen a stream of batches, answered in order; a request that fails gets an error in its place."""
        answer = partial(self._item, stream=this_call())
        window, closing = self._parts.config.limits.stream_window, self._parts.admission.closing
        async with aclosing(in_order(request_iterator, answer, window, closing)) as responses:
            async for response in responses:
                yield response

    async def _infer(self, request: InferenceRequest, call: Call) -> pb.ModelInferResponse:
        call.received(request.id)
        answer = await self._core.infer(request, call)
        with self._parts.metrics.timed("respond"):
            return _response(request.id, answer)

    async def _item(self, sent: Sent[pb.ModelInferRequest], stream: Call) -> pb.ModelStreamInferResponse:
        """One request of a stream: its answer, or its error in its place."""
        call, asked = stream.item(), pb.ModelInferResponse()  # its id tells which request it was
        try:
            with self._parts.request_log.request(call), sent.held():
                request = _request(sent.parsed())
                asked = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
                return pb.ModelStreamInferResponse(infer_response=await self._infer(request, call))
        except StatusError as error:
            message = str(forgetful(error))
        except Exception as error:
            logger.exception("a request of a stream failed")
            message = str(failed(error))
        return pb.ModelStreamInferResponse(error_message=message, infer_response=asked)


def _request(request: pb.ModelInferRequest) -> InferenceRequest:
    """The message as plain data; nothing that may be long is walked or copied."""
    if len(request.raw_input_contents) > 1:
        raise invalid("raw_input_contents", "one entry for one input", f"{len(request.raw_input_contents)}")
    inputs = [_input(one) for one in request.inputs[:2]]  # one is wanted: more are as wrong as two
    if request.raw_input_contents:
        inputs = [_with_raw(one, sent, request) for one, sent in zip(inputs, request.inputs, strict=False)]
    outputs = [RequestedOutput(one.name, _parameters(one.parameters)) for one in request.outputs]
    return InferenceRequest(
        request.model_name, request.model_version, request.id, inputs, outputs, _parameters(request.parameters)
    )


def _input(tensor: pb.ModelInferRequest.InferInputTensor) -> InputTensor:
    contents = _CONTENTS.get(tensor.datatype, "bytes_contents")
    return InputTensor(
        tensor.name,
        tensor.datatype,
        tuple(tensor.shape[: MOST_DIMENSIONS + 1]),
        _parameters(tensor.parameters),
        values=getattr(tensor.contents, contents),
        values_field=f"contents.{contents}",
    )


def _with_raw(
    tensor: InputTensor, sent: pb.ModelInferRequest.InferInputTensor, request: pb.ModelInferRequest
) -> InputTensor:
    if sent.HasField("contents"):
        raise invalid("inputs[0].contents", "nothing beside raw_input_contents", "both")
    raw = request.raw_input_contents[0]
    return InputTensor(tensor.name, tensor.datatype, tensor.shape, tensor.parameters, raw)


def _parameters(sent: Mapping[str, Any]) -> Parameters:
    """Parameters as plain values; one that holds none is an empty string."""
    found = {}
    for name in sent:
        kind = sent[name].WhichOneof("parameter_choice")
        found[name] = "" if kind is None else getattr(sent[name], kind)
    return found


def _response(request_id: str, answer: InferenceAnswer) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=answer.model_name,
        model_version=answer.model_version,
        id=request_id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in answer.outputs
        ],
        raw_output_contents=[one.packed() for one in answer.outputs],
    )
    for name, value in answer.parameters.items():
        response.parameters[name].string_param = value
    return response
