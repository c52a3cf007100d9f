"""Supervisor: looks after the workers of a server: starts them, starts the dead anew, and speaks for all of them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry

from askance.errors import AskanceError, ConfigError
from askance.service.config import ServerConfig
from askance.service.cpus import available
from askance.service.launch import Serving, announce
from askance.service.live.figures import Figures
from askance.service.live.noted import together
from askance.service.live.pages import Probing, Sources
from askance.service.observability import log, stderr
from askance.service.observability.shared import SharedMetrics, WorkerMetrics
from askance.service.ports import held, metrics_server, review_store
from askance.service.probing.named import Named
from askance.service.settings import Response
from askance.service.signals import end_after, obeyed
from askance.service.watchdog import HUNG_STALLS
from askance.service.workers.line import Line, LineClosedError

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0  # for a worker to say how things stand
LOOK_SECONDS = 1.0  # between two looks whether a worker hangs
STEADY_SECONDS = 60.0  # a worker that served for so long died of something new
MOST_DELAY_SECONDS = 60.0  # before one that dies again and again is started anew


class _Worker:
    """One process in a slot; another takes the slot when it ends."""

    def __init__(self, slot: int, process: SpawnProcess, line: Line, deaths: int) -> None:
        self.slot = slot
        self.process = process
        self.line = line
        self.deaths = deaths  # in a row, of those before it
        self.serves: Serving | None = None
        self.since = 0.0
        self.ended = False
        self.failure: str | None = None

    def __str__(self) -> str:
        return f"worker {self.slot} (process {self.process.pid})"


class Supervisor:
    """A server of several processes that share its ports: the kernel gives each connection to one of them.

    This process screens nothing. It serves the metrics, of all workers together, and answers probes for them.

    Args:
        bundle_path: the bundle's directory.
        config: the settings, with two workers or more.

    Raises:
        ConfigError: this system does not spread connections over processes.
    """

    def __init__(self, bundle_path: Path, config: ServerConfig) -> None:
        if not (sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")):
            raise ConfigError(
                f"workers: Linux alone spreads connections over processes, got {config.workers}: start several servers "
                "with one worker each behind a balancer"
            )
        self._bundle_path = bundle_path
        self._config = config
        self._workers: dict[int, _Worker] = {}
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()  # each is done on the main thread
        self._announced = self._stopping = False
        self._failure: str | None = None
        self._spawning = multiprocessing.get_context("spawn")  # threads, gRPC's and torch's, do not survive a fork

    def run(self, ready: Callable[[Serving], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT; see `program.serve`.

        Raises:
            AskanceError: the bundle is refused, or a port is in use.
        """
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(_counts_folder()))
            self._registry = self._metrics()
            self._config = stack.enter_context(self._on_ports())
            stack.enter_context(stderr.unblocked())
            log.configure(self._config.log.level, self._config.log.format)
            stop, reload = lambda: self._events.put(self._stop), lambda: self._tell("reload soon")
            stack.enter_context(obeyed(stop, self._hurry, reload))
            stack.callback(self._kill)
            for slot in range(self._config.workers):
                self._start(slot, deaths=0)
            while self._workers:
                self._events.get()()
                if not self._announced and self._all_serve():
                    self._announced = True
                    if ready is not None and not self._stopping:
                        serving = self._workers[0].serves
                        assert serving is not None
                        announce(ready, serving)
        if self._failure is not None:
            raise AskanceError(self._failure)

    @contextlib.contextmanager
    def _on_ports(self) -> Iterator[ServerConfig]:
        """The settings of a worker: with the ports that are kept for them all, and its share of the CPUs."""
        config = self._config
        with contextlib.ExitStack() as stack:
            sources = None
            if config.live.page:
                sources = self._sources()
                sources.figures.start()
                stack.callback(sources.figures.stop)
            served = metrics_server(config, self._registry, self._state, lambda: True, sources)
            stack.callback(served.close)
            port = stack.enter_context(held("port", config.host, config.port)).getsockname()[1]
            rest_port = config.rest_port
            if rest_port is not None:
                rest_port = stack.enter_context(held("rest_port", config.host, rest_port)).getsockname()[1]
            threads = config.inference.threads or max(1, available() // config.workers)
            yield config.model_copy(
                update={
                    "port": port,
                    "rest_port": rest_port,
                    "metrics_port": served.port,
                    "inference": config.inference.model_copy(update={"threads": threads}),
                }
            )

    def _metrics(self) -> CollectorRegistry:
        registry, pool = CollectorRegistry(), self._config.metrics
        self._shared = SharedMetrics(self._folder, lambda: self._asked("now"), pool.pool_requests, pool.pool_seconds)
        registry.register(self._shared)
        self._counts = WorkerMetrics(registry, lambda: len(self._serving()))
        return registry

    def _sources(self) -> Sources:
        """What the live page shows, of all workers together."""
        return Sources(
            Figures(self._shared.current, self._state),
            lambda: together(self._asked("notes")),
            lambda: next(iter(self._asked("activation map")), None),
            review_store(self._config.review),
            None if self._config.probing.response is Response.OFF else Probing(self._named, self._lift),
        )

    def _named(self) -> list[Named]:
        """The clients that probe, the latest first; each worker knows them all, unless it has just come."""
        found = {one.client: one for roll in self._asked("named") for one in roll}
        return sorted(found.values(), key=lambda one: -one.at)

    def _lift(self, client: str) -> bool:
        was_named = client in {one.client for one in self._named()}
        self._tell("lift", client)
        return was_named

    def _start(self, slot: int, deaths: int) -> None:
        ours, theirs = self._spawning.Pipe()
        process = self._spawning.Process(
            target=_work,
            args=(theirs, slot, self._folder, self._bundle_path, self._config),
            name=f"askance-worker-{slot}",
            daemon=True,
        )
        process.start()
        theirs.close()
        worker = self._workers[slot] = _Worker(slot, process, Line(ours, f"worker {slot}"), deaths)
        worker.line.listen(
            {
                "serves": lambda serving: self._events.put(lambda: self._has_come(worker, serving)),
                "failed": lambda why: setattr(worker, "failure", why),
                "reload": lambda: self._everywhere("reload"),
                "unload": lambda version: self._everywhere("unload", version),
                "name": lambda named: self._tell("name", named),
                "totals": lambda: list(self._registry.collect()),
            }
        )

        def wait_for_its_end() -> None:
            process.join()
            worker.ended = True  # not `is_alive`, which would wait for the same end on other threads
            self._events.put(lambda: self._has_ended(worker))

        threading.Thread(target=wait_for_its_end, name=f"askance-worker-{slot}", daemon=True).start()

    def _has_come(self, worker: _Worker, serving: Serving) -> None:
        worker.serves, worker.since = serving, time.monotonic()
        threading.Thread(target=self._watch, args=(worker,), name=f"askance-watch-{worker.slot}", daemon=True).start()
        if self._announced:
            logger.info("%s serves bundle %s", worker, serving.bundle_id[:12])
            threading.Thread(target=self._agree, name="askance-agree", daemon=True).start()

    def _has_ended(self, worker: _Worker) -> None:
        code = worker.process.exitcode
        if self._stopping:
            self._workers.pop(worker.slot, None)
            return
        why = worker.failure or f"it ended with exit code {code}"
        if not self._announced:
            self._failure, self._stopping = worker.failure or f"a worker ended before it served: {why}", True
            del self._workers[worker.slot]
            self._kill()
            return
        self._counts.restarted()
        steady = worker.serves is not None and time.monotonic() - worker.since > STEADY_SECONDS
        deaths = 0 if steady else worker.deaths
        delay = min(2.0 ** (deaths - 1), MOST_DELAY_SECONDS) if deaths else 0.0
        logger.error("%s is dead: %s; another starts%s", worker, why, f" in {delay:g} s" if delay else "")
        timer = threading.Timer(delay, self._events.put, (lambda: self._start_anew(worker, deaths + 1),))
        timer.daemon = True
        timer.start()

    def _start_anew(self, dead: _Worker, deaths: int) -> None:
        if not self._stopping:
            self._start(dead.slot, deaths)

    def _watch(self, worker: _Worker) -> None:
        """Kill a worker that hangs: no thread can be interrupted."""
        seconds = HUNG_STALLS * self._config.inference.stall_seconds
        try:
            while worker.line.ask("live", timeout=seconds):
                time.sleep(LOOK_SECONDS)
        except LineClosedError:
            return
        except TimeoutError:
            pass
        if not self._stopping:
            logger.error("%s hangs: it is killed", worker)
            worker.process.kill()

    def _agree(self) -> None:
        """Have all load anew where one that has just come found another bundle than those before it."""
        told = [family for now in self._asked("now") for family in now if family.name == "askance_bundle_info"]
        if len({sample.labels["id"] for family in told for sample in family.samples}) > 1:
            logger.warning("the workers serve different bundles: all load what is there now")
            self._tell("reload soon")

    def _hurry(self) -> None:
        end_after(self._config.shutdown.drain_seconds, "the second signal to stop", self._kill)
        self._tell("hurry")

    def _stop(self) -> None:
        self._stopping = True
        logger.info("draining")
        for slot, worker in list(self._workers.items()):
            if worker.ended:
                del self._workers[slot]  # one that waits to be started anew
        self._tell("stop")

    def _kill(self) -> None:
        for worker in list(self._workers.values()):
            worker.process.kill()

    def _serving(self) -> list[_Worker]:
        return [one for one in list(self._workers.values()) if one.serves is not None and not one.ended]

    def _all_serve(self) -> bool:
        return len(self._serving()) == self._config.workers

    def _tell(self, what: str, *details: object) -> None:
        for worker in list(self._workers.values()):
            worker.line.begin(what, *details)

    def _asked(self, question: str) -> list[Any]:
        """What those that serve say; those that say nothing are left out."""
        answers = [worker.line.begin(question) for worker in self._serving()]
        wait(answers, ANSWER_SECONDS)
        return [one.result() for one in answers if one.done() and one.exception() is None]

    def _everywhere(self, question: str, *details: object) -> None:
        """Have every worker do something; one that has died since does it when it starts.

        Raises:
            AskanceError: one cannot, or, of what only some can do, none can.
        """
        answers = [worker.line.begin(question, *details) for worker in self._serving()]
        wait(answers)
        failures = [error for one in answers if (error := one.exception()) is not None]
        failures = [error for error in failures if not isinstance(error, LineClosedError)]
        if failures and (question == "reload" or len(failures) == len(answers)):
            raise failures[0]

    def _state(self) -> str:
        """What the server is doing: serving, where one of them is."""
        states: Sequence[str] = self._asked("state")
        if "serving" in states:
            return "serving"
        return states[0] if states else "draining" if self._stopping else "loading"


def _work(*arguments: Any) -> None:
    """What a worker's process runs; here nothing of what it takes is imported."""
    from askance.service.workers.worker import work

    work(*arguments)


@contextlib.contextmanager
def _counts_folder() -> Iterator[str]:
    """A folder that this user alone may read, for the workers' counts."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        made = tempfile.TemporaryDirectory(prefix="askance-counts-", dir=memory, ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(
            f"workers count in a temporary folder, which cannot be made ({error.strerror}): let TMPDIR name a folder "
            "that can be written"
        ) from None
    with made as folder:
        yield folder
