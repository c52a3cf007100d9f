"""The attacks, and advertorch on today's torch."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from attack_support import IMAGES, LABELS, PIXELS, Brightness
from pydantic import TypeAdapter, ValidationError
from toy import Trained

from askance.calibration.advertorch_compat import zero_gradients
from askance.calibration.attacks import (
    ATTACKS,
    FGSM,
    PGD,
    Attack,
    PixelClassifier,
    SpatialTransform,
    perturb,
)
from askance.calibration.config import AttackConfig


@pytest.fixture
def predict() -> PixelClassifier:
    return PixelClassifier(Brightness().eval(), PIXELS)


def test_fgsm_is_one_signed_step_in_pixel_space(predict: PixelClassifier) -> None:
    step = torch.tensor([0.1, -0.1]).view(2, 1, 1, 1)
    torch.testing.assert_close(
        perturb(predict, FGSM(name="f", kind="fgsm", epsilon=0.1), IMAGES, LABELS, 0), IMAGES + step
    )
    aimed = FGSM(name="f", kind="fgsm", epsilon=0.1, target_rank=1)
    torch.testing.assert_close(perturb(predict, aimed, IMAGES, LABELS, 0), IMAGES - step)  # towards the class it has


def test_the_smallest_fgsm_step_ends_just_past_the_boundary(predict: PixelClassifier) -> None:
    options = FGSM(name="f", kind="fgsm", epsilon=0.3, smallest=True)
    attacked = perturb(predict, options, IMAGES, LABELS, 0)
    assert predict(attacked).argmax(dim=1).tolist() == [1, 0]
    # the boundary is at grey: 27.5 / 255 from the first image, 52.5 / 255 from the second, in steps of 0.3 / 16
    steps = torch.tensor([math.ceil(27.5 / 255 / (0.3 / 16)), -math.ceil(52.5 / 255 / (0.3 / 16))])
    torch.testing.assert_close(attacked, IMAGES + steps.view(2, 1, 1, 1) * 0.3 / 16)
    # out of reach: the whole budget is used, as without the option
    short = FGSM(name="f", kind="fgsm", epsilon=0.05, smallest=True)
    whole = FGSM(name="f", kind="fgsm", epsilon=0.05)
    torch.testing.assert_close(perturb(predict, short, IMAGES, LABELS, 0), perturb(predict, whole, IMAGES, LABELS, 0))


def iterative(kind: str, epsilon: object) -> Attack:
    return ATTACKS[kind].model_validate({"name": "p", "kind": kind, "epsilon": epsilon})


@pytest.mark.parametrize("kind", ["bim", "pgd", "mim"])
def test_iterative_attacks_stay_in_their_budget_and_succeed_when_they_can(predict: PixelClassifier, kind: str) -> None:
    weak = perturb(predict, iterative(kind, 0.05), IMAGES, LABELS, 0)
    strong = perturb(predict, iterative(kind, "3/10"), IMAGES, LABELS, 0)
    assert (weak - IMAGES).abs().max() <= 0.05 + 1e-6
    assert (strong - IMAGES).abs().max() <= 0.3 + 1e-6
    assert predict(weak).argmax(dim=1).tolist() == [0, 1]
    assert predict(strong).argmax(dim=1).tolist() == [1, 0]


def test_pixels_never_leave_the_unit_interval(predict: PixelClassifier) -> None:
    images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    options = PGD(name="p", kind="pgd", epsilon=0.5)
    attacked = perturb(predict, options, images, torch.tensor([0]), 0)
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_attacks_are_seeded_and_leave_no_trace(predict: PixelClassifier) -> None:
    options = PGD(name="p", kind="pgd", epsilon=0.2, steps=1, step_size=0.01)
    before = torch.random.get_rng_state()
    first = perturb(predict, options, IMAGES, LABELS, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(perturb(predict, options, IMAGES, LABELS, 0), first)
    assert not torch.equal(perturb(predict, options, IMAGES, LABELS, 1), first)
    assert all(p.requires_grad and p.grad is None for p in predict.parameters())
    assert not predict.training


# Of 40 digits that the classifier gets right: the least share that each attack must fool, and the greatest L-infinity
# distance it may go.
ON_DIGITS: dict[str, tuple[dict[str, Any], float, float]] = {
    "fgsm": ({"epsilon": 0.2}, 0.6, 0.2),
    "bim": ({"epsilon": 0.2}, 0.9, 0.2),
    "pgd": ({"epsilon": 0.2}, 0.9, 0.2),
    "stopped_pgd": ({"epsilon": 0.2, "margin": 3}, 0.9, 0.2),
    "mim": ({"epsilon": 0.2}, 0.9, 0.2),
    "cw": ({"learning_rate": 0.05, "initial_weight": 1.0}, 0.9, 1.0),
    "ead": ({"learning_rate": 0.05, "initial_weight": 1.0}, 0.9, 1.0),
    "ddn": ({}, 0.9, 1.0),
    "deepfool": ({}, 0.95, 1.0),
    "fab": ({}, 0.95, 0.5),
    "spatial": ({"smoothness": 0.1}, 0.5, 1.0),
    "local_search": ({"pixels": 15}, 0.2, 1.0),
    "spsa": ({"epsilon": 0.3, "learning_rate": 0.05}, 0.5, 0.3),
    "l2_pgd": ({"epsilon": 1.5}, 0.95, 1.0),
    "apgd": ({"epsilon": 0.2}, 0.95, 0.2),
    "sparsefool": ({}, 0.95, 1.0),
    "patch": ({"share": 0.15}, 0.7, 1.0),
    "universal": ({"epsilon": 0.3}, 0.6, 0.3),
    "rotation_translation": ({}, 0.8, 1.0),
    "square": ({"epsilon": 0.3, "queries": 500}, 0.95, 0.3),
    "hop_skip_jump": ({"steps": 5}, 0.95, 1.0),
    "boundary": ({"steps": 300}, 0.95, 1.0),
}


@pytest.mark.parametrize("kind", ON_DIGITS)
def test_every_attack_fools_the_digits_classifier(trained: Trained, kind: str) -> None:
    options, least, farthest = ON_DIGITS[kind]
    predict = PixelClassifier(trained.classifier, trained.preprocessing)
    images, labels = trained.part("evaluate")
    right = predict(images).argmax(dim=1) == labels
    images, labels = images[right][:40], labels[right][:40]
    config = TypeAdapter(AttackConfig).validate_python({"name": kind, "kind": kind, **options})
    attacked = perturb(predict, config, images, labels, 0)
    fooled = predict(attacked).argmax(dim=1) != labels
    assert attacked.shape == images.shape
    assert attacked.dtype == torch.float32
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert fooled.double().mean() >= least
    assert (attacked - images).abs().max() <= farthest + 1e-5


def test_a_spatial_attack_that_finds_nothing_gives_the_image_back(predict: PixelClassifier) -> None:
    options = SpatialTransform(name="s", kind="spatial", steps=1)
    assert torch.equal(perturb(predict, options, IMAGES, LABELS, 0), IMAGES)


@pytest.mark.parametrize("bad", ["8/0", "eight", "0", "3/2", -0.1, True])
def test_budgets_are_numbers_or_fractions(bad: object) -> None:
    with pytest.raises(ValidationError):
        FGSM.model_validate({"name": "f", "kind": "fgsm", "epsilon": bad})
    assert FGSM.model_validate({"name": "f", "kind": "fgsm", "epsilon": "8/255"}).epsilon == 8 / 255


def test_zero_gradients_is_what_torch_had() -> None:
    x = torch.ones(2, requires_grad=True)
    (x * 3).sum().backward()
    zero_gradients([x, torch.ones(1, requires_grad=True)])
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


def test_advertorch_imports_on_a_fresh_interpreter() -> None:
    code = (
        "from askance.calibration.advertorch_compat import import_advertorch as i; m = i(); assert i() is m;"
        "print(m.LinfPGDAttack.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("LinfPGDAttack", 0), done.stderr
