"""Data sources and splits."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from askance.calibration.config import DataConfig, SplitsConfig
from askance.calibration.data import load_pools, load_splits, require_classes
from askance.calibration.images import Images, ImageStream, make_images
from askance.calibration.live_data import images_of
from askance.calibration.sources import load_source
from askance.classifiers import DigitsCNN
from askance.detectors import Tap
from askance.errors import DataError

SPLITS: dict[str, str] = {
    "train": "train[:100]",
    "fit": "train[:150]",
    "held_out": "train[100:150]",
    "calibrate": "train[150:300]",
    "fuse": "train[300:450]",
    "evaluate": "train[450:]",
}


def save(path: Path, **changes: Any) -> str:
    content: dict[str, Any] = {
        "x": np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3),
        "y": np.array([0, 1, 2, 0, 1, 2]),
        "classes": np.array(["a", "b", "c"]),
    }
    content |= changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return f"npz:{path}"


def test_digits_are_shuffled_once_by_the_seed() -> None:
    first = load_pools(DataConfig(source="sklearn:digits", seed=1))["train"]
    again = load_pools(DataConfig(source="sklearn:digits", seed=1))["train"]
    other = load_pools(DataConfig(source="sklearn:digits", seed=2))["train"]
    assert first.x.shape == (1797, 1, 8, 8)
    assert first.x.dtype == torch.uint8
    assert (int(first.x.min()), int(first.x.max())) == (0, 255)
    assert first.classes[:3] == ("zero", "one", "two")
    assert first.digest() == again.digest() != other.digest()
    assert torch.equal(torch.bincount(first.y), torch.bincount(other.y))


def test_classes_can_be_held_out() -> None:
    whole = load_pools(DataConfig(source="sklearn:digits"))["train"]
    kept = whole.only(("seven", "two"))
    assert kept.classes == ("seven", "two")
    rows = (whole.y == 7) | (whole.y == 2)
    assert torch.equal(kept.x, whole.x[rows])
    assert torch.equal(kept.y, (whole.y[rows] == 2).long())
    pool = load_pools(DataConfig(source="sklearn:digits", classes=("seven", "two")))["train"]
    assert pool.classes == ("seven", "two")
    assert torch.bincount(pool.y).tolist() == torch.bincount(kept.y).tolist()
    with pytest.raises(DataError, match="there is no class 'sevn' to keep: did you mean 'seven'"):
        load_pools(DataConfig(source="sklearn:digits", classes=("sevn", "two")))


def test_splits_are_slices_of_the_shuffled_pool() -> None:
    config = DataConfig(source="sklearn:digits")
    pool = load_pools(config)["train"]
    splits = load_splits(config, SplitsConfig(**SPLITS))
    assert {name: len(images) for name, images in splits.items()} == {
        "train": 100,
        "fit": 150,
        "held_out": 50,
        "calibrate": 150,
        "fuse": 150,
        "evaluate": 1347,
    }
    assert torch.equal(splits["fuse"].x, pool.x[300:450])
    assert torch.equal(splits["held_out"].y, pool.y[100:150])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibrate": "train[149:300]"}, r"fit = 'train\[:150\]' and calibrate = 'train\[149:300\]' overlap"),
        ({"fuse": "train[299:450]"}, "calibrate .* and fuse .* overlap: they must be disjoint"),
        ({"held_out": "train[99:150]"}, "train .* and held_out .* overlap"),
        ({"evaluate": "train[450:5000]"}, "is empty or beyond the 1797 images of the pool 'train'"),
        ({"evaluate": "train[500:500]"}, "is empty or beyond"),
        ({"evaluate": "test"}, "this data source has no pool 'test': known: train"),
        ({"evaluate": "trian[5:]"}, r"this data source has no pool 'trian': did you mean 'train'\?"),
        ({"evaluate": "train[a:b]"}, r"is not of the form train\[:1000\]"),
    ],
)
def test_splits_that_cannot_be(changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_splits(DataConfig(source="sklearn:digits"), SplitsConfig(**(SPLITS | changes)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "digits",
            "unknown data source 'digits': known: sklearn, torchvision, npz, folder, parquet, tar; "
            "spelt sklearn:digits, torchvision:NAME, npz:PATH, folder:PATH, parquet:PATH or tar:PATH",
        ),
        ("skleran:digits", "unknown data source 'skleran:digits': did you mean 'sklearn'?"),
        ("sklearn:iris", "scikit-learn's only one here is sklearn:digits"),
        ("torchvision:MINST", "unknown torchvision data set 'MINST': did you mean 'MNIST'?"),
        ("torchvision:MNIST", "needs ASKANCE_DATA"),
        ("npz:/nowhere.npz", "npz:/nowhere.npz cannot be read: No such file"),
        ("folder:/nowhere", "there is no such folder"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASKANCE_DATA", raising=False)
    with pytest.raises(DataError, match=message):
        load_pools(DataConfig(source=source))


def test_torchvision_data_missing_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKANCE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="torchvision:MNIST is not under ASKANCE_DATA="):
        load_pools(DataConfig(source="torchvision:MNIST"))


def test_npz_puts_channels_first(tmp_path: Path) -> None:
    images = load_pools(DataConfig(source=save(tmp_path / "a.npz"), seed=3))["train"]
    assert images.x.shape == (6, 3, 4, 4)
    assert images.classes == ("a", "b", "c")
    grey = np.zeros((4, 5, 6), np.uint8)
    assert make_images(grey, np.array([0, 1, 0, 1]), ("a", "b"), "s").x.shape == (4, 1, 5, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.array([0, 1, 2, 0, 1, 3])}, "label 3 is out of range: 3 classes mean 0 to 2"),
        ({"y": np.array([0, 1, 2, 0, 1, -1])}, "label -1 is out of range"),
        ({"y": np.array([1, 1, 1, 1, 1, 1])}, r"has one class only \('b'\): a classifier needs at least two"),
        ({"y": np.array([0, 1])}, "y must be 6 integers, one per image, got int64"),
        ({"y": np.zeros(6)}, "y must be 6 integers, one per image, got float64"),
        ({"x": np.zeros((6, 4, 4, 3))}, r"x must be uint8 \[N, H, W\] or \[N, H, W, 1 or 3\], got float64"),
        ({"x": np.zeros((6, 4), np.uint8)}, r"got uint8 \[6, 4\]"),
        ({"x": np.zeros((0, 4, 4), np.uint8), "y": np.zeros(0, int)}, "holds no images"),
        ({"classes": None}, "has no key 'classes': expected x, y and classes"),
    ],
)
def test_arrays_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_pools(DataConfig(source=save(tmp_path / "a.npz", **changes)))


def test_other_arrays_of_an_npz_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(load_pools(DataConfig(source=save(tmp_path / "a.npz", x_test=np.zeros(3))))["train"]) == 6
    assert "left out: x_test; x, y and classes are read" in " ".join(capsys.readouterr().err.split())


def test_an_npz_whose_header_lies_costs_no_memory(tmp_path: Path) -> None:
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 4, 5), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(DataError, match=r"is not an \.npz file of plain arrays"):
        load_pools(DataConfig(source=f"npz:{tmp_path / 'a.npz'}"))


def test_an_npz_with_pickles_or_nonsense_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{}], dtype=object), y=np.zeros(1), classes=np.array(["a"]))
    with pytest.raises(DataError, match=r"is not an \.npz file of plain arrays"):
        load_pools(DataConfig(source=f"npz:{tmp_path / 'p.npz'}"))
    (tmp_path / "n.npz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"is not an \.npz file of plain arrays"):
        load_pools(DataConfig(source=f"npz:{tmp_path / 'n.npz'}"))


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((4, 5), value + i, np.uint8)).save(tmp_path / name / f"{i}.png")
    images = load_pools(DataConfig(source=f"folder:{tmp_path}"))["train"]
    assert images.classes == ("cat", "dog")
    assert images.x.shape == (4, 1, 4, 5)
    assert sorted(zip(images.y.tolist(), images.x[:, 0, 0, 0].tolist(), strict=True)) == [
        (0, 10),
        (0, 11),
        (1, 200),
        (1, 201),
    ]
    (tmp_path / "dog" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"dog/2\.png: expected a PNG, JPEG or WebP image, got 13 bytes that are"):
        load_pools(DataConfig(source=f"folder:{tmp_path}"))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "dog" / "2.png")
    with pytest.raises(DataError, match=r"dog/2\.png: expected an image of 5x4 pixels .*, got 9x9"):
        load_pools(DataConfig(source=f"folder:{tmp_path}"))


def test_a_stream_is_walked_anew_each_time() -> None:
    torch.manual_seed(0)
    images = Images(torch.randint(256, (7, 1, 8, 8), dtype=torch.uint8), torch.arange(7), tuple("abcdefghij"))
    stream = ImageStream(Tap(DigitsCNN().eval(), ["fc1"]), images, batch_size=3)
    assert len(stream) == 3
    first, second = list(stream), list(stream)
    assert [len(capture) for capture in first] == [3, 3, 1]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.logits, b.logits)
        assert not a.logits.requires_grad
    assert torch.equal(torch.cat([c.labels for c in first if c.labels is not None]), images.y)
    other = ImageStream(stream.tap, images, 3, pixels=torch.zeros(7, 1, 8, 8))
    logits = torch.cat([capture.logits for capture in other])
    torch.testing.assert_close(logits, logits[:1].expand(7, 10))


def test_a_class_that_a_split_lacks_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def images(*labels: int) -> Images:
        return Images(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels), ("a", "b", "c"))

    names = ("ant", "bee", "cow")
    require_classes({"fit": images(0, 1, 2), "fuse": images(2, 1, 0)}, names, ["fit"])
    assert capsys.readouterr().err == ""
    require_classes({"fit": images(0, 1, 2), "fuse": images(2, 2), "evaluate": images(0, 1)}, names, ["fit"])
    assert capsys.readouterr().err == (
        "warning: the split fuse has no image of classes ant, bee: what is found there does not speak for it\n"
        "warning: the split evaluate has no image of class cow: what is found there does not speak for it\n"
    )
    with pytest.raises(DataError) as caught:
        require_classes({"fit": images(0, 2)}, names, ["fit"])
    assert str(caught.value) == (
        "the split fit has no image of class bee: nothing can be learned of it there; take more images, or leave the "
        "class out"
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_fit_passes_only_with_every_class(labels: list[int]) -> None:
    images = Images(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels), tuple("abcd"))
    whole = set(labels) == {0, 1, 2, 3}
    with contextlib.nullcontext() if whole else pytest.raises(DataError, match="the split fit has no image of class"):
        require_classes({"fit": images}, tuple("abcd"), ["fit"])


ARRAYS = st.sampled_from(
    [
        np.zeros((4, 3, 3), np.uint8),
        np.arange(108, dtype=np.uint8).reshape(4, 3, 3, 3),
        np.zeros((4, 3, 3, 4), np.uint8),
        np.zeros((0, 3, 3), np.uint8),
        np.zeros((4, 3, 3), np.uint16),
        np.zeros(()),
    ]
)
LABELS = st.lists(st.integers(-1, 3), min_size=4, max_size=4).map(np.array) | st.sampled_from(
    [np.zeros(4), np.zeros((4, 1), int), np.array(["0", "1", "0", "1"])]
)
CLASSES = (
    st.lists(st.text(max_size=4), max_size=4).map(lambda names: np.array(names, dtype=str))
    | st.lists(st.binary(max_size=3), max_size=4).map(lambda names: np.array(names, dtype=bytes))
    | st.sampled_from([np.arange(4), np.zeros(4), np.array("abcd"), np.array([["a", "b"]])])
)


@settings(max_examples=300, deadline=None)
@given(ARRAYS, LABELS, CLASSES)
def test_any_npz_is_read_whole_or_refused_in_one_line(x: Any, y: Any, classes: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = save(Path(folder) / "a.npz", x=x, y=y, classes=classes)
        try:
            images = load_source(source)
        except DataError as error:
            assert str(error).startswith(source)
            assert len(str(error).splitlines()) == 1
            return
    assert np.array_equal(images.y.numpy(), y)
    assert np.array_equal(images.x.permute(0, 2, 3, 1).numpy().reshape(x.shape), x)
    assert len(images.classes) == len(classes)
    assert all(name.strip() and "b'" not in name for name in images.classes if not isinstance(classes[0], str))


@pytest.mark.parametrize("noise", [-1e-7, 1e-7])
def test_rounding_noise_of_live_floats_is_no_error(noise: float) -> None:
    """By the rule that a server has."""
    floats = np.array([0.0, 1.0], np.float64).reshape(2, 1, 1, 1) + noise
    found = images_of((np.tile(floats, (1, 1, 4, 4)), np.array([0, 1])), None, "data")
    assert found.x[:, 0, 0, 0].tolist() == [0, 255]


@pytest.mark.parametrize("value", [-0.07, 1.07])
def test_live_floats_that_are_no_pixels_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"data: image 0: expected pixels in \[0, 1\], got values from"):
        images_of((np.full((1, 1, 4, 4), value), np.array([0])), None, "data")


class Broken(Dataset[Any]):
    """Gives ten images, but for one."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise self.error
        return np.zeros((1, 4, 4), np.uint8), i % 2


ERRORS = [OSError("no such\nfile"), KeyError("x"), ValueError(), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("load", [lambda data: data, lambda data: DataLoader(data, batch_size=1)])
def test_whatever_a_data_set_raises_is_one_line(error: Exception, load: Callable[[Any], Any]) -> None:
    with pytest.raises(DataError, match=r"^data cannot give image 7: ") as caught:
        images_of(load(Broken(error)), None, "data")
    assert "\n" not in str(caught.value)


def test_images_that_a_loader_drops_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    data = TensorDataset(torch.zeros(10, 1, 4, 4), torch.arange(10) % 2)
    assert len(images_of(DataLoader(data, batch_size=4), None, "data")) == 10
    assert capsys.readouterr().err == ""
    assert len(images_of(DataLoader(data, batch_size=4, drop_last=True), None, "data")) == 8
    said = "data: 8 images of 10 read, the loader leaves out the others (drop_last, its sampler)\n"
    assert capsys.readouterr().err == said
