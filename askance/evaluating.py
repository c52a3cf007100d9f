"""The command that evaluates a published bundle: its tables on other data, and against attackers who know it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.arguments import BundleArgument, ConfigArgument, JsonOption, SignatureOption
from askance.engines import Engine
from askance.errors import did_you_mean

if TYPE_CHECKING:
    from askance.aware import AwareEvaluation

EFFORTS = ("quick", "standard", "full")


def _budget(spelt: str) -> float:
    try:
        value = float(Fraction(spelt))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value <= 1:
        raise typer.BadParameter(f"--epsilon {spelt!r}: expected a number in (0, 1], or a fraction such as 8/255")
    return value


def _effort(spelt: str | None) -> str | None:
    if spelt is not None and spelt not in EFFORTS:
        raise typer.BadParameter(f"unknown effort {spelt!r}: {did_you_mean(spelt, EFFORTS)}")
    return spelt


def evaluate(
    bundle: BundleArgument,
    config: ConfigArgument,
    engine: Annotated[
        Engine | None,
        typer.Option("--engine", help="What computes BUNDLE, torch if nothing is said; auto: its graph if it has one."),
    ] = None,
    aware: Annotated[
        bool, typer.Option("--aware", help="What attackers get who know BUNDLE, in place of the tables.")
    ] = False,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(EFFORTS), help="With --aware: how hard they try; standard if not said.", callback=_effort
        ),
    ] = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(metavar="BUDGET", help="With --aware: their budget, L-infinity, such as 8/255; repeatable."),
    ] = None,
    victims: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --aware: images that they attack, at most.")
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE2", help="With --aware: what is made against this one, too."),
    ] = None,
    served: Annotated[
        bool, typer.Option("--served", help="With --aware: attack a live server of BUNDLE, too, by its answers alone.")
    ] = False,
    require_signature: SignatureOption = None,
    json: JsonOption = None,
) -> None:
    """The tables again, for a published BUNDLE on the data and attacks of CONFIG."""
    from askance.calibration.config import load_config
    from askance.calibration.pipeline import evaluate_bundle
    from askance.detectors.bundle import Bundle
    from askance.output import also_as_json, print_evaluation

    budgets = [_budget(spelt) for spelt in epsilon or ()]
    if aware and engine is not None:
        raise typer.BadParameter("--aware goes by torch, whose gradients it needs: leave --engine out")
    if not aware and (effort or budgets or victims or other or served):
        raise typer.BadParameter(
            "--effort, --epsilon, --victims, --other and --served are for attackers who know BUNDLE: add --aware"
        )
    opened = Bundle.open(bundle, require_signature=require_signature)
    if not aware:
        evaluation = evaluate_bundle(opened, load_config(config), engine or Engine.TORCH)
        with also_as_json(json, evaluation.as_json()):
            print_evaluation(evaluation)
        return
    from askance.aware import Effort, evaluate_aware

    stolen = None if other is None else Bundle.open(other, require_signature=require_signature)
    found = evaluate_aware(
        opened, load_config(config), Effort(effort or "standard"), budgets, victims, other=stolen, served=served
    )
    with also_as_json(json, found.model_dump(mode="json")):
        _print_aware(found)


def _print_aware(found: AwareEvaluation) -> None:
    """What attackers get who know the defences, beside what those get who do not; and why not, where nobody can say."""
    from rich.table import Table

    from askance.aware.evaluation import in_words
    from askance.output import console

    levels = list(found.rows[0].oblivious)
    table = Table(
        title=f"share of victims that fool the classifier and are let through, with p above {', '.join(levels)}",
        title_justify="left",
    )
    stolen = ["another bundle's"] if found.rows[0].stolen is not None else []
    for column in ("defence", "budget", "victims", "fooled", "oblivious", *stolen, "aware", "95% at 5%", "cost"):
        table.add_column(column, justify="left" if column == "defence" else "right")
    for row in found.rows:
        aware, interval = "not converged", ""
        cost = "" if row.cost is None else row.cost.in_words
        if row.aware is not None:
            headline = row.aware["0.05"]
            aware, interval = in_words(row.aware), f"{headline.low:.2f} to {headline.high:.2f}"
        fooled = f"{row.fooled.share:.2f}"
        theirs = [] if row.stolen is None else [in_words(row.stolen)]
        cells = (str(row.victims), fooled, in_words(row.oblivious), *theirs, aware, interval, cost)
        table.add_row(row.defence, f"{row.epsilon:.4g}", *cells)
    console.print(table)
    for row in found.rows:
        for name, gate in row.gates.items():
            if not gate.holds:
                line = f"{row.defence} at {row.epsilon:.4g} has not converged, gate {name}: {gate.why}"
                console.print(line, soft_wrap=True, markup=False)
    for line in _served(found):
        console.print(line, soft_wrap=True, markup=False)
    for name, why in found.left_out.items():
        console.print(f"{name} was not attacked: {why}", soft_wrap=True, markup=False)


def _served(found: AwareEvaluation) -> Iterator[str]:
    """What attackers of a live server get, in words."""
    by_answers, by_decisions = found.by_answers, found.by_decisions
    if by_answers is not None:
        shares = ", ".join(f"{rate.share:.2f} by {count} answers" for count, rate in by_answers.unnoticed.items())
        told = shares if by_answers.gate.holds else f"not converged: {by_answers.gate.why}"
        yield (
            f"a live server, Square by its scores within {by_answers.epsilon:.4g}, {by_answers.victims} victims: {told}"
        )
    if by_decisions is not None:
        far = "" if by_decisions.distance is None else f", {by_decisions.distance:.1f} x as far as by the class alone"
        yield (
            f"a live server, HopSkipJump by class and verdict, {by_decisions.victims} victims: "
            f"{by_decisions.unnoticed.share:.2f} are let through, by {by_decisions.answers} answers{far}"
        )
