"""The detectors' diagnoses, by hand where a hand can follow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from calibration_support import DigitsRun
from torch import Tensor, nn
from toy import capture_of

from askance.calibration.doubts import doubts
from askance.calibration.images import Images, ImageStream
from askance.calibration.inputs import load_inputs
from askance.detectors import (
    Capture,
    Introspection,
    IntrospectionOptions,
    LibraryNetwork,
    LibraryNetworkOptions,
    SelfOrganizingMap,
    SelfOrganizingMapOptions,
    SemanticSignature,
    SemanticSignatureOptions,
    Tap,
)


class Scripted(LibraryNetwork):
    """A library network whose answers P [B, L, K] are given, as an activation of the layer `p`."""

    def answers(self, capture: Capture) -> tuple[Tensor, Tensor]:
        given = capture.activations["p"]
        return given, torch.ones(given.shape[:2])

    def sizes(self) -> dict[str, int]:
        return {"a": 7, "b": 9}


def scripted() -> Scripted:
    return Scripted(LibraryNetworkOptions(thresholds={"a": 0.5, "b": 0.5}))


def test_library_agreement_by_hand() -> None:
    # four classes, two layers, three inputs predicted 0, 1, 2
    p = torch.tensor(
        [
            [[4.0, 3, 2, 1], [1, 2, 3, 4]],  # a: best; b: class 0 is last
            [[4, 3, 2, 1], [1, 4, 3, 2]],  # a: second; b: best
            [[4, 1, 2, 3], [4, 3, 2, 1]],  # both: third
        ]
    )
    capture = capture_of({"p": p}, [0, 1, 2], 4)
    agreement = scripted().agreement([capture.select(torch.tensor([0])), capture.select(torch.tensor([1, 2]))])
    assert agreement == {
        "a": {"rows": 7, "top1": pytest.approx(1 / 3), "top3": pytest.approx(1.0)},
        "b": {"rows": 9, "top1": pytest.approx(1 / 3), "top3": pytest.approx(2 / 3)},
    }


def test_confusion_index_by_hand() -> None:
    """Eq. 4, over the inputs of class 0 answered right: softmaxes (1/2, 1/4, 1/4) and (3/4, 1/8, 1/8)."""
    one, two = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.75, 0.125, 0.125]).log()
    wrong = torch.tensor([0.1, 0.8, 0.1]).log()  # answered 1: the trial does not count for class 0
    p = torch.stack([one + 1000, two, wrong])[:, None].expand(3, 2, 3)
    capture = capture_of({"p": p}, [0, 0, 1], 3, labels=[0, 0, 0])
    index = scripted().confusion_index([capture])
    assert index.shape == (2, 3, 3)
    expected = (0.5 * 0.25 + 0.75 * 0.125) / (0.5**2 + 0.75**2)
    assert index[0, 0].tolist() == pytest.approx([1.0, expected, expected], rel=1e-4)
    assert all(math.isnan(value) for value in index[0, 1].tolist())


class Identity(nn.Module):
    """Logits are the first pixels; the layer `look` shows all of them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.look = nn.Flatten()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        flat: Tensor = self.look(x)
        return flat[:, : self.classes]


def test_two_versus_two_of_planted_semantics_is_certain_and_significant() -> None:
    """Images that are the word vectors themselves pass every test; shuffled words do not."""
    torch.manual_seed(0)
    classes, per_class = 8, 6
    words = torch.rand(classes, 16)
    y = torch.arange(classes).repeat(per_class)
    x = (words[y] * 255).round().to(torch.uint8).view(-1, 1, 4, 4)
    images = Images(x, y, tuple("abcdefgh"))
    detector = SemanticSignature(SemanticSignatureOptions(semantic_layers=("look",)), words)
    stream = ImageStream(Tap(Identity(classes).eval(), ["look"]), images, 20)
    result = detector.semantic_accuracy(stream)
    assert result["look"]["two_versus_two"] == 1.0
    assert 1 / 1001 <= result["look"]["p_value"] <= 0.01
    random = SemanticSignature(SemanticSignatureOptions(semantic_layers=("look",)), torch.rand(classes, 16))
    assert random.semantic_accuracy(stream)["look"]["two_versus_two"] < 0.9


def test_map_quality_of_far_clusters() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randint(0, 20, (40, 1, 4, 4)), torch.randint(235, 256, (40, 1, 4, 4))]).to(torch.uint8)
    images = Images(x, torch.arange(80) // 40, ("dark", "bright"))
    stream = ImageStream(Tap(Identity(2).eval(), ["look"]), images, 16)
    detector = SelfOrganizingMap(SelfOrganizingMapOptions(map_layers=("look",), side=4)).fit(stream)
    quality = detector.diagnose(stream, stream)["layers"]["look"]
    assert set(quality) == {"quantization_error", "topographic_error", "units_used", "mean_center_distance"}
    assert 0 < quality["quantization_error"] < 1.0  # far less than the 8 standard deviations between the clusters
    assert 0 <= quality["topographic_error"] <= 1
    assert 2 / 16 <= quality["units_used"] <= 1


# Layers of no use


def test_a_library_that_tells_nothing() -> None:
    figures = {
        "layers": {
            "a": {"rows": 2, "top1": 0.9, "top3": 1.0},
            "b": {"rows": 300, "top1": 0.11, "top3": 0.3},
            "c": {"rows": 3, "top1": 0.13, "top3": 0.3},
        }
    }
    detector = LibraryNetwork(LibraryNetworkOptions(thresholds={"a": 0, "b": 0.5, "c": 0.5}))
    assert detector.doubts(figures, 10) == {
        "a": "with the threshold 0 its library holds 2 patterns: raise it",
        "b": "its library agrees with the classifier on 11.0%, chance is 10.0%",
    }


def test_a_map_of_two_units_in_use() -> None:
    detector = SelfOrganizingMap(SelfOrganizingMapOptions(map_layers=("a", "b"), side=4))
    figures = {"layers": {"a": {"units_used": 2 / 16}, "b": {"units_used": 3 / 16}}}
    assert detector.doubts(figures, 10) == {"a": "all images fall on 2 of the map's 16 units"}


def test_a_signature_no_better_than_chance() -> None:
    detector = SemanticSignature(SemanticSignatureOptions(semantic_layers=("a", "b")), torch.rand(6, 5))
    figures = {"layers": {"a": {"two_versus_two": 0.48}, "b": {"two_versus_two": 0.51}}}
    assert detector.doubts(figures, 10) == {"a": "it passes 48.0% of the 2 vs 2 tests, chance is 50%"}


def test_an_activation_map_without_classes() -> None:
    detector = Introspection(IntrospectionOptions(hidden_layers=("a", "b")))
    why = "neighbours on the activation map agree with the classifier on 10.0%, chance is 10.0%"
    assert detector.doubts({"knn_agreement": 0.1}, 10) == {"a": why, "b": why}
    assert detector.doubts({"knn_agreement": 0.13}, 10) == {}


def test_what_the_figures_leave_open_is_not_doubted() -> None:
    detectors = (
        LibraryNetwork(LibraryNetworkOptions(thresholds={"a": 0, "b": 0.5})),
        SelfOrganizingMap(SelfOrganizingMapOptions(map_layers=("a",))),
        SemanticSignature(SemanticSignatureOptions(semantic_layers=("a",)), torch.rand(6, 5)),
        Introspection(IntrospectionOptions(hidden_layers=("a",))),
    )
    assert [detector.doubts({}, 10) for detector in detectors] == [{}] * 4


class Dull(nn.Module):
    """A classifier of digits with a layer that gives the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.dull = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        constant: Tensor = self.dull(flat * 0)
        logits: Tensor = self.linear(flat)
        return logits + constant[:, :10]


def test_layers_of_no_use_are_said_when_the_detectors_are_fitted(
    digits_run: DigitsRun, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = replace(load_inputs(digits_run.config), classifier=Dull().eval())
    detector = LibraryNetwork(LibraryNetworkOptions(thresholds={"dull": 0.9, "linear": -1}))
    detector.fit(inputs.stream("fit", detector))
    diagnostics = {
        detector.kind: detector.diagnose(inputs.stream("fit", detector), inputs.stream("evaluate", detector))
    }
    capsys.readouterr()
    found = {
        "dull": "with the threshold 0.9 its library holds 1 pattern: raise it",
        "linear": "with the threshold -1 its library holds 1 pattern: raise it",
    }
    assert doubts(inputs, {detector.kind: detector}, diagnostics) == {"library_network": found}
    assert capsys.readouterr().err.splitlines() == [
        f"warning: library_network has no use of layer {layer}: {why}" for layer, why in found.items()
    ]
    assert doubts(inputs, {detector.kind: detector}, {}) == {
        "library_network": {"dull": "it gives the same for every image"}
    }


def test_the_shipped_digits_have_no_layer_of_no_use(digits_run: DigitsRun) -> None:
    assert digits_run.bundle.evaluation().doubts == {}
