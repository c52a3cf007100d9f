"""Process: the server as a program: signals, reloads, and the settings that hold for a whole process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import prometheus_client
import torch
from PIL import Image

from askance.classifiers import trusting
from askance.detectors.bundle import MANIFEST
from askance.errors import AskanceError
from askance.service.config import ServerConfig
from askance.service.launch import Serving
from askance.service.observability import log, memory, stderr
from askance.service.observability.tracing import export_traces
from askance.service.runtime.model import LoadedBundle
from askance.service.server import BoundPorts, Server
from askance.service.signals import caught

logger = logging.getLogger(__name__)

Stamp = tuple[Path, int, int]
HANGUPS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # none on Windows
MOST_RETRY_SECONDS = 600.0  # between two attempts to load what was refused
GARBAGE_THRESHOLDS = (
    10_000,
    20,
    20,
)  # objects, and rounds, between collections; thousands are alive in flight under load
SWITCH_INTERVAL_SECONDS = (
    0.0005  # that one thread may hold the interpreter while the other, event loop or inference, waits
)


def serve(bundle_path: Path, config: ServerConfig, ready: Callable[[Serving], None] | None = None) -> None:
    """Serve the bundle at `bundle_path` until SIGTERM or SIGINT, then drain and return. Call it on the main thread.

    A second signal ends the draining, and the process `drain_seconds` later, whatever hangs. SIGHUP loads the bundle
    anew, and so does a change of it where `watch_seconds` is set. Standard error never keeps the server waiting.

    Args:
        bundle_path: the bundle's directory.
        config: the settings.
        ready: called once, on a thread of its own, when the server serves; its argument prints as the line that
            `service.launch` waits for. If that cannot be written, the log says so, and the server serves all the same.

    Raises:
        AskanceError: the bundle is refused, or a port is in use.
    """
    run(_opener(bundle_path, config), config, ready, bundle_path)


def _opener(path: Path, config: ServerConfig) -> Callable[[], LoadedBundle]:
    build = trusting(config.bundles.allowed_factories)
    return lambda: LoadedBundle.open(
        path,
        build,
        engine=config.inference.engine,
        single_pass=config.inference.single_pass,
        require_signature=config.bundles.require_signature,
    )


def run(
    load: Callable[[], LoadedBundle],
    config: ServerConfig,
    ready: Callable[[Serving], None] | None = None,
    source: Path | None = None,
) -> None:
    """Serve what `load` gives, from `source`; otherwise `serve`."""
    # This process is the server's own, hence the settings that hold for all of it.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    torch.set_num_threads(config.inference.threads or max(1, _cpus() - 1))
    memory.keep()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stderr.unblocked())
        log.configure(config.log.level, config.log.format)
        if config.log.traces:
            stack.callback(export_traces())
        runner = stack.enter_context(asyncio.Runner(loop_factory=_loop_factory()))
        runner.run(_run(load, config, ready, source))


async def _run(
    load: Callable[[], LoadedBundle],
    config: ServerConfig,
    ready: Callable[[Serving], None] | None,
    source: Path | None,
) -> None:
    loop, stopping, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    server = Server(config)
    asked = 0

    def on_signal(number: int) -> None:
        """On a thread of its own: the event loop may be what hangs."""
        nonlocal asked
        if number in HANGUPS:
            loop.call_soon_threadsafe(reload.set)
            return
        asked += 1
        if asked == 1:
            loop.call_soon_threadsafe(stopping.set)
        elif asked == 2:
            _end_after(config.shutdown.drain_seconds)
            loop.call_soon_threadsafe(server.hurry)

    with caught((signal.SIGTERM, signal.SIGINT, *HANGUPS), on_signal):
        async with server:
            sources = [path for path in (source, config.rollout.candidate) if path is not None]
            seen = {path: _stamp(path) for path in sources}  # before they are loaded, so that no change is missed
            candidate = None if config.rollout.candidate is None else _opener(config.rollout.candidate, config)
            served = await server.deploy(load, candidate)
            # What is there by now stays: without this the collector walks all of torch again and again, a fifth of the
            # event loop's time under load.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GARBAGE_THRESHOLDS)
            seconds = config.rollout.watch_seconds
            tasks = [asyncio.create_task(_reload_when_told(server, reload, seconds))]
            if seconds:
                tasks += [asyncio.create_task(_follow(path, seen[path], seconds, reload)) for path in sources]
            if ready is not None and not stopping.is_set():
                _announce(ready, _serving(served, config, server.ports))
            await stopping.wait()
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


def _announce(ready: Callable[[Serving], None], serving: Serving) -> None:
    """Say that the server serves; whoever does not listen, or has gone, keeps it from nothing."""

    def say() -> None:
        try:
            ready(serving)
        except (OSError, ValueError, AskanceError) as error:  # closed, full, or nobody reads
            logger.warning("%s; standard output cannot be written: %s", serving, error)

    threading.Thread(target=say, name="askance-ready", daemon=True).start()


def _end_after(seconds: float) -> None:
    """End the process if it is still there then, with exit code 1: a call of the classifier that hangs is no reason to
    stay, and no thread can be interrupted.
    """

    def end() -> None:
        line = f"askance: ended by force, {seconds:g} s after the second signal to stop: something in it hangs"
        stderr.last_words(line)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


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


def _cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop of uvloop where there is one (not on Windows); None stands for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
