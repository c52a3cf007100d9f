"""The aware evaluation: attackers who know the defences of a bundle, judged by what a server would answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from askance.answers import FUSED, Answer
from askance.aware.black_box import BlackBox
from askance.aware.crafting import Crafted, Crafter
from askance.aware.defences import BaselineDefence, in_bytes
from askance.aware.effort import Effort
from askance.aware.evaluation import AwareEvaluation, ByAnswers, ByDecisions, Row
from askance.aware.facing import Faced, Judged
from askance.calibration.attacks import StoppedPGD
from askance.calibration.baselines import BASELINES
from askance.calibration.budgets import budget_for
from askance.calibration.cache import attack_cache
from askance.calibration.config import Config
from askance.calibration.digests import json_digest, tensor_digest
from askance.calibration.images import Images, ImageStream
from askance.calibration.inputs import CalibrationInputs
from askance.calibration.pipeline import inputs_of, trusted_factory
from askance.calibration.processes import spread
from askance.calibration.progress import say
from askance.calibration.suite import AttackJob, run
from askance.classifiers import build_classifier
from askance.detectors import Bundle, Tap
from askance.errors import CalibrationError, ConfigError
from askance.judgement.arrays import Bools, Doubles, Floats, Ints
from askance.judgement.calibration import SINGLE_PASS
from askance.judgement.conformal import table
from askance.service.launch import launched
from askance.writing import temporary_folder

PIECE = 25  # victims that are attacked together
HALF = 0.5  # of the range of a pixel: whoever may go so far is stopped by nothing
TRIED_AT_HALF = 50  # victims
BUDGETS = (1, 2, 4)  # times the least budget at which FGSM succeeds on half of some images of `calibrate`
OBLIVIOUS = {"stops at once": 0.0, "never stops": 1e6}  # margins, in logits
BATCH = 100


def evaluate_aware(
    bundle: Bundle,
    config: Config,
    effort: Effort = Effort.STANDARD,
    budgets: Sequence[float] = (),
    victims: int | None = None,
    *,
    other: Bundle | None = None,
    served: bool = False,
) -> AwareEvaluation:
    """Attack a published bundle's defences with full knowledge of them, on images that nothing was chosen by.

    Defences are the fused score with all its views, in a single pass, and those of the config's baselines that have
    slopes. Every image that fools the classifier is judged, as 8 bits a pixel, by the bundle's Screen, whichever
    defence it was made against. What is made is cached: a run that was killed goes on where it was.

    Args:
        bundle: opened.
        config: whose `evaluate` split the victims are of; guides, and where there are no budgets the least of them,
            come from its `calibrate`.
        effort: how hard attackers try.
        budgets: L-infinity, in pixel values, (0, 1]; without any once, twice and four times the least at which FGSM
            fools the classifier on half of some images.
        victims: how many, at most; None: as many as the effort has.
        other: another bundle of the same classifier, of other images and seeds, say: what is made against its fused
            score is held to these defences, too, as made by somebody who has not stolen this very one.
        served: also attack a live server of the bundle, started for it, by its answers alone, with the greatest budget.

    Raises:
        AskanceError: the server does not start, or does not answer.
        CalibrationError: the classifier gets no image right, or a process that makes images was ended.
        ConfigError, DataError: as for `evaluate_bundle`.
    """
    inputs = inputs_of(bundle, config)
    thief = None if other is None else _thief(other, bundle, config)
    field = _Field(bundle, inputs, victims or effort.victims)
    wanted = sorted(set(budgets)) or field.default_budgets()
    listed = ", ".join(f"{one:.3g}" for one in wanted)
    say(f"{len(field.victims)} victims, budgets {listed}; defences: {', '.join(field.defences)}")
    made = {epsilon: field.crafted(epsilon, effort) for epsilon in wanted}
    stolen = {} if thief is None else {one: field.crafted(one, effort, thief=thief)[FUSED] for one in wanted}
    unbounded = field.crafted(HALF, effort, TRIED_AT_HALF)
    oblivious = {epsilon: field.oblivious(epsilon) for epsilon in wanted}
    rows, passed = list[Row](), dict[str, Bools]()
    for name in field.defences:
        at_half, before = field.judged(name, unbounded[name].pixels).unnoticed(), None
        for epsilon in wanted:
            faced = field.faced(name, made[epsilon], oblivious[epsilon], stolen.get(epsilon))
            rows.append(faced.row(name, epsilon, effort, before, at_half))
            passed[name] = faced.aware.unnoticed()
            before = float(passed[name].mean())
    answers, decisions = field.served(wanted[-1], effort, passed[FUSED]) if served else (None, None)
    return AwareEvaluation(
        bundle_id=bundle.manifest.id,
        effort=effort.value,
        steps=effort.steps,
        attacks=tuple(effort.attacks(HALF)),
        rows=tuple(rows),
        left_out=field.left_out,
        by_answers=answers,
        by_decisions=decisions,
    )


def _thief(other: Bundle, bundle: Bundle, config: Config) -> Crafter:
    """Crafts against another bundle.

    Raises:
        ConfigError: its classifier may not be built, or is of other images or classes.
    """
    trusted_factory(other, config)
    theirs, ours = other.manifest.classifier, bundle.manifest.classifier
    if (theirs.preprocessing.shape, theirs.class_names) != (ours.preprocessing.shape, ours.class_names):
        raise ConfigError(f"{other.path} is of other images or classes than {bundle.path}: what fools it says nothing")
    return Crafter(other.path, other.manifest.id, {})


class _Field:
    """A bundle, its defences and the victims.

    Attributes:
        victims: images of `evaluate` that the classifier gets right.
        defences: by name, the bundle's own first.
        left_out: baselines that cannot be attacked, and why.
    """

    def __init__(self, bundle: Bundle, inputs: CalibrationInputs, most: int) -> None:
        self._bundle, self._inputs, self._cache = bundle, inputs, attack_cache()
        self.left_out: dict[str, str] = {}
        self.victims = self._right("evaluate")[:most]
        if not len(self.victims):
            raise CalibrationError(
                "the classifier gets no image of the evaluation split right: nothing can be attacked"
            )
        self._crafter = Crafter(bundle.path, bundle.manifest.id, self._tables())
        makers = self._crafter.defences()
        self.defences = tuple(makers)
        self._baselines = {name: makers[name]() for name in self._crafter.tables}
        self._screens = {
            name: bundle.screen(build_classifier, single_pass=name == SINGLE_PASS)
            for name in self.defences
            if name not in self._baselines
        }

    def _right(self, split: str) -> Images:
        images, inputs = self._inputs.splits[split], self._inputs
        with Tap(inputs.classifier, (), inputs.preprocessing.normalize) as tap:
            predicted = torch.cat([one.predicted for one in ImageStream(tap, images, BATCH)])
        return images[predicted == images.y]

    @torch.no_grad()
    def _tables(self) -> dict[str, Floats]:
        """What the baselines with slopes say of the clean images of `fuse`, sorted."""
        tables: dict[str, Floats] = {}
        inputs, nothing = self._inputs, np.zeros(1)
        for name in inputs.settings.evaluation.baselines:
            if not BaselineDefence.suits(BASELINES[name]):
                self.left_out[name] = "its score has no gradient to attack it by"
                continue
            untabled = BaselineDefence(BASELINES[name](), inputs.classifier, inputs.preprocessing, nothing)
            parts = inputs.splits["fuse"].pixels().split(BATCH)
            tables[name] = table(torch.cat([untabled(part).suspicion for part in parts]).numpy())
        return tables

    @cached_property
    def _guides(self) -> Tensor:
        """For each victim the nearest image of another class, among those of `calibrate` that are right."""
        others = self._right("calibrate")
        apart = torch.cdist(self.victims.pixels().flatten(1), others.pixels().flatten(1))
        of_another = self.victims.y[:, None] != others.y
        if not bool(of_another.any(dim=1).all()):
            raise CalibrationError(
                "the classifier gets images of one class alone right among those of the calibration split: nothing "
                "shows an attacker the way to another"
            )
        return others[apart.where(of_another, torch.inf).argmin(dim=1)].pixels()

    def default_budgets(self) -> list[float]:
        """By what the classifier gives way to."""
        inputs = self._inputs
        spelt, _ = budget_for(inputs.classifier, inputs.preprocessing, inputs.splits["calibrate"])
        return [min(1.0, times * int(spelt.partition("/")[0]) / 255) for times in BUDGETS]

    def crafted(
        self, epsilon: float, effort: Effort, most: int | None = None, thief: Crafter | None = None
    ) -> dict[str, Crafted]:
        """What attackers make of the first victims within a budget, against each defence; a thief's, if one is given,
        against the fused score of another bundle.
        """
        crafter, names = (self._crafter, self.defences) if thief is None else (thief, (FUSED,))
        attacks = effort.attacks(epsilon)
        arrays = self.victims[:most].pixels(), self.victims[:most].y, self._guides[:most]
        pieces = list(zip(*(part.split(PIECE) for part in arrays), strict=True))
        places = [(name, place) for name in names for place in range(len(pieces))]
        options = [one.model_dump(mode="json") for one in attacks.values()]
        keys = {
            (name, place): json_digest(
                {
                    "defence": crafter.identity(name),
                    "attacks": options,
                    "images": tensor_digest(*pieces[place]),
                    "askance": version("askance"),
                }
            )
            for name, place in places
        }
        found = {where: self._cache.get(key) for where, key in keys.items()}
        todo = {
            (name, place): (name, attacks, *(part.numpy() for part in pieces[place]))
            for (name, place), kept in found.items()
            if kept is None
        }
        for where, packed in spread(crafter, todo, f"aware attacks within {epsilon:.3g}, {PIECE} images each"):
            found[where] = torch.from_numpy(packed)
            self._cache.put(keys[where], torch.from_numpy(packed))
        whole = {name: [found[name, place] for place in range(len(pieces))] for name in names}
        shape = self._inputs.preprocessing.shape
        return {
            name: Crafted.unpacked(torch.cat([part for part in parts if part is not None]), shape)
            for name, parts in whole.items()
        }

    def oblivious(self, epsilon: float) -> dict[str, Tensor]:
        """What attackers make of the victims who know the classifier alone, by attack."""
        attacks = [
            StoppedPGD(name=f"margin_{margin:g}", kind="stopped_pgd", epsilon=epsilon, margin=margin)
            for margin in OBLIVIOUS.values()
        ]
        jobs = [AttackJob(one, self.victims.pixels(), self.victims.y) for one in attacks]
        return dict(zip(OBLIVIOUS, run(self._inputs.target, jobs, self._cache), strict=True))

    def faced(
        self, name: str, made: Mapping[str, Crafted], oblivious: Mapping[str, Tensor], stolen: Crafted | None
    ) -> Faced:
        """A defence, and what was made against it, against the others, against another bundle's, and knowing none."""
        count, victims = len(self.victims), self.victims.pixels()
        judged = {other: self.judged(name, crafted.pixels) for other, crafted in made.items()}
        unaware = [self.judged(name, pixels) for pixels in oblivious.values()]
        stopped = in_bytes(next(iter(oblivious.values())))
        return Faced(
            made[name],
            judged.pop(name),
            Judged.best(list(judged.values()), count),
            Judged.best(unaware, count),
            (_lengths(made[name].pixels - victims), _lengths(stopped - victims)),
            unaware[0].fooled,
            None if stolen is None else self.judged(name, stolen.pixels),
        )

    def served(self, epsilon: float, effort: Effort, white_box: Bools) -> tuple[ByAnswers, ByDecisions]:
        """What attackers of a live server get."""
        some, guides = self.victims[: effort.served_victims], self._guides[: effort.served_victims]
        options = ["--disclose", "--port", "0", "--metrics-port", "0"]
        if self._inputs.factory is not None:
            options += ["--allow-factory", self._inputs.factory]
        with temporary_folder() as folder:
            (folder / "server.toml").write_text('[log]\nlevel = "warning"\n')  # not a line for each image flagged
            options += ["--config", str(folder / "server.toml")]
            with launched(["-m", "askance", "serve", str(self._bundle.path), *options]) as serving:
                attacked = BlackBox(serving.target, some.pixels(), some.y.tolist(), guides)
                answers = attacked.by_answers(epsilon, effort.answers, white_box[: len(some)])
                return answers, attacked.by_decisions(*effort.walk)

    def judged(self, name: str, pixels: Tensor) -> Judged:
        """What a defence says of images made of the first victims."""
        found = [self._judged(name, part) for part in in_bytes(pixels).split(BATCH)]
        predicted, p_values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Judged(predicted != self.victims.y[: len(pixels)].numpy(), p_values)

    @torch.no_grad()
    def _judged(self, name: str, pixels: Tensor) -> tuple[Ints, Doubles]:
        if name in self._baselines:
            look = self._baselines[name](pixels)
            return look.logits.argmax(dim=1).numpy(), look.p_values
        read = [_let_through(answer) for answer in self._screens[name](pixels.numpy())]
        predicted, p_values = zip(*read, strict=True)
        return np.array(predicted), np.array(p_values)


def _let_through(answer: object) -> tuple[int, float]:
    """The class and the p-value; an image that cannot be screened is not let through."""
    if not isinstance(answer, Answer) or answer.prediction is None or answer.p_value is None:
        return -1, 0.0
    return answer.prediction.index, answer.p_value


def _lengths(moved: Tensor) -> Doubles:
    lengths: Doubles = moved.flatten(1).norm(dim=1).double().numpy()
    return lengths
