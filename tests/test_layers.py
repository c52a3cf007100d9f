"""`askance layers` and `askance config`: what a classifier has to tap, and the configs that come along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from askance.__main__ import run
from askance.calibration.config import load_config
from askance.calibration.layers import Layer, layers_of
from askance.classifiers import resnet20
from askance.screening.preprocessing import Preprocessing
from askance.shipped import shipped_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GREY = Preprocessing(channels=1, height=6, width=6, mean=(0.0,), std=(1.0,))


class Pair(nn.Module):
    """A part that gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Odd(nn.Module):
    """Every way in which a layer cannot be tapped, and two in which it can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.dead = nn.Hardtanh(0, 1e-9)
        self.tokens = nn.LayerNorm(16)
        self.fc = nn.Linear(64, 3)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.conv(x))
        maps, _ = self.pair(self.relu(maps))
        self.dead(maps * 0)
        self.tokens(maps.flatten(2))
        logits: Tensor = self.fc(maps.flatten(1))
        return logits


def found_in(module: nn.Module) -> dict[str, Layer]:
    pixels = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return {one.name: one for one in layers_of(module.eval(), GREY, pixels)}


def test_what_a_pass_shows_of_each_layer() -> None:
    torch.manual_seed(0)
    found = found_in(Odd())
    assert list(found) == ["conv", "relu", "pair", "dead", "tokens", "fc", "unused"]
    assert (found["conv"].shape, found["conv"].width, found["conv"].form) == ((4, 4, 4), 64, "map")
    assert (found["fc"].shape, found["fc"].form, found["fc"].depth) == ((3,), "vector", 1.0)
    assert found["conv"].depth == pytest.approx(1 / 7)  # the ReLU runs twice
    assert {name: one.taps for name, one in found.items()} == {
        "conv": "all detectors",
        "relu": "runs 2 times",
        "pair": "gives tuple, not a tensor",
        "dead": "the same for every image",
        "tokens": "all but maps",
        "fc": "all detectors",
        "unused": "never runs",
    }
    assert [name for name, one in found.items() if one.has_weights] == ["conv", "fc", "unused"]


def test_a_stage_stands_where_its_last_part_does() -> None:
    preprocessing = Preprocessing(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = {one.name: one for one in layers_of(resnet20().eval(), preprocessing, torch.rand(2, 3, 32, 32))}
    assert found["layer1"].shape == (16, 32, 32)
    assert found["layer1"].depth == found["layer1.2"].depth < found["layer2"].depth
    depths = [one.depth for one in found.values()]
    assert depths == sorted(depths)


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    weights = CONFIGS / "weights" / "lenet_mnist.safetensors"
    named = ["--classifier", "lenet", "--weights", str(weights)]
    assert run(["layers", *named, "--shape", "1,28,28"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["conv1", "Conv2d", "20 x 24 x 24", "11,520", "11%", "all detectors"]
    assert cells[-1] == ["fc2", "Linear", "10", "10", "100%", "all detectors"]
    assert len(cells) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a CONFIG, or --classifier and --weights: one of the two"),
        (["--classifier", "lenet"], "--classifier goes with --weights"),
        (["--classifier", "lenet", "--weights", "W"], "give --data, or --shape CHANNELS,HEIGHT,WIDTH"),
        (["--classifier", "lenet", "--weights", "W", "--shape", "1,28"], "expected CHANNELS,HEIGHT,WIDTH, such as"),
        (["--classifier", "lenet", "--weights", "W", "--arguments", "[1]"], "expected a JSON object, such as"),
        (["--classifier", "lenet", "--weights", "W", "--arguments", "{"], "expected JSON, such as"),
        (["--classifier", "lenett", "--weights", "W", "--shape", "1,28,28"], "W: no such file|weights W do not exist"),
        (["--classifier", "lenet", "--wieghts", "W"], "No such option '--wieghts': did you mean '--weights'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_cost_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(part in line for part in message.split("|")), line


def test_a_shipped_config_works_wherever_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "mnist"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    config = load_config(path)
    assert config.classifier.weights == CONFIGS / "weights" / "lenet_mnist.safetensors"
    assert config.word_vectors is not None
    assert config.word_vectors.file == CONFIGS / "digit_attributes.txt"
    assert 'source = "torchvision:MNIST"' in shipped_config("mnist")  # no file: left as it is
    assert run(["config", "mnits"]) == 2
    said = "no config 'mnits': did you mean 'mnist'? known: cifar10, cifar10_allconv, digits, digits_hardened, fashion"
    assert said in capsys.readouterr().err


def test_layers_as_json(tmp_path: Path) -> None:
    weights, out = tmp_path / "w.pt", tmp_path / "layers.json"
    torch.save(resnet20().state_dict(), weights)
    asked = ["layers", "--classifier", "resnet20", "--weights", str(weights), "--shape", "3,32,32", "--json", str(out)]
    assert run(asked) == 0
    rows = {row["layer"]: row for row in json.loads(out.read_text())["layers"]}
    assert next(iter(rows)) == "conv1"
    assert rows["layer2"]["shape"] == [32, 16, 16]
    assert rows["layer2"]["width"] == 32 * 16 * 16
    assert rows["linear"] == {
        "layer": "linear",
        "class": "Linear",
        "shape": [10],
        "width": 10,
        "depth": 1.0,
        "taps": "all detectors",
        "usable": True,
    }
