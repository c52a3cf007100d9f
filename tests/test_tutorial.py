"""The README's tutorial, typed as it stands there: a folder of photos and a torchvision classifier, to a verdict."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from calibration_support import changed
from photos import take_photos, train_on

from askance.service.launch import Serving, started

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")

QUICKER = (
    ("attacked_images = 72", "attacked_images = 20"),
    ("ladder = true", 'seen = [{ name = "seen", kind = "fgsm", epsilon = "16/255" }]'),
    ("[detectors.introspection]", "[detectors.introspection]\ncycles = 1\ncycle_steps = 20"),
)


def commands() -> list[list[str]]:
    section = README[README.index("## Ten minutes") : README.index("## Install")]
    (block,) = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def typed(command: list[str], folder: Path, code: int = 0) -> str:
    """Run it as a shell would, with `askance` the one that is tested; what it prints."""
    assert command[0] == "askance"
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.acceptance
@pytest.mark.lasting
@pytest.mark.usefixtures("graphs")
@pytest.mark.timeout(1500)
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of 32 pixels; the ports are free ones, the error estimator's training is short, attacks are few: one in
    place of the ladder, which on two cores takes most of the ten minutes.
    """
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    take_photos(tmp_path / "photos", {"train": 240, "test": 240})
    assert train_on(tmp_path / "photos", tmp_path / "weights.pt") > 0.9
    layers, init, validate, calibrate, serve, screen = commands()
    assert [command[1] for command in (layers, init, validate, calibrate, serve, screen)] == [
        "layers",
        "init",
        "validate",
        "calibrate",
        "serve",
        "screen",
    ]
    assert re.search(r"layer4 .* 512 x 1 x 1 .* all detectors", typed(layers, tmp_path))
    assert "layers: conv1, layer1, layer2, layer3, layer4, fc\n" in typed(init, tmp_path)
    config = tmp_path / "mine.toml"
    text = config.read_text()
    assert text.count("\n#") + text.count("  # ") > 15  # reasons
    assert typed(validate, tmp_path) == "mine.toml is valid: askance calibrate mine.toml --out BUNDLE\n"
    config.write_text(changed(text, *QUICKER))
    shown = typed(calibrate, tmp_path)
    assert "in mine-bundle: askance serve mine-bundle" in shown
    assert "true-positive rate at 5% false positives" in shown
    assert (tmp_path / "mine-bundle" / "graph.onnx").exists()
    monkeypatch.chdir(tmp_path)
    with started(["-m", *serve, "--port", "0", "--metrics-port", "0"]) as (process, serving):
        assert isinstance(serving, Serving)
        verdict = typed([*screen, "--target", serving.target], tmp_path)
        process.terminate()
        assert process.wait(60) == 0
    assert re.search(r"standing/0002.png │ standing\s+│\s+[01]\.\d+ │ (CLEAN|SUSPECT)", verdict), verdict
