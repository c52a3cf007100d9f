"""Candidate: a bundle that screens, unseen, what another has answered, so that it is known before it takes over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from torch import Tensor

from askance.detectors.screen import ScreenError, Screening
from askance.service.agreement import Agreement
from askance.service.served import Served

logger = logging.getLogger(__name__)

SEATS = 64  # images that wait for the candidate; it sees none of what comes while all are taken
PAUSE = 0.005  # seconds between looks at whether the inference thread is free


class Candidate:
    """Screens answered images one by one while no request needs the inference thread, so that none waits long for it.

    Args:
        served: the candidate; its screen is closed by whoever opened it.
        executor: the inference thread.
        agreement: counts where it differs.
        idle: whether no request needs the thread.
    """

    def __init__(self, served: Served, executor: Executor, agreement: Agreement, idle: Callable[[], bool]) -> None:
        self.served = served
        self._executor = executor
        self._agreement = agreement
        self._idle = idle
        self._answered: asyncio.Queue[tuple[Tensor, Screening]] = asyncio.Queue(SEATS)
        self._worker = asyncio.create_task(self._work(), name="askance-candidate")
        agreement.candidate(served.bundle_id)

    def offer(self, image: Tensor, screening: Screening) -> None:
        """An image [C, H, W] and what was answered; never waits."""
        try:
            self._answered.put_nowait((image, screening))
        except asyncio.QueueFull:
            self._agreement.skipped()

    def stop(self) -> None:
        """Screen no more."""
        self._worker.cancel()
        self._agreement.candidate(None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            image, answered = await self._answered.get()
            while not self._idle():
                await asyncio.sleep(PAUSE)
            self._agreement.compared(answered, await loop.run_in_executor(self._executor, self._screen, image))

    def _screen(self, image: Tensor) -> Screening | ScreenError:
        try:
            (result,) = self.served.screen(image[None])
        except Exception as error:
            logger.warning("the candidate %s failed on an image: %r", self.served.version, error)
            return ScreenError(str(error))
        return result
