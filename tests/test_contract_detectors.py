"""The contract of a detector, over every member of DETECTORS."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from toy import NAMES, Trained, new_detectors

from askance.detectors import DETECTORS, Capture, Detector, Inputs, Reading
from askance.detectors.registry import restored
from askance.errors import AskanceError, NotFittedError
from askance.judgement.margins import NOISE, spread

PAGE = Path(__file__).resolve().parent.parent / "docs" / "detectors.md"
WORDS = torch.randn(10, 12, generator=torch.Generator().manual_seed(8))
INPUTS = Inputs((1, 8, 8), NAMES, WORDS)
DEVICES = ("cpu", "cuda")


@pytest.fixture(params=list(DETECTORS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fitted(trained: Trained, kind: str) -> Detector:
    return trained.detectors[kind]


def fresh(kind: str) -> Detector:
    return DETECTORS[kind].create(new_detectors()[kind].options, INPUTS)


def surer(capture: Capture, times: float) -> Capture:
    """The same of a classifier that is so many times as sure of its answers."""
    views = None if capture.views is None else surer(capture.views, times)
    return replace(capture, logits=times * capture.logits, views=views)


def moved(capture: Capture, *where: torch.device | torch.dtype | str) -> Capture:
    """A Capture on another device, or in another precision."""

    def move(values: Tensor) -> Tensor:
        for one in where:
            values = values.to(one)
        return values

    return Capture(
        move(capture.logits),
        {layer: move(values) for layer, values in capture.activations.items()},
        None if capture.labels is None else capture.labels.to(move(capture.logits).device),
        None if capture.views is None else moved(capture.views, *where),
    )


def assert_same(one: Reading, other: Reading, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    torch.testing.assert_close(one.score, other.score, rtol=rtol, atol=atol, check_dtype=False, check_device=False)
    assert list(one.components) == list(other.components)
    for name, values in one.components.items():
        torch.testing.assert_close(
            values, other.components[name], rtol=rtol, atol=atol, check_dtype=False, check_device=False
        )


def one_line(error: AskanceError) -> bool:
    return len(str(error).splitlines()) == 1


def test_the_toys_are_all_of_them_and_the_docs_have_a_row_for_each(kind: str) -> None:
    assert set(new_detectors()) == set(DETECTORS)
    assert f"\n| `{kind}` | `{DETECTORS[kind].__name__}` |" in PAGE.read_text(encoding="utf-8")
    assert DETECTORS[kind].kind == kind


def test_options_survive_json(kind: str) -> None:
    options = fresh(kind).options
    assert type(options) is DETECTORS[kind].options_class
    assert type(options).model_validate_json(options.model_dump_json()) == options


def test_nothing_is_read_before_fitting(trained: Trained, kind: str) -> None:
    detector, stream = fresh(kind), trained.captures("evaluate")
    assert not detector.is_fitted
    with pytest.raises(NotFittedError):
        detector.read(stream[0])
    if type(detector).diagnose is not Detector.diagnose:
        with pytest.raises(NotFittedError):
            detector.diagnose(stream, stream)


def test_fit_learns_and_is_deterministic(trained: Trained, kind: str, fitted: Detector) -> None:
    stream = trained.captures("train")
    again = fresh(kind)
    assert again.fit(stream) is again
    assert again.is_fitted
    capture = trained.captures("evaluate")[0]
    with torch.no_grad():
        assert torch.equal(again.read(capture).score, fitted.read(capture).score)
    held_out = fresh(kind).fit(stream, trained.captures("calibrate"))
    assert held_out.is_fitted


@torch.no_grad()
def test_a_reading_has_a_finite_number_for_each_input(trained: Trained, fitted: Detector) -> None:
    for capture in trained.captures("evaluate"):
        reading = fitted.read(capture)
        assert reading.components
        assert reading.two_sided <= reading.components.keys()
        for values in (reading.score, *reading.components.values()):
            assert values.shape == (len(capture),)
            assert values.dtype == torch.float32
            assert torch.isfinite(values).all()
        assert all(len(values) == len(capture) for values in reading.evidence.values())


@torch.no_grad()
def test_state_survives_a_bundle(trained: Trained, kind: str, fitted: Detector) -> None:
    options = json.loads(fitted.options.model_dump_json())
    back = restored(kind, options, save(fitted.state_dict()))
    assert back.is_fitted
    capture = trained.captures("evaluate")[0]
    one, other = back.read(capture), fitted.read(capture)
    assert torch.equal(one.score, other.score)
    assert all(torch.equal(values, other.components[name]) for name, values in one.components.items())
    assert back.layers == fitted.layers
    assert back.view_layers == fitted.view_layers


@torch.no_grad()
def test_explanations_are_json(trained: Trained, fitted: Detector) -> None:
    capture = trained.captures("evaluate")[0]
    explanations = fitted.explain(capture)
    assert len(explanations) == len(capture)
    for explanation in explanations:
        assert explanation
        assert json.loads(json.dumps(explanation, allow_nan=False)) == explanation


@torch.no_grad()
def test_an_input_alone_is_read_as_in_a_batch(trained: Trained, fitted: Detector) -> None:
    capture = trained.captures("evaluate")[0]
    whole = fitted.read(capture)
    for i in (0, 7, len(capture) - 1):
        row = torch.tensor([i])
        alone = fitted.read(capture.select(row))
        expected = Reading(whole.score[row], {name: values[row] for name, values in whole.components.items()})
        assert_same(alone, expected)


def rounded_otherwise(capture: Capture, random: torch.Generator) -> Capture:
    """As another library, or another batch, might have computed it: each number off by some millionths."""

    def off(values: Tensor) -> Tensor:
        return values * (1 + 1e-6 * torch.randn(values.shape, generator=random))

    views = None if capture.views is None else rounded_otherwise(capture.views, random)
    activations = {layer: off(values) for layer, values in capture.activations.items()}
    return Capture(off(capture.logits), activations, capture.labels, views)


def test_rounding_moves_no_reading_of_what_few_inputs_taught(trained: Trained, kind: str) -> None:
    """Where a layer has more numbers than there are inputs, some directions have no variance to divide by."""
    detector = fresh(kind).fit(trained.captures("train", 40)[:1]).eval()
    (capture,) = trained.captures("evaluate", 1000)
    other = rounded_otherwise(capture, torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, another = detector.read(capture).components, detector.read(other).components
    for name, values in one.items():
        moved_by = (another[name] - values).abs().quantile(0.98)  # a unit, or a row, may change places with another
        assert float(moved_by) <= 0.01 * float(values.std()) + 1e-6, name


@pytest.mark.parametrize("confidence", [1.0, 100.0])
def test_rounding_moves_a_score_no_further_than_its_slack(trained: Trained, kind: str, confidence: float) -> None:
    """But where a tie decides, which is said, too. A classifier that is sure of all gives many inputs the same rank."""
    detector = fresh(kind).fit([surer(part, confidence) for part in trained.captures("train")]).eval()
    (capture,) = (surer(part, confidence) for part in trained.captures("evaluate", 1000))
    other = rounded_otherwise(capture, torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, another = detector.read(capture), detector.read(other)
    slack = torch.zeros_like(one.score) if one.slack is None else one.slack
    tied = [reading.tied for reading in (one, another) if reading.tied is not None]
    decided = ~torch.stack([torch.zeros(len(slack), dtype=torch.bool), *tied]).any(dim=0)
    beyond = (another.score - one.score).abs() - slack - 1e-3 * float(one.score.std())
    assert float(beyond[decided].max()) <= 0
    for name, values in one.components.items():
        off = (another.components[name] - values).abs()[decided].quantile(0.98)  # the others may have changed units
        assert float(off) <= max(one.step, NOISE * float(spread(values.sort().values.numpy()))), name


@torch.no_grad()
def test_double_precision_is_read_as_single(trained: Trained, kind: str, fitted: Detector) -> None:
    capture = trained.captures("evaluate")[0]
    assert_same(fitted.read(moved(capture, torch.float64)), fitted.read(capture), rtol=1e-3, atol=1e-3)
    stream = [moved(part, torch.float64) for part in trained.captures("train")]
    with torch.enable_grad():
        detector = fresh(kind).fit(stream)
    assert torch.isfinite(detector.read(stream[0]).score).all()


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_a_device_reads_as_the_cpu(trained: Trained, kind: str, fitted: Detector, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    back = restored(kind, fitted.options.model_dump(), save(fitted.state_dict())).to(device)
    back.prepare()
    capture = trained.captures("evaluate")[0]
    reading = back.read(moved(capture, device))
    assert reading.score.device.type == device
    assert_same(reading, fitted.read(capture), rtol=1e-2, atol=1e-2)


def test_an_empty_stream_is_refused_in_one_line(kind: str) -> None:
    with pytest.raises(AskanceError) as caught:
        fresh(kind).fit([])
    assert one_line(caught.value)


def test_an_input_that_never_changes_is_refused_in_one_line_or_read(trained: Trained, kind: str) -> None:
    same = trained.captures("train")[0].select(torch.zeros(60, dtype=torch.long))
    try:
        detector = fresh(kind).fit([same, same])
    except AskanceError as error:
        assert one_line(error)
        return
    with torch.no_grad():
        assert torch.isfinite(detector.read(same).score).all()


def test_a_diagnosis_is_json(trained: Trained, fitted: Detector) -> None:
    clean, held_out = trained.captures("train")[:3], trained.captures("evaluate")
    diagnosis = fitted.diagnose(clean, held_out)
    assert json.loads(json.dumps(diagnosis, allow_nan=False)) == diagnosis
    assert all(math.isfinite(value) for value in numbers(diagnosis))
    if diagnosis:
        with pytest.raises(AskanceError) as caught:
            fitted.diagnose(clean, [])
        assert one_line(caught.value)


def numbers(content: object) -> list[float]:
    if isinstance(content, dict):
        return [value for part in content.values() for value in numbers(part)]
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [value for part in content for value in numbers(part)]
    return [content] if isinstance(content, int | float) else []
