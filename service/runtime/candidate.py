"""Candidate: a bundle that screens, unseen, what another has answered, so that it is known before it takes over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from askance.answers import Answer
from askance.errors import ScreenError
from askance.screening.images import Pixels
from askance.service.observability.candidate_metrics import CandidateMetrics
from askance.service.runtime.model import LoadedBundle

logger = logging.getLogger(__name__)

WAITING_IMAGES = 64  # that wait for the candidate; it sees none of what comes while all are taken
POLL_SECONDS = 0.005  # between looks at whether the inference thread is free


class Candidate:
    """Screens answered images one by one while no request needs the inference thread, so that none waits long for it.

    Args:
        bundle: the candidate; its screen is closed by whoever opened it.
        executor: the inference thread.
        metrics: counts where it differs.
        idle: whether no request needs the thread.
    """

    def __init__(
        self, bundle: LoadedBundle, executor: Executor, metrics: CandidateMetrics, idle: Callable[[], bool]
    ) -> None:
        self.bundle = bundle
        self._executor = executor
        self._metrics = metrics
        self._idle = idle
        self._answered: asyncio.Queue[tuple[Pixels, Answer, object]] = asyncio.Queue(WAITING_IMAGES)
        self._worker = asyncio.create_task(self._work(), name="askance-candidate")
        metrics.candidate(bundle.bundle_id)

    def offer(self, image: Pixels, answer: Answer, request: object) -> None:
        """An image [C, H, W], what was answered, and the request that it is of; never waits."""
        try:
            self._answered.put_nowait((image, answer, request))
        except asyncio.QueueFull:
            self._metrics.skipped()

    def stop(self) -> None:
        """Screen no more."""
        self._worker.cancel()
        self._metrics.candidate(None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            image, answered, request = await self._answered.get()
            while not self._idle():
                await asyncio.sleep(POLL_SECONDS)
            said = await loop.run_in_executor(self._executor, self._screen, image)
            self._metrics.compared(answered, said, request)

    def _screen(self, image: Pixels) -> Answer | ScreenError:
        try:
            (result,) = self.bundle.screen(image[None])
        except Exception as error:
            logger.warning("the candidate %s failed on an image: %r", self.bundle.version, error)
            return ScreenError(str(error))
        return result
