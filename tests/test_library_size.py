"""Libraries of about as many rows as a config asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibration_support import DigitsRun
from pydantic import ValidationError
from toy import capture_of

from askance.calibration.config import Config
from askance.calibration.inputs import load_inputs
from askance.calibration.pipeline import calibrate
from askance.detectors import LibraryNetwork, LibraryNetworkOptions
from askance.errors import DataError

LAYERS = ("conv1", "conv2", "fc1", "fc2")


def of_rows(rows: int | dict[str, int], *layers: str, sampled_neurons: int | None = None) -> LibraryNetwork:
    options = {"rows": rows, "library_layers": layers or None, "sampled_neurons": sampled_neurons, "seed": 0}
    return LibraryNetwork(LibraryNetworkOptions.model_validate(options))


def fitted_digits(digits_run: DigitsRun, detector: LibraryNetwork, sample: int) -> LibraryNetwork:
    inputs = load_inputs(digits_run.config)
    detector.settle(inputs.sample("fit", sample, detector), len(inputs.splits["fit"]))
    return detector.build(inputs.stream("fit", detector))


@pytest.mark.parametrize(("rows", "sample", "within"), [(100, 2000, 0.05), (500, 2000, 0.05), (300, 400, 0.2)])
def test_the_libraries_have_about_as_many_rows(digits_run: DigitsRun, rows: int, sample: int, within: float) -> None:
    """On all 847 images to within the bisection's own tolerance, on fewer by their growth."""
    detector = fitted_digits(digits_run, of_rows(rows, *LAYERS), sample)
    assert detector.sizes() == {layer: pytest.approx(rows, rel=within) for layer in LAYERS}


def test_each_layer_may_have_its_own_and_the_neurons_are_those_of_the_library(digits_run: DigitsRun) -> None:
    detector = of_rows({"conv1": 50, "fc2": 400}, sampled_neurons=60)
    sizes = fitted_digits(digits_run, detector, 2000).sizes()
    assert sizes == {"conv1": pytest.approx(50, rel=0.05), "fc2": pytest.approx(400, rel=0.05)}


def test_settled_options_name_thresholds_and_give_the_same_again(digits_run: DigitsRun) -> None:
    first = fitted_digits(digits_run, of_rows(100, *LAYERS), 2000)
    assert first.options.thresholds is not None
    assert (first.options.rows, first.options.library_layers, first.layers) == (None, None, LAYERS)
    again = LibraryNetwork(LibraryNetworkOptions.model_validate(first.options.model_dump()))
    again.build(load_inputs(digits_run.config).stream("fit", again))
    assert again.sizes() == first.sizes()
    before = first.options
    first.settle([])  # nothing is left to find
    assert first.options is before


def test_fit_settles_what_was_not() -> None:
    torch.manual_seed(0)
    activations = {"a": torch.randn(60, 5), "b": torch.randn(60, 7)}
    detector = of_rows(20, "a", "b").fit([capture_of(activations, [i % 3 for i in range(60)], 3)])
    assert detector.sizes() == {layer: pytest.approx(20, abs=1) for layer in ("a", "b")}
    with pytest.raises(DataError, match=r"61 rows is wanted of layer .a., which learns from 60"):
        of_rows(61, "a", "b").fit([capture_of(activations, [0] * 60, 3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected `thresholds`, or `rows` in their place: one of the two"),
        ({"rows": 5, "thresholds": {"a": 0.5, "b": 0.5}}, "one of the two"),
        ({"rows": 5}, "`library_layers` goes with one number of `rows`"),
        ({"rows": {"a": 5, "b": 6}, "library_layers": ["a", "b"]}, "`library_layers` goes with one number of `rows`"),
        ({"thresholds": {"a": 0.5, "b": 0.5}, "library_layers": ["a", "b"]}, "`library_layers` goes with one number"),
        ({"rows": 0, "library_layers": ["a", "b"]}, "greater than or equal to 1"),
    ],
    ids=["neither", "both", "no layers", "layers twice", "layers with thresholds", "no rows"],
)
def test_what_the_options_refuse(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LibraryNetworkOptions.model_validate(options)


def test_a_bundle_records_the_thresholds_that_were_taken(digits_run: DigitsRun, tmp_path: Path) -> None:
    content = digits_run.config.model_dump()
    content["detectors"] = {"library_network": {"rows": 120, "library_layers": LAYERS}}
    content["evaluation"] |= {"attacked_images": 20, "attacks": content["evaluation"]["attacks"][:1]}
    bundle = calibrate(Config.model_validate(content), tmp_path / "bundle")
    (entry,) = bundle.manifest.detectors
    assert set(entry.options["thresholds"]) == set(LAYERS)
    assert entry.options["rows"] is None
    detector = bundle.detectors()["library_network"]
    assert isinstance(detector, LibraryNetwork)
    assert detector.sizes() == {layer: pytest.approx(120, rel=0.05) for layer in LAYERS}
    assert bundle.manifest.provenance["config"]["detectors"]["library_network"]["rows"] == 120
    # the same by the thresholds that it took
    content["detectors"] = {"library_network": {"thresholds": entry.options["thresholds"]}}
    assert calibrate(Config.model_validate(content), tmp_path / "again").manifest.id == bundle.manifest.id
