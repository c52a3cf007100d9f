"""The example classifiers, and loading one's own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from askance.classifiers import (
    AllConv,
    CifarResNet,
    DigitsCNN,
    LeNet,
    Net1,
    build_classifier,
    load_weights,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
)
from askance.detectors import Tap
from askance.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_torchvision_imports_with_or_without_its_operators() -> None:
    code = """
from askance.classifiers.torchvision_compat import import_torchvision
torchvision = import_torchvision()
assert import_torchvision() is torchvision
from torchvision import datasets, models, transforms
import torch
assert models.resnet18(weights=None, num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
assert transforms.functional.resize(torch.zeros(1, 8, 8), [4, 4]).shape == (1, 4, 4)
print("works")
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "works\n"


def test_schemas_are_declared_only_when_the_plain_import_fails() -> None:
    plain = run_python("import torchvision")
    code = """
from askance.classifiers import torchvision_compat
torchvision_compat.import_torchvision()
print(len(torchvision_compat._fragments))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (1 if "torchvision::nms does not exist" in plain.stderr else 0)


def test_importing_classifiers_imports_no_torchvision() -> None:
    done = run_python("import sys, askance.classifiers; print('torchvision' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


SHAPES: list[tuple[str, Callable[[], nn.Module], tuple[int, int, int], int]] = [
    ("digits_cnn", DigitsCNN, (1, 8, 8), 38_282),
    ("lenet", LeNet, (1, 28, 28), 431_080),
    ("resnet20", resnet20, (3, 32, 32), 269_722),
    ("resnet32", resnet32, (3, 32, 32), 464_154),
    ("resnet44", resnet44, (3, 32, 32), 658_586),
    ("resnet56", resnet56, (3, 32, 32), 853_018),
    ("allconv", AllConv, (3, 32, 32), 1_628_042),
    ("net1", Net1, (1, 28, 28), 601_210),
]


@pytest.mark.parametrize(("name", "make", "shape", "parameters"), SHAPES, ids=[row[0] for row in SHAPES])
def test_every_example_by_name(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, int, int], parameters: int
) -> None:
    classifier = build_classifier(name, {})
    assert type(classifier) is type(make())
    assert not classifier.training
    assert sum(p.numel() for p in classifier.parameters()) == parameters
    assert all(p.requires_grad for p in classifier.parameters())
    assert classifier(torch.rand(2, *shape)).shape == (2, 10)
    assert build_classifier(name, {"classes": 7})(torch.rand(1, *shape)).shape == (1, 7)


TAPS: list[tuple[str, tuple[int, int, int], dict[str, int]]] = [
    (
        "digits_cnn",
        (1, 8, 8),
        {"conv1": 1024, "relu1": 1024, "conv2": 2048, "relu2": 2048, "pool": 512, "fc1": 64, "relu3": 64, "fc2": 10},
    ),
    (
        "lenet",
        (1, 28, 28),
        {
            "conv1": 11520, "relu1": 11520, "pool1": 2880, "conv2": 3200, "relu2": 3200, "pool2": 800,
            "fc1": 500, "relu3": 500, "fc2": 10,
        },
    ),
    ("resnet44", (3, 32, 32), {"conv1": 16384, "layer1": 16384, "layer2": 8192, "layer3": 4096, "linear": 10}),
    ("allconv", (3, 32, 32), {"elu3": 96 * 256, "elu6": 192 * 64, "pool": 192, "elu7": 512, "fc3": 512, "fc4": 10}),
    ("net1", (1, 28, 28), {**{f"elu{at}": 200 for at in range(1, 13)}, "fc13": 10}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "sizes"), TAPS, ids=[row[0] for row in TAPS])
def test_every_layer_can_be_tapped(name: str, shape: tuple[int, int, int], sizes: dict[str, int]) -> None:
    classifier = build_classifier(name, {})
    with torch.no_grad(), Tap(classifier, list(sizes)) as tap:
        capture = tap(torch.rand(2, *shape))
    assert {layer: capture.flat(layer).shape for layer in sizes} == {layer: (2, size) for layer, size in sizes.items()}


@pytest.mark.parametrize("name", ["digits_cnn", "lenet", "allconv", "net1"])
def test_every_leaf_module_runs_exactly_once(name: str) -> None:
    classifier = build_classifier(name, {})
    layers = [layer for layer, module in classifier.named_modules() if layer and not list(module.children())]
    shape = {"digits_cnn": (1, 8, 8), "lenet": (1, 28, 28), "allconv": (3, 32, 32), "net1": (1, 28, 28)}[name]
    with torch.no_grad(), Tap(classifier, layers) as tap:
        assert list(tap(torch.rand(1, *shape)).activations) == layers


def test_option_a_shortcut_keeps_every_second_pixel_between_zero_channels() -> None:
    classifier = CifarResNet(1)
    shortcut = classifier.layer2[0].get_submodule("shortcut")
    maps = torch.rand(1, 16, 4, 4)
    out = shortcut(maps)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], maps[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    identity = classifier.layer1[0].get_submodule("shortcut")
    assert torch.equal(identity(maps), maps)


@pytest.mark.data
def test_resnet44_loads_the_shared_weights_and_classifies(data_root: Path) -> None:
    classifier = build_classifier("resnet44", {}, load_weights(data_root / "resnet44_cifar10.safetensors"))
    with np.load(data_root / "cifar10_test.npz") as data:
        x, y = torch.from_numpy(data["x"][:1000]), torch.from_numpy(data["y"][:1000])
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        predicted = torch.cat([classifier(block).argmax(dim=1) for block in images.split(100)])
    assert float((predicted == y).double().mean()) > 0.92


# Weights


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_round_trip(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    state = dict(DigitsCNN().state_dict())
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    weights = load_weights(path)
    assert equal(weights, state)
    assert equal(dict(build_classifier("digits_cnn", {}, weights).state_dict()), state)


class Malice:
    """Unpickled by an ordinary `pickle.load`, it writes the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["torch", "plain pickle", "inside a state dict"])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path: Path, form: str) -> None:
    target, path = tmp_path / "pwned", tmp_path / "weights.pt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Malice(target)))
    else:
        torch.save({"fc.weight": torch.zeros(1), "x": Malice(target)} if "dict" in form else Malice(target), path)
    with pytest.raises(ConfigError, match=r"more than plain tensors.*, which is never unpickled") as caught:
        load_weights(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            load_weights(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.safetensors", "no such file")
    refused(tmp_path / "none.pt", "no such file")
    other = tmp_path / "weights.onnx"
    other.write_bytes(b"x")
    refused(other, r"expected a file whose name ends in one of \.safetensors, \.pt, \.pth, \.pth\.tar, \.bin, \.ckpt$")
    folder = tmp_path / "folder.pt"
    folder.mkdir()
    refused(folder, "no such file")

    for name in ("w.safetensors", "w.pt"):
        path = tmp_path / name
        path.write_bytes(b"")
        refused(path, "not a safetensors file" if path.suffix == ".safetensors" else "damaged")
        path.write_bytes(b"certainly not weights")
        refused(path, "not a safetensors file" if path.suffix == ".safetensors" else "damaged")

    whole = tmp_path / "whole.safetensors"
    save_file(dict(DigitsCNN().state_dict()), whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    refused(cut, "not a safetensors file, or a damaged one")
    torch.save(DigitsCNN().state_dict(), tmp_path / "whole.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    refused(cut, "damaged")

    saved = tmp_path / "saved.pt"
    torch.save(torch.zeros(3), saved)
    refused(saved, "expected a state dict, got Tensor")
    torch.save({}, saved)
    refused(saved, "expected a state dict, got dict")
    torch.save({"model": {"fc": 3}, "epoch": 1}, saved)
    refused(saved, "expected a state dict, but 'model' holds dict, not a tensor")


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(DigitsCNN(), path)
    with pytest.raises(ConfigError, match=r"save model\.state_dict\(\) instead"):
        load_weights(path)


def test_weights_that_do_not_fit() -> None:
    state = dict(DigitsCNN().state_dict())
    missing = {name: tensor for name, tensor in state.items() if name != "fc1.bias"}
    with pytest.raises(ConfigError, match=r"do not fit classifier 'digits_cnn': missing fc1\.bias$"):
        build_classifier("digits_cnn", {}, missing)
    with pytest.raises(ConfigError, match=r"do not fit classifier 'digits_cnn': unexpected extra$"):
        build_classifier("digits_cnn", {}, state | {"extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"missing fc1\.bias; unexpected extra$"):
        build_classifier("digits_cnn", {}, missing | {"extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"fc2\.weight is \[10, 64\], expected \[7, 64\]"):
        build_classifier("digits_cnn", {"classes": 7}, state)
    with pytest.raises(ConfigError, match=r"missing conv1\.weight, conv1\.bias, conv2\.weight and 5 more$"):
        build_classifier("digits_cnn", {}, {})


def test_batch_counters_may_be_absent_and_nothing_else() -> None:
    state = resnet20().state_dict()
    counted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(counted) < len(state)
    build_classifier("resnet20", {}, counted)
    del counted["layer1.0.bn1.running_mean"]
    with pytest.raises(ConfigError, match=r"missing layer1\.0\.bn1\.running_mean$"):
        build_classifier("resnet20", {}, counted)


# Factories

USER_MODULE = """
import torch

scale = 3

class Net(torch.nn.Linear):
    @classmethod
    def build(cls, outputs=2):
        return cls(4, outputs)

def build(outputs=2):
    model = torch.nn.Linear(4, outputs)
    model.train()
    return model

def broken():
    raise ValueError("two\\nlines")

def not_a_module():
    return "surprise"
"""


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_own").mkdir()
    (tmp_path / "users_own" / "__init__.py").write_text("")
    (tmp_path / "users_own" / "models.py").write_text(USER_MODULE)
    (tmp_path / "users_own" / "fails.py").write_text("raise RuntimeError('on\\nimport')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("users_own")]:
        monkeypatch.delitem(sys.modules, name)
    return "users_own.models"


def test_a_users_own_factory(user_package: str) -> None:
    for factory in (f"{user_package}:build", f"{user_package}:Net.build"):
        classifier = build_classifier(factory, {"outputs": 5})
        assert not classifier.training
        assert classifier(torch.zeros(1, 4)).shape == (1, 5)
    weights = {"weight": torch.ones(2, 4), "bias": torch.zeros(2)}
    classifier = build_classifier(f"{user_package}:build", {}, weights)
    assert torch.equal(classifier(torch.ones(1, 4)), torch.full((1, 2), 4.0))


def test_a_torchvision_model_by_name() -> None:
    classifier = build_classifier("torchvision:resnet18", {"num_classes": 4})
    assert not classifier.training
    assert classifier(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


FACTORY_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("lenett", {}, r"unknown classifier 'lenett': did you mean 'lenet'\? known: digits_cnn, lenet, resnet20"),
    (
        "zzz",
        {},
        "unknown classifier 'zzz': known: digits_cnn.*"
        ' or "torchvision:NAME", "timm:NAME", "transformers:NAME", or an import path',
    ),
    ("", {}, "unknown classifier ''"),
    ("lenet", {"width": 3}, r"'lenet' cannot be built with \(width=3\): TypeError: .*'width'"),
    ("digits_cnn", {"classes": -1}, r"'digits_cnn' cannot be built with \(classes=-1\)"),
    ("torchvision:resnet81", {}, r"unknown torchvision model 'resnet81': did you mean 'resnet"),
    ("torchvision:resnet18", {"weights": "DEFAULT"}, "does not take 'weights': weights come from a file"),
    ("torchvision:resnet18", {"pretrained": True}, "does not take 'pretrained'"),
    ("torchvision:resnet18", {"nonsense": 1}, r"'torchvision:resnet18' cannot be built with \(nonsense=1\)"),
    ("users_own.nowhere:build", {}, r"cannot import 'users_own\.nowhere' \(ModuleNotFoundError"),
    ("users_own.fails:build", {}, r"cannot import 'users_own\.fails' \(RuntimeError: on import\)"),
    ("users_own.models:biuld", {}, r"has no 'biuld': did you mean 'build'\?"),
    ("users_own.models:Net.nothing", {}, r"has no 'Net\.nothing'"),
    ("users_own.models:scale", {}, "is int, not callable"),
    ("users_own.models:not_a_module", {}, r"gives str, expected a torch\.nn\.Module"),
    ("users_own.models:broken", {}, r"cannot be built with \(\): ValueError: two lines"),
    ("users_own.models:", {}, 'is not an import path: expected "package.module:callable"'),
    (":build", {}, "is not an import path"),
    ("..models:build", {}, "cannot import '..models'"),
]


@pytest.mark.parametrize(("factory", "arguments", "text"), FACTORY_ERRORS, ids=[row[0] for row in FACTORY_ERRORS])
@pytest.mark.usefixtures("user_package")
def test_what_cannot_be_built_is_one_line(factory: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        build_classifier(factory, arguments)
    assert "\n" not in str(caught.value)
