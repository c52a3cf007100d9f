"""Class names: what a classifier's classes may be called, wherever the names come from.

A name becomes a label of the metrics, a word of the answers and a row of the tables, so it has to be text that all of
them can carry, and no two classes may look alike.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from askance.errors import DataError, listed, printable

MOST_CHARACTERS = 200  # of a name; ImageNet's longest has 121
_NO_WIDTH = "Cf"  # joiners, marks of direction: parts of a name, but none that an eye tells it by
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, lone surrogates, line separators


def names_of(given: Iterable[Any]) -> tuple[str, ...]:
    """Names as text: strings as they are, bytes as UTF-8, integers in digits, tuples of synonyms with commas.

    Raises:
        DataError: one is something else, or they are one string rather than several, or a mapping.
    """
    if isinstance(given, (str, bytes)):
        raise DataError(f"the class names are one string, {given!r}: expected a list of names")
    if isinstance(given, Mapping):
        raise DataError("the class names are a mapping: expected a list of names, in the order of the labels")
    return tuple(_text(one) for one in given)


def fault_in(names: Sequence[str]) -> str | None:
    """What is wrong with the names of a classifier's classes, in one line; None where nothing is."""
    seen: dict[str, str] = {}
    for name in names:
        if (fault := _fault(name)) is not None:
            return fault
        same = seen.get(folded(name))
        if same == name:
            return f"two classes are called {name!r}: class names must differ"
        if same is not None:
            return f"two classes are called {same!r} and {name!r}: class names must differ by more than case or blanks"
        seen[folded(name)] = name
    return None


def _can_be_labels(names: tuple[str, ...]) -> tuple[str, ...]:
    if (fault := fault_in(names)) is not None:
        raise ValueError(fault)
    return names


ClassNames = Annotated[tuple[str, ...], AfterValidator(_can_be_labels)]
"""Names that the classes of one classifier can have."""
Label = Annotated[str, AfterValidator(lambda name: _can_be_labels((name,))[0])]
"""A name by itself that can be a label, too."""


def order_fault(names: Sequence[str], own: Sequence[str]) -> str | None:
    """Why `names` cannot stand for classes that their data calls `own`, in one line; None where they can.

    New names are fine. One of the data's own names for another of its classes is not: every answer would be about the
    wrong class, and nothing would show it.
    """
    places: dict[str, int] = {}
    for i, name in enumerate(own):
        places.setdefault(folded(name), i)
    for i, name in enumerate(names):
        if i < len(own) and folded(own[i]) == folded(name):  # the data itself may have two of a name
            continue
        if (place := places.get(folded(name))) is not None:
            return (
                f"class_names has {name!r} as class {i}, which is class {place} of the data: "
                f"the data's order is {listed([printable(one) for one in own])}; name the classes in that order"
            )
    return None


def folded(name: str) -> str:
    """What two names share that look alike: case, surrounding blanks, what has no width and Unicode's ways to write a
    letter are gone."""
    seen = "".join(one for one in unicodedata.normalize("NFC", name) if unicodedata.category(one) != _NO_WIDTH)
    return unicodedata.normalize("NFC", seen.strip().casefold())


def _fault(name: str) -> str | None:
    if not folded(name):
        return f"a class is called {name!r}: expected a name that is not blank"
    if len(name) > MOST_CHARACTERS:
        return f"a class name has {len(name)} characters ({name[:20]!r}...): expected at most {MOST_CHARACTERS}"
    if any(unicodedata.category(character) in _CONTROL for character in name):
        return f"the name {name!r} holds a control character, or is no UTF-8: rename the class"
    return None


def _text(one: Any) -> str:
    if isinstance(one, str):
        return str(one)
    if isinstance(one, bytes):
        try:
            return one.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"the class name {bytes(one)!r} is no UTF-8: rename the class") from None
    if isinstance(one, tuple):
        return ", ".join(_text(synonym) for synonym in one)
    try:
        return str(operator.index(one))
    except TypeError:
        raise DataError(f"a class name is {type(one).__name__}, {str(one)[:40]!r}: expected text") from None
