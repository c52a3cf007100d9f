"""Deployment: which bundle answers, and how another takes its place without a request noticing."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from detectors.errors import BundleError, ConfigError
from service.answering import Answering
from service.batcher import Batcher
from service.config import ServerConfig
from service.served import Served
from service.telemetry import Telemetry

logger = logging.getLogger(__name__)

ENVELOPE = 1024  # bytes of a request beside its tensor
PAUSE = 0.02  # seconds between looks at whether a retired bundle's last requests are answered


class Deployment:
    """The bundle that answers, each with a queue of its own in front of the one inference thread.

    Args:
        config: the limits.
        telemetry: shows what is served.
        answering: knows the one that answers.
        inference: the one thread.
    """

    def __init__(self, config: ServerConfig, telemetry: Telemetry, answering: Answering, inference: Executor) -> None:
        self._config = config
        self._telemetry = telemetry
        self._answering = answering
        self._inference = inference
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="askance-loader")
        self._one_at_a_time = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], Batcher] = {}

    async def deploy(self, load: Callable[[], Served]) -> tuple[Served, bool]:
        """Load and verify a bundle beside the one that answers, warm it up, then let it answer instead.

        Requests under way keep the bundle that they began with. On any failure the old one answers on.

        Returns:
            What answers now, and whether that is new: the bundle that answers already is not deployed again.

        Raises:
            AskanceError: it cannot be loaded, cannot screen an image, is another classifier's, or does not fit the
                limits.
        """
        async with self._one_at_a_time:
            loop = asyncio.get_running_loop()
            served = await loop.run_in_executor(self._loader, load)
            try:
                current = self._answering.current
                if current is not None and current[0].bundle_id == served.bundle_id:
                    served.screen.close()
                    return current[0], False
                self._check(served, None if current is None else current[0])
                await loop.run_in_executor(self._loader, served.warm_up)
            except BaseException:
                served.screen.close()
                raise
            self._replace(served)
            return served, True

    def _check(self, served: Served, current: Served | None) -> None:
        needed = 4 * math.prod(served.screen.preprocessing.shape) + ENVELOPE
        if needed > self._config.max_message_bytes:
            raise ConfigError(
                f"max_message_bytes: a tensor for this bundle's classifier takes {needed} bytes, "
                f"got {self._config.max_message_bytes}"
            )
        if current is not None and current.classifier != served.classifier:
            raise BundleError(
                f"bundle {served.version} is of the classifier {served.classifier!r}, this server serves "
                f"{current.classifier!r}: start another server for it"
            )

    def _replace(self, served: Served) -> None:
        config = self._config
        batcher = Batcher(served.screen, self._inference, config.max_batch, config.queue_size, self._telemetry)
        batcher.start()
        old, self._answering.current = self._answering.current, (served, batcher)
        self._telemetry.deployed(served)
        if old is not None:
            task = asyncio.create_task(_retire(*old), name="askance-retire")
            self._retiring[task] = old[1]
            task.add_done_callback(self._retiring.pop)

    def _batchers(self) -> list[Batcher]:
        current = self._answering.current
        return [*([] if current is None else [current[1]]), *self._retiring.values()]

    def held(self) -> int:
        """Requests accepted and not yet with a classifier."""
        return sum(batcher.held for batcher in self._batchers())

    def busy_seconds(self) -> float:
        """How long the inference thread has been at its present batch."""
        return max((batcher.busy_seconds() for batcher in self._batchers()), default=0.0)

    async def stop(self) -> None:
        """Finish the call under way, answer what still waits UNAVAILABLE."""
        for task in self._retiring:
            task.cancel()
        for batcher in self._batchers():
            await batcher.stop()
        self._loader.shutdown(wait=False, cancel_futures=True)


async def _retire(served: Served, batcher: Batcher) -> None:
    """Let a bundle that was replaced answer what it has accepted, then let go of it."""
    while batcher.held or batcher.busy_seconds():
        await asyncio.sleep(PAUSE)
    await batcher.stop()
    served.screen.close()
    logger.info("bundle %s has answered its last request", served.version)
