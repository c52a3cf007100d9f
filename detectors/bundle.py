"""The bundle on disk: published by one atomic rename, never changed afterwards, verified when opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from askance.answers import FUSED
from askance.detectors.conformal import check_level, threshold
from askance.detectors.detector import Detector
from askance.detectors.fusion import Fusion
from askance.detectors.manifest import (
    SCHEMA_VERSION,
    CalibrationEntry,
    ClassifierEntry,
    DetectorEntry,
    FileEntry,
    Manifest,
    PackageEntry,
)
from askance.detectors.output import select_output
from askance.detectors.registry import DETECTORS, unfitted
from askance.detectors.screen import SINGLE_PASS, Calibration, Fused, Screen
from askance.errors import AskanceError, BundleError, listed
from askance.evaluation import Evaluation
from askance.notebook import table as html_table
from askance.writing import writing

MANIFEST = "manifest.json"
BuildClassifier = Callable[[str | None, Mapping[str, Any], Mapping[str, Tensor]], nn.Module]
"""(factory, arguments, weights) -> the classifier in eval mode; the factory is None where there is none."""


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _calibration_tensors(calibration: Calibration) -> dict[str, Tensor]:
    tensors = {f"scores/{name}": values for name, values in calibration.tables.items()}
    tensors["components"] = calibration.fused.fusion.tables
    for name, fused in _fused(calibration).items():
        tensors |= {f"scores/{name}": fused.table}
        tensors |= {f"{name}/weights": fused.fusion.weights, f"{name}/biases": fused.fusion.biases}
    return contiguous(tensors)


def _fused(calibration: Calibration) -> dict[str, Fused]:
    """The fused scores by name."""
    single = {} if calibration.single_pass is None else {SINGLE_PASS: calibration.single_pass}
    return {FUSED: calibration.fused} | single


def publish(
    path: Path,
    *,
    classifier: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    detectors: Mapping[str, Detector],
    calibration: Calibration,
    evaluation: Mapping[str, Any],
    summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Write a bundle and publish it at `path` by one rename; on any failure nothing is left behind.

    Args:
        path: must not exist.
        classifier: ClassifierEntry's fields but `file` and `sha256`.
        weights: the classifier's state dict.
        detectors: fitted, by kind.
        calibration: their tables.
        evaluation: the whole of evaluation.json.
        summary: the part of it that the manifest carries.
        provenance: data digests, seeds, package versions, host.
        extra_files: {relative path: content}, such as the report.

    Raises:
        BundleError: `path` exists.
        CalibrationError: the tables cannot support the levels.
        FileError: it cannot be written.
    """
    refuse_existing(path)
    fused = {name: one.table for name, one in _fused(calibration).items()}
    for name, alpha in calibration.levels.items():
        for scores in (*calibration.tables.values(), *fused.values()):
            check_level(alpha, scores.shape[-1], name)

    files: dict[str, bytes] = {"classifier.safetensors": save_safetensors(contiguous(weights))}
    entries = []
    for kind, detector in detectors.items():
        detector.require_fitted()
        package = DETECTORS.package(kind)
        files[f"{kind}.safetensors"] = save_safetensors(contiguous(detector.state_dict()))
        entries.append(
            DetectorEntry(
                kind=kind,
                options=detector.options.model_dump(mode="json"),
                package=None if package is None else PackageEntry(name=package.name, version=package.version),
                file=f"{kind}.safetensors",
                sha256=sha256(files[f"{kind}.safetensors"]),
            )
        )
    files["calibration.safetensors"] = save_safetensors(_calibration_tensors(calibration))
    files["evaluation.json"] = json.dumps(evaluation, indent=2, allow_nan=False).encode()
    files |= extra_files or {}
    tables = {**calibration.tables, **fused}
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        classifier=ClassifierEntry(
            **classifier, file="classifier.safetensors", sha256=sha256(files["classifier.safetensors"])
        ),
        detectors=tuple(entries),
        calibration=CalibrationEntry(
            samples=min(t.shape[-1] for t in calibration.tables.values()),
            fusion_samples=calibration.fused.table.shape[-1],
            levels=calibration.levels,
            thresholds={
                name: {level: threshold(t, alpha) for level, alpha in calibration.levels.items()}
                for name, t in tables.items()
            },
            components=calibration.fused.fusion.names,
            two_sided=tuple(sorted(calibration.fused.fusion.two_sided)),
            single_pass=() if calibration.single_pass is None else calibration.single_pass.fusion.names,
            file="calibration.safetensors",
            sha256=sha256(files["calibration.safetensors"]),
        ),
        evaluation=dict(summary),
        files={name: sha256(content) for name, content in sorted(files.items())},
        provenance=dict(provenance),
    )
    manifest = manifest.model_copy(update={"id": manifest.digest()})
    files[MANIFEST] = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False).encode()
    with writing(path):
        _write(path, files)
    return manifest


def refuse_existing(path: Path) -> None:
    """Raise BundleError when `path` exists: a published bundle is never changed."""
    if path.exists():
        raise BundleError(f"{path} exists and a bundle is never changed: choose another path, or remove it first")


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        staging.chmod(0o755)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its manifest and the content of its files, read once (what was hashed is what is used)."""

    path: Path
    manifest: Manifest
    _files: Mapping[str, bytes]

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read and verify the bundle at `path`.

        Raises:
            BundleError: it is not there, incomplete, altered, or of another schema; the message says which.
        """
        manifest = _read_manifest(path)
        files = {}
        for name, expected in manifest.files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise BundleError(f"{path}: the manifest names a file outside the bundle, {name!r}")
            try:
                files[name] = (path / name).read_bytes()
            except OSError as error:
                raise BundleError(
                    f"{path}: {name} cannot be read ({error.strerror}): the bundle is incomplete, copy it again"
                ) from None
            if sha256(files[name]) != expected:
                raise BundleError(
                    f"{path}: {name} has been altered or truncated (its SHA-256 is not the manifest's): "
                    "copy the bundle or calibrate it again"
                )
        entries: list[FileEntry] = [manifest.classifier, manifest.calibration, *manifest.detectors]
        for entry in entries:
            if manifest.files.get(entry.file) != entry.sha256:
                raise BundleError(f"{path}: {entry.file} does not belong to this manifest (its SHA-256 differs)")
        return cls(path, manifest, files)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one safetensors file.

        Raises:
            BundleError: it is not one.
        """
        try:
            return load_safetensors(self._files[name])
        except (KeyError, SafetensorError) as error:
            raise BundleError(f"{self.path}: {name} is not a safetensors file ({error})") from None

    def _repr_html_(self) -> str:
        entry, calibration = self.manifest.classifier, self.manifest.calibration
        lines = [
            ("bundle", self.manifest.id[:12]),
            ("created", self.manifest.created),
            ("classifier", f"{entry.name} ({entry.factory or 'no factory'})"),
            ("input", " x ".join(map(str, entry.preprocessing.shape))),
            ("classes", listed(entry.class_names)),
            ("calibrated on", f"{calibration.samples} clean images, fused score on {calibration.fusion_samples}"),
        ]
        levels = dict(calibration.levels.items())
        rows = [(name, *(f"{above[level]:.4g}" for level in levels)) for name, above in calibration.thresholds.items()]
        head = ("flags above", *(f"{level} ({target:.1%})" for level, target in levels.items()))
        return f"<div>{html_table((), lines)}{html_table(head, rows)}</div>"

    def size(self, name: str) -> int:
        """Bytes of one file."""
        return len(self._files[name])

    def evaluation(self) -> Evaluation:
        """The content of evaluation.json.

        Raises:
            BundleError: it is not an evaluation.
        """
        try:
            return Evaluation.from_json(json.loads(self._files["evaluation.json"]))
        except ValidationError as error:
            raise BundleError(f"{self.path}: evaluation.json is not valid: {_first(error)}") from None

    def detectors(self) -> dict[str, Detector]:
        """The fitted detectors, by kind.

        Raises:
            BundleError: a detector's package is not installed, or an entry's options or state are not its detector's.
        """
        detectors = {}
        for entry in self.manifest.detectors:
            try:
                _require_package(entry)
                detector = unfitted(entry.kind, entry.options).restore(self.tensors(entry.file))
            except ValidationError as error:
                raise BundleError(f"{self.path}: the options of {entry.kind} are not valid: {_first(error)}") from None
            except AskanceError as error:
                raise BundleError(f"{self.path}: {error}") from None
            if not detector.is_fitted:
                raise BundleError(f"{self.path}: {entry.kind} is not fitted: calibrate again")
            detectors[entry.kind] = detector.eval()
        return detectors

    def calibration(self) -> Calibration:
        """The conformal tables.

        Raises:
            BundleError: a table is missing.
        """
        tensors, entry = self.tensors(self.manifest.calibration.file), self.manifest.calibration

        def fused(name: str, components: tuple[str, ...]) -> Fused:
            rows = [entry.components.index(component) for component in components]
            either = set(entry.two_sided) & set(components)
            trained = tensors[f"{name}/weights"], tensors[f"{name}/biases"]
            return Fused(Fusion(components, either, tensors["components"][rows], *trained), tensors[f"scores/{name}"])

        try:
            return Calibration(
                levels=entry.levels,
                tables={detector.kind: tensors[f"scores/{detector.kind}"] for detector in self.manifest.detectors},
                fused=fused(FUSED, entry.components),
                single_pass=fused(SINGLE_PASS, entry.single_pass) if entry.single_pass else None,
            )
        except KeyError as error:
            raise BundleError(f"{self.path}: the calibration has no table {error}") from None

    def classifier(self, build: BuildClassifier) -> nn.Module:
        """The classifier, built by `build` from the bundle's own weights."""
        entry = self.manifest.classifier
        return select_output(build(entry.factory, entry.arguments, self.tensors(entry.file)), entry.output)

    def screen(self, build: BuildClassifier, *, single_pass: bool = False) -> Screen:
        """The Screen this bundle describes.

        Args:
            build: makes the classifier.
            single_pass: leave out the detectors that need views of the input.

        Raises:
            BundleError: a part does not fit; the message names the bundle.
        """
        try:
            detectors, whole = self.detectors(), self.calibration()
            calibration = whole.in_a_single_pass() if single_pass else whole
            return Screen(
                self.classifier(build),
                self.manifest.classifier.preprocessing,
                self.manifest.classifier.class_names,
                {name: detector for name, detector in detectors.items() if name in calibration.tables},
                calibration,
                self.manifest.id,
            )
        except BundleError:
            raise
        except AskanceError as error:
            raise BundleError(f"{self.path}: {error}") from None


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads((path / MANIFEST).read_bytes())
    except OSError:
        raise BundleError(f"{path} is not a bundle: it has no readable {MANIFEST}") from None
    except ValueError:
        raise BundleError(f"{path}: {MANIFEST} is not JSON: the bundle is damaged") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this askance reads version {SCHEMA_VERSION}: "
            "make it anew with `askance calibrate CONFIG --out BUNDLE`"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {MANIFEST} is not valid: {_first(error)}") from None
    if manifest.digest() != manifest.id:
        raise BundleError(f"{path}: {MANIFEST} has been altered (its content does not hash to its id)")
    return manifest


def _require_package(entry: DetectorEntry) -> None:
    """Raise BundleError unless the detector comes from the package that the bundle was made with, of any version."""
    wanted, found = entry.package, DETECTORS.package(entry.kind)
    if wanted is not None and (found is None or found.name != wanted.name):
        raise BundleError(
            f"the detector {entry.kind} comes from the package {wanted.name} {wanted.version}, which is not installed: "
            f"pip install {wanted.name}=={wanted.version}"
        )


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}"
