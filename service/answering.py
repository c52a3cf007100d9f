"""Answering: from what a client sent to its Screening, whatever the protocol; every servicer asks here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass

from google.protobuf.message import Message
from torch import Tensor

from detectors.preprocessing import Preprocessing
from detectors.screen import Screening, Verdict
from service.access import ANONYMOUS, Identity, caller
from service.batcher import Batcher, Place
from service.config import Policy, ServerConfig
from service.gate import Context, client_of, deadline_of
from service.limits import Budget, RateLimit
from service.served import Served
from service.status import StatusError, blocked, unavailable
from service.telemetry import Telemetry

SMALL = 64 * 1024  # bytes: a tensor up to this size is validated in less time than another thread takes to wake


@dataclass(frozen=True)
class Call:
    """Who asks.

    Attributes:
        identity: the client, and what it may do.
        client: its name, or a stranger's address, which limits go by.
        deadline: on `time.monotonic`'s clock, None if it has none.
        size: bytes of the request.
    """

    identity: Identity
    client: str
    deadline: float | None
    size: int

    @classmethod
    def of(cls, context: Context, request: Message) -> Call:
        """The call of a servicer's method."""
        identity = caller.get()
        client = client_of(context) if identity.name == ANONYMOUS else identity.name
        return cls(identity, client, deadline_of(context), request.ByteSize())


@dataclass(frozen=True)
class Picture:
    """One image as a client sent it.

    Attributes:
        read: validates it, given what the classifier takes and the most pixels of an encoded image; float32 [C, H, W]
            in [0, 1], or StatusError.
        small: whether that takes next to no time.
    """

    read: Callable[[Preprocessing, int], Tensor]
    small: bool


class Answering:
    """Validates images, has them screened in batches, and counts the answers.

    Args:
        config: the limits.
        telemetry: gets the stages and the answers.
        decoders: the threads that decode images.
    """

    def __init__(self, config: ServerConfig, telemetry: Telemetry, decoders: Executor) -> None:
        self._config = config
        self._telemetry = telemetry
        self._decoders = decoders
        self.current: tuple[Served, Batcher] | None = None
        """What answers from now on, and its queue; set by the Deployment. Requests under way keep theirs."""
        self._rate = RateLimit(config.client_rate, config.client_burst)
        self.budget = Budget(config.max_in_flight_bytes)

    @property
    def shows_verdicts(self) -> bool:
        """Whether clients see more than predictions."""
        return self._config.policy is not Policy.SHADOW

    @property
    def served(self) -> Served:
        """What is served.

        Raises:
            StatusError: UNAVAILABLE, nothing yet.
        """
        return self._deployed()[0]

    async def screen(
        self, pictures: Sequence[Picture], explain: bool, call: Call
    ) -> tuple[Served, list[Screening | StatusError]]:
        """Screen the images of one request, each of which may fail alone.

        Args:
            pictures: as many as places are taken in the queue, all of them or none.
            explain: whether the detectors explain themselves.
            call: who asks.

        Returns:
            What answered, and the outcome of each image.

        Raises:
            StatusError: UNAVAILABLE before anything is served; RESOURCE_EXHAUSTED when the queue or the bytes in flight
                are at their limit, or the client is.
        """
        served, batcher = self._deployed()
        self._rate.take(call.client, len(pictures))
        with ExitStack() as stack:
            stack.enter_context(self.budget.hold(call.size))
            places = [stack.enter_context(batcher.place()) for _ in pictures]
            outcomes = await asyncio.gather(
                *(
                    self._screen(picture, place, served, explain, call.deadline)
                    for picture, place in zip(pictures, places, strict=True)
                )
            )
        return served, outcomes

    def _deployed(self) -> tuple[Served, Batcher]:
        if self.current is None:
            raise unavailable("loading")
        return self.current

    async def _screen(
        self, picture: Picture, place: Place, served: Served, explain: bool, deadline: float | None
    ) -> Screening | StatusError:
        try:
            with self._telemetry.timed("decode"):
                image = await self._read(picture, served)
            screening = await place.screen(image, explain, deadline)
        except StatusError as error:
            place.free()
            return error
        self._telemetry.screened(screening)
        if self._config.policy is Policy.BLOCK and screening.verdict is Verdict.ADVERSARIAL:
            self._telemetry.blocked()
            return blocked()
        return screening

    async def _read(self, picture: Picture, served: Served) -> Tensor:
        preprocessing, limit = served.screen.preprocessing, self._config.max_image_pixels
        if picture.small:
            return picture.read(preprocessing, limit)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, picture.read, preprocessing, limit)
