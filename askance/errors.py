"""The errors that people see: each says what was wrong, what was expected and what to do, in one line.

AskanceError
    NotFittedError      a detector was asked before it was fitted
    LayerError          a layer cannot be tapped
    DataError           data cannot be used as asked (ImageError: an image is not what the classifier takes)
    CalibrationError    calibration scores cannot support what was asked of them
    BundleError         a bundle is missing, altered, or made for something else
    ConfigError         a configuration is not valid
    ExportError         a classifier or a detector cannot be made a graph
    ScreenError         one input could not be screened
    FileError           a file cannot be written
    OutputError         standard output cannot be written (NobodyReadsError: whoever read it is gone)
    ServiceError        a server answered with an error, or none answered (askance.service.client_messages)
    StatusError         a request that a server answers with an error (askance.service.errors)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class AskanceError(Exception):
    """Base of every error meant for a person; the command line prints its message alone and exits with 2."""


class NotFittedError(AskanceError):
    """A detector was asked for a score before it was fitted."""

    def __init__(self, owner: object) -> None:
        name = type(owner).__name__
        super().__init__(f"{name} is not fitted: call {name}.fit(stream) or load it from a bundle first")


class LayerError(AskanceError):
    """A layer does not exist, never runs, runs more than once, or gives something that is not a tensor."""


class DataError(AskanceError):
    """A data set cannot be used as asked: one class only, labels out of range, too few samples."""


class CalibrationError(AskanceError):
    """Calibration scores cannot support what was asked of them."""


class BundleError(AskanceError):
    """A bundle is missing, incomplete, altered, or made for another version or classifier."""


class ConfigError(AskanceError):
    """A configuration is not valid."""


class ExportError(AskanceError):
    """What a classifier or a detector does cannot be made a graph, or the graph computes something else."""


class ScreenError(AskanceError):
    """One input could not be screened; its batch mates were."""


class FileError(AskanceError):
    """A file cannot be written: the disk is full, the folder is not ours to write."""


class OutputError(AskanceError):
    """Standard output cannot be written."""


class NobodyReadsError(OutputError):
    """Whoever read standard output is gone, which is nothing to complain of."""


def extra_needed(package: str, extra: str) -> str:
    """One line: what is not installed, and how it comes."""
    return (
        f"{package} is not installed: install askance with its extra {extra!r}, pip install '.[{extra}]' in a checkout"
        f" or 'WHEEL[{extra}]' with the wheel's path"
    )


MOST_TEXT = 300  # characters of somebody else's error


def one_line(error: BaseException) -> str:
    """Somebody else's error in one line, cut where it is long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + '...'}"


SHOWN = 12  # names that a message spells out


def printable(text: str) -> str:
    """Text as it stands, where that is one line that every terminal and log can show; else with escapes."""
    return text if text.isprintable() else ascii(text)


def listed(names: Sequence[str]) -> str:
    """Names in one line: the first of them, where there are many."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `known` as a readable list, led by the nearest match to `name` when there is one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {listed(names)}"


def telling(errors: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one of pydantic's errors to tell people: the first, but for a misspelt key that is required.

    That is two errors, missing and unknown, and the second is the one that helps.
    """
    return min(errors, key=lambda one: one["type"] != "extra_forbidden")


def unknown_choice(error: Mapping[str, Any]) -> str | None:
    """What to say where one of pydantic's errors is a word that is none of a few; None where it is another error."""
    if error["type"] not in ("literal_error", "enum") or not isinstance(error["input"], str):
        return None
    known = re.findall("'([^']*)'", error["ctx"]["expected"])
    return f"unknown {error['input']!r}: {did_you_mean(error['input'], known)}"
