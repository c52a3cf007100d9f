"""The screened classifier in process: every form of an image, one or many, and errors in one line."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from service_support import CLASSES, GREY, TinyClassifier, encoded, noise, parts, publish_tiny

import askance
from askance import Answer, BundleError, ConfigError, DataError, Verdict
from askance.answers import BLOCKED, Prediction, Screening
from askance.detectors.reader import TorchReader
from askance.errors import ScreenError
from askance.evaluation import AttackFigures, ClassifierFigures
from askance.images import planes_of
from askance.screening.images import ImageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "bundle"
    publish_tiny(path, "service_support:TinyClassifier")
    return path


@pytest.fixture(scope="module")
def screen(bundle: Path) -> askance.ScreenedClassifier:
    return askance.open(bundle, allowed_factories=["service_support"])


def test_every_form_of_an_image_has_one_answer(screen: askance.ScreenedClassifier, tmp_path: Path) -> None:
    pixels = noise(1)
    path = tmp_path / "one.png"
    path.write_bytes(encoded(Image.fromarray(pixels[0])))
    forms: list[Any] = [path, str(path), path.read_bytes(), Image.fromarray(pixels[0]), pixels, pixels[0]]
    forms += [pixels.transpose(1, 2, 0), pixels / 255, torch.from_numpy(pixels), torch.from_numpy(pixels).float() / 255]
    answers = [screen(form) for form in forms]
    assert len(set(answers)) == 1
    assert answers[0].verdict in (Verdict.CLEAN, Verdict.SUSPECT, Verdict.ADVERSARIAL)
    assert answers[0].label in CLASSES
    assert answers[0].bundle_id == screen.bundle.manifest.id
    assert len(answers[0].screening.detectors) == 2
    assert answers[0].screening.detectors[0].explanation is None
    explained = screen(path, explain=True).screening
    assert explained is not None
    assert set(explained.detectors[0].explanation or {}) == {"consistency", "layers"}


def test_many_images_keep_their_order_and_need_not_fit_one_batch(screen: askance.ScreenedClassifier) -> None:
    images = np.stack([noise(seed) for seed in range(70)])
    singly = [screen(image) for image in images]
    for several in (images, list(images), torch.from_numpy(images)):
        together = screen(several)
        assert [one.label for one in together] == [one.label for one in singly]
        assert [one.p_value for one in together] == pytest.approx([one.p_value for one in singly])
    assert screen([]) == []


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((1, 8, 9), np.uint8), r"expected [1, 8, 8] (channels, height, width), got [1, 8, 9]"),
        (np.zeros((3, 8, 8), np.uint8), r"expected [1, 8, 8] (channels, height, width), got [3, 8, 8]"),
        (np.full((8, 8), 2.0), "expected finite values in [0, 1], got 2 at [0, 0, 0] (divide pixels 0..255 by 255"),
        (np.full((8, 8), np.nan), "expected finite values in [0, 1], got nan at [0, 0, 0]"),
        (np.zeros((8, 8), np.int32), "pixels: expected uint8 or floating-point values, got int32"),
        (Image.new("RGB", (8, 8)), "expected a greyscale image (the classifier has 1 channel), got colour (RGB)"),
        (Image.new("L", (8, 9)), "expected an image of 8x8 pixels"),
        (b"abc", "expected a PNG, JPEG or WebP image, got 3 bytes that are none"),
        ("none.png", "none.png cannot be read: No such file or directory"),
    ],
)
def test_an_unfit_image_is_one_line_and_of_several_says_which(
    screen: askance.ScreenedClassifier, image: Any, text: str
) -> None:
    with pytest.raises(DataError) as alone:
        screen(image)
    assert str(alone.value).startswith(text)
    with pytest.raises(DataError) as among:
        screen([noise(1), image])
    assert str(among.value) == f"image 1: {alone.value}"


def test_a_classifier_that_gives_nan_is_one_line(bundle: Path) -> None:
    broken = copy.deepcopy(parts()[0])
    with askance.open(bundle, classifier=broken) as screen:
        reader = screen._screen.reader
        assert isinstance(reader, TorchReader)
        bias = reader.tap.module.get_parameter("output.bias")
        bias.data[0] = torch.nan
        with pytest.raises(ScreenError, match=r"^image 0: the classifier gave NaN or infinity for this image$"):
            screen([noise(0), noise(1)])


def test_a_live_module_can_take_the_factorys_place(bundle: Path, screen: askance.ScreenedClassifier) -> None:
    live = TinyClassifier().train()
    before = copy.deepcopy(live.state_dict())
    with askance.open(bundle, classifier=live) as own:
        assert own(noise(1)) == screen(noise(1))
    assert live.training
    assert all(torch.equal(before[name], values) for name, values in live.state_dict().items())
    with pytest.raises(BundleError, match="the weights do not fit classifier"):
        askance.open(bundle, classifier=torch.nn.Linear(3, 4))


def test_what_cannot_be_opened_is_one_line(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no readable manifest\.json"):
        askance.open(tmp_path)
    with pytest.raises(ConfigError, match="device 'warp' cannot be used: "):
        askance.open(bundle, allowed_factories=["service_support"], device="warp")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda' cannot be used: "):
            askance.open(bundle, allowed_factories=["service_support"], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_the_answers_are_the_same(bundle: Path, screen: askance.ScreenedClassifier) -> None:
    images = np.stack([noise(seed) for seed in range(20)])
    with askance.open(bundle, allowed_factories=["service_support"], device="cuda") as fast:
        for there, here in zip(fast(images), screen(images), strict=True):
            assert (there.label, there.verdict) == (here.label, here.verdict)
            assert there.score == pytest.approx(here.score, abs=1e-3)


def test_planes() -> None:
    assert planes_of(np.zeros((8, 9), np.uint8)).shape == (1, 8, 9)
    assert planes_of(np.zeros((3, 8, 9), np.uint8)).shape == (3, 8, 9)
    assert planes_of(np.zeros((8, 9, 3), np.uint8)).shape == (3, 8, 9)
    assert planes_of(np.zeros((8, 3, 1), np.uint8)).shape == (1, 8, 3)


def test_what_a_notebook_shows(screen: askance.ScreenedClassifier) -> None:
    answer = screen(noise(1))
    html = answer._repr_html_()
    assert answer.verdict is not None
    for expected in (answer.label, answer.verdict.value, "library_network", "fused", f"{answer.p_value:.4g}"):
        assert expected in html
    blocked = Answer(None, Verdict.BLOCKED, reason=BLOCKED)._repr_html_()
    assert "no prediction" in blocked
    assert BLOCKED in blocked
    assert screen.bundle.manifest.id[:12] in screen._repr_html_()
    assert screen._repr_html_() == screen.bundle._repr_html_()


TAG = "<b>&</b>"
SHOWN = "&lt;b&gt;&amp;&lt;/b&gt;"


def test_a_notebook_shows_names_and_runs_none(screen: askance.ScreenedClassifier) -> None:
    """Class names, reasons and names of attacks are text, whatever is in them."""
    answer = Answer(Prediction(0, TAG, (1.0,)), Verdict.CLEAN, reason=TAG)._repr_html_()
    assert answer == f"<div><b>{SHOWN} (100.0%)</b> <b style='color:#2a7f3f'>CLEAN</b> <i>{SHOWN}</i></div>"
    entry = screen.bundle.manifest.classifier.model_copy(update={"class_names": (TAG, "bee"), "name": TAG})
    manifest = screen.bundle.manifest.model_copy(update={"classifier": entry})
    bundle = replace(screen.bundle, manifest=manifest)._repr_html_()
    assert f">{SHOWN}, bee</td>" in bundle
    assert f">{SHOWN} (service_support:TinyClassifier)</td>" in bundle
    classifier = ClassifierFigures(accuracy=1.0, images=3)
    attacks = {TAG: AttackFigures(attempted=5, successful=3)}
    evaluation = askance.Evaluation(classifier=classifier, attacks=attacks, auroc={TAG: {"fused": 0.9}})._repr_html_()
    assert f">{SHOWN}</td>" in evaluation
    assert all(TAG not in html for html in (answer, bundle, evaluation))


def test_a_notebook_shows_an_evaluation_without_attacks_that_succeeded() -> None:
    html = askance.Evaluation(classifier=ClassifierFigures(accuracy=1.0, images=3))._repr_html_()
    assert "<img" not in html
    assert "AUROC" in html


def test_an_answer_is_json_without_what_is_not_there(screen: askance.ScreenedClassifier) -> None:
    answer = screen(noise(1))
    assert isinstance(answer.screening, Screening)
    content = answer.as_dict()
    scores = {"p_value", "score", "reasons", "detectors"}
    assert set(content) == {"bundle_id", "prediction", "probabilities", "verdict"} | scores
    assert content["detectors"][0] == {
        "name": "library_network",
        "score": answer.screening.detectors[0].score,
        "p_value": answer.screening.detectors[0].p_value,
        "flags": [],
    }


def test_an_image_error_keeps_its_halves() -> None:
    error = ImageError("a", "b")
    assert (error.expected, error.got, str(error)) == ("a", "b", "expected a, got b")
    assert GREY.shape == (1, 8, 8)
