"""Views: an input altered a little, to see how firmly the classifier stands by its answer."""

from __future__ import annotations

import torch
from torch import Tensor

from askance.detectors.tensors import rounded


def add_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Images with each of V noise patterns added, clipped: [B, C, H, W], [V, C, H, W] -> [B, V, C, H, W].

    The same patterns for every image: an input's views do not depend on its batch mates, and are the same each time.
    """
    noisy: Tensor = (images.unsqueeze(1) + noise).clamp(0, 1)
    return noisy


def reduce_bits(images: Tensor, bits: int) -> Tensor:
    """Images rounded to 2^bits levels (Xu et al. 2018, section II.A), [B, C, H, W] -> the same."""
    steps = 2**bits - 1
    reduced: Tensor = rounded(images * steps) / steps
    return reduced


def median_filter(images: Tensor, size: int) -> Tensor:
    """Each pixel the median of the size x size square around it, edges reflected (Xu et al. 2018, section II.B).

    As `scipy.ndimage.median_filter` has it: an even square reaches further up and left, and of an even number of
    values the upper of the middle two is taken.

    Args:
        images: [B, C, H, W].
        size: at least 2, and at most twice the height and width.
    """
    before, after = size // 2, (size - 1) // 2
    # numpy's "symmetric", which torch lacks: the edge pixel itself is mirrored, too
    rows = _mirrored(images.shape[2], before, after, images.device)
    columns = _mirrored(images.shape[3], before, after, images.device)
    padded = images[:, :, rows][:, :, :, columns]
    height, width = images.shape[2:]
    shifted = [padded[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    median: Tensor = torch.stack(shifted).sort(dim=0).values[size * size // 2]
    return median


def _mirrored(count: int, before: int, after: int, device: torch.device) -> Tensor:
    positions = torch.arange(-before, count + after, device=device)
    positions = torch.where(positions < 0, -positions - 1, positions)
    return torch.where(positions >= count, 2 * count - 1 - positions, positions)
