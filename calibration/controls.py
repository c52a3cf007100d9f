"""Controls: changes to images that are not attacks, on which a detector should stay as calm as on clean ones."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor

from askance.calibration.attacks.attack import fraction

Change = Callable[[Tensor, float, Generator], Tensor]
"""(images [N, C, H, W] in [0, 1], the amount, what randomness is drawn from) -> changed images, yet to be clipped."""

MODES = {1: "L", 3: "RGB"}  # of an encoded image, by its channels


@dataclass(frozen=True)
class Control:
    """One kind of change.

    Attributes:
        change: what makes it.
        amount: what its amount is, in words.
        severities: the amounts of severity 1, 2 and 3; none where it comes by amount alone.
        shares: of the image's shorter side, that those amounts are at least.
    """

    change: Change
    amount: str
    severities: tuple[float, ...] = ()
    shares: tuple[float, ...] = (0.0, 0.0, 0.0)

    def amount_at(self, severity: int, side: int) -> float:
        """The amount of a severity, for images whose shorter side is so many pixels."""
        return max(self.severities[severity - 1], self.shares[severity - 1] * side)

    def severities_in_words(self) -> str:
        """The amounts of severity 1, 2 and 3, "0.8, 0.6, 0.4"; empty where there are none."""
        amounts = ", ".join(f"{amount:.3g}" for amount in self.severities)
        if not any(self.shares) or not amounts:
            return amounts
        return (
            f"{amounts}, or {', '.join(f'{share:.3g}' for share in self.shares)} of the shorter side where that is more"
        )


def _clip(pixels: Tensor, _amount: float, _generator: Generator) -> Tensor:
    return (pixels * 255).round() / 255


def _uniform(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    return pixels + amount * (2 * torch.rand(pixels.shape, generator=generator) - 1)


def _gaussian(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    # uniform noise within +-a has a standard deviation of a / sqrt(3)
    return pixels + amount / 3**0.5 * torch.randn(pixels.shape, generator=generator)


def _blur(pixels: Tensor, amount: float, _generator: Generator) -> Tensor:
    return torch.from_numpy(gaussian_filter(pixels.numpy(), sigma=(0, 0, amount, amount)))


def _encoded(pixels: Tensor, file_format: str, quality: float) -> Tensor:
    mode, decoded = MODES[pixels.shape[1]], []
    for image in (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(2) if mode == "L" else image).save(buffer, file_format, quality=round(quality))
        back = np.asarray(Image.open(buffer).convert(mode))
        decoded.append(back[:, :, None] if mode == "L" else back)
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


def _smaller(pixels: Tensor, share: float) -> Tensor:
    """Images with their sides at `share`, each pixel a mean of those that it stands for."""
    size = [max(1, round(share * side)) for side in pixels.shape[2:]]
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


def _resize(pixels: Tensor, amount: float, _generator: Generator) -> Tensor:
    small, size = _smaller(pixels, amount), pixels.shape[2:]
    return F.interpolate(small, size=size, mode="bilinear", antialias=True, align_corners=False)


def _pixelate(pixels: Tensor, amount: float, _generator: Generator) -> Tensor:
    return F.interpolate(_smaller(pixels, amount), size=pixels.shape[2:], mode="nearest-exact")


def _shift(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    """Whole pixels, in one of eight directions for each image; the border goes on outwards."""
    far, (height, width) = max(1, round(amount)), pixels.shape[2:]
    eight = torch.tensor([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)])
    moves = far * eight[torch.randint(8, (len(pixels),), generator=generator)]
    rows = (torch.arange(height) - moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) - moves[:, 1:]).clamp(0, width - 1)
    images = torch.arange(len(pixels))[:, None, None]
    return pixels.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _contrast(pixels: Tensor, amount: float, _generator: Generator) -> Tensor:
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + amount * (pixels - mean)


def _fog(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    """A white veil of uneven density: noise of three scales, the coarser the stronger."""
    density = torch.zeros(len(pixels), 1, *pixels.shape[2:])
    for cells in (2, 4, 8):
        coarse = torch.rand(len(pixels), 1, cells, cells, generator=generator)
        density += F.interpolate(coarse, size=pixels.shape[2:], mode="bilinear", align_corners=True) / cells
    density /= density.amax(dim=(1, 2, 3), keepdim=True)
    return pixels + amount * density * (1 - pixels)


def _shading(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    """Light that falls off evenly from one side to the other, whichever for each image."""
    angles = 2 * math.pi * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    rows, columns = (torch.linspace(-1, 1, side) for side in pixels.shape[2:])
    along = angles.sin() * rows[:, None] + angles.cos() * columns
    low, high = along.amin(dim=(2, 3), keepdim=True), along.amax(dim=(2, 3), keepdim=True)
    return pixels * (1 - amount * (along - low) / (high - low).clamp_min(1e-6))


def _vignette(pixels: Tensor, amount: float, _generator: Generator) -> Tensor:
    """Darker towards the corners, by the square of the distance from the centre."""
    rows, columns = (torch.linspace(-1, 1, side) ** 2 for side in pixels.shape[2:])
    return pixels * (1 - amount * (rows[:, None] + columns) / 2)


def _rotation(pixels: Tensor, amount: float, generator: Generator) -> Tensor:
    """Either way for each image, bilinear; the border goes on outwards."""
    (height, width), angle = pixels.shape[2:], math.radians(amount)
    signs = 2.0 * torch.randint(2, (len(pixels),), generator=generator) - 1
    turn = torch.zeros(len(pixels), 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = math.cos(angle)
    turn[:, 0, 1], turn[:, 1, 0] = -signs * math.sin(angle) * height / width, signs * math.sin(angle) * width / height
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


CONTROLS: Mapping[str, Control] = MappingProxyType(
    {
        "clip": Control(_clip, "none: rounded to 8 bits, what saving an image does"),
        "uniform": Control(_uniform, "uniform noise within +- this"),
        "gaussian": Control(
            _gaussian,
            "Gaussian noise of the L2 norm of uniform noise within +- this",
            (0.02 * 3**0.5, 0.04 * 3**0.5, 0.08 * 3**0.5),
        ),
        "blur": Control(_blur, "standard deviation in pixels", (0.4, 0.6, 0.8), (0.01, 0.02, 0.03)),
        "jpeg": Control(lambda x, amount, _: _encoded(x, "JPEG", amount), "quality", (90, 60, 30)),
        "webp": Control(lambda x, amount, _: _encoded(x, "WEBP", amount), "quality", (90, 60, 30)),
        "resize": Control(_resize, "share of its sides that an image is scaled to, and back", (0.8, 0.6, 0.4)),
        "pixelate": Control(_pixelate, "the same, back by repeated pixels", (0.8, 0.6, 0.4)),
        "shift": Control(_shift, "pixels, in any of eight directions", (1, 1, 1), (0.035, 0.07, 0.105)),
        "brightness": Control(lambda x, amount, _: x + amount, "added", (0.05, 0.1, 0.2)),
        "dimming": Control(lambda x, amount, _: x * amount, "factor", (0.8, 0.6, 0.4)),
        "contrast": Control(_contrast, "factor, about each image's mean", (0.8, 0.6, 0.4)),
        "gamma": Control(lambda x, amount, _: x**amount, "exponent", (1.2, 1.5, 2.0)),
        "fog": Control(_fog, "density of a white veil where it is densest", (0.15, 0.3, 0.5)),
        "shading": Control(_shading, "share by which it is darker at the far side from the light", (0.2, 0.4, 0.6)),
        "vignette": Control(_vignette, "share by which the corners are darker", (0.2, 0.4, 0.6)),
        "rotation": Control(_rotation, "degrees, either way", (2, 5, 10)),
    }
)
"""All kinds of control, in the order of the tables."""


if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(CONTROLS)]


class ControlConfig(BaseModel):
    """One control: `{ name = "jpeg_75", kind = "jpeg", amount = 75 }`, or `{ name = "f", kind = "fog", severity = 2 }`.

    Attributes:
        name: of its row in the tables.
        kind: one of CONTROLS.
        amount: what it means is its kind's.
        severity: 1 (mild), 2 (medium) or 3 (strong) in place of an amount, at any size of image.
        seed: of what is drawn at random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$")
    kind: Kind
    amount: Annotated[float, BeforeValidator(fraction)] = 0.0
    severity: Literal[1, 2, 3] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _amount_or_severity(self) -> Self:
        if self.severity is not None:
            if "amount" in self.model_fields_set:
                raise ValueError("give an amount or a severity, not both")
            if not CONTROLS[self.kind].severities:
                raise ValueError(f"{self.kind} has no severities: give an amount")
        return self


def every_control() -> list[dict[str, Any]]:
    """Every kind that has severities at each of them, as a config spells them."""
    kinds = [kind for kind, one in CONTROLS.items() if one.severities]
    return [{"name": f"{kind}_{n}", "kind": kind, "severity": n} for kind in kinds for n in (1, 2, 3)]


def spelled_out(controls: Any) -> Any:
    """A config's controls with "all", alone or among the rows, as the rows that it stands for.

    Raises:
        ValueError: another word.
    """
    rows: list[Any] = []
    for one in [controls] if isinstance(controls, str) else controls:
        if isinstance(one, str) and one != "all":
            raise ValueError(
                f'expected "all", or a table such as {{ name = "fog_2", kind = "fog", severity = 2 }}: {one!r}'
            )
        rows.extend(every_control() if one == "all" else [one])
    return rows


def control(config: ControlConfig, pixels: Tensor) -> Tensor:
    """Change images as `config` says, float32 [N, C, H, W] in [0, 1] -> the same, clipped."""
    kind = CONTROLS[config.kind]
    amount = config.amount if config.severity is None else kind.amount_at(config.severity, min(pixels.shape[2:]))
    generator = torch.Generator().manual_seed(config.seed)
    return kind.change(pixels, amount, generator).clamp(0, 1).contiguous()
