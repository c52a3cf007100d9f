"""Screening: the protocol askance.v1.Screening over gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import ClassVar

import grpc

from askance.answers import Verdict
from askance.service.call import REQUEST_ID, VERDICT, Call, Role, this_call
from askance.service.errors import StatusError, failed, withheld
from askance.service.guard.admission import Kind
from askance.service.guard.interceptor import Context
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.protocols.base import Parts, Protocol
from askance.service.protocols.images import image_of
from askance.service.protocols.inference_tensors import error_of
from askance.service.protocols.screening_messages import describe_response, screen_response
from askance.service.protocols.streaming import in_order
from askance.service.runtime.batcher import Outcome
from askance.service.runtime.model import LoadedBundle
from askance.service.runtime.screener import SMALL_BYTES, InputImage

logger = logging.getLogger(__name__)


class ScreeningProtocol(Protocol):
    """The service askance.v1.Screening."""

    name: ClassVar[str] = "screening"
    service: ClassVar[str] = pb.DESCRIPTOR.services_by_name["Screening"].full_name
    methods: ClassVar[Mapping[str, Kind]] = {
        "Screen": Kind.SCREENS,
        "ScreenStream": Kind.STREAMS,
        "Describe": Kind.ASKS,
    }

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        servicer = ScreeningServicer(self.parts)
        screening_pb2_grpc.add_ScreeningServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]


class ScreeningServicer(screening_pb2_grpc.ScreeningServicer):
    """One image a request. Raises StatusError; stands behind an Interceptor.

    Args:
        parts: as for a protocol.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def Screen(self, request: pb.ScreenRequest, context: Context) -> pb.ScreenResponse:  # noqa: N802
        """Screen one image."""
        call = this_call()
        bundle, outcome = await self._screen(request, call)
        if (error := error_of(outcome)) is not None:
            if not isinstance(outcome, StatusError):  # a client tells a blocked image from a refusal by this
                trailing = ((REQUEST_ID, call.request_id), (VERDICT, Verdict.BLOCKED.value))
                context.set_trailing_metadata(trailing)
            raise error
        return self._response(request, call, bundle, outcome)

    async def ScreenStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.ScreenRequest],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.ScreenStreamResponse]:
        """Screen each image of a stream and answer in its order; a bad one gets an error in its place."""
        answer = partial(self._item, stream=this_call())
        window, closing = self._parts.config.limits.stream_window, self._parts.admission.closing
        stream = in_order(request_iterator, answer, window, closing)
        async with aclosing(stream) as responses:  # so that a cancellation ends its tasks at once
            async for response in responses:
                yield response

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: ARG002, N802
        """Say what is served."""
        return describe_response(self._parts.repository.default.bundle, self._parts.config)

    async def _screen(self, request: pb.ScreenRequest, call: Call) -> tuple[LoadedBundle, Outcome]:
        call.received(request.ByteSize(), request.request_id)
        if request.explain:
            call.identity.require(Role.EXPLANATIONS)
            if not self._parts.screener.shows_verdicts:
                raise withheld()
        is_small = not request.encoded and len(request.tensor.data) <= SMALL_BYTES
        image = InputImage(partial(image_of, request), is_small)
        bundle, (outcome,) = await self._parts.screener.screen([image], request.explain, call)
        return bundle, outcome

    def _response(
        self, request: pb.ScreenRequest, call: Call, bundle: LoadedBundle, outcome: Outcome
    ) -> pb.ScreenResponse:
        assert not isinstance(outcome, StatusError)
        shows_verdicts = self._parts.screener.shows_verdicts
        with self._parts.metrics.timed("respond"):
            return screen_response(
                request.request_id,
                bundle.bundle_id,
                outcome,
                verdict=shows_verdicts,
                scores=shows_verdicts and Role.SCORES in call.identity.roles,
            )

    async def _item(self, request: pb.ScreenRequest, stream: Call) -> pb.ScreenStreamResponse:
        """One request of a stream: its answer, or its error in its place."""
        call, verdict = stream.item(), pb.VERDICT_UNSPECIFIED
        try:
            with self._parts.request_log.request(call):
                bundle, outcome = await self._screen(request, call)
                if (error := error_of(outcome)) is not None:
                    if not isinstance(outcome, StatusError):
                        verdict = pb.BLOCKED
                    raise error
                response = self._response(request, call, bundle, outcome)
        except StatusError as error:
            failure = error
        except Exception as error:
            logger.exception("an item of a stream failed")
            failure = failed(error)
        else:
            return pb.ScreenStreamResponse(request_id=request.request_id, response=response)
        item_error = pb.ItemError(code=int(failure.code), message=str(failure), verdict=verdict)
        return pb.ScreenStreamResponse(request_id=request.request_id, error=item_error)
