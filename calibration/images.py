"""Labelled images, and the stream of Captures that a classifier makes of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from askance.detectors.tap import Capture, Tap
from askance.errors import DataError, did_you_mean
from askance.screening.class_names import fault_in
from askance.screening.preprocessing import Preprocessing


@dataclass(frozen=True)
class Images:
    """Images, labelled unless they have no classes.

    Attributes:
        x: uint8 [N, C, H, W].
        y: int64 [N], 0 <= y < K; 0 where there are no labels.
        classes: K names; none where there are no labels.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Images:
        return Images(self.x[index], self.y[index], self.classes)

    @property
    def labelled(self) -> bool:
        """Whether the labels say anything."""
        return bool(self.classes)

    def pixels(self) -> Tensor:
        """The images in [0, 1], float32 [N, C, H, W]."""
        return self.x.float() / 255

    def batches(self, size: int) -> Iterator[Images]:
        """The images in order, so many at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def only(self, classes: Sequence[str]) -> Images:
        """The images of some classes, labelled by their order in `classes`.

        Raises:
            DataError: there is no such class.
        """
        for name in classes:
            if name not in self.classes:
                raise DataError(f"there is no class {name!r} to keep: {did_you_mean(name, self.classes)}")
        label = torch.full((len(self.classes),), -1)
        label[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))
        kept = label[self.y] >= 0
        return Images(self.x[kept], label[self.y[kept]], tuple(classes))

    def digest(self) -> str:
        """SHA-256 over pixels and labels."""
        digest = hashlib.sha256(str(tuple(self.x.shape)).encode())
        digest.update(self.x.contiguous().numpy().tobytes())
        digest.update(self.y.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageStream:
    """A CaptureStream: the classifier runs anew over the images at every iteration, so nothing need fit in memory.

    Attributes:
        tap: over the classifier.
        images: in data order.
        batch_size: images per forward pass.
        pixels: float32 [N, C, H, W] in [0, 1] in place of the images' own (attacked ones); labels stay.
    """

    tap: Tap
    images: Images
    batch_size: int = 500
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def slices(self) -> list[slice]:
        """Which images make each batch."""
        return slices(len(self.images), self.batch_size)

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The pixels [B, C, H, W] and labels [B] of one of the `slices`."""
        images = self.images[rows]
        return images.pixels() if self.pixels is None else self.pixels[rows], images.y

    def __iter__(self) -> Iterator[Capture]:
        for rows in self.slices():
            with torch.no_grad():
                capture = self.tap(*self.batch(rows))
            yield capture


def slices(count: int, size: int) -> list[slice]:
    """The parts of so many rows, each of `size` but the last."""
    return [slice(start, start + size) for start in range(0, count, size)]


def require_shape(images: Images, preprocessing: Preprocessing) -> None:
    """Refuse images of another shape than a classifier takes.

    Raises:
        DataError: they are.
    """
    expected = preprocessing.shape
    if tuple(images.x.shape[1:]) != expected:
        raise DataError(
            f"the images are {list(images.x.shape[1:])}, the classifier takes {list(expected)} "
            "(channels, height, width): they must be the same"
        )


def any_image(shape: tuple[int, int, int]) -> Preprocessing:
    """What takes encoded images of every size and colour, and leaves `as_input` the channels alone."""
    _, height, width = shape
    return Preprocessing(channels=3, height=height, width=width, mean=(0,) * 3, std=(1,) * 3, resize="bilinear")


def as_input(images: Images, shape: tuple[int, int, int]) -> Images:
    """Images brought to another size (bilinear, antialiased) and number of channels (repeated, or averaged)."""
    channels, height, width = shape
    x = images.x.float()
    if x.shape[1] != channels:
        x = x.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    if tuple(x.shape[2:]) != (height, width):
        x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return Images(x.round().clamp(0, 255).to(torch.uint8).contiguous(), images.y, images.classes)


def make_images(x: np.ndarray, y: np.ndarray | None, classes: tuple[str, ...], source: str) -> Images:
    """Validate arrays and put channels first; without labels there are no classes.

    Raises:
        DataError: wrong dtype or shape, labels out of range, one class only, nothing at all, or a name
            that no class can have.
    """
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise DataError(f"{source}: x must be uint8 [N, H, W] or [N, H, W, 1 or 3], got {x.dtype} {list(x.shape)}")
    if len(x) == 0:
        raise DataError(f"{source} holds no images")
    pixels = torch.from_numpy(np.ascontiguousarray(x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)))
    if y is None:
        return Images(pixels, torch.zeros(len(x), dtype=torch.int64), ())
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{source}: y must be {len(x)} integers, one per image, got {y.dtype} {list(y.shape)}")
    if (fault := fault_in(classes)) is not None:
        raise DataError(f"{source}: {fault}")
    if y.min() < 0 or y.max() >= len(classes):
        bad = int(y.min() if y.min() < 0 else y.max())
        raise DataError(f"{source}: label {bad} is out of range: {len(classes)} classes mean 0 to {len(classes) - 1}")
    if len(np.unique(y)) < 2:
        raise DataError(f"{source} has one class only ({classes[int(y[0])]!r}): a classifier needs at least two")
    return Images(pixels, torch.from_numpy(y.astype(np.int64)), classes)
