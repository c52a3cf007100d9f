"""Live data: torch datasets, data loaders and arrays as the images that a calibration works on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from askance.calibration.data import named
from askance.calibration.images import Images, make_images
from askance.calibration.progress import say
from askance.calibration.sources.encoded import numbered
from askance.errors import AskanceError, DataError, did_you_mean, one_line
from askance.images import is_picture, planes_of
from askance.screening.class_names import names_of
from askance.screening.images import ROUNDING, bytes_of

LiveImages = Dataset[Any] | DataLoader[Any] | Sequence[Any] | NDArray[Any] | Tensor
"""A dataset of (image, label), a loader of (images, labels) batches, or (images, labels) as arrays or tensors; or any
of these without labels: a dataset of images, a loader of batches of them, an array or a tensor, a list of pictures."""

SHARES = {"fit": 0.5, "calibrate": 0.15, "fuse": 0.15, "evaluate": 0.2}
"""How one set of images is shared out."""
REQUIRED = tuple(SHARES)
OPTIONAL = ("held_out",)
MOST_WRAPPERS = 10  # around a data set


def splits_of(
    data: LiveImages | Mapping[str, LiveImages], class_names: Sequence[str] | None, seed: int
) -> dict[str, Images]:
    """The splits of a calibration.

    Args:
        data: by split (fit, calibrate, fuse, evaluate, and held_out if there is one), disjoint; or one set
            that the classifier was not trained on, which is shuffled and shared out 50 : 15 : 15 : 20.
        class_names: in the order of the labels; None takes the data set's own `classes`.
        seed: of the shuffling.

    Raises:
        DataError: a split is missing or unknown, images are of several sizes, or labels are out of range.
    """
    if isinstance(data, Mapping):
        known = (*REQUIRED, *OPTIONAL)
        if unknown := [name for name in data if name not in known]:
            raise DataError(f"data has an unknown split {unknown[0]!r}: {did_you_mean(str(unknown[0]), known)}")
        if missing := [name for name in REQUIRED if name not in data]:
            raise DataError(f"data has no split {missing[0]!r}: it needs {', '.join(REQUIRED)}; held_out is optional")
        found = {name: images_of(one, class_names, name) for name, one in data.items()}
        classes = {images.classes for images in found.values() if images.labelled}
        if len(classes) > 1:
            raise DataError("the splits have different classes: give class_names, the same for all")
        return found
    images = images_of(data, class_names, "data")
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    ends = np.floor(np.cumsum(list(SHARES.values())) * len(images) + 1e-9).astype(int).tolist()
    starts = [0, *ends[:-1]]
    return {name: images[slice(start, end)] for name, start, end in zip(SHARES, starts, ends, strict=True)}


def images_of(data: LiveImages, class_names: Sequence[str] | None, name: str) -> Images:
    """Images, kept as 8 bits a channel; labelled, unless the data have no labels.

    Args:
        data: images are PIL's, uint8, or floats in [0, 1]: pixels as they are before any normalisation.
        class_names: of what is labelled; None takes the data set's own `classes`.
        name: of the data, for errors.

    Raises:
        DataError: it holds something else, or some of its images have labels and some do not.
    """
    images, labels = [], list[int]()
    for image, label in _told(_walked(data), name):
        try:
            images.append(_bytes_of(image))
        except DataError as error:
            raise DataError(f"{name}: image {len(images)}: {error}") from None
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{name}: image {len(images) - 1} is {list(images[-1].shape)}, the first {list(images[0].shape)}: "
                "all must have one size"
            )
        if label is not None:
            labels.append(_label(label, f"{name}: image {len(images) - 1}"))
    if not images:
        raise DataError(f"{name} holds no images")
    if isinstance(data, DataLoader):
        _say_dropped(data, len(images), name)
    x = np.stack(images).transpose(0, 2, 3, 1)
    if not labels:
        return make_images(x, None, (), name)
    if len(labels) < len(images):
        raise DataError(f"{name}: {len(labels)} of {len(images)} images have a label: expected all of them, or none")
    numbers, by_number = numbered(labels, name)
    try:
        classes = _names(data, class_names, by_number)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    return make_images(x, numbers, classes, name)


def _told(walked: Iterator[tuple[Any, Any]], name: str) -> Iterator[tuple[Any, Any]]:
    """The same; whatever a data set's own code raises is one line."""
    i = 0
    try:
        for i, found in enumerate(walked, 1):  # noqa: B007 (for the error)
            yield found
    except AskanceError:
        raise
    except Exception as error:
        raise DataError(
            f"{name} cannot give image {i}: {one_line(error)}; mend the data set, or leave it out"
        ) from error


def _say_dropped(loader: DataLoader[Any], given: int, name: str) -> None:
    """Say how many images of its data set a loader leaves out, if any."""
    dataset = loader.dataset
    if isinstance(dataset, Sized) and given < len(dataset):
        say(f"{name}: {given} images of {len(dataset)} read, the loader leaves out the others (drop_last, its sampler)")


def _label(label: Any, where: str) -> int:
    """A label as an integer; whole floats are what some data sets keep them in."""
    try:
        value = label.item() if hasattr(label, "item") else label
        number = int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number, value = 0, None
    if isinstance(value, (str, bytes)) or number != value:
        raise DataError(f"{where} has the label {str(label)[:40]!r}: expected the number of its class, 0, 1, ...")
    return number


def _names(data: LiveImages, class_names: Sequence[str] | None, by_number: tuple[str, ...]) -> tuple[str, ...]:
    """The names given, else the data set's own, else the labels in digits."""
    own = _own_names(data)
    if own is None:
        return by_number if class_names is None else names_of(class_names)
    return named(None if class_names is None else names_of(class_names), names_of(own))


def _own_names(dataset: Any) -> Sequence[Any] | None:
    """The names that a data set has for its classes, as torchvision spells them; those inside a wrapper, too."""
    for _ in range(MOST_WRAPPERS):
        classes, numbers = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
        if classes is not None:
            found: Sequence[Any] = classes
            return found
        if isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
            return sorted(numbers, key=lambda name: numbers[name])
        several = getattr(dataset, "datasets", None) or [None]  # a ConcatDataset's
        dataset = getattr(dataset, "dataset", several[0])
    return None


def _walked(data: LiveImages) -> Iterator[tuple[Any, Any]]:
    """(image, label) by one; None for a label that there is not."""
    if isinstance(data, DataLoader):
        for batch in data:
            yield from _each(*_pair(batch))
    elif isinstance(data, tuple):
        yield from _each(*_pair(data))
    elif not isinstance(data, Sized):
        raise DataError(f"data is {type(data).__name__}, which has no length: make a list of it, or a DataLoader")
    else:
        for i in range(len(data)):
            yield _pair(data[i])


def _pair(found: Any) -> tuple[Any, Any]:
    """Images and labels of what a data set or a loader gives; None for labels that there are not."""
    if isinstance(found, (tuple, list)) and len(found) == 2:
        return found[0], found[1]
    if isinstance(found, (tuple, list)) and len(found) == 1:  # as a TensorDataset of images gives them
        return found[0], None
    if is_picture(found) or hasattr(found, "ndim"):
        return found, None
    raise DataError(f"data gives {type(found).__name__}: expected pairs (image, label), or images alone")


def _each(images: Iterable[Any], labels: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    if labels is None:
        return zip(images, repeat(None))
    if isinstance(images, Sized) and isinstance(labels, Sized) and len(images) != len(labels):
        raise DataError(f"data has {len(images)} images and {len(labels)} labels: expected one for each")
    return zip(images, labels, strict=True)


def _bytes_of(image: Any) -> NDArray[np.uint8]:
    """One image as uint8 [C, H, W]."""
    if is_picture(image):
        return bytes_of(image)
    planes = planes_of(image)
    if planes.dtype == np.uint8:
        return planes
    low, high = float(planes.min()), float(planes.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise DataError(
            f"expected pixels in [0, 1], got values from {low:g} to {high:g}: leave the normalisation out of the data "
            "set, and give its mean and std instead"
        )
    rounded: NDArray[np.uint8] = np.rint(planes.clip(0, 1) * 255).astype(np.uint8)
    return rounded
