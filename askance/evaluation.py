"""Evaluation: what a calibration found out about its detectors, typed, and JSON as evaluation.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from askance.answers import FUSED
from askance.notebook import table

Interval = tuple[float, float]
"""A 95% interval, (low, high)."""
ByScorer = Mapping[str, float]
"""A figure of each scorer: our detectors, the fused scores, the reasons, the baselines."""
ByLevel = Mapping[str, float]
"""A share for each level, "suspect" and "adversarial"."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class ClassifierFigures(_Part):
    """How well the classifier itself does on the evaluation split."""

    accuracy: float
    images: int


class AttackFigures(_Part):
    """One attack, or the worst case over all of them.

    Attributes:
        kind: of the attack, or "worst_case"; its own options stand beside it (`model_extra`).
        seen: whether a scorer may have been trained on attacks of its kind.
        attempted: how many correctly classified images it started from.
        successful: how many of them the classifier then got wrong.
        median_distance: of the successful ones, {"linf", "l2"}, in pixel values; None without any.
        flag_rate: of the successful ones, {scorer: {level: share flagged}}; empty without any.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    attempted: int
    successful: int
    kind: str = ""
    seen: bool = False
    median_distance: Mapping[str, float | None] = {}
    flag_rate: Mapping[str, ByLevel] = {}


class SetFigures(_Part):
    """A control, or images from out of distribution.

    Attributes:
        images: how many.
        counted: how many of them the figures below are of: of a control's, those that the classifier still gets right.
        accuracy: of the classifier; None where there is no right answer.
        flag_rate: {scorer: {level: share flagged}}; empty where none is counted.
        auroc: of these images against clean ones, by scorer.
    """

    images: int
    counted: int | None = None
    accuracy: float | None
    flag_rate: Mapping[str, ByLevel]
    auroc: ByScorer


class ClassFigures(BaseModel):
    """The clean images of one predicted class, and the shares of them that the fused score flags."""

    model_config = ConfigDict(frozen=True)

    images: int
    suspect: float
    adversarial: float


class Evaluation(_Part):
    """The figures of an evaluation (docs/detection.md says how each is taken).

    Attributes:
        classifier: its accuracy.
        baselines: the scorers that are other people's.
        forward_passes: of the classifier for each image, {"fused", "fused_single_pass", "fused_second_look"}; of the
            last the mean over clean images.
        target_flag_rate: what each level promises for clean images.
        clean_flag_rate_interval: the 95% interval of the share that the fused score flags where the promise holds, by
            the beta-binomial law: both splits, `fuse` and `evaluate`, are samples.
        attacks: by name; `worst_case` among them.
        auroc, aupr, tpr_at_fpr_5, tpr_at_fpr_1, tpr_at_fpr_01: {attack: {scorer: figure}}, on successful attacks; in
            JSON the rates are spelled out, `tpr_at_fpr_0.05`.
        component_auroc: {attack: {component: AUROC}}, of each component of each detector by itself, read the better way
            round: what the best of them reaches, a fused score should, too.
        intervals: {figure: {attack: {scorer: bootstrap interval}}}.
        failed_auroc: the same on attacks that failed.
        clean_flag_rate: of the fused score, by level.
        detector_clean_flag_rate: {scorer: {level: share}}.
        class_clean_flag_rate: of the fused score, by predicted class.
        mistakes_auroc: how well each scorer ranks the clean images that the classifier gets wrong.
        controls, out_of_distribution: by name.
        diagnostics: each detector's own, JSON-ready, by kind.
        doubts: the layers that turned out to be of no use, and why, {detector: {layer: why}}.
        splits: how many images each split has.
        bundle_id: of the bundle, where it was evaluated again.
    """

    classifier: ClassifierFigures
    baselines: tuple[str, ...] = ()
    forward_passes: Mapping[str, int | float] = {}
    target_flag_rate: ByLevel = {}
    clean_flag_rate_interval: Mapping[str, Interval] = {}
    attacks: Mapping[str, AttackFigures] = {}
    auroc: Mapping[str, ByScorer] = {}
    aupr: Mapping[str, ByScorer] = {}
    tpr_at_fpr_5: Mapping[str, ByScorer] = Field(default={}, alias="tpr_at_fpr_0.05")
    tpr_at_fpr_1: Mapping[str, ByScorer] = Field(default={}, alias="tpr_at_fpr_0.01")
    tpr_at_fpr_01: Mapping[str, ByScorer] = Field(default={}, alias="tpr_at_fpr_0.001")
    component_auroc: Mapping[str, Mapping[str, float]] = {}
    intervals: Mapping[str, Mapping[str, Mapping[str, Interval]]] = {}
    failed_auroc: Mapping[str, ByScorer] = {}
    clean_flag_rate: ByLevel = {}
    detector_clean_flag_rate: Mapping[str, ByLevel] = {}
    class_clean_flag_rate: Mapping[str, ClassFigures] = {}
    mistakes_auroc: ByScorer = {}
    controls: Mapping[str, SetFigures] = {}
    out_of_distribution: Mapping[str, SetFigures] = {}
    diagnostics: Mapping[str, Mapping[str, Any]] = {}
    doubts: Mapping[str, Mapping[str, str]] = {}
    splits: Mapping[str, int] = {}
    bundle_id: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave.

        Raises:
            pydantic.ValidationError: it is something else.
        """
        return cls.model_validate(content)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, as evaluation.json has it; what was not evaluated is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def summary(self) -> dict[str, Any]:
        """The part that a bundle's manifest carries."""
        kept = {"classifier", "forward_passes", "target_flag_rate", "clean_flag_rate", "auroc"}
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, include=kept)

    @property
    def scorers(self) -> tuple[str, ...]:
        """The names of all scorers, in the order of the tables."""
        return tuple(self.detector_clean_flag_rate)

    def _repr_html_(self) -> str:
        head = ("AUROC", "successful", *(scorer.replace("_", " ") for scorer in self.scorers))
        rows = [
            (
                attack,
                f"{self.attacks[attack].successful} of {self.attacks[attack].attempted}",
                *(f"{row[scorer]:.3f}" if scorer in row else "" for scorer in self.scorers),
            )
            for attack, row in self.auroc.items()
        ]
        flags = ", ".join(f"{name} {share:.1%}" for name, share in self.clean_flag_rate.items())
        from askance.pictures import auroc_picture  # matplotlib, where it is installed

        return f"<div>{auroc_picture(self.auroc, FUSED)}{table(head, rows)}<p>clean images flagged: {flags}</p></div>"
