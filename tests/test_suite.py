"""The attack suite: what is cached is not made again, and nothing depends on how the work is spread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from service_support import wait_for
from torch import Tensor
from toy import Trained

from askance.calibration import attacks, processes, suite
from askance.calibration.attacks import FGSM, PGD, PixelClassifier
from askance.calibration.cache import ImageCache, cache_folder
from askance.calibration.digests import tensor_digest
from askance.calibration.harness import targets
from askance.calibration.suite import PIECE_IMAGES, AttackJob, Target, run
from askance.errors import CalibrationError, ConfigError

SHORT = PGD(name="p", kind="pgd", epsilon=0.2, steps=3)


@pytest.fixture(scope="module")
def target(trained: Trained) -> Target:
    return Target("digits_cnn", {}, trained.classifier.state_dict(), trained.preprocessing)


def job(trained: Trained, count: int = 2 * PIECE_IMAGES + 10, options: Any = SHORT) -> AttackJob:
    images, labels = trained.part("evaluate")
    return AttackJob(options, images[:count], labels[:count])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of an attack made."""
    counts: list[int] = []
    original: Callable[..., Tensor] = attacks.perturb

    def counted(predict: Any, options: Any, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        counts.append(len(images))
        return original(predict, options, images, labels, seed)

    monkeypatch.setattr(suite, "perturb", counted)
    return counts


def test_pieces_are_made_once(trained: Trained, target: Target, tmp_path: Path, made: list[int]) -> None:
    cache, whole = ImageCache(tmp_path), job(trained)
    (first,) = run(target, [whole], cache)
    assert made == [PIECE_IMAGES, PIECE_IMAGES, 10]
    assert first.shape == whole.images.shape
    (again,) = run(target, [whole], cache)
    assert len(made) == 3
    assert torch.equal(again, first)
    # the first two pieces are the same work, under whatever name; another budget or seed is not
    renamed = SHORT.model_copy(update={"name": "q", "images": 7})
    (shorter,) = run(target, [job(trained, 2 * PIECE_IMAGES, renamed)], cache)
    assert len(made) == 3
    assert torch.equal(shorter, first[: 2 * PIECE_IMAGES])
    for change in ({"epsilon": 0.1}, {"seed": 1}):
        run(target, [job(trained, PIECE_IMAGES, SHORT.model_copy(update=change))], cache)
    assert made[3:] == [PIECE_IMAGES, PIECE_IMAGES]


def test_a_damaged_piece_is_made_anew(trained: Trained, target: Target, tmp_path: Path, made: list[int]) -> None:
    cache = ImageCache(tmp_path)
    (first,) = run(target, [job(trained, 10)], cache)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:100])
    (again,) = run(target, [job(trained, 10)], cache)
    assert made == [10, 10]
    assert torch.equal(again, first)


def test_processes_give_what_one_gives(
    trained: Trained, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FGSM(name="f", kind="fgsm", epsilon=0.2)
    both = [job(trained, PIECE_IMAGES + 5), job(trained, PIECE_IMAGES + 5, options)]
    here = run(target, both, ImageCache(tmp_path / "here"))
    monkeypatch.setattr(processes, "WORTH_PROCESSES_SECONDS", -1.0)
    elsewhere = run(target, both, ImageCache(tmp_path / "elsewhere"))
    for a, b in zip(here, elsewhere, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


class Fatal(Target):
    """Its classifier ends any process but the first that builds it, as the kernel does where memory runs out."""

    def build(self) -> PixelClassifier:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build()


def test_processes_that_are_ended_are_told_of_in_a_line(
    trained: Trained, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WORTH_PROCESSES_SECONDS", -1.0)
    fatal = Fatal(target.factory, target.arguments, target.weights, target.preprocessing)
    with pytest.raises(CalibrationError, match="memory ran out, or the script that calibrates has no if __name__"):
        run(fatal, [job(trained)], ImageCache(tmp_path))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1  # what was made before is kept


SCRIPT = """
import os, pathlib, sys, time
import numpy as np
from askance.calibration import processes, suite
from askance.calibration.attacks import FGSM
from askance.screening.preprocessing import Preprocessing

class Slow(suite.Target):
    def build(self):
        pathlib.Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(600)

if __name__ == "__main__":
    target = Slow("digits_cnn", {}, {}, Preprocessing(channels=1, height=8, width=8, mean=(0,), std=(1,)))
    piece = FGSM(name="f", kind="fgsm", epsilon=0.2), np.zeros((1, 1, 8, 8), "f4"), np.zeros(1, int), 0
    list(processes._in_processes(suite._Attacker(target), {(0, 0): piece}, "attacks"))
"""


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    """Even where it was killed, and could not end them."""
    script, pids = tmp_path / "calibrates.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    pids.mkdir()
    killed = subprocess.Popen([sys.executable, str(script), str(pids)])
    wait_for(lambda: any(pids.iterdir()))
    killed.kill()
    killed.wait()
    begun = [int(file.name) for file in pids.iterdir()]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in begun))


def test_a_killed_run_keeps_the_pieces_it_made(
    trained: Trained, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, original, calls = ImageCache(tmp_path), attacks.perturb, []

    def dies_at_the_third(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(suite, "perturb", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(target, [job(trained)], cache)
    run(target, [job(trained)], cache)
    assert len(calls) == 4


def test_the_cache_has_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("ASKANCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "askance"


def test_digests_tell_shape_type_and_values_apart() -> None:
    x = torch.arange(4.0)
    digests = {tensor_digest(t) for t in (x, x.view(2, 2), x.double(), x + 1)} | {tensor_digest(x, x)}
    assert len(digests) == 5
    assert tensor_digest(x) == tensor_digest(x.clone())


def test_targets_by_word_similarity() -> None:
    """Class 0 is most like 2, then 1; class 1 most like 2, then 0; class 2 most like 0, then 1."""
    words = torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.5], [0.9, 0.5, 1.0]])
    labels = torch.tensor([0, 1, 2, 0])
    assert targets(words, labels, 1).tolist() == [2, 2, 0, 2]
    assert targets(words, labels, 2).tolist() == targets(words, labels, -1).tolist() == [1, 0, 1, 1]
    for rank in (0, 3, -3):
        with pytest.raises(ConfigError, match=f"target_rank {rank} must be 1 to 2, or -1 to -2"):
            targets(words, labels, rank)
