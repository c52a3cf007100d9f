"""The victims: classifiers of many kinds, the images they learned from and others, and how they came by their weights.

What one of them would gain from options of its own is nobody's gain: nothing here says anything of detectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from askance.calibration.config import TrainingConfig
from askance.calibration.images import Images
from askance.calibration.paths import find
from askance.calibration.progress import say
from askance.calibration.sources import load_source, pools_of
from askance.calibration.subject import CIFAR10, MNIST, Scale, Subject
from askance.calibration.training import accuracy, fit_classifier, saved
from askance.classifiers import build_classifier
from askance.writing import PUBLIC, write_whole
from benchmarks.matrix.glyphs import glyphs

HERE = Path(__file__).parent
NETWORKS = "benchmarks.matrix.networks"
GREY: Scale = ((0.5,), (0.5,))
CIFAR10_SOURCES = ("npz:cifar10_train.npz", "npz:cifar10_test.npz")


@dataclass(frozen=True)
class Victim:
    """A classifier, and its images.

    Attributes:
        name: of its rows.
        about: what it is, for the tables.
        factory, arguments: as in a config's [classifier].
        scale: of its normalisation.
        weights: their file; under ASKANCE_DATA where nothing is beside this module.
        sources: of the images it was trained on, and of others; or else
        pools: the same as images, which a folder of the run then holds.
        training: how its weights were made; None where they came from elsewhere.
    """

    name: str
    about: str
    factory: str
    scale: Scale
    weights: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, str | None] | None = None
    pools: Callable[[], tuple[Images, Images]] | None = None
    training: TrainingConfig | None = None

    def subject(self) -> Subject:
        """What a command line would say of it."""
        mean, std = self.scale
        return Subject(self.factory, find(self.weights, HERE), self.arguments, mean=mean, std=std)

    def images(self, folder: Path) -> tuple[str, str | None]:
        """The sources of its images; written to `folder` where they have to be made first.

        Raises:
            FileError: that is not possible.
        """
        if self.pools is None:
            assert self.sources is not None
            return self.sources
        files = (folder / f"{self.name}_train.npz", folder / f"{self.name}_test.npz")
        if not all(file.exists() for file in files):
            folder.mkdir(parents=True, exist_ok=True)
            for file, images in zip(files, self.pools(), strict=True):
                np.savez(file, x=images.x.permute(0, 2, 3, 1).numpy(), y=images.y.numpy(), classes=images.classes)
        train, test = (f"npz:{file.absolute()}" for file in files)
        return train, test

    def train(self) -> None:
        """Make its weights anew, beside this module, on one thread: the last bits depend on how many there are.

        Raises:
            DataError: its images are not there.
        """
        assert self.training is not None
        train, test = self._loaded() if self.pools is None else self.pools()
        torch.set_num_threads(1)
        preprocessing = self.subject().preprocessing(tuple(train.x.shape[1:]), self.scale)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            classifier = build_classifier(self.factory, self.arguments)
            fit_classifier(classifier, preprocessing, train, self.training)
        say(f"{self.name}: {accuracy(classifier, preprocessing, test):.1%} of {len(test)} other images right")
        (HERE / self.weights).parent.mkdir(exist_ok=True)
        write_whole(HERE / self.weights, saved(classifier), PUBLIC)

    def _loaded(self) -> tuple[Images, Images]:
        assert self.sources is not None
        source, test_source = self.sources
        train, test = pools_of(source)
        if test_source is not None:
            test, _ = pools_of(test_source)
        assert test is not None
        return train, test


def _cut(source: str, trained_on: int) -> Callable[[], tuple[Images, Images]]:
    """One source, shuffled: so many images to train on, and the others."""

    def pools() -> tuple[Images, Images]:
        images = load_source(source)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        return images[order[:trained_on]], images[order[trained_on:]]

    return pools


VICTIMS = {
    victim.name: victim
    for victim in (
        Victim(
            "digits",
            "two convolutions, 8 x 8 grey",
            "digits_cnn",
            GREY,
            Path("weights/digits.safetensors"),
            pools=_cut("sklearn:digits", 700),
            training=TrainingConfig(epochs=30, batch_size=32, learning_rate=0.02, momentum=0.9),
        ),
        Victim(
            "mnist",
            "LeNet, 28 x 28 grey",
            "lenet",
            MNIST,
            Path("weights/mnist.safetensors"),
            sources=("torchvision:MNIST", None),
            training=TrainingConfig(epochs=6),
        ),
        Victim(
            "fashion",
            "LeNet, 28 x 28 grey, of 5,000 images",
            "lenet",
            ((0.2860,), (0.3530,)),
            Path("weights/fashion.safetensors"),
            pools=_cut("npz:fashion_mnist_test.npz", 5000),
            training=TrainingConfig(epochs=15, momentum=0.9),
        ),
        Victim(
            "glyphs",
            "two convolutions, 26 letters, 32 x 32 grey",
            f"{NETWORKS}:glyph_net",
            GREY,
            Path("weights/glyphs.safetensors"),
            pools=lambda: (glyphs(9000, seed=1), glyphs(6000, seed=2)),
            training=TrainingConfig(epochs=12, momentum=0.9),
        ),
        Victim(
            "vgg",
            "small VGG with batch normalisation, CIFAR-10",
            f"{NETWORKS}:small_vgg",
            CIFAR10,
            Path("weights/vgg.safetensors"),
            sources=CIFAR10_SOURCES,
            training=TrainingConfig(epochs=10, learning_rate=0.02, momentum=0.9),
        ),
        Victim(
            "mobilenet",
            "MobileNetV2 at half width, CIFAR-10 at 64 x 64",
            f"{NETWORKS}:half_mobilenet",
            CIFAR10,
            Path("weights/mobilenet.safetensors"),
            sources=CIFAR10_SOURCES,
            training=TrainingConfig(epochs=7, learning_rate=0.02, momentum=0.9),
        ),
        Victim(
            "resnet44",
            "ResNet44, CIFAR-10",
            "resnet44",
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            Path("resnet44_cifar10.safetensors"),
            sources=CIFAR10_SOURCES,
        ),
    )
}
