"""Every file of examples/, run as its first lines say, and what comes of it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import test_own_detector
from calibration_support import DigitsRun
from nbclient import NotebookClient
from PIL import Image

import askance
from askance.answers import JUDGED
from askance.detectors import Bundle
from askance.service.launch import launched, started

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DIGIT = EXAMPLES / "digit.png"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as this process has: the same figures to the last digit
FREE_PORTS = ("--port", "0", "--metrics-port", "0")


def run(*arguments: str | Path, **environment: str) -> list[str]:
    """The lines that `python ARGUMENTS` prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | ONE_THREAD | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def black(tmp_path: Path) -> Path:
    """A second image."""
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    return tmp_path / "black.png"


def test_in_process(digits_run: DigitsRun, black: Path) -> None:
    with askance.open(digits_run.bundle.path) as screen:
        answer, other = screen(DIGIT, explain=True), screen(black)
    assert answer.label == "one"
    assert answer.screening is not None
    assert run(EXAMPLES / "in_process.py", digits_run.bundle.path, DIGIT, black) == [
        f"{DIGIT}: one, {answer.verdict}, p = {answer.p_value:.3f}",
        f"{black}: {other.label}, {other.verdict}, p = {other.p_value:.3f}",
        *(
            f"  {word.name}: score {word.score:.3f}, p = {word.p_value:.3f}, {word.explanation}"
            for word in answer.screening.detectors
        ),
    ]


@pytest.mark.parametrize("disclosed", [True, False], ids=["disclosed", "by default"])
def test_client(digits_run: DigitsRun, black: Path, disclosed: bool) -> None:
    with askance.open(digits_run.bundle.path) as screen:
        answer, other = screen([DIGIT, black])
    disclose = ("--disclose",) if disclosed else ()
    with launched(["-m", "askance", "serve", str(digits_run.bundle.path), *FREE_PORTS, *disclose]) as serving:
        lines = run(EXAMPLES / "client.py", serving.target, DIGIT, black, __file__)
    refused = f"encoded: expected a PNG, JPEG or WebP image, got {Path(__file__).stat().st_size} bytes that are none"
    told = [f"one, {answer.verdict}", f"{other.label}, {other.verdict}", refused]
    assert lines == [
        f"{DIGIT}: {told[0]}",
        f"  p = {answer.p_value:.3f}" if disclosed else "  no scores: scores are for clients with the role 'scores'",
        *(f"{path}: {one}" for path, one in zip((DIGIT, black, __file__), told, strict=True)),
        f"asyncio: {'; '.join(told)}",
    ]


@pytest.mark.acceptance
@pytest.mark.lasting
def test_own_classifier(tmp_path: Path) -> None:
    """The script, then the commands that it prints."""
    export, *commands = run(EXAMPLES / "own_classifier.py", tmp_path)
    assert export == f"export PYTHONPATH={EXAMPLES}"
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    calibrate, inspect, serve = (shlex.split(command) for command in commands)
    assert [calibrate[:2], inspect[:2], serve[:2]] == [["askance", verb] for verb in ("calibrate", "inspect", "serve")]

    assert "classifier: accuracy 9" in "\n".join(run("-m", *calibrate, PYTHONPATH=path))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.classifier.factory == "own_classifier:build"
    assert bundle.manifest.classifier.arguments == {"width": 64}
    assert bundle.evaluation().auroc["pgd"]["fused"] > 0.9
    assert f"{bundle.manifest.id} (intact: 9 files verified)" in run("-m", *inspect, PYTHONPATH=path)[0]

    with started(["-m", *serve, *FREE_PORTS], env=os.environ | {"PYTHONPATH": path}) as (process, serving):
        shown = "\n".join(run("-m", "askance", "screen", DIGIT, "--target", serving.target))
        process.terminate()
        assert process.wait(60) == 0
    assert " 1 " in shown
    assert any(verdict in shown for verdict in JUDGED)


@pytest.mark.acceptance
def test_own_data(tmp_path: Path) -> None:
    figures, answer = run(EXAMPLES / "own_data.py", tmp_path)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.classifier.factory is None
    assert bundle.manifest.classifier.class_names[:3] == ("zero", "one", "two")
    auroc = bundle.evaluation().auroc["pgd"]["fused"]
    assert auroc > 0.9
    assert figures == f"fused AUROC on PGD: {auroc:.3f}"
    told, _, verdict = answer.partition(": ")
    assert told == "zero taken for zero"
    assert verdict in JUDGED


def test_tour(digits_run: DigitsRun, tmp_path: Path) -> None:
    """The notebook as Jupyter runs it, in its own folder, with the bundle where its first cell makes it."""
    (tmp_path / "digits-bundle").symlink_to(digits_run.bundle.path)
    room = tmp_path / "examples"
    room.mkdir()
    shutil.copy(DIGIT, room)
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(room)}})
    client.execute(env=os.environ | ONE_THREAD | {"IPYTHONDIR": str(tmp_path / "ipython")})

    def shown(cell: str) -> Any:
        """What a cell shows, by MIME type."""
        (found,) = (one for one in notebook.cells if one.id == cell)
        return found.outputs[-1].data

    with askance.open(digits_run.bundle.path) as screen:
        clean = screen(DIGIT)
    assert shown("open")["text/html"] == digits_run.bundle._repr_html_()
    assert clean._repr_html_()[:40] == shown("screen")["text/html"][:40]
    assert clean.label == "one"
    assert "<b>one (" in shown("screen")["text/html"]
    attacked = shown("attacked")["text/html"]
    assert "<b>one (" not in attacked
    assert ">self_organizing_map</td>" in attacked
    assert "image/png" in shown("picture")
    assert "'consistency'" in shown("explanation")["text/plain"]
    assert "<img alt='AUROC by attack'" in shown("figures")["text/html"]


def test_no_example_is_left_without_a_test() -> None:
    tests = {
        "client.py": test_client,
        "digit.png": test_client,
        "in_process.py": test_in_process,
        "own_classifier.py": test_own_classifier,
        "own_data.py": test_own_data,
        "own_detector/": test_own_detector,
        "tour.ipynb": test_tour,
    }
    left = {".ipynb_checkpoints/", ".mypy_cache/", ".ruff_cache/", "__pycache__/"}  # by tools
    there = {f"{one.name}/" if one.is_dir() else one.name for one in EXAMPLES.iterdir()}
    assert there - left == set(tests)
