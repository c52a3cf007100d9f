"""Image files of pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from askance.screening.images import Pixels

RGB = 3


def png(pixels: Pixels) -> bytes:
    """Pixels in [0, 1], [C, H, W], as a file: in colour where there are three channels, else the first in grey."""
    planes = (255 * pixels).round().astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(planes.transpose(1, 2, 0) if len(planes) == RGB else planes[0]).save(content, "PNG")
    return content.getvalue()
