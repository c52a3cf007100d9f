"""One image explained: words by hand, the command, and its page in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_support import DigitsRun
from PIL import Image

import askance
from askance.__main__ import run
from askance.answers import Answer, DetectorVerdict, Prediction, Screening, Verdict
from askance.calibration.inputs import load_inputs
from askance.drawing.explained import among_codes, on_the_map
from askance.drawing.insides import activation_map, densities
from askance.explained import in_words
from askance.inside import Inside

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
