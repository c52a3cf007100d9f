"""LoadedBundle: a bundle ready to answer: its screen, and what the answers and Describe say of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from askance.engines import Engine
from askance.errors import BundleError
from askance.opening import screen_of
from askance.screening.bundle import INSIDE, SealedBundle
from askance.screening.screen import Screen
from askance.screening.second_look import SecondLookScreen
from askance.screening.sentinels import Sentinels
from askance.service.observability.metrics import BundleDescription
from askance.service.runtime.batcher import Batcher

if TYPE_CHECKING:
    from askance.detectors.bundle import BuildClassifier


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that is loaded.

    Attributes:
        bundle_id: SHA-256 over the bundle's content.
        created: when it was calibrated.
        classifier: the classifier's name.
        screen: the classifier, its detectors and their calibration.
        sentinels: what the screen has to answer before it may answer clients.
        parts: of a screen that is made of others these, with the sentinels that each has to answer.
        activation_map: of its report, with the images on it, as JSON; None where it has none.
    """

    bundle_id: str
    created: datetime
    classifier: str
    screen: Screen
    sentinels: Sentinels
    parts: tuple[tuple[Screen, Sentinels], ...] = ()
    activation_map: bytes | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        build: BuildClassifier,
        *,
        engine: Engine = Engine.AUTO,
        threads: int = 0,
        single_pass: bool = False,
        second_looks: float = 0.0,
        require_signature: Path | None = None,
    ) -> LoadedBundle:
        """Open and verify the bundle at `path`.

        Args:
            path: the bundle's directory.
            build: makes the classifier, such as `classifiers.trusting`, where torch computes.
            engine: what computes it.
            threads: that compute; 0: as many as there are cores.
            single_pass: leave out the detectors that need views of each image.
            second_looks: in place of that, the share of images that may be read again with views; 0: none.
            require_signature: a keyring, one of whose keys must have signed the bundle.

        Raises:
            BundleError: the bundle is missing, altered, incomplete, not signed, or does not fit its own description, or
                `build` refuses its factory.
            ConfigError: the keyring cannot be used.
        """
        bundle = SealedBundle.open(path, require_signature=require_signature)

        def part(*, single_pass: bool) -> tuple[Screen, Sentinels]:
            screen = screen_of(bundle, engine, build, single_pass=single_pass, threads=threads)
            return screen, bundle.sentinels(single_pass=single_pass)

        manifest = bundle.manifest
        screen, sentinels = part(single_pass=single_pass or second_looks > 0)
        parts: tuple[tuple[Screen, Sentinels], ...] = ()
        if second_looks:
            first, whole = parts = (screen, sentinels), part(single_pass=False)
            try:
                screen = SecondLookScreen(first[0], whole[0], second_looks)
            except BundleError as error:
                raise BundleError(f"{path}: {error}") from None
            sentinels = Sentinels.none(screen.preprocessing.shape)  # its parts have theirs
        created = datetime.fromisoformat(manifest.created)
        seen = _activation_map(bundle)
        return cls(manifest.id, created, manifest.classifier.name, screen, sentinels, parts, seen)

    @property
    def version(self) -> str:
        """The model's version, as clients name it: the first digits of the bundle's id, the same on every replica."""
        return self.bundle_id[:12]

    @property
    def calibration_samples(self) -> int:
        """Clean images behind each detector's p-values (the fewest)."""
        return min(len(table) for table in self.screen.calibration.tables.values())

    @property
    def fusion_samples(self) -> int:
        """Clean images behind the fused p-value."""
        return len(self.screen.calibration.fused.table)

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
            screen.reader.engine,
            screen.stages,
            self.fusion_samples,
        )

    def warm_up(self) -> None:
        """Screen the sentinels: what does not work fails now, and the first client does not wait.

        Raises:
            BundleError: the classifier or a detector fails, or a sentinel is not answered as it was at calibration.
        """
        try:
            for screen, sentinels in (*self.parts, (self.screen, self.sentinels)):
                sentinels.prove(screen)
        except BundleError as error:
            raise BundleError(f"bundle {self.version} {error}") from error.__cause__


def _activation_map(bundle: SealedBundle) -> bytes | None:
    """The points, labels and background of a bundle's activation map: plain data, which needs no torch."""
    if INSIDE not in bundle.manifest.files:
        return None
    try:
        inside = orjson.loads(bundle.content(INSIDE))
        return orjson.dumps(inside["activation_map"] | {key: inside[key] for key in ("class_names", "labels")})
    except (orjson.JSONDecodeError, KeyError, TypeError):  # there is no such map; or of another askance
        return None


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
