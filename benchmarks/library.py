"""Library: construction in blocks beside the one-by-one walk that defines it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from askance.detectors import LibraryNetwork, LibraryNetworkOptions
from askance.detectors.library import Library, activation_pattern
from benchmarks.fixtures import BATCH, Fixture
from benchmarks.sizes import Sizes
from benchmarks.timing import Spread, interleave


@dataclass(frozen=True)
class ConstructionCost:
    """One layer's library, built both ways.

    Attributes:
        network, layer: whose.
        images: walked.
        numbers: of a pattern.
        rows: stored, by both ways.
        pairs: measurements of each.
        blocks_seconds, walk_seconds: medians.
        ratio: walk / blocks, pair by pair.
    """

    network: str
    layer: str
    images: int
    numbers: int
    rows: int
    pairs: int
    blocks_seconds: float
    walk_seconds: float
    ratio: Spread


def measure(fixture: Fixture, layer: str, sizes: Sizes) -> ConstructionCost:
    """Build the library of one layer both ways from the same patterns.

    Raises:
        AssertionError: the two libraries differ.
    """
    options = fixture.network.options[LibraryNetwork.kind]
    assert isinstance(options, LibraryNetworkOptions)
    assert options.thresholds is not None
    threshold = options.thresholds[layer]
    most = math.ceil(sizes.library_images / BATCH)  # the walk takes minutes of more
    blocks = [activation_pattern(capture.flat(layer)) for capture in fixture.fitted_on[:most]]
    built: dict[str, Tensor] = {}

    def in_blocks() -> None:
        built["blocks"] = build(blocks, threshold)

    def one_by_one() -> None:
        built["walk"] = walk(blocks, threshold)

    measured = interleave(in_blocks, one_by_one, pairs=sizes.library_pairs, warm_up=False)
    assert built["blocks"].shape == built["walk"].shape, f"{layer}: {len(built['blocks'])} != {len(built['walk'])} rows"
    assert torch.equal(built["blocks"], built["walk"]), f"{layer}: the rows differ"
    return ConstructionCost(
        network=fixture.network.name,
        layer=layer,
        images=sum(len(block) for block in blocks),
        numbers=blocks[0].shape[1],
        rows=len(built["walk"]),
        pairs=sizes.library_pairs,
        blocks_seconds=statistics.median(measured.base),
        walk_seconds=statistics.median(measured.other),
        ratio=measured.ratio,
    )


def build(blocks: Sequence[Tensor], threshold: float) -> Tensor:
    """The rows [M, D] that askance stores of patterns [B, D] in order."""
    library = Library(threshold)
    library.rows = blocks[0].new_empty(0, blocks[0].shape[1])
    for block in blocks:
        library.extend(block)
    library.seal()
    return library.rows


def walk(blocks: Sequence[Tensor], threshold: float) -> Tensor:
    """The rows [M, D] by the definition: each pattern against all rows stored so far, one pattern at a time."""
    rows, stored = blocks[0].new_empty(sum(len(block) for block in blocks), blocks[0].shape[1]), 0
    for block in blocks:
        for pattern in block:
            if stored == 0 or float((rows[:stored] @ pattern).max()) < threshold:
                rows[stored] = pattern
                stored += 1
    return rows[:stored].clone()
