"""The whole offline path on real digits: what is fitted, calibrated, attacked, published, and resumed."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun, changed
from scipy.stats import betabinom
from torch import nn
from toy import answered

from askance.answers import FUSED
from askance.calibration import pipeline
from askance.calibration.attacks import PixelClassifier, perturb
from askance.calibration.config import Config, load_config
from askance.calibration.evaluation import AttackedSet, Evidence, SetScores, evaluate
from askance.calibration.inputs import load_inputs
from askance.calibration.metrics import FIGURES
from askance.calibration.pipeline import calibrate, evaluate_bundle
from askance.calibration.scoring import score
from askance.classifiers import build_classifier
from askance.detectors import Bundle, LibraryNetwork, publishing
from askance.detectors.reader import TorchReader
from askance.errors import AskanceError, BundleError, CalibrationError, ConfigError, DataError, LayerError
from askance.evaluation import ClassFigures, Evaluation
from askance.judgement import Levels
from askance.judgement.conformal import table
from askance.output import print_bundle

# AUROC floors on successful attacks: a detector that goes random is a bug. Well under what is measured (README).
FLOORS = {
    "library_network": 0.80,
    "introspection": 0.55,
    "self_organizing_map": 0.93,
    "semantic_signature": 0.55,
    "fused": 0.93,
}


def test_the_classifier_learned(digits_run: DigitsRun) -> None:
    assert digits_run.training["train_images"] == 697
    assert digits_run.training["test_images"] == 950
    assert digits_run.training["accuracy"] > 0.95


@pytest.mark.parametrize("attack_name", ["fgsm", "pgd"])
@pytest.mark.parametrize("detector", FLOORS)
def test_auroc_floors(digits_run: DigitsRun, attack_name: str, detector: str) -> None:
    assert digits_run.bundle.evaluation().auroc[attack_name][detector] >= FLOORS[detector]


def test_the_fused_score_detects_pgd_as_the_readme_says(digits_run: DigitsRun) -> None:
    assert digits_run.bundle.evaluation().auroc["pgd"]["fused"] >= 0.95


def test_clean_flags_keep_their_target(digits_run: DigitsRun) -> None:
    """Of m clean images, k-th-largest-of-n conformal calibration flags BetaBinomial(m, k, n + 1 - k)."""
    evaluation, m, n = digits_run.bundle.evaluation(), 300, 400
    for level, target in evaluation.target_flag_rate.items():
        k = math.floor(target * (n + 1))
        low, high = betabinom.interval(0.999, m, k, n + 1 - k)
        assert low / m <= evaluation.clean_flag_rate[level] <= high / m
        for reason in ("unfamiliar", "doubtful"):
            assert low / m <= evaluation.detector_clean_flag_rate[reason][level] <= high / m


def test_the_evaluation_is_complete(digits_run: DigitsRun) -> None:
    evaluation = digits_run.bundle.evaluation()
    assert evaluation.splits == {
        "train": 697, "fit": 847, "held_out": 150, "calibrate": 250, "fuse": 400, "evaluate": 300,
    }  # fmt: skip
    content = evaluation.as_json()
    for name in ("fgsm", "pgd"):
        row = evaluation.attacks[name]
        assert 0 < row.successful <= row.attempted <= 300
        assert (row.model_extra or {})["epsilon"] == 0.2
        for figure in FIGURES:
            assert set(content[figure][name]) == {*FLOORS, "fused_untrained", "max_softmax", "unfamiliar", "doubtful"}
        for reason in ("fused", "unfamiliar", "doubtful"):
            shares = content["attacks"][name]["flag_rate"][reason]
            assert 0 <= shares["adversarial"] <= shares["suspect"] <= 1
        assert row.flag_rate["fused"]["suspect"] > 0.5
    manifest = digits_run.bundle.manifest
    assert manifest.evaluation["auroc"] == evaluation.auroc
    assert manifest.calibration.samples == 250
    assert manifest.calibration.fusion_samples == 400
    assert set(manifest.provenance["data"]["sha256"]) == set(evaluation.splits)
    assert manifest.provenance["packages"]["torch"] == version("torch")


def test_each_stages_time_is_kept_and_shown(digits_run: DigitsRun, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = digits_run.bundle.manifest.provenance["seconds"]
    fitted = [f"fit {detector.kind}" for detector in digits_run.bundle.manifest.detectors]
    rest = ["diagnostics", "inside", "seen attacks, fusion, tables", "attacks, controls, baselines"]
    assert list(seconds) == [*fitted, *rest, "figures and their intervals", "sentinels"]
    assert min(seconds.values()) >= 0
    assert seconds["fit introspection"] > 0  # which trains
    print_bundle(digits_run.bundle)
    assert f"{seconds['diagnostics']} s diagnostics, " in capsys.readouterr().out


def test_diagnostics_say_what_was_learned(digits_run: DigitsRun) -> None:
    diagnostics = digits_run.bundle.evaluation().diagnostics
    layers = diagnostics["library_network"]["layers"]
    assert list(layers) == ["conv1", "conv2", "fc1", "fc2"]
    for row in layers.values():
        assert 10 <= row["rows"] <= 847
        assert 0.8 <= row["top1"] <= row["top3"] <= 1
    index = diagnostics["library_network"]["confusion_index"]["fc2"]
    assert [index[k][k] for k in range(10)] == [1.0] * 10
    assert diagnostics["introspection"]["knn_agreement"] > 0.7
    for row in diagnostics["self_organizing_map"]["layers"].values():
        assert row["quantization_error"] > 0
        assert 0 <= row["topographic_error"] < 0.4
        assert row["units_used"] > 0.8
    for row in diagnostics["semantic_signature"]["layers"].values():
        assert 0 <= row["two_versus_two"] <= 1
        assert 0 < row["p_value"] <= 1


def test_the_bundle_screens_as_it_was_calibrated(digits_run: DigitsRun) -> None:
    """The served path gives the scores that the tables were made of: nothing is lost on disk."""
    bundle = digits_run.bundle
    screen = bundle.screen(build_classifier)
    images = load_inputs(digits_run.config).splits["calibrate"][:50]
    for name, values in screen.calibration.tables.items():
        results = answered(screen(images.pixels()))
        scores = [next(d.score for d in screening.detectors if d.name == name) for _, _, screening in results]
        assert len(scores) == 50
        for value in scores:
            assert np.abs(values - value).min() < 1e-4 * (1 + abs(value))


def test_the_classifier_travels_to_other_processes_while_it_is_tapped(digits_run: DigitsRun) -> None:
    """Where there is much to attack, processes of their own do it, and the detectors' hooks are on meanwhile."""
    inputs = load_inputs(digits_run.config)
    pixels = inputs.splits["evaluate"][:5].pixels()
    with inputs.stream("fit", *digits_run.bundle.screen(build_classifier).reader.detectors.values()).tap:
        travelled = pickle.loads(pickle.dumps(inputs.target)).build()
        torch.testing.assert_close(travelled(pixels), inputs.target.build()(pixels), rtol=0, atol=0)


def test_evaluating_the_bundle_again_gives_its_figures(digits_run: DigitsRun) -> None:
    again = evaluate_bundle(digits_run.bundle, digits_run.config)
    first = digits_run.bundle.evaluation()
    assert again.bundle_id == digits_run.bundle.manifest.id
    assert again.classifier == first.classifier
    for name, row in first.auroc.items():
        assert again.auroc[name] == pytest.approx(row, abs=0.01)


def test_attacked_images_are_flagged_and_clean_ones_pass(digits_run: DigitsRun) -> None:
    inputs = load_inputs(digits_run.config)
    images = inputs.splits["evaluate"][:100]
    predict = PixelClassifier(inputs.classifier, digits_run.config.classifier.preprocessing)
    attacked = perturb(predict, digits_run.config.evaluation.attacks[1], images.pixels(), images.y, 0)
    screen = digits_run.bundle.screen(build_classifier)

    def flagged(pixels: torch.Tensor) -> float:
        verdicts = [verdict for _, verdict, _ in answered(screen(pixels))]
        return sum(verdict != "CLEAN" for verdict in verdicts) / len(verdicts)

    assert flagged(images.pixels()) < 0.15
    assert flagged(attacked) > 0.6


def small(config: Config) -> Config:
    """The same calibration with less to train."""
    return config.model_copy(update={"detectors": config.detectors.replaced("introspection", cycles=1, cycle_steps=10)})


@pytest.mark.acceptance
def test_a_killed_calibration_goes_on_where_it_was(
    digits_run: DigitsRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small(digits_run.config), tmp_path / "bundle"
    fitted: list[str] = []
    original = pipeline._fit

    def fit(detector: Any, inputs: Any) -> Any:
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(detector.kind)
        return original(detector, inputs)

    monkeypatch.setattr(pipeline, "_fit", fit)
    with pytest.raises(KeyboardInterrupt):
        calibrate(config, out)
    assert fitted == ["library_network", "introspection"]
    assert not out.exists()
    with pytest.raises(CalibrationError, match="holds unfinished work: add --resume"):
        calibrate(config, out)

    def rest(detector: Any, inputs: Any) -> Any:
        fitted.append(detector.kind)
        return original(detector, inputs)

    monkeypatch.setattr(pipeline, "_fit", rest)
    resumed = calibrate(config, out, resume=True)
    assert fitted == ["library_network", "introspection", "self_organizing_map", "semantic_signature"]
    assert not (tmp_path / "bundle.partial").exists()
    whole = calibrate(config, tmp_path / "whole")
    assert resumed.evaluation() == whole.evaluation()
    with pytest.raises(BundleError, match="exists and a bundle is never changed"):
        calibrate(config, out)


@pytest.mark.acceptance
@pytest.mark.lasting
def test_the_same_inputs_give_the_same_id(
    digits_run: DigitsRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another day, another folder, nothing cached, a machine of another name: what answers is the same."""
    first = calibrate(small(digits_run.config), tmp_path / "first")
    elsewhere = Path(
        shutil.copytree(digits_run.folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("bundle*"))
    )
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("platform.platform", lambda: "Linux-of-another-machine")
    monkeypatch.setattr(publishing, "datetime", Mock(now=lambda _zone: datetime(2030, 1, 2, tzinfo=UTC)))
    second = calibrate(small(load_config(elsewhere / "digits.toml")), tmp_path / "second")
    assert second.manifest.created != first.manifest.created
    assert second.manifest.provenance != first.manifest.provenance
    assert second.manifest.checksum != first.manifest.checksum
    assert second.manifest.id == first.manifest.id
    other = digits_run.config.model_copy(update={"levels": Levels(suspect=0.1)})
    assert calibrate(small(other), tmp_path / "other").manifest.id != first.manifest.id


def test_sentinels_are_of_the_calibration_split(digits_run: DigitsRun) -> None:
    splits, entry = load_inputs(digits_run.config).splits, digits_run.bundle.manifest.sentinels
    kept = digits_run.bundle.tensors(entry)
    verdicts = [one.verdicts[FUSED].value for one in entry.expected]
    assert verdicts[:16] == ["CLEAN"] * 16
    assert set(verdicts[16:]) <= {"SUSPECT", "ADVERSARIAL"}
    own = {image.numpy().tobytes() for image in splits["calibrate"].x}
    assert {image.numpy().tobytes() for image in kept["clean"]} <= own
    epsilon = 4 * 32 / 255  # the ladder's greatest L-infinity budget: the first that the digits give way to is 32 / 255
    nearer = 0
    for image in kept["attacked"]:
        distances = {name: (part.pixels() - image).flatten(1).norm(dim=1).min() for name, part in splits.items()}
        assert distances["calibrate"] <= 8 * epsilon + 1e-6
        nearer += int(distances["calibrate"] < distances["evaluate"])
    assert (
        nearer >= 12
    )  # half a pixel's range takes an image as near to others; of the evaluation's none would be nearer


def test_fitted_detectors_are_their_owners_alone(
    digits_run: DigitsRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-done ones, and attacked images, as well as published ones; a trained classifier is no secret."""
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("askance.calibration.stages.Stages.remove", lambda _self: None)
    few = digits_run.config.evaluation.model_copy(update={"ladder": False, "benign_images": 0})
    calibrate(small(digits_run.config).model_copy(update={"evaluation": few}), tmp_path / "bundle")
    files = [path for folder in ("bundle.partial", "cache") for path in (tmp_path / folder).rglob("*.safetensors")]
    assert any("fit-library_network" in path.name for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert digits_run.config.classifier.weights.stat().st_mode & 0o777 == 0o644


def test_what_was_verified_is_what_is_evaluated(digits_run: DigitsRun, tmp_path: Path) -> None:
    """Whatever takes a file's place once the bundle is open."""
    bundle = Bundle.open(Path(shutil.copytree(digits_run.bundle.path, tmp_path / "bundle")))
    (bundle.path / "classifier.safetensors").write_bytes(b"another")
    evaluated = evaluate_bundle(bundle, digits_run.config)
    assert evaluated.classifier == digits_run.bundle.evaluation().classifier


def edited(digits_run: DigitsRun, tmp_path: Path, *changes: tuple[str, str]) -> Config:
    path = digits_run.folder / f"edited-{tmp_path.name}.toml"
    path.write_text(changed(digits_run.config_path.read_text(), *changes))
    return load_config(path)


REFUSALS: dict[str, tuple[tuple[str, str], type[AskanceError], str]] = {
    "unknown-layer": (
        ('"conv1", "conv2", "fc1"', '"conv1", "conv9", "fc1"'),
        LayerError,
        "no layer 'conv9': did you mean 'conv2'",
    ),
    "few-calibration": (
        ("train[:250]", "train[:53]"),
        CalibrationError,
        r"adversarial \(split calibrate\) = 0.01 needs at least 99 calibration samples, got 53",
    ),
    "few-fusion": (
        ("train[250:650]", "train[250:263]"),
        CalibrationError,
        r"suspect \(split fuse\) = 0.05 needs at least 19 calibration samples, got 13",
    ),
    "size": (
        ("height = 8", "height = 9"),
        DataError,
        r"the images are \[1, 8, 8\], the classifier takes \[1, 9, 8\]",
    ),
    "factory": (
        ('factory = "digits_cnn"', 'factory = "digit_cnn"'),
        ConfigError,
        "unknown classifier 'digit_cnn'.*did you mean 'digits_cnn'",
    ),
    "other-weights": (('factory = "digits_cnn"', 'factory = "lenet"'), ConfigError, "weights"),
    "no-weights": (
        ("weights/digits_cnn", "weights/none"),
        ConfigError,
        "do not exist: put them there, or under ASKANCE_DATA, or train an example",
    ),
    "names": (
        ('factory = "digits_cnn"', 'factory = "digits_cnn"\nclass_names = ["a", "b"]'),
        ConfigError,
        "10 outputs for 2 class names",
    ),
    "no class in fit": (
        ('fit = "train[650:1497]"', 'fit = "train[650:658]"'),
        DataError,
        "the split fit has no image of class",
    ),
    "vectors": (("digit_attributes.txt", "none.txt"), ConfigError, "cannot read the word vectors .*none.txt"),
    "no-vector": (
        ('file = "digit_attributes.txt"', 'file = "digit_attributes.txt"\nwords = { zero = "nought" }'),
        DataError,
        "class 'zero' has no vector .*looked for 'nought'",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_calibrated_is_refused_before_any_work(
    digits_run: DigitsRun, tmp_path: Path, change: tuple[str, str], kind: type[AskanceError], message: str
) -> None:
    config = edited(digits_run, tmp_path, change)
    with pytest.raises(kind, match=message) as caught:
        calibrate(config, tmp_path / "bundle")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class Mute(nn.Module):
    """A classifier with a layer that is always zero, and one that the forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.zero = nn.ReLU()
        self.unused = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        logits: torch.Tensor = self.linear(flat) + self.zero(-1 - flat.abs()).sum(dim=1, keepdim=True)
        return logits


@pytest.mark.parametrize(
    ("layer", "message"),
    [("zero", "layer 'zero' is zero for every input: it never fires"), ("unused", "layer 'unused' never ran in the")],
)
def test_a_layer_that_never_fires(digits_run: DigitsRun, tmp_path: Path, layer: str, message: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(Mute().state_dict(), digits_run.folder / "mute.safetensors")
    text = digits_run.config_path.read_text()
    text = text.replace("weights/digits_cnn", "mute").replace('"digits_cnn"', '"test_pipeline:Mute"')
    head, _, rest = text.partition("[detectors.library_network]")
    path = digits_run.folder / f"mute-{layer}.toml"
    thresholds = f"[detectors.library_network]\nthresholds = {{ linear = 0.9, {layer} = 0.9 }}\n"
    path.write_text(head + thresholds + "[levels]" + rest.partition("[levels]")[2])
    with pytest.raises(LayerError, match=message):
        calibrate(load_config(path), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_failed_and_successful_attacks_are_apart(digits_run: DigitsRun) -> None:
    """Hand-made scores: the successful attacks score above all clean images, the failed ones below."""
    n = 200
    zeros = torch.zeros(n, dtype=torch.long)
    ranks = torch.arange(n) / 1.0
    clean = SetScores({FUSED: ranks}, zeros, zeros, {"x/up": ranks, "x/down": ranks, "x/blind": zeros.float()})
    half = torch.arange(n) < n // 2
    apart = torch.where(half, 1000.0, -1000.0)
    components = {"x/up": apart, "x/down": -apart, "x/blind": zeros.float()}
    attacked = SetScores({FUSED: apart}, half.long(), zeros, components)
    first, second = digits_run.config.evaluation.attacks[:2]
    distances = {"linf": half.double(), "l2": 2 * half.double()}
    evidence = Evidence(
        clean,
        {FUSED: table(clean.columns[FUSED].numpy())},
        [AttackedSet(first, attacked, distances, True), AttackedSet(second, clean, distances, False)],
        {"controls": {"calm": clean}},
    )
    result = evaluate(evidence, Levels(), ("a", "b"))
    assert Evaluation.from_json(json.loads(json.dumps(result.as_json()))) == result
    row = result.attacks["fgsm"]
    assert (row.attempted, row.successful, row.seen) == (n, n // 2, True)
    assert row.median_distance == {"linf": 1.0, "l2": 2.0}
    assert result.auroc["fgsm"][FUSED] == 1.0
    assert result.intervals["auroc"]["fgsm"][FUSED] == (1.0, 1.0)
    assert result.failed_auroc["fgsm"][FUSED] == 0.0
    # of the successful ones, whichever way a component points
    assert result.component_auroc == {"fgsm": {"x/up": 1.0, "x/down": 1.0, "x/blind": 0.5}, "pgd": {}}
    assert row.flag_rate == {FUSED: {"suspect": 1.0, "adversarial": 1.0}}  # of the successful ones
    assert result.attacks["pgd"].flag_rate == {}
    assert result.attacks["worst_case"].flag_rate == row.flag_rate
    assert result.attacks["pgd"].successful == 0
    assert "pgd" not in result.auroc
    # the only attack that ever succeeded is the worst
    assert result.auroc["worst_case"] == result.auroc["fgsm"]
    # each clean score met its own table: the j-th greatest of 200 has p = (1 + j) / 201
    assert result.clean_flag_rate == {"suspect": 9 / 200, "adversarial": 1 / 200}
    assert result.class_clean_flag_rate == {"a": ClassFigures(suspect=9 / 200, adversarial=1 / 200, images=n)}
    assert result.controls["calm"].flag_rate[FUSED] == result.clean_flag_rate
    assert result.controls["calm"].auroc[FUSED] == 0.5
    low, high = result.clean_flag_rate_interval["suspect"]
    law = betabinom(n, 10, 191)  # k = floor(.05 * 201)
    assert (low, high) == (law.ppf(0.025) / n, law.ppf(0.975) / n)


def test_alone_or_in_a_batch(digits_run: DigitsRun) -> None:
    inputs = load_inputs(digits_run.config)
    detectors = digits_run.bundle.detectors()
    reader, images = TorchReader(inputs.classifier, detectors, inputs.preprocessing), inputs.splits["evaluate"][:40]
    assert isinstance(detectors["library_network"], LibraryNetwork)
    together = score(reader, images, "together", 40)
    alone = score(reader, images, "alone", 1)
    for name in together.readings.scores:
        np.testing.assert_allclose(alone.readings.scores[name], together.readings.scores[name], rtol=1e-4, atol=1e-5)
    for name in together.readings.components:
        np.testing.assert_allclose(
            alone.readings.components[name], together.readings.components[name], rtol=1e-4, atol=1e-4
        )
