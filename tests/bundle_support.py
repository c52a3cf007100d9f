"""A published bundle of the small classifier of digits, and how a bundle is altered so that its hashes fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from toy import LAYERS, NAMES, Trained

from askance.classifiers import build_classifier
from askance.detectors import Bundle, Screen
from askance.detectors.publishing import publish
from askance.errors import BundleError
from askance.screening.arrays import described, stored
from askance.screening.manifest import Manifest

REPORT = b"<html>report</html>"
EVALUATION = {"classifier": {"accuracy": 0.98, "images": 9}, "auroc": {"pgd": {"fused": 0.875}}}


def candidates(trained: Trained) -> dict[str, Tensor]:
    """What sentinels are chosen from."""
    images, labels = (part[:80] for part in trained.part("calibrate"))
    return {"clean": (255 * images).round().to(torch.uint8), "attacked": trained.attack(images, labels, 0.2, 5)}


def publish_trained(trained: Trained, path: Path, **changes: Any) -> Manifest:
    content: dict[str, Any] = {
        "classifier": {
            "name": "digits",
            "factory": "digits_cnn",
            "arguments": {},
            "layers": LAYERS,
            "preprocessing": trained.preprocessing,
            "class_names": NAMES,
        },
        "weights": trained.classifier.state_dict(),
        "detectors": trained.detectors,
        "calibration": trained.calibration,
        "build": build_classifier,
        **candidates(trained),
        "evaluation": EVALUATION,
        "summary": {"accuracy": 0.98},
        "provenance": {"seeds": {"fit": 0}},
        "extra_files": {"report/index.html": REPORT},
    }
    return publish(path, **(content | changes))


def screen_of(path: Path) -> Screen:
    return Bundle.open(path).screen(build_classifier)


def refused(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        screen_of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def seal(content: dict[str, Any]) -> None:
    """Make a manifest's hashes fit, as somebody would who knows how they are made."""
    for name, left_out in (("id", ["id", "checksum", "created", "provenance"]), ("checksum", ["checksum"])):
        rest = {key: value for key, value in content.items() if key not in left_out}
        content[name] = hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


def edit(path: Path, change: Callable[[dict[str, Any]], None], sealed: bool = True) -> None:
    """Change the manifest."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    if sealed:
        seal(content)
    (path / "manifest.json").write_text(json.dumps(content))


def replace_file(path: Path, name: str, content: bytes, tensors: dict[str, Tensor] | None = None) -> None:
    """Put other content in a file's place, and in the manifest what hashes, and words, then fit it."""
    (path / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": digest, "size": len(content)}
        for entry in (manifest["classifier"], manifest["calibration"], manifest["sentinels"], *manifest["detectors"]):
            if entry["file"] == name:
                entry["sha256"] = digest
                entry["tensors"] = entry["tensors"] if tensors is None else described(stored(save(tensors)))

    edit(path, change)


def replace_tensors(
    path: Path, name: str, change: Callable[[dict[str, Tensor]], None], described_anew: bool = True
) -> None:
    tensors = load_file(path / name)
    change(tensors)
    save_file(tensors, path / name)
    replace_file(path, name, (path / name).read_bytes(), tensors if described_anew else None)
