"""One image explained: words by hand, the command, and its page in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun
from PIL import Image

import askance
from askance.__main__ import run
from askance.answers import Answer, DetectorVerdict, Prediction, Screening, Verdict
from askance.calibration.explaining import pixels_of, targets_of, wander
from askance.calibration.inputs import load_inputs
from askance.drawing.explained import among_codes, on_the_map
from askance.drawing.insides import activation_map, densities
from askance.explained import in_words
from askance.inside import Inside
from askance.inside.wandering import COPIES
from askance.screening.bundle import SealedBundle

NAMES = ("three", "nine")
SAID: dict[str, dict[str, Any]] = {
    "library_network": {
        "layers": [
            {"layer": "conv1", "answer": 0.0},
            {"layer": "conv2", "answer": 0.0},
            {"layer": "fc1", "answer": 1.0},
        ]
    },
    "introspection": {"estimated_error": 0.0123, "map_point": [1.0, 2.0]},
    "self_organizing_map": {
        "layers": [
            {"layer": "conv1", "unit": [1.0, 2.0], "clean_share_farther": 0.5},
            {"layer": "fc1", "unit": [3.0, 4.0], "clean_share_farther": 0.013},
        ]
    },
    "semantic_signature": {
        "layers": [{"layer": "conv1", "one_versus_two": 0.4}, {"layer": "fc1", "one_versus_two": 1.0}]
    },
    "constellation": {"clean_share_above": {"shift": 0.02, "grain": 0.5}},
    "odd_distance": {"distance": 3.0},
}


def answer(said: dict[str, dict[str, Any]]) -> Answer:
    """As over the wire, where whole numbers are floats."""
    fused = DetectorVerdict("fused", 3.0, 0.004, ("suspect", "adversarial"))
    words = tuple(DetectorVerdict(name, 1.0, 0.25, (), one) for name, one in said.items())
    return Answer(Prediction(1, "nine", (0.1, 0.9)), Verdict.ADVERSARIAL, Screening(fused, words, ()))


def test_words_by_hand() -> None:
    first, *rest = in_words(answer(SAID), NAMES)
    assert first == "nine (90.0%): ADVERSARIAL; 0.4% of clean images are as suspicious"
    as_many = "(25% of clean images are as suspicious)"
    assert rest == [
        f"library network {as_many}: conv1 three, conv2 three, fc1 nine: the layers disagree",
        f"introspection {as_many}: an error of 0.012 is expected, where 0 is right and sure, and 1 wrong and sure",
        f"self organizing map {as_many}: fc1 is farthest from the codes that it knows (unit 3, 4): 1.3% of clean "
        "images lie farther",
        f"semantic signature {as_many}: against the other classes, the answer wins of the 1-vs-2 tests conv1 40%, fc1 "
        "100%",
        f"constellation {as_many}: in altered copies, 2% of clean images' answers shift more and 50% are coarser in "
        "what filters move",
        f"odd distance {as_many}",
    ]


def test_layers_that_agree() -> None:
    said = {"library_network": {"layers": [{"layer": "a", "answer": 1}, {"layer": "b", "answer": 1}]}}
    assert in_words(answer(said), NAMES)[1].endswith(": a nine, b nine: the layers agree")


@pytest.fixture
def digit(digits_run: DigitsRun, tmp_path: Path) -> Path:
    """An image of the evaluation split."""
    pixels = load_inputs(digits_run.config).splits["evaluate"].x[3, 0]
    Image.fromarray(pixels.numpy()).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_the_command(digits_run: DigitsRun, digit: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run(["explain", str(digits_run.bundle.path), str(digit), "--out", str(page)]) == 0
    said = capsys.readouterr().out.splitlines()
    with askance.open(digits_run.bundle.path) as screen:
        found = screen(digit, explain=True)
        assert said[:-1] == in_words(found, screen.class_names)
    assert found.screening is not None
    assert len(said) == 1 + len(found.screening.detectors) + 1
    shown = page.read_text(encoding="utf-8")
    for line in said[1:-1]:
        assert line.replace("'", "&#x27;") in shown
    assert 'src="data:image/png;base64,' in shown


def test_what_cannot_be_explained_is_one_line(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert run(["explain", str(digits_run.bundle.path), str(tmp_path / "text.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_crosses_lie_where_the_detectors_say(digits_run: DigitsRun, digit: Path) -> None:
    inside = Inside.model_validate_json(digits_run.bundle.content("report/inside.json"))
    with askance.open(digits_run.bundle.path) as screen:
        found = screen(digit, explain=True)
    assert found.screening is not None
    said = {word.name: word.explanation or {} for word in found.screening.detectors}
    assert inside.activation_map is not None
    (made,) = on_the_map(said["introspection"], activation_map(inside, inside.activation_map)).figures.values()
    # the fourth image of the split, where the map of all has it
    drawn = torch.tensor([made.data[-1].x[0], made.data[-1].y[0]])
    torch.testing.assert_close(drawn, torch.tensor(inside.activation_map.points[3]).clamp(-4, 4), atol=1e-2, rtol=0)
    panel = among_codes(said["self_organizing_map"], densities(inside))
    for layer in said["self_organizing_map"]["layers"]:
        cross = panel.figures[layer["layer"]].data[-1]
        side = inside.codes[layer["layer"]].side
        assert (cross.y[0] - side, cross.x[0] - side) == tuple(layer["unit"])
        assert inside.codes[layer["layer"]].seen[inside.labels[3]][layer["unit"][0] * side + layer["unit"][1]] >= 1


def test_without_noise_all_copies_lie_where_the_image_does(digits_run: DigitsRun, digit: Path) -> None:
    sealed = SealedBundle.open(digits_run.bundle.path)
    pixels = pixels_of(sealed, digit)
    still, moving = wander(sealed, pixels, [0.0, 0.05], []).clouds
    with askance.open(digits_run.bundle.path) as screen:
        answer = screen(digit, explain=True)
    assert answer.screening is not None
    (said,) = (word.explanation for word in answer.screening.detectors if word.name == "introspection")
    assert said is not None
    assert len(set(still.points)) == 1
    assert still.points[0] == pytest.approx(said["map_point"], abs=2e-3)
    assert len(still.points) == len(moving.points) == COPIES
    assert len(set(moving.points)) > COPIES / 2
    assert wander(sealed, pixels, [0.05], []).clouds == (moving,)  # its noise is seeded


def test_on_the_way_to_most_classes_an_error_is_expected_and_at_the_end_less(digits_run: DigitsRun) -> None:
    """Paper 001, Fig. 6: introspection is in doubt between two classes, and sure again in the other one."""
    sealed = SealedBundle.open(digits_run.bundle.path)
    images = load_inputs(digits_run.config).splits["evaluate"].x[:4].numpy().astype(np.float32) / 255
    ways = [way for image in images for way in wander(sealed, image, [], range(10)).trajectories]
    moved = [way for way in ways if way.predicted[0] != way.target]
    assert len(moved) == 36
    assert all(way.arrives for way in moved)
    peaked = [max(way.errors) > max(way.errors[0], way.errors[-1]) for way in moved]
    assert sum(peaked) > len(peaked) / 2


def test_the_ways_of_an_image_are_told_and_drawn(
    digits_run: DigitsRun, digit: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["explain", str(digits_run.bundle.path), str(digit)]
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    assert run([*command, "--noise", "0.1", "--noise", "0.2", "--toward", "all", "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert (
        len(re.findall(r"^noise of 0.[12]: \d+% of 200 copies are taken for \w+, an error of", said, re.MULTILINE)) == 2
    )
    assert len(re.findall(r"^towards \w+: arrives in \d+ steps; an error of", said, re.MULTILINE)) == 9
    text = page.read_text()
    assert all(title in text for title in ("Under noise", "On its way to other classes", "expected on the way"))
    assert run([*command, "--toward", "all", "--out", str(picture)]) == 0
    assert capsys.readouterr().out.endswith(f"picture: {picture}\n")
    assert Image.open(picture).size == (1430, 880)


def test_a_misspelt_class_is_told_in_a_line(
    digits_run: DigitsRun, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", str(digits_run.bundle.path), str(digit), "--toward"]
    assert run([*command, "nien"]) == 2
    assert "askance: --toward: unknown class 'nien': did you mean 'nine'?" in capsys.readouterr().err
    sealed = SealedBundle.open(digits_run.bundle.path)
    with pytest.raises(askance.ConfigError, match="is taken for three already: name another class, or all"):
        targets_of(sealed, "three", 3)
    assert targets_of(sealed, "all", 3) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
