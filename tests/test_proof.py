"""A classifier is proved before anything is fitted: what is let through, and every refusal's line."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFile
from pydantic import ValidationError
from torch import Tensor, nn

import askance
from askance.calibration.attacks import ATTACKS
from askance.calibration.config import ClassifierConfig
from askance.calibration.explain import explain
from askance.calibration.proof import prove
from askance.classifiers import shared_state
from askance.classifiers.modules import in_eval_mode
from askance.detectors.output import select_output
from askance.errors import AskanceError, ConfigError
from askance.screening.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(channels=1, height=6, width=6, mean=(0.5,), std=(0.25,))
PIXELS = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(5))
Change = Callable[[Tensor], Any]


class Net(nn.Module):
    """A small convolutional net; `before` changes its input, `after` its logits."""

    def __init__(
        self, norm: nn.Module | None = None, before: Change | None = None, after: Change | None = None
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.conv = nn.Conv2d(1, 4, 3)
            self.norm = nn.Identity() if norm is None else norm
            self.fc = nn.Linear(64, 3)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Any:
        x = x if self.before is None else self.before(x)
        logits = self.fc(F.relu(self.norm(self.conv(x))).flatten(1))
        return logits if self.after is None else self.after(logits)


def proved(classifier: nn.Module, *, gradients: bool = True) -> Tensor:
    return prove(classifier.eval() or classifier, PREPROCESSING, PIXELS, gradients=gradients)


def refused(classifier: nn.Module, *, gradients: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        proved(classifier, gradients=gradients)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_honest_classifier_passes_and_gives_its_logits() -> None:
    classifier = Net(nn.BatchNorm2d(4))
    with torch.no_grad():
        expected = classifier.eval()(PREPROCESSING.normalize(PIXELS[:4]))
    assert torch.allclose(proved(classifier), expected, atol=1e-6)


# One image


def test_batch_statistics_are_refused_by_their_layer() -> None:
    said = refused(Net(nn.BatchNorm2d(4, track_running_stats=False)))
    assert "the classifier's answer to an image depends on the images beside it (a logit moves by " in said
    assert said.endswith(
        "'norm' is a BatchNorm2d without running statistics: train it with track_running_stats=True, or use GroupNorm"
    )


def attending(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return (torch.softmax(flat @ flat.T / 6, dim=1) @ flat).view_as(x)


BATCH_MATES: dict[str, Change] = {
    "statistics by function": lambda x: F.batch_norm(x, None, None, training=True),
    "the batch's maximum": lambda x: x / x.abs().max(),
    "the mean over the batch": lambda x: x - x.mean(dim=0),
    "the first image": lambda x: x - x[:1],
    "the place in the batch": lambda x: x + torch.arange(len(x))[:, None, None, None],
    "the size of the batch": lambda x: x / len(x),
    "the neighbour": lambda x: x + x.roll(1, 0),
    "attention over the batch": attending,
}


@pytest.mark.parametrize("before", BATCH_MATES.values(), ids=BATCH_MATES)
def test_whatever_depends_on_batch_mates_is_refused(before: Change) -> None:
    said = refused(Net(before=before), gradients=False)
    assert "depends on the images beside it" in said
    assert said.endswith("no statistics, maxima or attention over the batch, no half precision")


def test_images_of_one_brightness_do_not_hide_a_maximum_over_the_batch() -> None:
    same = PIXELS.clone()
    same[:, :, 0, 0] = 1  # as scanned digits have it
    with pytest.raises(ConfigError, match="depends on the images beside it"):
        prove(Net(before=lambda x: x / x.max()).eval(), PREPROCESSING, same, gradients=False)


SIZES: dict[str, Callable[[int], bool]] = {
    "two": lambda size: size == 2,
    "four and five": lambda size: size in (4, 5),
    "even ones": lambda size: size % 2 == 0,
    "eight and more": lambda size: size >= 8,
    "more than thirty": lambda size: size > 30,
}


@pytest.mark.parametrize("looks", SIZES.values(), ids=SIZES)
def test_batches_of_many_sizes_are_tried(looks: Callable[[int], bool]) -> None:
    said = refused(Net(before=lambda x: x - x.mean(dim=0) if looks(len(x)) else x), gradients=False)
    assert "depends on the images beside it" in said


@pytest.mark.parametrize("masked", [-1e4, -1e9])
def test_a_masked_class_does_not_hide_the_others(masked: float) -> None:
    def after(logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.full((len(logits), 1), masked)], dim=1)

    assert proved(Net(after=after)).shape == (4, 4)
    said = refused(Net(before=lambda x: x - x.mean(dim=0), after=after), gradients=False)
    assert "depends on the images beside it" in said


def test_a_statistic_kept_from_the_first_batch_is_refused() -> None:
    class Keeping(Net):
        mean: Tensor | None = None

        def forward(self, x: Tensor) -> Any:
            self.mean = x.mean() if self.mean is None else self.mean
            return super().forward(x - self.mean)

    said = refused(Keeping())
    assert said.startswith("the classifier's answer to an image depends on the images that came before it (a logit ")
    assert said.endswith("in eval mode it must keep nothing of them, no statistics of its first batch")


def test_what_cannot_be_copied_is_proved_all_the_same() -> None:
    classifier = Net()
    classifier.kept = classifier(PIXELS)
    assert proved(classifier).shape == (4, 3)


def squeezed(logits: Tensor) -> Tensor:
    return logits.squeeze()


def test_a_batch_of_one() -> None:
    assert refused(Net(after=squeezed)) == (
        "the classifier returns [3] for a batch of 1, expected logits [1, K]: a bare .squeeze() drops the batch as "
        "well, .flatten(1) does not"
    )

    def wants_company(x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("more than 1 value\nper channel")
        return x

    assert refused(Net(before=wants_company)) == (
        "the classifier cannot take one image alone of [1, 6, 6]: ValueError: more than 1 value per channel; it must "
        "take a batch of any size, of one image too"
    )


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "batch_norm": lambda: nn.BatchNorm2d(4),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "instance_norm": lambda: nn.InstanceNorm2d(4),
    "relu": nn.ReLU,
    "dropout": nn.Dropout,
}


@given(
    layers=st.lists(st.sampled_from(list(LAYERS)), max_size=5),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    corruption=st.sampled_from([None, *BATCH_MATES]),
)
@settings(max_examples=60, deadline=None)
def test_composed_nets_pass_exactly_where_images_stand_alone(
    layers: list[str], seed: int, scale: float, corruption: str | None
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.Sequential(*(LAYERS[kind]() for kind in layers))
    before = None if corruption is None else BATCH_MATES[corruption]
    classifier = Net(norm, before, lambda logits: logits * scale)
    with torch.no_grad():
        weights, generator = dict(classifier.state_dict()), torch.random.get_rng_state()
        copies = {name: tensor.clone() for name, tensor in weights.items()}
    if corruption is None:
        assert proved(classifier).shape == (4, 3)
    else:
        with torch.no_grad():
            alone = classifier.eval()(PREPROCESSING.normalize(PIXELS[:1]))
            among = classifier(PREPROCESSING.normalize(PIXELS))[:1]
        if (alone - among).abs().max() > 0.01 * among.abs().max():  # instance norm, say, undoes a change of scale
            assert "depends on the images beside it" in refused(classifier, gradients=False)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in classifier.state_dict().items())


# Gradients


def in_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy())


NO_GRADIENT: dict[str, Change] = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "numpy": in_numpy,
}
ZERO_GRADIENT: dict[str, Change] = {
    "round": lambda x: x.round(),
    "sign": torch.sign,
    "comparison": lambda x: x * 0 + (x > 0).float(),
}


@pytest.mark.parametrize("before", NO_GRADIENT.values(), ids=NO_GRADIENT)
def test_a_classifier_without_gradient_is_refused(before: Change) -> None:
    assert refused(Net(before=before)) == (
        "the classifier has no gradient with respect to its input, which attacks need: take no_grad, inference_mode, "
        "detach, .data and numpy out of its forward, or configure only attacks that need no gradient (local_search, "
        "spsa), and ladder = false"
    )
    assert proved(Net(before=before), gradients=False).shape == (4, 3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_is_refused(mode: Callable[[], Any]) -> None:
    class Shut(Net):
        def forward(self, x: Tensor) -> Any:
            with mode():
                return super().forward(x)

    assert "no gradient with respect to its input" in refused(Shut())
    assert proved(Shut(), gradients=False).shape == (4, 3)


@pytest.mark.parametrize("before", ZERO_GRADIENT.values(), ids=ZERO_GRADIENT)
def test_a_gradient_of_zero_is_refused(before: Change) -> None:
    assert refused(Net(before=before)).startswith(
        "the classifier's gradient with respect to its input is 0 for every image, which no attack can follow: take "
        "rounding, argmax, sign and comparisons out of its forward"
    )


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    assert refused(Net(before=lambda x: (x * 0).sqrt() + x)).startswith(
        "the classifier's gradient with respect to its input is NaN or infinite, which no attack can follow: look for "
        "a square root, norm, logarithm or division at 0 in its forward"
    )


def test_a_backward_that_raises_is_one_line() -> None:
    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

    assert "NotImplementedError: You must implement either the backward" in refused(Net(before=Forward.apply))


def test_a_confident_classifier_has_its_gradient() -> None:
    assert proved(Net(after=lambda logits: logits * 1e4)).shape == (4, 3)


def test_the_attacks_that_need_no_gradient() -> None:
    without = [kind for kind, attack in ATTACKS.items() if not attack.needs_gradients]
    assert without == [
        "rotation_translation",
        "local_search",
        "spsa",
        "square",
        "hop_skip_jump",
        "boundary",
        "transfer",
    ]


# What it returns

RETURNED: dict[str, tuple[Change, str]] = {
    "probabilities": (
        lambda logits: logits.softmax(1),
        "the classifier returns probabilities: it must return logits, before the softmax",
    ),
    "log-probabilities": (
        lambda logits: logits.log_softmax(1),
        "the classifier returns log-probabilities: it must return logits, before the log_softmax",
    ),
    "probabilities of each class by itself": (
        torch.sigmoid,
        "the classifier's last step is a sigmoid: it must return logits, before the sigmoid",
    ),
    "those, clipped": (
        lambda logits: torch.sigmoid(logits).clamp(1e-6, 1 - 1e-6).view(-1, 3),
        "the classifier's last step is a sigmoid: it must return logits, before the sigmoid",
    ),
    "probabilities in per cent": (
        lambda logits: 100 * logits.softmax(1),
        "the classifier returns probabilities times 100: it must return logits, before the softmax",
    ),
    "some of the probabilities": (
        lambda logits: 5 - 100 * logits.softmax(1)[:, :2],
        "the classifier's last step is a softmax: it must return logits, before the softmax",
    ),
    "log-probabilities with priors": (
        lambda logits: logits.log_softmax(1) * 2 + torch.tensor([0.3, 0.1, 0.2]).log(),
        "the classifier's last step is a log_softmax: it must return logits, before the log_softmax",
    ),
    "one score": (
        lambda logits: logits[:, :1],
        "the classifier returns 1 logits an image, expected one for each of two or more classes: where one score says "
        "yes or no, [-s / 2, s / 2] are its logits",
    ),
    "sparse": (
        lambda logits: logits.to_sparse(),
        "the classifier returns a tensor of torch.sparse_coo, expected dense logits [6, K]",
    ),
    "nested": (
        lambda logits: torch.nested.nested_tensor(list(logits)),
        "the classifier returns a nested tensor, expected dense logits [6, K]",
    ),
    "at random": (
        F.dropout,
        "the classifier answers the same images differently each time: it must not draw at random",
    ),
    "maps": (
        lambda logits: logits[:, :, None, None],
        "the classifier returns [6, 3, 1, 1] for a batch of 6, expected logits [6, K]: one row for each image, one "
        "column for each class",
    ),
    "halves": (
        lambda logits: logits.half(),
        "the classifier returns torch.float16, expected float32 logits: call .float() on it, or on its logits",
    ),
    "classes": (
        lambda logits: logits.argmax(1, keepdim=True),
        "the classifier returns torch.int64, expected float32 logits: call .float() on it, or on its logits",
    ),
    "not a number": (
        lambda logits: logits / 0,
        "the classifier gives NaN or infinity for 4 of 4 images of the fit split: expected finite logits; check mean "
        "and std",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("after", "message"), RETURNED.values(), ids=RETURNED)
def test_what_is_no_logits(after: Change, message: str) -> None:
    assert refused(Net(after=after)) == message


# Weights and state


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    classifier = Net()
    with torch.no_grad():
        classifier.fc.weight[1, 2] = value
    assert refused(classifier) == (
        "the classifier's 'fc.weight' holds NaN or infinity (1 of 192 values): its training went astray, or the file "
        "is damaged; expected finite weights"
    )


def test_a_mask_of_minus_infinity_is_no_fault() -> None:
    classifier = Net()
    classifier.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert proved(classifier).shape == (4, 3)


def test_weights_of_other_layouts_are_named() -> None:
    classifier = Net()
    classifier.fc.weight = nn.Parameter(classifier.fc.weight.detach().to_sparse())
    assert refused(classifier) == (
        "the classifier's 'fc.weight' is torch.sparse_coo: expected dense tensors of floats, .to_dense()"
    )


def test_complex_weights_that_are_not_finite_are_named() -> None:
    classifier = Net()
    classifier.register_parameter("spectrum", nn.Parameter(torch.tensor([1j, complex(0, torch.nan)])))
    assert refused(classifier).startswith("the classifier's 'spectrum' holds NaN or infinity (1 of 4 values)")


class Counting(Net):
    def __init__(self, assigned: bool) -> None:
        super().__init__()
        self.assigned = assigned
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        if self.assigned:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return super().forward(x) * self.calls


@pytest.mark.parametrize("assigned", [False, True])
def test_a_state_that_moves_is_refused_and_put_back(assigned: bool) -> None:
    classifier = Counting(assigned)
    assert refused(classifier) == (
        "the classifier changes its 'calls' while it answers: in eval mode it must leave its state as it is"
    )
    assert float(classifier.calls) == 0


def test_a_lazy_layer_without_values_is_refused() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    assert refused(classifier) == ("the classifier's '1.weight' has no values yet: call the module once, with an image")


class Stubborn(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> Any:
        return super().train(True)


def test_a_part_that_stays_in_training_mode_is_named() -> None:
    assert refused(Net(Stubborn(4))) == (
        "the classifier is in training mode after .eval(): its part 'norm' must let nn.Module.train(False) reach it"
    )


def test_a_proof_draws_no_random_numbers_and_leaves_no_setting() -> None:
    def drawing(x: Tensor) -> Tensor:
        torch.rand(1), np.random.rand(), random.random()
        torch.set_num_threads(3)
        return x

    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate(), torch.get_num_threads()]

    before = state()
    proved(Net(before=drawing))
    assert state() == before


LASTING: dict[str, tuple[Callable[[], Any], str]] = {
    "type": (lambda: torch.set_default_dtype(torch.float64), "torch's default type"),
    "gradients": (lambda: torch.set_grad_enabled(True), "torch's gradient mode"),
    "numpy": (lambda: np.seterr(all="raise"), "numpy's errors"),
    "truncated images": (
        lambda: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
        "ImageFile.LOAD_TRUNCATED_IMAGES",
    ),
    "log": (lambda: logging.disable(50), "logging.disable"),
    "folder": (lambda: os.chdir("/"), "the working folder"),
}


@pytest.mark.parametrize(("change", "name"), LASTING.values(), ids=LASTING)
def test_what_a_forward_sets_for_all_of_the_process_is_refused_and_undone(change: Callable[[], Any], name: str) -> None:
    def setting(x: Tensor) -> Tensor:
        change()
        return x

    before = {one: read() for one, read in shared_state.LASTING.items()}
    assert refused(Net(before=setting)) == (
        f"the classifier sets {name} while it answers, for all of the process: set it where the module is made, or "
        "back again"
    )
    assert {one: read() for one, read in shared_state.LASTING.items()} == before


# Whatever it raises


class TwoInputs(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x * mask)


class ByKeyword(Net):
    def forward(self, *, pixel_values: Tensor) -> Any:  # type: ignore[override]
        return super().forward(pixel_values)


def on_cuda(x: Tensor) -> Tensor:
    raise AssertionError("Torch not compiled with CUDA enabled")


def fixed_size(x: Tensor) -> Tensor:
    if x.shape[-1] != 224:
        raise AssertionError(f"Wrong image width! Expected 224 but got {x.shape[-1]}!")
    return x


def leaves(x: Tensor) -> Tensor:
    sys.exit("bye")


RAISED: dict[str, tuple[nn.Module, str, str]] = {
    "a ViT's size": (
        Net(before=fixed_size),
        "the classifier cannot take images of [1, 6, 6]: AssertionError: Wrong image width! Expected 224 but got 6!; ",
        "the preprocessing's channels, height and width must be those that it was made for",
    ),
    "channels": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3)),
        "the classifier cannot take images of [1, 6, 6]: RuntimeError: Given groups=1, weight of size [4, 3, 3, 3], ",
        "the preprocessing's channels, height and width must be those that it was made for",
    ),
    "two inputs": (
        TwoInputs(),
        "the classifier cannot take images of [1, 6, 6]: TypeError: ",
        "its forward must take the images as its one argument: wrap it in a module that gives it the others",
    ),
    "keyword only": (
        ByKeyword(),
        "the classifier cannot take images of [1, 6, 6]: TypeError: ",
        "its forward must take the images as its one argument: wrap it in a module that gives it the others",
    ),
    "cuda": (
        Net(before=on_cuda),
        "the classifier cannot take images of [1, 6, 6]: AssertionError: Torch not compiled with CUDA enabled; ",
        "it must run on the CPU: keep .cuda() and devices out of its forward",
    ),
    "half": (Net().half(), "the classifier cannot take images", "it must take float32 images: call .float() on it"),
    "bfloat16": (Net().bfloat16(), "the classifier cannot take", "it must take float32 images: call .float() on it"),
    "double": (Net().double(), "the classifier cannot take", "it must take float32 images: call .float() on it"),
    "exit": (Net(before=leaves), "the classifier cannot take images of [1, 6, 6]: SystemExit: bye; ", "made for"),
    "script": (
        torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))),
        "the classifier is a TorchScript module, whose layers cannot be tapped: ",
        "give the nn.Module that it was made of, with its state_dict()",
    ),
    "no forward": (nn.ModuleList([nn.Linear(3, 3)]), "the classifier cannot take images of [1, 6, 6]: NotImpl", ""),
    "long": (Net(before=lambda x: getattr(x, "a" * 1000)), "the classifier cannot take images", "made for"),
}  # fmt: skip


@pytest.mark.parametrize(("classifier", "begin", "end"), RAISED.values(), ids=RAISED)
def test_whatever_a_classifier_raises_is_one_line(classifier: nn.Module, begin: str, end: str) -> None:
    said = refused(classifier)
    assert said.startswith(begin)
    assert said.endswith(end)
    assert len(said) < 600


# Live modules

DATA = {
    name: (torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(i)), torch.arange(30) % 3)
    for i, name in enumerate(("fit", "calibrate", "fuse", "evaluate"))
}


def calibrated(classifier: Any, tmp_path: Path, **more: Any) -> askance.Bundle:
    arguments: dict[str, Any] = {
        "mean": [0.5],
        "std": [0.25],
        "detectors": {"self_organizing_map": {"map_layers": ["conv"], "side": 2, "epochs": 1}},
        "attacks": [{"name": "fgsm", "kind": "fgsm", "epsilon": 0.3}],
        "levels": {"suspect": 0.1, "adversarial": 0.05},
    }
    return askance.calibrate(classifier, DATA, out=tmp_path / "bundle", **(arguments | more))


def test_a_live_module_is_proved_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'norm' is a BatchNorm2d without running statistics"):
        calibrated(Net(nn.BatchNorm2d(4, track_running_stats=False)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scale_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^mean and std are of pixels in \[0, 1\]: divide those of pixels from 0 to"):
        calibrated(Net(), tmp_path, mean=[127.5], std=[127.5])


def test_a_classifier_without_gradient_is_calibrated_on_attacks_that_need_none(tmp_path: Path) -> None:
    classifier = Net(before=lambda x: x.detach())
    with pytest.raises(ConfigError, match="no gradient with respect to its input"):
        calibrated(classifier, tmp_path)
    attacks = [{"name": "local", "kind": "local_search", "rounds": 1, "pixels": 1}]
    with pytest.raises(ConfigError, match=r"or configure only attacks that need no gradient .*, and ladder = false"):
        calibrated(classifier, tmp_path, attacks=attacks)
    bundle = calibrated(classifier, tmp_path, attacks=attacks, ladder=False)
    assert list(bundle.evaluation().attacks) == ["local"]


class Mute(Net):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)


def compiled(module: nn.Module) -> nn.Module:
    made: Any = torch.compile(module)
    assert isinstance(made, nn.Module)
    return made


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "in training mode": lambda: Net(nn.BatchNorm2d(4)).train(),
    "DataParallel": lambda: nn.DataParallel(Net(nn.BatchNorm2d(4))),
    "compiled": lambda: compiled(Net(nn.BatchNorm2d(4))),
    "compiled DataParallel": lambda: compiled(nn.DataParallel(Net(nn.BatchNorm2d(4)))),
    "eval() gives None": lambda: Mute(nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_modules_as_people_have_them_work(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    classifier = make()
    mode = classifier.training
    bundle = calibrated(classifier, tmp_path)
    assert classifier.training is mode
    assert bundle.manifest.classifier.layers == ("conv",)
    assert bundle.manifest.classifier.name in ("Net", "Mute")
    screen = askance.open(tmp_path / "bundle", classifier=classifier)
    assert screen(DATA["evaluate"][0][0]).prediction is not None


def hooked() -> nn.Module:
    classifier = Net()
    classifier.kept = classifier(PIXELS)
    return classifier


LIVE_REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: lambda x: x, "^the classifier is function, expected a torch.nn.Module$"),
    "keeps its output": (
        hooked,
        r"^the classifier cannot be copied \(RuntimeError: Only Tensors created explicitly .*\): let go of what",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
        r"^the classifier's state_dict\(\) cannot be kept \(.*\): expected tensors, with values$",
    ),
}


@pytest.mark.parametrize(("make", "message"), LIVE_REFUSALS.values(), ids=LIVE_REFUSALS)
def test_what_cannot_be_taken_over(tmp_path: Path, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(AskanceError, match=message) as caught:
        calibrated(make(), tmp_path)
    assert "\n" not in str(caught.value)


def test_what_refuses_eval_mode_is_refused_in_one_line() -> None:
    exported = torch.export.export(Net().eval(), (PIXELS,)).module()
    with pytest.raises(ConfigError) as caught:
        in_eval_mode(exported)
    assert str(caught.value) == (
        "the classifier cannot be put in eval mode (NotImplementedError: Calling eval() is not supported yet.): give "
        "the nn.Module that it was made of"
    )


# Outputs of several parts


@dataclass
class Parts:
    logits: Tensor
    features: Tensor
    loss: Tensor | None = None


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


def features_of(logits: Tensor) -> Tensor:
    return torch.cat([logits, logits], dim=1)


SHAPES: dict[str, tuple[Change, str | int, str]] = {
    "tuple": (lambda o: (features_of(o), o), 1, "tuple, {}; 0 is [6, 6], 1 is [6, 3]"),
    "list": (lambda o: [o, 3], 0, "list, {}; 0 is [6, 3]"),
    "dict": (lambda o: {"loss": None, "out": o}, "out", "dict, {}; 'out' is [6, 3]"),
    "ordered dict by index": (lambda o: OrderedDict(out=o, maps=o[:, :, None]), 0, "OrderedDict, {}; 'out' is [6, 3]"),
    "dataclass": (lambda o: Parts(o, features_of(o)), "logits", "Parts, {}; 'logits' is [6, 3], 'features' is [6, 6]"),
    "named tuple": (lambda o: Pair(o, o), "logits", "Pair, {}; 0 is [6, 3], 1 is [6, 3], 'logits' is [6, 3], "),
    "object": (lambda o: SimpleNamespace(logits=o, _x=o), "logits", "SimpleNamespace, {}; 'logits' is [6, 3]"),
}
EXPECTED = (
    "expected a tensor of logits [B, K]: say which part of it they are, by `output` in [classifier] or "
    "askance.calibrate"
)


@pytest.mark.parametrize(("after", "output", "message"), SHAPES.values(), ids=SHAPES)
def test_more_than_logits_is_refused_until_output_says_which(after: Change, output: str | int, message: str) -> None:
    assert refused(Net(after=after)).startswith(f"the classifier returns {message.format(EXPECTED)}")
    with torch.no_grad():
        expected = Net()(PREPROCESSING.normalize(PIXELS[:4]))
    assert torch.allclose(proved(select_output(Net(after=after), output)), expected, atol=1e-6)


def test_an_answer_without_logits() -> None:
    for after in (lambda o: None, lambda o: "no", lambda o: {"deep": {"logits": o}}, lambda o: (o[:, :, None],)):
        assert refused(Net(after=after)).endswith(
            "expected a tensor of logits [B, K], and no part of it is one: wrap it in a module that returns its logits"
        )


def test_an_output_that_is_not_there() -> None:
    parts = Net(after=lambda o: {"logits": o, "loss": o})
    assert refused(select_output(parts, "logit")) == (
        "the classifier's dict has no 'logit' for output: did you mean 'logits'? known: logits, loss"
    )
    assert refused(select_output(Net(), "logits")) == (
        "output is 'logits', but the classifier returns a tensor already: leave output out"
    )
    for wrong in (True, -1, "", 1.5, ["logits"]):
        with pytest.raises(
            ConfigError, match=r'^output: expected a key, an attribute or an index .*"logits" or 0, got '
        ):
            select_output(Net(), wrong)  # type: ignore[arg-type]


def test_a_bundle_keeps_its_output(tmp_path: Path) -> None:
    classifier = Net(after=lambda o: Parts(o, features_of(o)))
    with pytest.raises(ConfigError, match="'logits' is"):
        calibrated(classifier, tmp_path)
    bundle = calibrated(classifier, tmp_path, output="logits")
    assert bundle.manifest.classifier.output == "logits"
    image = DATA["evaluate"][0][:2]
    plain, picked = Net(), askance.open(tmp_path / "bundle", classifier=classifier)
    with torch.no_grad():
        expected = plain(PREPROCESSING.normalize(image)).argmax(1).tolist()
    assert [answer.prediction.index for answer in picked(image)] == expected
    assert isinstance(classifier(image), Parts)
    figures = askance.evaluate(
        bundle, DATA, classifier=classifier, attacks=[{"name": "fgsm", "kind": "fgsm", "epsilon": 0.3}]
    )
    assert figures.auroc == bundle.evaluation().auroc


def structured() -> nn.Module:
    return Net(after=lambda o: Parts(o, features_of(o)))


def test_a_factory_of_parts_is_picked_from_alike(tmp_path: Path) -> None:
    bundle = calibrated(structured(), tmp_path, output="logits", factory="test_proof:structured")
    assert bundle.manifest.classifier.factory == "test_proof:structured"
    opened = askance.open(tmp_path / "bundle", allowed_factories=["test_proof"])
    assert opened(DATA["evaluate"][0][0]).prediction is not None


def test_a_manifest_without_output_is_as_it_was(tmp_path: Path) -> None:
    bundle = calibrated(Net(), tmp_path)
    content = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert "output" not in content["classifier"]
    assert bundle.manifest.classifier.output is None


def test_output_in_a_config() -> None:
    table = {"factory": "lenet", "weights": "w.pt", "preprocessing": PREPROCESSING.model_dump()}
    assert ClassifierConfig.model_validate(table | {"output": 0}).output == 0
    assert ClassifierConfig.model_validate(table | {"output": "logits"}).output == "logits"
    for wrong in (True, -1, "", 1.5):
        with pytest.raises(ValidationError) as caught:
            ClassifierConfig.model_validate(table | {"output": wrong})
        assert explain(caught.value, ClassifierConfig).startswith("output: expected a key, an attribute or an index of")
