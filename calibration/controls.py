"""Controls: changes to images that are not attacks, on which a detector should stay as calm as on clean ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from scipy.ndimage import gaussian_filter
from torch import Tensor

from askance.calibration.attacks.attack import fraction


class ControlConfig(BaseModel):
    """One control.

    Attributes:
        name: of its row in the tables.
        kind: clip (rounded to 8 bits and clipped: what saving an image does), uniform (noise within +-amount), gaussian
            (noise of the L2 norm that uniform noise of that amount has), blur (Gaussian, amount = its standard
            deviation in pixels), jpeg (amount = quality), brightness (amount added).
        amount: see `kind`.
        seed: of the noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$")
    kind: Literal["clip", "uniform", "gaussian", "blur", "jpeg", "brightness"]
    amount: Annotated[float, BeforeValidator(fraction)] = 0.0
    seed: int = 0


def _uniform(pixels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return pixels + amount * (2 * torch.rand(pixels.shape, generator=generator) - 1)


def _gaussian(pixels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    # uniform noise within +-a has a standard deviation of a / sqrt(3)
    return pixels + amount / 3**0.5 * torch.randn(pixels.shape, generator=generator)


def _blur(pixels: Tensor, amount: float, _generator: torch.Generator) -> Tensor:
    return torch.from_numpy(gaussian_filter(pixels.numpy(), sigma=(0, 0, amount, amount)))


def _jpeg(pixels: Tensor, amount: float, _generator: torch.Generator) -> Tensor:
    decoded = []
    for image in (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=round(amount))
        back = np.asarray(Image.open(buffer))
        decoded.append(back[:, :, None] if back.ndim == 2 else back)
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


_CONTROLS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "clip": lambda pixels, _amount, _generator: (pixels * 255).round() / 255,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "blur": _blur,
    "jpeg": _jpeg,
    "brightness": lambda pixels, amount, _generator: pixels + amount,
}


def control(config: ControlConfig, pixels: Tensor) -> Tensor:
    """Change images as `config` says, float32 [N, C, H, W] in [0, 1] -> the same, clipped."""
    generator = torch.Generator().manual_seed(config.seed)
    return _CONTROLS[config.kind](pixels, config.amount, generator).clamp(0, 1).contiguous()
