"""Hardening: its attacks and losses by hand, a training that is interrupted, and what it makes of the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calibration_support import CONFIGS, DigitsRun
from hypothesis import given
from hypothesis import strategies as st
from marks import LASTING
from safetensors.torch import load_file
from torch import Tensor, nn

from askance.__main__ import run
from askance.calibration.config import Config, HardeningConfig, load_config
from askance.detectors import Tap
from askance.detectors.tap import Capture
from askance.errors import AskanceError, CalibrationError, ConfigError, LayerError
from askance.hardening import harden, training
from askance.hardening.losses import attack, loss_of, strayed
from askance.hardening.strength import attacks


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3))


def _images(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 2, 3, generator=generator), torch.arange(count) % 3


def _up(labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


@given(epsilon=st.floats(0.001, 1), steps=st.integers(1, 9))
def test_an_attack_stays_in_its_budget_and_leaves_statistics_alone(epsilon: float, steps: int) -> None:
    images, labels = _images()
    with Tap(_linear(), (), training=True) as tap:
        tap.module.train()
        before = {name: value.clone() for name, value in tap.module.state_dict().items()}
        moved = attack(tap, images, _up(labels), steps, epsilon)
        assert not tap.module.training
        after = tap.module.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert all(parameter.grad is None for parameter in tap.module.parameters())
    assert not moved.requires_grad
    assert float((moved - images).abs().max()) <= epsilon + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_one_step_goes_up_the_loss_by_five_quarters_of_the_budget_from_a_random_start() -> None:
    images, labels = torch.full((4, 1, 2, 3), 0.5), torch.tensor([0, 1, 2, 0])
    with Tap(_linear().eval(), (), training=True) as tap:
        torch.manual_seed(5)
        start = images + 0.1 * (2 * torch.rand_like(images) - 1)
        start.requires_grad_()
        (slope,) = torch.autograd.grad(_up(labels)(tap.classify(start)), start)
        by_hand = images + (start.detach() + 0.125 * slope.sign() - images).clamp(-0.1, 0.1)
        torch.manual_seed(5)
        assert torch.allclose(attack(tap, images, _up(labels), 1, 0.1), by_hand)
        assert _up(labels)(tap.classify(by_hand)) > _up(labels)(tap.classify(images))


def test_how_far_activations_stray_is_relative_and_moves_the_attacked_ones_alone() -> None:
    usual = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    moved = torch.tensor([[3.0, 9.0], [1.0, 2.0]], requires_grad=True)
    found = strayed(Capture(torch.zeros(4, 2), {"a": torch.cat([usual, moved])}))
    assert found["a"].tolist() == pytest.approx([1.0, 0.25])
    found["a"].sum().backward()
    assert usual.grad is None or not bool(usual.grad.any())
    assert moved.grad is not None
    assert moved.grad.tolist() == [[0.0, pytest.approx(0.4)], [pytest.approx(0.5), 0.0]]


def _loss(method: str, layers: tuple[str, ...] = (), **more: Any) -> tuple[float, Tensor, Tensor]:
    """The loss of a batch, and the logits of the images as they are and attacked, all without dropout or statistics."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    images, labels = _images(6)
    options = HardeningConfig.model_validate({"epsilon": 0.2, "method": method, "steps": 3, **more})
    with Tap(module, layers, training=True) as tap:
        torch.manual_seed(3)
        found = float(loss_of(tap, images, labels, options, 0.1).detach())
        assert module.training
        usual = tap.classify(images).detach()
        goal = _up(labels)
        if method == "trades":
            shares = usual.softmax(1)
            goal = lambda logits: F.kl_div(logits.log_softmax(1), shares, reduction="sum")  # noqa: E731
        torch.manual_seed(3)
        return found, usual, tap.classify(attack(tap, images, goal, 3, 0.1)).detach()


def test_the_losses_by_hand() -> None:
    labels = _images(6)[1]
    found, _, moved = _loss("adversarial")
    assert found == pytest.approx(float(F.cross_entropy(moved, labels)))
    found, usual, moved = _loss("trades", trades_weight=2.0)
    divergence = (usual.softmax(1) * (usual.log_softmax(1) - moved.log_softmax(1))).sum(1).mean()
    assert float(divergence) > 0.001
    assert found == pytest.approx(float(F.cross_entropy(usual, labels) + 2 * divergence), rel=1e-5)
    found, usual, moved = _loss("consistent", ("1",), consistency_weight=3.0)
    gap = ((moved - usual).square().sum(1) / usual.square().sum(1)).mean()
    halves = (F.cross_entropy(usual, labels) + F.cross_entropy(moved, labels)) / 2
    assert found == pytest.approx(float(halves + 3 * gap), rel=1e-5)


def _config(run: DigitsRun, **options: Any) -> Config:
    section = HardeningConfig.model_validate({"epsilon": 0.1, "steps": 2, "epochs": 3, **options})
    return run.config.model_copy(update={"hardening": section})


def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(
    digits_run: DigitsRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(digits_run)
    whole, parted = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors"
    harden(config, whole)
    assert not (tmp_path / "whole.safetensors.partial").exists()

    epochs, step = 2, training._step

    def interrupted(course: Any, *rest: Any) -> float:
        if course.epoch == epochs:
            raise KeyboardInterrupt
        return step(course, *rest)

    monkeypatch.setattr(training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harden(config, parted)
    monkeypatch.undo()
    assert not parted.exists()
    with pytest.raises(CalibrationError, match=r"holds unfinished work: add --resume to continue it, or remove it"):
        harden(config, parted)
    with pytest.raises(CalibrationError, match=r"was begun with another classifier, data or options: remove it"):
        harden(_config(digits_run, steps=3), parted, resume=True)
    harden(config, parted, resume=True)
    assert parted.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "parted.safetensors.partial").exists()


def test_a_damaged_state_begins_anew(digits_run: DigitsRun, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    folder = tmp_path / "out.safetensors.partial"
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"nothing")
    assert harden(_config(digits_run, epochs=1), out, resume=True).weights == str(out)


@pytest.mark.parametrize(
    ("start", "method"),
    [
        ("weights", "trades"),
        ("weights", "consistent"),
        pytest.param("weights", "adversarial", marks=LASTING),
        pytest.param("anew", "adversarial", marks=LASTING),
    ],
)
def test_digits_that_are_hardened_stand_more(start: str, method: str, digits_run: DigitsRun, tmp_path: Path) -> None:
    options = {"epochs": 12 if start == "weights" else 25, "method": method, "start": start, "trades_weight": 2.0}
    found = harden(_config(digits_run, learning_rate=0.04, **options), tmp_path / "w.safetensors")
    assert (found.train_images, found.test_images, found.after.images) == (697, 150, 150)
    assert found.after.accuracy.share >= 0.9
    assert found.after.robust.share >= 0.7
    assert set(found.after.gap) == {"conv1", "relu1", "conv2", "relu3", "fc1", "fc2"}
    entry = digits_run.bundle.manifest.classifier
    assert set(load_file(tmp_path / "w.safetensors")) == set(digits_run.bundle.tensors(entry))
    if start == "anew":
        assert found.before is None
        return
    assert found.before is not None
    assert found.after.robust.low > found.before.robust.high
    assert found.after.gap["fc1"] < found.before.gap["fc1"]


def test_two_classes_are_attacked_by_cross_entropy() -> None:
    assert [getattr(one, "loss", None) for one in attacks(0.1, 2)] == [None, "ce"]
    assert [getattr(one, "loss", None) for one in attacks(0.1, 3)] == [None, "dlr"]


def test_what_cannot_be_hardened_is_said(digits_run: DigitsRun, tmp_path: Path) -> None:
    config, out = _config(digits_run, epochs=1), tmp_path / "w.safetensors"

    def refused(error: type[AskanceError], said: str, config: Config = config, out: Path = out) -> None:
        with pytest.raises(error, match=said):
            harden(config, out)

    refused(ConfigError, r"the section \[hardening\] is missing", config.model_copy(update={"hardening": None}))
    splits = config.splits.model_copy(update={"train": None})
    refused(ConfigError, r"'splits\.train' is missing", config.model_copy(update={"splits": splits}))
    refused(ConfigError, r"set --out to a \.safetensors path", out=tmp_path / "w.pt")
    (tmp_path / "there.safetensors").write_bytes(b"")
    refused(ConfigError, r"exists: choose another path", out=tmp_path / "there.safetensors")
    refused(LayerError, r"has no layer 'fc9'", _config(digits_run, epochs=1, layers=("fc9",)))
    wild = _config(digits_run, epochs=3, learning_rate=1e9, warm_up=0.0)
    refused(CalibrationError, r"diverges in epoch 1: lower hardening\.learning_rate from 1e\+09", wild)
    assert not out.exists()


def test_the_command(digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = digits_run.folder / "hardened.toml"
    lines = '[hardening]\nepsilon = "1/10"\nepochs = 1\nsteps = 1\n\n[data]'
    config.write_text(digits_run.config_path.read_text().replace("[data]", lines))
    out = tmp_path / "w.safetensors"
    assert run(["harden", str(config), "--out", str(out), "--json", str(tmp_path / "f.json")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "before: accuracy" in printed
    assert "hardened: accuracy" in printed
    assert "within 0.1 PGD and Auto-PGD leave" in printed
    assert f"weights in {out}: name them in {config}, and calibrate anew, for" in printed
    config.write_text(config.read_text().replace("epochs = 1\n", "epoch = 1\n"))
    assert run(["harden", str(config), "--out", str(out)]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err


def test_the_shipped_config_is_that_of_the_digits_with_another_classifier() -> None:
    hardened, usual = (load_config(CONFIGS / f"{name}.toml") for name in ("digits_hardened", "digits"))
    assert hardened.hardening is not None
    assert usual.hardening is None
    assert hardened.splits == usual.splits
    assert hardened.data == usual.data
    assert hardened.evaluation.attacks == usual.evaluation.attacks
    assert hardened.classifier.weights.exists()
    assert hardened.classifier == usual.classifier.model_copy(update={"weights": hardened.classifier.weights})
