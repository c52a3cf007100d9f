"""PGD that stops: where the lead is a margin, for each image by itself; and its use as a seen attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attack_support import IMAGES, LABELS, PIXELS, Brightness
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toy import Trained

from askance.calibration.attacks import PixelClassifier, StoppedPGD, perturb
from askance.calibration.attacks._lead import lead
from askance.calibration.config import EvaluationConfig
from askance.screening.preprocessing import Preprocessing

LADDER = (0.0, 1.0, 3.0, 5.0, 10.0)


def stopped(margin: float, epsilon: float = 0.4, **more: Any) -> StoppedPGD:
    return StoppedPGD(name="s", kind="stopped_pgd", epsilon=epsilon, margin=margin, **more)


@pytest.mark.parametrize(("margin", "steps"), [(0, (5, 9)), (1, (6, 10)), (3, (9, 12)), (5, (11, 15)), (10, (16, 16))])
def test_images_stop_where_the_lead_is_the_margin(margin: float, steps: Sequence[int]) -> None:
    """The leads of the wrong classes begin at 8 (100 / 255 - .5) / .25 = -3.451 and 8 (.5 - 180 / 255) / .25 = -6.588.

    A step of .4 / 16 in all four pixels moves both by 2 * 4 * .025 / .25 = .8; 16 steps are the budget.
    """
    predict = PixelClassifier(Brightness().eval(), PIXELS)
    attacked = perturb(predict, stopped(margin), IMAGES, LABELS, 0)
    moved = torch.tensor([1.0, -1.0]) * torch.tensor(steps) * 0.4 / 16
    torch.testing.assert_close(attacked, IMAGES + moved.view(2, 1, 1, 1))
    leads = lead(predict(attacked), LABELS)
    expected = torch.tensor([-3.451, -6.588]) + 0.8 * torch.tensor(steps)
    torch.testing.assert_close(leads.detach(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("margin", [0, 1, 3, 5, 10])
def test_in_l2_a_step_is_as_long_as_in_all_pixels_together(margin: float) -> None:
    """All four pixels count alike: .8 in L2 is .4 in each."""
    predict = PixelClassifier(Brightness().eval(), PIXELS)
    attacked = perturb(predict, stopped(margin, 0.8, norm="l2"), IMAGES, LABELS, 0)
    torch.testing.assert_close(attacked, perturb(predict, stopped(margin), IMAGES, LABELS, 0))
    assert (attacked - IMAGES).flatten(1).norm(dim=1).max() <= 0.8 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("sureness", [1.0, 6.0, 10.0])
def test_a_very_sure_answer_is_attacked_as_well(norm: str, sureness: float) -> None:
    """Its gradient is e^-66 in length, its square nothing."""
    classifier = Brightness().eval()
    with torch.no_grad():
        classifier.linear.weight.mul_(sureness)
    predict = PixelClassifier(classifier, PIXELS)
    attacked = perturb(predict, stopped(0, 0.4 if norm == "linf" else 0.8, norm=norm), IMAGES, LABELS, 0)
    moved = torch.tensor([1.0, -1.0]) * torch.tensor([5, 9]) * 0.4 / 16
    torch.testing.assert_close(attacked, IMAGES + moved.view(2, 1, 1, 1))


def test_only_l2_budgets_may_be_greater_than_a_pixel() -> None:
    assert stopped(0, 3.0, norm="l2").epsilon == 3
    with pytest.raises(ValidationError, match="an L-infinity budget is at most 1, the range of a pixel, got 3"):
        stopped(0, 3.0)


def test_an_image_that_is_wrong_already_stays_and_a_tie_goes_on() -> None:
    predict = PixelClassifier(Brightness().eval(), PIXELS)
    wrong = 1 - LABELS
    assert torch.equal(perturb(predict, stopped(0), IMAGES, wrong, 0), IMAGES)
    tie = torch.full((1, 1, 2, 2), 0.5)  # both logits are zero: the classifier says 0
    moved = perturb(predict, stopped(0), tie, torch.tensor([0]), 0)
    torch.testing.assert_close(moved, tie + 0.4 / 16)


def test_a_target_leads_over_all_others() -> None:
    predict = PixelClassifier(Brightness().eval(), PIXELS)
    aimed = StoppedPGD(name="s", kind="stopped_pgd", epsilon=0.4, margin=1, target_rank=1)
    attacked = perturb(predict, aimed, IMAGES, 1 - LABELS, 0)
    torch.testing.assert_close(attacked, perturb(predict, stopped(1), IMAGES, LABELS, 0))


def sizes(moved: torch.Tensor, norm: str) -> torch.Tensor:
    flat = moved.flatten(1)
    return flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 2.4)])
def test_the_ladder_on_digits(trained: Trained, norm: str, epsilon: float) -> None:
    """Each rung leads by its margin or more, and by less than PGD's overshoot; budget and mates are kept to."""
    predict = PixelClassifier(trained.classifier, trained.preprocessing)
    images, labels = trained.part("evaluate")
    right = predict(images).argmax(dim=1) == labels
    images, labels = images[right][:60], labels[right][:60]
    medians, distances = [], []
    for margin in LADDER:
        attacked = perturb(predict, stopped(margin, epsilon, norm=norm), images, labels, 0)
        leads = lead(predict(attacked), labels).detach()
        assert (leads > 0).double().mean() >= 0.95
        assert (leads >= margin).double().mean() >= 0.9
        assert sizes(attacked - images, norm).max() <= epsilon + 1e-5
        medians.append(float(leads.median()))
        distances.append(float(sizes(attacked - images, norm).median()))
        attack = stopped(margin, epsilon, norm=norm)
        alone = torch.cat([perturb(predict, attack, images[i : i + 1], labels[i : i + 1], 0) for i in range(5)])
        torch.testing.assert_close(alone, attacked[:5], atol=1e-5, rtol=0)
    assert medians == sorted(medians)
    assert distances == sorted(distances)
    assert medians[0] < 2.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 4), st.integers(1, 20), st.sampled_from(["linf", "l2"]))
def test_what_is_returned_is_the_greatest_lead_or_the_first_that_suffices(
    seed: int, margin: float, steps: int, norm: str
) -> None:
    torch.manual_seed(seed)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    pixels = Preprocessing(channels=3, height=2, width=2, mean=(0.5,) * 3, std=(0.25,) * 3)
    predict = PixelClassifier(linear, pixels)
    images = torch.rand(6, 3, 2, 2)
    labels = predict(images).argmax(dim=1)
    attacked = perturb(predict, stopped(margin, 0.3, steps=steps, norm=norm), images, labels, 0)
    one_less = (
        perturb(predict, stopped(margin, 0.3, steps=steps - 1, norm=norm), images, labels, 0) if steps > 1 else images
    )
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert sizes(attacked - images, norm).max() <= min(0.3, steps * 0.3 / 16) + 1e-6
    with torch.no_grad():
        before, after = lead(predict(one_less), labels), lead(predict(attacked), labels)
    assert (after >= before - 1e-5).all()
    there = (before >= margin) & (before > 0)
    assert torch.equal(attacked[there], one_less[there])


def test_a_ladder_may_be_seen() -> None:
    """Seen attacks are of one kind, and a margin is an option like any other: an opinion for each."""
    rungs = [{"name": f"m{m:g}", "kind": "stopped_pgd", "epsilon": "8/255", "margin": m} for m in LADDER]
    config = EvaluationConfig.model_validate({"attacks": rungs, "seen": rungs})
    opinions = {one.model_dump_json(exclude={"name", "epsilon", "images"}) for one in config.seen}
    assert len(opinions) == len(LADDER)
    (again,) = {one.model_copy(update={"epsilon": e, "name": str(e)}).model_dump_json(exclude={"name", "epsilon"})
                for e in (0.1, 0.2) for one in config.seen[:1]}  # fmt: skip
    assert '"margin":0.0' in again
