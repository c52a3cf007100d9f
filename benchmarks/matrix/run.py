"""One victim, from its weights to its rows: what askance init writes for it, calibrated on the matrix's attacks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from askance.answers import FUSED
from askance.calibration.baselines import BASELINES
from askance.calibration.budgets import budget_for
from askance.calibration.config import EvaluationConfig
from askance.calibration.draft import draft
from askance.calibration.evaluation import UNTRAINED
from askance.calibration.inputs import CalibrationInputs
from askance.calibration.pipeline import calibrate_inputs
from askance.calibration.rehearsal import inputs_of
from askance.calibration.subject import known
from askance.detectors import Bundle
from askance.evaluation import Evaluation
from askance.judgement.calibration import SINGLE_PASS
from benchmarks.matrix.suite import suite
from benchmarks.matrix.victims import Victim

ROOT = Path(__file__).resolve().parents[2]
RUNS, RESULTS = ROOT / "build" / "matrix", ROOT / "docs" / "results"
ATTACKED = 150


def inputs_for(victim: Victim, folder: Path) -> CalibrationInputs:
    """A calibration of the victim: every default by the rule of `askance init`, but for seeds that it keeps to itself.

    Args:
        victim: whose weights are made.
        folder: where images are written that have to be made first.

    Raises:
        AskanceError: the data are not there, say.
    """
    source, test_source = victim.images(folder)
    found = known(victim.subject(), source, test_source, gradients=True)
    drafted = draft(found, source, test_source, "train", folder / f"{victim.name}.toml")
    inputs = inputs_of(drafted.text, found)
    budget, _ = budget_for(found.classifier, found.config.preprocessing, found.pools["test"])
    rows = suite(int(budget.partition("/")[0]) / 255, math.prod(found.config.preprocessing.shape))
    evaluation = EvaluationConfig.model_validate(
        {"attacks": rows, "attacked_images": ATTACKED, "controls": "all", "baselines": tuple(BASELINES)}
    )
    wanted = inputs.settings.detectors.wanted()
    seeded = {kind: one.model_copy(update={"seed": 0}) for kind, one in wanted.items() if hasattr(one, "seed")}
    detectors = inputs.settings.detectors.model_copy(update=seeded)
    settings = inputs.settings.model_copy(update={"evaluation": evaluation, "detectors": detectors})
    return replace(inputs, settings=settings)


def calibrated(victim: Victim, folder: Path) -> Bundle:
    """The victim's bundle in `folder`; a finished one is taken as it is, one that was cut off goes on where it was.

    Raises:
        AskanceError: as `inputs_for`, or the bundle cannot be written.
    """
    out = folder / victim.name
    if out.exists():
        return Bundle.open(out)
    return calibrate_inputs(inputs_for(victim, folder / "images"), out, resume=out.with_suffix(".partial").exists())


def rows_of(victim: Victim, bundle: Bundle) -> dict[str, Any]:
    """What the matrix publishes of a victim, JSON-ready."""
    evaluation = bundle.evaluation()
    return {
        "about": victim.about,
        "accuracy": evaluation.classifier.accuracy,
        "images": evaluation.classifier.images,
        "forward_passes": dict(evaluation.forward_passes),
        "layers": list(bundle.manifest.classifier.layers),
        "baselines": list(evaluation.baselines),
        "attacks": {name: _attack(evaluation, name) for name in evaluation.auroc},
        "clean": dict(evaluation.clean_flag_rate),
        "classes": {name: row.model_dump() for name, row in evaluation.class_clean_flag_rate.items()},
        "controls": {
            name: {"accuracy": row.accuracy, "counted": row.counted, **_flags(row.flag_rate)}
            for name, row in evaluation.controls.items()
        },
    }


def _attack(evaluation: Evaluation, name: str) -> dict[str, Any]:
    row, auroc = evaluation.attacks[name], evaluation.auroc[name]
    components = evaluation.component_auroc.get(name, {})
    reading = max(components, key=components.__getitem__, default=None)
    baseline = max(evaluation.baselines, key=auroc.__getitem__)
    ours = [scorer for scorer in (FUSED, SINGLE_PASS, UNTRAINED) if scorer in auroc]
    return {
        "attempted": row.attempted,
        "successful": row.successful,
        "auroc": {scorer: auroc[scorer] for scorer in ours},
        "interval": list(evaluation.intervals["auroc"][name][FUSED]),
        "flagged": _flags(row.flag_rate),
        "baseline": [baseline, auroc[baseline]],
        "reading": None if reading is None else [reading, components[reading]],
    }


def _flags(rates: Any) -> dict[str, float]:
    return {} if FUSED not in rates else dict(rates[FUSED])
