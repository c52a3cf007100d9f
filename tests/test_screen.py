"""Screen: from readings to p-values, flags and verdicts; no request depends on its batch mates."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from toy import NAMES, Trained, Whole, auroc, whole

from askance.answers import FUSED, Answer, Verdict
from askance.detectors import Screen, tap_for
from askance.detectors.reader import TorchReader, as_read, read_all
from askance.errors import ScreenError
from askance.judgement import Levels, Readings
from askance.judgement.conformal import p_value
from askance.screening.preprocessing import Preprocessing
from askance.screening.reading import Reading, in_numbers

KINDS = ("library_network", "introspection", "self_organizing_map", "semantic_signature", "constellation")

# Levels and preprocessing


def numbers(readings: dict[str, Reading[torch.Tensor]], logits: torch.Tensor) -> Readings:
    read = as_read(readings, logits)
    return in_numbers(read.readings, read.logits)


def test_levels_are_inclusive() -> None:
    levels = Levels()
    assert levels.items() == (("suspect", 0.05), ("adversarial", 0.01))
    for p, flags, verdict in (
        (1.0, (), Verdict.CLEAN),
        (0.0501, (), Verdict.CLEAN),
        (0.05, ("suspect",), Verdict.SUSPECT),
        (0.0101, ("suspect",), Verdict.SUSPECT),
        (0.01, ("suspect", "adversarial"), Verdict.ADVERSARIAL),
        (0.001, ("suspect", "adversarial"), Verdict.ADVERSARIAL),
    ):
        assert levels.flags(p) == flags
        assert levels.verdict(p) is verdict


@pytest.mark.parametrize("bad", [{"suspect": 0.001}, {"adversarial": 0.0}, {"suspect": 1.0}, {"suspicious": 0.1}])
def test_levels_out_of_order_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"0 < adversarial <= suspect <= 0\.5|Extra inputs are not permitted"):
        Levels.model_validate(bad)


def test_preprocessing_by_hand() -> None:
    shape: dict[str, Any] = {"channels": 3, "height": 1, "width": 1}
    made = Preprocessing(**shape, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    assert made.shape == (3, 1, 1)
    pixels = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert made.normalize(pixels).flatten().tolist() == [1.0, 1.0, -0.5]
    assert made.normalize(pixels.double()).dtype == torch.float64
    with pytest.raises(ValidationError, match="one number for each of the 3 channels"):
        Preprocessing(**shape, mean=(0.5,), std=(0.5, 1.0, 2.0))
    with pytest.raises(ValidationError, match="std must be positive"):
        Preprocessing(**shape, mean=(0.5, 0.0, 1.0), std=(0.5, 0.0, 2.0))
    with pytest.raises(ValidationError, match="divide those of pixels from 0 to 255 by 255"):
        Preprocessing(**shape, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))


# Screen


@pytest.fixture(scope="module")
def screen(trained: Trained) -> Screen:
    return trained.screen()


def screened(results: list[Answer | ScreenError]) -> list[Whole]:
    return [whole(result) for result in results]


def test_answers_are_the_classifiers_and_the_tables(screen: Screen, trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    images = images[:40]
    answers = screened(screen(images))
    with (
        torch.no_grad(),
        tap_for(trained.classifier, trained.detectors.values(), trained.preprocessing.normalize) as tap,
    ):
        capture = tap(images)
    readings = read_all(trained.detectors, capture)
    probabilities = capture.logits.softmax(dim=1)
    calibration = trained.calibration
    assert calibration is not None
    fused = calibration.fused.fusion.score(numbers(readings, capture.logits))
    for i, answer in enumerate(answers):
        assert answer.index == int(capture.predicted[i])
        assert answer.label == NAMES[answer.index]
        assert answer.probabilities == pytest.approx(probabilities[i].tolist(), abs=1e-6)
        assert answer.probability == max(answer.probabilities)
        assert tuple(word.name for word in answer.detectors) == KINDS
        for word in answer.detectors:
            score = readings[word.name].score[i]
            clean = calibration.tables[word.name]
            assert word.score == pytest.approx(float(score), abs=1e-4)
            assert word.p_value == (1 + int((clean >= float(score)).sum())) / (len(clean) + 1)
            assert word.flags == calibration.levels.flags(word.p_value)
            assert word.explanation is None
        assert answer.fused.name == FUSED
        assert answer.fused.score == pytest.approx(float(fused[i]), abs=1e-6)
        assert answer.fused.p_value == float(p_value(fused[i : i + 1], calibration.fused.table)[0])
        assert answer.verdict is calibration.levels.verdict(answer.fused.p_value)


def test_verdict_follows_the_fused_p_value_and_nothing_else(screen: Screen, trained: Trained) -> None:
    images, labels = trained.part("evaluate")
    attacked = trained.attack(images, labels, 0.2, 20)
    seen = set()
    for answer in screened(screen(torch.cat([images, attacked]))):
        p = answer.fused.p_value
        expected = "ADVERSARIAL" if p <= 0.01 else "SUSPECT" if p <= 0.05 else "CLEAN"
        assert answer.verdict == expected
        seen.add(expected)
    assert seen == {"CLEAN", "SUSPECT", "ADVERSARIAL"}


def test_clean_images_are_flagged_no_more_than_targeted(screen: Screen, trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    answers = screened(screen(images))
    for alpha, most in ((0.05, 31), (0.01, 11)):  # 99.9% of what 300 calibration scores and 297 draws allow
        for words in zip(*((a.fused, *a.detectors) for a in answers), strict=True):
            assert sum(word.p_value <= alpha for word in words) <= most, words[0].name


FLOORS = {
    "library_network": 0.65,
    "introspection": 0.52,
    "self_organizing_map": 0.75,
    "semantic_signature": 0.6,  # the constellation's floor is in its own tests: it is for attacks near the boundary
}


@pytest.mark.parametrize(("epsilon", "steps"), [(0.2, 1), (0.2, 20)], ids=["FGSM", "PGD"])
def test_every_detector_ranks_successful_attacks_above_clean(trained: Trained, epsilon: float, steps: int) -> None:
    """Floors under quick fits; the pipeline's own are higher."""
    images, labels = trained.part("evaluate")
    attacked_images = trained.attack(images, labels, epsilon, steps)
    detectors = trained.detectors.values()
    with torch.no_grad(), tap_for(trained.classifier, detectors, trained.preprocessing.normalize) as tap:
        clean, attacked = tap(images), tap(attacked_images)
    success = (clean.predicted == labels) & (attacked.predicted != labels)
    assert int(success.sum()) > 200
    before, after = read_all(trained.detectors, clean), read_all(trained.detectors, attacked)
    for kind, floor in FLOORS.items():
        assert auroc(before[kind].score, after[kind].score[success]) > floor, kind
    assert trained.calibration is not None
    fusion = trained.calibration.fused.fusion
    joined = numbers(before, clean.logits), numbers(after, attacked.logits)
    peaceful, suspicious = (torch.from_numpy(fusion.score(readings)) for readings in joined)
    assert auroc(peaceful, suspicious[success]) > 0.8
    assert joined[0].two_sided <= set(joined[0].components)


def words(answer: Whole) -> list[float]:
    return [answer.fused.score, *(word.score for word in answer.detectors)]


def test_scores_alone_equal_scores_in_any_batch(screen: Screen, trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    images = images[:48]
    together = screened(screen(images))
    backwards = screened(screen(images.flip(0)))[::-1]
    threes = [answer for block in images.split(3) for answer in screened(screen(block))]
    alone = [screened(screen(image.unsqueeze(0)))[0] for image in images]
    for i, answer in enumerate(together):
        for other in (backwards[i], threes[i], alone[i]):
            assert other.index == answer.index
            assert words(other) == pytest.approx(words(answer), abs=1e-5)
            assert other.verdict is answer.verdict


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30, 3e38])
def test_a_bad_item_fails_alone(screen: Screen, trained: Trained, poison: float, explain: bool) -> None:
    images, _ = trained.part("evaluate")
    images = images[:6]
    expected = screened(screen(images, explain))
    poisoned = images.clone()
    poisoned[2] = poison
    poisoned[4, 0, 3, 3] = poison
    results = screen(poisoned, explain)
    assert len(results) == 6
    for i in (0, 1, 3, 5):
        result = whole(results[i])
        assert words(result) == pytest.approx(words(expected[i]), abs=1e-5)
        assert result.verdict is expected[i].verdict
    for i in (2, 4):
        found = results[i]
        if isinstance(found, ScreenError):
            assert str(found) == "the classifier gave NaN or infinity for this image"
        else:  # a number beyond reason may still give finite scores, never a typical one
            assert abs(poison) >= 1e30
            assert math.isfinite(poison)
            assert all(math.isfinite(score) for score in words(whole(found)))
            assert found.verdict is not Verdict.CLEAN


def test_explanations_for_those_who_ask(screen: Screen, trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    answers = screened(screen(images[:3], [True, False, True]))
    assert [all(word.explanation is not None for word in a.detectors) for a in answers] == [True, False, True]
    assert [any(word.explanation is not None for word in a.detectors) for a in answers] == [True, False, True]
    assert all(a.fused.explanation is None for a in answers)
    by_name = {word.name: word.explanation for word in answers[0].detectors}
    assert {name: set(value or ()) for name, value in by_name.items()} == {
        "library_network": {"consistency", "layers"},
        "introspection": {"map_point", "estimated_error", "confidence", "log10_reconstruction_error"},
        "self_organizing_map": {"layers"},
        "semantic_signature": {"untypicality", "layers"},
        "constellation": {"readings", "clean_share_above"},
    }
    assert words(screened(screen(images[:3]))[0]) == pytest.approx(words(answers[0]), abs=1e-6)


def test_one_classifier_call_serves_all_and_stages_are_observed(screen: Screen, trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    calls: list[int] = []
    handle = trained.classifier.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    stages: list[tuple[str, float]] = []
    screen(images[:7], observe=lambda stage, seconds: stages.append((stage, seconds)))
    handle.remove()
    assert calls[0] == 7 * (1 + 5)  # each image and its five views
    assert calls[1:] in ([], [1 + 5], [1 + 5] * 2)  # and alone what is so near a level that last bits decide
    assert [stage for stage, _ in stages] == ["classify", *KINDS, "fused"] * len(calls)
    assert all(0 <= seconds < 10 for _, seconds in stages)


def test_eight_threads_through_one_screen(screen: Screen, trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    expected = [screened(screen(image.unsqueeze(0)))[0] for image in images[:80]]

    def work(worker: int) -> list[Whole]:
        rows = range(worker, 80, 8)
        return [screened(screen(images[i : i + 1]))[0] for i in rows for _ in range(2)][::2]

    with ThreadPoolExecutor(8) as pool:
        for worker, answers in enumerate(pool.map(work, range(8))):
            for answer, i in zip(answers, range(worker, 80, 8), strict=True):
                assert answer == expected[i]


def test_screening_records_no_gradients_and_closing_removes_the_hooks(trained: Trained) -> None:
    mine = trained.copy()
    for module in mine.classifier.modules():  # the module's `screen` hooks were copied along
        module._forward_hooks.clear()
    images: Tensor = mine.part("evaluate")[0][:2].requires_grad_(True)
    screen = mine.screen()
    screened(screen(images))
    assert all(parameter.grad is None for parameter in mine.classifier.parameters())
    assert sum(len(m._forward_hooks) for m in mine.classifier.modules()) == len(set(screen.layers))
    screen.close()
    assert sum(len(m._forward_hooks) for m in mine.classifier.modules()) == 0
    logits = mine.classifier(mine.preprocessing.normalize(images))
    assert F.softmax(logits, dim=1).shape == (2, 10)


def test_class_names_must_match_the_logits(trained: Trained) -> None:
    from askance.errors import AskanceError

    assert trained.calibration is not None
    images, labels = trained.part("evaluate")
    nine = images[labels == 9][:3]
    with pytest.raises(AskanceError, match="10 outputs for 9 class names"):
        reader = TorchReader(trained.classifier, trained.detectors, trained.preprocessing)
        Screen(reader, trained.preprocessing, NAMES[:9], trained.detectors, trained.calibration)(nine)
