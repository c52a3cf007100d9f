"""Publishing: a bundle written to disk by one atomic rename, never changed afterwards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors
from torch import Tensor

from askance.answers import FUSED
from askance.detectors.bundle import BuildClassifier, Bundle
from askance.detectors.choosing import choose
from askance.detectors.detector import Detector
from askance.detectors.reader import TorchReader
from askance.detectors.registry import DETECTORS
from askance.detectors.tensors import contiguous
from askance.errors import BundleError, ExportError
from askance.judgement import Calibration
from askance.judgement.calibration import SINGLE_PASS
from askance.screening.arrays import described, stored
from askance.screening.bundle import (
    ALONE,
    EVALUATION,
    MANIFEST,
    NO_GRAPH,
    require_only_what_bundles_hold,
    sha256,
)
from askance.screening.graph import Model
from askance.screening.images import Pixels
from askance.screening.manifest import (
    ClassifierEntry,
    DetectorEntry,
    FileEntry,
    GraphModel,
    GraphsEntry,
    Manifest,
    PackageEntry,
    SentinelsEntry,
    StoredFile,
)
from askance.screening.screen import Screen
from askance.screening.tables import arrays_of, entry_of
from askance.writing import PUBLIC, SECRET, writing

Export = Callable[[Mapping[str, Screen[TorchReader]], Pixels], Mapping[str, Model]]
"""(Screens by the fused score that they go by, images to try them on) -> their graphs, as `MODELS` names them."""
MODELS = {FUSED: "graph.onnx", SINGLE_PASS: "graph_single_pass.onnx", ALONE: "classifier.onnx"}
CLASSIFIER, CALIBRATION, SENTINELS, GRAPHS = (
    f"{part}.safetensors" for part in ("classifier", "calibration", "sentinels", "graphs")
)


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
    export: Export | None = None,
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
        provenance: data digests, seeds, package versions, host; not part of the id. What cannot be exported adds why,
            under "no_graph".
        export: makes graphs, such as `exporting.graphs_of`; None makes none.
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
    of_calibration = _kept(
        files, CALIBRATION, {name: torch.from_numpy(values) for name, values in arrays_of(calibration).items()}
    )
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
    if export is not None:
        tried = torch.cat([clean.float() / 255, attacked.float()]).numpy()
        try:
            manifest = _with_graphs(Bundle(path, manifest, files), files, build, tried, export)
        except ExportError as error:
            manifest = manifest.model_copy(update={"provenance": manifest.provenance | {NO_GRAPH: str(error)}})
    return _published(path, manifest, files | dict(extra_files or {}))


def publish_with_graphs(bundle: Bundle, path: Path, *, build: BuildClassifier, export: Export) -> Manifest:
    """Publish a bundle once more, at `path`, with graphs.

    Args:
        bundle: the one without, or with others.
        path: must not exist.
        build: makes the classifier.
        export: as for `publish`.

    Raises:
        BundleError: `path` exists, or a part of the bundle does not fit.
        ExportError: there are no such graphs.
    """
    refuse_existing(path)
    old = bundle.manifest
    graphs = {GRAPHS, *MODELS.values()}
    files = {name: bundle.content(name) for name in old.files if name not in graphs}
    provenance = {name: said for name, said in old.provenance.items() if name != NO_GRAPH}
    bare = Bundle(bundle.path, old.model_copy(update={"graphs": None, "provenance": provenance}), files)
    return _published(path, _with_graphs(bare, files, build, bundle.sentinels().images, export), files)


def _published(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Write a manifest and the files that it is to tell of."""
    stored = {name: StoredFile(sha256=sha256(content), size=len(content)) for name, content in sorted(files.items())}
    manifest = manifest.model_copy(update={"files": stored}).sealed()
    require_only_what_bundles_hold(path, manifest)
    content = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False).encode()
    with writing(path):
        _write(path, {**files, MANIFEST: content})
    return manifest


def _screens(bundle: Bundle, build: BuildClassifier) -> dict[str, Screen[TorchReader]]:
    """The Screens that a bundle gives, by the fused score that they go by."""
    modes = {FUSED: False} | ({SINGLE_PASS: True} if bundle.manifest.calibration.single_pass else {})
    return {fused: bundle.screen(build, single_pass=single) for fused, single in modes.items()}


def _with_sentinels(
    bundle: Bundle, files: dict[str, bytes], build: BuildClassifier, clean: Tensor, attacked: Tensor
) -> Manifest:
    """The manifest with sentinels, answered by the Screen that the bundle gives; their images join its files."""
    screens = _screens(bundle, build)
    tensors, expected = choose(screens, clean, attacked)
    entry = SentinelsEntry(**_kept(files, SENTINELS, tensors).model_dump(), expected=expected)
    chosen = Bundle(bundle.path, bundle.manifest.model_copy(update={"sentinels": entry}), files)
    for fused, screen in screens.items():
        chosen.sentinels(single_pass=fused == SINGLE_PASS).prove(screen)
        screen.close()
    return chosen.manifest


def _with_graphs(
    bundle: Bundle, files: dict[str, bytes], build: BuildClassifier, images: Pixels, export: Export
) -> Manifest:
    """The manifest with graphs, tried on images; they join its files.

    Raises:
        ExportError: there is none that judges images as its Screen does.
    """
    screens = _screens(bundle, build)
    made = export(screens, images)
    for screen in screens.values():
        screen.close()
    held = {
        _content(tensor.plain()): f"{entry.file}/{name}"
        for entry in bundle.manifest.entries
        for name, tensor in bundle.arrays(entry).items()
        if tensor.is_plain
    }
    own: dict[str, Tensor] = {}
    models = {}
    for which, model in sorted(made.items()):
        places = {}
        for name, tensor in model.tensors.items():
            content = _content(tensor)
            if content not in held:
                own[content], held[content] = torch.from_numpy(tensor), f"{GRAPHS}/{content}"
            places[name] = held[content]
        files[MODELS[which]] = model.content
        models[which] = GraphModel(file=MODELS[which], tensors=places)
    entry = GraphsEntry(**_kept(files, GRAPHS, own).model_dump(), models=models)
    return bundle.manifest.model_copy(update={"graphs": entry})


def _content(array: NDArray[Any]) -> str:
    """A name for what an array is, its type and its shape included."""
    return sha256(f"{array.dtype} {list(array.shape)}".encode() + np.ascontiguousarray(array).tobytes())


def _kept(files: dict[str, bytes], name: str, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Tensors as one more of the files, and what the manifest says of them."""
    files[name] = save_safetensors(contiguous(tensors))
    return FileEntry(file=name, sha256=sha256(files[name]), tensors=described(stored(files[name])))


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
            mode = PUBLIC if name == EVALUATION else SECRET
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        staging.chmod(0o755)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
