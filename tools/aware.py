"""What attackers get who know the defences, into docs/detection.md: python tools/aware.py NAME=FILE..., of what
`askance evaluate --aware --json FILE` wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tables import replace_section, wrapped

from askance.aware import AwareEvaluation, Row
from askance.aware.evaluation import in_words
from askance.calibration.markdown import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "detection.md"
HEAD = (
    "classifier, budget",
    "scorer",
    "victims, steps",
    "fooled",
    "who knows the classifier alone",
    "**who knows the scorer**",
    "cost",
)


def main(arguments: list[str]) -> None:
    """Write the section."""
    found = {}
    for argument in arguments:
        name, _, file = argument.partition("=")
        found[name] = AwareEvaluation.model_validate_json(Path(file).read_bytes())
    rows = [line for name, one in found.items() for line in _rows(name, one)]
    served = [line for name, one in found.items() for line in _served(name, one)]
    replace_section(PAGE, "aware", "\n\n".join([table(HEAD, rows), "\n".join(map(wrapped, served))]))


def _rows(name: str, found: AwareEvaluation) -> Iterator[tuple[str, ...]]:
    for row in found.rows:
        cost = "" if row.cost is None else row.cost.in_words
        yield (
            f"{name}, {row.epsilon:.3g}",
            f"`{row.defence}`",
            f"{row.victims}, {found.steps}",
            f"{row.fooled.share:.2f}",
            in_words(row.oblivious),
            _aware(row),
            cost,
        )


def _aware(row: Row) -> str:
    if row.aware is None:
        closed = ", ".join(f"{name}: {gate.why}" for name, gate in row.gates.items() if not gate.holds)
        return f"not converged <sub>{closed}</sub>"
    headline = row.aware["0.05"]
    return f"**{in_words(row.aware)}** <sub>{headline.low:.2f} to {headline.high:.2f}</sub>"


def _served(name: str, found: AwareEvaluation) -> Iterator[str]:
    by_answers, by_decisions = found.by_answers, found.by_decisions
    if by_answers is not None and by_answers.gate.holds:
        shares = ", ".join(
            f"{rate.share:.2f} ({rate.low:.2f} to {rate.high:.2f}) by {count}"
            for count, rate in by_answers.unnoticed.items()
        )
        yield (
            f"- {name}, Square by the scores of a live server within {by_answers.epsilon:.3g}, {by_answers.victims} "
            f"victims, unnoticed by so many answers: {shares}."
        )
    if by_decisions is not None:
        far = (
            "" if by_decisions.distance is None else f", {by_decisions.distance:.1f} times as far as by the class alone"
        )
        yield (
            f"- {name}, HopSkipJump by class and verdict of a live server, {by_decisions.victims} victims: "
            f"{by_decisions.unnoticed.share:.2f} are let through, by {by_decisions.answers} answers{far}."
        )


if __name__ == "__main__":
    main(sys.argv[1:])
