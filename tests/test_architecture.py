"""The pictures of docs/architecture.md are the imports of the code: no arrow is missing, none is made up."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
FLOORS, ROOMS = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
Arrows = dict[str, set[str]]


def drawn(picture: str) -> Arrows:
    """`name -> name name`, a line for each part that imports another."""
    arrows = {}
    for line in filter(None, picture.splitlines()):
        name, _, rest = line.partition("->")
        assert name.strip() not in arrows, f"two lines for {name.strip()}"
        arrows[name.strip()] = set(rest.split())
    return arrows


def floor_of(module: str) -> str | None:
    """askance.service.runtime.batcher is of the part service; askance itself is the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def room_of(module: str) -> str | None:
    """askance.service.runtime.batcher is of the room runtime; what is not of the service is of none."""
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["service"] and len(parts) > 2 else None


def imported(part_of: Callable[[str], str | None]) -> Arrows:
    """The imports between parts, those for type checkers among them, as import-linter counts them."""
    graph = grimp.build_graph("askance", cache_dir=None)
    arrows: Arrows = defaultdict(set)
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            one, another = part_of(module), part_of(other)
            if one is not None and another is not None and one != another:
                arrows[one].add(another)
    return dict(arrows)


@pytest.mark.parametrize(
    ("picture", "part_of"), [(FLOORS, floor_of), (ROOMS, room_of)], ids=["the floors", "the rooms of the service"]
)
def test_the_picture_is_the_code(picture: str, part_of: Callable[[str], str | None]) -> None:
    shown, real = drawn(picture), imported(part_of)

    def difference(one: Arrows, another: Arrows) -> list[str]:
        return sorted(f"{a} -> {b}" for a, targets in one.items() for b in targets - another.get(a, set()))

    assert difference(real, shown) == [], f"draw these imports in {PAGE.name}, or do without them"
    assert difference(shown, real) == [], f"nobody imports so any more: rub these arrows out in {PAGE.name}"


@pytest.mark.parametrize("picture", [FLOORS, ROOMS], ids=["the floors", "the rooms of the service"])
def test_arrows_point_down(picture: str) -> None:
    arrows = drawn(picture)
    order = list(arrows)
    assert [f"{a} -> {b}" for a, targets in arrows.items() for b in targets if b in order[: order.index(a)]] == []
