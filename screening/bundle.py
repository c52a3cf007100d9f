"""The bundle on disk, opened: verified whole before anything in it is used (`detectors.publishing` writes it)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from askance.answers import FUSED
from askance.engines import Engine
from askance.errors import AskanceError, BundleError, did_you_mean, listed, one_line, printable
from askance.evaluation import Evaluation
from askance.judgement import Calibration
from askance.judgement.calibration import SINGLE_PASS
from askance.notebook import table as html_table
from askance.screening.arrays import Stored, described, stored
from askance.screening.files import read_file, real_folder
from askance.screening.graph import GraphReader, Model
from askance.screening.kinds import KINDS, explainer
from askance.screening.manifest import SCHEMA_VERSION, DetectorEntry, FileEntry, Manifest
from askance.screening.reading import Explainer
from askance.screening.screen import Screen
from askance.screening.sentinels import Sentinels
from askance.screening.signatures import Keyring, read_signatures
from askance.screening.tables import calibration_from

MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
REPORT = "report/"
INSIDE = f"{REPORT}inside.json"
"""What is seen inside, as `askance.inside.data.Inside` has it."""
MOST_MANIFEST_BYTES = 16 * 2**20
MOST_BYTES = 8 * 2**30  # of all files together, two billion parameters: whatever a manifest says, no more is read
ALONE = "classifier"
"""The graph of the classifier alone, beside those by the fused scores."""
NO_GRAPH = "no_graph"
"""Where a bundle's provenance says why it has none."""


T = TypeVar("T")


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class SealedBundle:
    """A verified bundle: its manifest and the content of its files, read once (what was hashed is what is used).

    This much of it needs no torch; `detectors.Bundle` has the classifier and the detectors themselves, too.
    """

    path: Path
    manifest: Manifest
    _files: Mapping[str, bytes]

    @classmethod
    def open(cls, path: Path, *, require_signature: Path | None = None) -> Self:
        """Read and verify the bundle at `path`.

        Args:
            path: its folder.
            require_signature: a keyring; nothing of the bundle is parsed unless one of its keys has signed.

        Raises:
            BundleError: it is not there, incomplete, altered, of another schema, or not signed; the message says which.
            ConfigError: the keyring cannot be used.
        """
        folder = real_folder(path)
        try:
            content = read_file(folder, MANIFEST, MOST_MANIFEST_BYTES)
        except FileNotFoundError:
            raise BundleError(f"{path} is not a bundle: it has no readable {MANIFEST}") from None
        if require_signature is not None:
            Keyring.read(require_signature).verify(path, content, read_signatures(folder))
        manifest = _parsed(path, content)
        require_only_what_bundles_hold(path, manifest)
        files = {MANIFEST: content}
        for name, expected in manifest.files.items():
            try:
                files[name] = read_file(folder, name, expected.size)
            except FileNotFoundError:
                raise BundleError(
                    f"{path}: {name} cannot be read (No such file or directory): the bundle is incomplete, "
                    "copy it again"
                ) from None
            if sha256(files[name]) != expected.sha256:
                raise BundleError(
                    f"{path}: {name} has been altered or truncated (its SHA-256 is not the manifest's): "
                    "copy the bundle or calibrate it again"
                )
        return cls(path, manifest, files)

    def arrays(self, entry: FileEntry) -> dict[str, Stored]:
        """The tensors of one of the manifest's entries, in numpy.

        Raises:
            BundleError: its file is no safetensors file, or its tensors are others than the entry says.
        """
        name = entry.file
        try:
            tensors = stored(self._files[name])
        except Exception as error:  # a header may say anything
            raise BundleError(f"{self.path}: {name} is not a safetensors file ({one_line(error)})") from None
        found = described(tensors)
        for tensor in sorted({*found, *entry.tensors}):
            if found.get(tensor) != entry.tensors.get(tensor):
                raise BundleError(
                    f"{self.path}: {name} has not the tensors that the manifest tells of ({printable(tensor)} is "
                    f"{found.get(tensor, 'absent')}, expected {printable(entry.tensors.get(tensor, 'absent'))}): "
                    "calibrate again"
                )
        return tensors

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

    def content(self, name: str) -> bytes:
        """A file's content, as it was read."""
        return self._files[name]

    @property
    def signed_content(self) -> bytes:
        """The manifest's bytes, as they were read: what a signature is over."""
        return self._files[MANIFEST]

    def evaluation(self) -> Evaluation:
        """The content of evaluation.json.

        Raises:
            BundleError: it is not an evaluation.
        """
        try:
            return Evaluation.from_json(_json(self._files[EVALUATION]))
        except ValidationError as error:
            raise BundleError(f"{self.path}: {EVALUATION} is not valid: {_first(error)}") from None
        except (ValueError, RecursionError):
            raise BundleError(f"{self.path}: {EVALUATION} is not JSON: calibrate again") from None

    def explainers(self) -> dict[str, Explainer]:
        """What explains the readings of each detector, by kind.

        Raises:
            BundleError: a detector's package is not installed, or an entry's options are not its detector's.
        """
        return {entry.kind: self._of_detector(entry, explainer) for entry in self.manifest.detectors}

    def _of_detector(self, entry: DetectorEntry, make: Callable[[str, Mapping[str, Any], bytes], T]) -> T:
        """What `make` makes of a detector's kind, options and state; all that goes wrong is a BundleError."""
        try:
            _require_known(entry)
            return make(entry.kind, entry.options, self._files[entry.file])
        except ValidationError as error:
            raise BundleError(f"{self.path}: the options of {entry.kind} are not valid: {_first(error)}") from None
        except AskanceError as error:
            raise BundleError(f"{self.path}: {error}") from None
        except Exception as error:  # whatever a detector makes of options and tensors that are not its own
            raise BundleError(f"{self.path}: {entry.kind} cannot be restored ({one_line(error)})") from error

    def calibration(self) -> Calibration:
        """The conformal tables.

        Raises:
            BundleError: they are not what was promised of them when the bundle was published.
        """
        entry, kinds = self.manifest.calibration, [detector.kind for detector in self.manifest.detectors]
        tensors = self.arrays(entry)
        try:
            arrays = {name: one.plain() for name, one in tensors.items()}
            return calibration_from(entry, kinds, len(self.manifest.classifier.class_names), arrays)
        except TypeError:  # bfloat16, say
            raise BundleError(f"{self.path}: its tables are of a type that no calibration makes") from None
        except AskanceError as error:
            raise BundleError(f"{self.path}: {error}") from None

    def sentinels(self, *, single_pass: bool = False) -> Sentinels:
        """The images that show whether the Screen works, with its answers.

        Args:
            single_pass: of the Screen.

        Raises:
            BundleError: they are not what the manifest says.
        """
        manifest, entry = self.manifest, self.manifest.sentinels
        fused = SINGLE_PASS if single_pass and manifest.calibration.single_pass else FUSED
        tensors, shape = self.arrays(entry), manifest.classifier.preprocessing.shape
        try:
            return Sentinels.read(tensors, entry.expected, shape, fused)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from None

    def goes_by_graph(self, engine: Engine) -> bool:
        """Whether an engine is to compute its graph rather than torch the classifier itself.

        Args:
            engine: AUTO takes the graph where there is one.

        Raises:
            BundleError: nothing else may compute, and there is none.
        """
        if engine is Engine.ONNXRUNTIME and self.manifest.graphs is None:
            raise BundleError(
                f"{self.path} has no graph, which the engine {engine} computes: askance export {self.path} --out NEW, "
                'or engine = "torch"'
            )
        return engine is not Engine.TORCH and self.manifest.graphs is not None

    def screen_by_graph(self, *, single_pass: bool = False, threads: int = 0) -> Screen[GraphReader]:
        """The Screen this bundle describes, computed by ONNX Runtime.

        Args:
            single_pass: leave out the detectors that need views of the input.
            threads: that compute; 0: as many as there are cores.

        Raises:
            BundleError: a part does not fit, or there is no graph; the message names the bundle.
        """
        self.goes_by_graph(Engine.ONNXRUNTIME)
        manifest, entry = self.manifest, self.manifest.classifier
        graph, alone = self._models(SINGLE_PASS if single_pass and manifest.calibration.single_pass else FUSED)
        whole = self.calibration()
        calibration = whole.in_a_single_pass() if single_pass else whole
        asked = {kind: one for kind, one in self.explainers().items() if kind in calibration.tables}
        try:
            reader = GraphReader(graph, alone, list(asked), threads)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from None
        return Screen(reader, entry.preprocessing, entry.class_names, asked, calibration, manifest.id)

    def _models(self, fused: str) -> tuple[Model, Model]:
        """The graph of a fused score's readings, and that of the classifier alone."""
        graphs = self.manifest.graphs
        try:
            assert graphs is not None
            wanted = [graphs.models[which] for which in (fused, ALONE)]
            places = {place for model in wanted for place in model.tensors.values()}
            needed = {place.partition("/")[0] for place in places}
            held = {one.file: self.arrays(one) for one in self.manifest.entries if one.file in needed}
            found = {place: held[place.partition("/")[0]][place.partition("/")[2]].plain() for place in places}
            graph, alone = (
                Model(self._files[model.file], {name: found[place] for name, place in model.tensors.items()})
                for model in wanted
            )
        except KeyError:
            raise BundleError(f"{self.path}: its graphs are incomplete: calibrate again") from None
        except TypeError as error:
            raise BundleError(f"{self.path}: {error}") from None
        return graph, alone


def model_files(manifest: Manifest) -> set[str]:
    """The files of ONNX models."""
    return set() if manifest.graphs is None else {model.file for model in manifest.graphs.models.values()}


def require_only_what_bundles_hold(path: Path, manifest: Manifest) -> None:
    """Raise BundleError unless a manifest names the files that bundles hold, of no more bytes than are ever read."""
    own = {EVALUATION, *(entry.file for entry in manifest.entries), *model_files(manifest)}
    for name in manifest.files:
        if any(part in ("", ".", "..") for part in name.split("/")) or not name.isprintable() or "\\" in name:
            raise BundleError(f"{path}: the manifest names a file outside the bundle, {name!r}")
    for entry in manifest.entries:
        stored = manifest.files.get(entry.file)
        if stored is None or stored.sha256 != entry.sha256:
            raise BundleError(f"{path}: {printable(entry.file)} does not belong to this manifest (its SHA-256 differs)")
    for name in manifest.files:
        if name not in own and not name.startswith(REPORT):
            raise BundleError(f"{path}: the manifest names a file that bundles do not hold, {name!r}")
    for name in sorted(model_files(manifest) - set(manifest.files)):
        raise BundleError(f"{path}: {printable(name)} is missing from this manifest's files: copy the bundle again")
    if EVALUATION not in manifest.files:
        raise BundleError(f"{path}: the manifest names no {EVALUATION}: the bundle is incomplete, copy it again")
    total = sum(stored.size for stored in manifest.files.values())
    if total > MOST_BYTES:
        raise BundleError(f"{path}: the manifest tells of {total} bytes in all, expected at most {MOST_BYTES}")


def _parsed(path: Path, text: bytes) -> Manifest:
    try:
        content = _json(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: {MANIFEST} is not JSON: the bundle is damaged") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r:.40}, this askance reads version {SCHEMA_VERSION}: "
            "make it anew with `askance calibrate CONFIG --out BUNDLE`"
        )
    try:
        manifest = Manifest.model_validate(content)
        sealed = manifest.sealed()
    except ValidationError as error:
        raise BundleError(f"{path}: {MANIFEST} is not valid: {_first(error)}") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: {MANIFEST} is not valid: it holds text or numbers that JSON has not") from None
    if sealed.id != manifest.id:
        raise BundleError(f"{path}: {MANIFEST} has been altered (its content does not hash to its id)")
    if sealed.checksum != manifest.checksum:
        raise BundleError(f"{path}: {MANIFEST} has been altered (all of it does not hash to its checksum)")
    return manifest


def _json(text: bytes) -> Any:
    """JSON without NaN and infinity, which it has not.

    Raises:
        ValueError, RecursionError: it is none.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _require_known(entry: DetectorEntry) -> None:
    """Raise BundleError unless there is such a detector, of the package that the bundle was made with, any version."""
    wanted, found = entry.package, KINDS.package(entry.kind)
    if wanted is not None and (found is None or found.name != wanted.name):
        raise BundleError(
            f"the detector {entry.kind} comes from the package {wanted.name} {wanted.version}, which is not installed: "
            f"pip install {wanted.name}=={wanted.version}"
        )
    if entry.kind not in KINDS:
        raise BundleError(f"unknown detector {entry.kind!r}: {did_you_mean(entry.kind, KINDS)}")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return printable(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}")
