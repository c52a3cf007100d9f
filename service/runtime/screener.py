"""Screener: from the images that a client sent to their Answers, whatever the protocol; every protocol asks here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from askance import answers
from askance.answers import Answer, Verdict
from askance.screening.images import Pixels
from askance.screening.preprocessing import Preprocessing
from askance.service.answered import Answered, Observer
from askance.service.call import ANONYMOUS, Call, Role
from askance.service.config import ServerConfig
from askance.service.errors import StatusError, forgetful
from askance.service.guard.limits import RateLimit
from askance.service.observability.metrics import Metrics
from askance.service.observability.requests import verdict_of
from askance.service.probing.patrol import Patrol
from askance.service.runtime.batcher import Outcome, Slot
from askance.service.runtime.model import LoadedBundle, ModelVersion
from askance.service.runtime.repository import ModelRepository
from askance.service.settings import Policy, Probabilities

DIGITS = 2  # after the point, of probabilities that are rounded
SMALL_BYTES = 64 * 1024  # a tensor up to this size is validated in less time than another thread takes to wake


@dataclass(frozen=True)
class InputImage:
    """One image as a client sent it.

    Attributes:
        read: validates it, given what the classifier takes and the most pixels of an encoded image; float32 [C, H, W]
            in [0, 1], or StatusError.
        is_small: whether that takes next to no time.
        file: the file that it came as; None where pixels did.
    """

    read: Callable[[Preprocessing, int], Pixels]
    is_small: bool
    file: bytes | memoryview | None = None


class Screener:
    """Validates images, has them screened in batches, and counts the answers.

    Args:
        config: the limits, and what is done with a verdict.
        metrics: gets the stages and the answers.
        decoders: the threads that decode images.
        repository: the versions that answer.
        rate: of each client's images.
        observers: look at what the default version has answered, once the answer is on its way: how long a client waits
            must not tell it whether an image is looked at.
        patrol: knows the clients that probe; None where nobody looks for them.
    """

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        decoders: Executor,
        repository: ModelRepository,
        rate: RateLimit,
        observers: Sequence[Observer] = (),
        patrol: Patrol | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._decoders = decoders
        self._repository = repository
        self._rate = rate
        self._observers = tuple(observers)
        self._patrol = patrol

    @property
    def shows_verdicts(self) -> bool:
        """Whether clients see more than predictions."""
        return self._config.verdicts.policy is not Policy.MONITOR

    async def screen(
        self, images: Sequence[InputImage], explain: bool, call: Call, version: ModelVersion | None = None
    ) -> tuple[LoadedBundle, list[Outcome]]:
        """Screen the images of one request, each of which may fail alone.

        Args:
            images: as many as slots are taken of the queue, all of them or none.
            explain: whether the detectors explain themselves.
            call: who asks.
            version: what is to answer; None stands for the default one.

        Returns:
            What answered, and the outcome of each image: an Answer, UNSCREENED where the server fails open and the
            detectors did not have their say, BLOCKED where it keeps its prediction, or what went wrong.

        Raises:
            StatusError: UNAVAILABLE before anything is served; RESOURCE_EXHAUSTED when the queue is full, or the
                client too fast; PERMISSION_DENIED, it probes.
        """
        default = self._repository.default
        version = default if version is None else version
        self._rate.take(call.client, len(images) - call.images_taken)
        if self._patrol is not None:
            self._patrol.check(call, len(images))
        slots: list[Slot] = []
        observed: list[Answered] = []
        request = object()  # stands for this one where many are counted together; holds nothing of it
        try:
            for _ in images:
                slots.append(version.batcher.slot())  # noqa: PERF401 (those before one that is refused are freed, too)
            screened = [
                self._screen(image, slot, version, explain, call, request, observed)
                for image, slot in zip(images, slots, strict=True)
            ]
            outcomes = [await screened[0]] if len(screened) == 1 else await asyncio.gather(*screened)
        finally:
            for slot in slots:
                slot.free()
            for answered in observed:  # whoever gives up halfway is looked at all the same
                for observe in self._observers:
                    asyncio.get_running_loop().call_soon(observe, answered)
        call.notes |= {"bundle": version.version, "verdicts": [verdict_of(outcome) for outcome in outcomes]}
        return version.bundle, outcomes if self._sees_all_digits(call) else [_rounded(outcome) for outcome in outcomes]

    def _sees_all_digits(self, call: Call) -> bool:
        return (
            call.identity.name != ANONYMOUS
            or Role.LOGITS in call.identity.roles
            or self._config.access.anonymous_probabilities is Probabilities.FULL
        )

    async def _screen(
        self,
        image: InputImage,
        slot: Slot,
        version: ModelVersion,
        explain: bool,
        call: Call,
        request: object,
        observed: list[Answered],
    ) -> Outcome:
        is_default = version is self._repository.default
        try:
            with self._metrics.timed("decode"):
                pixels = await self._read(image, version.bundle)
            answer = await slot.screen(pixels, explain, call.deadline)
        except StatusError as error:
            slot.free()
            return forgetful(error)
        if is_default:  # alerts go by what answers whoever names no version
            self._metrics.answered(answer, request, call.identity.name)
        if answer.screening is None:
            return answer
        if is_default and (candidate := self._repository.candidate) is not None:
            candidate.offer(pixels, answer, request)
        if is_default and self._observers:
            observed.append(Answered(call, answer, image.file, pixels, version.bundle.screen.class_names))
        if self._config.verdicts.policy is Policy.BLOCK and answer.verdict is Verdict.ADVERSARIAL:
            self._metrics.blocked()
            return Answer(None, Verdict.BLOCKED, reason=answers.BLOCKED, bundle_id=answer.bundle_id)
        return answer

    async def _read(self, image: InputImage, bundle: LoadedBundle) -> Pixels:
        preprocessing, limit = bundle.screen.preprocessing, self._config.limits.max_image_pixels
        if image.is_small:
            return image.read(preprocessing, limit)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, image.read, preprocessing, limit)


def _rounded(outcome: Outcome) -> Outcome:
    if isinstance(outcome, StatusError) or outcome.prediction is None:
        return outcome
    return replace(outcome, prediction=outcome.prediction.rounded(DIGITS))
