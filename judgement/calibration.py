"""Calibration: the tables by which readings become scores, p-values, flags and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from askance.answers import DOUBTFUL, FUSED, UNFAMILIAR, Verdict
from askance.judgement.arrays import Bools, Doubles, Floats
from askance.judgement.background import Background
from askance.judgement.conformal import least_favourable, p_value, table
from askance.judgement.fusion import Fusion
from askance.judgement.margins import Bounds, around, is_close, margins, may_change, spread
from askance.judgement.readings import Readings

SINGLE_PASS = "fused_single_pass"
SECOND_LOOK = "fused_second_look"
LOOKED_AT = 0.2  # the share of clean images whose single-pass score is to be high enough for a second look
BELOW = 1e6  # by which scores of images without a second look are below those of the others, which are small numbers
MOST_FLAGGED = 0.5  # of clean inputs: a level above it says nothing
_UNCHECKED = np.errstate(over="ignore", invalid="ignore")  # NaN and infinity are told from numbers by whoever asks


class Levels(BaseModel):
    """The false-positive targets: a clean input is flagged at a level with at most this probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suspect: float = 0.05
    adversarial: float = 0.01

    @model_validator(mode="after")
    def _in_order(self) -> Levels:
        if not 0 < self.adversarial <= self.suspect <= MOST_FLAGGED:
            raise ValueError(f"levels must satisfy 0 < adversarial <= suspect <= {MOST_FLAGGED:g}")
        return self

    def flags(self, p: float) -> tuple[str, ...]:
        """The names of the levels that a p-value meets, the loosest first."""
        if p <= self.adversarial:
            return "suspect", "adversarial"
        return ("suspect",) if p <= self.suspect else ()

    def items(self) -> tuple[tuple[str, float], ...]:
        """(name, target), the loosest first."""
        return ("suspect", self.suspect), ("adversarial", self.adversarial)

    def verdict(self, p: float) -> Verdict:
        """The verdict of a fused p-value."""
        if p <= self.adversarial:
            return Verdict.ADVERSARIAL
        return Verdict.SUSPECT if p <= self.suspect else Verdict.CLEAN


@dataclass(frozen=True)
class Fused:
    """A fused score and its conformal table.

    Attributes:
        fusion: the score, tabulated on the calibration split.
        table: sorted scores [m] of the fusion split, those of its benignly changed images where they are higher.
        unfamiliar: how unfamiliar its clean images are to the same components, sorted, float64 [m].
    """

    fusion: Fusion
    table: Doubles
    unfamiliar: Doubles


@dataclass(frozen=True)
class SecondLook:
    """Which images are read again with views, where not all are, and the table that these are judged by.

    Attributes:
        threshold: the single-pass fused score from which on an image is.
        table: sorted scores [m] of the fusion split, as `second_look_scores` gives them, those of its benignly changed
            images where they are higher.
    """

    threshold: float
    table: Doubles


@dataclass(frozen=True)
class Calibration:
    """The conformal tables.

    Attributes:
        levels: the false-positive targets.
        tables: {detector: sorted clean scores [n]} of the calibration split.
        fused: of all detectors.
        doubtful: how doubtful the clean images of the fusion split are, sorted, float64 [m].
        single_pass: of the detectors that need no views of the input; None where none needs them.
        second_look: with views for some images only; None where none needs them.
        looked_at_from: the fused score from which on something else is done, too: which side of it a score is on is
            another thing that the last bits may decide.
    """

    levels: Levels
    tables: Mapping[str, Floats]
    fused: Fused
    doubtful: Doubles
    single_pass: Fused | None = None
    second_look: SecondLook | None = None
    looked_at_from: float | None = None

    @property
    def reasons(self) -> dict[str, Doubles]:
        """The tables of the reasons beside `MANIPULATED`, which is the fused score: {reason: sorted [m]}."""
        return {UNFAMILIAR: self.fused.unfamiliar, DOUBTFUL: self.doubtful}

    @property
    def judged(self) -> dict[str, Doubles]:
        """The tables of what a fusion gives, {name: sorted [m]}: the fused score's own, and those of the reasons."""
        return {FUSED: self.fused.table, **self.reasons}

    @property
    def of_every_score(self) -> dict[str, Floats]:
        """The table of every score that `judge` gives, sorted."""
        return {**self.tables, **self.judged}

    @classmethod
    def fit(
        cls,
        calibrate: Readings,
        fuse: Readings,
        levels: Levels | None = None,
        *,
        benign: tuple[Readings, Sequence[Readings]] | None = None,
        viewers: Collection[str] = (),
        train: Callable[[Fusion], Fusion] | None = None,
    ) -> Calibration:
        """Tabulate clean readings of two splits that nothing was fitted on, disjoint from each other.

        Args:
            calibrate: of the split that each detector's p-values, and the fused score's components, go by.
            fuse: of the split that the fused score's p-value goes by.
            levels: the false-positive targets; None takes the defaults.
            benign: the same two of images changed benignly: what suspicions are held against, and by change what is to
                be flagged no oftener than clean images are, if anything.
            viewers: the detectors that need altered views of the input; with some, there is a single-pass calibration
                without them.
            train: gives an untrained Fusion its trained opinions; None leaves it untrained.

        Raises:
            CalibrationError: there are no readings, or some are not finite.
        """
        background = Background.fit(calibrate, None if benign is None else benign[0])

        def tabulated(of_fuse: Doubles, score: Callable[[Readings], Doubles]) -> Doubles:
            clean, mild = table(of_fuse), () if benign is None else benign[1]
            return least_favourable(clean, [table(score(change)) for change in mild]) if mild else clean

        def fused(names: tuple[str, ...]) -> Fused:
            fusion = Fusion.untrained(background.only(names))
            fusion = (fusion if train is None else train(fusion)).levelled(calibrate)
            of_fuse = fusion.scores(fuse)
            return Fused(fusion, tabulated(of_fuse[FUSED], fusion.score), table(of_fuse[UNFAMILIAR]))

        names = background.names
        alone = tuple(name for name in names if name.partition("/")[0] not in viewers)
        of_detectors = {name: table(scores) for name, scores in calibrate.scores.items()}
        doubtful = table(-margins(fuse.logits))
        found = cls(Levels() if levels is None else levels, of_detectors, fused(names), doubtful)
        if not viewers:
            return found
        found = replace(found, single_pass=fused(alone))
        assert found.single_pass is not None
        # of the split that the components go by, for a table has to know nothing of how its own images fare
        threshold = float(np.quantile(found.single_pass.fusion.score(calibrate), 1 - LOOKED_AT))
        scores = partial(second_look_scores, threshold, found.single_pass.fusion, found.fused.fusion)
        return replace(found, second_look=SecondLook(threshold, tabulated(scores(fuse), scores)))

    def in_a_single_pass(self) -> Calibration:
        """The same without the detectors that need views."""
        if self.single_pass is None:
            return self
        kept = {name.partition("/")[0] for name in self.single_pass.fusion.names}
        tables = {name: values for name, values in self.tables.items() if name in kept}
        return replace(self, tables=tables, fused=self.single_pass, single_pass=None, second_look=None)

    def looking_again_from(self, score: float) -> Calibration:
        """The same where a fused score that reaches `score` leads to a second look."""
        return replace(self, looked_at_from=score)

    def at_a_second_look(self) -> Calibration:
        """The same for images that are looked at again; self where that is never done."""
        if self.second_look is None:
            return self
        return replace(self, fused=replace(self.fused, table=self.second_look.table))

    @_UNCHECKED
    def judge(self, readings: Readings) -> dict[str, tuple[Floats, Doubles]]:
        """Scores and p-values of every detector, of the fused score and of the reasons beside it, {name: [N], [N]}.

        Raises:
            CalibrationError: a component is missing.
        """
        return self.p_values({**readings.scores, **self.fused.fusion.scores(readings)})

    @_UNCHECKED
    def p_values(self, scores: Mapping[str, Floats]) -> dict[str, tuple[Floats, Doubles]]:
        """Scores with their p-values, {name: [N]} -> {name: [N], [N]}."""
        tables = self.of_every_score
        return {name: (values, p_value(values, tables[name])) for name, values in scores.items()}

    @_UNCHECKED
    def bounds(self, readings: Readings, slack: Mapping[str, Floats]) -> dict[str, Bounds[Floats]]:
        """Every score that `judge` gives, with the least and the most that it may be, but for noise, [N] each.

        Args:
            readings: of N images.
            slack: how far detectors' scores may be off besides, {detector: [N]}.
        """
        found: dict[str, Bounds[Floats]] = {}
        for name, clean in self.tables.items():
            values = readings.scores[name]
            low, high = around(values, spread(clean))
            off = slack.get(name, 0.0)
            found[name] = Bounds(values, low - off, high + off)
        return {**found, **self.fused.fusion.bounds(readings)}

    @_UNCHECKED
    def undecided(self, readings: Readings, bounds: Mapping[str, Bounds[Floats]]) -> Bools:
        """The images whose class, verdict or flags the last bits of their numbers decide, [N] bool; by their bounds."""
        tables = self.of_every_score
        least = np.stack([p_value(one.most, tables[name]) for name, one in bounds.items()])
        most = np.stack([p_value(one.least, tables[name]) for name, one in bounds.items()])
        alphas = [alpha for _, alpha in self.levels.items()]
        undecided: Bools = is_close(readings.logits) | may_change(least, most, alphas).any(axis=0)
        if self.looked_at_from is not None:
            fused = bounds[FUSED]
            undecided |= (fused.least < self.looked_at_from) & (fused.most >= self.looked_at_from)
        return undecided


def second_look_scores(threshold: float, single_pass: Fusion, whole: Fusion, readings: Readings) -> Doubles:
    """Scores by which images rank where those of at least `threshold` in a single pass are looked at again: the others
    are below them all, float64 [B].
    """
    single = single_pass.score(readings)
    scores: Doubles = np.where(single >= threshold, whole.score(readings), single - BELOW)
    return scores


def looked_at_again(scores: Doubles) -> Bools:
    """Of which images `second_look_scores` are of a second look."""
    return scores > -BELOW / 2
