"""Images without labels: predictions stand in, and what needs labels is left out, in lines that say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun
from PIL import Image

from askance.__main__ import run
from askance.calibration.config import Config
from askance.calibration.images import Images
from askance.calibration.inputs import CalibrationInputs, load_inputs
from askance.calibration.pipeline import calibrate
from askance.calibration.sources import load_source
from askance.calibration.validation import mistakes_in
from askance.errors import ConfigError


@pytest.fixture
def digits() -> Images:
    return load_source("sklearn:digits")


def flat_folder(images: Images, folder: Path) -> str:
    folder.mkdir()
    for i, image in enumerate(images.x[:, 0].numpy()):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    return f"folder:{folder}"


def npz(images: Images, path: Path) -> str:
    np.savez(path, x=images.x[:, 0].numpy())
    return f"npz:{path}"


@pytest.fixture
def config_of(digits_run: DigitsRun) -> Callable[..., Config]:
    def make(source: str, test_source: str | None = None, **splits: str | None) -> Config:
        content: dict[str, Any] = digits_run.config.model_dump()
        content["data"] |= {"source": source, "test_source": test_source}
        content["splits"] |= {"train": None, "held_out": None} | splits
        content["evaluation"] |= {"attacked_images": 20, "attacks": content["evaluation"]["attacks"][:1]}
        return Config.model_validate(content)

    return make


def kinds(inputs: CalibrationInputs) -> list[str]:
    return list(inputs.settings.detectors.wanted())


@pytest.mark.parametrize("write", [flat_folder, npz])
def test_predictions_stand_in_for_labels(
    write: Callable[[Images, Path], str],
    digits: Images,
    config_of: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(digits, tmp_path / "digits.npz")
    loaded = load_source(source)
    assert not loaded.labelled
    assert torch.equal(loaded.x, digits.x)
    config = config_of(source)
    # word vectors are by class name
    named = config.classifier.model_copy(update={"class_names": digits.classes})
    inputs = load_inputs(config.model_copy(update={"classifier": named}))
    said = capsys.readouterr().err
    assert "no labels in fit, calibrate, fuse, evaluate: the classifier's predictions stand in for them" in said
    assert "introspection is left out: it learns from labels; a labelled held_out would do" in said
    assert "are called 0 to 9" not in said
    assert kinds(inputs) == ["library_network", "self_organizing_map", "semantic_signature"]
    assert inputs.class_names == digits.classes
    images = inputs.splits["evaluate"]
    with torch.no_grad():
        predicted = inputs.classifier(inputs.preprocessing.normalize(images.pixels())).argmax(dim=1)
    assert torch.equal(images.y, predicted)


def test_held_out_may_have_the_labels(
    digits: Images, config_of: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = npz(digits, tmp_path / "x.npz")
    inputs = load_inputs(config_of(source, "sklearn:digits", held_out="test[:300]"))
    assert kinds(inputs)[1] == "introspection"
    assert inputs.class_names == digits.classes  # the labelled pool's
    assert "left out" not in capsys.readouterr().err
    held_out = inputs.splits["held_out"]
    with torch.no_grad():
        predicted = inputs.classifier(inputs.preprocessing.normalize(held_out.pixels())).argmax(dim=1)
    assert not torch.equal(held_out.y, predicted)  # it makes mistakes there, which are what is learned


def test_a_bundle_is_made_of_them(digits: Images, config_of: Callable[..., Config], tmp_path: Path) -> None:
    config = config_of(npz(digits, tmp_path / "x.npz"))
    content = config.model_dump()
    content["detectors"] = {"self_organizing_map": {"map_layers": ["fc1", "fc2"], "side": 10}}
    content["word_vectors"] = None
    bundle = calibrate(Config.model_validate(content), tmp_path / "bundle")
    assert bundle.manifest.classifier.class_names == tuple("0123456789")
    assert bundle.evaluation().classifier.accuracy == 1.0
    content["detectors"] = {"introspection": {"hidden_layers": ["fc1"]}}
    with pytest.raises(ConfigError, match=r"^introspection learns from labels, and there are none: give a"):
        load_inputs(Config.model_validate(content))


def test_init_takes_them(
    digits: Images, digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = str(digits_run.config.classifier.weights), tmp_path / "c.toml"
    source = npz(digits, tmp_path / "x.npz")
    arguments = ["--classifier", "digits_cnn", "--weights", weights, "--data", source, "--trained-on", "none"]
    assert run(["init", *arguments, "--out", str(out)]) == 0
    assert "without labels nothing shows whether it is right" in capsys.readouterr().out
    text = out.read_text()
    assert 'class_names = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]' in text
    assert "# Left out: it learns the classifier's errors, for which labels are needed.\n# [detectors.intro" in text
    assert mistakes_in(out) == []
