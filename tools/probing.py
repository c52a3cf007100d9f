"""By how many questions who attacks a live server is named, into docs/security.md.

python tools/probing.py NAME=FILE..., of what `make bench-probing ARGS="BUNDLE CONFIG --json FILE"` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables import replace_section, wrapped

from askance.calibration.markdown import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "security.md"
HEAD = ("attack", "clients", "named", "by so many questions, median, most", "by")


def main(arguments: list[str]) -> None:
    """Write the section."""
    found = {name: json.loads(Path(file).read_text()) for name, _, file in (one.partition("=") for one in arguments)}
    rows = [row for name, one in found.items() for row in _rows(name, one)]
    honest = [wrapped(_honest(name, one["honest"])) for name, one in found.items()]
    replace_section(PAGE, "probing", "\n\n".join([table(HEAD, rows), "\n".join(honest)]))


def _rows(name: str, found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for one in found["attacks"]:
        unnamed = f", {one['done']} had done before" if one["done"] else ""
        median, most = one["questions"] or ("", "")
        yield (
            f"{name}, {one['attack']}",
            str(one["identities"]),
            f"{one['named']} of {one['victims']}{unnamed}",
            f"{median}, {most}" if one["questions"] else "",
            ", ".join(f"`{technique}` {count}" for technique, count in one["techniques"].items()),
        )


def _honest(name: str, found: dict[str, Any]) -> str:
    named = ", ".join(f"{count} ({how})" for how, count in found["named"].items()) or "none"
    technique, most = max(found["greatest"].items(), key=lambda one: one[1])
    clients, questions = f"{found['clients']:,} honest clients", f"{found['questions']:,} questions"
    return f"- {name}, {clients}, {questions}: named {named}. Bets came to e^{most:g} (`{technique}`); e^16 names."


if __name__ == "__main__":
    main(sys.argv[1:])
