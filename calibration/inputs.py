"""The inputs of a calibration: a classifier, its data and its detectors to be, as a config names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from askance.calibration.config import Config
from askance.calibration.data import load_splits
from askance.calibration.images import Images, ImageStream
from askance.calibration.progress import say
from askance.calibration.suite import Target
from askance.calibration.training import accuracy
from askance.calibration.word_vectors import class_vectors
from askance.classifiers import build_classifier, load_weights
from askance.detectors import DETECTORS, Detector, Inputs, Tap, tap_for
from askance.detectors.conformal import check_level
from askance.errors import ConfigError, DataError

TRIED_IMAGES = 500  # that show whether classifier and data fit one another


@dataclass(frozen=True)
class CalibrationInputs:
    """A classifier and its data: what a config names, loaded and checked."""

    config: Config
    classifier: nn.Module
    weights: Mapping[str, Tensor]
    splits: Mapping[str, Images]
    class_names: tuple[str, ...]

    def stream(self, split: str, *detectors: Detector) -> ImageStream:
        """A stream of one split's Captures, with all that these detectors read."""
        tap = tap_for(self.classifier, detectors, self.config.classifier.preprocessing.normalize)
        return ImageStream(tap, self.splits[split], self.config.batch_size)

    @cached_property
    def word_vectors(self) -> Tensor | None:
        """The classes' word vectors in their order, float32 [K, n]; None where the config names none.

        Raises:
            ConfigError, DataError: they cannot be read, or a class has none.
        """
        wanted = self.config.word_vectors
        return None if wanted is None else class_vectors(wanted.file, self.class_names, wanted.words)

    @property
    def target(self) -> Target:
        """The classifier as attacks want it."""
        config = self.config.classifier
        return Target(config.factory, config.arguments, self.weights, config.preprocessing)


def load_inputs(config: Config) -> CalibrationInputs:
    """Load the classifier, weights and data of a config and check that they fit one another.

    Raises:
        ConfigError, DataError, CalibrationError: they do not.
    """
    if not config.classifier.weights.exists():
        raise ConfigError(
            f"the classifier's weights {config.classifier.weights} do not exist: "
            "put them there, or under ASKANCE_DATA, or train an example classifier with `askance train CONFIG`"
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
    with Tap(classifier, (), config.classifier.preprocessing.normalize) as tap, torch.no_grad():
        try:
            logits, again = (tap(images[:8].pixels()).logits for _ in range(2))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"the classifier cannot take images of {list(expected)}: {reason}") from None
    outputs = logits.shape[1]
    if not torch.allclose(logits, again, rtol=1e-3, atol=1e-4):
        raise ConfigError("the classifier answers the same images differently each time: it must not draw at random")
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(len(logits)), atol=1e-4):
        raise ConfigError("the classifier returns probabilities: it must return logits, before the softmax")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two classes are called {twice[0]!r}: class names must differ")
    if outputs != len(names):
        raise ConfigError(f"the classifier has {outputs} outputs for {len(names)} class names: expected one each")
    if len(images.classes) != outputs:
        raise DataError(
            f"the data has {len(images.classes)} classes, the classifier {outputs} outputs: "
            "they must be the same, in the same order"
        )
    for split in ("calibrate", "fuse"):
        for level, alpha in config.levels.items():
            check_level(alpha, len(splits[split]), f"{level} (split {split})")
    share = accuracy(classifier, config.classifier.preprocessing, splits["calibrate"][:TRIED_IMAGES])
    say(f"the classifier gets {share:.1%} of {min(TRIED_IMAGES, len(splits['calibrate']))} calibration images right")
    if share == 0:
        raise ConfigError(
            "the classifier gets not one calibration image right: check the weights, the normalisation and the order "
            "of the classes"
        )
    return CalibrationInputs(config, classifier, weights, splits, names)


def new_detectors(inputs: CalibrationInputs) -> dict[str, Detector]:
    """The config's detectors, unfitted, in order; their layers are tried on two images.

    Raises:
        ConfigError, DataError: a detector cannot be used with this classifier, or a class has no word vector.
        LayerError: a layer does not exist, or cannot be tapped.
    """
    config = inputs.config
    known = Inputs(config.classifier.preprocessing.shape, inputs.class_names, inputs.word_vectors)
    detectors = {kind: DETECTORS[kind].create(options, known) for kind, options in config.detectors.wanted().items()}
    with inputs.stream("fit", *detectors.values()).tap as tap, torch.no_grad():
        tap(inputs.splits["fit"][:2].pixels())
    return detectors
