"""`askance validate`: all mistakes at once, a line each, and nothing told twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from calibration_support import DigitsRun

from askance.__main__ import run
from askance.calibration.config import load_config
from askance.calibration.validation import mistakes_in
from askance.errors import ConfigError

BROKEN = """
name = "b ad"
batchsize = 3
[classifier]
factory = "lenet"
weights = "nowhere.safetensors"
[classifier.preprocessing]
channels = 1
height = 8
width = 8
mean = [0.3]
std = [0.3]
[data]
sourc = "sklearn:digits"
[detectors.library_network]
thresholds = { conv1 = 0.95, conv2 = 3 }
[evaluation]
attacks = [{ name = "f", kind = "fgsm" }, { name = "p", kind = "pdg" }]
"""


def starts(lines: list[str], *expected: str) -> None:
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=False)] == list(expected), lines
    assert len(lines) == len(expected), lines


def within(path: Path) -> list[str]:
    """What is wrong with a config's content, without its path."""
    lines = mistakes_in(path)
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def edited(digits_run: DigitsRun, folder: Path, **changes: str) -> Path:
    """The digits config in another folder, with its weights and word vectors beside it, and lines replaced."""
    (folder / "weights").mkdir()
    shutil.copy(digits_run.config.classifier.weights, folder / "weights")
    shutil.copy(digits_run.folder / "digit_attributes.txt", folder)
    text = digits_run.config_path.read_text()
    for key, value in changes.items():
        (line,) = [one for one in text.splitlines() if one.startswith(f"{key} = ")][:1]
        text = text.replace(line, f"{key} = {value}", 1)
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_every_mistake_of_the_text_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(BROKEN)
    starts(
        within(path),
        "name: String should match pattern",
        "detectors.library_network.thresholds.conv2: Input should be less than or equal to 1, got 3",
        "the key 'evaluation.attacks.0.epsilon' is missing",
        "evaluation.attacks.1.kind: unknown 'pdg': did you mean 'pgd'?",
        "unknown key 'data.sourc': did you mean 'source'?",
        "the key 'splits' is missing",
        "unknown key 'batchsize': did you mean 'batch_size'?",
        f"the classifier's weights {tmp_path / 'nowhere.safetensors'} do not exist",
    )
    assert run(["validate", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 8
    assert all(line.startswith(f"askance: {path}: ") for line in lines)
    with pytest.raises(ConfigError, match=rf"'source'\?.* \(and 6 more: askance validate {path}\)$"):
        load_config(path)


def test_splits_levels_vectors_and_layers(digits_run: DigitsRun, tmp_path: Path) -> None:
    """Of what is right by itself, what does not fit together."""
    path = edited(
        digits_run,
        tmp_path,
        calibrate='"train[:20]"',
        fuse='"train[15:650]"',
        fit='"train[650:3000]"',
    )
    starts(
        within(path),
        "split 'train[650:3000]' is empty or beyond the 1797 images of the pool 'train'",
        "the splits calibrate = 'train[:20]' and fuse = 'train[15:650]' overlap",
    )
    shutil.rmtree(tmp_path / "weights")
    path = edited(
        digits_run,
        tmp_path,
        calibrate='"train[:20]"',
        thresholds="{ conv1 = 0.9, conv3 = 0.9, cnov2 = 0.9 }",
        hidden_layers='["relu3", "fc3"]',
        file='"none.txt"',
    )
    starts(
        within(path),
        "the false-positive target adversarial (split calibrate) = 0.01 needs at least 99 calibration samples, got 20",
        f"cannot read the word vectors {tmp_path / 'none.txt'}",
        "detectors.library_network: the classifier has no layer 'conv3': did you mean 'conv",
        "detectors.library_network: the classifier has no layer 'cnov2': did you mean 'conv2'?",
        "detectors.introspection: the classifier has no layer 'fc3': did you mean 'fc",
    )


def test_a_right_config_says_what_to_do_next(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(digits_run, tmp_path)
    assert mistakes_in(path) == []
    assert run(["validate", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is valid: askance calibrate {path} --out BUNDLE\n"


def test_a_file_that_is_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts(mistakes_in(tmp_path / "none.toml"), "cannot read the config")
    (tmp_path / "c.toml").write_text("[data")
    starts(mistakes_in(tmp_path / "c.toml"), f"{tmp_path / 'c.toml'} is not valid TOML")
    assert run(["validate", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err.count("none.toml") == 1  # its path is told once


def test_mistakes_as_json(digits_run: DigitsRun, tmp_path: Path) -> None:
    out, broken = tmp_path / "out.json", tmp_path / "b.toml"
    broken.write_text("")
    for path, code in ((edited(digits_run, tmp_path), 0), (broken, 2)):
        assert run(["validate", str(path), "--json", str(out)]) == code
        assert json.loads(out.read_text()) == {
            "config": str(path),
            "valid": code == 0,
            "mistakes": [] if code == 0 else mistakes_in(path),
        }
    assert len(mistakes_in(broken)) > 3
