"""Training: one that was broken off goes on as if it had not been, shuffling, momentum, dropout and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calibration_support import DigitsRun
from torch import nn

from askance.calibration.config import Config, TrainingConfig
from askance.calibration.images import Images
from askance.calibration.training import fit_classifier, memorise, train
from askance.calibration.unfinished import unfinished
from askance.errors import CalibrationError
from askance.screening.preprocessing import Preprocessing

GREY = Preprocessing(channels=1, height=4, width=4, mean=(0.5,), std=(0.5,))
HOW = TrainingConfig(epochs=4, batch_size=8, learning_rate=0.1, momentum=0.9)


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Images(x, torch.arange(40) % 2, ("a", "b"))


def begun() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_goes_on_as_if_it_had_not_been_broken_off(epochs: int, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]), unfinished(tmp_path / "whole", {}, resume=False) as work:
        fit_classifier(begun(), GREY, images(), HOW, work, tmp_path / "one")
    fewer = HOW.model_copy(update={"epochs": epochs})
    with (
        torch.random.fork_rng(devices=[]),
        pytest.raises(KeyboardInterrupt),
        unfinished(tmp_path / "parts", {}, resume=False) as work,
    ):
        fit_classifier(begun(), GREY, images(), fewer, work, tmp_path / "other")
        raise KeyboardInterrupt
    with torch.random.fork_rng(devices=[]), unfinished(tmp_path / "parts", {}, resume=True) as work:
        fit_classifier(begun(), GREY, images(), HOW, work, tmp_path / "other")
    kept = [{file.name: file.read_bytes() for file in (tmp_path / one).iterdir()} for one in ("one", "other")]
    assert sorted(kept[0]) == [f"epoch-{epoch:03}.safetensors" for epoch in range(5)]
    assert kept[0] == kept[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "other"]


def _config(run: DigitsRun, weights: Path, epochs: int = 3) -> Config:
    classifier = run.config.classifier.model_copy(update={"weights": weights})
    how = run.config.training.model_copy(update={"epochs": epochs})
    return run.config.model_copy(update={"classifier": classifier, "training": how})


def test_the_weights_of_a_training_that_was_broken_off_are_those_of_one_that_was_not(
    digits_run: DigitsRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(_config(digits_run, whole))
    step, asked = F.cross_entropy, iter(range(1_000_000))

    def interrupted(*arguments: Any) -> Any:
        if next(asked) == 60:  # in the second epoch
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(F, "cross_entropy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(_config(digits_run, parts))
    monkeypatch.undo()
    assert not parts.exists()
    with pytest.raises(CalibrationError, match=r"parts.safetensors.partial holds unfinished work: add --resume to"):
        train(_config(digits_run, parts))
    with pytest.raises(CalibrationError, match=r"was begun with another classifier, data or options: remove it to"):
        train(_config(digits_run, parts, epochs=4), resume=True)
    train(_config(digits_run, parts), resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [parts.name, whole.name]


def test_a_damaged_state_begins_anew(digits_run: DigitsRun, tmp_path: Path) -> None:
    folder = tmp_path / "kept.partial"
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"nothing")
    memorise(_config(digits_run, tmp_path / "w.safetensors", epochs=1), tmp_path / "kept", resume=True)
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == [
        "epoch-000.safetensors",
        "epoch-001.safetensors",
    ]
    assert not folder.exists()
