"""The pools of a config's data, and the splits drawn from them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

import torch

from askance.calibration.config import DataConfig, SplitsConfig
from askance.calibration.images import Images
from askance.calibration.progress import say
from askance.calibration.sources import pools_of
from askance.errors import DataError, did_you_mean, listed
from askance.screening.class_names import fault_in, order_fault
from askance.screening.preprocessing import Preprocessing


def named(class_names: Sequence[str] | None, own: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called: as `class_names` says, None: as the data itself calls them.

    Raises:
        DataError: a name cannot be a class's, or is the data's own for another class.
    """
    names = tuple(own if class_names is None else class_names)
    if (fault := fault_in(names) or order_fault(names, own)) is not None:
        raise DataError(fault)
    return names


def load_pools(config: DataConfig, preprocessing: Preprocessing | None = None) -> dict[str, Images]:
    """The shuffled pools: {"train": ..., "test": ...} (no "test" where there is no second source).

    Args:
        config: where they come from.
        preprocessing: what the classifier takes: encoded images are decoded to it, as a server does.

    Raises:
        DataError: a source is unknown, missing or invalid, or the two do not have the same classes.
    """
    train, test = pools_of(config.source, preprocessing)
    if config.test_source is not None:
        test, _ = pools_of(config.test_source, preprocessing)
        require_same_classes(config.source, train, config.test_source, test)
    pools = {"train": train} | ({"test": test} if test is not None else {})
    if config.classes is not None:
        pools = {name: pool.only(config.classes) for name, pool in pools.items()}
    return shuffled(pools, config.seed)


def require_same_classes(source: str, images: Images, test_source: str, test: Images) -> None:
    """Refuse two labelled pools of other classes.

    Raises:
        DataError: they are.
    """
    if images.labelled and test.labelled and test.classes != images.classes:
        raise DataError(
            f"{source} has the classes {', '.join(images.classes)}; {test_source} has {', '.join(test.classes)}: "
            "they must be the same"
        )


def shuffled(pools: Mapping[str, Images], seed: int) -> dict[str, Images]:
    """Pools in the order from which splits are cut."""
    generator = torch.Generator().manual_seed(seed)
    return {name: pool[torch.randperm(len(pool), generator=generator)] for name, pool in pools.items()}


_SLICE = re.compile(r"^(\w+)(?:\[(\d*):(\d*)\])?$")


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
        raise DataError(f"split {text!r}: this data source has no pool {name!r}: {did_you_mean(name, pools)}")
    count = len(pools[name])
    positions = range(int(first or 0), int(last) if last else count)
    if positions.stop > count or len(positions) == 0:
        raise DataError(f"split {text!r} is empty or beyond the {count} images of the pool {name!r}")
    return name, positions


def load_splits(
    data: DataConfig, splits: SplitsConfig, preprocessing: Preprocessing | None = None
) -> dict[str, Images]:
    """The splits by name; without `held_out` there is no such key.

    Args:
        data: the pools.
        splits: their slices.
        preprocessing: as for `load_pools`.

    Raises:
        DataError: a slice is invalid, or splits overlap that must not.
    """
    pools = load_pools(data, preprocessing)
    for fault in split_faults(splits, pools):
        raise DataError(fault)
    return sliced(splits, pools)


def sliced(splits: SplitsConfig, pools: dict[str, Images]) -> dict[str, Images]:
    """The splits by name, once `split_faults` finds none."""
    found = {name: resolve(text, pools) for name, text in _wanted(splits).items()}
    return {name: pools[pool][slice(at.start, at.stop)] for name, (pool, at) in found.items()}


def split_faults(splits: SplitsConfig, pools: dict[str, Images]) -> list[str]:
    """All that is wrong with the slices: those that are invalid, and those that overlap and must not; a line each."""
    faults, placed = [], dict[str, tuple[str, range]]()
    wanted = _wanted(splits)
    for name, text in wanted.items():
        try:
            placed[name] = resolve(text, pools)
        except DataError as error:
            faults.append(str(error))
    may_overlap = {frozenset(pair) for pair in (("train", "fit"), ("fit", "held_out"))}
    for a, b in itertools.combinations(placed, 2):
        (pool_a, range_a), (pool_b, range_b) = placed[a], placed[b]
        overlap = range(max(range_a.start, range_b.start), min(range_a.stop, range_b.stop))
        if pool_a == pool_b and overlap and frozenset((a, b)) not in may_overlap:
            faults.append(f"the splits {a} = {wanted[a]!r} and {b} = {wanted[b]!r} overlap: they must be disjoint")
    return faults


def _wanted(splits: SplitsConfig) -> dict[str, str]:
    return {name: text for name, text in splits.model_dump().items() if text is not None}


def require_classes(splits: Mapping[str, Images], class_names: Sequence[str], needed: Collection[str]) -> None:
    """Say in a line which classes a split has no image of.

    Args:
        splits: labelled images by name.
        class_names: in the order of the labels.
        needed: the splits that cannot do without a class.

    Raises:
        DataError: one of these does.
    """
    for split, images in splits.items():
        counts = torch.bincount(images.y, minlength=len(class_names))
        absent = [name for name, count in zip(class_names, counts.tolist(), strict=True) if not count]
        if not absent:
            continue
        line = f"the split {split} has no image of {'class' if len(absent) == 1 else 'classes'} {listed(absent)}"
        if split in needed:
            raise DataError(f"{line}: nothing can be learned of it there; take more images, or leave the class out")
        say(f"warning: {line}: what is found there does not speak for it")
