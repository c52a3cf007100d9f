"""Comparison: which ratios of one run of the benchmarks are worse than another's by more than they spread.

`python -m benchmarks.compare OLD.json NEW.json`; the exit status is 1 where some are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from askance.calibration.progress import say
from askance.output import console
from benchmarks.timing import Spread

HIGHER_IS_BETTER = {"requests_per_second"}
ROWS = {"screening": ("network", "views", "engine", "bare", "batch"), "library": ("network", "layer")}
"""By which figures of a row it is told from the others of its part."""


def ratios_of(figures: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """All ratios of a run by what they are of, each {"median", "least", "greatest"}."""
    found = {
        " ".join([part, *(f"{name}={row[name]}" for name in names)]): row["ratio"]
        for part, names in ROWS.items()
        for row in figures[part]
    }
    for row in figures["serving"]:
        for figure, ratio in row["ratio"].items():
            found[f"serving clients={row['clients']} {figure}"] = ratio
    return found


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The ratios that both runs have and that do not overlap, for the worse, a line each.

    Of screening a ratio is a cost, and so it is of a server's times; of requests a second, and of the library's
    construction (the walk by the blocks), it is a gain.
    """
    before, after = ratios_of(old), ratios_of(new)
    lines = []
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        gain = name.startswith("library ") or name.rpartition(" ")[2] in HIGHER_IS_BETTER
        if other["greatest"] < one["least"] if gain else other["least"] > one["greatest"]:
            lines.append(f"{name}: {Spread(**one)}, now {Spread(**other)}")
    return sorted(lines)


def main(
    old: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    new: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
) -> None:
    """Name what got worse from one run of `python -m benchmarks --json FILE` to another."""
    try:
        lines = worse(json.loads(old.read_text()), json.loads(new.read_text()))
    except (ValueError, KeyError, TypeError):
        say(f"compare: {old} and {new} are not both figures of the benchmarks: expected what --json writes")
        raise typer.Exit(2) from None
    for line in lines:
        console.print(line, soft_wrap=True)
    if lines:
        raise typer.Exit(1)
    console.print("nothing is worse by more than it spreads")


if __name__ == "__main__":
    typer.run(main)
