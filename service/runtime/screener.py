"""Screener: from what a client sent to its Screening, whatever the protocol; every servicer asks here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass

from google.protobuf.message import Message
from torch import Tensor

from askance.detectors.preprocessing import Preprocessing
from askance.detectors.screen import Prediction, Screening, Verdict
from askance.service.guard.access import ANONYMOUS, Identity, caller
from askance.service.runtime.batcher import Batcher, Slot
from askance.service.runtime.candidate import Candidate
from askance.service.config import Policy, ServerConfig
from askance.service.context import Context, client_of, deadline_of
from askance.service.observability.requests import note, verdict_of
from askance.service.guard.limits import Budget, RateLimit
from askance.service.runtime.model import LoadedBundle
from askance.service.errors import StatusError, blocked, unavailable
from askance.service.observability.metrics import Metrics

MESSAGE_ID = 128  # characters of it that are logged
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
    def of(cls, context: Context, request: Message, message_id: str) -> Call:
        """The call of a servicer's method; the log knows it by its own id, too."""
        identity, address = caller.get(), client_of(context)
        note(client=identity.name, address=address, message_id=message_id[:MESSAGE_ID])  # each item of a stream anew
        client = address if identity.name == ANONYMOUS else identity.name
        return cls(identity, client, deadline_of(context), request.ByteSize())


@dataclass(frozen=True)
class InputImage:
    """One image as a client sent it.

    Attributes:
        read: validates it, given what the classifier takes and the most pixels of an encoded image; float32 [C, H, W]
            in [0, 1], or StatusError.
        small: whether that takes next to no time.
    """

    read: Callable[[Preprocessing, int], Tensor]
    small: bool


@dataclass(frozen=True)
class ModelVersion:
    """A bundle that answers.

    Attributes:
        served: the bundle.
        batcher: its queue.
    """

    served: LoadedBundle
    batcher: Batcher


class Screener:
    """Validates images, has them screened in batches, and counts the answers.

    Args:
        config: the limits.
        metrics: gets the stages and the answers.
        decoders: the threads that decode images.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, decoders: Executor) -> None:
        self._config = config
        self._metrics = metrics
        self._decoders = decoders
        # All three are set by the ModelRepository; requests under way keep the bundle that they began with.
        self.default: ModelVersion | None = None
        """What answers whoever names no version."""
        self.others: dict[str, ModelVersion] = {}
        """What else answers, by version, the oldest first."""
        self.candidate: Candidate | None = None
        """One of the others, that is to see what the default one answers."""
        self._rate = RateLimit(config.client_rate, config.client_burst)
        self.budget = Budget(config.max_in_flight_bytes)

    @property
    def shows_verdicts(self) -> bool:
        """Whether clients see more than predictions."""
        return self._config.policy is not Policy.SHADOW

    @property
    def served(self) -> LoadedBundle:
        """What is served by default.

        Raises:
            StatusError: UNAVAILABLE, nothing yet.
        """
        return self._default().served

    def full(self) -> StatusError | None:
        """RESOURCE_EXHAUSTED while the default bundle has no place in its queue, else None."""
        return None if self.default is None else self.default.batcher.full()

    def all(self) -> list[ModelVersion]:
        """Whatever answers, the default one first."""
        return [*([] if self.default is None else [self.default]), *self.others.values()]

    def at(self, version: str) -> ModelVersion | None:
        """What answers as a version, "" for the default one; None if nothing does.

        Raises:
            StatusError: UNAVAILABLE, nothing is served yet.
        """
        default = self._default()
        return default if version in ("", default.served.version) else self.others.get(version)

    async def screen(
        self, pictures: Sequence[InputImage], explain: bool, call: Call, deployed: ModelVersion | None = None
    ) -> tuple[LoadedBundle, list[Prediction | StatusError]]:
        """Screen the images of one request, each of which may fail alone.

        Args:
            pictures: as many as places are taken in the queue, all of them or none.
            explain: whether the detectors explain themselves.
            call: who asks.
            deployed: what is to answer; None stands for the default one.

        Returns:
            What answered, and the outcome of each image: a Screening, a mere Prediction where the server fails open and
            the detectors did not have their say, or what went wrong.

        Raises:
            StatusError: UNAVAILABLE before anything is served; RESOURCE_EXHAUSTED when the queue or the bytes in flight
                are at their limit, or the client is.
        """
        deployed = self._default() if deployed is None else deployed
        default = deployed is self.default
        self._rate.take(call.client, len(pictures))
        with ExitStack() as stack:
            stack.enter_context(self.budget.hold(call.size))
            places = [stack.enter_context(deployed.batcher.place()) for _ in pictures]
            outcomes = await asyncio.gather(
                *(
                    self._screen(picture, place, deployed.served, explain, call.deadline, default)
                    for picture, place in zip(pictures, places, strict=True)
                )
            )
        note(bundle=deployed.served.version, verdicts=[verdict_of(outcome) for outcome in outcomes])
        return deployed.served, outcomes

    def _default(self) -> ModelVersion:
        if self.default is None:
            raise unavailable("loading")
        return self.default

    async def _screen(
        self, picture: InputImage, place: Slot, served: LoadedBundle, explain: bool, deadline: float | None, default: bool
    ) -> Prediction | StatusError:
        try:
            with self._metrics.timed("decode"):
                image = await self._read(picture, served)
            answer = await place.screen(image, explain, deadline)
        except StatusError as error:
            place.free()
            return error
        if default:  # alerts go by what answers whoever names no version
            self._metrics.answered(answer)
        if not isinstance(answer, Screening):
            return answer
        if default and self.candidate is not None:
            self.candidate.offer(image, answer)
        if self._config.policy is Policy.BLOCK and answer.verdict is Verdict.ADVERSARIAL:
            self._metrics.blocked()
            return blocked()
        return answer

    async def _read(self, picture: InputImage, served: LoadedBundle) -> Tensor:
        preprocessing, limit = served.screen.preprocessing, self._config.max_image_pixels
        if picture.small:
            return picture.read(preprocessing, limit)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, picture.read, preprocessing, limit)
