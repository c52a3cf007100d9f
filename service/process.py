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
from askance.service.observability import log, memory
from askance.service.observability.tracing import export_traces
from askance.service.runtime.model import LoadedBundle
from askance.service.server import BoundPorts, Server

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


def serve(bundle_path: Path, config: ServerConfig, ready: Callable[[Serving], None] | None = None) -> None:
    """Serve the bundle at `bundle_path` until SIGTERM or SIGINT, then drain and return. Call it on the main thread.

    A second signal ends the draining, and the process `drain_seconds` later, whatever hangs. SIGHUP loads the bundle
    anew, and so does a change of it where `watch_seconds` is set.

    Args:
        bundle_path: the bundle's directory.
        config: the settings.
        ready: called once, when the server serves; its argument prints as the line that `service.launch` waits for.

    Raises:
        AskanceError: the bundle is refused, or a port is in use.
    """
    run(_opener(bundle_path, config), config, ready, bundle_path)


def _opener(path: Path, config: ServerConfig) -> Callable[[], LoadedBundle]:
    build = trusting(config.bundles.allowed_factories)
    return lambda: LoadedBundle.open(
        path,
        build,
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
    log.configure(config.log.level, config.log.format)
    with contextlib.ExitStack() as stack:
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
    stopping, reload = asyncio.Event(), asyncio.Event()
    async with Server(config) as server:

        def on_signal() -> None:
            if stopping.is_set():
                server.hurry()
                _end_after(config.shutdown.drain_seconds)
            stopping.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, reload.set)
        sources = [path for path in (source, config.rollout.candidate) if path is not None]
        seen = {path: _stamp(path) for path in sources}  # before they are loaded: what changes meanwhile is a change
        candidate = None if config.rollout.candidate is None else _opener(config.rollout.candidate, config)
        served = await server.deploy(load, candidate)
        # What is there by now stays: without this the collector walks all of torch again and again, a fifth of the
        # event loop's time under load.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        tasks = [asyncio.create_task(_reload_when_told(server, reload, config.rollout.watch_seconds))]
        if config.rollout.watch_seconds:
            tasks += [
                asyncio.create_task(_follow(path, seen[path], config.rollout.watch_seconds, reload)) for path in sources
            ]
        if ready is not None and not stopping.is_set():
            ready(_serving(served, config, server.ports))
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


def _end_after(seconds: float) -> None:
    """End the process if it is still there then, with exit code 1: a call of the classifier that hangs is no reason to
    stay, and no thread can be interrupted.
    """

    def end() -> None:
        line = f"askance: ended by force, {seconds:g} s after the second signal to stop: something in it hangs\n"
        with contextlib.suppress(OSError):  # nobody may be reading
            os.set_blocking(sys.stderr.fileno(), False)
            os.write(sys.stderr.fileno(), line.encode())
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
