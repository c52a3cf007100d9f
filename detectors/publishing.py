"""Publishing: a bundle written to disk by one atomic rename, never changed afterwards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors
from torch import Tensor

from askance.answers import FUSED
from askance.detectors.bundle import (
    EVALUATION,
    MANIFEST,
    REPORT,
    BuildClassifier,
    Bundle,
    require_only_what_bundles_hold,
    sha256,
)
from askance.detectors.detector import Detector
from askance.detectors.manifest import (
    ClassifierEntry,
    DetectorEntry,
    FileEntry,
    Manifest,
    PackageEntry,
    SentinelsEntry,
    StoredFile,
)
from askance.detectors.registry import DETECTORS
from askance.detectors.screen import SINGLE_PASS, Calibration
from askance.detectors.sentinels import choose
from askance.detectors.tables import entry_of, tensors_of
from askance.detectors.tensors import contiguous, described
from askance.errors import BundleError
from askance.writing import PUBLIC, SECRET, writing

CLASSIFIER, CALIBRATION, SENTINELS = (f"{part}.safetensors" for part in ("classifier", "calibration", "sentinels"))


def publish(
    path: Path,
    *,
    classifier: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    detectors: Mapping[str, Detector],
    calibration: Calibration,
    build: BuildClassifier,
    clean: Tensor,
    attacked: Tensor,
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
        build: makes the classifier, which answers the sentinels as the bundle has it.
        clean: images from which sentinels are chosen, uint8 [N, C, H, W].
        attacked: the same, float32 [M, C, H, W] in [0, 1]; M may be 0.
        evaluation: the whole of evaluation.json.
        summary: the part of it that the manifest carries.
        provenance: data digests, seeds, package versions, host; not part of the id.
        extra_files: {relative path: content}, the report.

    Raises:
        BundleError: `path` exists, or what was published could not be opened again.
        CalibrationError: the tables cannot support the levels.
    """
    refuse_existing(path)
    files: dict[str, bytes] = {}
    of_classifier = _kept(files, CLASSIFIER, weights)
    entries = []
    for kind, detector in detectors.items():
        detector.require_fitted()
        package = DETECTORS.package(kind)
        entries.append(
            DetectorEntry(
                kind=kind,
                options=detector.options.model_dump(mode="json"),
                package=None if package is None else PackageEntry(name=package.name, version=package.version),
                **_kept(files, f"{kind}.safetensors", detector.state_dict()).model_dump(),
            )
        )
    of_calibration = _kept(files, CALIBRATION, tensors_of(calibration))
    files[EVALUATION] = json.dumps(evaluation, indent=2, allow_nan=False).encode()
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        classifier=ClassifierEntry(**classifier, **of_classifier.model_dump()),
        detectors=tuple(entries),
        calibration=entry_of(calibration, of_calibration),
        sentinels=SentinelsEntry(file=SENTINELS, sha256="", tensors={}, expected=()),
        evaluation=dict(summary),
        files={},
        provenance=dict(provenance),
    )
    manifest = _with_sentinels(Bundle(path, manifest, files), files, build, clean, attacked)
    files |= extra_files or {}
    stored = {name: StoredFile(sha256=sha256(content), size=len(content)) for name, content in sorted(files.items())}
    manifest = manifest.model_copy(update={"files": stored}).sealed()
    require_only_what_bundles_hold(path, manifest)
    files[MANIFEST] = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False).encode()
    with writing(path):
        _write(path, files)
    return manifest


def _with_sentinels(
    bundle: Bundle, files: dict[str, bytes], build: BuildClassifier, clean: Tensor, attacked: Tensor
) -> Manifest:
    """The manifest with sentinels, answered by the Screen that the bundle gives; their images join its files."""
    manifest = bundle.manifest
    modes = {FUSED: False} | ({SINGLE_PASS: True} if manifest.calibration.single_pass else {})
    screens = {fused: bundle.screen(build, single_pass=single) for fused, single in modes.items()}
    tensors, expected = choose(screens, clean, attacked)
    entry = SentinelsEntry(**_kept(files, SENTINELS, tensors).model_dump(), expected=expected)
    chosen = Bundle(bundle.path, manifest.model_copy(update={"sentinels": entry}), files)
    for fused, screen in screens.items():
        chosen.sentinels(single_pass=modes[fused]).prove(screen)
        screen.close()
    return chosen.manifest


def _kept(files: dict[str, bytes], name: str, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Tensors as one more of the files, and what the manifest says of them."""
    files[name] = save_safetensors(contiguous(tensors))
    return FileEntry(file=name, sha256=sha256(files[name]), tensors=described(tensors))


def refuse_existing(path: Path) -> None:
    """Raise BundleError when `path` exists, or would be inside another bundle: a published bundle is never changed."""
    if path.exists():
        raise BundleError(f"{path} exists and a bundle is never changed: choose another path, or remove it first")
    for folder in path.resolve().parents:
        if (folder / MANIFEST).exists():
            raise BundleError(f"{path} is inside the bundle {folder}, which is never changed: choose another path")


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # for people, and without secrets, are the figures alone: a detector's seed is in the manifest
            mode = PUBLIC if name == EVALUATION or name.startswith(REPORT) else SECRET
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        staging.chmod(0o755)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
