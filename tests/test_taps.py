"""Which layers a first config taps, and who gets which images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from askance.calibration.layers import layers_of
from askance.calibration.sharing import OPTIMISTIC, shared_out
from askance.calibration.taps import MOST, Taps, taps_for
from askance.classifiers import DigitsCNN, LeNet, build_classifier, resnet44
from askance.errors import ConfigError, DataError
from askance.screening.preprocessing import Preprocessing


def taps_of(classifier: nn.Module, *shape: int) -> Taps:
    channels, height, width = shape
    preprocessing = Preprocessing.model_validate(
        {"channels": channels, "height": height, "width": width, "mean": [0.5] * channels, "std": [0.5] * channels}
    )
    pixels = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return taps_for(layers_of(classifier.eval(), preprocessing, pixels))


def test_the_examples_get_the_layers_of_their_papers() -> None:
    """Those of the shipped configs, which were chosen by hand."""
    torch.manual_seed(0)
    assert taps_of(LeNet(), 1, 28, 28) == Taps(*(("conv1", "conv2", "fc1", "fc2"),) * 2, hidden=("relu3", "fc2"))
    assert taps_of(DigitsCNN(), 1, 8, 8).hidden == ("relu3", "fc2")
    found = taps_of(resnet44(), 3, 32, 32)
    assert found.parts == found.mapped == ("conv1", "layer1", "layer2", "layer3", "linear")
    assert found.hidden == ("pool", "linear")


@pytest.mark.parametrize(
    ("name", "parts", "hidden"),
    [
        ("resnet18", ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"), ("avgpool", "fc")),
        ("vgg11", ("features.0", "features.6", "features.11", "features.16", "features.18", "classifier"), None),
        ("mobilenet_v3_small", None, ("classifier.2", "classifier")),
    ],
)
def test_torchvisions(name: str, parts: tuple[str, ...] | None, hidden: tuple[str, ...] | None) -> None:
    torch.manual_seed(0)
    found = taps_of(build_classifier(f"torchvision:{name}", {"num_classes": 4}), 3, 32, 32)
    assert parts is None or found.parts == parts
    assert hidden is None or found.hidden == hidden
    assert 4 <= len(found.parts) <= MOST
    assert found.parts[-1] == found.hidden[-1]


class Wrapped(nn.Module):
    """A network inside a module, with a stage that gives a tuple and tokens in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict(
            {"stem": nn.Conv2d(1, 4, 3), "memory": nn.LSTM(36, 5, batch_first=True), "mix": nn.Linear(5, 5)}
        )
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.inner["memory"](self.inner["stem"](x).flatten(2))[0]
        logits: Tensor = self.head(self.inner["mix"](tokens).flatten(1))
        return logits


def test_what_cannot_be_tapped_is_looked_into_or_left_out() -> None:
    torch.manual_seed(0)
    found = taps_of(Wrapped(), 1, 8, 8)
    assert found.parts == ("inner.stem", "inner.mix", "head")
    assert found.mapped == ("inner.stem", "head")  # tokens have no map
    assert found.hidden == ("inner.mix", "head")
    alone = taps_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 1, 2, 2)
    assert alone == Taps(("1",), ("1",), ("0", "1"))


def cut(pools: dict[str, int], trained_on: Any = None) -> dict[str, str]:
    return dict(shared_out(pools, trained_on).splits)


def test_two_pools_keep_the_unseen_one_for_what_must_be_unseen() -> None:
    assert cut({"train": 60000, "test": 10000}) == {
        "fit": "train[:10000]",
        "held_out": "test[:2000]",
        "calibrate": "test[2000:4500]",
        "fuse": "test[4500:7000]",
        "evaluate": "test[7000:10000]",
    }
    few = shared_out({"train": 300, "test": 200}, "train")
    assert few.sizes == {"fit": 300, "calibrate": 60, "fuse": 60, "evaluate": 60}  # 20 are too few to learn errors of
    assert few.levels == {"suspect": 0.05, "adversarial": 0.017}
    assert not few.warning


@pytest.mark.parametrize("trained_on", ["none", "all"])
def test_one_pool_is_shared_out_to_all(trained_on: Any) -> None:
    shares = shared_out({"train": 1000}, trained_on)
    assert shares.splits == {
        "fit": "train[:500]",
        "calibrate": "train[500:650]",
        "fuse": "train[650:800]",
        "evaluate": "train[800:1000]",
    }
    assert shares.warning == (OPTIMISTIC if trained_on == "all" else "")
    assert shares.levels == {"suspect": 0.05, "adversarial": 0.01}
    assert shared_out({"train": 500}, trained_on).sizes == {"fit": 200, "calibrate": 100, "fuse": 100, "evaluate": 100}


def test_nothing_is_assumed_of_one_pool() -> None:
    for said in (None, "train"):
        with pytest.raises(ConfigError, match=r"give such as --test-data; or say of these --trained-on none"):
            cut({"train": 1000}, said)
    with pytest.raises(DataError, match=r"^99 images cannot be shared out: expected at least 100$"):
        cut({"train": 99}, "none")
