"""Program: a server as a program, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from askance.service.config import ServerConfig
from askance.service.cpus import available
from askance.service.launch import Serving


def serve(bundle_path: Path, config: ServerConfig, ready: Callable[[Serving], None] | None = None) -> None:
    """Serve the bundle at `bundle_path` until SIGTERM or SIGINT, then drain and return. Call it on the main thread.

    A second signal ends the draining, and the process `drain_seconds` later, whatever hangs. SIGHUP loads the bundle
    anew, and so does a change of it where `watch_seconds` is set. Standard error never keeps the server waiting.

    Args:
        bundle_path: the bundle's directory.
        config: the settings; with more than one worker each is a process, and this one looks after them.
        ready: called once, on a thread of its own, when the server serves; its argument prints as the line that
            `service.launch` waits for. If that cannot be written, the log says so, and the server serves all the same.

    Raises:
        AskanceError: the bundle is refused, or a port is in use.
    """
    workers = config.workers or available()
    if workers > 1:
        from askance.service.workers.supervisor import Supervisor

        Supervisor(bundle_path, config.model_copy(update={"workers": workers})).run(ready)
    else:  # what this imports takes seconds, and memory, which a process that screens nothing need not hold
        from askance.service.process import opener, run

        run(opener(bundle_path, config), config.model_copy(update={"workers": 1}), ready, bundle_path)
