"""Entry point: calibrates every victim by the rule, and writes the page; `make matrix`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from askance.calibration.progress import say
from askance.errors import AskanceError, did_you_mean
from askance.output import write_json
from askance.writing import PUBLIC, write_whole
from benchmarks.matrix.choices import CHOICES
from benchmarks.matrix.report import page
from benchmarks.matrix.run import RESULTS, RUNS, calibrated, rows_of
from benchmarks.matrix.victims import VICTIMS

FIGURES = RESULTS / "matrix.json"
PAGE = FIGURES.with_suffix(".md")
WORDS = Path(__file__).with_name("page.md")


def main(
    victims: Annotated[list[str] | None, typer.Argument(metavar="[VICTIM]...", help="Which [default: all].")] = None,
    train: Annotated[bool, typer.Option("--train", help="Make their weights anew, and nothing else.")] = False,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the bundles; finished ones are kept.")] = RUNS,
) -> None:
    """Calibrate each victim by the rule of askance init, and write its rows to docs/results/matrix.md."""
    chosen = victims or list(VICTIMS)
    for name in chosen:
        if name not in VICTIMS:
            raise typer.BadParameter(f"unknown victim {name!r}: {did_you_mean(name, VICTIMS)}")
    try:
        for name in chosen:
            if not train:
                _run(name, folder)
            elif VICTIMS[name].training is None:
                say(f"{name}: its weights come with the data")
            else:
                VICTIMS[name].train()
    except AskanceError as error:  # such as data that is not where ASKANCE_DATA says
        say(f"matrix: {error}")
        raise typer.Exit(2) from None


def _run(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(VICTIMS[name], calibrated(VICTIMS[name], folder))
    matrix = (json.loads(FIGURES.read_text()) if FIGURES.exists() else {}) | {name: rows}
    matrix = {one: matrix[one] for one in VICTIMS if one in matrix}
    write_json(FIGURES, matrix)
    choices = json.loads(CHOICES.read_text()) if CHOICES.exists() else {}
    write_whole(PAGE, page(matrix, choices, WORDS.read_text().rstrip()).encode(), PUBLIC)


if __name__ == "__main__":
    typer.run(main)
