"""Where torch is not installed: a bundle's graph is served, screened and inspected; what needs torch says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from service_support import noise, publish_tiny

import askance
from askance.calibration.exporting import graphs_of
from askance.service.launch import launched

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision")))  # as if they were not installed
"""
COMMAND = f"{WITHOUT}from askance.__main__ import main\nmain(sys.argv[1:])\n"
MISSING = (
    "torch is not installed: install askance with its extra 'torch', pip install '.[torch]' in a checkout or "
    "'WHEEL[torch]' with the wheel's path"
)


@pytest.fixture(scope="module")
def graphed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphed") / "tiny"
    publish_tiny(path, export=graphs_of)
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a graph."""
    path = tmp_path_factory.mktemp("bare") / "tiny"
    publish_tiny(path)
    return path


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_graph_is_served_and_answers_as_in_process(graphed: Path, workers: str) -> None:
    """With explanations, and of images in files: decoding, too, does without."""
    served = ["serve", str(graphed), "--port", "0", "--metrics-port", "0", "--disclose", "--workers", workers]
    image = noise(1)
    with askance.open(graphed) as screen:
        expected = screen(image, explain=True)
    with launched(["-c", COMMAND, *served]) as serving, askance.Client(serving.target) as client:
        for sent in (image, Image.fromarray(image[0])):
            answer = client.screen(sent, explain=True)
            assert (answer.verdict, answer.label, answer.p_value) == (
                expected.verdict,
                expected.label,
                expected.p_value,
            )
            assert answer.screening is not None
            assert expected.screening is not None
            for word, own in zip(answer.screening.detectors, expected.screening.detectors, strict=True):
                assert (word.explanation, word.p_value) == (own.explanation, own.p_value)


SCREEN = f"""{WITHOUT}
import json
import numpy as np
import askance
with askance.open(sys.argv[1]) as screen:
    answers = screen(np.load(sys.argv[2]))
print(json.dumps([(one.label, one.verdict.value, one.p_value) for one in answers]))
assert not [name for name in sys.modules if name.startswith(("askance.detectors", "askance.classifiers"))]
"""


def test_a_graph_screens_in_process(graphed: Path, tmp_path: Path) -> None:
    images = np.stack([noise(seed) for seed in range(5)])
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", SCREEN, str(graphed), str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with askance.open(graphed) as screen:
        expected = [[one.label, one.verdict.value, one.p_value] for one in screen(images)]
    assert json.loads(done.stdout) == expected


def test_a_graph_is_inspected(graphed: Path) -> None:
    done = typed("inspect", str(graphed))
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiny" in done.stdout


@pytest.mark.parametrize("command", [["serve", "--port", "0", "--metrics-port", "0"], ["inspect"]], ids=["serve", ""])
def test_a_bundle_that_torch_is_to_compute_is_refused_in_a_line(bare: Path, command: list[str]) -> None:
    done = typed(command[0], str(bare), *command[1:])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"askance: {bare} is to be computed by torch, and {MISSING}"


def test_a_graph_with_the_engine_torch_is_refused_in_a_line(graphed: Path, tmp_path: Path) -> None:
    settings = tmp_path / "server.toml"
    settings.write_text('[inference]\nengine = "torch"\n')
    done = typed("serve", str(graphed), "--config", str(settings), "--port", "0", "--metrics-port", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"askance: {graphed} is to be computed by torch, and {MISSING}"


@pytest.mark.parametrize("command", ["calibrate", "layers", "demo", "recalibrate"])
def test_commands_that_calibrate_say_what_is_missing(command: str, graphed: Path, tmp_path: Path) -> None:
    arguments = {
        "calibrate": [str(tmp_path / "mine.toml"), "--out", str(tmp_path / "B")],
        "layers": ["--classifier", "torchvision:resnet18"],
        "demo": [],
        "recalibrate": [str(graphed), "--from", f"folder:{tmp_path}", "--out", str(tmp_path / "B")],
    }
    (tmp_path / "mine.toml").write_text("")
    done = typed(command, *arguments[command])
    assert (done.returncode, done.stderr) == (2, f"askance: {MISSING}\n")
