"""The pipeline: from a config to a published bundle, stage by stage."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibration.attacks import PixelClassifier, attack
from calibration.config import AttackConfig, Config
from calibration.data import Images, ImageStream, load_splits
from calibration.diagnostics import diagnose
from calibration.evaluation import choose_attacked, evaluate, summary
from calibration.progress import Tracked, say
from calibration.scoring import Scores, score
from calibration.stages import Stages
from calibration.word_vectors import class_vectors
from classifiers import build_classifier, load_weights
from detectors import (
    Bundle,
    Calibration,
    Detector,
    Fusion,
    Introspection,
    LibraryNetwork,
    SelfOrganizingMap,
    SemanticSignature,
    Tap,
)
from detectors.bundle import publish, refuse_existing, sha256
from detectors.conformal import check_level, table
from detectors.errors import ConfigError, DataError

PACKAGES = ("askance", "torch", "torchvision", "numpy", "scikit-learn", "advertorch", "gensim")


@dataclass(frozen=True)
class Subject:
    """A classifier and its data: what a config names, loaded and checked."""

    config: Config
    classifier: nn.Module
    weights: Mapping[str, Tensor]
    splits: Mapping[str, Images]
    class_names: tuple[str, ...]

    def stream(self, split: str, layers: tuple[str, ...]) -> ImageStream:
        """A stream of one split's Captures of `layers`."""
        tap = Tap(self.classifier, layers, self.config.classifier.preprocessing.normalize)
        return ImageStream(tap, self.splits[split], self.config.batch_size)


def load_subject(config: Config) -> Subject:
    """Load the classifier, weights and data of a config and check that they fit one another.

    Raises:
        ConfigError, DataError, LayerError, CalibrationError: they do not.
    """
    if not config.classifier.weights.exists():
        raise ConfigError(
            f"the classifier's weights {config.classifier.weights} do not exist: "
            "put them there, or train an example classifier with `askance train CONFIG`"
        )
    weights = load_weights(config.classifier.weights)
    classifier = build_classifier(config.classifier.factory, config.classifier.arguments, weights)
    splits = load_splits(config.data, config.splits)
    images, expected = splits["fit"], config.classifier.preprocessing.shape
    if tuple(images.x.shape[1:]) != expected:
        raise DataError(
            f"the images are {list(images.x.shape[1:])}, the classifier takes {list(expected)} "
            "(channels, height, width): they must be the same"
        )
    names = config.classifier.class_names or images.classes
    with Tap(classifier, _layers(config), config.classifier.preprocessing.normalize) as tap, torch.no_grad():
        outputs = tap(images[:2].pixels()).logits.shape[1]
    if outputs != len(names):
        raise ConfigError(f"the classifier has {outputs} outputs for {len(names)} class names: expected one each")
    if len(images.classes) > outputs:
        raise DataError(f"the data has {len(images.classes)} classes, the classifier only {outputs}")
    for split in ("calibrate", "fuse"):
        for level, alpha in config.levels.items():
            check_level(alpha, len(splits[split]), f"{level} (split {split})")
    return Subject(config, classifier, weights, splits, names)


def _layers(config: Config) -> tuple[str, ...]:
    wanted = config.detectors
    return tuple(
        dict.fromkeys(
            (
                *(wanted.library_network.thresholds if wanted.library_network else ()),
                *(wanted.introspection.hidden_layers if wanted.introspection else ()),
                *(wanted.self_organizing_map.map_layers if wanted.self_organizing_map else ()),
                *(wanted.semantic_signature.semantic_layers if wanted.semantic_signature else ()),
            )
        )
    )


def new_detectors(config: Config, class_names: tuple[str, ...]) -> dict[str, Detector]:
    """The config's detectors, unfitted, in order.

    Raises:
        DataError: a class has no word vector.
    """
    wanted, detectors = config.detectors, list[Detector]()
    if wanted.library_network is not None:
        detectors.append(LibraryNetwork(wanted.library_network))
    if wanted.introspection is not None:
        detectors.append(Introspection(wanted.introspection))
    if wanted.self_organizing_map is not None:
        detectors.append(SelfOrganizingMap(wanted.self_organizing_map))
    if wanted.semantic_signature is not None:
        semantic = wanted.semantic_signature
        vectors = class_vectors(semantic.word_vectors, class_names, semantic.words)
        detectors.append(SemanticSignature(semantic.options(), vectors))
    return {detector.kind: detector for detector in detectors}


def calibrate(config: Config, out: Path, *, resume: bool = False) -> Bundle:
    """Fit, calibrate, attack, evaluate, and publish the bundle at `out`.

    Finished stages are kept in `<out>.partial` until the bundle is published; with `resume` they are not redone.

    Raises:
        AskanceError: the config, the data or the classifier cannot be used, or `out` exists.
    """
    refuse_existing(out)
    subject = load_subject(config)
    detectors = new_detectors(config, subject.class_names)
    digests = {name: images.digest() for name, images in subject.splits.items()}
    identity = {
        "config": config.model_dump(mode="json", exclude={"classifier": {"weights"}}),
        "weights": sha256(b"".join(subject.weights[k].contiguous().numpy().tobytes() for k in sorted(subject.weights))),
        "data": digests,
        "askance": version("askance"),
    }
    stages = Stages(out.with_name(out.name + ".partial"), identity, resume=resume)

    for name, detector in detectors.items():
        detector.restore(stages.run(f"fit-{name}", partial(_fit, detector, subject))).eval()
    scores = {
        split: _scored(stages, f"score-{split}", detectors, subject.stream(split, _layers(config)))
        for split in ("calibrate", "fuse", "evaluate")
    }
    fusion = Fusion.fit(scores["calibrate"].components, scores["calibrate"].two_sided)
    tables = Calibration(
        levels=config.levels,
        tables={name: table(values) for name, values in scores["calibrate"].scores.items()},
        fusion=fusion,
        fused_table=table(fusion.score(scores["fuse"].components)),
    )
    clean = scores["evaluate"]
    attacked = partial(_attacked, stages, detectors, subject, choose_attacked(clean, config.evaluation))
    evaluation = evaluate(clean, tables, config.evaluation, attacked)
    say("diagnostics")
    tap = Tap(subject.classifier, _layers(config), config.classifier.preprocessing.normalize)
    evaluation["diagnostics"] = diagnose(detectors, tap, subject.splits["fit"], subject.splits["evaluate"])
    evaluation["splits"] = {name: len(images) for name, images in subject.splits.items()}
    publish(
        out,
        classifier={
            "name": config.name,
            "factory": config.classifier.factory,
            "arguments": config.classifier.arguments,
            "layers": _layers(config),
            "preprocessing": config.classifier.preprocessing,
            "class_names": subject.class_names,
        },
        weights=subject.weights,
        detectors=detectors,
        calibration=tables,
        evaluation=evaluation,
        summary=summary(evaluation),
        provenance={
            "data": {"sources": config.data.model_dump(mode="json"), "sha256": digests},
            "config": config.model_dump(mode="json", exclude={"classifier": {"weights"}}),
            "packages": {package: version(package) for package in PACKAGES},
            "host": {"platform": platform.platform(), "python": sys.version.split()[0]},
        },
    )
    stages.remove()
    return Bundle.open(out)


def _fit(detector: Detector, subject: Subject) -> Mapping[str, Tensor]:
    def stream(split: str) -> Tracked[Any]:
        return Tracked(subject.stream(split, detector.layers), f"{detector.kind}: {split}")

    if isinstance(detector, Introspection) and "held_out" in subject.splits:
        detector.fit(stream("fit"), stream("held_out"))
    else:
        detector.fit(stream("fit"))
    return detector.state_dict()


def _scored(stages: Stages, name: str, detectors: Mapping[str, Detector], stream: ImageStream) -> Scores:
    return Scores.from_tensors(stages.run(name, lambda: score(detectors, stream, name).tensors()))


def _attacked(
    stages: Stages, detectors: Mapping[str, Detector], subject: Subject, chosen: Tensor, config: AttackConfig
) -> Scores:
    images = subject.splits["evaluate"][chosen]
    predict = PixelClassifier(subject.classifier, subject.config.classifier.preprocessing)
    pixels = stages.run(f"attack-{config.name}", lambda: {"pixels": attack(predict, images, config)})["pixels"]
    tap = subject.stream("evaluate", _layers(subject.config)).tap
    return _scored(stages, f"score-{config.name}", detectors, ImageStream(tap, images, pixels=pixels))


def evaluate_bundle(bundle: Bundle, config: Config) -> dict[str, Any]:
    """The tables of `evaluate` for a published bundle, on the data and attacks of `config`.

    Only the config's data, `evaluate` split and attacks are used; everything fitted comes from the bundle.

    Raises:
        ConfigError: the data has not as many classes as the bundle.
        DataError: its images are not of the bundle's size.
    """
    screen = bundle.screen(build_classifier)
    images = load_splits(config.data, config.splits)["evaluate"]
    entry = bundle.manifest.classifier
    if len(images.classes) != len(entry.class_names):
        raise ConfigError(
            f"the data has {len(images.classes)} classes, the bundle's classifier {len(entry.class_names)}: "
            "they must be the same, in the same order"
        )
    if tuple(images.x.shape[1:]) != entry.preprocessing.shape:
        raise DataError(
            f"the images are {list(images.x.shape[1:])}, "
            f"the bundle's classifier takes {list(entry.preprocessing.shape)}"
        )
    clean = score(screen.detectors, ImageStream(screen.tap, images, config.batch_size), "clean")
    chosen = choose_attacked(clean, config.evaluation)
    predict = PixelClassifier(screen.tap.module, entry.preprocessing)

    def attacked(one: AttackConfig) -> Scores:
        pixels = attack(predict, images[chosen], one)
        return score(screen.detectors, ImageStream(screen.tap, images[chosen], pixels=pixels), one.name)

    return evaluate(clean, screen.calibration, config.evaluation, attacked) | {"bundle_id": bundle.manifest.id}
