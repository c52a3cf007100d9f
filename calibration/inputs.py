"""The inputs of a calibration: a classifier, its data and its detectors to be, as a config names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from askance.calibration.config import ClassifierConfig, Config, Settings
from askance.calibration.data import load_splits, named
from askance.calibration.images import Images, ImageStream, require_shape
from askance.calibration.progress import say
from askance.calibration.proof import PROVED_IMAGES, prove
from askance.calibration.suite import Target
from askance.calibration.training import accuracy
from askance.calibration.unlabelled import settled
from askance.calibration.word_vectors import class_vectors
from askance.classifiers import build_classifier, load_weights
from askance.classifiers.checkpoints import fitting
from askance.detectors import DETECTORS, Detector, Inputs, tap_for
from askance.detectors.output import select_output
from askance.errors import ConfigError, DataError
from askance.judgement.conformal import check_level
from askance.screening.preprocessing import Preprocessing

LEVELLED = ("calibrate", "fuse")  # the splits whose scores p-values are ranks among
TRIED_IMAGES = 500  # that show whether classifier and data fit one another


@dataclass(frozen=True)
class CalibrationInputs:
    """A classifier and its data, loaded and checked.

    Attributes:
        settings: what is to be done.
        classifier: in eval mode, returning its logits.
        factory: what builds it, as in `classifiers.build_classifier`; None where nothing does.
        arguments: of the factory.
        preprocessing: the input's shape and normalisation.
        weights: the classifier's state dict.
        splits: labelled images by name: fit, calibrate, fuse, evaluate, and held_out if there is one.
        class_names: in the order of the logits.
        word_vectors: of the classes in their order, float32 [K, n]; None where there are none.
        provenance: where all this comes from, JSON-ready.
        output: the part of the classifier's answer that holds the logits, if it has parts.
    """

    settings: Settings
    classifier: nn.Module
    factory: str | None
    arguments: Mapping[str, Any]
    preprocessing: Preprocessing
    weights: Mapping[str, Tensor]
    splits: Mapping[str, Images]
    class_names: tuple[str, ...]
    word_vectors: Tensor | None
    provenance: Mapping[str, Any]
    output: str | int | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        classifier: nn.Module,
        weights: Mapping[str, Tensor],
        splits: Mapping[str, Images],
        class_names: tuple[str, ...],
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """What a config names, loaded; yet to be `checked`, and without word vectors."""
        wanted = config.classifier
        return cls(
            config,
            classifier,
            wanted.factory,
            wanted.arguments,
            wanted.preprocessing,
            weights,
            splits,
            class_names,
            None,
            provenance or {},
            wanted.output,
        )

    def stream(self, split: str, *detectors: Detector) -> ImageStream:
        """A stream of one split's Captures, with all that these detectors read."""
        tap = tap_for(self.classifier, detectors, self.preprocessing.normalize)
        return ImageStream(tap, self.splits[split], self.settings.batch_size)

    def sample(self, split: str, count: int, *detectors: Detector) -> ImageStream:
        """The same of `count` images at most, taken evenly over the split."""
        stream, images = self.stream(split, *detectors), self.splits[split]
        return replace(stream, images=images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()])

    @property
    def known(self) -> Inputs:
        """What detectors may ask of it."""
        return Inputs(self.preprocessing.shape, self.class_names, self.word_vectors)

    @property
    def target(self) -> Target:
        """The classifier as attacks want it."""
        # a process of its own builds the classifier anew: ours may be under a Tap, whose hooks do not travel
        live = self.classifier if self.factory is None else None
        return Target(self.factory, self.arguments, self.weights, self.preprocessing, live, self.output)


def load_inputs(config: Config, weights: Mapping[str, Tensor] | None = None) -> CalibrationInputs:
    """Load the classifier, weights and data of a config and check that they fit one another.

    Args:
        config: whose they are.
        weights: in place of the file that the config names.

    Raises:
        ConfigError, DataError, CalibrationError: they do not.
    """
    wanted = config.classifier
    classifier, weights = load_classifier(wanted, weights)
    splits = load_splits(config.data, config.splits, wanted.preprocessing)
    config, splits = settled(config, classifier, wanted.preprocessing, splits, wanted.class_names)
    names = named(wanted.class_names, splits["fit"].classes)
    return checked(
        CalibrationInputs.of(
            config,
            classifier,
            weights,
            splits,
            names,
            {
                "data": {"sources": config.data.model_dump(mode="json")},
                "config": config.model_dump(mode="json", exclude={"classifier": {"weights"}}),
            },
        )
    )


def load_classifier(
    wanted: ClassifierConfig, weights: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a config's classifier, in eval mode and returning its logits.

    Args:
        wanted: the config's section.
        weights: in place of the file that it names.

    Returns:
        The classifier, and its weights by the names that it has for them.

    Raises:
        ConfigError: there are no such weights, they are not its, or it cannot be built.
    """
    if weights is None:
        weights = _weights(wanted.weights)
    classifier = select_output(build_classifier(wanted.factory, wanted.arguments, weights), wanted.output)
    return classifier, fitting(weights, classifier)


def _weights(path: Path) -> Mapping[str, Tensor]:
    if not path.exists():
        raise ConfigError(
            f"the classifier's weights {path} do not exist: "
            "put them there, or under ASKANCE_DATA, or train an example classifier with `askance train CONFIG`"
        )
    return load_weights(path)


def checked(inputs: CalibrationInputs) -> CalibrationInputs:
    """The inputs with their classes' word vectors, once classifier, data and what is asked of them fit one another.

    Raises:
        ConfigError, DataError, CalibrationError: they do not, or a word vector cannot be had.
    """
    check_classifier(inputs)
    for split in LEVELLED:
        check_levels(inputs, split)
    check_accuracy(inputs)
    return replace(inputs, word_vectors=word_vectors(inputs))


def check_classifier(inputs: CalibrationInputs) -> None:
    """Prove the classifier on images of `fit`, and that it has an output for each of the data's classes.

    Raises:
        ConfigError, DataError: it is refused, or they do not fit one another.
    """
    images = inputs.splits["fit"]
    require_shape(images, inputs.preprocessing)
    evaluation = inputs.settings.evaluation
    logits = prove(
        inputs.classifier,
        inputs.preprocessing,
        images[:PROVED_IMAGES].pixels(),
        gradients=evaluation.ladder
        or any(attack.needs_gradients for attack in (*evaluation.attacks, *evaluation.seen)),
    )
    outputs = logits.shape[1]
    if outputs != len(inputs.class_names):
        names = len(inputs.class_names)
        raise ConfigError(f"the classifier has {outputs} outputs for {names} class names: expected one each")
    if len(images.classes) != outputs:
        raise DataError(
            f"the data has {len(images.classes)} classes, the classifier {outputs} outputs: "
            "they must be the same, in the same order"
        )
    for attack in (*evaluation.attacks, *evaluation.seen):
        attack.check(outputs)


def check_levels(inputs: CalibrationInputs, split: str) -> None:
    """Refuse a split that is too small for the levels.

    Raises:
        CalibrationError: it is.
    """
    for level, alpha in inputs.settings.levels.items():
        check_level(alpha, len(inputs.splits[split]), f"{level} (split {split})")


def check_accuracy(inputs: CalibrationInputs) -> None:
    """Say how many calibration images the classifier gets right.

    Raises:
        ConfigError: none at all.
    """
    images = inputs.splits["calibrate"][:TRIED_IMAGES]
    share = accuracy(inputs.classifier, inputs.preprocessing, images)
    say(f"the classifier gets {share:.1%} of {len(images)} calibration images right")
    if share == 0:
        raise ConfigError(
            "the classifier gets not one calibration image right: check the weights, the normalisation and the order "
            "of the classes"
        )


def word_vectors(inputs: CalibrationInputs) -> Tensor | None:
    """Those of its classes in their order, float32 [K, n], where the settings name a file.

    Raises:
        ConfigError, DataError: a class has none, or the file cannot be used.
    """
    wanted = inputs.settings.word_vectors
    return None if wanted is None else class_vectors(wanted.file, inputs.class_names, wanted.words)


def new_detectors(inputs: CalibrationInputs) -> dict[str, Detector]:
    """The config's detectors, unfitted, in order; their layers are tried on two images.

    Raises:
        ConfigError, DataError: a detector cannot be used with this classifier, or a class has no word vector.
        LayerError: a layer does not exist, or cannot be tapped.
    """
    known = inputs.known
    detectors = {
        kind: DETECTORS[kind].create(options, known) for kind, options in inputs.settings.detectors.wanted().items()
    }
    with inputs.stream("fit", *detectors.values()).tap as tap, torch.no_grad():
        capture = tap(inputs.splits["fit"][:2].pixels())
    for detector in detectors.values():
        detector.check(capture, known)
    return detectors
