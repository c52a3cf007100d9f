"""Checkpoints as people have them: every saver, wrapped in whatever, with prefixes; and never a pickle that runs."""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_support import digits_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from askance.calibration.config import load_config
from askance.calibration.inputs import load_inputs
from askance.classifiers import DigitsCNN, build_classifier, load_weights
from askance.classifiers.checkpoints import NAMES, SUFFIXES, fitting
from askance.classifiers.loading import load_strictly
from askance.errors import ConfigError


def seeded_state() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return dict(DigitsCNN().state_dict())


STATE = seeded_state()
BESIDE: dict[str, Any] = {
    "epoch": 3,
    "best_accuracy": 0.9,
    "arch": "digits_cnn",
    "step": torch.tensor(7),
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "optimizer_state_dict": {"state": {"fc1.weight": {"exp_avg": torch.zeros(3)}}},
    "optim": {"momentum": torch.zeros(3)},
    "history": [0.1, 0.2],
    "scheduler": {"last_epoch": 3},
    "empty": {},
    "none": None,
}


def loaded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(build_classifier("digits_cnn", {}, weights).state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(
    around=st.lists(st.sampled_from([*NAMES, "checkpoint", "weights"]), max_size=3),
    beside=st.lists(st.sampled_from(sorted(BESIDE)), unique=True),
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "backbone."]), max_size=3),
    suffix=st.sampled_from([suffix for suffix in SUFFIXES if suffix != ".safetensors"]),
    zipped=st.booleans(),
    parameters=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_saver_puts_around_a_state_dict(
    around: list[str], beside: list[str], prefixes: list[str], suffix: str, zipped: bool, parameters: bool
) -> None:
    def kept(tensor: Tensor) -> Tensor:
        return nn.Parameter(tensor) if parameters else tensor

    content: Any = OrderedDict(("".join(prefixes) + name, kept(tensor)) for name, tensor in STATE.items())
    for name in around:
        content = {one: BESIDE[one] for one in beside} | {name: content}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights{suffix}"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        weights = load_weights(path)
    assert not any(tensor.requires_grad for tensor in weights.values())
    assert equal(loaded(weights), STATE)


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ({"model": STATE, "ema": {"fc": torch.ones(1)}}, STATE),
        ({"ema": {"fc": torch.ones(1)}, "net": {"fc": torch.ones(1)}, "state_dict": STATE}, STATE),
        ({"checkpoint": {"ema": {"fc": torch.ones(1)}, "model_state_dict": STATE}}, STATE),
    ],
)
def test_of_several_the_customary_name_is_meant(tmp_path: Path, content: Any, meant: dict[str, Tensor]) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert equal(load_weights(tmp_path / "w.pt"), meant)


def test_of_several_none_is_guessed(tmp_path: Path) -> None:
    torch.save({"student": STATE, "teacher": STATE, "deep": {"er": STATE}}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"expected one state dict, got 2: student, teacher; save the one meant"):
        load_weights(tmp_path / "w.pt")


class Tied(nn.Module):
    """Two names for one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.inner.weight


def test_safetensors_own_saver_leaves_tied_weights_out(tmp_path: Path) -> None:
    saved = Tied()
    save_model(saved, str(tmp_path / "w.safetensors"))
    weights = load_weights(tmp_path / "w.safetensors")
    assert len(weights) == 3
    own = Tied()
    load_strictly("tied", own, weights)
    assert torch.equal(own.head.weight, saved.head.weight)
    lacking = {name: tensor for name, tensor in weights.items() if not name.endswith("weight")}
    with pytest.raises(ConfigError, match=r"do not fit classifier 'tied': missing inner\.weight, head\.weight$"):
        load_strictly("tied", own, lacking)


def test_prefixes_of_safetensors(tmp_path: Path) -> None:
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "w.safetensors")
    assert equal(loaded(load_weights(tmp_path / "w.safetensors")), STATE)


def holding(**names: Any) -> nn.Module:
    """A module with parameters of these names; one inside another where a name stands for several."""
    zeros = {name: nn.ParameterDict({one: torch.zeros(2) for one in inner}) for name, inner in names.items() if inner}
    module = nn.ModuleDict(zeros)
    for name in names.keys() - zeros.keys():
        module.register_parameter(name, nn.Parameter(torch.zeros(2)))
    return module


def test_a_prefix_stays_unless_all_have_it_and_it_is_in_the_way() -> None:
    own = {"module.fc": torch.zeros(2), "module.head": torch.zeros(2)}
    assert fitting(own, holding(module=["fc", "head"])).keys() == own.keys()
    some = {"module.fc": torch.zeros(2), "head": torch.zeros(2)}
    assert fitting(some, holding(fc=None, head=None)).keys() == some.keys()
    other = {"module.a": torch.zeros(2)}
    assert fitting(other, holding(b=None)).keys() == other.keys()
    state = {f"module.{name}": tensor for name, tensor in STATE.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"missing conv1\.weight, .* unexpected module\.conv1\.weight"):
        loaded(state)


class Parted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features: nn.Module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.fc = nn.Linear(8, 3)


def in_parallel(parted: Parted) -> nn.Module:
    parted.features = nn.DataParallel(parted.features)  # as torch's own ImageNet example has it
    return parted


def compiled(parted: Parted) -> nn.Module:
    made: Any = torch.compile(parted.features)
    parted.features = made
    return parted


WRAPPED: dict[str, Callable[[Parted], nn.Module]] = {
    "a part in parallel": in_parallel,
    "a part compiled": compiled,
    "averaged": AveragedModel,
    "averaged, a part in parallel": lambda parted: AveragedModel(in_parallel(parted)),
    "another's part": lambda parted: nn.ModuleDict({"net": nn.ModuleDict({"encoder": parted})}),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_what_wrappers_leave_in_the_names(tmp_path: Path, wrapped: Callable[[Parted], nn.Module]) -> None:
    saved, own = Parted(), Parted()
    state = {name: tensor.clone() for name, tensor in saved.state_dict().items()}
    torch.save(wrapped(saved).state_dict(), tmp_path / "w.pth")
    load_strictly("parted", own, load_weights(tmp_path / "w.pth"))
    assert equal(dict(own.state_dict()), state)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda tensor: tensor.to(torch.int8), "torch.int8"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "torch.qint8"),
    ],
)
def test_what_is_no_precision_of_weights_is_refused(change: Callable[[Tensor], Tensor], kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded({name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in STATE.items()})
    assert str(caught.value) == (
        f"the weights hold 'conv1.weight' as {kind}, expected torch.float32: save the weights before they are quantised"
    )


def test_half_precision_becomes_the_classifiers_own() -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        weights = fitting({name: tensor.to(kind) for name, tensor in STATE.items()}, DigitsCNN())
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_code_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError) as caught:
        load_weights(tmp_path / "w.pth")
    assert str(caught.value) == (
        f"weights {tmp_path / 'w.pth'}: damaged, or more than plain tensors (it wants argparse.Namespace), which is "
        "never unpickled: where it was made, save model.state_dict() instead: torch.save(model.state_dict(), "
        "'weights.pt')"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "w.pt"))
    with pytest.raises(ConfigError, match="a TorchScript archive, which is code and never run: where it was made, sa"):
        load_weights(tmp_path / "w.pt")


def test_other_mappings(tmp_path: Path) -> None:
    for content, text in (
        ({1: torch.zeros(2)}, "expected a state dict, but 1 holds Tensor"),
        ({"fc": torch.zeros(2), "epoch": 3}, "expected a state dict, but 'epoch' holds int, not a tensor"),
        ({"optimizer": {"fc": torch.zeros(2)}}, "expected a state dict, but 'optimizer' holds dict, not a tensor"),
    ):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ConfigError, match=text):
            load_weights(tmp_path / "w.pt")


def test_a_config_takes_them_by_the_classifiers_own_names(tmp_path: Path) -> None:
    path = digits_folder(tmp_path)
    state = {name: tensor.bfloat16() for name, tensor in STATE.items()}
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth.tar")
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("weights = "))
    path.write_text(text.replace(line, 'weights = "w.pth.tar"'))
    inputs = load_inputs(load_config(path))
    assert equal(dict(inputs.weights), {name: tensor.float() for name, tensor in state.items()})


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_lazy_layers_have_their_shapes_from_the_weights() -> None:
    own = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    load_strictly("lazy", own, {"module.1.weight": torch.ones(3, 4), "module.1.bias": torch.zeros(3)})
    assert torch.equal(own(torch.ones(1, 2, 2)), torch.full((1, 3), 4.0))


def test_an_extra_state_that_is_no_tensor_is_missing_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^the weights do not fit classifier 'extra': missing _extra_state$"):
        load_strictly("extra", Extra(4, 2), {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)})
