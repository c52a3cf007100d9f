"""Second looks: who gets one, by which table it is judged, what it may cost, and a server that takes them."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_support import refused, replace_tensors
from hypothesis import given
from hypothesis import strategies as st
from service_support import build_tiny, publish_tiny
from toy import Trained

from askance.__main__ import run
from askance.answers import FUSED, Answer
from askance.classifiers import build_classifier
from askance.detectors.bundle import Bundle
from askance.errors import BundleError
from askance.judgement import Calibration, Readings
from askance.judgement.calibration import LOOKED_AT, second_look_scores
from askance.screening.reading import in_numbers, slack_of
from askance.screening.screen import Screen
from askance.screening.second_look import BURST, STAGE, Budget, SecondLookScreen
from askance.service.client import Client
from askance.service.launch import launched
from askance.service.runtime.model import LoadedBundle

VIEWER = "constellation"


def both(path: Path) -> tuple[Screen, Screen]:
    """In a single pass, and with views."""
    bundle = Bundle.open(path)
    first, whole = (bundle.screen(build_classifier, single_pass=single) for single in (True, False))
    return first, whole


def answers(screen: Screen, images: torch.Tensor) -> list[Answer]:
    found = screen(images)
    assert all(isinstance(one, Answer) for one in found)
    return [one for one in found if isinstance(one, Answer)]


def threshold_of(screen: Screen) -> float:
    look = screen.calibration.second_look
    assert look is not None
    return look.threshold


@pytest.fixture(scope="module")
def images(trained: Trained) -> torch.Tensor:
    clean, labels = (part[:100] for part in trained.part("evaluate"))
    return torch.cat([clean, *(trained.attack(clean[:40], labels[:40], 0.2, steps) for steps in (1, 5, 20))])


# Who gets one


def test_suspicious_images_have_the_words_of_a_second_look_and_the_others_those_of_the_first(
    published: Path, images: torch.Tensor
) -> None:
    first, whole = both(published)
    threshold, table = threshold_of(whole), whole.calibration.at_a_second_look().fused.table
    told: list[tuple[int, int]] = []
    stages: list[str] = []
    screen = SecondLookScreen(first, whole, 1.0)
    screen.notify = lambda taken, refused: told.append((taken, refused))
    singly, again = answers(first, images), answers(whole, images)
    found = [
        one
        for part in images.split(32)
        for one in screen(part, observe=lambda stage, _: stages.append(stage))
        if isinstance(one, Answer)
    ]
    looked = 0
    for single, second, one in zip(singly, again, found, strict=True):
        assert one.screening is not None and single.screening is not None and second.screening is not None
        assert [word.name for word in one.screening.detectors] == list(first.detectors)
        assert VIEWER not in first.detectors
        assert single.score is not None and second.score is not None
        if single.score < threshold:
            assert one == single
            continue
        looked += 1
        assert one.score is not None
        assert one.score == pytest.approx(second.score, rel=1e-4)
        p = (1 + int((table >= one.score).sum())) / (len(table) + 1)  # by the second look's own table
        assert one.p_value == pytest.approx(p)
        levels = whole.calibration.levels
        assert one.screening.fused.flags == levels.flags(p)
        assert one.verdict is levels.verdict(p)
        assert one.screening.reasons[0].p_value == one.p_value
    assert 0 < looked < len(images)
    assert sum(taken for taken, _ in told) == looked
    assert not any(refused for _, refused in told)
    assert STAGE in stages and STAGE in screen.stages


def test_an_image_is_answered_alone_as_in_a_batch(published: Path, images: torch.Tensor) -> None:
    screen = SecondLookScreen(*both(published), 1.0)
    together = answers(screen, images)
    alone = [answer for image in images for answer in answers(screen, image[None])]
    for one, other in zip(together, alone, strict=True):
        assert (one.verdict, one.label) == (other.verdict, other.label)
        assert one.p_value == pytest.approx(other.p_value, abs=1 / 301 + 1e-9)


def test_which_side_of_the_threshold_is_judged_alone_where_last_bits_decide(published: Path) -> None:
    first, _ = both(published)
    clean = first.reader(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    numbers = in_numbers(clean.readings, clean.logits)
    bounds = first.calibration.bounds(numbers, slack_of(clean.readings))
    scores = bounds[FUSED].value
    on_the_edge = first.calibration.looking_again_from(float(scores[3])).undecided(numbers, bounds)
    assert on_the_edge[3]
    far = first.calibration.looking_again_from(float(scores.max()) + 100).undecided(numbers, bounds)
    assert np.array_equal(far, first.calibration.undecided(numbers, bounds))


def test_what_the_budget_refuses_keeps_the_first_look(published: Path, images: torch.Tensor) -> None:
    first, whole = both(published)
    screen = SecondLookScreen(first, whole, 0.01)
    told: list[tuple[int, int]] = []
    screen.notify = lambda taken, refused: told.append((taken, refused))
    attacked = images[100:].repeat(2, 1, 1, 1)
    singly = answers(first, attacked)
    for part in attacked.split(60):
        screen(part)
    taken, refused = (sum(counts) for counts in zip(*told, strict=True))
    suspicious = sum(one.score is not None and one.score >= threshold_of(whole) for one in singly)
    assert taken + refused == suspicious
    assert refused > 0
    assert taken <= 0.01 * len(attacked) + BURST
    assert answers(screen, attacked[:40]) == singly[:40]  # nothing is left of the budget


@given(st.floats(0.001, 1), st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), max_size=60))
def test_a_budget_grants_its_share_and_a_burst_and_no_more(share: float, batches: list[tuple[int, int]]) -> None:
    budget, granted, images = Budget(share), 0, 0
    for suspicious, others in batches:
        got = budget.grant(suspicious, suspicious + others)
        assert 0 <= got <= suspicious
        granted, images = granted + got, images + suspicious + others
        assert granted <= share * images + BURST + 1e-6
    if share * images >= 1 and sum(suspicious for suspicious, _ in batches) <= BURST:
        assert granted == sum(suspicious for suspicious, _ in batches)  # a burst is there from the beginning


# What it promises


def readings(count: int, seed: int) -> Readings:
    """Of two detectors, the second of which needs views, on clean images."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(size=count)
    parts = {name: (shared + draw.normal(size=count)).astype(np.float32) for name in ("plain/a", "viewer/b")}
    scores = {name.partition("/")[0]: values for name, values in parts.items()}
    logits = draw.normal(size=(count, 3)).astype(np.float32) * 3
    return Readings(scores, parts, frozenset(), logits)


def test_clean_images_are_flagged_no_oftener_than_promised_whatever_the_budget_allows() -> None:
    flagged = {allowed: np.zeros(2) for allowed in (True, False)}
    looked, rounds, images = 0.0, 40, 500
    for seed in range(rounds):
        calibration = Calibration.fit(readings(400, 3 * seed), readings(400, 3 * seed + 1), viewers=["viewer"])
        assert calibration.second_look is not None and calibration.single_pass is not None
        assert calibration.single_pass.fusion.names == ("plain/a",)
        fresh, threshold = readings(images, 3 * seed + 2), calibration.second_look.threshold
        plain = replace(fresh, scores={"plain": fresh.scores["plain"]})
        single = calibration.in_a_single_pass().judge(plain)["fused"]
        again = calibration.at_a_second_look().judge(fresh)["fused"]
        suspicious = single[0] >= threshold
        looked += suspicious.mean() / rounds
        for allowed, counts in flagged.items():
            p = np.where(suspicious & allowed, again[1], single[1])
            counts += [(p <= alpha).mean() / rounds for _, alpha in calibration.levels.items()]
    assert looked == pytest.approx(LOOKED_AT, abs=0.03)
    for counts in flagged.values():
        # 20,000 images, and tables of 400: their own scatter is half a per cent of all at 5%, over 40 of them .17%
        assert 0.035 <= counts[0] <= 0.05 + 3 * 0.0025
        assert 0.004 <= counts[1] <= 0.01 + 3 * 0.0012


def test_scores_rank_those_that_are_looked_at_again_above_all_others() -> None:
    calibration = Calibration.fit(readings(300, 0), readings(300, 1), viewers=["viewer"])
    look, single = calibration.second_look, calibration.single_pass
    assert look is not None and single is not None
    fresh = readings(200, 2)
    scores = second_look_scores(look.threshold, single.fusion, calibration.fused.fusion, fresh)
    suspicious = single.fusion.score(fresh) >= look.threshold
    assert scores[suspicious].min() > scores[~suspicious].max()
    assert np.array_equal(scores[suspicious], calibration.fused.fusion.score(fresh)[suspicious])
    order = np.argsort(single.fusion.score(fresh)[~suspicious])
    assert (np.diff(scores[~suspicious][order]) >= 0).all()


def test_without_a_detector_that_needs_views_there_is_none() -> None:
    assert Calibration.fit(readings(300, 0), readings(300, 1)).second_look is None


# In a bundle


def test_a_bundle_keeps_it(published: Path) -> None:
    calibration = Bundle.open(published).calibration()
    assert calibration.second_look is not None
    again = calibration.at_a_second_look()
    assert np.array_equal(again.fused.table, calibration.second_look.table)
    assert calibration.in_a_single_pass().second_look is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda values: values * torch.nan, "fused_second_look/threshold is not one finite float64 number"),
        (lambda values: values.repeat(2), "fused_second_look/threshold is not one finite float64 number"),
        (lambda values: values.float(), "fused_second_look/threshold is not one finite float64 number"),
    ],
)
def test_an_altered_threshold_is_refused(
    bundle: Path, change: Callable[[torch.Tensor], torch.Tensor], text: str
) -> None:
    name = "fused_second_look/threshold"
    replace_tensors(bundle, "calibration.safetensors", lambda tensors: tensors.update({name: change(tensors[name])}))
    refused(bundle, text)


def test_screens_of_a_bundle_from_before_second_looks_take_none(published: Path) -> None:
    first, whole = both(published)
    whole.calibration = replace(whole.calibration, second_look=None)
    with pytest.raises(
        BundleError, match=r"without second looks, .*: calibrate again, or leave inference\.second_looks"
    ):
        SecondLookScreen(first, whole, 0.5)


# In a server


def test_a_server_takes_second_looks_and_counts_them(published: Path, tmp_path: Path, images: torch.Tensor) -> None:
    settings = tmp_path / "server.toml"
    settings.write_text("port = 0\nmetrics_port = 0\n[metrics]\npool_requests = 1\npool_seconds = 0.0\n")
    serve = ["-m", "askance", "serve", str(published), "--config", str(settings), "--disclose", "--second-looks", "1"]
    first, whole = both(published)
    expected = SecondLookScreen(first, whole, 1.0)
    with launched(serve) as serving, Client(serving.target) as client:
        for image in images[90:110]:
            pixels = (image * 255).round()
            answer = client.screen((pixels.numpy()).astype(np.uint8))
            (local,) = answers(expected, (pixels / 255)[None])
            assert answer.verdict is local.verdict
            assert answer.p_value == pytest.approx(local.p_value, abs=1e-6)
            assert answer.screening is not None
            assert VIEWER not in [word.name for word in answer.screening.detectors]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{serving.metrics_host}:{serving.metrics_port}/metrics", timeout=10) as page:
            text = page.read().decode()
    taken = next(line for line in text.splitlines() if line.startswith('askance_second_looks_total{outcome="taken"}'))
    assert float(taken.split()[-1]) >= 5
    assert 'askance_second_looks_total{outcome="refused"} 0.0' in text
    assert 'askance_stage_seconds_count{stage="second_look"}' in text


def test_a_bundle_without_views_says_what_to_do(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "tiny")
    with pytest.raises(BundleError, match=r"tiny: it was calibrated without second looks, which take a detector that"):
        LoadedBundle.open(tmp_path / "tiny", build_tiny, second_looks=0.5)


def test_single_pass_and_second_looks_exclude_each_other(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(published), "--single-pass", "--second-looks", "0.2"]) == 2
    assert "single_pass reads no image with views: leave out second_looks, or single_pass" in capsys.readouterr().err
