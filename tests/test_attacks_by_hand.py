"""The attacks on cases small enough to be done by hand: what moves, how far, and what stays."""

from __future__ import annotations

import pytest
import torch
from attack_support import IMAGES, LABELS, PIXELS, Brightness
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import Trained

from askance.calibration.attacks import ATTACKS, Attack, PixelClassifier, perturb
from askance.calibration.attacks.patch import square
from askance.calibration.attacks.rotation_translation import turned
from askance.calibration.attacks.sparsefool import towards_plane
from askance.errors import ConfigError

NEAREST = torch.tensor([2 * 27.5 / 255, 2 * 52.5 / 255])  # L2 of each image's way to the boundary, at grey


@pytest.fixture
def predict() -> PixelClassifier:
    return PixelClassifier(Brightness().eval(), PIXELS)


def attack(kind: str, **options: object) -> Attack:
    return ATTACKS[kind].model_validate({"name": "a", "kind": kind, **options})


def test_l2_pgd_goes_straight_across_the_boundary(predict: PixelClassifier) -> None:
    attacked = perturb(predict, attack("l2_pgd", epsilon=0.3), IMAGES, LABELS, 0)
    moved = (attacked - IMAGES).flatten(1)
    torch.testing.assert_close(moved.norm(dim=1), torch.full((2,), 0.3))
    # straight is .15 in each of the four pixels; the first image's boundary is .216 away, the second's .412
    torch.testing.assert_close(moved, torch.tensor([[0.15], [-0.15]]).expand(2, 4), atol=0.05, rtol=0)
    assert predict(attacked).argmax(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["apgd", "square"])
def test_what_is_out_of_reach_stays_as_it_is(predict: PixelClassifier, kind: str) -> None:
    attacked = perturb(predict, attack(kind, epsilon=0.15), IMAGES, LABELS, 0)
    assert torch.equal(attacked[1], IMAGES[1])  # .206 from the boundary
    assert predict(attacked).argmax(dim=1).tolist() == [1, 1]
    assert (attacked - IMAGES).abs().max() <= 0.15 + 1e-6


def test_the_difference_of_logits_ratio_needs_three_classes(predict: PixelClassifier) -> None:
    with pytest.raises(ConfigError, match=r'^attack a: the loss "dlr" needs 3 classes, there are 2: take "ce"$'):
        perturb(predict, attack("apgd", epsilon=0.1, loss="dlr"), IMAGES, LABELS, 0)


def test_the_difference_of_logits_ratio_fools_digits(trained: Trained) -> None:
    predict = PixelClassifier(trained.classifier, trained.preprocessing)
    images, labels = trained.part("evaluate")
    attacked = perturb(predict, attack("apgd", epsilon=0.2, loss="dlr"), images[:40], labels[:40], 0)
    assert (predict(attacked).argmax(dim=1) != labels[:40]).double().mean() >= 0.9


@pytest.mark.parametrize(("kind", "share"), [("hop_skip_jump", 1.25), ("boundary", 1.3)])
def test_decisions_alone_lead_near_the_nearest_boundary(predict: PixelClassifier, kind: str, share: float) -> None:
    attacked = perturb(predict, attack(kind), IMAGES, LABELS, 0)
    distances = (attacked - IMAGES).flatten(1).norm(dim=1)
    assert predict(attacked).argmax(dim=1).tolist() == [1, 0]
    assert (distances >= NEAREST - 1e-4).all()
    assert (distances <= share * NEAREST).all()


class Stripes(nn.Module):
    """Class 1 where the upper pixels are much brighter than the lower ones, as noise never has it for long."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x[:, :, 0].mean(dim=(1, 2)) - x[:, :, 1].mean(dim=(1, 2)) - 3.9
        return torch.stack([-margin, margin], dim=1)


def test_where_noise_leads_nowhere_a_batch_mate_does() -> None:
    predict = PixelClassifier(Stripes().eval(), PIXELS)
    grey = torch.full((1, 1, 2, 2), 0.5)
    stripes = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    images, labels = torch.cat([grey, stripes]), torch.tensor([0, 1])
    options = attack("hop_skip_jump", steps=3)
    together = perturb(predict, options, images, labels, 0)
    assert predict(together).argmax(dim=1).tolist() == [1, 0]
    assert torch.equal(perturb(predict, options, grey, labels[:1], 0), grey)  # no start at all
    assert torch.equal(perturb(predict, options, images, 1 - labels, 0), images)  # wrong as they are


def test_towards_a_plane_by_hand() -> None:
    start = torch.tensor([0.5, 0.2, 0.4, 0.9]).view(1, 1, 2, 2)
    normal = torch.tensor([3.0, -2.0, 1.0, 0.5]).view(1, 1, 2, 2)

    def moved(need: float) -> list[float]:
        point = start + need * normal / (normal**2).sum()  # this far along the normal: w . (point - start) = need
        return towards_plane(start, normal, point).flatten().tolist()

    assert moved(1.2) == pytest.approx([0.9, 0.2, 0.4, 0.9])  # 1.2 / 3
    assert moved(1.7) == pytest.approx([1.0, 0.1, 0.4, 0.9])  # 1.5 by the first, .2 / 2 by the second, which goes down
    assert moved(2.4) == pytest.approx([1.0, 0.0, 0.9, 0.9])  # 1.5, .4 and .5
    assert moved(9.9) == pytest.approx([1.0, 0.0, 1.0, 1.0])  # out of reach
    assert moved(-1.0) == pytest.approx([0.5, 0.2, 0.4, 0.9])  # beyond it already


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_towards_a_plane_at_most_one_value_stops_half_way(seed: int, size: int) -> None:
    g = torch.Generator().manual_seed(seed)
    start, point = (torch.rand(3, 1, 1, size, generator=g, dtype=torch.float64) for _ in range(2))
    normal = torch.randn(3, 1, 1, size, generator=g, dtype=torch.float64)
    moved = towards_plane(start, normal, point)
    assert ((moved >= 0) & (moved <= 1)).all()
    need, gained = (((one - start) * normal).flatten(1).sum(dim=1) for one in (point, moved))
    torch.testing.assert_close(gained, need.clamp(min=0))  # a point within [0, 1] can be reached
    half_way = (moved != start) & (moved > 1e-12) & (moved < 1 - 1e-12)
    assert (half_way.flatten(1).sum(dim=1) <= 1).all()


def test_sparsefool_takes_few_pixels(predict: PixelClassifier) -> None:
    """The second image has to lose .824 in all: one pixel of .706 is not enough, two are."""
    attacked = perturb(predict, attack("sparsefool"), IMAGES, LABELS, 0)
    assert predict(attacked).argmax(dim=1).tolist() == [1, 0]
    assert ((attacked - IMAGES).abs() > 1e-6).flatten(1).sum(dim=1).tolist() == [1, 2]


def test_sparsefool_needs_fewer_pixels_than_deepfool(trained: Trained) -> None:
    predict = PixelClassifier(trained.classifier, trained.preprocessing)
    images, labels = trained.part("evaluate")
    counts = [
        float(((perturb(predict, attack(kind), images[:40], labels[:40], 0) - images[:40]).abs() > 1e-6).sum()) / 40
        for kind in ("sparsefool", "deepfool")
    ]
    assert counts[0] < 12 < 35 < counts[1]


def test_a_square_lies_where_the_gradient_is() -> None:
    gradient = torch.zeros(2, 3, 4, 5)
    gradient[0, 1, 1:3, 2:4] = -1.0
    gradient[1, :, 3, 0] = 5.0
    inside = square(gradient, 4 / 20)
    assert inside[0, 0].nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert inside[1, 0].nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    assert square(gradient, 0.001).flatten(1).sum(dim=1).tolist() == [1, 1]
    assert square(gradient, 1.0)[0, 0].sum() == 16  # no larger than the shorter side


def test_a_patch_stays_within_its_square(predict: PixelClassifier, trained: Trained) -> None:
    attacked = perturb(predict, attack("patch", share=0.25), IMAGES, LABELS, 0)
    moved = (attacked - IMAGES).flatten(1)
    # one pixel: .608 up is enough for the first image, .706 down not for the second, which lacks .824
    torch.testing.assert_close(moved[:, 0], torch.tensor([155 / 255, -180 / 255]))
    assert not moved[:, 1:].any()
    assert predict(attacked).argmax(dim=1).tolist() == [1, 1]
    digits = PixelClassifier(trained.classifier, trained.preprocessing)
    images, labels = trained.part("evaluate")
    attacked = perturb(digits, attack("patch", share=0.15), images[:10], labels[:10], 0)
    changed = (attacked != images[:10])[:, 0]
    for one in changed:
        rows, columns = one.nonzero(as_tuple=True)
        assert int(rows.max() - rows.min()) < 3
        assert int(columns.max() - columns.min()) < 3
    alone = perturb(digits, attack("patch", share=0.15), images[3:4], labels[3:4], 0)
    torch.testing.assert_close(alone, attacked[3:4])


def test_turned_by_hand() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4) / 16
    torch.testing.assert_close(turned(images, 0, 0, 0), images)
    torch.testing.assert_close(turned(images, 90, 0, 0), images.rot90(1, dims=(2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(images, 180, 0, 0), images.flip((2, 3)), atol=1e-5, rtol=0)
    down = torch.cat([torch.zeros(1, 1, 1, 4), images[:, :, :3]], dim=2)
    torch.testing.assert_close(turned(images, 0, 0.25, 0), down, atol=1e-5, rtol=0)
    left = torch.cat([images[:, :, :, 1:], torch.zeros(1, 1, 4, 1)], dim=3)
    torch.testing.assert_close(turned(images, 0, 0, -0.25), left, atol=1e-5, rtol=0)
    wide = torch.zeros(1, 1, 4, 8)
    wide[:, :, 1:3, 2:6] = 1.0  # a rectangle of 2 by 4 about the middle
    upright = torch.zeros(1, 1, 4, 8)
    upright[:, :, :, 3:5] = 1.0
    torch.testing.assert_close(turned(wide, 90, 0, 0), upright, atol=1e-5, rtol=0)  # no stretching


def test_turned_then_shifted() -> None:
    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    both = turned(turned(images, 90, 0, 0), 0, 0.25, 0.25)
    torch.testing.assert_close(turned(images, 90, 0.25, 0.25), both, atol=1e-5, rtol=0)


def test_rotations_do_not_depend_on_batch_mates(trained: Trained) -> None:
    predict = PixelClassifier(trained.classifier, trained.preprocessing)
    images, labels = trained.part("evaluate")
    options = attack("rotation_translation", samples=20)
    together = perturb(predict, options, images[:6], labels[:6], 3)
    for i in range(6):
        torch.testing.assert_close(perturb(predict, options, images[i : i + 1], labels[i : i + 1], 3)[0], together[i])


def test_one_perturbation_for_all(predict: PixelClassifier) -> None:
    """All images are of class 0: brighter is what fools them, and white stays white."""
    images = torch.tensor([100, 60, 120, 255]).view(4, 1, 1, 1).expand(4, 1, 2, 2) / 255
    attacked = perturb(predict, attack("universal", epsilon=0.2), images, torch.zeros(4, dtype=torch.long), 0)
    torch.testing.assert_close(attacked, (images + 0.2).clamp(max=1))
