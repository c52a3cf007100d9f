"""Glyphs: the letters A to Z as printed matter has them, drawn in the fonts that come with matplotlib."""

from __future__ import annotations

import string
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from askance.calibration.images import Images

FONTS = (
    "DejaVuSans*.ttf",
    "DejaVuSerif*.ttf",
    "STIXGeneral*.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
CANVAS, SIDE = 64, 32  # drawn larger than they come out


def glyphs(count: int, seed: int) -> Images:
    """Letters, grey [count, 1, 32, 32]: dark on light paper, moved, turned by up to 15 degrees, a little noisy."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(path for pattern in FONTS for path in folder.glob(pattern) if "Display" not in path.name)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(string.ascii_uppercase), count)
    drawn = np.stack([_glyph(string.ascii_uppercase[label], fonts, rng) for label in labels])
    return Images(torch.from_numpy(drawn).unsqueeze(1), torch.from_numpy(labels), tuple(string.ascii_uppercase))


def _glyph(letter: str, fonts: list[Path], rng: np.random.Generator) -> np.ndarray:
    paper, ink = int(rng.integers(180, 256)), int(rng.integers(0, 90))
    image = Image.new("L", (CANVAS, CANVAS), paper)
    font = ImageFont.truetype(fonts[rng.integers(len(fonts))], int(rng.integers(30, 48)))
    place = CANVAS / 2 + rng.uniform(-5, 5, size=2)
    ImageDraw.Draw(image).text((place[0], place[1]), letter, font=font, fill=ink, anchor="mm")
    turned = image.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR, fillcolor=paper)
    small = np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    noisy = small + rng.normal(size=small.shape) * rng.uniform(0, 12)
    return noisy.clip(0, 255).round().astype(np.uint8)
