"""Progress of long work: bars on a terminal, one line per piece of work elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

T_co = TypeVar("T_co", covariant=True)

console = Console(stderr=True)
WORTH_A_LINE_SECONDS = 2.0


class Sized(Protocol[T_co]):
    """What knows its length and can be walked."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


def track(work: Sized[T_co] | Sequence[T_co], description: str) -> Iterator[T_co]:
    """Walk `work` under a progress bar on stderr (one closing line where stderr is not a terminal)."""
    if not console.is_terminal:
        start = time.perf_counter()
        yield from work
        if time.perf_counter() - start > WORTH_A_LINE_SECONDS:
            console.print(f"{description}: {time.perf_counter() - start:.1f} s", highlight=False)
        return
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(work, total=len(work), description=description)


class Tracked(Sized[T_co]):
    """A re-iterable that shows its progress each time it is walked."""

    def __init__(self, work: Sized[T_co], description: str) -> None:
        self._work = work
        self._description = description

    def __len__(self) -> int:
        return len(self._work)

    def __iter__(self) -> Iterator[T_co]:
        return track(self._work, self._description)


def say(line: str) -> None:
    """Print one line on stderr."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)  # names may look like markup


class Clock:
    """How long each stage of a run takes.

    Attributes:
        seconds: by stage, in the order of their ends.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done under it, and say so."""
        say(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        say(f"{name}: {self.seconds[name]:.1f} s")
