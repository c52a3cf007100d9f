"""Screening: the protocol askance.v1.Screening over gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import grpc

from askance.answers import Verdict
from askance.service.call import REQUEST_ID, VERDICT, Call, Role, this_call
from askance.service.errors import StatusError, failed, forgetful, withheld
from askance.service.guard.admission import Kind
from askance.service.guard.interceptor import Context, Sent
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.protocols.base import Parts, Protocol
from askance.service.protocols.images import image_of
from askance.service.protocols.inference_tensors import error_of
from askance.service.protocols.screening_messages import describe_response, screen_response
from askance.service.protocols.streaming import in_order
from askance.service.runtime.batcher import Outcome
from askance.service.runtime.model import LoadedBundle
from askance.service.runtime.screener import InputImage

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

    async def Screen(self, request: Sent[pb.ScreenRequest], context: Context) -> pb.ScreenResponse:  # noqa: N802
        """Screen one image."""
        call = this_call()
        asked = _Asked.of(request.parsed())
        bundle, outcome = await self._screen(asked, call)
        if (error := error_of(outcome)) is not None:
            if not isinstance(outcome, StatusError):  # a client tells a blocked image from a refusal by this
                trailing = ((REQUEST_ID, call.request_id), (VERDICT, Verdict.BLOCKED.value))
                context.set_trailing_metadata(trailing)
            raise error
        return self._response(asked, call, bundle, outcome)

    async def ScreenStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[Sent[pb.ScreenRequest]],
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

    async def _screen(self, asked: _Asked, call: Call) -> tuple[LoadedBundle, Outcome]:
        call.received(asked.request_id)
        if asked.explain:
            call.identity.require(Role.EXPLANATIONS, "explain")
            if not self._parts.screener.shows_verdicts:
                raise withheld()
        bundle, (outcome,) = await self._parts.screener.screen([asked.image], asked.explain, call)
        return bundle, outcome

    def _response(self, asked: _Asked, call: Call, bundle: LoadedBundle, outcome: Outcome) -> pb.ScreenResponse:
        assert not isinstance(outcome, StatusError)
        shows_verdicts = self._parts.screener.shows_verdicts
        with self._parts.metrics.timed("respond"):
            return screen_response(
                asked.request_id,
                bundle.bundle_id,
                outcome,
                verdict=shows_verdicts,
                scores=shows_verdicts and Role.SCORES in call.identity.roles,
            )

    async def _item(self, sent: Sent[pb.ScreenRequest], stream: Call) -> pb.ScreenStreamResponse:
        """One request of a stream: its answer, or its error in its place."""
        call, request_id, verdict = stream.item(), "", pb.VERDICT_UNSPECIFIED
        try:
            with self._parts.request_log.request(call), sent.held():
                asked = _Asked.of(sent.parsed())
                request_id = asked.request_id
                bundle, outcome = await self._screen(asked, call)
                if (refusal := error_of(outcome)) is not None:
                    if not isinstance(outcome, StatusError):
                        verdict = pb.BLOCKED
                    raise refusal
                response = self._response(asked, call, bundle, outcome)
                return pb.ScreenStreamResponse(request_id=request_id, response=response)
        except StatusError as error:
            item_error = _item_error(error, verdict)
        except Exception as error:
            logger.exception("an item of a stream failed")
            item_error = _item_error(failed(error), verdict)
        return pb.ScreenStreamResponse(request_id=request_id, error=item_error)


@dataclass(frozen=True)
class _Asked:
    """A request, its message let go of: what is large is there once."""

    request_id: str
    explain: bool
    image: InputImage

    @classmethod
    def of(cls, request: pb.ScreenRequest) -> _Asked:
        return cls(request.request_id, request.explain, image_of(request))


def _item_error(error: StatusError, verdict: Any) -> pb.ItemError:
    return pb.ItemError(code=int(error.code), message=str(forgetful(error)), verdict=verdict)
