"""Sharing out the images that there are: which learn, which calibrate, which show how well it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from askance.errors import ConfigError, DataError
from askance.judgement.conformal import samples_needed

TrainedOn = Literal["train", "none", "all"]
"""Which of the images the classifier has seen: the first pool, none, or all."""
FEWEST_IMAGES = 100  # that can be shared out
FEWEST_HELD_OUT = 50  # that the error estimator learns from; with fewer it learns from fit
MOST_FITTED = 10_000
MOST_RANKED = 5_000  # in each of calibrate, fuse, evaluate and held_out
LEVELS = {"suspect": 0.05, "adversarial": 0.01}
OPTIMISTIC = (
    "the classifier was trained on all of these images: the p-values are optimistic, more clean images will be flagged "
    "than the levels promise"
)


@dataclass(frozen=True)
class Shares:
    """Who gets which images.

    Attributes:
        splits: slices by the name of the split, as a config spells them.
        sizes: images of each.
        levels: the false-positive targets that so many images allow.
        warning: what is wrong with these images in general; empty where nothing is.
    """

    splits: Mapping[str, str]
    sizes: Mapping[str, int]
    levels: Mapping[str, float]
    warning: str = ""


def shared_out(pools: Mapping[str, int], trained_on: TrainedOn | None) -> Shares:
    """Share out pools of images so that calibrate, fuse and evaluate are unseen, if any are.

    Two pools: fit from the first, all else from the second. One pool, shared out to all.

    Args:
        pools: images of the pool "train", and of "test" where there is one.
        trained_on: None where nobody said: the first of two pools.

    Raises:
        ConfigError: there is one pool, and nobody has said whether the classifier has seen it.
        DataError: there are too few images.
    """
    if "test" not in pools and trained_on in (None, "train"):
        raise ConfigError(
            "p-values need images that the classifier was not trained on: give such as --test-data; or say of these "
            "--trained-on none, or --trained-on all"
        )
    first = pools["train"]
    ranked = pools.get("test", first)
    if min(first, ranked) < FEWEST_IMAGES:
        raise DataError(f"{min(first, ranked)} images cannot be shared out: expected at least {FEWEST_IMAGES}")
    if "test" in pools:
        fitted = min(first, MOST_FITTED)
        splits = {"fit": ("train", 0, fitted)} | _cut("test", ranked, 0, _of_test(ranked))
    else:
        share = 0.15 if 0.15 * first >= samples_needed(LEVELS["adversarial"]) else 0.2
        begin = round((0.8 - 2 * share) * first)
        splits = {"fit": ("train", 0, min(begin, MOST_FITTED))}
        splits |= _cut("train", first, begin, {"calibrate": share, "fuse": share, "evaluate": 0.2})
    sizes = {name: end - start for name, (_, start, end) in splits.items()}
    ranks = min(sizes["calibrate"], sizes["fuse"])
    adversarial = max(LEVELS["adversarial"], math.ceil(1000 / (ranks + 1)) / 1000)
    return Shares(
        {name: f"{pool}[{start or ''}:{end}]" for name, (pool, start, end) in splits.items()},
        sizes,
        {"suspect": max(LEVELS["suspect"], adversarial), "adversarial": adversarial},
        OPTIMISTIC if trained_on == "all" else "",
    )


def _of_test(count: int) -> dict[str, float]:
    share = 0.25 if 0.25 * count >= samples_needed(LEVELS["adversarial"]) else 0.3
    held_out = 0.7 - 2 * share
    shares = {"held_out": held_out} if held_out * count >= FEWEST_HELD_OUT else {}
    return shares | {"calibrate": share, "fuse": share, "evaluate": 0.3}


def _cut(pool: str, count: int, begin: int, shares: Mapping[str, float]) -> dict[str, tuple[str, int, int]]:
    """Slices of a pool, one after the other from `begin` on."""
    found = {}
    for name, share in shares.items():
        end = begin + min(int(share * count + 1e-9), MOST_RANKED)
        found[name] = (pool, begin, end)
        begin = end
    return found
