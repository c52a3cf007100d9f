"""The squeezers of feature squeezing (Xu et al. 2018), with the settings their joint detector uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch
from torch import Tensor

from askance.detectors.tensors import straight_through
from askance.detectors.views import median_filter, reduce_bits

Squeeze = Callable[[Tensor], Tensor]


def non_local_means(images: Tensor) -> Tensor:
    """OpenCV's colour non-local means, search window 13, patch 3, strength 2 ("13-3-2"), [B, 3, H, W] in [0, 1].

    Gradients go straight through.
    """
    smooth = [
        cv2.fastNlMeansDenoisingColored(
            np.ascontiguousarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)), None, 2, 2, 3, 13
        )
        for image in images.detach()
    ]
    return straight_through(torch.from_numpy(np.stack(smooth)).permute(0, 3, 1, 2).float() / 255, images)


def squeezers(channels: int) -> Mapping[str, Squeeze]:
    """The best joint detectors of the paper's Table V: 1 bit and a 2 x 2 median for grey images (MNIST); 5 bits, a
    2 x 2 median and non-local means 13-3-2 for colour (CIFAR-10).
    """
    if channels == 1:
        return {"bits_1": lambda x: reduce_bits(x, 1), "median_2": lambda x: median_filter(x, 2)}
    return {
        "bits_5": lambda x: reduce_bits(x, 5),
        "median_2": lambda x: median_filter(x, 2),
        "non_local_means": non_local_means,
    }
