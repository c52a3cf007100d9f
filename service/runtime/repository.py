"""Model repository: which versions answer, and how another takes the default one's place without a request noticing."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context

from askance.errors import BundleError, ConfigError
from askance.screening.second_look import SecondLookScreen
from askance.service.config import ServerConfig
from askance.service.errors import Code, StatusError, not_found, unavailable
from askance.service.observability.metrics import Metrics
from askance.service.runtime.batcher import Batcher
from askance.service.runtime.candidate import Candidate
from askance.service.runtime.model import LoadedBundle, ModelVersion

logger = logging.getLogger(__name__)

ENVELOPE_BYTES = 1024  # of a request beside its tensor
POLL_SECONDS = 0.02  # between looks at whether a retired bundle's last requests are answered


class ModelRepository:
    """The versions that answer, each with a queue of its own in front of the one inference thread.

    One is the default. The others, a candidate and those that were replaced and are kept, answer requests that name
    their version. Nothing else changes which versions answer; requests under way keep the one that they began with.

    Args:
        config: the limits.
        metrics: shows what is served.
        inference: the one thread.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, inference: Executor) -> None:
        self._config = config
        self._aliases = config.model
        self._metrics = metrics
        self._inference = inference
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="askance-loader")
        self._one_at_a_time = asyncio.Lock()
        self._default: ModelVersion | None = None
        self._others: dict[str, ModelVersion] = {}  # the oldest first
        self._candidate: Candidate | None = None
        self._retiring: dict[asyncio.Task[None], Batcher] = {}

    @property
    def default(self) -> ModelVersion:
        """What answers whoever names no version.

        Raises:
            StatusError: UNAVAILABLE, nothing yet.
        """
        if self._default is None:
            raise unavailable("loading")
        return self._default

    @property
    def candidate(self) -> Candidate | None:
        """One of the other versions, that is to see what the default one answers."""
        return self._candidate

    def versions(self) -> tuple[ModelVersion, ...]:
        """Whatever answers, the default one first."""
        return () if self._default is None else (self._default, *self._others.values())

    def find(self, name: str, version: str = "") -> ModelVersion:
        """What answers as a version of a model, "" for the default one; other names of both are in the settings.

        Raises:
            StatusError: NOT_FOUND; UNAVAILABLE while nothing is served.
        """
        default = self.default
        found = default if version in ("", default.version, *self._aliases.versions) else self._others.get(version)
        if found is None or name not in self.names():
            asked = f"{name} {version}".rstrip()
            versions = ", ".join((*(one.version for one in self.versions()), *self._aliases.versions))
            raise not_found(f"model {asked[:80]!r} is not served: {' or '.join(self.names())} version {versions} is")
        return found

    def names(self) -> tuple[str, ...]:
        """What the model is called, its own name first."""
        return tuple(dict.fromkeys((self.default.bundle.classifier, *self._aliases.names)))

    def full(self) -> StatusError | None:
        """RESOURCE_EXHAUSTED while the default version has no slot in its queue, else None."""
        return None if self._default is None else self._default.batcher.full()

    async def load(self, load: Callable[[], LoadedBundle]) -> tuple[LoadedBundle, bool]:
        """Load and verify a bundle beside the one that answers, warm it up, then let it answer instead.

        Requests under way keep the bundle that they began with. On any failure the old one answers on.

        Returns:
            What answers now, and whether that is new: the bundle that answers already is not loaded again.

        Raises:
            AskanceError: it cannot be loaded, cannot screen an image, is another classifier's, or does not fit the
                limits.
        """
        async with self._one_at_a_time:
            bundle = await self._loaded(load)
            current = self._default
            if current is not None and current.bundle.bundle_id == bundle.bundle_id:
                bundle.screen.close()
                logger.info("bundle %s answers already", bundle.version)
                return current.bundle, False
            await self._prove(bundle, current)
            self._let_go(bundle.version)  # it may have been the candidate, whose time has come, or kept
            self._default = self._start(bundle)
            self._metrics.serves(bundle.description())
            if current is not None:
                self._keep(current)
            logger.info("bundle %s answers, computed by %s", bundle.version, bundle.screen.reader.engine)
            return bundle, True

    async def set_candidate(self, load: Callable[[], LoadedBundle]) -> tuple[LoadedBundle, bool]:
        """Load and verify a candidate, warm it up, and let it screen, unseen, what the default one has answered.

        A candidate that is the default one already, or the candidate, changes nothing.

        Returns:
            The candidate, and whether it is new.

        Raises:
            AskanceError: as for `load`, or it takes images of another shape; the candidate before it stays.
        """
        async with self._one_at_a_time:
            default = self.default
            bundle = await self._loaded(load)
            answers, before = bundle.bundle_id == default.bundle.bundle_id, self._candidate
            if answers or (before is not None and bundle.bundle_id == before.bundle.bundle_id):
                bundle.screen.close()
                already = "answers already: it is no candidate" if answers else "is the candidate already"
                logger.info("bundle %s %s", bundle.version, already)
                return bundle, False
            await self._prove(bundle, default)
            if before is not None:
                self._let_go(before.bundle.version)
            self._let_go(bundle.version)  # it may have been kept
            self._others[bundle.version] = self._start(bundle)
            self._candidate = Candidate(bundle, self._inference, self._metrics.candidate, self.idle)
            logger.info("bundle %s is the candidate", bundle.version)
            return bundle, True

    def unload(self, version: str) -> None:
        """Let go of a version that is not the default one, once it has answered what it has accepted.

        Raises:
            StatusError: FAILED_PRECONDITION, it is the default one; NOT_FOUND, it is not loaded.
        """
        if self._default is not None and version == self._default.version:
            raise StatusError(
                Code.FAILED_PRECONDITION, f"version {version} is the default one: stop the server instead"
            )
        if version not in self._others:
            raise not_found(f"version {version[:40]!r} is not loaded")
        self._let_go(version)
        logger.info("version %s is unloaded", version)

    async def _loaded(self, load: Callable[[], LoadedBundle]) -> LoadedBundle:
        return await asyncio.get_running_loop().run_in_executor(self._loader, load)

    async def _prove(self, bundle: LoadedBundle, current: ModelVersion | None) -> None:
        """Check that a bundle fits and works; else let go of it."""
        try:
            self._check(bundle, None if current is None else current.bundle)
            await asyncio.get_running_loop().run_in_executor(self._loader, bundle.warm_up)
        except BaseException:
            bundle.screen.close()
            raise

    def _check(self, bundle: LoadedBundle, current: LoadedBundle | None) -> None:
        shape = bundle.screen.preprocessing.shape
        needed, most = 4 * math.prod(shape) + ENVELOPE_BYTES, self._config.limits.max_message_bytes
        if needed > most:
            raise ConfigError(
                f"limits.max_message_bytes: a tensor for this bundle's classifier takes {needed} bytes, got {most}"
            )
        if current is None:
            return
        if current.classifier != bundle.classifier:
            raise BundleError(
                f"bundle {bundle.version} is of the classifier {bundle.classifier!r}, this server serves "
                f"{current.classifier!r}: start another server for it"
            )
        if current.screen.preprocessing.shape != shape:
            raise BundleError(
                f"bundle {bundle.version} takes images {list(shape)}, this server's clients send "
                f"{list(current.screen.preprocessing.shape)}: start another server for it"
            )

    def _start(self, bundle: LoadedBundle) -> ModelVersion:
        config = self._config
        if isinstance(bundle.screen, SecondLookScreen):
            bundle.screen.notify = self._metrics.second_looks
        batcher = Batcher(
            bundle.screen,
            self._inference,
            config.inference.max_batch,
            config.limits.queue_size,
            self._metrics,
            bundle.screen.classify if config.verdicts.fail_open else None,
            config.verdicts.reserve_seconds,
        )
        batcher.start()
        return ModelVersion(bundle, batcher)

    def _keep(self, replaced: ModelVersion) -> None:
        """Let a bundle that was the default one answer those who name it, the oldest such making room for it."""
        self._others[replaced.version] = replaced
        candidate = None if self._candidate is None else self._candidate.bundle.version
        kept = [version for version in self._others if version != candidate]
        for version in kept[: max(0, len(kept) - self._config.rollout.keep_versions)]:
            self._let_go(version)

    def _let_go(self, version: str) -> None:
        """Let a version that is not the default one answer nobody new; nothing happens if it is not loaded."""
        if self._candidate is not None and self._candidate.bundle.version == version:
            self._candidate.stop()
            self._candidate = None
        found = self._others.pop(version, None)
        if found is not None:
            task = asyncio.create_task(_retire(found), name="askance-retire", context=Context())  # no call's
            self._retiring[task] = found.batcher
            task.add_done_callback(self._retiring.pop)

    def _batchers(self) -> list[Batcher]:
        return [*(one.batcher for one in self.versions()), *self._retiring.values()]

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
        if self._candidate is not None:
            self._candidate.stop()
        for task in self._retiring:
            task.cancel()
        for batcher in self._batchers():
            await batcher.stop()
        self._loader.shutdown(wait=False, cancel_futures=True)


async def _retire(version: ModelVersion) -> None:
    """Let a bundle that was replaced answer what it has accepted, then let go of it."""
    bundle, batcher = version.bundle, version.batcher
    while batcher.held or batcher.busy_seconds():
        await asyncio.sleep(POLL_SECONDS)
    await batcher.stop()
    bundle.screen.close()
    logger.info("a queue of bundle %s has answered its last request", bundle.version)
