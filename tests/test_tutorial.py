"""The README's tutorial, typed as it stands there: a folder of photos and a torchvision classifier, to a verdict."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from calibration_support import changed
from photos import take_photos, train_on

import askance
from askance.service.client import Client
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


@pytest.mark.acceptance
@pytest.mark.lasting
@pytest.mark.usefixtures("graphs")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("network", "arguments", "epochs", "rate"),
    [("mobilenet_v3_small", {}, 15, 0.05), ("vit_b_16", {"image_size": 32}, 6, 0.003)],
)
def test_other_networks_of_torchvision_are_served_as_torch_reads_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    arguments: dict[str, int],
    epochs: int,
    rate: float,
) -> None:
    """From photos and a state dict to a server, as in the tutorial; by their graphs."""
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    take_photos(tmp_path / "photos", {"train": 240, "test": 240})
    factory = f"torchvision:{network}"
    assert train_on(tmp_path / "photos", tmp_path / "weights.pt", epochs, factory, arguments, rate) > 0.85
    _, init, _, calibrate, serve, _ = commands()
    given = {"torchvision:resnet18": factory, '{"num_classes": 3}': json.dumps({"num_classes": 3, **arguments})}
    typed([given.get(word, word) for word in init], tmp_path)
    config = tmp_path / "mine.toml"
    config.write_text(changed(config.read_text(), *QUICKER))
    typed(calibrate, tmp_path)
    shown = sorted((tmp_path / "photos" / "test").glob("*/*.png"))[::6]
    line = ["-m", *serve, "--port", "0", "--metrics-port", "0"]
    with started(line) as (process, serving), askance.open("mine-bundle", engine="torch") as screen:
        assert isinstance(serving, Serving)
        metrics = f"{serving.metrics_scheme}://{serving.metrics_host}:{serving.metrics_port}/metrics"
        with urlopen(metrics) as page:
            assert 'engine="onnxruntime"' in page.read().decode()
        with Client(serving.target) as client:
            for path in shown:
                served, read = client.screen(path), screen(path)
                assert (served.label, served.verdict) == (read.label, read.verdict)
                assert served.p_value == pytest.approx(read.p_value, abs=0.02)  # a rank of 100 and more images
        process.terminate()
        assert process.wait(60) == 0
