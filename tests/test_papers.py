"""The papers' figures: their data by hand and beside the detectors' own word, their plates, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from calibration_support import CONFIGS, DigitsRun
from marks import LASTING
from matplotlib.axes import Axes
from PIL import Image

from askance.__main__ import run
from askance.calibration.config import load_config
from askance.calibration.data import load_splits
from askance.calibration.images import ImageStream
from askance.calibration.inputs import load_inputs
from askance.calibration.training import memorise, train
from askance.detectors import (
    LibraryNetwork,
    LibraryNetworkOptions,
    SelfOrganizingMap,
    SelfOrganizingMapOptions,
    SemanticSignature,
    Tap,
)
from askance.detectors.self_organizing_map import layer_code
from askance.errors import BundleError, ConfigError, DataError
from askance.inside.codes import codes, quantization_errors
from askance.inside.libraries import THETAS, libraries, most_confusing
from askance.inside.semantics import Rivalry, rivalry, semantics
from askance.inside.training import Record
from askance.papers import PAPERS, Study, keep_plates
from askance.papers.plates import Plate, sheet
from askance.screening.bundle import SealedBundle


@pytest.fixture(scope="module")
def study(digits_run: DigitsRun) -> Study:
    return Study(SealedBundle.open(digits_run.bundle.path))


def test_the_class_that_confuses_most_has_the_greatest_mean_beside_the_diagonal() -> None:
    confusion: list[list[float | None]] = [[1.0, 0.2, 0.1], [0.9, 1.0, None], [None, None, None]]
    assert most_confusing(confusion) == 1


def test_a_rivalrys_interval_is_the_binomial_ones() -> None:
    assert Rivalry(images=100, shares={"a": 0.5}).half_width("a") == pytest.approx(1.96 * 0.05)


def test_points_of_classes_apart_vary_between_classes_alone() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[-1.0, 0], [-1, 0], [1, 0], [1, 0]])
    mixed = torch.tensor([[-1.0, 0], [1, 0], [-1, 0], [1, 0]])
    half = torch.tensor([[-1.0, 1], [-1, -1], [1, 1], [1, -1]])  # as far apart as they are wide
    assert Record(torch.stack([mixed, half, apart]), labels).between_classes() == pytest.approx([0, 0.5, 1])


def test_libraries_are_those_of_their_thresholds(study: Study) -> None:
    layers = ("conv1", "fc2")
    fitted, seen = study.fitted[:300], study.seen[:100]
    found = libraries(layers, [40], 3, study.stream(layers, fitted), study.stream(layers, seen))
    assert [[point.theta for point in points] for points in found.curves.values()] == [
        sorted(point.theta for point in points) for points in found.curves.values()
    ]
    for theta in THETAS:
        detector = LibraryNetwork(LibraryNetworkOptions(thresholds=dict.fromkeys(layers, theta)))
        detector.fit(study.stream(layers, fitted))
        assert found.sizes(theta) == detector.sizes()
        agreement = detector.agreement(study.stream(layers, seen))
        for layer, points in found.curves.items():
            (point,) = (point for point in points if point.theta == theta)
            assert (point.rows, point.top1, point.top3) == tuple(agreement[layer].values())
        assert found.confusion[theta] == {
            layer: tuple(map(tuple, rows)) for layer, rows in detector.confusion(study.stream(layers, seen)).items()
        }
    (other,) = (point for point in found.curves["conv1"] if point.theta not in THETAS)
    assert 30 <= other.rows <= 50


def test_semantics_of_layers_by_parts_are_those_of_all_at_once(study: Study) -> None:
    detector = study.detector(SemanticSignature)
    assert detector is not None
    layers = [one.name for one in study.layers]
    assert len(layers) >= 8 > len(detector.layers)
    found = semantics(layers, detector.word_correlations, lambda some: study.stream(some, study.seen))
    assert list(found) == layers
    own = detector.semantic_accuracy(study.stream(detector.layers, study.seen))
    for layer, figures in own.items():
        assert found[layer].accuracy == figures["two_versus_two"]
        low, high = found[layer].chance
        assert 0 <= low < 0.5 < high <= 1
        assert found[layer].p_value >= figures["p_value"]  # corrected for more of them


def test_a_rivalry_is_what_the_signature_says_of_mistaken_images(study: Study) -> None:
    detector = study.detector(SemanticSignature)
    assert detector is not None
    right = study.right[:60]
    pixels = study.pgd(study.budgets[-1])[:60]
    found = rivalry(detector, study.stream(detector.layers, right, pixels))
    assert found is not None
    wins: dict[str, list[bool]] = {layer: [] for layer in detector.layers}
    for capture in study.stream(detector.layers, right, pixels):
        margins = detector.pair_margins(capture)
        for row, (true, given) in enumerate(zip(right.y.tolist(), capture.predicted.tolist(), strict=True)):
            for at, layer in enumerate(detector.layers):
                if true != given:
                    wins[layer].append(bool(margins[row, at, true] < 0))
    assert found.images == len(wins["fc2"])
    assert found.shares == pytest.approx({layer: sum(own) / len(own) for layer, own in wins.items()})
    assert rivalry(detector, study.stream(detector.layers, right)) is None  # none is mistaken


def test_the_last_quantization_error_is_that_of_the_map(study: Study) -> None:
    detector = study.detector(SelfOrganizingMap)
    assert detector is not None
    fitted, seen = (study.stream(detector.layers, images) for images in (study.fitted, study.seen))
    found = quantization_errors(detector, fitted, seen)
    for layer, layer_map in detector.layer_maps().items():
        seen_codes = torch.cat([layer_code(capture, layer) for capture in seen])
        assert len(found[layer]) == detector.options.epochs
        assert found[layer][-1] == pytest.approx(layer_map.quality(layer_map.standardise(seen_codes))[0], rel=0.02)
        assert found[layer][-1] < found[layer][0]


def test_plates_are_written_as_points_and_as_lines_the_same_each_time(tmp_path: Path) -> None:
    figure, (axes,) = sheet()
    axes.plot([0, 1])
    plate = Plate("fig-1", figure, "lines rise", "this one does", True)
    (kept,) = keep_plates([plate], tmp_path, "Paper")
    assert kept is plate
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "fig-1.png", "fig-1.svg", "figures.json"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    said = [{"name": "fig-1", "claim": "lines rise", "verdict": "holds", "found": "this one does"}]
    assert json.loads((tmp_path / "figures.json").read_text()) == said
    assert "The paper: lines rise. Here that **holds**: this one does." in (tmp_path / "README.md").read_text()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    keep_plates([plate], tmp_path, "Paper")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def checkpoints(digits_run: DigitsRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of five epochs, and of none before them."""
    folder = tmp_path_factory.mktemp("training")
    config = digits_run.config
    classifier = config.classifier.model_copy(update={"weights": folder / "weights.safetensors"})
    training = config.training.model_copy(update={"epochs": 5})
    train(config.model_copy(update={"classifier": classifier, "training": training}), checkpoints=folder / "kept")
    assert (folder / "kept" / "epoch-005.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    return folder / "kept"


@pytest.fixture(scope="module")
def permuted(digits_run: DigitsRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same network, which has learned permuted labels for two epochs."""
    folder = tmp_path_factory.mktemp("permuted")
    training = digits_run.config.training.model_copy(update={"epochs": 2})
    memorise(digits_run.config.model_copy(update={"training": training}), folder)
    return folder


NAMED = {
    "000": {"fig-2-size-and-agreement", "fig-3-confusion", "fig-5-agreement"},
    "001": {
        "fig-2-activation-map",
        "fig-2a-over-training",
        "fig-3-sorted-network",
        "fig-4-samples",
        "fig-5-constellations",
        "fig-6-trajectories",
        "fig-7-violins",
    },
    "002": {"consistency", *(f"neurons-{layer}" for layer in ("conv1", "relu1", "conv2", "relu3", "fc1", "fc2"))},
    "003": {
        "fig-1-two-versus-two",
        "fig-3-over-training",
        "fig-4-own-mistakes",
        "fig-6-targeted",
        "fig-7-samples",
        "fig-8-diagram",
        "permuted-labels",
    },
    "004": {"densities", "homogeneity", "quantization-error", "unfolded", "vulnerability"},
}


@pytest.mark.parametrize("number", [pytest.param(one, marks=() if one == "001" else LASTING) for one in PAPERS])
def test_the_figures_of_a_paper(
    number: str,
    digits_run: DigitsRun,
    checkpoints: Path,
    permuted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("askance.papers.introspection.FOLLOWED", 1)
    monkeypatch.setattr("askance.inside.training.CYCLES", 1)
    study = Study(SealedBundle.open(digits_run.bundle.path), checkpoints=checkpoints, permuted=permuted)
    plates = {plate.name: plate for plate in keep_plates(PAPERS[number](study), tmp_path, number)}
    assert set(plates) == NAMED[number]
    for plate in plates.values():
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in plate.figure.axes if _has_scale(axes))
        with Image.open(tmp_path / f"{plate.name}.png") as picture:
            assert min(picture.size) > 100
        assert plate.found
    if number == "001":
        assert plates["fig-3-sorted-network"].holds
        assert plates["fig-6-trajectories"].holds
        assert plates["fig-2a-over-training"].holds
    if number == "004":
        assert plates["quantization-error"].holds


def _has_scale(axes: Axes) -> bool:
    """Whether its ticks are numbers that need a unit: pictures and colour bars have none, or their own."""
    return bool(axes.lines or axes.collections) and axes.axison and axes.get_label() != "<colorbar>"


def test_the_command_says_what_holds(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [
        Plate("fig-1", sheet()[0], "errors fall", "they do", True),
        Plate("fig-2", sheet()[0], "more", "or less", None),
    ]
    monkeypatch.setitem(PAPERS, "004", lambda _study: iter(drawn))
    out, bundle = tmp_path / "figures", str(digits_run.bundle.path)
    assert run(["figures", bundle, "--paper", "004", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "fig-1: holds: they do\nfig-2: open: or less\n" in printed
    assert f"paper 004: 2 figures, as PNG and SVG, and README.md in {out}" in printed
    assert run(["figures", bundle, "--paper", "04", "--out", str(out)]) == 2
    assert "unknown '04': did you mean '004'?" in capsys.readouterr().err


def test_other_images_than_a_bundle_was_made_of_are_refused(
    digits_run: DigitsRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = SealedBundle.open(digits_run.bundle.path)
    provenance = json.loads(json.dumps(sealed.manifest.provenance))
    provenance["data"]["sha256"]["evaluate"] = "0" * 64
    monkeypatch.setitem(sealed.manifest.__dict__, "provenance", provenance)
    with pytest.raises(DataError, match=r"the split evaluate is not the one that .* was made of"):
        Study(sealed)
    Study(sealed, config=digits_run.folder / "digits.toml")
    del provenance["config"]["data"]
    with pytest.raises(BundleError, match=r"name a config of its images, --config CONFIG"):
        Study(sealed)


def test_a_folder_without_checkpoints_is_refused(digits_run: DigitsRun, tmp_path: Path) -> None:
    study = Study(SealedBundle.open(digits_run.bundle.path), checkpoints=tmp_path, permuted=tmp_path)
    for permuted, option in ((False, "--checkpoints"), (True, "--permuted")):
        with pytest.raises(ConfigError, match=f"^{option}: .* holds none"):
            list(study.checkpoints(permuted=permuted))


def test_permuted_labels_are_learned_by_heart(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few enough images are, which says nothing of others; the config's weights stay as they are."""
    config = digits_run.config
    weights = config.classifier.weights.read_bytes()
    splits = load_splits(config.data, config.splits, config.classifier.preprocessing)
    training = config.training.model_copy(update={"epochs": 100})
    found = memorise(
        config.model_copy(update={"training": training}), tmp_path, splits | {"train": splits["train"][:50]}
    )
    assert found["train_images"] == 50
    assert found["learned"] > 0.9
    assert found["accuracy"] < 0.3
    assert len(list(tmp_path.iterdir())) == 101
    assert config.classifier.weights.read_bytes() == weights
    assert run(["train", str(digits_run.config_path), "--permuted-labels"]) == 2
    assert "--permuted-labels: name a folder for the weights, --checkpoints FOLDER" in capsys.readouterr().err


@pytest.mark.acceptance
@pytest.mark.data
@pytest.mark.lasting
def test_lenets_early_layers_are_diverse_and_confused_by_nine(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paper 000, Figs. 2 and 3: sizes fall with depth, and what confuses is nine; four is confused with it."""
    monkeypatch.setenv("ASKANCE_DATA", str(data_root))
    inputs = load_inputs(load_config(CONFIGS / "mnist.toml"))
    layers = ("conv1", "conv2", "fc1", "fc2")
    with Tap(inputs.classifier, layers, inputs.preprocessing.normalize) as tap:
        fitted, seen = (
            ImageStream(tap, inputs.splits[name][:count]) for name, count in (("fit", 12_000), ("evaluate", 4000))
        )
        found = libraries(layers, [], 3, fitted, seen)
    assert list(found.sizes(0.65).values()) == pytest.approx([668, 350, 95, 48], rel=0.1)
    assert list(found.sizes(0.75).values()) == pytest.approx([1912, 1041, 324, 101], rel=0.1)
    for theta in THETAS:
        for layer in layers[:3]:
            assert most_confusing(found.confusion[theta][layer]) == 9, (theta, layer)
            row = [value for k, value in enumerate(found.confusion[theta][layer][4]) if k != 4]
            assert row[8] == max(value for value in row if value is not None), (theta, layer)


@pytest.mark.acceptance
@pytest.mark.data
@pytest.mark.lasting
def test_lenets_codes_go_from_homogeneous_to_diverse(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paper 004: the deeper the layer, the more a unit tells of the class, and the nearer together its codes lie."""
    monkeypatch.setenv("ASKANCE_DATA", str(data_root))
    config = load_config(CONFIGS / "mnist.toml")
    inputs, options = load_inputs(config), config.detectors.wanted()[SelfOrganizingMap.kind]
    assert isinstance(options, SelfOrganizingMapOptions)
    with Tap(inputs.classifier, options.map_layers, inputs.preprocessing.normalize) as tap:
        fitted, seen = (ImageStream(tap, inputs.splits[name][:12_000]) for name in ("fit", "evaluate"))
        found = codes(SelfOrganizingMap(options).fit(fitted), seen, seen.images.y, 10)
    information = [one.information for one in found.values()]
    spreads = [fmean(spread for spread in one.spreads if spread is not None) for one in found.values()]
    assert information == pytest.approx([0.69, 0.83, 0.94, 0.98], abs=0.05)
    assert information == sorted(information)
    assert spreads == sorted(spreads, reverse=True)
    assert (spreads[0], spreads[-1]) == pytest.approx((3.1, 1.7), abs=0.3)
