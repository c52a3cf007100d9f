"""The manifest of a bundle: what is in it, and the hashes that tie it together."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from askance.answers import Verdict
from askance.judgement import Levels
from askance.screening.class_names import ClassNames, Label
from askance.screening.output import Output
from askance.screening.preprocessing import Preprocessing

SCHEMA_VERSION = 9
NO_CONTENT = frozenset({"id", "checksum", "created", "provenance"})
"""What the id leaves out: when, where and from what files a bundle was made. The same content has the same id."""


def _a_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected a time with its zone, such as 2026-01-02T03:04:05+00:00")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """A file of tensors: its SHA-256, and what each tensor is, in words (`screening.arrays.described`)."""

    file: str
    sha256: str
    tensors: dict[str, str]


class StoredFile(_Part):
    """What a file's content is: its SHA-256, and its size in bytes."""

    sha256: str
    size: int = Field(ge=0)


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

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$")


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


class Expected(_Part):
    """What one sentinel image is answered: the class, the verdicts by fused score, and every score."""

    label: str
    verdicts: dict[str, Verdict]
    scores: dict[str, float]


class SentinelsEntry(FileEntry):
    """The images that show whether the bundle still works, in `file`, and their answers: clean ones, then attacked."""

    expected: tuple[Expected, ...]


class GraphModel(_Part):
    """An ONNX model in `file`, whose large tensors are the bundle's: {initializer: "file/tensor"}."""

    file: str
    tensors: dict[str, str]


class GraphsEntry(FileEntry):
    """What computes the bundle without torch: by the fused score what its detectors read, and the classifier alone.

    `file` holds the tensors that no other file has.
    """

    models: dict[str, GraphModel]


class Figures(BaseModel):
    """The figures of the evaluation that stand in the manifest, the AUROC of each scorer on each attack among them."""

    model_config = ConfigDict(frozen=True, extra="allow")

    auroc: dict[str, dict[str, float]] = {}


def _are_figures(content: dict[str, Any]) -> dict[str, Any]:
    Figures.model_validate(content)
    return content


class Manifest(_Part):
    """Everything a bundle says of itself.

    `id` is the SHA-256 over its content, hashes of the files included, and `checksum` that over all of it, so that not
    even a date is altered by accident. Who wants to know who made a bundle, asks for its signature.
    """

    schema_version: int = SCHEMA_VERSION
    id: str = ""
    checksum: str = ""
    created: Annotated[str, AfterValidator(_a_time)]
    classifier: ClassifierEntry
    detectors: tuple[DetectorEntry, ...] = Field(min_length=1)
    calibration: CalibrationEntry
    sentinels: SentinelsEntry
    graphs: GraphsEntry | None = None
    evaluation: Annotated[dict[str, Any], AfterValidator(_are_figures)]
    files: dict[str, StoredFile]
    provenance: dict[str, Any]

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """What of it has a file of tensors."""
        graphs = () if self.graphs is None else (self.graphs,)
        return (self.classifier, self.calibration, self.sentinels, *self.detectors, *graphs)

    @model_serializer(mode="wrap")
    def _without_graphs_where_there_are_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Bundles without graphs are as they were before there were any, their ids included."""
        content: dict[str, Any] = serialize(self)
        return content if self.graphs is not None else {k: v for k, v in content.items() if k != "graphs"}

    def sealed(self) -> Manifest:
        """The same with its id and its checksum."""
        named = self.model_copy(update={"id": self._digest(NO_CONTENT)})
        return named.model_copy(update={"checksum": named._digest({"checksum"})})

    def _digest(self, left_out: set[str] | frozenset[str]) -> str:
        """SHA-256 over the JSON of the rest; order counts, because layers go by it."""
        content = self.model_dump(mode="json", exclude=set(left_out))
        canonical = json.dumps(content, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
