"""LoadedBundle: a bundle ready to answer: its screen, and what the answers and Describe say of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from askance.detectors.bundle import BuildClassifier, Bundle
from askance.detectors.screen import Screen
from askance.errors import AskanceError, BundleError
from askance.service.observability.metrics import BundleDescription
from askance.service.runtime.batcher import Batcher


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that is loaded.

    Attributes:
        bundle_id: SHA-256 over the bundle's content.
        created: when it was calibrated.
        classifier: the classifier's name.
        screen: the classifier, its detectors and their calibration.
    """

    bundle_id: str
    created: datetime
    classifier: str
    screen: Screen

    @classmethod
    def open(cls, path: Path, build: BuildClassifier, *, single_pass: bool = False) -> LoadedBundle:
        """Open and verify the bundle at `path`.

        Args:
            path: the bundle's directory.
            build: makes the classifier, such as `classifiers.trusting`.
            single_pass: leave out the detectors that need views of each image.

        Raises:
            BundleError: the bundle is missing, altered, incomplete, or does not fit its own description, or `build`
                refuses its factory.
        """
        bundle = Bundle.open(path)
        manifest = bundle.manifest
        screen = bundle.screen(build, single_pass=single_pass)
        return cls(manifest.id, datetime.fromisoformat(manifest.created), manifest.classifier.name, screen)

    @property
    def version(self) -> str:
        """The model's version, as clients name it: the first digits of the bundle's id, the same on every replica."""
        return self.bundle_id[:12]

    @property
    def calibration_samples(self) -> int:
        """Clean images behind each detector's p-values (the fewest)."""
        return min(table.shape[-1] for table in self.screen.calibration.tables.values())

    @property
    def fusion_samples(self) -> int:
        """Clean images behind the fused p-value."""
        return self.screen.calibration.fused.table.shape[-1]

    def description(self) -> BundleDescription:
        """What the metrics say of it."""
        screen = self.screen
        return BundleDescription(
            self.bundle_id,
            self.classifier,
            self.created.timestamp(),
            screen.class_names,
            tuple(screen.detectors),
            dict(screen.calibration.levels.items()),
        )

    def warm_up(self) -> None:
        """Screen one black image: what cannot work fails now, and the first client does not wait.

        Raises:
            BundleError: the classifier or a detector fails on it.
        """
        try:
            self.screen(torch.zeros(1, *self.screen.preprocessing.shape))
        except AskanceError as error:
            raise BundleError(f"bundle {self.bundle_id[:12]} cannot screen an image: {error}") from None
        except Exception as error:
            raise BundleError(
                f"bundle {self.bundle_id[:12]} cannot screen an image: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class ModelVersion:
    """A bundle that answers.

    Attributes:
        bundle: the bundle.
        batcher: its queue.
    """

    bundle: LoadedBundle
    batcher: Batcher

    @property
    def version(self) -> str:
        """As clients name it."""
        return self.bundle.version
