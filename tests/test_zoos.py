"""Classifiers of timm and transformers by name: built here, with weights from files, and never from a hub."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from photos import take_photos, train_on
from safetensors.torch import save_file
from torch import Tensor, nn

from askance.__main__ import run
from askance.calibration.layers import layers_of
from askance.calibration.proof import prove
from askance.classifiers import build_classifier, load_weights, trusting
from askance.classifiers.checkpoints import fitting
from askance.classifiers.torchvision_compat import prepare_torchvision
from askance.detectors.output import select_output
from askance.errors import ConfigError
from askance.screening.preprocessing import Preprocessing

prepare_torchvision()
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

COLOUR = Preprocessing(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail(f"asks the network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("factory", "arguments", "classes"),
    [
        ("timm:test_resnet", {"num_classes": 5}, 5),
        ("timm:test_resnet.r160_in1k", {}, 1000),
        ("timm:test_vit", {"num_classes": 2, "img_size": 32}, 2),
        ("transformers:vit", VIT, 3),
        ("transformers:vit", VIT | {"dtype": "float16"}, 3),
        ("transformers:deit", VIT, 3),
        ("transformers:convnext", {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_labels": 6}, 6),
    ],
)
def test_by_name_they_give_proved_logits(factory: str, arguments: dict[str, Any], classes: int) -> None:
    """Without `output`, though transformers' return more than logits."""
    classifier = build_classifier(factory, arguments)
    assert prove(classifier, COLOUR, pixels(), gradients=True).shape == (4, classes)


@pytest.mark.parametrize(
    ("factory", "arguments", "line"),
    [
        ("timm:resnet81", {}, r"^unknown timm model 'resnet81': did you mean 'resnet18'\?"),
        (
            "timm:hf_hub:timm/resnet18",
            {},
            r"^classifier 'timm:hf_hub:timm/resnet18' names a hub or a folder: expected one of timm's own, "
            r'"timm:resnet18"; weights come from a file, never from a hub$',
        ),
        ("timm:local-dir:/nowhere", {}, "names a hub or a folder"),
        (
            "timm:resnet18",
            {"pretrained": True},
            r"^classifier 'timm:resnet18' does not take 'pretrained': weights come from a file, never from a hub$",
        ),
        ("timm:resnet18", {"pretrained_cfg": {"file": "w.pt"}}, r"does not take 'pretrained_cfg': weights come from a"),
        ("timm:resnet18", {"checkpoint_path": "w.pt"}, r"does not take 'checkpoint_path': weights come from a file"),
        ("timm:resnet18", {"nonsense": 1}, r"^classifier 'timm:resnet18' cannot be built with \(nonsense=1\): TypeErr"),
        ("transformers:vlt", {}, r"^unknown transformers image classifier 'vlt': did you mean 'vit'\? known: beit"),
        ("transformers:timm_wrapper", {"architecture": "hf_hub:x/y"}, "^unknown transformers image classifier 'timm_"),
        ("transformers:vit", VIT | {"hidden_size": "x"}, r"^classifier 'transformers:vit' cannot be built with \(hid"),
    ],
)
def test_what_is_refused(factory: str, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        build_classifier(factory, arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zoo", ["timm", "transformers"])
def test_what_is_not_installed_is_named(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, zoo, None)
    with pytest.raises(ConfigError, match=rf"^classifier '{zoo}:a' needs {zoo}, .* not installed: pip install {zoo}$"):
        build_classifier(f"{zoo}:a", {})


def test_a_configuration_has_no_code_brought_from_a_hub() -> None:
    chosen = {
        "attn_implementation": "kernels-community/flash-attn2",
        "auto_map": {"AutoModelForImageClassification": "somebody/repository--code.Classifier"},
    }
    classifier = build_classifier("transformers:vit", VIT | chosen)
    assert type(classifier).__module__ == "transformers.models.vit.modeling_vit"
    assert getattr(classifier.config, "_attn_implementation") == "eager"  # noqa: B009


def test_a_bundle_alone_has_timm_imported_and_not_transformers() -> None:
    """Whose arguments are a whole configuration; a version to come may take more from it."""
    weights = {name: tensor.clone() for name, tensor in build_classifier("transformers:vit", VIT).state_dict().items()}
    with pytest.raises(ConfigError, match=r"allow it \(--allow-factory transformers:vit, or allowed_factories\)$"):
        trusting(())("transformers:vit", VIT, weights)
    for allowed in ("transformers:vit", "transformers"):
        assert not trusting([allowed])("transformers:vit", VIT, weights).training
    weights = dict(build_classifier("timm:test_resnet", {"num_classes": 3}).state_dict())
    assert not trusting(())("timm:test_resnet", {"num_classes": 3}, weights).training


def saved(folder: Path) -> tuple[nn.Module, dict[str, Any], Path]:
    """A ViT as people have it: transformers' own folder of it, config.json and weights."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VIT)
    classifier = transformers.ViTForImageClassification(config).eval()
    classifier.save_pretrained(folder)
    return classifier, json.loads((folder / "config.json").read_text()), folder / "model.safetensors"


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    """Its config.json are the arguments; its file names weights as transformers did at first, not as it does now."""
    theirs, arguments, path = saved(tmp_path)
    weights = load_weights(path)
    assert not weights.keys() <= theirs.state_dict().keys()
    bar = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.utils.logging.get_verbosity()
    ours = build_classifier("transformers:vit", arguments, weights)
    with torch.no_grad():
        assert torch.allclose(ours(pixels()), theirs(pixels()).logits, atol=1e-5)
    assert fitting(weights, ours).keys() == theirs.state_dict().keys()
    assert transformers.utils.logging.is_progress_bar_enabled() == bar
    assert transformers.utils.logging.get_verbosity() == verbosity


def test_weights_of_another_vit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, arguments, path = saved(tmp_path)
    weights = load_weights(path)
    capfd.readouterr()
    with pytest.raises(ConfigError, match=r"classifier 'transformers:vit': classifier\.\w+ is \[3.*\], expected \[4"):
        build_classifier("transformers:vit", VIT | {"num_labels": 4}, weights)
    with pytest.raises(ConfigError, match=r"the weights do not fit .*: missing classifier\.bias; unexpected extra$"):
        lacking = {name: tensor for name, tensor in weights.items() if name != "classifier.bias"}
        build_classifier("transformers:vit", arguments, lacking | {"extra": torch.zeros(1)})
    assert capfd.readouterr() == ("", "")


def test_the_last_output_that_is_asked_for_is_taken() -> None:
    classifier = select_output(build_classifier("transformers:vit", VIT), "loss")
    with pytest.raises(ConfigError, match=r"ImageClassifierOutput has no 'loss' for output: did you mean 'logits'\?"):
        classifier(pixels())


def test_layers_and_init_take_a_timm_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    take_photos(tmp_path, {"train": 240, "test": 400})
    assert train_on(tmp_path, tmp_path / "w.pt", factory="timm:test_resnet") > 0.9
    named = ["--classifier", "timm:test_resnet", "--arguments", '{"num_classes": 3}', "--weights", "w.pt"]
    assert run(["layers", *named, "--data", "folder:train"]) == 0
    assert "layer4" in capsys.readouterr().out
    assert run(["init", *named, "--data", "folder:train", "--test-data", "folder:test", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "ImageNet's, of the usual ones the likeliest" in shown
    assert "layers: conv1, layer1, layer2, layer3, layer4, fc\n" in shown
    wrong = [*named[:3], '{"num_classes": 4}', *named[4:]]
    assert run(["layers", *wrong, "--data", "folder:train"]) == 2
    assert "fc.weight is [3, " in capsys.readouterr().err


def test_layers_of_a_vit_show_tokens() -> None:
    found = {one.name: one for one in layers_of(build_classifier("transformers:vit", VIT), COLOUR, pixels())}
    assert found["classifier"].shape == (3,)
    assert found["vit.layers.0"].shape == (17, 16)


def test_weights_of_a_vit_in_a_file_by_the_names_of_now(tmp_path: Path) -> None:
    state = build_classifier("transformers:vit", VIT).state_dict()
    save_file(dict(state), tmp_path / "w.safetensors")
    ours = build_classifier("transformers:vit", VIT, load_weights(tmp_path / "w.safetensors"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
