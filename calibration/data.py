"""Data sets by one string, and the splits drawn from them."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from askance.calibration.config import DataConfig, SplitsConfig
from askance.calibration.paths import data_root
from askance.detectors.tap import Capture, Tap
from askance.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        x: uint8 [N, C, H, W].
        y: int64 [N], 0 <= y < K.
        classes: K names.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Images:
        return Images(self.x[index], self.y[index], self.classes)

    def pixels(self) -> Tensor:
        """The images in [0, 1], float32 [N, C, H, W]."""
        return self.x.float() / 255

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
        pixels: float32 [N, C, H, W] in [0, 1] in place of the images' own (attacked copies); labels stay.
    """

    tap: Tap
    images: Images
    batch_size: int = 500
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def slices(self) -> list[slice]:
        """Which images make each batch."""
        return [slice(start, start + self.batch_size) for start in range(0, len(self.images), self.batch_size)]

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The pixels [B, C, H, W] and labels [B] of one of the `slices`."""
        images = self.images[rows]
        return images.pixels() if self.pixels is None else self.pixels[rows], images.y

    def __iter__(self) -> Iterator[Capture]:
        for rows in self.slices():
            with torch.no_grad():
                capture = self.tap(*self.batch(rows))
            yield capture


def make_images(x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], source: str) -> Images:
    """Validate arrays and put channels first.

    Raises:
        DataError: wrong dtype or shape, labels out of range, one class only, or nothing at all.
    """
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise DataError(f"{source}: x must be uint8 [N, H, W] or [N, H, W, 1 or 3], got {x.dtype} {list(x.shape)}")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{source}: y must be {len(x)} integers, one per image, got {y.dtype} {list(y.shape)}")
    if len(x) == 0:
        raise DataError(f"{source} holds no images")
    if y.min() < 0 or y.max() >= len(classes):
        bad = int(y.min() if y.min() < 0 else y.max())
        raise DataError(f"{source}: label {bad} is out of range: {len(classes)} classes mean 0 to {len(classes) - 1}")
    if len(np.unique(y)) < 2:
        raise DataError(f"{source} has one class only ({classes[int(y[0])]!r}): a classifier needs at least two")
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)), classes)


def _located(path: str) -> Path:
    root = data_root()
    return Path(path) if root is None or Path(path).exists() else root / path


def _digits(_name: str) -> tuple[Images, Images | None]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return make_images(x, digits.target, words, "sklearn:digits"), None


def _torchvision(name: str) -> tuple[Images, Images | None]:
    from askance.classifiers.torchvision_compat import import_torchvision

    import_torchvision()
    from torchvision import datasets

    known = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")
    if name not in known:
        raise DataError(f"unknown torchvision data set {name!r}: {did_you_mean(name, known)}")
    root = data_root()
    if root is None:
        raise DataError(f"torchvision:{name} needs ASKANCE_DATA, the folder that holds {name}/")
    parts = []
    for train in (True, False):
        try:
            part = getattr(datasets, name)(root, train=train, download=False)
        except RuntimeError:
            raise DataError(f"torchvision:{name} is not under ASKANCE_DATA={root}: download it there first") from None
        classes = tuple(re.sub(r"^\d - ", "", label) for label in part.classes)
        parts.append(make_images(np.asarray(part.data), np.asarray(part.targets), classes, f"torchvision:{name}"))
    return parts[0], parts[1]


def _npz(path: str) -> tuple[Images, Images | None]:
    source, file = f"npz:{path}", _located(path)
    try:
        with np.load(file, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise DataError(f"{source} holds one array: expected an .npz file with x, y and classes")
            missing = [key for key in ("x", "y", "classes") if key not in content]
            if missing:
                raise DataError(f"{source} has no key {missing[0]!r}: expected x, y and classes")
            x, y, classes = content["x"], content["y"], content["classes"]
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{source} is not an .npz file of plain arrays: expected x, y and classes") from None
    if classes.ndim != 1:
        raise DataError(f"{source}: classes must be a list of names, got shape {list(classes.shape)}")
    return make_images(x, y, tuple(str(name) for name in classes), source), None


def _folder(path: str) -> tuple[Images, Images | None]:
    from PIL import Image, UnidentifiedImageError

    source, root = f"folder:{path}", _located(path)
    if not root.is_dir():
        raise DataError(f"{source}: there is no such folder")
    classes = tuple(sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")))
    arrays, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((root / name).iterdir()):
            if file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
                continue
            try:
                with Image.open(file) as image:
                    arrays.append(np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
            except (UnidentifiedImageError, OSError):
                raise DataError(f"{source}: {name}/{file.name} is not a readable image") from None
            if arrays[-1].shape != arrays[0].shape:
                raise DataError(
                    f"{source}: {name}/{file.name} is {list(arrays[-1].shape)}, the first image "
                    f"{list(arrays[0].shape)}: all must have one size and colour mode"
                )
            labels.append(label)
    if not arrays:
        raise DataError(f"{source}: no PNG or JPEG images in sub-folders, one folder per class")
    return make_images(np.stack(arrays), np.array(labels), classes, source), None


_SOURCES = {"sklearn": _digits, "torchvision": _torchvision, "npz": _npz, "folder": _folder}


def load_pools(config: DataConfig) -> dict[str, Images]:
    """The shuffled pools: {"train": ..., "test": ...} (no "test" where there is no second source).

    Raises:
        DataError: a source is unknown, missing or invalid, or the two do not have the same classes.
    """
    train, test = _load(config.source)
    if config.test_source is not None:
        test, _ = _load(config.test_source)
        if test.classes != train.classes:
            raise DataError(
                f"{config.source} has the classes {', '.join(train.classes)}; {config.test_source} has "
                f"{', '.join(test.classes)}: they must be the same"
            )
    pools = {"train": train} | ({"test": test} if test is not None else {})
    if config.classes is not None:
        pools = {name: pool.only(config.classes) for name, pool in pools.items()}
    generator = torch.Generator().manual_seed(config.seed)
    return {name: pool[torch.randperm(len(pool), generator=generator)] for name, pool in pools.items()}


def load_source(source: str) -> Images:
    """All images of a source, its pools together.

    Raises:
        DataError: it is unknown, missing or invalid.
    """
    train, test = _load(source)
    if test is None:
        return train
    return Images(torch.cat([test.x, train.x]), torch.cat([test.y, train.y]), train.classes)


def _load(source: str) -> tuple[Images, Images | None]:
    kind, _, rest = source.partition(":")
    if kind not in _SOURCES or not rest:
        raise DataError(f"unknown data source {source!r}: sklearn:digits, torchvision:NAME, npz:PATH or folder:PATH")
    if kind == "sklearn" and rest != "digits":
        raise DataError(f"unknown data source {source!r}: scikit-learn's only one here is sklearn:digits")
    return _SOURCES[kind](rest)


_SLICE = re.compile(r"^(train|test)(?:\[(\d*):(\d*)\])?$")


def resolve(text: str, pools: dict[str, Images]) -> tuple[str, range]:
    """A slice "pool[a:b]" as (pool, positions).

    Raises:
        DataError: it does not parse, names no pool, or is empty or too long.
    """
    match = _SLICE.match(text)
    if match is None:
        raise DataError(f"split {text!r} is not of the form train[:1000], test[500:] or train")
    name, first, last = match.groups()
    if name not in pools:
        raise DataError(f"split {text!r}: this data source has no pool {name!r}, only {', '.join(pools)}")
    count = len(pools[name])
    positions = range(int(first or 0), int(last) if last else count)
    if positions.stop > count or len(positions) == 0:
        raise DataError(f"split {text!r} is empty or beyond the {count} images of the pool {name!r}")
    return name, positions


def load_splits(data: DataConfig, splits: SplitsConfig) -> dict[str, Images]:
    """The splits by name; without `held_out` there is no such key.

    Raises:
        DataError: a slice is invalid, or splits overlap that must not.
    """
    pools = load_pools(data)
    wanted = {name: text for name, text in splits.model_dump().items() if text is not None}
    placed = {name: resolve(text, pools) for name, text in wanted.items()}
    may_overlap = {frozenset(pair) for pair in (("train", "fit"), ("fit", "held_out"))}
    for a, b in itertools.combinations(placed, 2):
        (pool_a, range_a), (pool_b, range_b) = placed[a], placed[b]
        overlap = range(max(range_a.start, range_b.start), min(range_a.stop, range_b.stop))
        if pool_a == pool_b and overlap and frozenset((a, b)) not in may_overlap:
            raise DataError(f"the splits {a} = {wanted[a]!r} and {b} = {wanted[b]!r} overlap: they must be disjoint")
    return {name: pools[pool][slice(r.start, r.stop)] for name, (pool, r) in placed.items()}
