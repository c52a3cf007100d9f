"""Pulled-back rows: the products that a library asks of a convolution, from the convolution's input."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from marks import LASTING
from service_support import GREY, SIDE
from torch import Tensor, nn

from askance.calibration import exporting
from askance.calibration.exporting import graphs_of
from askance.calibration.pulling import pull_back
from askance.detectors import Detector, LibraryNetwork, LibraryNetworkOptions, Screen, Tap
from askance.detectors.reader import TorchReader, read
from askance.errors import ExportError
from askance.judgement import Calibration
from askance.screening.bundle import ALONE
from askance.screening.graph import GraphReader

CLASSES = ("ant", "bee", "cat")
NAME = "all"


class Convolved(nn.Module):
    """A convolution, tapped before its nonlinearity, and a linear layer."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.conv = convolution
        self.fc = nn.Linear(convolution(torch.zeros(1, 1, SIDE, SIDE)).numel(), len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).relu().flatten(1))
        return logits


def screened(convolution: nn.Module, sampled: int | None = None) -> Screen[TorchReader]:
    torch.manual_seed(0)
    classifier = Convolved(convolution).eval()
    options = LibraryNetworkOptions(thresholds={"conv": 0.9, "fc": 0.5}, sampled_neurons=sampled, seed=0)
    detectors: dict[str, Detector] = {"library_network": LibraryNetwork(options)}
    images = torch.rand(300, *GREY.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Tap(classifier, ["conv", "fc"], GREY.normalize) as tap:
        captures = [tap(part) for part in images.split(150)]
        detectors["library_network"].fit([captures[0]])
    readings = read(detectors, captures[1])
    calibration = Calibration.fit(readings, readings)
    return Screen(TorchReader(classifier, detectors, GREY), GREY, CLASSES, detectors, calibration)


def convolution(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(1, kernel_size=3, **({"out_channels": 16, "padding": 1} | options))


def exported(screen: Screen[TorchReader], monkeypatch: pytest.MonkeyPatch) -> tuple[GraphReader, int, set[str]]:
    """Its graph, how many products were pulled back for it, and the names of its large tensors."""
    changed: list[int] = []

    def counted(model: ir.Model) -> int:
        changed.append(pull_back(model))
        return changed[-1]

    monkeypatch.setattr(exporting, "pull_back", counted)
    models = graphs_of({NAME: screen}, torch.rand(40, *GREY.shape, generator=torch.Generator().manual_seed(1)).numpy())
    return GraphReader(models[NAME], models[ALONE], list(screen.detectors)), changed[0], set(models[NAME].tensors)


@pytest.mark.parametrize(
    "made",
    [
        convolution(),
        convolution(out_channels=64, stride=2),
        nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), convolution(padding=0)),
        *(
            pytest.param(one, marks=LASTING)
            for one in (
                convolution(bias=False),
                convolution(stride=1, padding=2, dilation=2),
                convolution(padding=0),
                convolution(padding="same"),
            )
        ),
    ],
    ids=str,
)
def test_products_are_the_same_from_less_memory(made: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screened(made)
    reader, changed, tensors = exported(screen, monkeypatch)
    assert changed == 1
    assert not any(name.endswith("libraries.0.rows") for name in tensors)
    images = torch.rand(64, *GREY.shape, generator=torch.Generator().manual_seed(2))
    images[0], images[1] = 0.0, 1.0
    one, other = screen.reader(images).readings["library_network"], reader(images).readings["library_network"]
    torch.testing.assert_close(other.score, one.score, rtol=0, atol=3e-6)  # scores are rounded to six decimals
    for name, values in one.components.items():
        torch.testing.assert_close(other.components[name], values, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("made", "sampled"),
    [
        (nn.Conv2d(1, 2, 3, padding=1), None),
        (nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()), None),
        (nn.Conv2d(1, 16, 3, padding=1), 300),
        (nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1024)), None),
    ],
    ids=["no less memory", "a nonlinearity", "some of its neurons", "linear"],
)
def test_what_cannot_be_pulled_back_stays(
    made: nn.Module, sampled: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = screened(made, sampled)
    reader, changed, _ = exported(screen, monkeypatch)
    assert not changed
    images = torch.rand(16, *GREY.shape, generator=torch.Generator().manual_seed(2))
    one, other = screen.reader(images).readings["library_network"], reader(images).readings["library_network"]
    torch.testing.assert_close(other.score, one.score, rtol=0, atol=3e-6)


def test_a_graph_that_judges_otherwise_keeps_the_rows_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screened(convolution())
    judge, tried = exporting._require_the_same, []

    def once(*arguments: Any) -> None:
        tried.append(arguments)
        if len(tried) == 1:
            raise ExportError("a tie")
        judge(*arguments)

    monkeypatch.setattr(exporting, "_require_the_same", once)
    _, changed, tensors = exported(screen, monkeypatch)
    assert changed == 1
    assert len(tried) == 2
    assert not any("pulled" in name for name in tensors)
