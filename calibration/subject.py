"""A classifier and images as a command line names them, before there is a config: loaded, normalised, proved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from askance.calibration.config import ClassifierConfig, Config
from askance.calibration.data import named, require_same_classes
from askance.calibration.explain import explain
from askance.calibration.images import Images
from askance.calibration.inputs import load_classifier
from askance.calibration.proof import PROVED_IMAGES, prove
from askance.calibration.sources import located, pools_of
from askance.calibration.training import accuracy
from askance.calibration.unlabelled import with_predictions
from askance.classifiers.zoos import TIMM, TORCHVISION
from askance.errors import ConfigError, DataError
from askance.screening.preprocessing import Preprocessing

Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, a number for each channel."""
IMAGENET: Scale = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: Scale = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
MNIST: Scale = ((0.1307,), (0.3081,))
JUDGING_IMAGES = 100  # that show which of the usual normalisations a classifier was trained with

CLEARLY, SURELY = 0.8, 0.005  # share and nats of the loss, without which another is no likelier than the usual one


@dataclass(frozen=True)
class Subject:
    """What a command line says of a classifier.

    Attributes:
        factory, arguments, weights, output: as in a config's [classifier].
        shape: (C, H, W) of what it takes; None: as the images are.
        mean, std: of its normalisation; None where they are to be guessed.
        class_names: as in a config's [classifier].
    """

    factory: str
    weights: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    output: str | int | None = None
    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def config(self, preprocessing: Preprocessing) -> ClassifierConfig:
        """The same as a config's section.

        Raises:
            ConfigError: the class names cannot be any.
        """
        section = {
            "factory": self.factory,
            "arguments": dict(self.arguments),
            "weights": self.weights,
            "preprocessing": preprocessing,
            "class_names": self.class_names,
            "output": self.output,
        }
        try:
            return ClassifierConfig.model_validate(section)
        except ValidationError as error:
            raise ConfigError(explain(error, ClassifierConfig)) from None

    def preprocessing(self, shape: tuple[int, ...], scale: Scale, resize: str = "refuse") -> Preprocessing:
        """Of images of a shape (C, H, W).

        Raises:
            ConfigError: there are no such images, or the scale is of another number of channels.
        """
        if len(shape) != 3:
            raise ConfigError(f"the shape {list(shape)} has {len(shape)} numbers: expected channels, height, width")
        channels, height, width = shape
        sides = {"channels": channels, "height": height, "width": width}
        mean, std = scale
        try:
            return Preprocessing.model_validate({**sides, "mean": mean, "std": std, "resize": resize})
        except ValidationError as error:
            raise ConfigError(explain(error, Preprocessing)) from None

    def scales(self, channels: int, side: int) -> dict[str, Scale]:
        """The normalisation that was given, else the usual ones by name, the likeliest first.

        Raises:
            ConfigError: one of mean and std is given without the other.
        """
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std go together: give both, or neither to have them guessed")
        if self.mean is not None and self.std is not None:
            return {"given": (self.mean, self.std)}
        plain: dict[str, Scale] = {
            "0.5": ((0.5,) * channels, (0.5,) * channels),
            "none": ((0.0,) * channels, (1.0,) * channels),
        }
        if channels != 3:
            return {"MNIST's": MNIST} | plain if side == 28 else plain
        # Not both: these two are too much alike for images to tell them from each other
        if self.factory.startswith((f"{TORCHVISION}:", f"{TIMM}:")):
            return {"ImageNet's": IMAGENET} | plain
        return {"CIFAR-10's": CIFAR10} | plain if side == 32 else plain | {"ImageNet's": IMAGENET}


@dataclass(frozen=True)
class Known:
    """A subject once it is loaded.

    Attributes:
        classifier: in eval mode, returning its logits; proved.
        weights: its state dict.
        config: its section of a config, with the preprocessing that was given or found.
        pools: the images, {"train": ...}, and "test" where there is a second pool.
        unlabelled: the pools whose labels are its predictions.
        scale: where the preprocessing's mean and std come from, in a few words.
    """

    classifier: nn.Module
    weights: Mapping[str, Tensor]
    config: ClassifierConfig
    pools: Mapping[str, Images]
    unlabelled: frozenset[str]
    scale: str


def known(subject: Subject, source: str, test_source: str | None = None, *, gradients: bool) -> Known:
    """Load a subject's images and weights, find its normalisation, and prove it.

    Args:
        subject: what was said of it.
        source, test_source: as in a config's [data]; the pools are as they are stored, not shuffled.
        gradients: whether it must have a gradient, as most attacks need.

    Raises:
        ConfigError, DataError: something cannot be used as asked.
    """
    pools, resize = _pools(subject, source, test_source)
    pools = {
        name: replace(pool, classes=named(subject.class_names, pool.classes)) if pool.labelled else pool
        for name, pool in pools.items()
    }
    images = pools["train"]
    shape = tuple(images.x.shape[1:])
    if subject.shape not in (None, shape):
        raise DataError(f"the images are {list(shape)}, not {list(subject.shape or ())}: only image files are scaled")
    scales = subject.scales(shape[0], shape[-1])
    candidates = {name: subject.preprocessing(shape, scale, resize) for name, scale in scales.items()}
    first = next(iter(candidates.values()))
    classifier, weights = load_classifier(subject.config(first))
    prove(classifier, first, images[:PROVED_IMAGES].pixels(), gradients=gradients)
    judges = images[torch.linspace(0, len(images) - 1, min(JUDGING_IMAGES, len(images))).long()]
    found, why = next(iter(candidates)), "given"
    if not images.labelled:
        why = f"{found}, the usual one: without labels nothing shows whether it is right"
    elif len(candidates) > 1:
        losses = {name: _loss(classifier, one, judges) for name, one in candidates.items()}
        best = min(losses, key=lambda name: losses[name])
        if losses[best] < CLEARLY * losses[found] - SURELY:
            found = best
        share = accuracy(classifier, candidates[found], judges)
        why = f"{found}, of the usual ones the likeliest by {len(judges)} images: {share:.1%} are classified right"
    preprocessing = candidates[found]
    if preprocessing is not first:
        prove(classifier, preprocessing, images[:PROVED_IMAGES].pixels(), gradients=gradients)
    unlabelled = frozenset(name for name, pool in pools.items() if not pool.labelled)
    return Known(
        classifier,
        weights,
        subject.config(preprocessing),
        with_predictions(classifier, preprocessing, pools, subject.class_names),
        unlabelled,
        why,
    )


@torch.no_grad()
def _loss(classifier: nn.Module, preprocessing: Preprocessing, images: Images) -> float:
    """Mean cross-entropy."""
    losses = [
        F.cross_entropy(classifier(preprocessing.normalize(batch.pixels())), batch.y, reduction="sum")
        for batch in images.batches(50)
    ]
    return float(torch.stack(losses).sum()) / len(images)


def on_noise(subject: Subject) -> tuple[nn.Module, Preprocessing, Tensor]:
    """The classifier, proved on noise of its shape where there are no images; and that noise, [N, C, H, W].

    Raises:
        ConfigError: no shape is given, or the classifier is refused.
    """
    if subject.shape is None:
        raise ConfigError("neither images nor a shape: give --data, or --shape CHANNELS,HEIGHT,WIDTH")
    scale = next(iter(subject.scales(subject.shape[0], subject.shape[-1]).values()))
    preprocessing = subject.preprocessing(subject.shape, scale)
    pixels = torch.rand(PROVED_IMAGES, *subject.shape, generator=torch.Generator().manual_seed(0))
    classifier, _ = load_classifier(subject.config(preprocessing))
    prove(classifier, preprocessing, pixels, gradients=False)
    return classifier, preprocessing, pixels


def of_config(config: Config) -> tuple[nn.Module, Preprocessing, Tensor]:
    """The same of a config, on images of its data."""
    wanted = config.classifier
    classifier, _ = load_classifier(wanted)
    pixels = pools_of(config.data.source, wanted.preprocessing)[0][:PROVED_IMAGES].pixels()
    prove(classifier, wanted.preprocessing, pixels, gradients=False)
    return classifier, wanted.preprocessing, pixels


def _pools(subject: Subject, source: str, test_source: str | None) -> tuple[dict[str, Images], str]:
    """The pools, and whether image files have to be resized for them."""
    if subject.shape is None:
        try:
            return dict(_both(source, test_source, None)), "refuse"
        except DataError as error:
            what = source.partition(":")[2]
            hint = " (images of several sizes are scaled once --shape says to which)" if located(what).is_dir() else ""
            raise DataError(f"{error}{hint}") from None
    wanted = [
        subject.preprocessing(subject.shape, ((0.0,) * subject.shape[0], (1.0,) * subject.shape[0]), resize)
        for resize in ("refuse", "bilinear")
    ]
    try:
        pools = dict(_both(source, test_source, wanted[0]))
    except DataError:
        return dict(_both(source, test_source, wanted[1])), "bilinear"
    return pools, "refuse"


def _both(source: str, test_source: str | None, preprocessing: Preprocessing | None) -> Iterator[tuple[str, Images]]:
    train, test = pools_of(source, preprocessing)
    yield "train", train
    if test_source is not None:
        if preprocessing is None:
            channels, height, width = train.x.shape[1:]
            preprocessing = Preprocessing.model_construct(
                channels=channels, height=height, width=width, resize="refuse"
            )
        test, _ = pools_of(test_source, preprocessing)
        require_same_classes(source, train, test_source, test)
    if test is not None:
        yield "test", test
