"""The constants of the fused score, left-one-out: what the other victims would have chosen, tried on each of them.

`python -m benchmarks.matrix.choices`, once `make matrix` has made the bundles: reads everything again, and keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer

from askance.calibration import harness as harness_module
from askance.calibration.harness import Harness, calibration_of
from askance.calibration.metrics import detection
from askance.calibration.progress import say
from askance.calibration.scoring import Scores
from askance.calibration.stages import Stages, alone_in
from askance.calibration.weighing import learn_weights
from askance.detectors import Bundle
from askance.judgement import conditioning, fusion
from askance.output import write_json
from benchmarks.matrix.run import RESULTS, RUNS, inputs_for
from benchmarks.matrix.victims import VICTIMS, Victim

Setting = Mapping[str, Any]
DEFAULT = "as it is"
SETTINGS: Mapping[str, Setting] = {
    DEFAULT: {},
    "even odds at .001": {"EVEN_ODDS": 0.001},
    "even odds at .01": {"EVEN_ODDS": 0.01},
    "a tenth of the penalty": {"penalty": 1e-4},
    "ten times the penalty": {"penalty": 1e-2},
    "classes levelled at 90%": {"TAIL": 0.9},
    "classes levelled at 98%": {"TAIL": 0.98},
    "classes hardly levelled": {"FEW": 1e9},
    "nine knots": {"KNOTS": 9},
    "learns from what leaves 90%": {"LEARNED": 0.9},
    "no single steps": {"without": "step"},
    "no steps that stop at once": {"without": "barely"},
    "no steps that never stop": {"without": "sure"},
    "no L2 steps": {"without": "l2"},
    "no turns": {"without": "turn"},
}
CHOICES = RESULTS / "matrix_choices.json"
FEWEST = 10  # successful images of a row, to be counted


@contextmanager
def changed(setting: Setting) -> Iterator[Callable[[str], bool]]:
    """A block in which the fused score is made by other constants; gives which rungs of the ladder it learns from."""
    places = {"EVEN_ODDS": fusion, "TAIL": fusion, "FEW": fusion, "KNOTS": conditioning, "LEARNED": harness_module}
    with ExitStack() as stack:
        for name, module in places.items():
            if name in setting:
                stack.enter_context(patch.object(module, name, setting[name]))
        if "penalty" in setting:
            weighed = partial(learn_weights, penalty=setting["penalty"])
            stack.enter_context(patch.object(harness_module, "learn_weights", weighed))
        yield lambda rung: "without" not in setting or setting["without"] not in rung


def aurocs(victim: Victim, folder: Path) -> dict[str, dict[str, float]]:
    """AUROC of every row by every setting, {setting: {attack: AUROC}}."""
    inputs, bundle = inputs_for(victim, folder / "images"), Bundle.open(folder / victim.name)
    with alone_in(folder / "readings" / victim.name) as kept:
        stages = Stages(kept, {"bundle": bundle.manifest.id}, resume=True)
        whole = Harness(inputs, bundle.detectors(), stages)
        right = inputs.splits["evaluate"][whole.split("evaluate").correct]
        attacked = whole.attack(right, inputs.settings.evaluation.attacks)
        rows = {name: whole.scores(f"attack-{name}", *found) for name, found in attacked.items()}
        found = {}
        for name, setting in SETTINGS.items():
            say(f"{victim.name}: {name}")
            with changed(setting) as wanted:
                one = Harness(inputs, whole.detectors, stages)
                one.seen_attacks = tuple(rung for rung in whole.seen_attacks if wanted(rung.name))
                one.seen = {rung.name: whole.seen[rung.name] for rung in one.seen_attacks}
                found[name] = _by_row(one, rows)
    return found


def _by_row(harness: Harness, rows: Mapping[str, Scores]) -> dict[str, float]:
    made = calibration_of(harness).fused.fusion
    clean = made.score(harness.split("evaluate").readings)
    figures = {
        name: detection(clean, made.score(scores.readings.where(~scores.correct.numpy())))
        for name, scores in rows.items()
        if int((~scores.correct).sum()) >= FEWEST
    }
    return {name: one["auroc"] for name, one in figures.items() if one is not None}


def left_out(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """For each victim the setting with the greatest mean AUROC on the others, and what it gives on that victim.

    Args:
        found: {victim: {setting: {attack: AUROC}}}.
    """
    means = {
        victim: {setting: sum(rows.values()) / len(rows) for setting, rows in of_victim.items()}
        for victim, of_victim in found.items()
    }
    result = {}
    for victim, own in means.items():
        others = [of for name, of in means.items() if name != victim]
        chosen = max(own, key=lambda setting: sum(of[setting] for of in others))
        result[victim] = {"means": own, "chosen": chosen, "chosen_gives": own[chosen], "as_it_is": own[DEFAULT]}
    return result


def main(
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Of the bundles.")] = RUNS,
) -> None:
    """Try other constants of the fused score on every victim that has a bundle, and leave each out in turn.

    The figures go to docs/results/matrix_choices.json, from where `make matrix` takes them onto its page.
    """
    made = [victim for name, victim in VICTIMS.items() if (folder / name).exists()]
    if len(made) < 2:
        raise typer.BadParameter(f"{len(made)} bundles in {folder}: leaving one out takes two; make matrix first")
    write_json(CHOICES, left_out({victim.name: aurocs(victim, folder) for victim in made}))


if __name__ == "__main__":
    typer.run(main)
