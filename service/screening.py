"""Screening: the servicer of askance.v1.Screening."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from askance.service.access import Role
from askance.service.answering import SMALL, Answering, Call, Picture
from askance.service.config import ServerConfig
from askance.service.context import Context, deadline_of, metadata_of
from askance.service.gate import Gate
from askance.service.images import image_of
from askance.service.journal import Journal
from askance.service.messages import describe_response, screen_response
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.status import StatusError, failed, withheld
from askance.service.streaming import in_order
from askance.service.telemetry import Telemetry

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Screening"].full_name


class ScreeningServicer(screening_pb2_grpc.ScreeningServicer):
    """One image a request. Raises StatusError; stands behind a Gate.

    Args:
        config: the limits.
        gate: says when streams must end.
        telemetry: gets the stages.
        journal: keeps the stream's items.
        answering: screens the images.
    """

    def __init__(
        self, config: ServerConfig, gate: Gate, telemetry: Telemetry, journal: Journal, answering: Answering
    ) -> None:
        self._config = config
        self._gate = gate
        self._telemetry = telemetry
        self._journal = journal
        self._answering = answering

    async def Screen(self, request: pb.ScreenRequest, context: Context) -> pb.ScreenResponse:  # noqa: N802
        """Screen one image."""
        return await self._screen(request, Call.of(context, request, request.request_id))

    async def ScreenStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ScreenRequest], context: Context
    ) -> AsyncIterator[pb.ScreenStreamResponse]:
        """Screen each image of a stream and answer in its order; a bad one gets an error in its place."""
        answer = partial(self._item, context=context)
        stream = in_order(request_iterator, answer, self._config.stream_window, self._gate.closing)
        async with aclosing(stream) as responses:  # so that a cancellation ends its tasks at once
            async for response in responses:
                yield response

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: ARG002, N802
        """Say what is served."""
        return describe_response(self._answering.served, self._config)

    async def _screen(self, request: pb.ScreenRequest, call: Call) -> pb.ScreenResponse:
        shows_verdicts = self._answering.shows_verdicts
        if request.explain:
            call.identity.require(Role.EXPLANATIONS)
            if not shows_verdicts:
                raise withheld()
        small = not request.encoded and len(request.tensor.data) <= SMALL
        served, (outcome,) = await self._answering.screen(
            [Picture(partial(image_of, request), small)], request.explain, call
        )
        if isinstance(outcome, StatusError):
            raise outcome
        with self._telemetry.timed("respond"):
            return screen_response(
                request.request_id,
                served.bundle_id,
                outcome,
                verdict=shows_verdicts,
                scores=shows_verdicts and Role.SCORES in call.identity.roles,
            )

    async def _item(self, request: pb.ScreenRequest, context: Context) -> pb.ScreenStreamResponse:
        """One request of a stream: its answer, or its error in its place."""
        try:
            with self._journal.request("ScreenStream", metadata_of(context), deadline_of(context)):
                response = await self._screen(request, Call.of(context, request, request.request_id))
        except StatusError as error:
            failure = error
        except Exception as error:
            logger.exception("an item of a stream failed")
            failure = failed(error)
        else:
            return pb.ScreenStreamResponse(request_id=request.request_id, response=response)
        item_error = pb.ItemError(code=failure.code.value[0], message=str(failure))
        return pb.ScreenStreamResponse(request_id=request.request_id, error=item_error)
