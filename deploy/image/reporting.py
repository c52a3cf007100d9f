"""What the check of the image says: a line for each thing verified, and one line for the first that is not so."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import typer

KEPT = Path(__file__).resolve().parents[2] / "build" / "image"
LOG = KEPT / "failed.log"
# Killed, a command takes along all that it started and all that it mounted: nothing of either is left behind.
ENCLOSED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class CheckError(Exception):
    """Something about the image is not as promised, or it could not be made; the message is one line."""


def verified(what: str, how: str) -> None:
    """Say that `what` holds, and `how` that is known."""
    typer.echo(f"ok  {what:36}{how}")


def failed(error: CheckError) -> typer.Exit:
    """Say what is not so; to be raised."""
    typer.echo(f"image-check: {error}", err=True)
    return typer.Exit(1)


def expect(condition: bool, complaint: str) -> None:
    """Raise CheckError with `complaint` unless `condition` holds."""
    if not condition:
        raise CheckError(complaint)


def output(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What `command` prints.

    Raises:
        CheckError: it ends with another exit code than 0; the message says where all that it said is.
    """
    done = subprocess.run((*ENCLOSED, *command), capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        LOG.write_text(done.stdout + done.stderr)
        last = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise CheckError(f"{Path(command[0]).name} failed: {last} (all of it: {LOG})")
    return done.stdout
