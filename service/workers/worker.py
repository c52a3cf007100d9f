"""Worker: one of several processes that share a server's ports, and do what their supervisor says."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from askance.errors import AskanceError
from askance.service.config import ServerConfig
from askance.service.observability.shared import count_in, of_now
from askance.service.observability.totals import Totals
from askance.service.probing.named import Named
from askance.service.process import Life, opener, run
from askance.service.protocols import INFERENCES
from askance.service.signals import HANGUPS, end_after
from askance.service.workers.line import Answers, Line


def work(connection: Connection[Any, Any], slot: int, folder: Path, bundle_path: Path, config: ServerConfig) -> None:
    """Serve in this process, until the supervisor at the other end says to stop, or is gone.

    Args:
        connection: to the supervisor, which answers "serves", "failed", "reload", "unload", "name" and "totals".
        slot: which worker this is; no other process of the server has that number now.
        folder: where it counts.
        bundle_path: the bundle's directory.
        config: the settings.
    """
    for number in (signal.SIGTERM, signal.SIGINT, *HANGUPS):  # often sent to all of a group; the supervisor sees to it
        signal.signal(number, signal.SIG_IGN)
    line = Line(connection, "the supervisor")
    count_in(folder, slot)
    load = opener(bundle_path, config)
    try:
        run(
            load,
            config,
            lambda said: line.ask("serves", said),
            bundle_path,
            partial(_obeying, line, folder),
            _Peers(slot, line),
        )
    except AskanceError as error:
        line.ask("failed", str(error))
        sys.exit(1)


@contextlib.contextmanager
def _obeying(line: Line, folder: Path, life: Life) -> Iterator[None]:
    """Do what the supervisor asks for; stop, and leave no counts, when it is gone."""
    server = life.server
    seconds = server.config.shutdown.lame_duck_seconds + server.config.shutdown.drain_seconds

    def orphaned() -> None:
        if not life.stopping.is_set():
            end_after(seconds + 1, "the supervisor's end")
            shutil.rmtree(folder, ignore_errors=True)
        life.stop()

    probing: Answers = {}
    if (patrol := server.patrol) is not None:
        probing = {"named": patrol.roll.listed, "name": patrol.roll.add, "lift": patrol.let_off}
    line.listen(
        {
            **probing,
            "state": server.state,
            "live": server.live,
            "now": lambda: of_now(server.metrics.registry),
            "notes": server.notes.shown,
            "activation map": server.activation_map,
            "reload": lambda: life.wait_for(server.reload()),
            "reload soon": life.reload,
            "unload": lambda version: life.wait_for(server.unload(version)),
            "stop": life.stop,
            "hurry": life.hurry,
        },
        orphaned,
    )
    yield


class _Peers:
    """All workers, by way of the supervisor."""

    def __init__(self, number: int, line: Line) -> None:
        self.number = number
        self._line = line

    async def reload(self) -> None:
        await asyncio.to_thread(self._line.ask, "reload")

    async def unload(self, version: str) -> None:
        await asyncio.to_thread(self._line.ask, "unload", version)

    def share(self, named: Named) -> None:
        self._line.begin("name", named)

    async def totals(self) -> Totals:
        return Totals(await asyncio.to_thread(self._line.ask, "totals"), INFERENCES)
