"""Reasons: what kind of suspicion it is, each kind with a calibrated p-value of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from service_support import noise, tiny_screen
from torch import Tensor
from toy import Trained, Whole, readings_of, whole

from askance.answers import DOUBTFUL, FUSED, MANIPULATED, UNFAMILIAR, Answer, Prediction, Verdict, said_of
from askance.detectors.reader import read
from askance.evaluation import AttackFigures, ClassifierFigures, Evaluation
from askance.judgement import Background, Calibration, Fusion, Readings
from askance.judgement.arrays import Doubles
from askance.judgement.conformal import p_value
from askance.judgement.margins import NOISE, around, is_close, spread
from askance.output import print_evaluation, print_verdicts, verdict_rows
from askance.service.client_messages import answer_of
from askance.service.pb.askance.v1 import screening_pb2 as pb

NAMES = ("x/a", "x/b", "y/c")


def scores_of(background: Background, readings: Readings) -> dict[str, Doubles]:
    return Fusion.untrained(background).scores(readings)


def drawn(count: int, seed: int, shift: float = 0.0) -> Readings:
    """Three components, the second untypical either way, of images in three classes."""
    g = np.random.default_rng(seed)
    values = g.standard_normal((3, count)) + shift
    return readings_of(dict(zip(NAMES, values, strict=True)), {"x/b"}, 3 * g.standard_normal((count, 3)))


# Unfamiliar


def test_unfamiliar_by_hand() -> None:
    """-log of the harmonic mean of p above for both components, and below for the one that is two-sided."""
    clean = readings_of({"a": np.array([1.0, 2.0, 3.0]), "b": np.array([30.0, 10.0, 20.0])}, {"a"})
    asked = readings_of({"a": np.array([2.5, 0.0, 2.5]), "b": np.array([40.0, 20.0, 0.0])})
    ps = ((2 / 4, 1 / 4, 3 / 4), (4 / 4, 3 / 4, 1 / 4), (2 / 4, 4 / 4, 3 / 4))  # a above, b above, a below
    found = scores_of(Background.fit(clean), asked)[UNFAMILIAR]
    assert found.dtype == np.float64
    assert np.exp(-found).tolist() == pytest.approx([3 / sum(1 / p for p in row) for row in ps])


def test_neither_a_benign_change_nor_the_answer_makes_an_image_familiar() -> None:
    clean, asked = drawn(60, 0), drawn(40, 2, 1.0)
    alone = Background.fit(clean)
    among_benign = Background.fit(clean, drawn(60, 1, 1.0))
    assert np.array_equal(scores_of(among_benign, asked)[UNFAMILIAR], scores_of(alone, asked)[UNFAMILIAR])
    other_answers = replace(asked, logits=asked.logits[:, ::-1] * 3)
    assert np.array_equal(scores_of(alone, other_answers)[UNFAMILIAR], scores_of(alone, asked)[UNFAMILIAR])
    # to the fused score benign changes do excuse, and answers matter
    speaking = [one.surprisals(one.values(asked)).speaking for one in (alone, among_benign)]
    assert (speaking[1] < speaking[0]).any()


def test_far_out_is_unfamiliar_on_the_suspicious_sides_alone() -> None:
    made = Background.fit(drawn(300, 0))
    middle = dict.fromkeys(NAMES, np.zeros(3))
    usual = float(scores_of(made, readings_of(middle, logits=np.zeros((3, 3))))[UNFAMILIAR][0])
    for name, two_sided in (("x/a", False), ("x/b", True), ("y/c", False)):
        asked = readings_of(middle | {name: np.array([-9.0, 0.0, 9.0])}, logits=np.zeros((3, 3)))
        low, typical, high = scores_of(made, asked)[UNFAMILIAR].tolist()
        assert typical == usual
        assert high > usual + 3
        assert (low > usual + 3) is two_sided


def test_a_single_pass_knows_its_own_components_alone() -> None:
    clean, asked = drawn(60, 0), drawn(9, 1)
    few = Background.fit(clean).only(("x/b",))
    alone = Background.fit(readings_of({"x/b": clean.components["x/b"]}, {"x/b"}, clean.logits))
    assert np.array_equal(scores_of(few, asked)[UNFAMILIAR], scores_of(alone, asked)[UNFAMILIAR])
    assert not np.array_equal(scores_of(few, asked)[UNFAMILIAR], scores_of(Background.fit(clean), asked)[UNFAMILIAR])


# Doubtful


def test_doubtful_by_hand() -> None:
    logits = np.array([[3.0, 1.0, -5.0], [1.0, 1.0, 0.0], [-4.0, 0.0, 7.5]])
    found = scores_of(Background.fit(drawn(20, 0)), readings_of(dict.fromkeys(NAMES, np.zeros(3)), logits=logits))
    assert found[DOUBTFUL].tolist() == [-2.0, 0.0, -7.5]


# What a calibration makes of them


def test_tables_are_the_clean_images_of_the_fuse_split() -> None:
    calibrate, fuse, changed = drawn(60, 0), drawn(50, 1), drawn(50, 2, 2.0)
    made = Calibration.fit(calibrate, fuse, benign=(changed, [changed]), viewers=["y"])
    background = made.fused.fusion.background
    for name, table in made.reasons.items():
        assert np.array_equal(table, np.sort(scores_of(background, fuse)[name]))
        assert table.dtype == np.float64
    assert tuple(made.reasons) == (UNFAMILIAR, DOUBTFUL)
    assert made.single_pass is not None
    single, whole_one = made.in_a_single_pass().reasons, made.reasons
    assert np.array_equal(single[DOUBTFUL], whole_one[DOUBTFUL])
    few = background.only(("x/a", "x/b"))
    assert np.array_equal(single[UNFAMILIAR], np.sort(scores_of(few, fuse)[UNFAMILIAR]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_p_values_are_in_range_and_of_clean_images_no_smaller_than_promised(seed: int, shift: float) -> None:
    made = Calibration.fit(drawn(60, seed), drawn(99, seed + 1))
    fusion = made.fused.fusion
    for name, score in fusion.scores(drawn(30, seed + 2, shift)).items():
        p = p_value(score, made.judged[name])
        assert (p >= 1 / 100).all()
        assert (p <= 1).all()
    # of the table's own images k of n + 1 are the k least: no level flags more of them than its share
    for name, score in fusion.scores(drawn(99, seed + 1)).items():
        p = p_value(score, made.judged[name])
        assert all(float((p <= alpha).mean()) <= alpha * 100 / 99 for alpha in (0.01, 0.05, 0.5))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1, 1), st.floats(-1, 1))
def test_the_ends_hold_every_score_within_the_margins(seed: int, up: float, wider: float) -> None:
    made, asked = Background.fit(drawn(60, seed)), drawn(9, seed + 1, 1.0)
    raw = asked.stacked(NAMES)
    off = around(raw, spread(made.clean[:3]))[1] - raw
    signs = np.random.default_rng(seed).integers(0, 2, raw.shape) * 2 - 1
    first = np.eye(3)[asked.predicted]
    logits = asked.logits + 0.99 * NOISE * wider * np.abs(asked.logits).max(axis=1, keepdims=True) * first
    moved = readings_of(dict(zip(NAMES, raw + 0.99 * up * signs * off, strict=True)), logits=logits)
    for readings in (asked, moved):
        for name, score in scores_of(made, readings).items():
            _, low, high = Fusion.untrained(made).bounds(asked)[name]
            # where two classes all but tie they may change places: such images are judged again for that alone
            kept = ~is_close(asked.logits)
            assert (low[kept] <= score[kept]).all()
            assert (score[kept] <= high[kept]).all()


def test_the_ends_reach_over_a_step_either_way() -> None:
    """A reading passes 3 when it is 0.358 above it (of a spread of 179 a thousandth, twice), or below 4 as far."""
    made = Background.fit(readings_of({"a": torch.arange(200.0)}, {"a"}))
    for value, changes in ((3.36, True), (3.64, True), (3.0, False)):  # by 0.179 it may be off
        _, (low,), (high,) = Fusion.untrained(made).bounds(readings_of({"a": np.array([value])}))[UNFAMILIAR]
        (score,) = scores_of(made, readings_of({"a": np.array([value])}))[UNFAMILIAR]
        assert low < score < high
        assert (float(high - low) > 1e-6) is changes, value


# What a Screen says


@pytest.fixture(scope="module")
def clean(trained: Trained) -> list[Whole]:
    return [whole(one) for one in trained.screen()(trained.part("evaluate")[0])]


def p_of(answer: Whole, name: str) -> float:
    return next(reason.p_value for reason in answer.reasons if reason.name == name)


def test_each_verdict_has_its_reasons(trained: Trained, clean: list[Whole]) -> None:
    assert trained.calibration is not None
    levels = trained.calibration.levels
    attacked = trained.screen()(trained.attack(*trained.part("evaluate"), 0.2, 20))
    for answer in (*clean, *map(whole, attacked)):
        assert [reason.name for reason in answer.reasons] == [MANIPULATED, UNFAMILIAR, DOUBTFUL]
        for reason in answer.reasons:
            assert 1 / 301 <= reason.p_value <= 1
            assert reason.flags == levels.flags(reason.p_value)
        assert p_of(answer, MANIPULATED) == answer.fused.p_value
        assert answer.verdict is levels.verdict(p_of(answer, MANIPULATED))
    # the others are flags of their own: no verdict follows from them
    flagged = [one for one in clean if any(reason.flags for reason in one.reasons[1:])]
    assert any(one.verdict is Verdict.CLEAN for one in flagged)


def test_scores_are_the_backgrounds_and_p_values_the_tables(trained: Trained, clean: list[Whole]) -> None:
    assert trained.calibration is not None
    with torch.no_grad(), trained.screen().reader.tap as tap:
        numbers = read(trained.detectors, tap(trained.part("evaluate")[0]))
    for name, score in trained.calibration.fused.fusion.scores(numbers).items():
        p = p_value(score, trained.calibration.judged[name]).tolist()
        said = MANIPULATED if name == FUSED else name
        differing = [i for i, one in enumerate(clean) if p_of(one, said) != pytest.approx(p[i], abs=1e-9)]
        assert len(differing) <= 3  # a rank on the last bits of another batch


def test_of_held_out_digits_no_more_are_flagged_than_promised(clean: list[Whole]) -> None:
    for alpha, most in ((0.05, 31), (0.01, 11)):  # 99.9% of what 300 calibration scores and 297 draws allow
        for name in (UNFAMILIAR, DOUBTFUL):
            assert sum(p_of(answer, name) <= alpha for answer in clean) <= most, (name, alpha)


def test_images_on_the_decision_boundary_are_doubtful(trained: Trained) -> None:
    """Where DeepFool and its kin stop: half way to another class, to the last bit."""
    images, _ = trained.part("evaluate")
    one, other = images[:40], images[40:80]

    def predicted(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = trained.classifier(trained.preprocessing.normalize(pixels)).argmax(dim=1)
        return found

    start = predicted(one)
    kept = start != predicted(other)
    low, high = torch.zeros(40, 1, 1, 1), torch.ones(40, 1, 1, 1)
    for _ in range(20):
        middle = (low + high) / 2
        same = (predicted(torch.lerp(one, other, middle)) == start)[:, None, None, None]
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    answers = [whole(answer) for answer in trained.screen()(torch.lerp(one, other, high)[kept])]
    assert len(answers) > 25
    for answer in answers:
        assert "adversarial" in next(r.flags for r in answer.reasons if r.name == DOUBTFUL)


def test_another_camera_is_unfamiliar_and_its_answers_need_not_be_doubtful(trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    inverted = [whole(answer) for answer in trained.screen()(1 - images[:100])]
    assert sum(p_of(answer, UNFAMILIAR) <= 0.05 for answer in inverted) >= 80
    assert sum(p_of(answer, DOUBTFUL) > 0.05 for answer in inverted) >= 20


# Batch mates


@pytest.mark.parametrize("name", [UNFAMILIAR, DOUBTFUL])
def test_an_image_on_a_reasons_threshold_is_judged_again_alone(name: str) -> None:
    images = torch.stack([torch.from_numpy(noise(seed)).float() / 255 for seed in range(6)])
    screen = tiny_screen()
    background = screen.calibration.fused.fusion.background
    with torch.no_grad():
        numbers = read(screen.reader.detectors, screen.reader.tap(images))
    score = scores_of(background, numbers)[name][2]

    def judged_alone(step: float) -> int:
        """Of images whose class, verdict and other flags nothing decides: all tables but one are out of reach."""
        far = np.full(200, 1e6)
        tables = {UNFAMILIAR: far, DOUBTFUL: far, name: np.full(200, score + step)}
        fused = replace(screen.calibration.fused, table=far, unfamiliar=tables[UNFAMILIAR])
        calibration = replace(screen.calibration, fused=fused, doubtful=tables[DOUBTFUL], tables={})
        return int(calibration.undecided(numbers, calibration.bounds(numbers, {}))[2])

    assert judged_alone(1e-10) == 1
    assert judged_alone(-1e-10) == 1
    assert judged_alone(50.0) == 0
    assert judged_alone(-50.0) == 0


def test_flags_alone_are_flags_in_any_batch(trained: Trained) -> None:
    images, _ = trained.part("evaluate")
    screen = trained.screen()
    images = torch.cat([images[:30], 1 - images[:10]])
    together = [whole(one).reasons for one in screen(images)]
    for i, reasons in enumerate(together):
        (alone,) = screen(images[i : i + 1])
        assert [reason.flags for reason in whole(alone).reasons] == [reason.flags for reason in reasons]


# What people see


def answer_with(**ps: float) -> Answer:
    """A screen's answer whose reasons have other p-values."""
    (answer,) = tiny_screen()(torch.from_numpy(noise(1))[None].float() / 255)
    assert isinstance(answer, Answer)
    assert answer.screening is not None
    levels = tiny_screen().calibration.levels
    changed = tuple(
        replace(one, p_value=ps.get(one.name, 0.7), flags=levels.flags(ps.get(one.name, 0.7)))
        for one in answer.screening.reasons
    )
    return replace(answer, screening=replace(answer.screening, reasons=changed))


def test_reasons_in_json() -> None:
    content = answer_with(unfamiliar=0.03).as_dict()["reasons"]
    assert json.loads(json.dumps(content)) == [
        {"name": "manipulated", "p_value": 0.7, "flags": []},
        {"name": "unfamiliar", "p_value": 0.03, "flags": ["suspect"]},
        {"name": "doubtful", "p_value": 0.7, "flags": []},
    ]
    assert "reasons" not in Answer(Prediction(0, "cat", (1.0,)), Verdict.CLEAN, reason="so").as_dict()


def test_a_server_that_knows_no_reasons_gives_none() -> None:
    sent = pb.ScreenResponse(
        prediction=pb.Prediction(name="cat", probability=1), probabilities=[1], verdict=pb.CLEAN, p_value=0.5, score=0
    )
    answer = answer_of(sent)
    assert answer.screening is not None
    assert answer.screening.reasons == ()
    assert answer.as_dict()["reasons"] == []
    assert "<p>" not in answer._repr_html_()


SAID = "unfamiliar: not like the images calibrated on (p = 0.03); doubtful: the classifier is unsure (p = 0.002)"


def test_reasons_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    flagged, calm = answer_with(unfamiliar=0.03, doubtful=0.002), answer_with()
    assert f"<p>{SAID}</p>" in flagged._repr_html_()
    assert "<p>" not in calm._repr_html_()
    print_verdicts(verdict_rows([Path("a.png"), Path("b.png")], [flagged, calm], {}), explain=False)
    lines = capsys.readouterr().out.splitlines()
    assert f"a.png: {SAID}" in lines
    assert not any(line.startswith("b.png: ") for line in lines)
    assert said_of([]) == ""
    # a newer server may know more kinds than we have words for
    assert said_of([("strange", 0.5)]) == "strange: strange (p = 0.5)"


def test_the_evaluation_prints_what_each_reason_flags(capsys: pytest.CaptureFixture[str]) -> None:
    def rates(*shares: float) -> dict[str, dict[str, float]]:
        return {
            scorer: {"suspect": share, "adversarial": share / 10}
            for scorer, share in zip(("fused", UNFAMILIAR, DOUBTFUL), shares, strict=True)
        }

    evaluation = Evaluation(
        classifier=ClassifierFigures(accuracy=0.9, images=200),
        target_flag_rate={"suspect": 0.05, "adversarial": 0.01},
        detector_clean_flag_rate=rates(0.05, 0.04, 0.06),
        attacks={
            "deepfool": AttackFigures(attempted=9, successful=5, flag_rate=rates(0.3, 0.2, 1.0)),
            "never": AttackFigures(attempted=9, successful=0),
        },
    )
    print_evaluation(evaluation)
    shown = capsys.readouterr().out.partition("share flagged by reason")[2]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "%" in line]
    assert rows == [
        ["clean", "5.0%", "0.5%", "4.0%", "0.4%", "6.0%", "0.6%"],
        ["deepfool", "30.0%", "3.0%", "20.0%", "2.0%", "100.0%", "10.0%"],
    ]
    # figures that know no reasons, such as an older bundle's, have no such table
    print_evaluation(
        evaluation.model_copy(update={"detector_clean_flag_rate": {"fused": {"suspect": 0.05, "adversarial": 0}}})
    )
    assert "share flagged by reason" not in capsys.readouterr().out
