"""The evaluation: how well each scorer separates clean from attacked images, how sure that is, and its false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from askance.answers import FUSED
from askance.calibration.attacks import Attack
from askance.calibration.metrics import FIGURES, detection, detection_intervals, flag_rate_interval, worst_case
from askance.evaluation import Evaluation
from askance.judgement import Levels
from askance.judgement.arrays import Floats
from askance.judgement.calibration import SECOND_LOOK, SINGLE_PASS, looked_at_again
from askance.judgement.conformal import p_value

UNTRAINED = "fused_untrained"
BASELINE = "max_softmax"
WORST_CASE = "worst_case"
CONTROLS = "controls"


@dataclass(frozen=True)
class SetScores:
    """What every scorer (our detectors, the fused scores, the reasons, the baselines) said of N images.

    Attributes:
        columns: {scorer: [N]}, higher = more suspicious.
        predicted: [N], the classifier's answers.
        labels: [N], the true classes; meaningless for out-of-distribution images.
        components: of the detectors, {"detector/component": [N]}, whichever way they point.
    """

    columns: Mapping[str, Tensor]
    predicted: Tensor
    labels: Tensor
    components: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def correct(self) -> Tensor:
        """Whether the classifier is right, bool [N]."""
        return self.predicted == self.labels

    def of(self, column: str, rows: Tensor) -> Tensor:
        """The scores of one scorer for the images of a mask, [M]."""
        return self.columns[column][rows]


@dataclass(frozen=True)
class AttackedSet:
    """An attack's images, read.

    Attributes:
        attack: which.
        scores: of its images, made from the first N that the classifier got right.
        distances: {"linf", "l2"}: how far each image was moved, [N], in pixel values.
        seen: whether a scorer may have been trained on its family.
        hardest: the images that fooled the classifier and are least suspicious, {position: pixels [C, H, W]}.
    """

    attack: Attack
    scores: SetScores
    distances: Mapping[str, Tensor]
    seen: bool
    hardest: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything an evaluation is computed from.

    Attributes:
        clean: the evaluation split.
        tables: {scorer: clean scores [n], sorted}, of a split that nothing else used.
        attacks: in the config's order.
        others: controls and out-of-distribution sets, {kind: {name: scores}}.
        baselines: the scorers that are from the literature.
        forward_passes: of the classifier for each image, its views included.
    """

    clean: SetScores
    tables: Mapping[str, Floats]
    attacks: Sequence[AttackedSet]
    others: Mapping[str, Mapping[str, SetScores]]
    baselines: Sequence[str] = ()
    forward_passes: int = 1


def evaluate(evidence: Evidence, levels: Levels, class_names: Sequence[str]) -> Evaluation:
    """The figures of an evaluation (docs/detection.md).

    Negatives are all clean images of the split, misclassified ones included, as in production. Positives are the
    *successful* attacks on images that the classifier got right; failed ones are reported apart.

    `worst_case` is an attack like the others: each image's least score over all attacks that succeeded on it.
    """
    clean = evidence.clean
    result: dict[str, Any] = {
        "classifier": {"accuracy": float(clean.correct.double().mean()), "images": len(clean.labels)},
        "baselines": list(evidence.baselines),
        "forward_passes": _forward_passes(evidence),
        "target_flag_rate": dict(levels.items()),
        "clean_flag_rate_interval": {
            name: flag_rate_interval(alpha, len(evidence.tables[FUSED]), len(clean.labels))
            for name, alpha in levels.items()
        },
        "attacks": {},
        **{figure: {} for figure in FIGURES},
        "component_auroc": {},
        "intervals": {figure: {} for figure in FIGURES},
    }
    rates = flag_rates(evidence.tables, clean.columns, levels)
    result["clean_flag_rate"] = rates[FUSED]
    result["detector_clean_flag_rate"] = rates
    result["class_clean_flag_rate"] = _by_class(evidence, levels, class_names)
    result["mistakes_auroc"] = {
        scorer: found["auroc"]
        for scorer, scores in clean.columns.items()
        if (found := detection(scores[clean.correct], scores[~clean.correct])) is not None
    }
    for attacked in evidence.attacks:
        succeeded = ~attacked.scores.correct
        result["attacks"][attacked.attack.name] = _options(attacked.attack) | {
            "seen": attacked.seen,
            "flag_rate": flag_rates(evidence.tables, _some(attacked.scores, succeeded), levels),
            "attempted": len(succeeded),
            "successful": int(succeeded.sum()),
            "median_distance": {
                norm: float(values[succeeded].median()) if bool(succeeded.any()) else None
                for norm, values in attacked.distances.items()
            },
        }
        for scorer, of_clean in clean.columns.items():
            _enter(result, attacked.attack.name, scorer, of_clean, attacked.scores.of(scorer, succeeded))
            failed = detection(of_clean, attacked.scores.of(scorer, ~succeeded))
            if failed is not None:
                result.setdefault("failed_auroc", {}).setdefault(attacked.attack.name, {})[scorer] = failed["auroc"]
        result["component_auroc"][attacked.attack.name] = _of_components(clean, attacked.scores, succeeded)
    _enter_worst_case(result, evidence, levels)
    for kind, sets in evidence.others.items():
        result[kind] = {
            name: _of_set(evidence, scores, levels, right=kind == CONTROLS) for name, scores in sets.items()
        }
    return Evaluation.from_json(result)


def _forward_passes(evidence: Evidence) -> dict[str, int | float]:
    """Of the classifier for an image: of a second look's the mean over clean ones, which are read anew."""
    found: dict[str, int | float] = {FUSED: evidence.forward_passes}
    columns = evidence.clean.columns
    if SINGLE_PASS in columns:
        found[SINGLE_PASS] = 1
    if SECOND_LOOK in columns:
        again = float(looked_at_again(columns[SECOND_LOOK].numpy()).mean())
        found[SECOND_LOOK] = 1 + again * evidence.forward_passes
    return found


def _options(attack: Attack) -> dict[str, Any]:
    """An attack's options, JSON-ready, no path of this machine among them."""
    return attack.model_dump(mode="json", include={"images", "seed"}) | attack.identity()


def _of_set(evidence: Evidence, scores: SetScores, levels: Levels, *, right: bool) -> dict[str, Any]:
    """The figures of images that are no attack; of controls only those count that the classifier still gets `right`.

    One that it gets wrong should be flagged: it is an attack by accident.
    """
    counted = scores.correct if right else torch.ones_like(scores.correct)
    columns = _some(scores, counted)
    return {
        "images": len(scores.labels),
        "counted": int(counted.sum()),
        "accuracy": float(scores.correct.double().mean()) if right else None,
        "flag_rate": flag_rates(evidence.tables, columns, levels),
        "auroc": {
            scorer: found["auroc"]
            for scorer, values in columns.items()
            if (found := detection(evidence.clean.columns[scorer], values)) is not None
        },
    }


def _some(scores: SetScores, rows: Tensor) -> dict[str, Tensor]:
    """Every scorer's scores for the images of a mask; empty where there are none."""
    return {scorer: scores.of(scorer, rows) for scorer in scores.columns} if bool(rows.any()) else {}


def _enter(result: dict[str, Any], attack: str, scorer: str, clean: Tensor, attacked: Tensor) -> None:
    figures, intervals = detection(clean, attacked), detection_intervals(clean, attacked)
    for figure, value in (figures or {}).items():
        result[figure].setdefault(attack, {})[scorer] = value
    for figure, interval in (intervals or {}).items():
        result["intervals"][figure].setdefault(attack, {})[scorer] = interval


def _of_components(clean: SetScores, attacked: SetScores, rows: Tensor) -> dict[str, float]:
    """AUROC of each component by itself, read the better way round; empty where no row is to be counted."""
    found = {name: detection(of_clean, attacked.components[name][rows]) for name, of_clean in clean.components.items()}
    return {name: max(one["auroc"], 1 - one["auroc"]) for name, one in found.items() if one is not None}


def _enter_worst_case(result: dict[str, Any], evidence: Evidence, levels: Levels) -> None:
    succeeded = {one.attack.name: ~one.scores.correct for one in evidence.attacks}
    if len(succeeded) < 2 or not any(bool(found.any()) for found in succeeded.values()):
        return
    # the images that every attack of full size started from: others met too few for a worst case
    full = [len(succeeded[one.attack.name]) for one in evidence.attacks if one.attack.images is None]
    count = min(full or [len(found) for found in succeeded.values()])
    least = {
        scorer: worst_case({one.attack.name: one.scores.columns[scorer] for one in evidence.attacks}, succeeded, count)
        for scorer in evidence.clean.columns
    }
    for scorer, of_clean in evidence.clean.columns.items():
        _enter(result, WORST_CASE, scorer, of_clean, least[scorer])
    result["attacks"][WORST_CASE] = {
        "kind": WORST_CASE,
        "seen": False,
        "flag_rate": flag_rates(evidence.tables, least, levels),
        "attempted": count,
        "successful": len(least[FUSED]),
        "median_distance": {},
    }


def flag_rates(
    tables: Mapping[str, Floats], columns: Mapping[str, Tensor], levels: Levels
) -> dict[str, dict[str, float]]:
    """The share of images that each scorer flags at each level, {scorer: {level: share}}."""
    rates = {}
    for scorer, values in columns.items():
        p = p_value(values.numpy(), tables[scorer])
        rates[scorer] = {level: float((p <= alpha).mean()) for level, alpha in levels.items()}
    return rates


def _by_class(evidence: Evidence, levels: Levels, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The fused flag rate among the clean images of each predicted class."""
    table = evidence.tables
    of_class = {}
    for k, name in enumerate(class_names):
        rows = evidence.clean.predicted == k
        if bool(rows.any()):
            rates = flag_rates({FUSED: table[FUSED]}, {FUSED: evidence.clean.of(FUSED, rows)}, levels)
            of_class[name] = rates[FUSED] | {"images": int(rows.sum())}
    return of_class
