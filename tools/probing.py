"""By how many questions who attacks a live server is named, into docs/security.md.

python tools/probing.py NAME=FILE,FILE..., of what `make bench-probing ARGS="BUNDLE CONFIG --json FILE"` wrote, without
and with `--most-alike`; and what it wrote with `--renew`.
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


def main(arguments: list[str]) -> None:
    """Write the section."""
    found, renewed = dict[str, list[dict[str, Any]]](), list[list[str]]()
    for argument in arguments:
        name, _, files = argument.partition("=")
        runs = [json.loads(Path(file).read_text()) for file in files.split(",")]
        found[name] = [one for one in runs if not one["renew"]]
        renewed += [row for one in runs if one["renew"] for row in _renewed(name, one)]
    (settings,) = {tuple(one["most_alike"] for one in runs) for runs in found.values()}
    head = ["attack", "clients"]
    for most_alike in settings:
        head += [f"`most_alike = {most_alike}`: named", "by", ""]
    rows = [row for name, runs in found.items() for row in _rows(name, runs)]
    honest = [wrapped(_honest(name, one["honest"])) for name, runs in found.items() for one in runs if one["honest"]]
    replace_section(PAGE, "probing", "\n\n".join([table(head, rows), "\n".join(honest)]))
    replace_section(PAGE, "renewing", table(["attack", "`most_alike`", "had it", "questions", "accounts"], renewed))


def _renewed(name: str, run: dict[str, Any]) -> Iterator[list[str]]:
    for one in run["attacks"]:
        spent = ["{}, {}".format(*one[what]) if one[what] else "" for what in ("questions", "accounts")]
        yield [f"{name}, {one['attack']}", str(run["most_alike"]), f"{one['done']} of {one['victims']}", *spent]


def _rows(name: str, runs: list[dict[str, Any]]) -> Iterator[list[str]]:
    for attacks in zip(*(one["attacks"] for one in runs), strict=True):
        row = [f"{name}, {attacks[0]['attack']}", str(attacks[0]["identities"])]
        for one in attacks:
            done = f" ({one['done']} were done)" if one["done"] else ""
            row += [
                f"{one['named']} of {one['victims']}{done}",
                "{}, {}".format(*one["questions"]) if one["questions"] else "",
                ", ".join(f"`{technique}`" for technique in sorted(one["techniques"])),
            ]
        yield row


def _honest(name: str, found: dict[str, Any]) -> str:
    named = ", ".join(f"{count} ({how})" for how, count in found["named"].items()) or "none"
    technique, most = max(found["greatest"].items(), key=lambda one: one[1])
    clients, questions = f"{found['clients']:,} honest clients", f"{found['questions']:,} questions"
    return f"- {name}, {clients}, {questions}: named {named}. Bets came to e^{most:g} (`{technique}`); e^16 names."


if __name__ == "__main__":
    main(sys.argv[1:])
