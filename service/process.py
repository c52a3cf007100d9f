"""Process: a server, or one of several that share its ports, as a process: signals, reloads, what holds for it all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import prometheus_client
from PIL import Image

from askance.errors import AskanceError
from askance.screening.bundle import MANIFEST
from askance.service.config import ServerConfig
from askance.service.cpus import available
from askance.service.launch import Serving, announce
from askance.service.observability import log, memory, stderr
from askance.service.observability.tracing import export_traces
from askance.service.runtime.model import LoadedBundle
from askance.service.server import BoundPorts, Peers, Server
from askance.service.signals import end_after, obeyed

logger = logging.getLogger(__name__)

Stamp = tuple[Path, int, int]
MOST_RETRY_SECONDS = 600.0  # between two attempts to load what was refused
GARBAGE_THRESHOLDS = (
    10_000,
    20,
    20,
)  # objects, and rounds, between collections; thousands are alive in flight under load
SWITCH_INTERVAL_SECONDS = (
    0.0005  # that one thread may hold the interpreter while the other, event loop or inference, waits
)


class Life:
    """What may be asked of a server that lives; on any thread, at any time.

    Args:
        server: it.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stopping = asyncio.Event()
        self.reloading = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def reload(self) -> None:
        """Load anew what is served, soon."""
        self._loop.call_soon_threadsafe(self.reloading.set)

    def stop(self) -> None:
        """Drain, then end."""
        self._loop.call_soon_threadsafe(self.stopping.set)

    def hurry(self) -> None:
        """Drain no longer."""
        self._loop.call_soon_threadsafe(self.server.hurry)

    def wait_for(self, asked: Coroutine[Any, Any, object]) -> None:
        """Have the server do something, and wait until it has; not on the thread of its event loop.

        Raises:
            AskanceError: it cannot.
        """
        asyncio.run_coroutine_threadsafe(asked, self._loop).result()


Control = Callable[[Life], AbstractContextManager[None]]
"""A block in which somebody may ask things of a server."""


@contextlib.contextmanager
def by_signals(life: Life) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop it, a second one at once or by force, and SIGHUP load anew what it serves."""

    def hurry() -> None:
        end_after(life.server.config.shutdown.drain_seconds, "the second signal to stop")
        life.hurry()

    with obeyed(life.stop, hurry, life.reload):
        yield


def opener(path: Path, config: ServerConfig) -> Callable[[], LoadedBundle]:
    """What opens a bundle as the settings say."""

    def build(*given: Any) -> Any:
        from askance.classifiers import trusting  # needs torch, as a graph does not

        return trusting(config.bundles.allowed_factories)(*given)

    return lambda: LoadedBundle.open(
        path,
        build,
        engine=config.inference.engine,
        threads=config.inference.threads or max(1, available() - 1),
        single_pass=config.inference.single_pass,
        second_looks=config.inference.second_looks,
        require_signature=config.bundles.require_signature,
    )


def run(
    load: Callable[[], LoadedBundle],
    config: ServerConfig,
    ready: Callable[[Serving], None] | None = None,
    source: Path | None = None,
    control: Control = by_signals,
    peers: Peers | None = None,
) -> None:
    """Serve what `load` gives, from `source`, in this process until `control` says to stop; for the rest, `serve` of
    program.py. `peers` are the processes that do the same.
    """
    # This process is the server's own, hence the settings that hold for all of it.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    memory.keep()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stderr.unblocked())
        log.configure(config.log.level, config.log.format, None if peers is None else peers.number)
        if config.log.traces:
            stack.callback(export_traces())
        runner = stack.enter_context(asyncio.Runner(loop_factory=_loop_factory()))
        runner.run(_run(load, config, ready, source, control, peers))


async def _run(
    load: Callable[[], LoadedBundle],
    config: ServerConfig,
    ready: Callable[[Serving], None] | None,
    source: Path | None,
    control: Control,
    peers: Peers | None,
) -> None:
    server = Server(config, peers)
    life = Life(server)
    with control(life):
        async with server:
            sources = [path for path in (source, config.rollout.candidate) if path is not None]
            seen = {path: _stamp(path) for path in sources}  # before they are loaded, so that no change is missed
            candidate = None if config.rollout.candidate is None else opener(config.rollout.candidate, config)
            served = await server.deploy(load, candidate)
            # What is there by now stays: without this the collector walks all of torch again and again, a fifth of the
            # event loop's time under load.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GARBAGE_THRESHOLDS)
            seconds = config.rollout.watch_seconds
            tasks = [asyncio.create_task(_reload_when_told(server, life.reloading, seconds))]
            if seconds:
                tasks += [asyncio.create_task(_follow(path, seen[path], seconds, life.reloading)) for path in sources]
            if ready is not None and not life.stopping.is_set():
                announce(ready, _serving(served, config, server.ports))
            await life.stopping.wait()
            logger.info("draining")
            for task in tasks:
                task.cancel()


def _serving(served: LoadedBundle, config: ServerConfig, ports: BoundPorts) -> Serving:
    return Serving(
        served.bundle_id,
        config.host,
        ports.port,
        ports.metrics_port,
        ports.others.get("rest"),
        config.metrics_host,
        "http" if config.metrics.tls is None else "https",
    )


async def _reload_when_told(server: Server, told: asyncio.Event, retry_seconds: float) -> None:
    """One reload for each time that it is told to; what comes while one is under way is one more.

    After a failure it is tried again, each time after twice as long: what was refused may have been half written, or a
    disk away. Without `retry_seconds` it is not.
    """
    loop, wait = asyncio.get_running_loop(), retry_seconds
    while True:
        await told.wait()
        told.clear()
        try:
            await server.reload()
        except AskanceError:  # logged; the old bundle answers on
            if retry_seconds:
                loop.call_later(wait, told.set)
                wait = min(2 * wait, max(retry_seconds, MOST_RETRY_SECONDS))
        else:
            wait = retry_seconds


async def _follow(source: Path, seen: Stamp | None, seconds: float, changed: asyncio.Event) -> None:
    """Tell when another bundle stands at `source`: published there, or a link that points elsewhere now."""
    while True:
        await asyncio.sleep(seconds)
        stamp = _stamp(source)
        if stamp != seen and stamp is not None:
            changed.set()
        seen = stamp


def _stamp(source: Path) -> Stamp | None:
    try:
        status = (source / MANIFEST).stat()
    except OSError:
        return None
    return source.resolve(), status.st_mtime_ns, status.st_ino


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop where there is one (not on Windows); None stands for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
