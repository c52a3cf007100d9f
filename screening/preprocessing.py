"""Preprocessing: what a classifier expects of an image, and the normalisation inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

if TYPE_CHECKING:
    from torch import Tensor


class Preprocessing(BaseModel):
    """What the classifier takes. Everything outside works in pixel space, [0, 1]; normalisation happens inside.

    Attributes:
        channels, height, width: the input's shape, [C, H, W].
        mean, std: per channel, of pixel values in [0, 1].
        resize: what happens to an encoded image of another size: "refuse" it, or scale it ("bilinear", antialiased)
            to height x width. Tensors are never resized.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Literal[1, 3]
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mean: tuple[FiniteFloat, ...]
    std: tuple[FiniteFloat, ...]
    resize: Literal["refuse", "bilinear"] = "refuse"

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need one number for each of the {self.channels} channels")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        if any(m > 1 for m in self.mean):  # every image would be next to the same for the classifier
            raise ValueError("mean and std are of pixels in [0, 1]: divide those of pixels from 0 to 255 by 255")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    def normalize(self, images: Tensor) -> Tensor:
        """(x - mean) / std per channel, [B, C, H, W] -> [B, C, H, W]."""
        import torch  # is at hand where a classifier is; a graph normalises by itself

        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (images - mean) / std

    def denormalize(self, images: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse, x * std + mean per channel, [..., C, H, W] -> [..., C, H, W]."""
        mean, std = (np.array(values)[:, None, None] for values in (self.mean, self.std))
        pixels: NDArray[np.float64] = images * std + mean
        return pixels
