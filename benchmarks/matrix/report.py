"""The matrix's page: every row of every victim, worst first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from askance.answers import FUSED
from askance.calibration.benign import PROMISED, SEVERITIES
from askance.calibration.evaluation import UNTRAINED
from askance.calibration.markdown import number, table
from askance.judgement.calibration import SINGLE_PASS

Rows = Mapping[str, Any]
NEAR = 0.005  # of AUROC, by which the fused score may miss the best single reading
MILD = tuple(f"_{severity}" for severity in SEVERITIES)  # how the names of mild changes end
AT_MOST = {"suspect": 0.08, "adversarial": 0.02}  # of mildly changed images, at the levels of 5% and 1%


def page(matrix: Mapping[str, Rows], choices: Mapping[str, Any], words: str) -> str:
    """The whole page in Markdown.

    Args:
        matrix: {victim: its rows}, as `run.rows_of` has them.
        choices: as `choices.left_out` has them; empty where nobody has made them.
        words: what stands on top.
    """
    sections = [
        words,
        "## At a glance",
        _summary(matrix),
        "## Mild benign changes",
        _wrapped(
            "Share of mildly changed images, still answered right, that are flagged as *manipulated* at the level of "
            f"5% and of 1%; over {AT_MOST['suspect']:.0%} or {AT_MOST['adversarial']:.0%} in bold, in brackets where "
            "the change alters more than a tenth of the answers."
        ),
        _benign(matrix),
        *(_choices(choices) if choices else ()),
        "## Every row, worst first",
    ]
    for name, rows in matrix.items():
        sections += [f"### {name}: {rows['about']}", _made_of(rows), _attacks(rows)]
    return "\n\n".join(sections) + "\n"


def behind_baseline(row: Rows) -> bool:
    """Whether the best baseline is beyond the fused score's interval."""
    return bool(row["baseline"][1] > row["interval"][1])


def behind_reading(row: Rows) -> bool:
    """Whether the best single reading is beyond the fused score's interval, and by more than NEAR ahead."""
    if row["reading"] is None:
        return False
    best = row["reading"][1]
    return bool(best > row["interval"][1] and best > row["auroc"][FUSED] + NEAR)


def _summary(matrix: Mapping[str, Rows]) -> str:
    head = (
        "victim",
        "accuracy",
        "rows",
        "mean AUROC: fused",
        "one pass",
        "untrained",
        "best baseline",
        "least AUROC",
        "flagged at 5% / 1%",
        "behind the best baseline",
        "behind the best reading",
        "clean flagged",
        "worst class",
    )
    return table(head, [_glance(name, rows) for name, rows in matrix.items()])


def _glance(name: str, rows: Rows) -> tuple[str, ...]:
    attacks = list(rows["attacks"].values())
    least = min(rows["attacks"], key=lambda one: rows["attacks"][one]["auroc"][FUSED])
    worst = max(rows["classes"], key=lambda one: rows["classes"][one]["suspect"])
    return (
        name,
        f"{rows['accuracy']:.1%}",
        str(len(attacks)),
        *(_number(_mean(one["auroc"].get(scorer) for one in attacks)) for scorer in (FUSED, SINGLE_PASS, UNTRAINED)),
        _number(_mean(one["baseline"][1] for one in attacks)),
        f"{_number(rows['attacks'][least]['auroc'][FUSED])} `{least}`",
        " / ".join(f"{sum(one['flagged'][level] for one in attacks) / len(attacks):.0%}" for level in AT_MOST),
        str(sum(map(behind_baseline, attacks))),
        str(sum(map(behind_reading, attacks))),
        " / ".join(f"{rows['clean'][level]:.1%}" for level in AT_MOST),
        f"{rows['classes'][worst]['suspect']:.1%} <sub>{worst}, {rows['classes'][worst]['images']}</sub>",
    )


def _benign(matrix: Mapping[str, Rows]) -> str:
    mild = [name for name in next(iter(matrix.values()))["controls"] if name.endswith(MILD)]
    rows = ((f"`{name}`", *(_flags(one["controls"][name]) for one in matrix.values())) for name in mild)
    return table(("change", *matrix), rows)


def _choices(choices: Mapping[str, Any]) -> list[str]:
    settings = next(iter(choices.values()))["means"]
    means = [(name, *(f"{one['means'][name]:.4f}".lstrip("0") for one in choices.values())) for name in settings]
    chosen = [
        (victim, f"{one['as_it_is']:.4f}".lstrip("0"), one["chosen"], f"{one['chosen_gives']:.4f}".lstrip("0"))
        for victim, one in choices.items()
    ]
    return [
        "## Constants, left one out",
        _wrapped(
            "Mean AUROC over the rows of each victim, the fused score made by other constants (`python -m "
            "benchmarks.matrix.choices`); and for each victim the setting that is best on the mean of the others."
        ),
        table(("setting", *choices), means),
        table(("victim", "as it is", "chosen by the others", "with that"), chosen),
    ]


def _flags(control: Mapping[str, Any]) -> str:
    if not control["counted"]:
        return ""
    cells = [
        f"**{control[level]:.1%}**" if control[level] > most else f"{control[level]:.1%}"
        for level, most in AT_MOST.items()
    ]
    text = " / ".join(cells)
    return text if control["accuracy"] >= PROMISED else f"({text})"


def _made_of(rows: Rows) -> str:
    layers = ", ".join(f"`{name}`" for name in rows["layers"])
    passes = ", ".join(f"{_spaced(name)} {count:.3g}" for name, count in rows["forward_passes"].items())
    baselines = ", ".join(_spaced(name) for name in rows["baselines"])
    return _wrapped(f"Layers {layers}; forward passes: {passes}; baselines: {baselines}.")


def _attacks(rows: Rows) -> str:
    head = (
        "attack",
        "successful",
        "fused",
        "one pass",
        "untrained",
        "best baseline",
        "best reading",
        "flagged at 5% / 1%",
    )
    attacks = sorted(rows["attacks"].items(), key=lambda row: row[1]["auroc"][FUSED])
    return table(head, [_attack(name, row) for name, row in attacks])


def _attack(name: str, row: Rows) -> tuple[str, ...]:
    low, high = row["interval"]
    return (
        f"`{name}`",
        f"{row['successful']}/{row['attempted']}",
        f"{_number(row['auroc'][FUSED])} <sub>{_number(low)} to {_number(high)}</sub>",
        *(_number(row["auroc"].get(scorer)) for scorer in (SINGLE_PASS, UNTRAINED)),
        _named(row["baseline"], behind=behind_baseline(row)),
        "" if row["reading"] is None else _named(row["reading"], behind=behind_reading(row)),
        " / ".join(f"{row['flagged'][level]:.0%}" for level in AT_MOST),
    )


def _named(best: Sequence[Any], *, behind: bool) -> str:
    name, value = best
    figure = f"**{_number(value)}**" if behind else _number(value)
    return f"{figure} <sub>{_spaced(name)}</sub>"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _number(value: float | None) -> str:
    """As `number` has it; nothing for None."""
    return "" if value is None else number(value)
