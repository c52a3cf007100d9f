"""Graphs: what ONNX Runtime makes of a bundle is what torch makes of it, and what cannot be a graph serves without."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import torch
from bundle_support import edit
from calibration_support import DigitsRun
from numpy.typing import NDArray
from service_support import CLASSES, GREY, RGB, TinyClassifier, noise, parts, publish_tiny, running
from torch import Tensor
from toy import Trained, answered

import askance
from askance.__main__ import run
from askance.answers import FUSED, Answer
from askance.calibration.exporting import graphs_of
from askance.calibration.pipeline import evaluate_bundle
from askance.classifiers import build_classifier
from askance.classifiers.torchvision_compat import import_torchvision
from askance.detectors import (
    Bundle,
    Constellation,
    ConstellationOptions,
    Detector,
    Inputs,
    LibraryNetwork,
    LibraryNetworkOptions,
    Screen,
    SelfOrganizingMap,
    SelfOrganizingMapOptions,
    tap_for,
)
from askance.detectors.comparison import but_for_a_step, difference
from askance.detectors.publishing import publish_with_graphs
from askance.detectors.reader import TorchReader, read
from askance.engines import Engine
from askance.errors import BundleError, ConfigError, ExportError, ScreenError
from askance.images import Batch
from askance.judgement import Calibration
from askance.opening import screen_of
from askance.output import print_bundle
from askance.screening.bundle import NO_GRAPH
from askance.screening.graph import LAYOUT
from askance.screening.reading import Observe, Read, Reader, Reading
from askance.service.client_messages import request_of
from askance.service.runtime.model import LoadedBundle

SMOOTH = ("library_network", "introspection", "semantic_signature")
"""Whose scores are not made of ranks, which rise in steps: of one among 300, here."""


def nobody(_factory: str | None, _arguments: Mapping[str, Any], _weights: Mapping[str, Tensor]) -> NoReturn:
    """Builds no classifier: a graph needs none."""
    raise AssertionError


@pytest.fixture(scope="module")
def graphed(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all five detectors with its graphs, to be read and nothing else."""
    path = tmp_path_factory.mktemp("graphed") / "digits"
    assert run(["export", str(published), "--out", str(path)]) == 0
    return path


def pair(path: Path, single_pass: bool = False) -> tuple[Screen[TorchReader], Screen]:
    """The same bundle by torch and by its graph."""
    bundle = Bundle.open(path)
    by_graph = screen_of(bundle, Engine.ONNXRUNTIME, nobody, single_pass=single_pass)
    return bundle.screen(build_classifier, single_pass=single_pass), by_graph


def inputs(trained: Trained) -> Tensor:
    """Clean images, attacked ones, noise, and images of one value, in pixels."""
    clean, labels = (part[:120] for part in trained.part("evaluate"))
    attacked = [trained.attack(clean, labels, epsilon, steps) for epsilon, steps in ((0.1, 1), (0.2, 20), (0.5, 20))]
    g = torch.Generator().manual_seed(0)
    flat = torch.stack([torch.full(clean.shape[1:], value) for value in (0.0, 0.25, 0.5, 1.0)])
    return torch.cat([clean, *attacked, torch.rand(40, *clean.shape[1:], generator=g), flat])


@pytest.mark.parametrize("single_pass", [False, True], ids=["all", "single pass"])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_graph_answers_as_torch_does(trained: Trained, graphed: Path, size: int, single_pass: bool) -> None:
    """The class, the verdict and every flag; scores within a ten-thousandth of themselves, p-values within a rank."""
    by_torch, by_graph = pair(graphed, single_pass)
    images = inputs(trained) if size > 1 else inputs(trained)[::10]
    tables = {**by_torch.calibration.tables, **by_torch.calibration.judged}
    compared = 0
    for part in images.split(size):
        for one, other in zip(answered(by_torch(part)), answered(by_graph(part)), strict=True):
            assert other[0].label == one[0].label
            assert other[0].probabilities == pytest.approx(one[0].probabilities, abs=1e-5)
            assert other[1] is one[1]
            words = [(one[2].fused, other[2].fused), *zip(one[2].detectors, other[2].detectors, strict=True)]
            for mine, theirs in words:
                assert (theirs.name, theirs.flags) == (mine.name, mine.flags)
                assert abs(theirs.p_value - mine.p_value) * (len(tables[mine.name]) + 1) < 1.01
                step = 0.0 if mine.name in SMOOTH else 0.01
                assert theirs.score == pytest.approx(mine.score, rel=1e-4, abs=1e-5 + step)
                compared += 1
            assert [reason.flags for reason in other[2].reasons] == [reason.flags for reason in one[2].reasons]
    assert compared > 4 * len(images)


@pytest.mark.acceptance
@pytest.mark.lasting
def test_the_tables_are_the_same_by_the_graph(digits_run: DigitsRun, tmp_path: Path) -> None:
    """What `askance evaluate --engine onnxruntime` is for."""
    bundle = publish_with_graphs(digits_run.bundle, tmp_path / "B", build=build_classifier, export=graphs_of)
    assert bundle.graphs is not None
    evaluation = evaluate_bundle(Bundle.open(tmp_path / "B"), digits_run.config, Engine.ONNXRUNTIME)
    first = digits_run.bundle.evaluation()
    compared = 0
    for attack, row in first.auroc.items():
        assert evaluation.auroc[attack] == pytest.approx(row, abs=0.002)
        assert evaluation.tpr_at_fpr_1[attack] == pytest.approx(first.tpr_at_fpr_1[attack], abs=0.05)
        compared += len(row)
    assert compared > 20
    assert evaluation.clean_flag_rate == pytest.approx(first.clean_flag_rate, abs=0.02)


def test_a_bundle_without_a_graph_is_not_evaluated_by_one(digits_run: DigitsRun) -> None:
    with pytest.raises(BundleError, match="has no graph, which the engine onnxruntime computes: askance export"):
        evaluate_bundle(digits_run.bundle, digits_run.config, Engine.ONNXRUNTIME)


def test_a_graph_explains_as_torch_does(trained: Trained, graphed: Path) -> None:
    images, _ = trained.part("evaluate")
    for one, other in zip(*(answered(screen(images[:8], explain=True)) for screen in pair(graphed)), strict=True):
        for mine, theirs in zip(one[2].detectors, other[2].detectors, strict=True):
            assert mine.explanation is not None
            assert theirs.explanation is not None
            assert_alike(dict(mine.explanation), dict(theirs.explanation))


def assert_alike(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-3, abs=2e-3)
    else:
        assert one == other


def test_the_classifier_alone(trained: Trained, graphed: Path) -> None:
    by_torch, by_graph = pair(graphed)
    images, _ = trained.part("evaluate")
    for size in (1, 40):
        expected, found = by_torch.classify(images[:size]), by_graph.classify(images[:size])
        for one, other in zip(expected, found, strict=True):
            assert isinstance(one, Answer)
            assert isinstance(other, Answer)
            assert one.prediction is not None
            assert other.prediction is not None
            assert other.label == one.label
            assert other.prediction.logits == pytest.approx(one.prediction.logits, abs=1e-4)
            assert (other.verdict, other.reason) == (one.verdict, one.reason)


def test_a_bad_image_fails_alone(trained: Trained, graphed: Path) -> None:
    _, by_graph = pair(graphed)
    images = trained.part("evaluate")[0][:3].clone()
    images[1] = torch.nan
    answers = by_graph(images)
    assert isinstance(answers[1], ScreenError)
    assert all(isinstance(answers[i], Answer) for i in (0, 2))


def test_what_a_graph_is(graphed: Path) -> None:
    """One model for each fused score, and one of the classifier alone; any batch; the detectors' own names in it."""
    bundle = Bundle.open(graphed)
    assert bundle.manifest.graphs is not None
    models = bundle.manifest.graphs.models
    assert {which: model.file for which, model in models.items()} == {
        "classifier": "classifier.onnx",
        "fused": "graph.onnx",
        "fused_single_pass": "graph_single_pass.onnx",
    }
    for which, entry in models.items():
        content = bundle.content(entry.file)
        model = onnx.load_from_string(content)
        (pixels,) = model.graph.input
        assert pixels.name == "images"
        assert pixels.type.tensor_type.shape.dim[0].dim_param
        layout = {one.key: one.value for one in model.metadata_props}
        if which == "classifier":
            assert [output.name for output in model.graph.output] == ["logits"]
        else:
            kinds = [one.kind for one in bundle.manifest.detectors if one.kind != "constellation" or which == "fused"]
            assert list(json.loads(layout[LAYOUT])) == kinds
        assert str(Path(__file__).resolve().parent.parent).encode() not in content  # nor where it was made


def test_no_tensor_is_in_a_bundle_twice(graphed: Path, published: Path) -> None:
    """Models refer to those that detectors and classifier have, but for small ones that are made ready for them."""
    graphs = Bundle.open(graphed).manifest.graphs
    assert graphs is not None
    places = [place for model in graphs.models.values() for place in model.tensors.values()]
    assert any(place.startswith("classifier.safetensors/") for place in places)
    sizes = [sum(file.stat().st_size for file in path.rglob("*")) for path in (published, graphed)]
    assert sizes[1] < 1.8 * sizes[0]


def test_a_bundle_without_graphs_is_as_it_was(published: Path, graphed: Path) -> None:
    """Its id, too; by itself torch computes it, and who wants a graph is told how to have one."""
    content = json.loads((published / "manifest.json").read_text())
    assert "graphs" not in content
    assert Bundle.open(published).manifest.id != Bundle.open(graphed).manifest.id
    bundle = Bundle.open(published)
    assert screen_of(bundle, Engine.AUTO, build_classifier).reader.engine == "torch"
    assert screen_of(Bundle.open(graphed), Engine.AUTO, nobody).reader.engine == "onnxruntime"
    assert screen_of(Bundle.open(graphed), Engine.TORCH, build_classifier).reader.engine == "torch"
    with pytest.raises(BundleError, match=r"has no graph, which the engine onnxruntime computes: askance export "):
        screen_of(bundle, Engine.ONNXRUNTIME, build_classifier)


def test_export(published: Path, graphed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older bundle, once more: the same but for its graphs and its id."""
    made, old = Bundle.open(graphed), Bundle.open(published)
    assert made.manifest.id != old.manifest.id
    for name in old.manifest.files:
        assert made.content(name) == old.content(name)
    assert made.manifest.created == old.manifest.created
    assert run(["inspect", str(graphed)]) == 0
    assert "computed by its graph, by ONNX Runtime" in capsys.readouterr().out
    assert run(["inspect", str(graphed), "--verify"]) == 0
    assert "verified    40 images judged by its graph as by torch" in capsys.readouterr().out
    assert run(["inspect", str(published), "--verify"]) == 2
    assert "has no graph" in capsys.readouterr().err
    assert run(["export", str(published), "--out", str(graphed)]) == 2
    assert "exists and a bundle is never changed" in capsys.readouterr().err


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_vision_transformer_has_a_graph() -> None:
    """torchvision's own, but smaller: attention, tokens and all; `graphs_of` would refuse one that judges otherwise."""
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    layers = ("conv_proj", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "heads")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=len(CLASSES)
        ).eval()
        torch.nn.init.normal_(classifier.get_submodule("heads.head").weight)  # type: ignore[arg-type]
    preprocessing = RGB.model_copy(update={"height": 32, "width": 32})
    images = torch.rand(400, *preprocessing.shape, generator=torch.Generator().manual_seed(0))
    detectors: dict[str, Detector] = {
        "library_network": LibraryNetwork(LibraryNetworkOptions(thresholds=dict.fromkeys(layers, 0.9))),
        "self_organizing_map": SelfOrganizingMap(
            SelfOrganizingMapOptions(map_layers=("conv_proj", "heads"), side=4, epochs=2)
        ),
        "constellation": Constellation.create(
            ConstellationOptions(displacement_layers=layers[1:3], seed=0), Inputs(preprocessing.shape, CLASSES)
        ),
    }
    with torch.no_grad(), tap_for(classifier, detectors.values(), preprocessing.normalize) as tap:
        captures = [replace(found, labels=found.predicted) for found in map(tap, images.split(200))]
        for detector in detectors.values():
            detector.fit([captures[0]])
        readings = read(detectors, captures[1])
    reader = TorchReader(classifier, detectors, preprocessing)
    screen = Screen(reader, preprocessing, CLASSES, detectors, Calibration.fit(readings, readings))
    models = graphs_of({FUSED: screen}, images[:40].numpy())
    assert {"classifier", FUSED} == set(models)


class Choosing(TinyClassifier):
    """What it computes depends on what it computed, in Python."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.mean()) > -1 else -images)


def test_what_cannot_be_a_graph_serves_by_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, detectors, calibration = parts()
    classifier = Choosing().eval()
    classifier.load_state_dict(tiny.state_dict())
    screen = Screen(TorchReader(classifier, detectors, GREY), GREY, CLASSES, detectors, calibration)
    with pytest.raises(ExportError) as caught:
        graphs_of({FUSED: screen}, torch.rand(4, *GREY.shape).numpy())
    assert "\n" not in str(caught.value)

    def refuse(_screens: object, _images: object) -> NoReturn:
        raise caught.value

    publish_tiny(tmp_path / "tiny", export=refuse)
    bundle = Bundle.open(tmp_path / "tiny")
    assert bundle.manifest.provenance[NO_GRAPH] == str(caught.value)
    assert bundle.manifest.graphs is None
    print_bundle(bundle)
    shown = capsys.readouterr()
    assert f"computed by torch alone ({caught.value})" in shown.out
    assert not shown.err  # torch shows what it could not export


@pytest.mark.parametrize("which", ["classifier", "library_network", "self_organizing_map"])
def test_a_graph_that_differs_is_noticed(trained: Trained, graphed: Path, which: str) -> None:
    """Other weights of the classifier, or another state of a detector, by a thousandth."""
    by_torch, by_graph = pair(graphed)
    images = inputs(trained)
    assert difference(by_torch, by_graph.reader, images) is None
    altered = by_torch.reader.tap.module if which == "classifier" else by_torch.reader.detectors[which]
    for name, tensor in altered.state_dict().items():
        if tensor.is_floating_point() and ("weight" in name or "rows" in name or "units" in name):
            tensor.mul_(1.01)
    if isinstance(altered, Detector):
        altered.prepare()
    assert difference(by_torch, by_graph.reader, images) is not None


BASE = """
import sys
from askance.__main__ import EXTRA_PACKAGES, run
sys.modules.update(dict.fromkeys(EXTRA_PACKAGES))
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("options", [[], ["--verify"]], ids=["", "verified"])
def test_a_server_without_the_calibrations_packages_inspects_it(graphed: Path, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BASE, "inspect", str(graphed), *options], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("images judged by its graph as by torch" in done.stdout) is bool(options)


Logits = NDArray[Any]


class Otherwise:
    """A reader whose classifier alone answers otherwise."""

    engine = "torch"
    stages: tuple[str, ...] = ("classify",)

    def __init__(self, reader: Reader, answer: Callable[[Logits], Logits]) -> None:
        self.read, self.answer, self.to, self.close = reader, answer, reader.to, reader.close

    def __call__(self, images: Batch, observe: Observe | None = None) -> Read:
        return self.read(images, observe)

    def classify(self, images: Batch) -> Logits:
        return self.answer(self.read.classify(images))


def test_a_step_of_rounding_is_no_difference() -> None:
    """Of a very sure classifier, or among few clean images, it is a rank."""
    score, novelty = np.zeros(3, "f4"), np.array([0.000499, 0.0005, 0.25], "f4")
    of_torch = Reading(score, {"novelty": novelty}, step=1.2e-6)
    other = Reading(score, {"novelty": novelty + np.array([1e-6, -5e-6, 0.01], "f4")}, step=1.2e-6)
    found = but_for_a_step(other, of_torch).components["novelty"]
    assert found[0] == novelty[0]
    assert found[1:].tolist() == other.components["novelty"][1:].tolist()
    assert but_for_a_step(other, replace(of_torch, step=0.0)) is other


def test_logits_are_compared_with_how_far_they_lie_apart(trained: Trained, graphed: Path) -> None:
    """Many are close to 0, of which a share is nothing."""
    by_torch, _ = pair(graphed)
    images = inputs(trained)[::20]

    def off(share: float) -> Callable[[Logits], Logits]:
        return lambda logits: logits + share * np.ptp(logits, axis=1, keepdims=True)

    for answer, found in (
        (off(9e-5), None),
        (off(1.2e-4), "other logits"),
        (lambda logits: np.where(logits < 5, logits, np.inf), "other logits"),
        (lambda logits: np.where(logits < 5, logits, np.nan), "other logits"),
    ):
        assert difference(by_torch, Otherwise(by_torch.reader, answer), images) == found


def rewritten(path: Path, name: str, content: bytes) -> None:
    """Put another file in a bundle, and all hashes with it."""
    (path / name).write_bytes(content)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    edit(path, change)


@pytest.fixture
def copied(graphed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(graphed, tmp_path / "digits"))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("graph.onnx", b"", "its graph cannot be computed here"),
        ("graph.onnx", b"no model at all", "its graph cannot be computed here"),
        ("classifier.onnx", b"\x08\x0a", "its graph cannot be computed here"),
    ],
    ids=["empty", "garbage", "truncated"],
)
def test_a_graph_that_is_none(copied: Path, name: str, content: bytes, line: str) -> None:
    rewritten(copied, name, content)
    with pytest.raises(BundleError, match=line) as caught:
        screen_of(Bundle.open(copied), Engine.AUTO, nobody)
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_another_one(copied: Path) -> None:
    rewritten(copied, "graph.onnx", (copied / "classifier.onnx").read_bytes())

    def change(manifest: dict[str, Any]) -> None:
        models = manifest["graphs"]["models"]
        models["fused"]["tensors"] = models["classifier"]["tensors"]

    edit(copied, change)
    with pytest.raises(BundleError, match="its graph does not say what its detectors read: calibrate again"):
        screen_of(Bundle.open(copied), Engine.AUTO, nobody)


@pytest.mark.parametrize("place", ["{}", "../secret.bin", "secret.bin"], ids=["absolute", "above", "beside"])
def test_a_graph_reads_no_other_files(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A tensor that is said to be in a file, which is there, wherever that is looked for."""
    for folder in (tmp_path, copied):
        (folder / "secret.bin").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(copied)
    model = onnx.load_from_string((copied / "classifier.onnx").read_bytes())
    tensor = next(one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL)
    tensor.external_data[0].value = place.format(tmp_path / "secret.bin")
    edit(copied, lambda manifest: manifest["graphs"]["models"]["classifier"]["tensors"].pop(tensor.name))
    rewritten(copied, "classifier.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="its graph cannot be computed here"):
        screen_of(Bundle.open(copied), Engine.AUTO, nobody)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda models: models.pop("classifier"), "names a file that bundles do not hold, 'classifier.onnx'"),
        (lambda models: models.update(classifier=models.pop("fused")), "names a file that bundles do not hold"),
        (lambda models: models["fused"]["tensors"].update(other="nowhere.safetensors/x"), "its graphs are incomplete"),
        (lambda models: models["fused"]["tensors"].update(other="graphs.safetensors/x"), "its graphs are incomplete"),
        (lambda models: models["fused"].update(file="elsewhere.onnx"), "names a file that bundles do not hold"),
        (lambda models: models["fused"]["tensors"].popitem(), "its graph cannot be computed here"),
    ],
    ids=["no classifier", "one for another", "no file", "no tensor", "no model", "a tensor less"],
)
def test_graphs_that_are_incomplete(copied: Path, change: Callable[[dict[str, Any]], object], line: str) -> None:
    def altered(manifest: dict[str, Any]) -> None:
        change(manifest["graphs"]["models"])

    edit(copied, altered)
    with pytest.raises(BundleError, match=line) as caught:
        screen_of(Bundle.open(copied), Engine.AUTO, nobody)
    assert str(copied) in str(caught.value)


def test_opened_in_this_process(trained: Trained, graphed: Path) -> None:
    image = trained.part("evaluate")[0][0].numpy()
    with askance.open(graphed, allowed_factories=()) as by_itself:
        assert by_itself._screen.reader.engine == "onnxruntime"
        verdict = by_itself(image).verdict
    with askance.open(graphed, engine="torch") as by_torch:
        assert by_torch._screen.reader.engine == "torch"
        assert by_torch(image).verdict == verdict
    with askance.open(graphed, classifier=trained.classifier) as own:  # who brings a classifier means it
        assert own._screen.reader.engine == "torch"
    with pytest.raises(ConfigError, match="unknown engine 'onnxrutime': did you mean 'onnxruntime'"):
        askance.open(graphed, engine="onnxrutime")
    with pytest.raises(ConfigError, match=r"device .cuda. cannot be used with a graph: expected cpu, or "):
        askance.open(graphed, engine="onnxruntime", device="cuda")


def test_a_module_of_no_factory_needs_nobody_to_bring_it(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "live", factory=None, export=graphs_of)
    with askance.open(tmp_path / "live") as screen:
        assert screen(noise(1)).verdict is not None


def test_a_server_says_what_computes(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "tiny", export=graphs_of)
    served = LoadedBundle.open(tmp_path / "tiny", nobody)

    async def main() -> None:
        async with running(served) as service:
            answer = await service.stub.Screen(request_of(noise(1), explain=True))
            assert answer.bundle_id == served.bundle_id
            info = {"id": served.bundle_id, "classifier": "tiny", "engine": "onnxruntime"}
            assert service.value("askance_bundle_info", **info) == 1
            assert service.value("askance_stage_seconds_count", stage="graph") == 1
            assert service.value("askance_stage_seconds_count", stage="classify") is None

    asyncio.run(main())
