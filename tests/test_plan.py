"""What a calibration says before it begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from calibration_support import DigitsRun

from askance.calibration.config import Config
from askance.calibration.inputs import load_inputs, new_detectors
from askance.calibration.pace import in_words, seconds_per_image
from askance.calibration.pipeline import calibrate
from askance.calibration.plan import plan


def planned(config: Config) -> list[str]:
    inputs = load_inputs(config)
    return plan(inputs, new_detectors(inputs))


def test_stages_sizes_and_what_is_left_out(digits_run: DigitsRun) -> None:
    first, *rows = planned(digits_run.config)
    assert re.fullmatch(r"digits: 4 stages, about \d+ (s|min) here", first)
    assert rows[:2] == [
        "  1. fit library_network, introspection, self_organizing_map, semantic_signature on 847 images",
        "  2. read calibrate 250, fuse 400, evaluate 300",
    ]
    assert re.fullmatch(r"  3. attack up to 300 images each: the ladder, fgsm, pgd \(about \d+ (s|min)\)", rows[2])
    assert rows[3:] == [
        "  4. diagnostics, figures, sentinels, graphs, bundle",
        "  left out: constellation, without a section",
    ]


def test_it_is_said_without_a_terminal(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = digits_run.config.model_dump()
    content["splits"]["held_out"] = None
    content["detectors"] = {"introspection": {"hidden_layers": ["fc1"], "cycles": 1, "cycle_steps": 10}}
    content["evaluation"] |= {
        "attacked_images": 10,
        "attacks": content["evaluation"]["attacks"][:1],
        "controls": [{"name": "clip", "kind": "clip"}],
    }
    calibrate(Config.model_validate(content), tmp_path / "bundle")
    said = capsys.readouterr().err
    assert "digits: 5 stages, about " in said
    assert "  4. read controls and other images: clip\n" in said
    assert "  left out: held_out: the error estimator learns from fit" in said


@pytest.mark.parametrize(
    ("passes", "expected"),
    [((8.0,), 8.0), ((0.016, 0.8, 0.032, 0.016, 0.016), 0.016), ((0.8, 0.4), 0.4)],
    ids=["a large network is timed once", "the fastest of five", "no more than a second"],
)
def test_a_pass_that_is_held_up_does_not_count(
    passes: tuple[float, ...], expected: float, digits_run: DigitsRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = load_inputs(digits_run.config)
    clock = (tick for seconds in passes for tick in (0.0, seconds))
    monkeypatch.setattr("askance.calibration.pace.time.perf_counter", lambda: next(clock))
    assert seconds_per_image(inputs) == pytest.approx(expected / 16)
    assert list(clock) == []


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (0.01, 89, 91, 3600, 7200)] == ["1 s", "89 s", "2 min", "60 min", "2.0 h"]
