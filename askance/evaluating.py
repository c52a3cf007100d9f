"""The command that evaluates a published bundle: its tables on other data, and against attackers who know it."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

import typer

from askance.arguments import BundleArgument, ConfigArgument, JsonOption, SignatureOption
from askance.engines import Engine
from askance.errors import did_you_mean

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
    require_signature: SignatureOption = None,
    json: JsonOption = None,
) -> None:
    """The tables again, for a published BUNDLE on the data and attacks of CONFIG."""
    from askance.calibration.config import load_config
    from askance.calibration.pipeline import evaluate_bundle
    from askance.detectors.bundle import Bundle
    from askance.output import also_as_json, print_aware, print_evaluation

    budgets = [_budget(spelt) for spelt in epsilon or ()]
    if aware and engine is not None:
        raise typer.BadParameter("--aware goes by torch, whose gradients it needs: leave --engine out")
    if not aware and (effort or budgets or victims):
        raise typer.BadParameter("--effort, --epsilon and --victims say how attackers try who know BUNDLE: add --aware")
    opened = Bundle.open(bundle, require_signature=require_signature)
    if not aware:
        evaluation = evaluate_bundle(opened, load_config(config), engine or Engine.TORCH)
        with also_as_json(json, evaluation.as_json()):
            print_evaluation(evaluation)
        return
    from askance.aware import Effort, evaluate_aware

    found = evaluate_aware(opened, load_config(config), Effort(effort or "standard"), budgets, victims)
    with also_as_json(json, found.model_dump(mode="json")):
        print_aware(found)
