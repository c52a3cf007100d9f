"""ModelRepository: which bundles answer, and how another takes the default one's place without a request noticing."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import grpc

from askance.errors import BundleError, ConfigError
from askance.service.runtime.screener import Screener, ModelVersion
from askance.service.runtime.batcher import Batcher
from askance.service.runtime.candidate import Candidate
from askance.service.config import ServerConfig
from askance.service.runtime.model import LoadedBundle
from askance.service.errors import StatusError
from askance.service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

ENVELOPE = 1024  # bytes of a request beside its tensor
PAUSE = 0.02  # seconds between looks at whether a retired bundle's last requests are answered


class ModelRepository:
    """The bundles that answer, each with a queue of its own in front of the one inference thread.

    One is the default. The others, a candidate and those that were replaced and are kept, answer requests that name
    their version.

    Args:
        config: the limits.
        metrics: shows what is served.
        screener: knows those that answer.
        inference: the one thread.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, screener: Screener, inference: Executor) -> None:
        self._config = config
        self._metrics = metrics
        self._screener = answering
        self._inference = inference
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="askance-loader")
        self._one_at_a_time = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], Batcher] = {}

    async def deploy(self, load: Callable[[], LoadedBundle]) -> tuple[LoadedBundle, bool]:
        """Load and verify a bundle beside the one that answers, warm it up, then let it answer instead.

        Requests under way keep the bundle that they began with. On any failure the old one answers on.

        Returns:
            What answers now, and whether that is new: the bundle that answers already is not deployed again.

        Raises:
            AskanceError: it cannot be loaded, cannot screen an image, is another classifier's, or does not fit the
                limits.
        """
        async with self._one_at_a_time:
            served = await self._load(load)
            current = self._screener.default
            if current is not None and current.served.bundle_id == served.bundle_id:
                served.screen.close()
                logger.info("bundle %s answers already", served.version)
                return current.served, False
            await self._prove(served, current)
            self._let_go(served.version)  # it may have been the candidate, whose time has come, or kept
            self._screener.default = self._start(served)
            self._metrics.deployed(served)
            if current is not None:
                self._keep(current)
            logger.info("bundle %s answers", served.version)
            return served, True

    async def consider(self, load: Callable[[], LoadedBundle]) -> tuple[LoadedBundle, bool]:
        """Load and verify a candidate, warm it up, and let it screen, unseen, what the default one has answered.

        A candidate that is the default one already, or the candidate, changes nothing.

        Returns:
            The candidate, and whether it is new.

        Raises:
            AskanceError: as for `deploy`, or it takes images of another shape; the candidate before it stays.
        """
        async with self._one_at_a_time:
            default = self._screener.default
            assert default is not None
            served = await self._load(load)
            answers, before = served.bundle_id == default.served.bundle_id, self._screener.candidate
            if answers or (before is not None and served.bundle_id == before.served.bundle_id):
                served.screen.close()
                already = "answers already: it is no candidate" if answers else "is the candidate already"
                logger.info("bundle %s %s", served.version, already)
                return served, False
            await self._prove(served, default)
            if before is not None:
                self._let_go(before.served.version)
            self._let_go(served.version)  # it may have been kept
            self._screener.others[served.version] = self._start(served)
            self._screener.candidate = Candidate(served, self._inference, self._metrics.agreement, self.idle)
            logger.info("bundle %s is the candidate", served.version)
            return served, True

    def unload(self, version: str) -> None:
        """Let go of a version that is not the default one, once it has answered what it has accepted.

        Raises:
            StatusError: FAILED_PRECONDITION, it is the default one; NOT_FOUND, it is not loaded.
        """
        default = self._screener.default
        if default is not None and version == default.served.version:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION, f"version {version} is the default one: stop the server instead"
            )
        if version not in self._screener.others:
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"version {version[:40]!r} is not loaded", "invalid")
        self._let_go(version)
        logger.info("version %s is unloaded", version)

    async def _load(self, load: Callable[[], LoadedBundle]) -> LoadedBundle:
        return await asyncio.get_running_loop().run_in_executor(self._loader, load)

    async def _prove(self, served: LoadedBundle, current: ModelVersion | None) -> None:
        """Check that a bundle fits and works; else let go of it."""
        try:
            self._check(served, None if current is None else current.served)
            await asyncio.get_running_loop().run_in_executor(self._loader, served.warm_up)
        except BaseException:
            served.screen.close()
            raise

    def _check(self, served: LoadedBundle, current: LoadedBundle | None) -> None:
        shape = served.screen.preprocessing.shape
        needed = 4 * math.prod(shape) + ENVELOPE
        if needed > self._config.max_message_bytes:
            raise ConfigError(
                f"max_message_bytes: a tensor for this bundle's classifier takes {needed} bytes, "
                f"got {self._config.max_message_bytes}"
            )
        if current is None:
            return
        if current.classifier != served.classifier:
            raise BundleError(
                f"bundle {served.version} is of the classifier {served.classifier!r}, this server serves "
                f"{current.classifier!r}: start another server for it"
            )
        if current.screen.preprocessing.shape != shape:
            raise BundleError(
                f"bundle {served.version} takes images {list(shape)}, this server's clients send "
                f"{list(current.screen.preprocessing.shape)}: start another server for it"
            )

    def _start(self, served: LoadedBundle) -> ModelVersion:
        config = self._config
        batcher = Batcher(
            served.screen,
            self._inference,
            config.max_batch,
            config.queue_size,
            self._metrics,
            served.screen.classify if config.fail_open else None,
            config.reserve_seconds,
        )
        batcher.start()
        return ModelVersion(served, batcher)

    def _keep(self, replaced: ModelVersion) -> None:
        """Let a bundle that was the default one answer those who name it, the oldest such making room for it."""
        others, candidate = self._screener.others, self._screener.candidate
        others[replaced.served.version] = replaced
        kept = [version for version in others if candidate is None or version != candidate.served.version]
        for version in kept[: max(0, len(kept) - self._config.keep_versions)]:
            self._let_go(version)

    def _let_go(self, version: str) -> None:
        """Let a version that is not the default one answer nobody new; nothing happens if it is not loaded."""
        candidate = self._screener.candidate
        if candidate is not None and candidate.served.version == version:
            candidate.stop()
            self._screener.candidate = None
        deployed = self._screener.others.pop(version, None)
        if deployed is not None:
            task = asyncio.create_task(_retire(deployed), name="askance-retire")
            self._retiring[task] = deployed.batcher
            task.add_done_callback(self._retiring.pop)

    def _batchers(self) -> list[Batcher]:
        return [*(deployed.batcher for deployed in self._screener.all()), *self._retiring.values()]

    def held(self) -> int:
        """Requests accepted and not yet with a classifier."""
        return sum(batcher.held for batcher in self._batchers())

    def busy_seconds(self) -> float:
        """How long the inference thread has been at its present batch."""
        return max((batcher.busy_seconds() for batcher in self._batchers()), default=0.0)

    def idle(self) -> bool:
        """Whether no request needs the inference thread."""
        return self.held() == 0 and self.busy_seconds() == 0

    async def stop(self) -> None:
        """Finish the call under way, answer what still waits UNAVAILABLE."""
        if self._screener.candidate is not None:
            self._screener.candidate.stop()
        for task in self._retiring:
            task.cancel()
        for batcher in self._batchers():
            await batcher.stop()
        self._loader.shutdown(wait=False, cancel_futures=True)


async def _retire(deployed: ModelVersion) -> None:
    """Let a bundle that was replaced answer what it has accepted, then let go of it."""
    served, batcher = deployed.served, deployed.batcher
    while batcher.held or batcher.busy_seconds():
        await asyncio.sleep(PAUSE)
    await batcher.stop()
    served.screen.close()
    logger.info("a queue of bundle %s has answered its last request", served.version)
