"""Families: what can be added to askance, by name: its own members, and those of other packages by entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from askance.errors import AskanceError

M = TypeVar("M")


@dataclass(frozen=True)
class Package:
    """An installed distribution that brings members of a family.

    Attributes:
        name, version: as `pip` has them.
    """

    name: str
    version: str


class Family(Mapping[str, type[M]]):
    """The members of a family by name: askance's own in their order, then those of other packages by name.

    Another package adds a member by an entry point `name = "module:Class"` in the family's group. It is imported when
    it is first asked for, so that a package may import askance, and a broken one harms only those who want it.

    Args:
        group: of the entry points, such as "askance.detectors".
        base: the class that every member derives from.
        members: askance's own.
        name_of: gives the name that a member goes by.
        reserved: names that stand for something else beside the members'.

    Raises:
        AskanceError: on use: an entry point takes a name that is taken, cannot be imported, or gives something that
            is no member of the family or goes by another name.
    """

    def __init__(
        self,
        group: str,
        base: type[Any],
        members: Iterable[type[M]],
        name_of: Callable[[type[M]], str],
        reserved: Iterable[str] = (),
    ) -> None:
        self.group = group
        self._base = base
        self._name_of = name_of
        self._members = {name_of(member): member for member in members}
        self.taken = frozenset({*self._members, *reserved})

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda one: one.name):
            if point.name in self.taken:
                raise AskanceError(f"{_told(point)} takes the name of askance's own: rename it, or uninstall it")
            if point.name in found:
                raise AskanceError(f"{_told(point)} and {_told(found[point.name])} share a name: uninstall one of them")
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> type[M]:
        points = self._entry_points
        if name not in self._members:
            self._members = self._members | {name: self._loaded(points[name])}
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        ours = [name for name in self._members if name not in self._entry_points]
        return iter([*ours, *self._entry_points])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._entry_points or name in self._members

    def package(self, name: str) -> Package | None:
        """The package that a member comes from; None for askance's own."""
        point = self._entry_points.get(name)
        return None if point is None else _package(point)

    def _loaded(self, point: EntryPoint) -> type[M]:
        try:
            member = point.load()
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise AskanceError(f"{_told(point)} cannot be imported ({reason}): mend or uninstall it") from error
        if not (isinstance(member, type) and issubclass(member, self._base)):
            raise AskanceError(f"{_told(point)} is no subclass of {self._base.__name__}: mend or uninstall it")
        try:
            name = self._name_of(member)
        except (AttributeError, KeyError, ValueError):
            raise AskanceError(f"{_told(point)} has no name of its own: expected {point.name!r}") from None
        if name != point.name:
            raise AskanceError(f"{_told(point)} calls itself {name!r}: the entry point must have the same name")
        return member


def _package(point: EntryPoint) -> Package:
    return Package(point.dist.name, point.dist.version) if point.dist is not None else Package("?", "?")


def _told(point: EntryPoint) -> str:
    return f"{point.name} = {point.value!r} of {point.group} in the package {_package(point).name}"
