"""The harness: every reader on every set of images, clean, attacked, controls and others, each set read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.attack_options import AttackConfig
from calibration.cache import attack_cache, combined, tensor_digest
from calibration.controls import control
from calibration.data import Images, ImageStream, load_source
from calibration.evaluation import SINGLE_PASS, UNTRAINED, AttackedSet, Evidence, SetScores
from calibration.peers import Observation, Peer, new_peers, observe
from calibration.scoring import Scores, score
from calibration.stages import Stages
from calibration.subject import Subject
from calibration.suite import Assault, Target, run
from calibration.weighing import learn_weights
from detectors import Calibration, Detector, Fusion, SemanticSignature, Tap, tap_for
from detectors.conformal import table
from detectors.errors import CalibrationError, ConfigError
from detectors.screen import FUSED

CONSTELLATION = "constellation/"  # the components that need extra forward passes begin so
MOST_FITTED = 10_000  # images of the fit split that the peers learn from


class Harness:
    """Reads images with the fitted detectors and with the peers; what was read is kept in the stages.

    Args:
        subject: the classifier and its data.
        detectors: fitted.
        stages: where readings are kept.
    """

    def __init__(self, subject: Subject, detectors: Mapping[str, Detector], stages: Stages) -> None:
        self.subject = subject
        self.detectors = detectors
        self.stages = stages
        normalize = subject.config.classifier.preprocessing.normalize
        self._tap = tap_for(subject.classifier, detectors.values(), normalize)
        self._plain = Tap(subject.classifier, self._tap.layers, normalize)
        self._cache = attack_cache()
        state = [tensor for detector in detectors.values() for tensor in detector.state_dict().values()]
        self._fitted = tensor_digest(*state)

    def scores(self, name: str, images: Images, pixels: Tensor | None = None) -> Scores:
        """What our detectors read of a set of images, or of `pixels` in their place."""
        pixels = images.pixels() if pixels is None else pixels
        stream = ImageStream(self._tap, images, self.subject.config.batch_size, pixels)
        # named by all that it depends on: other detectors, or other images under the same name, are read anew
        stage = f"read-{name}-{combined(self._fitted, tensor_digest(pixels))}"
        return Scores.from_tensors(self.stages.run(stage, lambda: score(self.detectors, stream, name).tensors()))

    def observation(self, name: str, images: Images, pixels: Tensor | None = None) -> Observation:
        """What the peers read of a set of images, or of `pixels` in their place."""
        pixels = images.pixels() if pixels is None else pixels
        stream = ImageStream(self._plain, images, self.subject.config.batch_size, pixels)
        stage = f"peers-{name}-{combined(*self._plain.layers, tensor_digest(pixels))}"
        kept = self.stages.run(stage, lambda: observe(self._plain, stream, f"peers: {name}").tensors())
        return Observation.from_tensors(kept)

    def attack(self, images: Mapping[str, Images], attacks: Mapping[str, AttackConfig]) -> dict[str, Tensor]:
        """Run every attack on its images; pixels by name."""
        config = self.subject.config.classifier
        target = Target(config.factory, config.arguments, self.subject.weights, config.preprocessing)
        assaults = [
            Assault(options, images[name].pixels(), self._labels(options, images[name]))
            for name, options in attacks.items()
        ]
        return dict(zip(attacks, run(target, assaults, self._cache), strict=True))

    @cached_property
    def seen(self) -> dict[str, tuple[Images, Tensor]]:
        """The attacks that may be trained on, run on the calibration split: the images, and the attacked pixels."""
        config = self.subject.config.evaluation
        images = self.subject.splits["calibrate"]
        right = images[self.scores("split-calibrate", images).correct]
        starts = {one.name: right[: one.images or config.attacked_images] for one in config.seen}
        pixels = self.attack(starts, {one.name: one for one in config.seen})
        return {name: (starts[name], pixels[name]) for name in starts}

    def _labels(self, options: AttackConfig, images: Images) -> Tensor:
        """The true classes, or the targets that the options ask for."""
        rank = getattr(options, "target_rank", None)
        if rank is None:
            return images.y
        signature = self.detectors.get(SemanticSignature.kind)
        if not isinstance(signature, SemanticSignature):
            raise ConfigError(f"attack {options.name}: target_rank goes by word vectors: add the semantic signature")
        return targets(signature.word_correlations, images.y, rank)


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


def gather(harness: Harness, calibration: Calibration, calibrate: Scores, fuse: Scores) -> Evidence:
    """Attack, read, and score everything that the evaluation needs.

    Args:
        harness: over fitted detectors.
        calibration: their conformal tables.
        calibrate, fuse: the readings of these splits.
    """
    config, splits = harness.subject.config.evaluation, harness.subject.splits
    clean = harness.scores("split-evaluate", splits["evaluate"])
    right = splits["evaluate"][clean.correct]
    if len(right) == 0:
        raise CalibrationError("the classifier gets no image of the evaluation split right: nothing can be attacked")
    starts = {one.name: right[: one.images or config.attacked_images] for one in config.attacks}
    pixels = harness.attack(starts, {one.name: one for one in config.attacks})

    readers = _Readers(harness, calibration, calibrate)
    attacks = []
    for one in config.attacks:
        scores = readers.scores(f"attack-{one.name}", starts[one.name], pixels[one.name])
        moved = (pixels[one.name] - starts[one.name].pixels()).flatten(1)
        distances = {"linf": moved.abs().amax(dim=1), "l2": moved.norm(dim=1)}
        seen = any(one.kind == trained.kind for trained in config.seen)
        attacks.append(AttackedSet(one, scores, distances, seen))
    calm = right[: config.attacked_images]
    controls = {
        one.name: readers.scores(f"control-{one.name}", calm, control(one, calm.pixels())) for one in config.controls
    }
    shape = harness.subject.config.classifier.preprocessing.shape
    foreign = {}
    for other in config.out_of_distribution:
        images = as_input(load_source(other.source), shape)[: other.images]
        foreign[other.name] = readers.scores(f"out-{other.name}", images)
    of_fuse = readers.scores("split-fuse", splits["fuse"], known=fuse)
    tables = {name: table(values) for name, values in of_fuse.columns.items()}
    return Evidence(
        readers.scores("split-evaluate", splits["evaluate"], known=clean),
        # what the bundle holds is what is judged
        tables | dict(calibration.tables) | {FUSED: calibration.fused_table},
        attacks,
        {"controls": controls, "out_of_distribution": foreign},
    )


def fuse(harness: Harness, calibrate: Scores, components: Collection[str] | None = None) -> Fusion:
    """The fused score of some components (or all): trained on the seen attacks if the config has any.

    Args:
        harness: over fitted detectors.
        calibrate: the readings of the calibration split.
        components: their names; None: all.
    """
    chosen = {name: v for name, v in calibrate.components.items() if components is None or name in components}
    fusion = Fusion.fit(chosen, calibrate.two_sided & chosen.keys())
    seen = []
    for name, (images, pixels) in harness.seen.items():
        scores = harness.scores(f"seen-{name}", images, pixels)
        if bool(scores.correct.all()):
            raise CalibrationError(f"the seen attack {name} never succeeds on the calibration split: raise its budget")
        seen.append(fusion.suspicions(scores.only(fusion.names))[:, ~scores.correct])
    return fusion.weighed(learn_weights(fusion.suspicions(chosen), seen)) if seen else fusion


class _Readers:
    """All columns of the tables: our detectors, the fused scores and the peers."""

    def __init__(self, harness: Harness, calibration: Calibration, calibrate: Scores) -> None:
        self._harness = harness
        self._fusions = {FUSED: calibration.fusion}
        single = [name for name in calibrate.components if not name.startswith(CONSTELLATION)]
        if len(single) < len(calibrate.components):
            self._fusions[SINGLE_PASS] = fuse(harness, calibrate, single)
        if harness.subject.config.evaluation.seen:
            self._fusions[UNTRAINED] = Fusion.fit(calibrate.components, calibrate.two_sided)
        self._peers = self._fitted_peers()

    def _fitted_peers(self) -> tuple[Peer, ...]:
        harness, splits = self._harness, self._harness.subject.splits
        peers = tuple(peer for peer in new_peers() if peer.name in harness.subject.config.evaluation.peers)
        if not peers:
            return ()
        clean = harness.observation("split-fit", splits["fit"][:MOST_FITTED])
        tune = harness.observation("split-calibrate", splits["calibrate"])
        attacked = [
            harness.observation(f"seen-{name}", images, pixels) for name, (images, pixels) in harness.seen.items()
        ]
        seen = [one[one.predicted != one.labels] for one in attacked]
        return tuple(peer.fit(clean, tune, seen) for peer in peers)

    def scores(self, name: str, images: Images, pixels: Tensor | None = None, known: Scores | None = None) -> SetScores:
        scores = known or self._harness.scores(name, images, pixels)
        columns = {name: scores.scores[name] for name in self._harness.detectors}  # a stage does not keep their order
        for fused, fusion in self._fusions.items():
            columns[fused] = fusion.score(scores.only(fusion.names))
        if self._peers:
            observed = self._harness.observation(name, images, pixels)
            columns |= {peer.name: peer.score(observed) for peer in self._peers}
        return SetScores(columns, scores.logits.argmax(dim=1), scores.labels)


def as_input(images: Images, shape: tuple[int, int, int]) -> Images:
    """Images brought to another size (bilinear, antialiased) and number of channels (repeated, or averaged)."""
    channels, height, width = shape
    x = images.x.float()
    if x.shape[1] != channels:
        x = x.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    if tuple(x.shape[2:]) != (height, width):
        x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return Images(x.round().clamp(0, 255).to(torch.uint8).contiguous(), images.y, images.classes)
