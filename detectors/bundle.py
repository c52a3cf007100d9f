"""The bundle in torch: its classifier and its detectors themselves, and the Screen that they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from askance.detectors.detector import Detector
from askance.detectors.output import select_output
from askance.detectors.reader import TorchReader
from askance.detectors.registry import restored
from askance.errors import AskanceError, BundleError, printable
from askance.screening.bundle import SealedBundle
from askance.screening.manifest import DetectorEntry, FileEntry
from askance.screening.screen import Screen

BuildClassifier = Callable[[str | None, Mapping[str, Any], Mapping[str, Tensor]], nn.Module]
"""(factory, arguments, weights) -> the classifier in eval mode; the factory is None where there is none."""


class Bundle(SealedBundle):
    """A verified bundle: its manifest and the content of its files, read once (what was hashed is what is used)."""

    @classmethod
    def of(cls, sealed: SealedBundle) -> Bundle:
        """The same, in torch."""
        return cls(sealed.path, sealed.manifest, sealed._files)

    def tensors(self, entry: FileEntry) -> dict[str, Tensor]:
        """The tensors of one of the manifest's entries.

        Raises:
            BundleError: its file is no safetensors file, or its tensors are others than the entry says.
        """
        self.arrays(entry)  # are what they are said to be
        tensors: dict[str, Tensor] = load_safetensors(self.content(entry.file))
        return tensors

    def detectors(self) -> dict[str, Detector]:
        """The fitted detectors, by kind.

        Raises:
            BundleError: a detector's package is not installed, or an entry's options or state are not its detector's.
        """
        return {entry.kind: self._detector(entry) for entry in self.manifest.detectors}

    def _detector(self, entry: DetectorEntry) -> Detector:
        self.arrays(entry)  # are what they are said to be
        detector = self._of_detector(entry, restored)
        if not detector.is_fitted:
            raise BundleError(f"{self.path}: {entry.kind} is not fitted: calibrate again")
        return detector

    def classifier(self, build: BuildClassifier) -> nn.Module:
        """The classifier, built by `build` from the bundle's own weights.

        Raises:
            BundleError: a weight is NaN or infinite.
        """
        entry = self.manifest.classifier
        weights = self.tensors(entry)
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise BundleError(f"{self.path}: the weights {printable(name)} hold NaN or infinity: calibrate again")
        return select_output(build(entry.factory, entry.arguments, weights), entry.output)

    def screen(self, build: BuildClassifier, *, single_pass: bool = False, threads: int = 0) -> Screen[TorchReader]:
        """The Screen this bundle describes, in torch.

        Args:
            build: makes the classifier.
            single_pass: leave out the detectors that need views of the input.
            threads: that compute, in all of this process; 0 leaves them as they are.

        Raises:
            BundleError: a part does not fit; the message names the bundle.
        """
        if threads:
            torch.set_num_threads(threads)
        entry = self.manifest.classifier
        try:
            detectors, whole = self.detectors(), self.calibration()
            calibration = whole.in_a_single_pass() if single_pass else whole
            asked = {name: detector for name, detector in detectors.items() if name in calibration.tables}
            reader = TorchReader(self.classifier(build), asked, entry.preprocessing)
            return Screen(reader, entry.preprocessing, entry.class_names, asked, calibration, self.manifest.id)
        except BundleError:
            raise
        except AskanceError as error:
            raise BundleError(f"{self.path}: {error}") from None
