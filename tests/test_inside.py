"""What is seen inside: small cases by hand, each figure beside the detector's own word on one image, digits' floors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun

from askance.calibration.images import ImageStream
from askance.calibration.inputs import load_inputs
from askance.classifiers import build_classifier
from askance.colours import of_class
from askance.detectors import Capture, Introspection, LibraryNetwork, SelfOrganizingMap
from askance.detectors.reader import TorchReader
from askance.drawing.insides import mixed
from askance.errors import DataError
from askance.inside import Inside, SortedLayer, look
from askance.inside.codes import correlation, information, purity, spreads
from askance.inside.data import EDGE

IMAGES = 300


@pytest.fixture(scope="module")
def reader(digits_run: DigitsRun) -> Iterator[TorchReader]:
    screen = digits_run.bundle.screen(build_classifier)
    yield screen.reader
    screen.close()


@pytest.fixture(scope="module")
def stream(digits_run: DigitsRun, reader: TorchReader) -> ImageStream:
    return ImageStream(reader.tap, load_inputs(digits_run.config).splits["evaluate"][:IMAGES], 128)


@pytest.fixture(scope="module")
def inside(digits_run: DigitsRun, reader: TorchReader, stream: ImageStream) -> Inside:
    fitted = replace(stream, images=load_inputs(digits_run.config).splits["fit"])
    return look(reader.detectors, fitted, stream, digits_run.bundle.manifest.classifier.class_names)


@pytest.fixture(scope="module")
def one(stream: ImageStream) -> Capture:
    """The last image, by itself."""
    *_, last = stream
    return last.select(torch.tensor([len(last) - 1]))


def test_information_by_hand() -> None:
    assert information(torch.eye(4, dtype=torch.long) * 3) == pytest.approx(1)
    assert information(torch.ones(4, 3, dtype=torch.long)) == pytest.approx(0)
    # two units, two classes of as many: H(class | unit) = 1/2 H(1/4) + 1/2 H(3/4)
    rest = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert information(torch.tensor([[3, 1], [1, 3]])) == pytest.approx(1 - rest / math.log(2))
    assert information(torch.tensor([[5, 0], [2, 0]])) == 0  # one class alone


def test_purity_by_hand() -> None:
    assert purity(torch.tensor([[3, 1], [1, 4], [0, 0]])) == pytest.approx(7 / 9)


def test_spread_by_hand() -> None:
    """One class on one unit; another on two units three apart, across the edge: 1.5 from the middle each."""
    hits = torch.zeros(64, 3, dtype=torch.long)
    hits[9, 0] = 5
    hits[7, 1] = hits[2, 1] = 2  # columns 7 and 2 of the first row: 7 -> 8 = 0 -> 2
    assert spreads(hits, 8) == (0, 1.5, None)


def test_correlations_by_hand() -> None:
    pairs = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (4.0, 3.0), (5.0, 5.0), (None, 1.0), (1.0, None)]
    found = correlation(pairs)
    assert found is not None
    assert found[0] == pytest.approx(0.8)  # covariance 2 of variances 2.5 each
    assert found[1:] == pytest.approx(
        [math.tanh(math.atanh(0.8) + end * 1.96 / math.sqrt(2)) for end in (-1, 1)], abs=1e-4
    )
    assert correlation(pairs[:4]) is None
    assert correlation([(1.0, float(i)) for i in range(9)]) is None
    assert correlation([(float(i), float(i)) for i in range(9)]) == pytest.approx((1, 1, 1), abs=1e-3)


def test_every_image_is_there(inside: Inside, stream: ImageStream) -> None:
    assert inside.labels == tuple(stream.images.y.tolist())
    assert np.mean(np.equal(inside.labels, inside.predicted)) > 0.93
    assert inside.activation_map is not None
    assert inside.errors is not None
    assert len(inside.activation_map.points) == len(inside.errors.hidden) == len(inside.errors.latent) == IMAGES
    for codes in inside.codes.values():
        assert sum(map(sum, codes.seen)) == IMAGES
        assert [sum(of_class) for of_class in codes.seen] == np.bincount(inside.labels, minlength=10).tolist()


def test_the_map_says_what_the_detector_says(inside: Inside, reader: TorchReader, one: Capture) -> None:
    detector = reader.detectors[Introspection.kind]
    assert isinstance(detector, Introspection)
    assert inside.activation_map is not None
    assert inside.errors is not None
    (point,) = detector.map_points(one)
    assert inside.activation_map.points[-1] == pytest.approx(point.tolist(), abs=6e-4)
    read = detector.components(one)
    assert inside.errors.hidden[-1] == pytest.approx(float(read["estimated_error"]), abs=6e-4)
    assert inside.errors.latent[-1] == pytest.approx(float(read["estimated_error:latent"]), abs=6e-4)
    background = np.array(inside.activation_map.background)
    places = len(background)
    for row, column in ((0, 0), (0, places - 1), (places // 2, 3)):
        at = [-EDGE + 2 * EDGE * place / (places - 1) for place in (column, row)]
        assert background[row, column] == pytest.approx(float(detector.estimate_at(torch.tensor([at]))), abs=6e-4)


def test_the_maps_say_what_the_detector_says(inside: Inside, reader: TorchReader, one: Capture) -> None:
    detector = reader.detectors[SelfOrganizingMap.kind]
    assert isinstance(detector, SelfOrganizingMap)
    (told,) = detector.explain(one)
    label = inside.labels[-1]
    for said in told["layers"]:
        codes, (row, column) = inside.codes[said["layer"]], said["unit"]
        assert codes.seen[label][row * codes.side + column] >= 1
    for layer, layer_map in detector.layer_maps().items():
        assert np.array_equal(inside.codes[layer].fitted, layer_map.hits.T)


def test_confusion_is_the_detectors_own(inside: Inside, reader: TorchReader, stream: ImageStream) -> None:
    detector = reader.detectors[LibraryNetwork.kind]
    assert isinstance(detector, LibraryNetwork)
    index = detector.confusion_index(stream).numpy()
    for layer, rows in zip(detector.layers, index, strict=True):
        found = np.array([[math.nan if value is None else value for value in row] for row in inside.confusion[layer]])
        assert np.allclose(found, rows, atol=6e-5, equal_nan=True)
        assert np.nanmax(np.diag(found)) == 1


def test_the_decoder_knows_what_moves_the_units(inside: Inside) -> None:
    """Eqs. 9 and 10 of the paper, on digits: the decoded class of a unit is the one that moves it most."""
    units = sum(layer.units for layer in inside.sorted_network.values())
    right = sum(layer.agreement * layer.units for layer in inside.sorted_network.values())
    assert right / units >= 0.75
    for layer in inside.sorted_network.values():
        assert list(layer.preferred) == sorted(layer.preferred)
        assert np.argmax(layer.expected, axis=0).tolist() == list(layer.preferred)
        assert all(value is not None and value >= 0.95 for value in layer.correlation)


def test_profiles_are_quantiles_of_what_the_detector_says(
    inside: Inside, reader: TorchReader, stream: ImageStream
) -> None:
    detector = reader.detectors["semantic_signature"]
    said = [detector.explain(capture) for capture in stream]
    for place, layer in enumerate(detector.layers):
        shares = [one["layers"][place]["one_versus_two"] for part in said for one in part]
        assert inside.profiles[layer] == pytest.approx(np.quantile(shares, [0.05, 0.5, 0.95]), abs=1e-3)


def test_a_unit_has_the_mixed_colours_of_its_classes() -> None:
    """Eq. 11 by hand: of one class alone, of two in equal parts, of none."""
    layer = SortedLayer(
        units=3,
        preferred=(0, 0, 1),
        expected=((2.0, 1.0, -1.0), (-1.0, 1.0, -0.5)),
        agreement=1,
        correlation=(None, None),
    )
    first, second = (of_class(k) for k in (0, 1))
    half = "#" + "".join(
        f"{round((int(first[at : at + 2], 16) + int(second[at : at + 2], 16)) / 2):02x}" for at in (1, 3, 5)
    )
    assert mixed(layer) == [first, half, half]


def test_deeper_codes_say_more_of_the_class(inside: Inside) -> None:
    first, last = (inside.codes[layer] for layer in ("conv1", "fc2"))
    assert first.information < last.information
    assert first.purity < last.purity
    assert sum(value or 0 for value in first.spreads) > sum(value or 0 for value in last.spreads)


def test_it_is_plain_data(inside: Inside) -> None:
    assert Inside.model_validate_json(inside.model_dump_json()) == inside


def test_images_without_labels_are_refused(reader: TorchReader, stream: ImageStream) -> None:
    with pytest.raises(DataError, match="have no labels"):
        look(reader.detectors, stream, [reader.tap(stream.images[:5].pixels())], ("a",) * 10)
