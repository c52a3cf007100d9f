"""The report: the data of a bundle's report/index.html, put into the page that draws it (report.html)."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve
from torch import Tensor

from askance.calibration.evaluation import Evidence
from askance.evaluation import Evaluation
from askance.judgement import Levels
from askance.judgement.conformal import threshold

GRID = np.logspace(-3.5, 0, 71)  # false-positive rates at which curves are drawn
BINS = 40
PLACE = "/*REPORT-DATA*/null"


def report(title: str, evaluation: Evaluation, evidence: Evidence, levels: Levels) -> dict[str, bytes]:
    """The report's files, {relative path: content}: one self-contained page.

    Args:
        title: of the page.
        evaluation: of `calibration.evaluation.evaluate`.
        evidence: what it was computed from; curves and histograms need every score.
        levels: whose thresholds are drawn.
    """
    data = {
        "title": title,
        "evaluation": {key: value for key, value in evaluation.as_json().items() if key != "diagnostics"},
        "curves": _curves(evidence),
        "histograms": _histograms(evidence),
        "thresholds": {
            scorer: {level: threshold(table, alpha) for level, alpha in levels.items()}
            for scorer, table in evidence.tables.items()
        },
    }
    page = (files("askance.calibration") / "report.html").read_text(encoding="utf-8")
    # "</" would end the script element that holds the data
    content = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return {"report/index.html": page.replace(PLACE, content).encode()}


def _scores(values: Tensor) -> np.ndarray:
    scores: np.ndarray = values.double().numpy()
    return scores


def _curves(evidence: Evidence) -> dict[str, Any]:
    """{"grid": false-positive rates, attack: {scorer: true-positive rates on the grid}}, on successful attacks."""
    curves: dict[str, Any] = {"grid": [round(float(rate), 6) for rate in GRID]}
    for attacked in evidence.attacks:
        succeeded = ~attacked.scores.correct
        if not bool(succeeded.any()):
            continue
        of_attack = curves.setdefault(attacked.attack.name, {})
        for scorer, clean in evidence.clean.columns.items():
            scores = np.concatenate([_scores(clean), _scores(attacked.scores.of(scorer, succeeded))])
            truth = np.repeat([0, 1], [len(clean), int(succeeded.sum())])
            false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
            at = np.searchsorted(false_positive, GRID + 1e-12, side="right") - 1  # the best point allowed, no more
            of_attack[scorer] = [round(float(rate), 4) for rate in true_positive[at]]
    return curves


def _histograms(evidence: Evidence) -> dict[str, Any]:
    """{scorer: {"edges", "clean", attack: ...}}, shares of each set per bin; the outermost bins take the rest."""
    histograms: dict[str, Any] = {}
    for scorer, clean in evidence.clean.columns.items():
        sets = {"clean": _scores(clean)} | {
            one.attack.name: _scores(one.scores.of(scorer, ~one.scores.correct))
            for one in evidence.attacks
            if not bool(one.scores.correct.all())
        }
        low, high = np.percentile(np.concatenate(list(sets.values())), [0.5, 99.5])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        histograms[scorer] = {"edges": [float(f"{edge:.5g}") for edge in edges]} | {
            name: [round(float(n) / len(values), 4) for n in np.histogram(values.clip(low, edges[-1]), edges)[0]]
            for name, values in sets.items()
        }
    return histograms
