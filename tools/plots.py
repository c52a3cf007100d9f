"""Draw the tables of docs/results, and put their extremes into README.md: python tools/plots.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from tables import RESULTS, TITLES, replace_section

from askance.calibration.markdown import number, table
from askance.colours import CLEAN, FUSED, INKS

ROOT = RESULTS.parent.parent
COLOURS = {"fused": FUSED, "single": CLEAN, "baseline": INKS["link"][0]}
_CELL = re.compile(r"(?P<value>[\d.]+) <sub>(?P<low>[\d.]+) to (?P<high>[\d.]+)</sub>")


@dataclass(frozen=True)
class Figure:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        attack: its name, as the table has it.
        successful: how many images.
        figures: {scorer: its AUROC}.
        baselines: the scorers that are other people's.
    """

    attack: str
    successful: str
    figures: Mapping[str, Figure]
    baselines: tuple[str, ...]

    @property
    def best_baseline(self) -> str:
        """The baseline with the greatest AUROC."""
        return max(self.baselines, key=lambda name: self.figures[name].value)


def rows_of(page: str) -> list[Row]:
    """The rows of a results page, ours and the baselines' joined by attack; attacks without a success left out."""
    ours, theirs = (_table(page, title) for title in ("ours:", "The baselines, on the same images:"))
    names = tuple(name for name in next(iter(theirs.values()))[1] if name != "fused")
    return [
        Row(attack, successful, figures | theirs[attack][1], names)
        for attack, (successful, figures) in ours.items()
        if figures
    ]


def _table(page: str, title: str) -> dict[str, tuple[str, dict[str, Figure]]]:
    lines = page[page.index(title) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    head = [cell.strip() for cell in lines[first].strip("|").split("|")]
    rows = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        attack, successful, *cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        matches = {name: _CELL.fullmatch(cell) for name, cell in zip(head[2:], cells, strict=True)}
        figures = {
            name: Figure(*(float(found[part]) for part in ("value", "low", "high")))
            for name, found in matches.items()
            if found is not None
        }
        rows[attack.strip("`")] = (successful.partition("/")[0], figures)
    return rows


def draw(rows: list[Row], title: str, out: Path) -> None:
    """A row per attack: our fused score, the same in a single pass, and the best baseline."""
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.3 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        shown = (
            ("fused", row.figures["fused"], "D", 0.0),
            ("single", row.figures["fused single pass"], "o", 0.18),
            ("baseline", row.figures[row.best_baseline], "s", -0.18),
        )
        for name, found, marker, shift in shown:
            axes.plot([found.low, found.high], [y + shift] * 2, color=COLOURS[name], linewidth=1.2)
            axes.plot(found.value, y + shift, marker, color=COLOURS[name], markersize=5 if name == "fused" else 4)
        baseline = row.figures[row.best_baseline]
        axes.annotate(row.best_baseline, (baseline.low, y - 0.18), (-4, 0), textcoords="offset points", fontsize=6,
                      ha="right", va="center", color=COLOURS["baseline"])  # fmt: skip
    labels = [f"{row.attack} ({row.successful})" for row in rows]
    axes.set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.6), xlabel="AUROC (95% interval)")
    axes.set_title(f"{title}: successful attacks against clean images", fontsize=10)
    axes.margins(x=0.12)  # room for a name left of the leftmost mark
    axes.grid(axis="x", linewidth=0.4)
    handles = [
        Line2D([], [], color=COLOURS[name], marker=marker, label=label)
        for name, marker, label in (
            ("fused", "D", "fused"),
            ("single", "o", "fused, a single pass"),
            ("baseline", "s", "best baseline (named)"),
        )
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def extremes(rows: list[Row]) -> list[tuple[str, Row]]:
    """The worst, the median and the best row by the fused score's AUROC."""
    ordered = sorted(rows, key=lambda row: row.figures["fused"].value)
    return [("worst", ordered[0]), ("median", ordered[len(ordered) // 2]), ("best", ordered[-1])]


def main() -> None:
    """Draw each data set, and write the README's table."""
    mpl.use("Agg")
    lines = []
    for name, title in TITLES.items():
        rows = rows_of((RESULTS / f"{name}.md").read_text(encoding="utf-8"))
        draw(rows, title, ROOT / "docs" / "images" / f"{name}.png")
        for place, row in extremes(rows):
            best, fused = row.best_baseline, row.figures["fused"]
            lines.append(
                (
                    f"{title}, {place} of {len(rows)} rows: `{row.attack}`",
                    f"**{number(fused.value)}** <sub>{number(fused.low)} to {number(fused.high)}</sub>",
                    f"{number(row.figures[best].value)} {best}",
                )
            )
    content = table(("AUROC on successful attacks", "askance, fused", "best baseline"), lines)
    replace_section(ROOT / "README.md", "figures", content)


if __name__ == "__main__":
    main()
