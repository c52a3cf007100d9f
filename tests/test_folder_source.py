"""A folder of image files is read as a server reads requests: one decoder, one rule."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from calibration_support import DigitsRun
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from askance.calibration.images import Images, any_image
from askance.calibration.inputs import load_inputs
from askance.calibration.sources import load_source
from askance.calibration.sources.encoded import SUFFIXES
from askance.calibration.training import accuracy
from askance.errors import AskanceError, DataError
from askance.screening.images import MAX_PIXELS, ImageError, decode
from askance.screening.preprocessing import Preprocessing
from askance.service.settings import LimitsConfig

GREY = Preprocessing(channels=1, height=4, width=5, mean=(0.0,), std=(1.0,))
RGB = Preprocessing(channels=3, height=4, width=5, mean=(0.0,) * 3, std=(1.0,) * 3)
RANDOM = np.random.default_rng(0)


def picture(mode: str = "L", width: int = 5, height: int = 4) -> Image.Image:
    """Noise in one of PIL's modes."""
    if mode == "I;16":
        return Image.fromarray(RANDOM.integers(0, 2**16, (height, width)).astype(np.uint16))
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def file(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


PLAIN = {"cat/0.png": file(picture()), "cat/1.png": file(picture()), "dog/0.png": file(picture())}


def tree(root: Path, files: Mapping[str, bytes]) -> str:
    """A folder of these files, as a source."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return f"folder:{root}"


def animated() -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG", save_all=True, append_images=[picture()])
    return buffer.getvalue()


REFUSED: dict[str, tuple[bytes, Preprocessing, str]] = {
    "16 bits": (file(picture("I;16")), GREY, "expected 8 bits per channel, got a PNG of 16 bits"),
    "alpha": (
        file(picture("RGBA")),
        RGB,
        "expected an image without alpha (flatten it first), got RGBA with alpha",
    ),
    "CMYK": (file(picture("CMYK"), "JPEG"), RGB, "expected a greyscale or RGB image, got CMYK"),
    "colour": (
        file(picture("RGB")),
        GREY,
        "expected a greyscale image (the classifier has 1 channel), got colour (RGB)",
    ),
    "animation": (animated(), GREY, "expected a still image, got an animated PNG"),
    "another size": (
        file(picture(width=6)),
        GREY,
        "expected an image of 5x4 pixels (width x height; this bundle does not resize), got 6x4",
    ),
    "a GIF": (file(picture(), "GIF"), GREY, "expected a PNG, JPEG or WebP image, got "),
    "nothing": (b"", GREY, "expected a PNG, JPEG or WebP image, got 0 bytes"),
    "cut short": (file(picture(width=5))[:-30], GREY, "expected an intact image, got one that cannot be decoded ("),
}


@pytest.mark.parametrize(("content", "wanted", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_server_refuses_is_refused_with_its_words(
    tmp_path: Path, content: bytes, wanted: Preprocessing, message: str
) -> None:
    source = tree(tmp_path, PLAIN | {"dog/odd.png": content})
    with pytest.raises(DataError) as caught:
        load_source(source, wanted)
    line = str(caught.value)
    assert line.startswith(f"{source}: dog/odd.png: {message}")
    assert line.endswith("; a server refuses such an image, too: convert it, or take it out")
    assert len(line.splitlines()) == 1


def test_the_largest_image_is_a_servers_own() -> None:
    assert LimitsConfig().max_image_pixels == MAX_PIXELS


def test_grey_files_palettes_and_suffixes_that_lie_are_read_as_a_server_reads_them(tmp_path: Path) -> None:
    files = {
        "a/grey.png": file(picture("L")),
        "a/palette.PNG": file(picture("P")),
        "b/bits.png": file(picture("1")),
        "b/jpeg.png": file(picture("RGB"), "JPEG"),
        "b/rgb.jpeg": file(picture("RGB"), "JPEG"),
    }
    images = load_source(tree(tmp_path, files), RGB)
    assert images.y.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(images.pixels(), np.stack([decode(one, RGB, MAX_PIXELS) for one in files.values()]))


def test_other_sizes_are_scaled_by_the_servers_own_code(tmp_path: Path) -> None:
    bilinear = RGB.model_copy(update={"resize": "bilinear"})
    files = {f"{label}/{i}.png": file(picture("RGB", 9 + i, 7)) for label in "ab" for i in range(2)}
    images = load_source(tree(tmp_path, files), bilinear)
    assert images.x.shape == (4, 3, 4, 5)
    assert np.array_equal(images.pixels(), np.stack([decode(one, bilinear, MAX_PIXELS) for one in files.values()]))


def test_without_a_classifier_the_first_image_says_what_is_wanted(tmp_path: Path) -> None:
    assert load_source(tree(tmp_path, PLAIN)).x.shape == (3, 1, 4, 5)
    with pytest.raises(DataError, match=r"dog/1\.png: expected a greyscale image .*, got colour \(RGB\)"):
        load_source(tree(tmp_path, {"dog/1.png": file(picture("RGB"))}))


def test_images_from_elsewhere_may_have_any_size_and_colour(tmp_path: Path) -> None:
    files = {"a/0.png": file(picture("RGB", 9, 9)), "b/0.png": file(picture("L", 3, 2))}
    assert load_source(tree(tmp_path, files), any_image((1, 4, 5))).x.shape == (2, 3, 4, 5)


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tree(
        tmp_path,
        PLAIN
        | {
            "cat/.DS_Store": b"",
            "cat/more/2.png": PLAIN["cat/0.png"],
            "dog/labels.csv": b"",
            "dog/1.bmp": b"",
            "readme.txt": b"",
            ".git/0.png": b"",
        },
    )
    assert len(load_source(source, GREY)) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "3 images read, 6 other entries left out (.git, cat/.DS_Store, cat/more/, dog/1.bmp, dog/labels.csv, "
        "readme.txt): only PNG, JPEG and WebP files right in the folder of a class are images"
    ) in said


def test_where_nothing_is_left_out_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_source(tree(tmp_path, PLAIN), GREY)
    assert capsys.readouterr().err == ""


def test_what_a_folder_without_classes_has_besides_is_said_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = PLAIN["cat/0.png"]
    source = tree(tmp_path, {"0.png": image, "1.png": image, "2.bmp": b"", ".3.png": image, "notes.txt": b""})
    assert len(load_source(source, GREY)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "2 images read, 3 other entries left out (.3.png, 2.bmp, notes.txt): only" in said


@pytest.mark.parametrize("place", ["cat/pipe.png", "cat/zeros.png", "pipe.png"])
def test_what_would_be_read_for_ever_is_not_opened(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tree(tmp_path, PLAIN)
    if "pipe" in place:
        os.mkfifo(tmp_path / place)
    else:
        (tmp_path / place).symlink_to("/dev/zero")
    assert len(load_source(source, GREY)) == 3
    assert f"3 images read, 1 other entries left out ({place}): only" in " ".join(capsys.readouterr().err.split())


def test_many_names_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_source(tree(tmp_path, PLAIN | {f"cat/{i:02}.txt": b"" for i in range(20)}), GREY)
    said = " ".join(capsys.readouterr().err.split())
    assert "20 other entries left out (cat/00.txt, " in said
    assert "cat/11.txt, ...): only" in said


@pytest.mark.parametrize("inside", ["", "deeper/0.png", "0.gif"])
def test_a_class_without_images_is_refused(tmp_path: Path, inside: str) -> None:
    source = tree(tmp_path, PLAIN | ({f"emu/{inside}": PLAIN["cat/0.png"]} if inside else {}))
    (tmp_path / "emu").mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        load_source(source, GREY)
    assert str(caught.value) == (
        f"{source}: the class emu has no image: expected PNG, JPEG or WebP files right in its folder; put some there, "
        "or take the folder out"
    )


def test_names_that_no_class_can_have(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 (a name that is no UTF-8)
    Path(os.fsdecode(folder + b"/0.png")).write_bytes(PLAIN["cat/0.png"])
    source = tree(tmp_path, PLAIN)
    with pytest.raises(DataError, match=r"the name 'caf\\udce9' holds a control character, or is no UTF-8"):
        load_source(source, GREY)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    source = tree(tmp_path, PLAIN)
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"/dog/gone\.png cannot be read: No such file or directory$"):
        load_source(source, GREY)


def transparent() -> bytes:
    buffer = io.BytesIO()
    picture("P").save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "grey": lambda: file(picture("L")),
    "rgb": lambda: file(picture("RGB")),
    "palette": lambda: file(picture("P")),
    "jpeg": lambda: file(picture("RGB"), "JPEG"),
    "webp": lambda: file(picture("L"), "WEBP"),
    "colour webp": lambda: file(picture("RGB"), "WEBP"),
    "large": lambda: file(picture("L", 11, 3)),
    "16 bits": lambda: file(picture("I;16")),
    "alpha": lambda: file(picture("LA")),
    "text": lambda: b"a note",
    "gif": lambda: file(picture(), "GIF"),
    "transparent": transparent,
}


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=6)
FILES = st.tuples(
    NAMES, st.sampled_from([".png", ".JPG", ".jpeg", ".WebP", ".txt", ""]), st.sampled_from(sorted(CONTENTS))
)
TREES = st.dictionaries(NAMES, st.lists(FILES, max_size=3), max_size=4)


@settings(max_examples=150, deadline=None)
@given(TREES, st.sampled_from([GREY, RGB, RGB.model_copy(update={"resize": "bilinear"}), None]))
def test_any_folder_is_read_whole_or_refused_in_one_line(
    folders: dict[str, list[tuple[str, str, str]]], wanted: Preprocessing | None
) -> None:
    """Every file of a class is read to what a server makes of it; else one line says why not."""
    with tempfile.TemporaryDirectory() as root:
        expected: dict[str, bytes] = {}
        for folder, files in folders.items():
            try:
                (Path(root) / folder).mkdir(exist_ok=True)
            except (OSError, UnicodeEncodeError):
                continue  # the file system takes no such name
            for stem, suffix, kind in files:
                path = Path(root) / folder / (stem + suffix)
                try:
                    path.write_bytes(CONTENTS[kind]())
                except (OSError, UnicodeEncodeError):
                    continue
                seen = not path.name.startswith(".") and path.suffix.lower() in SUFFIXES
                if seen and not folder.startswith("."):
                    expected[f"{folder}/{path.name}"] = path.read_bytes()
        try:
            images: Images = load_source(f"folder:{root}", wanted)
        except AskanceError as error:
            assert len(str(error).splitlines()) == 1
            str(error).encode()
            return
        assert len(images) == len(expected)
        assert all(name in folders and not name.startswith(".") for name in images.classes)
        if wanted is not None:
            found = {one.numpy().tobytes() for one in images.pixels()}
            assert found == {decode(content, wanted, MAX_PIXELS).tobytes() for content in expected.values()}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CONTENTS)), st.sampled_from([GREY, RGB]))
def test_a_folder_refuses_what_a_server_refuses_and_nothing_else(kind: str, wanted: Preprocessing) -> None:
    content = CONTENTS[kind]()
    try:
        decode(content, wanted, MAX_PIXELS)
        refused = None
    except ImageError as error:
        refused = str(error)
    good = file(picture("L"))
    with tempfile.TemporaryDirectory() as root:
        source = tree(Path(root), {"a/0.png": good, "b/0.png": content})
        if refused is None:
            assert len(load_source(source, wanted)) == 2
        else:
            with pytest.raises(DataError) as caught:
                load_source(source, wanted)
            assert refused in str(caught.value)


def test_a_name_that_looks_like_markup_is_said_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_source(tree(tmp_path, PLAIN | {"cat/[bold].txt": b""}), GREY)
    said = capsys.readouterr().err
    assert "left out (cat/[bold].txt): only" in said
    assert said.count("\n") == 1


def test_a_config_reads_its_folder_as_its_server_would(digits_run: DigitsRun, tmp_path: Path) -> None:
    """The digits as files, twice as large: loaded, scaled, and classified as well as ever."""
    bilinear = digits_run.config.classifier.preprocessing.model_copy(update={"resize": "bilinear"})
    whole = load_source("sklearn:digits")
    files = {}
    for i, (image, label) in enumerate(zip(whole.x[:600], whole.y[:600].tolist(), strict=True)):
        large = Image.fromarray(image[0].numpy()).resize((16, 16), Image.Resampling.BILINEAR)
        files[f"{label} {whole.classes[label]}/{i:04}.png"] = file(large)
    parts = {"train": "[:10]", "fit": "[:300]", "calibrate": "[300:420]", "fuse": "[420:540]", "evaluate": "[540:]"}
    config = digits_run.config
    config = config.model_copy(
        update={
            "classifier": config.classifier.model_copy(update={"preprocessing": bilinear}),
            "data": config.data.model_copy(update={"source": tree(tmp_path, files)}),
            "splits": config.splits.model_copy(
                update={name: f"train{part}" for name, part in parts.items()} | {"held_out": None}
            ),
            "word_vectors": None,
        }
    )
    inputs = load_inputs(config)
    assert inputs.class_names == tuple(sorted({name.partition("/")[0] for name in files}))
    evaluated = {one.numpy().tobytes() for one in inputs.splits["evaluate"].pixels()}
    assert evaluated <= {decode(content, bilinear, MAX_PIXELS).tobytes() for content in files.values()}
    assert accuracy(inputs.classifier, bilinear, inputs.splits["calibrate"]) > 0.8
    refusing = config.model_copy(update={"classifier": digits_run.config.classifier})
    with pytest.raises(DataError, match=r"expected an image of 8x8 pixels .*, got 16x16; a server refuses such an"):
        load_inputs(refusing)
