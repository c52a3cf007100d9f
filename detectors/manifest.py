"""The manifest of a bundle: what is in it, and the hashes that tie it together."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from askance.detectors.class_names import ClassNames, Label
from askance.detectors.output import Output
from askance.detectors.preprocessing import Preprocessing
from askance.detectors.screen import Levels

SCHEMA_VERSION = 4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """A file of the bundle and its SHA-256."""

    file: str
    sha256: str


class ClassifierEntry(FileEntry):
    """How to build the classifier: `factory` called with `arguments`, then the weights file loaded strictly.

    Without a factory it was a live module: whoever opens the bundle brings it along. `output` is the part of its answer
    that holds the logits, None where the answer is the logits.
    """

    name: Label
    factory: str | None
    arguments: dict[str, Any] = {}
    layers: tuple[str, ...]
    preprocessing: Preprocessing
    class_names: ClassNames = Field(min_length=2)
    output: Output | None = None

    @model_serializer(mode="wrap")
    def _without_an_output_of_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Bundles without an output are as they were before there was such a field, their ids included."""
        content: dict[str, Any] = serialize(self)
        return content if self.output is not None else {k: v for k, v in content.items() if k != "output"}


class PackageEntry(_Part):
    """An installed package, by the name and version that `pip` has."""

    name: str
    version: str


class DetectorEntry(FileEntry):
    """One fitted detector: its kind, options and tensor file; and the package it comes from, None for askance's own."""

    kind: str
    options: dict[str, Any]
    package: PackageEntry | None = None


class CalibrationEntry(FileEntry):
    """The conformal tables: how many clean scores, the targets, and the score above which each level flags.

    `single_pass` are the components that need no views of the input; empty where none does.
    """

    samples: int
    fusion_samples: int
    levels: Levels
    thresholds: dict[str, dict[str, float]]
    components: tuple[str, ...]
    two_sided: tuple[str, ...]
    single_pass: tuple[str, ...]


class Manifest(_Part):
    """Everything a bundle says of itself; `id` is the SHA-256 over all of it, hashes of the files included."""

    schema_version: int = SCHEMA_VERSION
    id: str = ""
    created: str
    classifier: ClassifierEntry
    detectors: tuple[DetectorEntry, ...]
    calibration: CalibrationEntry
    evaluation: dict[str, Any]
    files: dict[str, str]
    provenance: dict[str, Any]

    def digest(self) -> str:
        """SHA-256 over the JSON of everything but `id`; order counts, because layers go by it."""
        content = self.model_dump(mode="json", exclude={"id"})
        canonical = json.dumps(content, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
