"""Benign changes: which images they are made of, which count, and how calm the fused score then is on digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun
from torch import Tensor
from toy import readings_of

from askance.calibration.benign import KINDS, SEVERITIES, benign_readings, calm, mild_changes, starts
from askance.calibration.controls import CONTROLS, ControlConfig, control
from askance.calibration.harness import Harness, calibration_of
from askance.calibration.images import Images
from askance.calibration.inputs import load_inputs
from askance.calibration.stages import Stages
from askance.judgement import Calibration, Readings
from askance.judgement.conformal import p_value

COUNT = len(KINDS) * len(SEVERITIES)


def test_every_kind_at_every_mild_severity() -> None:
    changes = mild_changes()
    assert len(changes) == len({change.name for change in changes}) == COUNT == 24
    assert (changes[0].kind, changes[0].severity) == ("gaussian", 1)
    assert (changes[1].kind, changes[1].severity) == ("gaussian", 2)
    assert set(CONTROLS) - set(KINDS) == {"clip", "uniform", "webp", "vignette", "rotation"}


def test_each_change_starts_from_other_images_as_far_as_they_go() -> None:
    rows = starts(2, 5)
    assert rows.shape == (COUNT, 2)
    assert rows[:4].tolist() == [[0, 1], [2, 3], [4, 0], [1, 2]]
    enough = starts(3, 1000)
    assert sorted(enough.flatten().tolist()) == list(range(3 * COUNT))
    few = starts(100, 4)
    assert few.tolist() == [[0, 1, 2, 3]] * COUNT  # none twice for one change
    assert starts(0, 5).numel() == 0


def read_as(answers: Callable[[Tensor], Tensor]) -> Callable[[Images, Tensor], Readings]:
    """A stand-in for detectors that read each image's number and its mean, and a classifier that answers `answers`."""

    def read(images: Images, pixels: Tensor) -> Readings:
        numbers = images.x[:, 0, 0, 0].float()
        logits = torch.nn.functional.one_hot(answers(numbers), 2).float()
        return readings_of({"d/number": numbers, "d/mean": pixels.mean(dim=(1, 2, 3))}, logits=logits)

    return read


def numbered(count: int) -> Images:
    pixels = torch.arange(count)[:, None, None, None].expand(count, 1, 8, 8).to(torch.uint8).contiguous()
    return Images(pixels, torch.zeros(count, dtype=torch.long), ("a", "b"))


def test_each_change_is_made_of_its_own_images() -> None:
    images = numbered(200)
    zeros = torch.zeros(200, dtype=torch.long)
    found = benign_readings(images, zeros, 10, read_as(lambda numbers: numbers.long() * 0), 0.9)
    assert len(found) == COUNT
    for i, change in enumerate(mild_changes()):
        rows = starts(10, 200)[i]
        expected = control(change, images[rows].pixels()).mean(dim=(1, 2, 3))
        assert found[i].components["d/number"].tolist() == [float(j % 200) for j in range(10 * i, 10 * i + 10)]
        assert np.allclose(found[i].components["d/mean"], expected), change.name


def test_answers_that_change_do_not_count() -> None:
    zeros = torch.zeros(200, dtype=torch.long)
    found = benign_readings(numbered(200), zeros, 10, read_as(lambda numbers: (numbers % 10 == 3).long()), 0.9)
    assert len(found) == COUNT
    numbers = Readings.joined(found).components["d/number"].tolist()
    assert set(numbers) == {i for i in range(200) if i % 10 != 3}
    assert benign_readings(numbered(200), zeros, 10, read_as(lambda numbers: (numbers % 5 == 3).long()), 0.9) == ()
    assert benign_readings(numbered(200), zeros, 0, read_as(lambda numbers: numbers.long() * 0), 0.9) == ()


def test_a_change_that_alters_answers_is_left_out() -> None:
    zeros = torch.zeros(200, dtype=torch.long)
    third = starts(8, 200)[2]  # of images that no other change is made of
    found = benign_readings(numbered(200), zeros, 8, read_as(lambda numbers: torch.isin(numbers, third).long()), 0.9)
    assert len(found) == COUNT - 1
    assert not np.isin(Readings.joined(found).components["d/number"], third.numpy()).any()


def test_what_kept_its_answer_under_a_mild_change_counts() -> None:
    """Ten images a change: all of the first keep their answer, five of the second, four of the third."""
    before = torch.zeros(COUNT, 10, dtype=torch.long)
    after = before.clone()
    after[1, :5] = after[2, :6] = 1
    kept = calm(before, after, 0.5)
    assert kept.dtype == torch.bool
    assert kept[0].all()
    assert kept[1].tolist() == [i >= 5 for i in range(10)]
    assert not kept[2].any()
    assert kept[3:].all()
    assert not calm(before, after, 0.9)[1].any()  # what is learned from is more than what is promised for


# On digits


@pytest.fixture(scope="module")
def harness(digits_run: DigitsRun, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    folder = tmp_path_factory.mktemp("benign")
    return Harness(load_inputs(digits_run.config), digits_run.bundle.detectors(), Stages(folder, {}, resume=False))


def with_benign(harness: Harness, images: int) -> Harness:
    settings = harness.inputs.settings
    evaluation = settings.evaluation.model_copy(update={"benign_images": images})
    settings = settings.model_copy(update={"evaluation": evaluation})
    return Harness(replace(harness.inputs, settings=settings), harness.detectors, harness.stages)


@pytest.fixture(scope="module")
def calibrations(harness: Harness) -> dict[int, Calibration]:
    return {images: calibration_of(with_benign(harness, images)) for images in (0, 100)}


def flagged(harness: Harness, calibration: Calibration, pixels: Tensor, name: str) -> float:
    """The share of the first evaluation images, in this form, that the fused score calls suspicious."""
    scores = harness.scores(name, harness.inputs.splits["evaluate"][: len(pixels)], pixels)
    fused = calibration.fused
    return float((p_value(fused.fusion.score(scores.readings), fused.table) <= 0.05).mean())


def test_benign_readings_are_of_images_that_kept_their_answer(harness: Harness) -> None:
    assert with_benign(harness, 0).benign("calibrate") == ()
    found = Readings.joined(with_benign(harness, 20).benign("calibrate"))
    assert 0.5 * 20 * COUNT < len(found.logits) <= 20 * COUNT
    assert {len(values) for values in found.components.values()} == {len(found.logits)}


def test_the_calibration_has_tables_of_them(calibrations: dict[int, Calibration]) -> None:
    without, made = calibrations[0].fused, calibrations[100].fused
    assert without.fusion.background.benign.shape[1] == 0
    assert made.fusion.background.benign.shape[1] > 1000
    assert np.array_equal(made.fusion.background.clean, without.fusion.background.clean)
    assert made.table.shape == without.table.shape


@pytest.mark.parametrize(
    ("kind", "at_most"),
    [
        ("blur", 0.15),
        ("jpeg", 0.15),
        ("resize", 0.25),
        ("dimming", 0.15),
        ("contrast", 0.15),
        ("pixelate", 0.25),
        ("fog", 0.3),
        ("vignette", 0.3),
    ],
)
def test_mild_changes_are_flagged_less(
    harness: Harness, calibrations: dict[int, Calibration], kind: str, at_most: float
) -> None:
    """Also vignettes, which nothing was fitted to."""
    change = ControlConfig.model_validate({"name": kind, "kind": kind, "severity": 2})
    pixels = control(change, harness.inputs.splits["evaluate"].pixels())
    before, after = (flagged(harness, calibrations[images], pixels, kind) for images in (0, 100))
    assert after <= at_most
    assert after < 0.6 * before


def test_clean_images_are_flagged_no_more(harness: Harness, calibrations: dict[int, Calibration]) -> None:
    pixels = harness.inputs.splits["evaluate"].pixels()
    before, after = (flagged(harness, calibrations[images], pixels, "clean") for images in (0, 100))
    assert after <= before <= 0.1
