"""The attacks, and advertorch on today's torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from calibration.advertorch_compat import zero_gradients
from calibration.attacks import PixelClassifier, attack
from calibration.config import AttackConfig
from calibration.data import Images
from detectors.preprocessing import Preprocessing

PIXELS = Preprocessing(channels=1, height=2, width=2, mean=(0.5,), std=(0.25,))


class Brightness(nn.Module):
    """Class 1 if the four normalised pixels sum to more than zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.fixture
def predict() -> PixelClassifier:
    return PixelClassifier(Brightness().eval(), PIXELS)


@pytest.fixture
def images() -> Images:
    x = torch.tensor([100, 180], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2).contiguous()
    return Images(x, torch.tensor([0, 1]), ("dark", "bright"))


def test_fgsm_is_one_signed_step_in_pixel_space(predict: PixelClassifier, images: Images) -> None:
    config = AttackConfig(name="f", kind="fgsm", epsilon=0.1)
    attacked = attack(predict, images, config)
    expected = images.pixels() + torch.tensor([0.1, -0.1]).view(2, 1, 1, 1)
    torch.testing.assert_close(attacked, expected)


def test_pgd_stays_in_its_budget_and_succeeds_when_it_can(predict: PixelClassifier, images: Images) -> None:
    weak = attack(predict, images, AttackConfig(name="p", kind="pgd", epsilon=0.05))
    strong = attack(predict, images, AttackConfig(name="p", kind="pgd", epsilon=0.3))
    assert (weak - images.pixels()).abs().max() <= 0.05 + 1e-6
    assert (strong - images.pixels()).abs().max() <= 0.3 + 1e-6
    assert predict(weak).argmax(dim=1).tolist() == [0, 1]
    assert predict(strong).argmax(dim=1).tolist() == [1, 0]


def test_pixels_never_leave_the_unit_interval(predict: PixelClassifier) -> None:
    images = Images(torch.tensor([[[[0, 255], [0, 255]]]], dtype=torch.uint8), torch.tensor([0]), ("a", "b"))
    attacked = attack(predict, images, AttackConfig(name="p", kind="pgd", epsilon=0.5))
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_attacks_are_seeded_and_leave_no_trace(predict: PixelClassifier, images: Images) -> None:
    config = AttackConfig(name="p", kind="pgd", epsilon=0.2, steps=1, step_size=0.01)
    before = torch.random.get_rng_state()
    first = attack(predict, images, config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(attack(predict, images, config), first)
    assert not torch.equal(attack(predict, images, config.model_copy(update={"seed": 1})), first)
    assert all(p.requires_grad and p.grad is None for p in predict.parameters())
    assert not predict.training


def test_zero_gradients_is_what_torch_had() -> None:
    x = torch.ones(2, requires_grad=True)
    (x * 3).sum().backward()
    zero_gradients([x, torch.ones(1, requires_grad=True)])
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


def test_advertorch_imports_on_a_fresh_interpreter() -> None:
    code = (
        "from calibration.advertorch_compat import import_advertorch as i; m = i(); assert i() is m;"
        "print(m.LinfPGDAttack.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("LinfPGDAttack", 0), done.stderr
