"""The harness: every scorer on every set of images, clean, attacked, controls and others, each set read once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from askance.answers import FUSED
from askance.calibration.attacks import AimedAttack, Attack
from askance.calibration.baselines import BASELINES, Baseline, Need, Observation, observe
from askance.calibration.baselines.masks import learn_mask
from askance.calibration.benign import LEARNED, PROMISED, benign_readings, of_both
from askance.calibration.cache import attack_cache
from askance.calibration.controls import control
from askance.calibration.digests import combined, state_digest, tensor_digest
from askance.calibration.evaluation import UNTRAINED, AttackedSet, Evidence, SetScores
from askance.calibration.gallery import hardest
from askance.calibration.images import Images, ImageStream, any_image, as_input
from askance.calibration.inputs import CalibrationInputs
from askance.calibration.ladder import BUDGET_OPTIONS, PROBES, first_budgets, ladder
from askance.calibration.progress import say
from askance.calibration.scoring import Scores, score
from askance.calibration.sources import load_source
from askance.calibration.stages import Stages
from askance.calibration.suite import AttackJob, run
from askance.calibration.weighing import learn_weights
from askance.detectors import Detector, Tap
from askance.detectors.reader import TorchReader
from askance.detectors.semantic_signature import correlations
from askance.errors import CalibrationError, ConfigError, listed
from askance.inside import Inside, look
from askance.judgement import Calibration, Fusion, Readings
from askance.judgement.arrays import Doubles
from askance.judgement.calibration import SECOND_LOOK, SINGLE_PASS, second_look_scores
from askance.judgement.conformal import table
from askance.screening.reading import Reader

MOST_FITTED_IMAGES = 10_000  # of the fit split, that the baselines learn from
MOST_DIAGNOSED_IMAGES = 5_000  # of the fit split, that the detectors' diagnoses look at
MOST_SEEN_IMAGES = 2_000  # of the evaluation split, that are drawn one by one
FEWEST_SUCCESSES = 10  # of a rung of the ladder, to learn from it
CLEAN_CANDIDATES, ATTACKED_CANDIDATES = 128, 128  # images that sentinels are chosen from


class Harness:
    """Reads images with the fitted detectors and with the baselines; what was read is kept in the stages.

    Args:
        inputs: the classifier and its data.
        detectors: fitted.
        stages: where readings are kept.
        reader: reads with the detectors; None: torch, with the classifier of `inputs`.
    """

    def __init__(
        self,
        inputs: CalibrationInputs,
        detectors: Mapping[str, Detector],
        stages: Stages,
        reader: Reader | None = None,
    ) -> None:
        self.inputs = inputs
        self.detectors = detectors
        self.stages = stages
        own = TorchReader(inputs.classifier, detectors, inputs.preprocessing)
        self._reader = own if reader is None else reader
        self.tap = Tap(inputs.classifier, own.tap.layers, inputs.preprocessing.normalize)
        self._fitted = combined(*(state_digest(detector.state_dict()) for detector in detectors.values()))
        self._read: dict[str, Scores] = {}
        self._benign: dict[str, tuple[Readings, ...]] = {}
        self._cache = attack_cache()

    def _stage(self, name: str, images: Images, pixels: Tensor | None, *basis: str) -> str:
        """A stage's name, by all that it depends on: other images under the same name, say, are read anew."""
        return f"{name}-{combined(*basis, tensor_digest(images.x if pixels is None else pixels))}"

    def scores(self, name: str, images: Images, pixels: Tensor | None = None) -> Scores:
        """What our detectors read of a set of images, or of `pixels` in their place."""
        stage = self._stage(f"read-{name}", images, pixels, self._fitted)
        if stage not in self._read:
            size = self.inputs.settings.batch_size
            kept = self.stages.run(stage, lambda: score(self._reader, images, name, size, pixels).tensors())
            self._read[stage] = Scores.from_tensors(kept, self.detectors)
        return self._read[stage]

    def split(self, name: str) -> Scores:
        """What our detectors read of a split."""
        return self.scores(f"split-{name}", self.inputs.splits[name])

    def observation(self, name: str, images: Images, pixels: Tensor | None = None) -> Observation:
        """What the baselines need of a set of images, or of `pixels` in their place."""
        needs = frozenset[Need]().union(*(BASELINES[one].needs for one in self.inputs.settings.evaluation.baselines))
        if not needs:  # our detectors have read the logits
            scores = self.scores(name, images, pixels)
            return Observation(torch.from_numpy(scores.readings.logits), scores.labels, {}, {})
        stage = self._stage(f"baselines-{name}", images, pixels, *self.tap.layers, *sorted(needs))
        stream = ImageStream(self.tap, images, self.inputs.settings.batch_size, pixels)
        mask = self._mask if Need.MASKED in needs else None
        kept = self.stages.run(stage, lambda: observe(self.tap, stream, needs, f"baselines: {name}", mask).tensors())
        return Observation.from_tensors(kept)

    @cached_property
    def _mask(self) -> Tensor:
        """What the baselines multiply pixels by, learned from the fit split."""
        images = self.inputs.splits["fit"][:MOST_FITTED_IMAGES]
        stage = self._stage("baselines-mask", images, None, *self.tap.layers)
        return self.stages.run(stage, lambda: {"mask": learn_mask(self.tap, images)})["mask"]

    @property
    def viewers(self) -> tuple[str, ...]:
        """The detectors that need altered views of the input."""
        return tuple(name for name, detector in self.detectors.items() if detector.view_layers)

    @cached_property
    def forward_passes(self) -> int:
        """Of the classifier for each image, its views included."""
        one = self.inputs.splits["calibrate"][:1].pixels()
        return 1 + sum(d.views(one).shape[1] for d in self.detectors.values() if d.view_layers)

    def attack(self, right: Images, attacks: Sequence[Attack]) -> dict[str, tuple[Images, Tensor]]:
        """Run every attack on as many of `right` as it asks for; by name, its images and the attacked pixels."""
        fewest = self.inputs.settings.evaluation.attacked_images
        starts = [right[: one.images or fewest] for one in attacks]
        jobs = [
            AttackJob(one, images.pixels(), self._labels(one, images))
            for one, images in zip(attacks, starts, strict=True)
        ]
        attacked = run(self.inputs.target, jobs, self._cache)
        return {one.name: (images, pixels) for one, images, pixels in zip(attacks, starts, attacked, strict=True)}

    @cached_property
    def seen(self) -> dict[str, tuple[Images, Tensor]]:
        """The attacks that may be trained on, run on the calibration split: the images, and the attacked pixels."""
        return self.attack(self.right_of_calibrate, self.seen_attacks)

    @property
    def right_of_calibrate(self) -> Images:
        """The images of the calibration split that the classifier gets right."""
        return self.inputs.splits["calibrate"][self.split("calibrate").correct]

    @cached_property
    def seen_attacks(self) -> tuple[Attack, ...]:
        """The attacks that may be trained on: the config's, or the ladder that this classifier gives way to."""
        config = self.inputs.settings.evaluation
        if not config.ladder:
            return config.seen
        probes = self.right_of_calibrate[:PROBES]
        if len(probes) == 0:
            raise CalibrationError(
                "the classifier gets no image of the calibration split right: nothing can be attacked"
            )

        def success(attack: Attack) -> float:
            ((images, pixels),) = self.attack(probes, [attack]).values()
            answers = ImageStream(self.tap, images, self.inputs.settings.batch_size, pixels)
            return float((torch.cat([one.predicted for one in answers]) != images.y).double().mean())

        pixels = math.prod(self.inputs.preprocessing.shape)
        budgets = first_budgets(success, pixels)
        rungs = ladder(budgets, pixels)
        say(
            f"the ladder: {len(rungs)} rungs, from {budgets['linf']:.3g} in each pixel (L-infinity), "
            f"from as much as {budgets['l2']:.3g} in each (L2), and from {360 * budgets['turn']:.0f} degrees"
        )
        return rungs

    def benign(self, split: str) -> tuple[Readings, ...]:
        """What our detectors read of images of a split that were mildly changed, and answered as before, by change.

        Of `calibrate` those to learn from, of any other split those that the promise is for.
        """
        stays = LEARNED if split == "calibrate" else PROMISED

        def read(images: Images, pixels: Tensor) -> Readings:
            return self.scores(f"benign-{split}", images, pixels).readings

        if split not in self._benign:
            images, count = self.inputs.splits[split], self.inputs.settings.evaluation.benign_images
            self._benign[split] = benign_readings(images, self.split(split).predicted, count, read, stays)
        return self._benign[split]

    def diagnoses(self) -> dict[str, Any]:
        """What the detectors that diagnose themselves say of how well they have learned, {detector: figures}."""
        splits = self.inputs.splits
        clean = ImageStream(self.tap, splits["fit"][:MOST_DIAGNOSED_IMAGES])
        held_out = ImageStream(self.tap, splits["evaluate"])
        found = {kind: detector.diagnose(clean, held_out) for kind, detector in self.detectors.items()}
        return {kind: figures for kind, figures in found.items() if figures}

    def inside(self) -> Inside:
        """What goes on inside, of images that nothing was fitted on."""
        splits = self.inputs.splits
        fitted = ImageStream(self.tap, splits["fit"][:MOST_DIAGNOSED_IMAGES])
        seen = ImageStream(self.tap, splits["evaluate"][:MOST_SEEN_IMAGES])
        return look(self.detectors, fitted, seen, self.inputs.class_names)

    def _labels(self, attack: Attack, images: Images) -> Tensor:
        """The true classes, or the targets that the attack aims at."""
        rank = attack.target_rank if isinstance(attack, AimedAttack) else None
        if rank is None:
            return images.y
        vectors = self.inputs.word_vectors
        if vectors is None:
            raise ConfigError(f'attack {attack.name}: target_rank needs word vectors: add [word_vectors] file = "..."')
        return targets(correlations(vectors), images.y, rank)


def targets(word_correlations: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The class at `rank` (1 the most similar by word vector, -1 the least) for each true class, [N].

    Raises:
        ConfigError: there is no such rank.
    """
    classes = len(word_correlations)
    if not (1 <= rank < classes or -classes < rank <= -1):
        raise ConfigError(f"target_rank {rank} must be 1 to {classes - 1}, or -1 to {1 - classes}")
    similarity = word_correlations.clone().fill_diagonal_(torch.inf)  # itself first, at rank 0
    order = similarity.argsort(dim=1, descending=True)
    return order[labels, rank]


def gather(harness: Harness, calibration: Calibration) -> Evidence:
    """Attack, read, and score everything that the evaluation needs.

    Args:
        harness: over fitted detectors.
        calibration: their conformal tables.
    """
    config, splits = harness.inputs.settings.evaluation, harness.inputs.splits
    right = splits["evaluate"][harness.split("evaluate").correct]
    if len(right) == 0:
        raise CalibrationError("the classifier gets no image of the evaluation split right: nothing can be attacked")
    attacked = harness.attack(right, config.attacks)

    scorers = _Scorers(harness, calibration)
    attacks = []
    for one in config.attacks:
        images, pixels = attacked[one.name]
        scores = scorers.scores(f"attack-{one.name}", images, pixels)
        moved = (pixels - images.pixels()).flatten(1)
        distances = {"linf": moved.abs().amax(dim=1), "l2": moved.norm(dim=1)}
        attacks.append(AttackedSet(one, scores, distances, one.kind in config.seen_kinds, hardest(scores, pixels)))
    calm = right[: config.attacked_images]
    controls = {
        one.name: scorers.scores(f"control-{one.name}", calm, control(one, calm.pixels())) for one in config.controls
    }
    shape = harness.inputs.preprocessing.shape
    foreign = {}
    for other in config.out_of_distribution:
        images = load_source(other.source, any_image(shape))
        kept = (images if other.classes is None else images.only(other.classes))[: other.images]
        foreign[other.name] = scorers.scores(f"out-{other.name}", as_input(kept, shape))
    of_fuse = scorers.scores("split-fuse", splits["fuse"])
    tables = {name: table(values.numpy()) for name, values in of_fuse.columns.items()}
    single = {} if calibration.single_pass is None else {SINGLE_PASS: calibration.single_pass.table}
    again = {} if calibration.second_look is None else {SECOND_LOOK: calibration.second_look.table}
    return Evidence(
        scorers.scores("split-evaluate", splits["evaluate"]),
        # what the bundle holds is what is judged
        tables | dict(calibration.tables) | calibration.judged | single | again,
        attacks,
        {"controls": controls, "out_of_distribution": foreign},
        config.baselines,
        harness.forward_passes,
    )


def calibration_of(harness: Harness) -> Calibration:
    """The conformal tables of fitted detectors, the fused score with one trained opinion for each seen attack."""
    return Calibration.fit(
        harness.split("calibrate").readings,
        harness.split("fuse").readings,
        harness.inputs.settings.levels,
        benign=of_both(harness.benign("calibrate"), harness.benign("fuse")),
        viewers=harness.viewers,
        train=partial(_trained, harness),
    )


def sentinel_candidates(harness: Harness) -> tuple[Tensor, Tensor]:
    """Images that a bundle's sentinels are chosen from: of the calibration split, none of them of the evaluation's.

    Returns:
        Clean ones, uint8 [N, C, H, W]; and attacked ones, float32 [M, C, H, W] in [0, 1], by the seen attacks, or by
        the first attack of the evaluation where none is seen.
    """
    config = harness.inputs.settings.evaluation
    calibrate = harness.inputs.splits["calibrate"]
    seen = harness.seen
    if not seen:
        seen = harness.attack(harness.right_of_calibrate[:ATTACKED_CANDIDATES], config.attacks[:1])
    share = -(-ATTACKED_CANDIDATES // len(seen))
    attacked = torch.cat([pixels[:share] for _, pixels in seen.values()])
    return calibrate[:CLEAN_CANDIDATES].x, attacked


def _trained(harness: Harness, fusion: Fusion) -> Fusion:
    """An opinion for each seen attack, whatever its budgets; the untrained fusion where there is none to learn from."""
    config = harness.inputs.settings.evaluation
    if not config.seen_kinds:
        return fusion
    seen: dict[str, list[Doubles]] = {}
    for attack in harness.seen_attacks:
        name, (images, pixels) = attack.name, harness.seen[attack.name]
        scores = harness.scores(f"seen-{name}", images, pixels)
        succeeded = ~scores.correct
        if config.ladder and int(succeeded.sum()) < FEWEST_SUCCESSES:
            continue  # a rung that is out of reach
        if not bool(succeeded.any()):
            raise CalibrationError(
                f"the seen attack {name} never succeeds on the calibration split: raise its budget, or leave it out"
            )
        learned = attack.model_dump_json(exclude={"name", "images", *BUDGET_OPTIONS})
        seen.setdefault(learned, []).append(fusion.features(scores.readings.where(succeeded.numpy())))
    if not seen:
        say(
            "warning: no rung of the ladder succeeds on the calibration split: the fused score has learned from nothing"
        )
        return fusion
    peaceful, changed = [harness.split("calibrate").readings], harness.benign("calibrate")
    if changed:
        peaceful.append(Readings.joined(changed))
    features = [fusion.features(readings) for readings in peaceful]
    weights, biases = zip(*(learn_weights(features, budgets) for budgets in seen.values()), strict=True)
    return Fusion(fusion.background, np.stack(weights), np.array(biases) - math.log(len(seen)))


class _Scorers:
    """All columns of the tables: our detectors, the fused scores, the reasons and the baselines."""

    def __init__(self, harness: Harness, calibration: Calibration) -> None:
        self._harness = harness
        self._fused, self._others = calibration.fused.fusion, dict[str, Callable[[Readings], Doubles]]()
        if calibration.single_pass is not None:
            self._others[SINGLE_PASS] = calibration.single_pass.fusion.score
            if calibration.second_look is not None:
                self._others[SECOND_LOOK] = partial(
                    second_look_scores, calibration.second_look.threshold, calibration.single_pass.fusion, self._fused
                )
        if len(calibration.fused.fusion.weights):
            untrained = Fusion.untrained(calibration.fused.fusion.background)
            self._others[UNTRAINED] = untrained.levelled(harness.split("calibrate").readings).score
        self._baselines = self._fitted_baselines()

    def _fitted_baselines(self) -> tuple[Baseline, ...]:
        harness, splits = self._harness, self._harness.inputs.splits
        baselines = tuple(BASELINES[name]() for name in harness.inputs.settings.evaluation.baselines)
        if not any(baseline.learns() for baseline in baselines):
            return baselines
        clean = harness.observation("split-fit", splits["fit"][:MOST_FITTED_IMAGES])
        tune = harness.observation("split-calibrate", splits["calibrate"])
        attacked = [harness.observation(f"seen-{name}", *found) for name, found in harness.seen.items()]
        seen = [one[one.predicted != one.labels] for one in attacked if bool((one.predicted != one.labels).any())]
        learners = [baseline.name for baseline in baselines if baseline.learns_from_attacks]
        if learners and not seen:
            raise CalibrationError(
                f"no seen attack succeeds on the calibration split, and {listed(learners)} learns from them: "
                "raise a budget, or leave that baseline out"
            )
        return tuple(baseline.fit(clean, tune, seen) for baseline in baselines)

    def scores(self, name: str, images: Images, pixels: Tensor | None = None) -> SetScores:
        scores = self._harness.scores(name, images, pixels)
        made = dict(scores.readings.scores)
        judged = self._fused.scores(scores.readings)
        made[FUSED] = judged.pop(FUSED)
        made |= {name: score(scores.readings) for name, score in self._others.items()} | judged
        columns = {name: torch.from_numpy(values) for name, values in made.items()}
        if self._baselines:
            observed = self._harness.observation(name, images, pixels)
            columns |= {baseline.name: baseline.score(observed) for baseline in self._baselines}
        components = {name: torch.from_numpy(values) for name, values in scores.readings.components.items()}
        return SetScores(columns, scores.predicted, scores.labels, components)
