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
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import askance
from askance.__main__ import run
from askance.calibration.config import Config
from askance.calibration.images import Images
from askance.calibration.inputs import CalibrationInputs, load_inputs
from askance.calibration.live_data import LiveImages, images_of, splits_of
from askance.calibration.pipeline import calibrate
from askance.calibration.sources import load_source
from askance.calibration.unlabelled import settled
from askance.calibration.validation import mistakes_in
from askance.classifiers import build_classifier, load_weights
from askance.errors import AskanceError, ConfigError, DataError


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


@pytest.mark.acceptance
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


PGD = [{"name": "pgd", "kind": "pgd", "epsilon": 0.1, "steps": 5}]


def live(x: Tensor) -> dict[str, LiveImages]:
    """The same images without labels, in every form that they may come in."""
    return {
        "fit": x[:900],
        "calibrate": x[900:1200].numpy(),
        "fuse": DataLoader(TensorDataset(x[1200:1500]), 64),
        "evaluate": [Image.fromarray(image) for image in x[1500:, 0].numpy()],
    }


def test_live_images_without_labels(digits: Images, digits_run: DigitsRun, capsys: pytest.CaptureFixture[str]) -> None:
    data = live(digits.x)
    found = splits_of(data, None, 0)
    assert not any(images.labelled for images in found.values())
    assert torch.equal(torch.cat([images.x for images in found.values()]), digits.x)
    classifier = build_classifier("digits_cnn", {}, load_weights(digits_run.config.classifier.weights))
    bundle = askance.calibrate(
        classifier,
        data,
        out=digits_run.folder / "live",
        mean=(0.306,),
        std=(0.377,),
        detectors={
            "self_organizing_map": {"map_layers": ["fc1", "fc2"], "side": 10},
            "introspection": {"hidden_layers": ["fc1"]},
        },
        attacks=PGD,
        attacked_images=20,
        ladder=False,
    )
    said = capsys.readouterr().err
    assert "no labels in fit, calibrate, fuse, evaluate: the classifier's predictions stand in for them" in said
    assert "no class names: the classes are called 0 to 9; class_names names them" in said
    assert "introspection is left out: it learns from labels; a labelled held_out would do" in said
    assert [entry.kind for entry in bundle.manifest.detectors] == ["self_organizing_map"]
    assert bundle.manifest.classifier.class_names == tuple("0123456789")
    assert bundle.evaluation().classifier.accuracy == 1.0
    again = askance.evaluate(bundle, data, attacks=PGD, classifier=classifier, attacked_images=20, ladder=False)
    assert again.classifier.accuracy == 1.0
    assert again.clean_flag_rate == bundle.evaluation().clean_flag_rate


def test_live_held_out_may_have_the_labels(digits: Images, digits_run: DigitsRun) -> None:
    held_out = (digits.x[:300], digits.y[:300])
    found = splits_of(live(digits.x) | {"held_out": held_out}, digits.classes, 0)
    assert [name for name, images in found.items() if images.labelled] == ["held_out"]
    classifier = build_classifier("digits_cnn", {}, load_weights(digits_run.config.classifier.weights))
    settings, splits = settled(
        digits_run.config, classifier, digits_run.config.classifier.preprocessing, found, digits.classes
    )
    assert "introspection" in settings.detectors.wanted()
    assert {images.classes for images in splits.values()} == {digits.classes}
    assert torch.equal(splits["held_out"].y, digits.y[:300])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(torch.zeros(1, 4, 4), 0), torch.zeros(1, 4, 4)], r"^data: 1 of 2 images have a label: expected all of them"),
        ([{"image": 1}], r"^data gives dict: expected pairs \(image, label\), or images alone$"),
    ],
)
def test_live_images_that_are_refused(data: LiveImages, message: str) -> None:
    with pytest.raises(DataError, match=message):
        images_of(data, None, "data")


def test_names_of_live_images_without_labels_are_checked(tmp_path: Path) -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for names, message in (
        (["a", "A "], r"^two classes are called 'a' and 'A ': class names must differ by more than case or blanks$"),
        (["a", "b", "c"], r"^the classifier has 2 outputs for 3 class names: expected one each$"),
    ):
        with pytest.raises(AskanceError, match=message):
            askance.calibrate(
                classifier,
                torch.rand(2000, 1, 4, 4),
                out=tmp_path / "bundle",
                class_names=names,
                mean=[0.5],
                std=[0.5],
                detectors={"self_organizing_map": {"map_layers": ["1"]}},
                attacks=PGD,
                ladder=False,
            )
