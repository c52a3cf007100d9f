"""Screening: the servicer of askance.v1.Screening."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from askance.service.guard.access import Role
from askance.service.runtime.screener import SMALL, Screener, Call, InputImage
from askance.service.config import ServerConfig
from askance.service.context import Context, deadline_of, metadata_of
from askance.service.guard.interceptor import Gate
from askance.service.protocols.images import image_of
from askance.service.observability.requests import RequestLog
from askance.service.protocols.screening_messages import describe_response, screen_response
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.errors import StatusError, failed, withheld
from askance.service.protocols.streaming import in_order
from askance.service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Screening"].full_name


class ScreeningServicer(screening_pb2_grpc.ScreeningServicer):
    """One image a request. Raises StatusError; stands behind a Gate.

    Args:
        config: the limits.
        gate: says when streams must end.
        metrics: gets the stages.
        request_log: keeps the stream's items.
        screener: screens the images.
    """

    def __init__(
        self, config: ServerConfig, gate: Gate, metrics: Metrics, request_log: RequestLog, screener: Screener
    ) -> None:
        self._config = config
        self._gate = gate
        self._metrics = metrics
        self._request_log = request_log
        self._screener = answering

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
        return describe_response(self._screener.served, self._config)

    async def _screen(self, request: pb.ScreenRequest, call: Call) -> pb.ScreenResponse:
        shows_verdicts = self._screener.shows_verdicts
        if request.explain:
            call.identity.require(Role.EXPLANATIONS)
            if not shows_verdicts:
                raise withheld()
        small = not request.encoded and len(request.tensor.data) <= SMALL
        served, (outcome,) = await self._screener.screen(
            [InputImage(partial(image_of, request), small)], request.explain, call
        )
        if isinstance(outcome, StatusError):
            raise outcome
        with self._metrics.timed("respond"):
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
            with self._request_log.request("ScreenStream", metadata_of(context), deadline_of(context)):
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
