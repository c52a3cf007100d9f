"""The tables of docs/calibration.md that follow the families: python -m askance.calibration.option_tables PAGE."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from askance.calibration.attacks import ATTACKS, Attack
from askance.calibration.baselines import BASELINES
from askance.calibration.controls import CONTROLS
from askance.calibration.markdown import table
from askance.calibration.sources import SOURCES


def attacks_table() -> str:
    """Every attack, what it is, and its own options with their defaults."""
    common = Attack.model_fields
    rows = []
    for kind, attack in ATTACKS.items():
        own = (
            f"`{name}`" if field.is_required() else f"`{name}` ({_written(field.default)})"
            for name, field in attack.model_fields.items()
            if name not in common
        )
        rows.append((f"`{kind}`", _first_line(attack), ", ".join(own)))
    return _table(("kind", "attack", "options (defaults)"), rows)


def baselines_table() -> str:
    """Every baseline, what it is, what is read for it beside the logits, and whether it wants a seen attack."""
    rows = (
        (
            f"`{name}`",
            baseline.title,
            ", ".join(sorted(baseline.needs)),
            "yes" if baseline.learns_from_attacks else "",
        )
        for name, baseline in BASELINES.items()
    )
    return _table(("name", "baseline", "reads", "trained on the seen attack"), rows)


def controls_table() -> str:
    """Every control, what its amount is, and the amounts of its severities."""
    rows = ((f"`{kind}`", one.amount, one.severities_in_words()) for kind, one in CONTROLS.items())
    return _table(("kind", "amount", "severity 1, 2, 3"), rows)


def sources_table() -> str:
    """Every data source."""
    return _table(("source", "images"), ((f"`{source.spelling}`", _first_line(source)) for source in SOURCES.values()))


TABLES: dict[str, Callable[[], str]] = {
    "attacks": attacks_table,
    "baselines": baselines_table,
    "controls": controls_table,
    "sources": sources_table,
}
"""The tables by the name of their section in the page."""


def written(page: str) -> str:
    """The page with all its tables as they should be."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        section = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{begin}\n\n{make()}\n\n{end}"
        page = section.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return table(head, rows, others="---")


def _first_line(member: type) -> str:
    return (inspect.getdoc(member) or "").partition("\n")[0].removesuffix(".")


def _written(default: object) -> str:
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool | str) else f"{default:g}"


def main(path: str) -> None:
    """Write the tables into a page."""
    page = Path(path)
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
