"""The curves and histograms of an evaluation, from every score."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.metrics import roc_curve
from torch import Tensor

from askance.calibration.evaluation import Evidence
from askance.detectors import DETECTORS
from askance.inside.curves import TOGETHER, Curves
from askance.inside.data import Row
from askance.judgement import Levels
from askance.judgement.arrays import Floats
from askance.judgement.conformal import p_value, threshold

GRID = np.logspace(-3.5, 0, 71)  # false-positive rates at which curves are drawn
BINS, P_BINS = 40, 20


def curves(evidence: Evidence, levels: Levels) -> Curves:
    """All that is drawn of an evaluation.

    Args:
        evidence: what the evaluation was computed from.
        levels: whose thresholds are drawn.
    """
    tables = {scorer: evidence.tables[scorer] for scorer in evidence.clean.columns if scorer in evidence.tables}
    edges, shares = _histograms(evidence)
    return Curves(
        rates=_rounded(GRID, 6),
        detected=_detected(evidence),
        edges=edges,
        shares=shares,
        thresholds={
            scorer: {level: threshold(of, alpha) for level, alpha in levels.items()} for scorer, of in tables.items()
        },
        p_values={
            scorer: _shares(p_value(_scores(evidence.clean.columns[scorer]), of), np.linspace(0, 1, P_BINS + 1))
            for scorer, of in tables.items()
        },
        flagged=_flagged(evidence, levels),
    )


def _scores(values: Tensor) -> Floats:
    scores: Floats = values.double().numpy()
    return scores


def _rounded(values: Floats, decimals: int = 4) -> Row:
    return tuple(round(float(value), decimals) for value in values)


def _shares(values: Floats, edges: Floats) -> Row:
    counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
    return _rounded(counts / max(1, len(values)))


def _detected(evidence: Evidence) -> dict[str, dict[str, Row]]:
    """True-positive rates on the grid, on successful attacks."""
    found: dict[str, dict[str, Row]] = {}
    for attacked in evidence.attacks:
        succeeded = ~attacked.scores.correct
        if not bool(succeeded.any()):
            continue
        of_attack = found.setdefault(attacked.attack.name, {})
        for scorer, clean in evidence.clean.columns.items():
            scores = np.concatenate([_scores(clean), _scores(attacked.scores.of(scorer, succeeded))])
            truth = np.repeat([0, 1], [len(clean), int(succeeded.sum())])
            false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
            at = np.searchsorted(false_positive, GRID + 1e-12, side="right") - 1  # the best point allowed, no more
            of_attack[scorer] = _rounded(true_positive[at])
    return found


def _histograms(evidence: Evidence) -> tuple[dict[str, Row], dict[str, dict[str, Row]]]:
    """The edges of each scorer's bins, and the shares of each set in them."""
    edges: dict[str, Row] = {}
    shares: dict[str, dict[str, Row]] = {}
    for scorer, clean in evidence.clean.columns.items():
        sets = {"clean": _scores(clean)} | {
            one.attack.name: _scores(one.scores.of(scorer, ~one.scores.correct))
            for one in evidence.attacks
            if not bool(one.scores.correct.all())
        }
        low, high = np.percentile(np.concatenate(list(sets.values())), [0.5, 99.5])
        bins = np.linspace(low, high if high > low else low + 1, BINS + 1)
        edges[scorer] = tuple(float(f"{edge:.5g}") for edge in bins)
        shares[scorer] = {name: _shares(values, bins) for name, values in sets.items()}
    return edges, shares


def _flagged(evidence: Evidence, levels: Levels) -> dict[str, dict[str, int]]:
    """Which detectors flag which of the images of successful attacks."""
    kinds = [kind for kind in DETECTORS if kind in evidence.tables]
    found = {}
    for attacked in evidence.attacks:
        succeeded = ~attacked.scores.correct
        flags = [
            p_value(_scores(attacked.scores.of(kind, succeeded)), evidence.tables[kind]) <= levels.suspect
            for kind in kinds
        ]
        sets = Counter(
            TOGETHER.join(kind for kind, flag in zip(kinds, row, strict=True) if flag)
            for row in np.array(flags).reshape(len(kinds), -1).T
        )
        found[attacked.attack.name] = dict(sets.most_common())
    return {name: sets for name, sets in found.items() if sets}
