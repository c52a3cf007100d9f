"""Images: what decodes to what, and the line that each unfit input gets."""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, features
from service_support import GREY, RGB, encoded, noise

from askance.screening.images import ROUNDING, ImageError, Pixels, pixels_of, resize
from askance.screening.preprocessing import Preprocessing
from askance.service.errors import Code, StatusError
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.protocols.images import decode, image_of

LIMIT = 10_000
BILINEAR = RGB.model_copy(update={"resize": "bilinear"})
GREY_PIXELS = noise(1)[0]
RGB_PIXELS = noise(2, RGB).transpose(1, 2, 0)


def read(tensor: pb.Tensor) -> Pixels:
    return image_of(pb.ScreenRequest(tensor=tensor)).read(GREY, LIMIT)


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that claims a size and ends after a few bytes of data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_a_grey_png_is_exact() -> None:
    image = decode(encoded(Image.fromarray(GREY_PIXELS)), GREY, LIMIT)
    assert image.dtype == np.float32
    assert np.array_equal(image, GREY_PIXELS[None] / np.float32(255))


def test_an_rgb_png_is_exact_and_channels_come_first() -> None:
    image = decode(encoded(Image.fromarray(RGB_PIXELS)), RGB, LIMIT)
    assert np.array_equal(image, RGB_PIXELS.transpose(2, 0, 1) / np.float32(255))


def test_grey_is_replicated_for_an_rgb_classifier() -> None:
    image = decode(encoded(Image.fromarray(GREY_PIXELS)), RGB, LIMIT)
    assert image.shape == RGB.shape
    assert np.array_equal(image, np.broadcast_to(GREY_PIXELS / np.float32(255), (3, 8, 8)))


def test_a_palette_is_expanded() -> None:
    image = Image.fromarray(RGB_PIXELS).quantize(16)
    expected = np.array(image.convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(decode(encoded(image), RGB, LIMIT), expected)


def test_one_bit_is_black_and_white() -> None:
    bits = GREY_PIXELS > 127
    assert np.array_equal(decode(encoded(Image.fromarray(bits)), GREY, LIMIT)[0], bits)


def test_a_jpeg_decodes_as_pillow_does() -> None:
    content = encoded(Image.fromarray(np.full((8, 8, 3), 77, np.uint8)), "JPEG")
    assert np.array_equal(decode(content, RGB, LIMIT), np.full(RGB.shape, np.float32(77) / 255))


def webp_header(width: int, height: int, kind: bytes) -> bytes:
    """A WebP that claims a size and holds nothing more."""
    if kind == b"VP8X":
        chunk = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        chunk = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(8)
    else:
        chunk = bytes(3) + b"\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + bytes(8)
    content = b"WEBP" + kind + struct.pack("<I", len(chunk)) + chunk
    return b"RIFF" + struct.pack("<I", len(content)) + content


def test_webp_is_there() -> None:
    assert features.check("webp")


def test_a_webp_decodes_as_pillow_does() -> None:
    lossless = encoded(Image.fromarray(RGB_PIXELS), "WEBP", lossless=True)
    assert np.array_equal(decode(lossless, RGB, LIMIT), RGB_PIXELS.transpose(2, 0, 1) / np.float32(255))
    lossy = encoded(Image.fromarray(np.full((8, 8, 3), 77, np.uint8)), "WEBP", quality=90)
    assert float(np.abs(decode(lossy, RGB, LIMIT) - 77 / 255).max()) < 3 / 255
    large = encoded(Image.fromarray(np.full((20, 12, 3), 200, np.uint8)), "WEBP", lossless=True)
    assert np.array_equal(decode(large, BILINEAR, LIMIT), np.full(RGB.shape, np.float32(200) / 255))
    turned = Image.Exif()
    turned[0x0112] = 6
    turned_file = encoded(Image.fromarray(RGB_PIXELS), "WEBP", lossless=True, exif=turned)
    assert np.array_equal(decode(turned_file, RGB, LIMIT), decode(lossless, RGB, LIMIT))


@pytest.mark.parametrize("quality", [1, 50, 75, 100])
def test_a_grey_webp_is_for_greyscale_classifiers_too(quality: int) -> None:
    """The format has no greyscale; its decoder sets the channels of a grey pixel apart by one step."""
    grey = Image.fromarray(GREY_PIXELS)
    lossless = decode(encoded(grey, "WEBP", lossless=True), GREY, LIMIT)
    assert np.array_equal(lossless[0], GREY_PIXELS / np.float32(255))
    content = encoded(grey, "WEBP", quality=quality)
    reference = decode(content, RGB, LIMIT).mean(axis=0)
    assert float(np.abs(decode(content, GREY, LIMIT)[0] - reference).max()) <= 1 / 255


def test_another_size_is_resized_only_if_the_bundle_says_so() -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 12, 3), np.uint8))
    image = decode(encoded(large), BILINEAR, LIMIT)
    assert image.shape == RGB.shape
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    reference = np.asarray(large.resize((8, 8), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255
    assert float(np.abs(image - reference).max()) < 1.5 / 255  # Pillow rounds to bytes on the way


def test_resizing_averages_what_it_drops() -> None:
    stripes = np.zeros((1, 32, 32), np.uint8)
    stripes[:, :, ::2] = 200
    assert np.allclose(resize(stripes, 8, 8)[:, :, 1:-1], 100, atol=4)


@pytest.mark.parametrize("size", [(3, 5), (8, 8), (31, 7), (64, 64), (7, 40)])
def test_resizing_is_torchs(size: tuple[int, int]) -> None:
    """Bilinear and antialiased, as classifiers' own transforms have it."""
    planes = np.random.default_rng(2).integers(0, 256, (3, 20, 12), np.uint8)
    expected = F.interpolate(
        torch.from_numpy(planes)[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    np.testing.assert_allclose(resize(planes, *size), expected[0], atol=1e-3)


def test_tensors_are_exact() -> None:
    pixels = noise(3)
    as_bytes = pb.Tensor(shape=pixels.shape, dtype=pb.Tensor.UINT8, data=pixels.tobytes())
    assert np.array_equal(read(as_bytes), pixels / np.float32(255))
    floats = (pixels / 255).astype("<f4")
    as_floats = pb.Tensor(shape=pixels.shape, dtype=pb.Tensor.FP32, data=floats.tobytes())
    assert np.array_equal(read(as_floats), floats)


RGBA = np.zeros((8, 8, 4), np.uint8)
SIXTEEN = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
WHOLE_PNG = encoded(Image.fromarray(RGB_PIXELS))
WHOLE_JPEG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
ANIMATED = encoded(
    Image.fromarray(GREY_PIXELS), save_all=True, append_images=[Image.fromarray(255 - GREY_PIXELS)], duration=10
)
WEBP = encoded(Image.fromarray(RGB_PIXELS), "WEBP", lossless=True)
ANIMATED_WEBP = encoded(
    Image.fromarray(RGB_PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB_PIXELS)], duration=10
)
TRANSPARENT = Image.fromarray(RGB_PIXELS).quantize(4)
TRANSPARENT.info["transparency"] = 0

BAD_IMAGES: dict[str, tuple[bytes, Preprocessing, str]] = {
    "empty": (b"", RGB, "encoded: expected a PNG, JPEG or WebP image, got 0 bytes"),
    "not an image": (b"hello, world", RGB, "encoded: expected a PNG, JPEG or WebP image, got 12 bytes that are none"),
    "a GIF": (encoded(Image.fromarray(GREY_PIXELS), "GIF"), RGB, "bytes that are none"),
    "truncated PNG": (WHOLE_PNG[: len(WHOLE_PNG) // 2], RGB, "encoded: expected an intact image, got one that cannot"),
    "truncated JPEG": (
        WHOLE_JPEG[:-900],
        BILINEAR,
        "expected an intact image, got one that cannot be decoded (image f",
    ),
    "colour for grey": (
        WHOLE_PNG,
        GREY,
        "encoded: expected a greyscale image (the classifier has 1 channel), got colour (RGB)",
    ),
    "palette for grey": (encoded(Image.fromarray(RGB_PIXELS).quantize(4)), GREY, "got colour (P)"),
    "alpha": (
        encoded(Image.fromarray(RGBA)),
        RGB,
        "encoded: expected an image without alpha (flatten it first), got RGBA with alpha",
    ),
    "grey and alpha": (encoded(Image.fromarray(GREY_PIXELS).convert("LA")), GREY, "got LA with alpha"),
    "transparent palette": (encoded(TRANSPARENT, transparency=0), RGB, "got P with alpha"),
    "16 bits grey": (encoded(SIXTEEN), GREY, "encoded: expected 8 bits per channel, got a PNG of 16 bits"),
    "CMYK": (
        encoded(Image.fromarray(RGB_PIXELS).convert("CMYK"), "JPEG"),
        RGB,
        "encoded: expected a greyscale or RGB image, got CMYK",
    ),
    "animated": (ANIMATED, GREY, "encoded: expected a still image, got an animated PNG"),
    "another size": (
        encoded(Image.fromarray(np.zeros((8, 9, 3), np.uint8))),
        RGB,
        "encoded: expected an image of 8x8 pixels (width x height; this bundle does not resize), got 9x8",
    ),
    "100 megapixels": (
        png_header(10_000, 10_000),
        BILINEAR,
        "encoded: expected an image of at most 10000 pixels, got 10000x10000",
    ),
    "a bomb to Pillow": (
        png_header(60_000, 60_000),
        BILINEAR,
        "expected an image of at most 10000 pixels, got many more",
    ),
    "truncated WebP": (WEBP[:-30], RGB, "encoded: expected an intact image, got one that cannot be decoded ("),
    "a WebP's first bytes": (WEBP[:14], RGB, "got one that cannot be decoded (its header is no WebP's)"),
    "colour WebP for grey": (WEBP, GREY, "expected a greyscale image (the classifier has 1 channel), got colour (RGB)"),
    "WebP with alpha": (encoded(Image.fromarray(RGBA), "WEBP"), RGB, "got RGBA with alpha"),
    "animated WebP": (ANIMATED_WEBP, RGB, "encoded: expected a still image, got an animated WebP"),
    "another size of WebP": (
        encoded(Image.fromarray(np.zeros((8, 9, 3), np.uint8)), "WEBP"),
        RGB,
        "encoded: expected an image of 8x8 pixels (width x height; this bundle does not resize), got 9x8",
    ),
    "no pixels": (png_header(0, 8), RGB, "encoded: expected"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_an_unfit_image_is_refused_in_one_line(case: str) -> None:
    content, preprocessing, text = BAD_IMAGES[case]
    with pytest.raises(StatusError) as caught:
        decode(content, preprocessing, LIMIT)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_16_bit_colour_is_refused_though_pillow_would_cut_it() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress((b"\0" + b"\x12\x34" * 24) * 8)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(StatusError, match="expected 8 bits per channel, got a PNG of 16 bits"):
        decode(content, RGB, LIMIT)


def test_pillows_own_warning_as_an_error_is_a_refusal_too() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(StatusError, match="expected an image of at most 10000 pixels, got many more"):
            decode(png_header(10_000, 10_000), RGB, LIMIT)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(WHOLE_PNG)), at=st.integers(0, len(WHOLE_PNG) - 1), byte=st.integers(0, 255))
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_png_decodes_or_is_refused(cut: int, at: int, byte: int) -> None:
    damaged = bytearray(WHOLE_PNG)
    damaged[at] = byte
    try:
        image = decode(bytes(damaged[:cut]), RGB, LIMIT)
    except StatusError as error:
        assert error.code is Code.INVALID_ARGUMENT
    else:
        assert image.shape == RGB.shape


WEBPS = [WEBP, encoded(Image.fromarray(RGB_PIXELS), "WEBP"), encoded(Image.fromarray(RGBA), "WEBP"), ANIMATED_WEBP]


@settings(max_examples=300, deadline=None)
@given(
    which=st.sampled_from(WEBPS), cut=st.floats(0, 1), at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255)
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_webp_decodes_or_is_refused(which: bytes, cut: float, at: float, byte: int) -> None:
    damaged = bytearray(which)
    damaged[int(at * len(which))] = byte
    content = bytes(damaged[: len(which) if cut > 0.5 else int(2 * cut * len(which))])
    for preprocessing in (RGB, GREY, BILINEAR):
        try:
            image = decode(content, preprocessing, LIMIT)
        except StatusError as error:
            assert error.code is Code.INVALID_ARGUMENT
            assert "\n" not in str(error)
        else:
            assert image.shape == preprocessing.shape


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_a_large_webp_is_refused_before_pillow_sees_it(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes room for all pixels of a WebP when it opens one."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(StatusError, match=r"^encoded: expected an image of at most 10000 pixels, got 16000x15000$"):
        decode(webp_header(16_000, 15_000, kind), BILINEAR, LIMIT)


def rounded(value: float) -> NDArray[np.float32]:
    values = np.full(GREY.shape, 0.5, np.float32)
    values[0, 3, 4] = value
    return values


@pytest.mark.parametrize("value", [-1e-7, 1.0000001, -ROUNDING, 1 + ROUNDING, -0.0])
def test_rounding_noise_is_no_error(value: float) -> None:
    """What arithmetic leaves of 0 and 1 is taken for them, by one rule for all who hand over floats."""
    found = pixels_of(rounded(value))
    assert float(found[0, 3, 4]) == (0 if value < 0.5 else 1)
    assert float(found[0, 0, 0]) == 0.5
    assert np.array_equal(read(tensor(data=rounded(value).astype("<f4").tobytes())), found)


@pytest.mark.parametrize("value", [-0.001, 1.001, -0.07, 1.07])
def test_what_a_bicubic_resize_overshoots_is(value: float) -> None:
    with pytest.raises(ImageError) as caught:
        pixels_of(rounded(value))
    assert str(caught.value) == (
        f"expected finite values in [0, 1], got {value:g} at [0, 3, 4] "
        "(clip what a resize overshoots: rounding explains no more than 0.0010)"
    )


def test_resized_and_normalised_floats_come_back_within_rounding() -> None:
    """Black and white through the longest kernel, and through a normalisation in half precision."""
    wide = torch.ones(1, 1, 4096, 4096)
    small = torch.nn.functional.interpolate(wide, size=(8, 8), mode="bilinear", antialias=True)
    np.testing.assert_allclose(pixels_of(small.numpy()), torch.ones(1, 1, 8, 8), rtol=0, atol=ROUNDING)
    for mean, std in ((0.485, 0.229), (0.1307, 0.3081), (0.5, 0.5)):
        half = ((torch.tensor([0.0, 1.0]) - mean) / std).half().float()
        found = pixels_of((half * std + mean).numpy())
        np.testing.assert_allclose(found, [0.0, 1.0], rtol=0, atol=ROUNDING)


def tensor(**fields: Any) -> pb.Tensor:
    """A valid tensor but for the fields given."""
    valid: dict[str, Any] = {"shape": GREY.shape, "dtype": pb.Tensor.FP32, "data": np.zeros(64, "<f4").tobytes()}
    return pb.Tensor(**(valid | fields))


def with_value(value: float) -> pb.Tensor:
    values = np.zeros(GREY.shape, "<f4")
    values[0, 3, 4] = value
    return tensor(data=values.tobytes())


BAD_TENSORS: dict[str, tuple[pb.Tensor, str]] = {
    "batch": (
        tensor(shape=[1, 1, 8, 8]),
        "tensor.shape: expected [1, 8, 8] (channels, height, width), got [1, 1, 8, 8]",
    ),
    "channels": (tensor(shape=[3, 8, 8]), "got [3, 8, 8]"),
    "no shape": (tensor(shape=[]), "got []"),
    "negative": (tensor(shape=[-1, 8, 8]), "got [-1, 8, 8]"),
    "many": (tensor(shape=[1] * 1000), "got 1000 dimensions"),
    "no dtype": (tensor(dtype=0), "tensor.dtype: expected FP32 or UINT8, got DATA_TYPE_UNSPECIFIED"),
    "unknown dtype": (tensor(dtype=77), "tensor.dtype: expected FP32 or UINT8, got 77"),
    "short": (tensor(data=b"123"), "tensor.data: expected 256 bytes (1x8x8 FP32), got 3"),
    "dtype and bytes disagree": (tensor(dtype=pb.Tensor.UINT8), "expected 64 bytes (1x8x8 UINT8), got 256"),
    "empty": (tensor(data=b""), "expected 256 bytes (1x8x8 FP32), got 0"),
    "NaN": (with_value(math.nan), "tensor.data: expected finite values in [0, 1], got nan at [0, 3, 4]"),
    "infinity": (with_value(math.inf), "expected finite values in [0, 1], got inf at [0, 3, 4]"),
    "above": (
        with_value(255),
        "expected finite values in [0, 1], got 255 at [0, 3, 4] (divide pixels 0..255 by 255, or send UINT8)",
    ),
    "below": (with_value(-0.5), "expected finite values in [0, 1], got -0.5 at [0, 3, 4]"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_an_unfit_tensor_is_refused_in_one_line(case: str) -> None:
    bad, text = BAD_TENSORS[case]
    with pytest.raises(StatusError) as caught:
        read(bad)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert text in str(caught.value)


def test_a_request_without_an_image_is_refused() -> None:
    with pytest.raises(StatusError, match="image: expected encoded or tensor, got neither"):
        image_of(pb.ScreenRequest()).read(GREY, LIMIT)
