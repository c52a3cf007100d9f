"""A study: a bundle's classifier, detectors and images, to see more of than the bundle holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from askance.calibration.attacks import PGD, Attack
from askance.calibration.cache import attack_cache
from askance.calibration.config import DataConfig, SplitsConfig, load_config
from askance.calibration.data import load_splits
from askance.calibration.images import Images, ImageStream
from askance.calibration.layers import Layer, layers_of
from askance.calibration.progress import say
from askance.calibration.suite import AttackJob, Target, run
from askance.classifiers import load_weights, trusting
from askance.detectors import Bundle, Detector, Tap
from askance.detectors.output import select_output
from askance.errors import BundleError, ConfigError, DataError
from askance.screening.bundle import SealedBundle

FITTED, SEEN, ATTACKED = 12_000, 2_000, 200  # images at most
BATCH = 250
GREY, COLOURED = (0.05, 0.1, 0.2, 0.3), (2 / 255, 4 / 255, 8 / 255, 16 / 255)
"""Budgets of PGD, as the papers have them."""
STEPS = 40
KindT = TypeVar("KindT", bound=Detector)


@dataclass(frozen=True)
class Checkpoint:
    """A classifier on its way.

    Attributes:
        epoch: 0 before any training.
        classifier: in eval mode.
    """

    epoch: int
    classifier: nn.Module


class Study:
    """A bundle, and the images that it was made of.

    Attributes:
        splits: the images, by split.

    Args:
        sealed: the bundle.
        config: of other images than its own.
        checkpoints: a folder that `askance train --checkpoints` has filled.
        permuted: the same with `--permuted-labels`.
        allowed_factories: as for `askance.open`.

    Raises:
        BundleError: its classifier cannot be built, or its images are not known.
        DataError: they cannot be read, or are others than it was made of.
    """

    def __init__(
        self,
        sealed: SealedBundle,
        config: Path | None = None,
        checkpoints: Path | None = None,
        permuted: Path | None = None,
        allowed_factories: Collection[str] = (),
    ) -> None:
        self.bundle = Bundle.of(sealed)
        self._build = trusting(allowed_factories)
        self._entry = self.bundle.manifest.classifier
        self.class_names = self._entry.class_names
        self.normalize = self._entry.preprocessing.normalize
        self.classifier = self.bundle.classifier(self._build)
        self._detectors = self.bundle.detectors()
        self.splits = self._images(config)
        self._checkpoints, self._permuted = checkpoints, permuted
        self._taps: dict[tuple[str, ...], Tap] = {}

    def _images(self, config: Path | None) -> dict[str, Images]:
        preprocessing = self._entry.preprocessing
        if config is not None:
            named = load_config(config)
            return load_splits(named.data, named.splits, preprocessing)
        provenance: Mapping[str, Any] = self.bundle.manifest.provenance
        try:
            own = provenance["config"]
            data, splits = DataConfig.model_validate(own["data"]), SplitsConfig.model_validate(own["splits"])
        except (KeyError, TypeError, ValidationError):
            raise BundleError(
                f"{self.bundle.path} does not say where its images are (it was calibrated from objects in memory, or "
                "by an earlier askance): name a config of its images, --config CONFIG"
            ) from None
        found = load_splits(data, splits, preprocessing)
        digests = provenance["data"]["sha256"]
        if others := [name for name in ("fit", "evaluate") if found[name].digest() != digests.get(name)]:
            raise DataError(
                f"{data.source}: the split {others[0]} is not the one that {self.bundle.path} was made of: put those "
                "images back, or name a config of others, --config CONFIG"
            )
        return found

    @property
    def name(self) -> str:
        """The classifier's."""
        return self._entry.name

    @property
    def fitted(self) -> Images:
        """Of those that detectors are fitted on, the first."""
        return self.splits["fit"][:FITTED]

    @property
    def seen(self) -> Images:
        """Of those that nothing was fitted on, the first."""
        return self.splits["evaluate"][:SEEN]

    @property
    def budgets(self) -> tuple[float, ...]:
        """Of PGD, in pixel values."""
        return GREY if self.seen.x.shape[1] == 1 else COLOURED

    def detector(self, kind: type[KindT]) -> KindT | None:
        """The fitted detector of a kind, if the bundle has it."""
        found = self._detectors.get(kind.kind)
        return found if isinstance(found, kind) else None

    def stream(
        self, layers: Sequence[str], images: Images, pixels: Tensor | None = None, classifier: nn.Module | None = None
    ) -> ImageStream:
        """Captures of some layers, of images or of pixels in their place; of another classifier, if one is given."""
        tap = self.tap(layers) if classifier is None else Tap(classifier, layers, self.normalize)
        return ImageStream(tap, images, BATCH, pixels)

    def tap(self, layers: Sequence[str]) -> Tap:
        """Of some layers; one for all who ask for the same."""
        wanted = tuple(layers)
        if wanted not in self._taps:
            self._taps[wanted] = Tap(self.classifier, wanted, self.normalize)
        return self._taps[wanted]

    @cached_property
    def layers(self) -> list[Layer]:
        """Those that can be tapped, in order of depth."""
        pixels = self.seen[:8].pixels()
        return [one for one in layers_of(self.classifier, self._entry.preprocessing, pixels) if not one.fault]

    @cached_property
    def predicted(self) -> Tensor:
        """What the classifier takes the images seen for, [N]."""
        return self.predictions(self.seen)

    def predictions(self, images: Images, pixels: Tensor | None = None, classifier: nn.Module | None = None) -> Tensor:
        """What the classifier, or another one, takes images for, or pixels in their place, [N]."""
        return torch.cat([capture.predicted for capture in self.stream((), images, pixels, classifier)])

    @cached_property
    def all_right(self) -> Images:
        """Of the images seen, those that the classifier takes for what they are."""
        return self.seen[self.predicted == self.seen.y]

    @property
    def right(self) -> Images:
        """The first of them, as many as are attacked in most figures."""
        return self.all_right[:ATTACKED]

    @property
    def tapped(self) -> tuple[str, ...]:
        """The layers that the bundle's detectors read."""
        return self._entry.layers

    def fooled(self, budget: float) -> tuple[Images, Tensor]:
        """Of `right`, those that PGD fools the classifier with, and what it makes of them, as pixels."""
        pixels = self.pgd(budget)
        wrong = self.predictions(self.right, pixels) != self.right.y
        return self.right[wrong], pixels[wrong]

    @cached_property
    def _target(self) -> Target:
        entry = self._entry
        return Target(
            entry.factory,
            entry.arguments,
            self.bundle.tensors(entry),
            entry.preprocessing,
            None if entry.factory else self.classifier,
            entry.output,
        )

    def pgd(self, epsilon: float, aims: Tensor | None = None, images: Images | None = None) -> Tensor:
        """What PGD makes of `right`, or of others, as pixels; towards classes, if there are aims."""
        images = self.right if images is None else images
        options: dict[str, Any] = {"epsilon": epsilon, "steps": STEPS, "step_size": epsilon / 10}
        attack: Attack = PGD(name="pgd", kind="pgd", target_rank=None if aims is None else 1, **options)
        labels = images.y if aims is None else aims
        say(f"PGD at {epsilon:.3g}, {len(labels)} images")
        return run(self._target, [AttackJob(attack, images.pixels(), labels)], attack_cache())[0]

    def checkpoints(self, *, permuted: bool = False) -> Iterator[Checkpoint]:
        """The classifier at each epoch that was kept, the first first; or the one that learned permuted labels.

        Raises:
            ConfigError: the folder holds none.
        """
        folder, option = (self._permuted, "--permuted") if permuted else (self._checkpoints, "--checkpoints")
        if folder is None:
            return
        files = sorted(folder.glob("epoch-*.safetensors"))
        if not files:
            raise ConfigError(f"{option}: {folder} holds none: askance train --checkpoints keeps them")
        for file in files:
            built = self._build(self._entry.factory, self._entry.arguments, load_weights(file))
            yield Checkpoint(int(file.stem.removeprefix("epoch-")), select_output(built, self._entry.output))
