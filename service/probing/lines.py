"""Lines: what a server and the process that looks for who probes say to each other, and to others by a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from askance.answers import Verdict
from askance.service.probing.named import Named
from askance.service.store import Store


@dataclass(frozen=True)
class Options:
    """How to look: the first thing that is said.

    Attributes:
        keep_seconds: after which what nobody asks for, and who does not ask any more, is forgotten.
        most_bytes: of images of late; the oldest are forgotten first.
        most_alike: images of a family that honest clients ask for, all together; 0: any number.
        store: where what servers are asked is looked at together; None: what this one is asked alone.
    """

    keep_seconds: float
    most_bytes: int
    most_alike: int = 0
    store: Store | None = None
    kind: Literal["options"] = "options"


@dataclass(frozen=True)
class Asked:
    """An image that was answered; its numbers come behind it.

    Attributes:
        client: who asked.
        label: the class it was taken for.
        verdict: what it was judged.
        numbers: how many there are of it.
    """

    client: str
    label: int
    verdict: Verdict
    numbers: int
    kind: Literal["asked"] = "asked"


@dataclass(frozen=True)
class LetOff:
    """A client that an operator lets off: here, or at another server."""

    client: str
    kind: Literal["let off"] = "let off"


@dataclass(frozen=True)
class Found:
    """A client that is found to probe."""

    named: Named
    kind: Literal["found"] = "found"


@dataclass(frozen=True)
class Known:
    """One that another server has found, and told of."""

    named: Named
    kind: Literal["known"] = "known"


@dataclass(frozen=True)
class Away:
    """The store is away, or there again.

    Attributes:
        why: what it, or the network, says; None where it is there.
    """

    why: str | None
    kind: Literal["away"] = "away"


Said = Options | Asked | LetOff | Found | Known | Away
_SAID: TypeAdapter[Said] = TypeAdapter(Annotated[Said, Field(discriminator="kind")])


def line(said: Said) -> bytes:
    """One line of JSON."""
    return _SAID.dump_json(said) + b"\n"


def read(text: bytes) -> Said:
    """What a line says.

    Raises:
        ValueError: it is none of these.
    """
    return _SAID.validate_json(text)
