"""What the tests of the Open Inference Protocol share, over gRPC and HTTP: images, and the Screen's word on them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from service_support import AT_ONCE_TOML, encoded, noise, publish_tiny, tiny_screen, untypical
from toy import Whole, whole

from askance.answers import Answer
from askance.service.launch import launched

IMAGES = np.stack([noise(1), noise(2), untypical(), noise(4)])
SERVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from askance.__main__ import main
ports = ["--port", "0", "--metrics-port", "0", "--rest-port", "0", "--config", {str(AT_ONCE_TOML)!r}]
sys.argv = ["askance", "serve", *sys.argv[1:], *ports, "--disclose", "--allow-factory", "service_support"]
main()
"""
"""A program that serves a bundle of the tests' own classifier on free ports."""


def write_images(path: Path) -> None:
    """IMAGES for a checking program in a process of its own, as pixels and as files."""
    files = [encoded(Image.fromarray(image[0])) for image in IMAGES]
    np.savez(
        path,
        images=IMAGES,
        files=np.frombuffer(b"".join(files), np.uint8),
        lengths=np.array([len(file) for file in files]),
    )


def answers() -> list[Answer]:
    return [one for one in tiny_screen()(torch.from_numpy(IMAGES).float() / 255, True) if isinstance(one, Answer)]


def expected() -> list[Whole]:
    results = [whole(one) for one in answers()]
    assert len(results) == len(IMAGES)
    assert len({one.verdict for one in results}) > 1  # else the comparison shows little
    return results


def assert_rows(found: dict[str, Any], rows: list[Whole | None]) -> None:
    """Every output equals the Screen's own word; None: the image failed."""
    for i, one in enumerate(rows):
        if one is None:
            assert found["label"][i] == [""]
            assert found["index"][i] == [-1]
            assert found["verdict"][i] == ["ERROR"]
            assert all(
                math.isnan(x) for name in ("probabilities", "p_value", "scores", "reasons") for x in found[name][i]
            )
            assert found["error"][i][0].startswith("image: expected finite values in [0, 1], got nan at [0, 0, 0]")
            continue
        assert found["label"][i] == [one.label]
        assert found["index"][i] == [one.index]
        assert found["verdict"][i] == [one.verdict.value]
        assert found["error"][i] == [""]
        assert found["probabilities"][i] == pytest.approx(one.probabilities, rel=1e-4)
        assert found["p_value"][i] == [one.fused.p_value]
        assert found["score"][i] == pytest.approx([one.fused.score], rel=1e-4)
        assert found["p_values"][i] == [word.p_value for word in one.detectors]
        assert found["reasons"][i] == [reason.p_value for reason in one.reasons]
        assert found["scores"][i] == pytest.approx([word.score for word in one.detectors], rel=1e-4, abs=1e-5)


def triton_found(checks: Path, folder: Path, port: str) -> dict[str, Any]:
    """What tritonclient got, in a process of its own, from a server in another, by its port of that name.

    Args:
        checks: the program: HOST:PORT MODEL FILE.npz.
        folder: for the bundle, whose id is in the result, and the images.
        port: "port" or "rest_port".
    """
    bundle_id = publish_tiny(folder / "bundle", "service_support:TinyClassifier")
    with launched(["-c", SERVER, str(folder / "bundle")]) as serving:
        return found_by(checks, folder, f"{serving.host}:{getattr(serving, port)}", "tiny") | {"bundle": bundle_id}


def found_by(program: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """What a program of its own process prints as JSON, given arguments and, after them, a file of the images."""
    write_images(folder / "images.npz")
    done = subprocess.run(
        [sys.executable, str(program), *arguments, str(folder / "images.npz")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_own_words(triton: dict[str, Any], kind: str) -> None:
    """All images, sent as `kind`, have the Screen's own words; the request's id comes back."""
    assert_rows(triton[kind], list(expected()))
    assert triton[kind]["bundle_id"] == triton["bundle"]
    assert triton[kind]["id"] == ("seven" if kind == "uint8" else "")


def assert_subset(triton: dict[str, Any]) -> None:
    """Requested outputs come in the order asked for, explanations among them."""
    assert triton["subset_names"] == ["verdict", "explanation", "p_value"]
    for i, one in enumerate(expected()):
        assert triton["subset"]["verdict"][i] == [one.verdict.value]
        assert triton["subset"]["p_value"][i] == [one.fused.p_value]
        explanation = json.loads(triton["subset"]["explanation"][i][0])
        assert set(explanation) == {word.name for word in one.detectors}
        assert all(explanation.values())


def assert_bad_image_alone(triton: dict[str, Any]) -> None:
    """The second image was spoilt: it fails, and its batch mates have their answers."""
    rows: list[Whole | None] = list(expected())
    rows[1] = None
    assert_rows(triton["spoiled"], rows)
