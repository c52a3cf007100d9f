"""Controls: what each change does, by hand; severities; what counts of them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from askance.answers import FUSED
from askance.calibration.attacks import FGSM
from askance.calibration.config import EvaluationConfig
from askance.calibration.controls import CONTROLS, ControlConfig, control, every_control
from askance.calibration.evaluation import AttackedSet, Evidence, SetScores, evaluate
from askance.judgement import Levels
from askance.judgement.conformal import table

AMOUNTS: dict[str, float] = {
    "clip": 0, "uniform": 0.05, "gaussian": 0.05, "blur": 0.7, "jpeg": 75, "webp": 75, "resize": 0.6, "pixelate": 0.6,
    "shift": 1, "brightness": 0.1, "dimming": 0.8, "contrast": 0.8, "gamma": 1.5, "fog": 0.3, "shading": 0.4,
    "vignette": 0.4, "rotation": 5,
}  # fmt: skip
WITH_SEVERITIES = [kind for kind, one in CONTROLS.items() if one.severities]


def row(kind: str, **more: float) -> ControlConfig:
    return ControlConfig.model_validate({"name": "c", "kind": kind, **more})


def smooth(size: int, channels: int = 3, count: int = 4) -> Tensor:
    """Images with structure at all scales, as photographs have it."""
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(count, channels, n, n, generator=g) for n in (2, 4, 8)]
    sizes = [torch.nn.functional.interpolate(part, size=(size, size), mode="bilinear") for part in parts]
    return torch.stack(sizes).mean(dim=0)


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("channels", [1, 3])
def test_controls_change_little_and_are_seeded(kind: str, channels: int) -> None:
    pixels = torch.rand(4, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    config = row(kind, amount=AMOUNTS[kind])
    changed = control(config, pixels)
    assert changed.shape == pixels.shape
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(control(config, pixels), changed)
    assert 0 < (changed - pixels).abs().mean() < 0.35


def test_noises_have_one_norm_and_the_others_their_amount() -> None:
    pixels = torch.full((8, 1, 64, 64), 0.5)

    def moved(kind: str, amount: float) -> Tensor:
        return control(row(kind, amount=amount), pixels) - pixels

    uniform, gaussian = moved("uniform", 0.06), moved("gaussian", 0.06)
    assert uniform.abs().max() <= 0.06
    assert float(uniform.norm()) == pytest.approx(float(gaussian.norm()), rel=0.02)
    assert float(moved("brightness", 0.1).mean()) == pytest.approx(0.1)
    assert float(moved("dimming", 0.6).mean()) == pytest.approx(-0.2)
    assert float(moved("gamma", 2).mean()) == pytest.approx(-0.25)
    assert float(moved("clip", 0).abs().max()) <= 0.5 / 255 + 1e-6
    for kind in ("blur", "contrast", "resize", "pixelate"):  # an even image has nothing to lose
        assert float(moved(kind, 0.7).abs().max()) < 1e-6


def test_contrast_is_about_each_images_own_mean() -> None:
    pixels = torch.tensor([[0.2, 0.4], [0.6, 1.0]]).view(2, 1, 1, 2)
    changed = control(row("contrast", amount=0.5), pixels)
    torch.testing.assert_close(changed.flatten(), torch.tensor([0.25, 0.35, 0.7, 0.9]))


def test_a_shift_moves_whole_pixels_and_continues_the_border() -> None:
    pixels = torch.rand(40, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    changed = control(row("shift", amount=2), pixels)
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    directions = set()
    for image, around in zip(changed, padded, strict=True):
        found = [
            (down, across)
            for down in (-2, 0, 2)
            for across in (-2, 0, 2)
            if torch.equal(image, around[:, 2 - down : 7 - down, 2 - across : 8 - across])
        ]
        assert len(found) == 1
        directions.update(found)
    assert len(directions) == 8
    assert (0, 0) not in directions


def test_pixelation_makes_blocks() -> None:
    pixels = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = control(row("pixelate", amount=0.25), pixels)
    for i in (0, 4):
        for j in (0, 4):
            assert len(changed[0, 0, i : i + 4, j : j + 4].unique()) == 1


def test_shading_falls_off_from_one_side_whichever() -> None:
    changed = control(row("shading", amount=0.4), torch.full((200, 1, 7, 5), 0.5))[:, 0]
    flat = changed.flatten(1)
    assert flat.amax(dim=1).tolist() == pytest.approx([0.5] * 200)
    assert flat.amin(dim=1).tolist() == pytest.approx([0.5 * 0.6] * 200)
    # evenly: a plane, whose second differences are nothing
    assert changed.diff(n=2, dim=1).abs().max() < 1e-6
    assert changed.diff(n=2, dim=2).abs().max() < 1e-6
    brighter_above = changed[:, 0].mean(dim=1) > changed[:, -1].mean(dim=1)
    assert 60 < int(brighter_above.sum()) < 140


def test_a_vignette_darkens_with_the_square_of_the_distance() -> None:
    changed = control(row("vignette", amount=0.4), torch.full((1, 1, 5, 5), 0.5))[0, 0]
    assert changed[2, 2] == 0.5
    assert changed[0, 0] == changed[4, 4] == pytest.approx(0.5 * 0.6)
    assert changed[0, 2] == pytest.approx(0.5 * 0.8)
    assert changed[2, 1] == pytest.approx(0.5 * (1 - 0.4 * 0.25 / 2))


@pytest.mark.parametrize("shape", [(9, 9), (9, 15)])
def test_a_rotation_turns_about_the_centre_either_way(shape: tuple[int, int]) -> None:
    """By a right angle, where it moves whole pixels: a bar from the centre upwards then lies to the left or right."""
    height, width = shape
    pixels = torch.zeros(8, 1, height, width)
    middle, centre = height // 2, width // 2
    pixels[:, :, :middle, centre] = 1.0
    changed = control(row("rotation", amount=90), pixels)
    left, right = (torch.zeros(height, width) for _ in range(2))
    left[middle, centre - middle : centre] = right[middle, centre + 1 : centre + 1 + middle] = 1.0
    inner = slice(centre - middle + 1, centre + middle)  # beyond, the border goes on
    sides = [min((one[0] - side)[:, inner].abs().max().item() for side in (left, right)) for one in changed]
    assert max(sides) < 1e-4
    assert len({bool(one[0, middle, centre - 1] > 0.5) for one in changed}) == 2
    still = control(row("rotation", amount=0), pixels)
    assert torch.allclose(still, pixels, atol=1e-6)


def test_fog_only_whitens_and_is_each_images_own() -> None:
    pixels = smooth(32)
    changed = control(row("fog", amount=0.5), pixels)
    veil = (changed - pixels) / (1 - pixels)
    assert (veil >= -1e-6).all()
    torch.testing.assert_close(veil.amax(dim=(1, 2, 3)), torch.full((4,), 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(veil[:, 0], veil[:, 2], atol=1e-4, rtol=0)  # the same for all colours
    assert not torch.allclose(veil[0], veil[1], atol=0.05)


@pytest.mark.parametrize("kind", WITH_SEVERITIES)
@pytest.mark.parametrize("size", [8, 32, 224])
def test_severities_rise_at_any_size(kind: str, size: int) -> None:
    pixels = smooth(size)
    moved = [float((control(row(kind, severity=n), pixels) - pixels).abs().mean()) for n in (1, 2, 3)]
    assert 0 < moved[0] <= moved[1] <= moved[2] < 0.3
    assert moved[0] < moved[2] or (kind, size) == ("shift", 8)  # a pixel is the least there is


@pytest.mark.parametrize(
    ("kind", "severity", "side", "amount"),
    [
        ("shift", 1, 28, 1), ("shift", 3, 224, 0.105 * 224), ("blur", 2, 32, 0.64), ("blur", 2, 8, 0.6),
        ("jpeg", 3, 32, 30), ("fog", 1, 500, 0.15),
    ],
)  # fmt: skip
def test_amounts_of_severities(kind: str, severity: int, side: int, amount: float) -> None:
    assert CONTROLS[kind].amount_at(severity, side) == pytest.approx(amount)
    pixels = smooth(side, count=2)
    same = control(row(kind, amount=amount), pixels)
    assert torch.equal(control(row(kind, severity=severity), pixels), same)


def test_all_is_every_kind_at_every_severity() -> None:
    attacks = [{"name": "f", "kind": "fgsm", "epsilon": 0.1}]
    short = EvaluationConfig.model_validate({"attacks": attacks, "controls": "all"})
    assert len(short.controls) == 3 * len(WITH_SEVERITIES) == 45
    assert [one.name for one in short.controls[:4]] == ["gaussian_1", "gaussian_2", "gaussian_3", "blur_1"]
    own = {"name": "clip", "kind": "clip"}
    among = EvaluationConfig.model_validate({"attacks": attacks, "controls": [own, "all"]})
    assert [one.name for one in among.controls] == ["clip", *(one["name"] for one in every_control())]
    with pytest.raises(ValidationError, match='expected "all", or a table such as'):
        EvaluationConfig.model_validate({"attacks": attacks, "controls": "al"})


def test_an_amount_or_a_severity() -> None:
    with pytest.raises(ValidationError, match="give an amount or a severity, not both"):
        row("fog", amount=0.2, severity=1)
    with pytest.raises(ValidationError, match="clip has no severities: give an amount"):
        row("clip", severity=1)
    with pytest.raises(ValidationError, match="severity"):
        row("fog", severity=4)


def test_only_images_that_stay_right_count() -> None:
    """A control of 4: the two that stay right score below all clean images, the others above; and one of none."""
    zeros = torch.zeros(200, dtype=torch.long)
    clean = SetScores({FUSED: torch.arange(200.0)}, zeros, zeros)
    some = SetScores({FUSED: torch.tensor([-1.0, 300.0, -1.0, 300.0])}, torch.tensor([0, 1, 0, 1]), zeros[:4])
    none = SetScores({FUSED: torch.full((4,), 300.0)}, zeros[:4] + 1, zeros[:4])
    attacked = AttackedSet(FGSM(name="f", kind="fgsm", epsilon=0.1), some, {}, seen=False)
    others = {"controls": {"some": some, "none": none}, "out_of_distribution": {"other": some}}
    result = evaluate(
        Evidence(clean, {FUSED: table(clean.columns[FUSED].numpy())}, [attacked], others), Levels(), ("a", "b")
    )
    found = result.controls["some"]
    assert (found.images, found.counted, found.accuracy) == (4, 2, 0.5)
    assert found.flag_rate[FUSED] == {"suspect": 0.0, "adversarial": 0.0}
    assert found.auroc[FUSED] == 0.0
    lost = result.controls["none"]
    assert (lost.images, lost.counted, lost.accuracy, lost.flag_rate, lost.auroc) == (4, 0, 0.0, {}, {})
    other = result.out_of_distribution["other"]
    assert (other.counted, other.accuracy, other.flag_rate[FUSED]["suspect"]) == (4, None, 0.5)
